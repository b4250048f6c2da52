import json
from pathlib import Path

import pytest
import torch

from triptych import doctor
from triptych.cli import run
from triptych.decoding.plan import plan_requests
from triptych.doctor import Diagnosis, diagnose, folder_bytes, product_rate, recipe_cost, report_lines
from triptych.models.hardware import Hardware
from triptych.study import load_recipe


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and no two seconds of arithmetic."""
    monkeypatch.setattr(doctor, "hub_is_reachable", lambda: False)
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.01)
    monkeypatch.setattr(doctor, "LAYERS", 1)


@pytest.fixture
def diagnosis(quick: None) -> Diagnosis:
    return diagnose(0.01)


def test_it_names_every_recipe_and_says_that_costs_are_estimates(diagnosis: Diagnosis) -> None:
    text = "\n".join(report_lines(diagnosis))
    for name in ("starter", "smoke", "paper"):
        assert f"recipe      {name}: " in text
    assert "estimate" in text
    assert "does not answer" in text
    assert "torch" in diagnosis.packages


def test_json_is_what_people_read(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = json.loads(lines[-1])
    assert said["hub_reachable"] is False
    assert [cost["recipe"] for cost in said["recipes"]] == ["grpo", "grpo_collapse", "paper", "smoke", "starter"]
    assert any(line.startswith("processor") for line in lines)


def test_costs_follow_the_plan_and_the_rate() -> None:
    config = load_recipe("smoke")
    slow, fast = (recipe_cost("smoke", config, allowed) for allowed in (500.0, 1000.0))
    assert config.decoding is not None
    assert config.decoding.limit is not None
    completions = sum(map(len, plan_requests(config.decoding, config.decoding.limit)))
    assert slow.rows > completions  # beams and candidates are rows of their own
    assert slow.seconds - doctor.FIXED_SECONDS == pytest.approx(2 * (fast.seconds - doctor.FIXED_SECONDS), abs=0.2)
    assert slow.training_seconds is not None
    assert recipe_cost("mine", load_recipe("grpo"), 1000.0).scoring_seconds is None
    assert recipe_cost("paper", load_recipe("paper"), 1000.0).scoring_seconds is not None


def test_the_time_is_that_of_the_tokens_at_the_share_that_decoding_reaches() -> None:
    cost = recipe_cost("starter", load_recipe("starter"), 1000.0)
    expected = doctor.FIXED_SECONDS + cost.tokens / (doctor.DECODING_SHARE * 1000.0)
    assert cost.seconds == pytest.approx(expected, abs=0.1)


def test_the_probe_measures_a_step_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LAYERS", 1)
    one = product_rate(torch.device("cpu"), torch.float32, 0.0)
    monkeypatch.setattr(doctor, "HEAD", (576, 64))
    assert product_rate(torch.device("cpu"), torch.float32, 0.1) > one > 0


def test_features_by_their_usual_names() -> None:
    flags = frozenset({"avx2", "avx512f", "amx_bf16"})
    hardware = Hardware(cpu="made up", cores=2.0, memory_bytes=1, flags=flags, gpus=(), has_mps=False)
    assert doctor.features_of(hardware) == ("AVX2", "AVX-512", "AMX bf16")


def test_folders_are_measured_without_links(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(bytes(1000))
    (tmp_path / "link").symlink_to(tmp_path / "a" / "file")
    assert folder_bytes(tmp_path) == 1000
    assert folder_bytes(tmp_path / "absent") == 0
