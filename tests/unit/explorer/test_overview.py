from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from triptych.explorer.overview import recipe_of

Serve = Callable[[Path], TestClient]


def overview(client: TestClient) -> Any:
    answer = client.get("/api/run")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_run(client: TestClient) -> None:
    run = overview(client)
    assert run["run_id"] == "test-run"
    assert run["command"] == "triptych study --recipe '<b>smoke'"
    assert run["recipe"] == "<b>smoke"
    assert (run["seed"], run["device"], run["has_report"]) == (7, "cpu", True)
    assert run["panels"] == {"decoding": True, "alignment": False, "auditing": True, "dictionaries": True}
    assert [section["id"] for section in run["sections"]] == ["decoding", "auditing", "dictionaries"]


def test_findings_are_those_of_the_report(client: TestClient) -> None:
    findings = {section["id"]: section["findings"] for section in overview(client)["sections"]}
    assert "24 responses to 4 prompts" in " ".join(findings["auditing"])
    assert "⟨U+202E⟩" in " ".join(findings["auditing"])
    assert findings["dictionaries"]


def test_a_panel_that_is_not_finished_does_not_hide_the_others(client: TestClient) -> None:
    # The run has completions and no measures of them.
    (said,) = next(section["findings"] for section in overview(client)["sections"] if section["id"] == "decoding")
    assert said.startswith("Not readable: ")
    assert "diversity.json is missing" in said


def test_a_run_that_has_nothing_yet(serve: Serve, bare: Path) -> None:
    run = overview(serve(bare))
    assert run["sections"] == []
    assert run["has_report"] is False
    assert not any(run["panels"].values())


def test_what_a_run_gets_later_is_seen(serve: Serve, bare: Path) -> None:
    client = serve(bare)
    assert overview(client)["has_report"] is False
    (bare / "report.html").write_text("x")
    assert overview(client)["has_report"] is True


@pytest.mark.parametrize(
    ("command", "recipe"),
    [
        ("triptych study", "starter"),
        ("triptych study --recipe paper --out x", "paper"),
        ("triptych study --recipe=smoke", "smoke"),
        ("triptych study --recipe", "starter"),
        ("triptych decode --model m", None),
        ("", None),
    ],
)
def test_the_recipe_stands_in_the_command(command: str, recipe: str | None) -> None:
    assert recipe_of(tuple(command.split())) == recipe
