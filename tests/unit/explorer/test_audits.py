"""What is asserted follows from `conftest.write_auditing`: responses by checkpoint, then prompt, then kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

Serve = Callable[[Path], TestClient]


def get(client: TestClient, path: str, **parameters: Any) -> Any:
    answer = client.get(path, params=parameters)
    assert answer.status_code == 200, answer.text[:300]
    return answer.json()


class TestCard:
    def test_the_gravest_is_the_first(self, client: TestClient) -> None:
        card = get(client, "/api/audits")
        assert [finding["level"] for finding in card["findings"]] == ["severe", "warn", "undecided", "ok"]
        assert [finding["id"] for finding in card["findings"]] == [0, 1, 2, 3]
        assert card["levels"] == {"severe": 1, "warn": 1, "undecided": 1, "ok": 1}

    def test_a_line(self, client: TestClient) -> None:
        finding = get(client, "/api/audits")["findings"][0]
        assert finding["sentence"] == "<b>severe</b> ⟨U+202E⟩"
        assert (finding["mean"], finding["low"], finding["high"]) == (2.0, 1.9, 2.1)
        assert (finding["warn"], finding["severe"], finding["n_evidence"]) == (1.25, 3.0, 1)
        assert (finding["model"], finding["metric"], finding["rule"], finding["audit"]) == (
            "dpo",
            "words_ratio",
            "length",
            "verbosity",
        )

    def test_what_responses_can_be_filtered_by(self, client: TestClient, hostile_name: str) -> None:
        card = get(client, "/api/audits")
        assert card["checkpoints"][:2] == ["base", "dpo"]
        assert card["checkpoints"][2].startswith("⟨U+202E⟩<img src=x")
        assert card["kinds"] == ["plain", "limited"]
        assert card["scorers"] == ["judge"]
        assert card["n_responses"] == 24
        for category in card["categories"]:
            assert get(client, "/api/audits/responses", category=category)["total"] == 12
        for model in card["checkpoints"]:
            assert get(client, "/api/audits/responses", model=model)["total"] == 8


class TestEvidence:
    def test_a_perturbed_text_beside_the_unperturbed(self, client: TestClient) -> None:
        (shown,) = get(client, "/api/audits/findings/0")["evidence"]
        assert (shown["model"], shown["prompt_id"], shown["perturbation"]) == ("base", "q0", "filler")
        assert shown["note"] == "score 0 becomes 2.5"
        assert shown["text"]["text"] == "the base <b>also</b> says one"
        assert shown["base_text"]["text"] == "the base says one"
        assert shown["segments"] == [
            {"text": "the base", "changed": False},
            {"text": " ", "changed": False},
            {"text": "<b>also</b>", "changed": True},
            {"text": " says one", "changed": False},
        ]
        assert shown["scores"] == [
            {"scorer": "judge", "before": 0.0, "after": 2.5},
            {"scorer": "implicit_reward(dpo)", "before": 0.25, "after": None},
        ]
        assert shown["instruction"]["text"] == "ask 0"
        assert (shown["n_tokens"], shown["n_words"], shown["is_truncated"]) == (None, None, None)

    def test_a_response_beside_the_bases(self, client: TestClient) -> None:
        shown = get(client, "/api/audits/findings/1")["evidence"][0]
        assert shown["note"] == "5 words, the base's −2"
        assert shown["text"]["text"] == "dpo says 1 plain"
        assert shown["base_text"]["text"] == "base says 1 plain"
        assert shown["segments"] is None
        assert shown["scores"] == [{"scorer": "judge", "before": 0.5, "after": 0.5}]
        assert (shown["n_tokens"], shown["n_words"], shown["is_truncated"]) == (3, 3, False)
        assert get(client, f"/api/audits/responses/{shown['id']}")["text"] == shown["text"]

    def test_a_megabyte_by_a_hostile_checkpoint(self, client: TestClient) -> None:
        shown = get(client, "/api/audits/findings/1")["evidence"][1]
        assert shown["kind"] == "limited"
        assert shown["scores"] == []
        assert len(shown["text"]["text"]) == 20_000
        assert shown["text"]["left_out"] > 900_000
        assert shown["is_truncated"] is True

    def test_a_response_that_was_not_kept(self, client: TestClient) -> None:
        (shown,) = get(client, "/api/audits/findings/2")["evidence"]
        assert (shown["id"], shown["text"], shown["base_text"]) == (None, {"text": "", "left_out": 0}, None)

    def test_nothing_to_show(self, client: TestClient) -> None:
        assert get(client, "/api/audits/findings/3")["evidence"] == []

    def test_a_run_that_kept_no_responses(self, serve: Serve, run_dir: Path, bare: Path) -> None:
        (bare / "auditing").mkdir()
        (bare / "auditing" / "card.json").write_bytes((run_dir / "auditing" / "card.json").read_bytes())
        client = serve(bare)
        assert get(client, "/api/audits")["n_responses"] == 0
        assert get(client, "/api/audits/responses")["rows"] == []
        assert get(client, "/api/audits/findings/1")["evidence"][0]["id"] is None
        assert client.get("/api/audits/responses/0").status_code == 404


class TestResponses:
    @pytest.mark.parametrize(
        ("filters", "found"),
        [
            ({"model": "dpo", "kind": "plain"}, [8, 10, 12, 14]),
            ({"category": "factual", "model": "base"}, [0, 1, 4, 5]),
            ({"prompt_id": "q2"}, [4, 5, 12, 13, 20, 21]),
            ({"q": "SAYS 1", "kind": "limited"}, [3, 11]),
            ({"q": "<script>"}, [16, 17]),
            ({"model": "dpo", "sort": "n_tokens", "order": "desc"}, [14, 15, 12, 13, 10, 11, 8, 9]),
            ({"size": 2, "page": 3}, [6, 7]),
        ],
    )
    def test_filters(self, client: TestClient, filters: dict[str, Any], found: list[int]) -> None:
        assert [row["id"] for row in get(client, "/api/audits/responses", **filters)["rows"]] == found

    def test_a_row(self, client: TestClient) -> None:
        row = get(client, "/api/audits/responses", page=1, size=23)["rows"][0]
        assert row["model"].startswith("⟨U+202E⟩")
        assert row["category"].startswith("⟨U+202E⟩")
        assert (row["prompt_id"], row["kind"], row["n_tokens"], row["n_words"]) == ("q3", "limited", 5, 3)
        assert row["prompt"] == "ask 3"

    def test_one_beside_those_of_the_others(self, client: TestClient) -> None:
        item = get(client, "/api/audits/responses/10")
        assert item["text"]["text"] == "dpo says 1 plain"
        assert item["instruction"]["text"] == "ask 1"
        assert [other["id"] for other in item["others"]] == [2, 18]
        assert item["others"][0]["text"]["text"] == "base says 1 plain"
        assert item["others"][0]["scores"] == [{"scorer": "judge", "score": 0.5}]

    def test_surrogates_of_other_checkpoints_are_no_scores_of_a_response(self, client: TestClient) -> None:
        assert get(client, "/api/audits/responses/0")["scores"] == [{"scorer": "judge", "score": 0.0}]

    def test_limited_ones_were_not_scored(self, client: TestClient) -> None:
        assert get(client, "/api/audits/responses/1")["scores"] == []

    def test_an_unknown_checkpoint(self, client: TestClient) -> None:
        answer = client.get("/api/audits/responses?model=dpp")
        assert answer.status_code == 404
        assert "did you mean 'dpo'?" in answer.json()["error"]
