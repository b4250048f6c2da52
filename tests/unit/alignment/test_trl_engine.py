"""The TRL engine: what it makes of a recipe, what it refuses, and that it ends where the native engine does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from triptych.alignment.dpo import DpoConfig, PairOrder
from triptych.alignment.grpo import GrpoConfig
from triptych.alignment.losses import Dpo, dpo
from triptych.alignment.reward_model import RewardConfig
from triptych.alignment.trl_engine import EpochOrder
from triptych.alignment.trl_settings import PassSizes, dpo_settings, grpo_settings, pass_sizes, reward_settings
from triptych.cli import run
from triptych.config import parse_config
from triptych.errors import ConfigError
from triptych.models import load_reward_model
from triptych.models.tiny import save_tiny, tiny_llama
from triptych.runs import read_metrics
from triptych.study import StudyConfig, run_study
from triptych.workers import Workers

PAIRS = [
    ("Capital of France?", "Paris.", "Lyon, I think, or Marseille."),
    ("2 + 2?", "4", "5"),
    ("Name a colour.", "Blue is a colour.", "Seven"),
    ("Say hello politely.", "Good morning, madam!", "Yo"),
    ("Opposite of hot?", "Cold.", "Warm."),
    ("Is water wet?", "Yes, as most people use the word.", "No."),
    ("Translate 'Haus'.", "House", "A mouse in a house"),
    ("Name a fruit.", "An apple.", "A stone."),
    ("Spell 'cat'.", "c, a, t", "d, o, g"),
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model", tiny_llama(3))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)) for pair in PAIRS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"instruction": prompt}) + "\n" for prompt, _, _ in PAIRS))
    return path


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))


def study(model: Path, out: Path, engine: str, **alignment: Any) -> Path:
    """One training run; the folder of its method."""
    written = {"model": str(model), "dtype": "float32", "seed": 3, "device": "cpu"}
    config = parse_config(
        StudyConfig, {**written, "alignment": {"engine": engine, "validation": 0.2, **alignment}}, where="test"
    )
    run_study(config, out, command=["test"], show_progress=False)
    return next((out / "alignment").iterdir())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def require_same_files(folder: Path, native: Path, *, tolerance: float) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in native.iterdir()}
    assert json.loads((folder / "adapter_config.json").read_text()) == json.loads(
        (native / "adapter_config.json").read_text()
    )
    found, expected = weights(folder), weights(native)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() < tolerance, name
    # B starts from 0, so that both have moved, and farther than they may be apart.
    assert max(float(t.abs().max()) for n, t in expected.items() if "lora_B" in n) > 5 * tolerance


OPTIMISER = {"learning_rate": 2e-3, "schedule": "cosine", "warmup": 0.2, "weight_decay": 0.01, "clip": 0.5}
LORA = {"rank": 4, "alpha": 8.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        # 7 pairs to train on: batches of 3, 3 and 1, three times over.
        {"batch_size": 3, "epochs": 3},
        {"batch_size": 4, "max_steps": 3, "micro_batch_size": 1, "loss": {"name": "dpo", "label_smoothing": 0.2}},
    ],
    ids=["with an epoch's rest", "accumulated cdpo"],
)
def test_dpo_ends_where_the_native_engine_does(
    changed: dict[str, Any], model: Path, pairs: Path, tmp_path: Path
) -> None:
    pytest.importorskip("trl")
    dpo = {"lora": LORA, "optimiser": OPTIMISER, "max_length": 70, **changed}
    native, found = (study(model, tmp_path / engine, engine, pairs=str(pairs), dpo=dpo) for engine in ("native", "trl"))
    require_same_files(found, native, tolerance=1e-4)
    lines, expected = (read_metrics(tmp_path / engine, "dpo") for engine in ("trl", "native"))
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    for name in ("loss", "grad_norm", "learning_rate", "accuracy", "margin", "reward_chosen", "logp_rejected"):
        assert [line[name] for line in lines] == pytest.approx([line[name] for line in expected], abs=1e-3), name
    evaluations = read_metrics(tmp_path / "trl", "dpo.eval")
    assert [line["step"] for line in evaluations] == [0, len(lines)]
    assert evaluations[0]["kl"] == 0.0
    state, other = (json.loads((folder / "trainer_state.json").read_text()) for folder in (found, native))
    assert (state["path"], state["outcome"], state["step"]) == ("trl", "finished", len(lines))
    assert state["tokens"] > 0
    for key in ("fingerprint", "n_train", "n_validation", "n_trainable", "total_steps"):
        assert state[key] == other[key], key
    figures = {one["name"]: one["estimate"]["mean"] for one in state["figures"]}
    assert figures == pytest.approx({one["name"]: one["estimate"]["mean"] for one in other["figures"]}, abs=1e-2)


@pytest.mark.slow
def test_reward_models_end_where_the_native_engine_does(model: Path, pairs: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    reward = {"lora": LORA, "optimiser": OPTIMISER, "batch_size": 3, "epochs": 2, "max_length": 70}
    native, found = (
        study(model, tmp_path / engine, engine, pairs=str(pairs), reward=reward) for engine in ("native", "trl")
    )
    require_same_files(found, native, tolerance=1e-4)
    assert any("score" in name for name in weights(found))
    texts = [("2 + 2?", "4"), ("2 + 2?", "I do not know")]
    scores = [load_reward_model(folder, dtype="float32", device="cpu").score(texts) for folder in (found, native)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-2)


@pytest.mark.slow
def test_grpo_writes_what_the_native_engine_writes(model: Path, prompts: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    grpo = {
        "lora": LORA,
        "prompts": str(prompts),
        "rewards": ["brevity=0.5", "repetition"],
        "steps": 3,
        "iterations": 2,
        "prompts_per_step": 2,
        "group_size": 3,
        "micro_batch_size": 1,
        "max_new_tokens": 5,
        "eval_prompts": 2,
        "eval_every": 1,
        "watch": {"action": "warn"},
        "optimiser": {"learning_rate": 1e-2, "schedule": "constant"},
    }
    native, found = (study(model, tmp_path / engine, engine, pairs=None, grpo=grpo) for engine in ("native", "trl"))
    assert {path.name for path in found.iterdir()} == {path.name for path in native.iterdir()}
    assert set(weights(found)) == set(weights(native))
    assert any(tensor.abs().max() > 0 for name, tensor in weights(found).items() if "lora_B" in name)
    lines, expected = (read_metrics(tmp_path / engine, "grpo") for engine in ("trl", "native"))
    assert [line["step"] for line in lines] == [1, 2, 3]
    # What only the native engine sees: the first token's probabilities, and its own log-probabilities twice.
    importance = {f"importance_{name}" for name in ("min", "mean", "max", "ess", "masked", "raw")}
    assert set(expected[0]) - set(lines[0]) == {"eos_first", "behaviour_gap", "behaviour_bias", *importance}
    assert set(lines[0]) <= set(expected[0])
    # Two optimizer steps on the same rollouts.
    assert lines[0]["reward"] == lines[1]["reward"]
    assert [line["step"] for line in read_metrics(tmp_path / "trl", "grpo.eval")] == [0, 1, 2, 3]
    # The same draws from the same weights, whoever trains.
    first, other = (read_metrics(tmp_path / engine, "grpo.eval")[0] for engine in ("trl", "native"))
    assert first["reward"] == other["reward"]


@pytest.mark.slow
def test_the_command_line_takes_it(model: Path, pairs: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    out = tmp_path / "run"
    arguments = ["align", "dpo", "--model", str(model), "--pairs", str(pairs), "--out", str(out), "--engine", "trl"]
    assert run([*arguments, "--max-steps", "2", "--max-length", "70", "--dtype", "float32"]) == 0
    folder = out / "alignment" / "dpo"
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "trainer_state.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert "trl path" in (folder / "README.md").read_text()


def test_it_says_how_to_install_trl(model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triptych.alignment.trl_engine.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"engine 'trl' is not installed: pip install 'triptych\[trl\]'"):
        study(model, tmp_path / "run", "trl", pairs=str(pairs), dpo={"max_steps": 1})


def test_several_processes_are_refused(
    model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trl")
    several = Workers()
    several.count = 2
    monkeypatch.setattr("triptych.study.Workers", lambda device: several)
    with pytest.raises(ConfigError, match="one process"):
        study(model, tmp_path / "run", "trl", pairs=str(pairs), dpo={"max_steps": 1})


REFUSED: dict[str, tuple[Callable[[Any], dict[str, Any]], type, dict[str, Any], str]] = {
    "ipo": (dpo_settings, DpoConfig, {"loss": {"name": "ipo"}}, "dpo.loss 'ipo'"),
    "simpo": (dpo_settings, DpoConfig, {"loss": {"name": "simpo"}}, "dpo.loss 'simpo'"),
    "smoothed norm": (
        dpo_settings,
        DpoConfig,
        {"loss": {"name": "length_normalised_dpo", "label_smoothing": 0.1}},
        "label_smoothing",
    ),
    "path": (reward_settings, RewardConfig, {"path": "fused"}, "reward.path 'fused'"),
    "full decay": (
        dpo_settings,
        DpoConfig,
        {"lora": None, "optimiser": {"learning_rate": 1e-5, "weight_decay": 0.1}},
        "dpo.optimiser.weight_decay with lora = null",
    ),
    "leave one out": (grpo_settings, GrpoConfig, {"advantage": "leave_one_out"}, "grpo.advantage 'leave_one_out'"),
    "rollback": (grpo_settings, GrpoConfig, {"watch": {"action": "rollback"}}, "grpo.watch.action 'rollback'"),
    "no reference": (grpo_settings, GrpoConfig, {"lora": None}, "grpo.lora = null"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_trl_cannot_is_refused_by_name(name: str) -> None:
    settings, config, written, named = REFUSED[name]
    with pytest.raises(ConfigError, match="engine 'trl' has no counterpart to") as caught:
        settings(parse_config(config, written, where="test"))
    assert named in str(caught.value)
    assert "or use engine 'native'" in str(caught.value)


def test_label_smoothing_is_a_sum_of_two_losses_of_trl() -> None:
    settings = dpo_settings(DpoConfig(loss=Dpo(beta=0.3, label_smoothing=0.2)))
    assert settings["loss_type"] == ["sigmoid", "robust"]
    margins = torch.tensor([-4.0, -0.5, 0.0, 2.0, 9.0], dtype=torch.float64)
    zero, beta, smoothing = torch.zeros_like(margins), settings["beta"], settings["label_smoothing"]
    up, down = -F.logsigmoid(beta * margins), -F.logsigmoid(-beta * margins)
    robust = ((1 - smoothing) * up - smoothing * down) / (1 - 2 * smoothing)
    found = settings["loss_weights"][0] * up + settings["loss_weights"][1] * robust
    expected = dpo(margins, zero, zero, zero, beta=0.3, label_smoothing=0.2).losses
    torch.testing.assert_close(found, expected)


def test_grpo_in_trls_words() -> None:
    settings = grpo_settings(
        GrpoConfig.model_validate(
            {"loss": {"name": "gspo", "beta": 0.01}, "advantage": "centred", "mask_truncated": True, "iterations": 2}
        )
    )
    assert settings["loss_type"] == "grpo"
    assert settings["importance_sampling_level"] == "sequence"
    assert (settings["epsilon"], settings["epsilon_high"], settings["beta"]) == (3e-4, 4e-4, 0.01)
    assert (settings["scale_rewards"], settings["mask_truncated_completions"]) == ("none", True)
    assert settings["num_iterations"] == 2
    assert settings["use_bias_correction_kl"] is False
    dr_grpo = grpo_settings(GrpoConfig.model_validate({"loss": {"name": "dr_grpo"}}))
    assert (dr_grpo["loss_type"], dr_grpo["scale_rewards"]) == ("dr_grpo", "none")


def test_epochs_are_those_of_the_native_engine() -> None:
    order = PairOrder(7, 3, 2, None, 5)
    rows = EpochOrder(order, 7)
    seen = []
    for epoch in range(2):
        rows.set_epoch(epoch)
        seen += [*rows]
    assert seen == [row for step in range(order.steps) for row in order.batch(step)]
    assert sorted(seen[:7]) == [*range(7)]


@pytest.mark.parametrize(
    ("batch", "n", "longest", "changed", "expected"),
    [
        (4, 7, 100, {}, PassSizes(4, 1)),  # all in one pass, whatever the rest
        (4, 8, 1000, {}, PassSizes(2, 2)),
        (4, 8, 5000, {}, PassSizes(1, 4)),  # a pair that does not fit is still a pass
        (4, 7, 1000, {}, PassSizes(1, 4)),  # a rest of 3 has only passes of one row in common with 4
        (6, 9, 600, {}, PassSizes(3, 2)),
        (4, 8, 100, {"micro_batch_size": 3}, PassSizes(2, 2)),
    ],
)
def test_passes_have_as_many_rows_each(
    batch: int, n: int, longest: int, changed: dict[str, Any], expected: PassSizes
) -> None:
    config = DpoConfig(micro_batch_tokens=2048, **changed)
    assert pass_sizes(config, torch.device("cpu"), batch, longest, n) == expected
