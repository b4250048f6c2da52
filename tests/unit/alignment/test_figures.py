"""What a finished run says of itself: figures with intervals, and its card."""

from typing import Any

import pytest
import yaml

from triptych.alignment.cards import model_card, shown
from triptych.alignment.dpo import DpoConfig
from triptych.alignment.state import TrainerState, Warned
from triptych.records import Estimate


def estimate(mean: float | None, low: float | None = None, high: float | None = None) -> Estimate:
    return Estimate(mean=mean, low=low, high=high, n=5, n_clusters=3, method="a method")


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (estimate(0.61, 0.48, 0.73), "0.61 [0.48, 0.73]"),
        (estimate(0.61), "0.61 (a method)"),
        (estimate(None), "a method"),
    ],
)
def test_how_a_figure_is_shown(one: Estimate, text: str) -> None:
    assert shown(one) == text


@pytest.fixture(scope="module")
def states(world: Any) -> dict[str, Any]:
    return {method: world.state(world.train(method, out=f"figures-{method}")) for method in ("reward", "dpo", "grpo")}


def test_what_each_method_is_measured_by(states: dict[str, Any]) -> None:
    names = {method: [figure["name"] for figure in state["figures"]] for method, state in states.items()}
    assert names["reward"] == ["eval_accuracy", "eval_margin"]
    assert names["dpo"] == [
        *("eval_accuracy", "eval_margin", "perplexity_ratio", "perplexity", "perplexity_reference", "kl")
    ]
    assert names["grpo"] == [
        *("reward", "reward_change", "length", "length_change", "empty_rate"),
        *("length_median", "perplexity_ratio", "perplexity", "perplexity_reference", "kl"),
    ]


def test_figures_are_those_of_the_last_evaluation(world: Any, states: dict[str, Any]) -> None:
    for method, names in {
        "reward": {"eval_accuracy": "accuracy", "eval_margin": "margin"},
        "dpo": {"eval_accuracy": "accuracy", "eval_margin": "margin", "perplexity": "perplexity", "kl": "kl"},
        "grpo": {"reward": "reward", "empty_rate": "empty_rate", "kl": "kl", "perplexity": "perplexity"},
    }.items():
        folder = world.folder / f"figures-{method}" / "alignment" / method
        last = world.metrics(folder)[f"{method}.eval"][-1]
        figures = {figure["name"]: figure["estimate"] for figure in states[method]["figures"]}
        for name, metric in names.items():
            assert figures[name]["mean"] == pytest.approx(last[metric], rel=1e-4, abs=1e-6), (method, name)
        assert last["step"] == 3
    dpo = {figure["name"]: figure["estimate"]["mean"] for figure in states["dpo"]["figures"]}
    assert dpo["perplexity_ratio"] == pytest.approx(dpo["perplexity"] / dpo["perplexity_reference"], rel=1e-5)
    grpo = {figure["name"]: figure["estimate"]["mean"] for figure in states["grpo"]["figures"]}
    first = world.metrics(world.folder / "figures-grpo" / "alignment" / "grpo")["grpo.eval"][0]
    assert grpo["reward_change"] == pytest.approx(grpo["reward"] - first["reward"], abs=1e-6)


def test_every_figure_has_an_interval_or_says_why_not(states: dict[str, Any]) -> None:
    for figure in (figure for state in states.values() for figure in state["figures"]):
        estimate = figure["estimate"]
        assert estimate["low"] is not None or "no interval: " in estimate["method"], figure
    # 2 held-out pairs and 3 held-out prompts: perplexity is of the tokens of the ones, KL of those of the others.
    grpo = {figure["name"]: figure["estimate"] for figure in states["grpo"]["figures"]}
    assert [grpo[name]["n_clusters"] for name in ("perplexity", "perplexity_ratio", "kl")] == [2, 2, 3]
    assert grpo["perplexity"]["low"] < grpo["perplexity"]["mean"] < grpo["perplexity"]["high"]


def test_what_a_state_counts(world: Any, states: dict[str, Any]) -> None:
    for method, state in states.items():
        assert (state["step"], state["total_steps"], state["outcome"], state["path"]) == (3, 3, "finished", "fused")
        steps = world.metrics(world.folder / f"figures-{method}" / "alignment" / method)[method]
        assert state["tokens"] == sum(line["tokens"] for line in steps)
        assert TrainerState.model_validate(state).model == world.model
    # 12 pairs and 14 prompts, a fifth of them held out. LoRA of rank 2 on q (32 → 32) and v (32 → 16) of two layers.
    assert (states["dpo"]["n_train"], states["dpo"]["n_validation"]) == (10, 2)
    assert (states["grpo"]["n_train"], states["grpo"]["n_validation"]) == (11, 3)
    assert states["dpo"]["n_trainable"] == 2 * (2 * (32 + 32) + 2 * (32 + 16))
    assert states["reward"]["n_trainable"] == states["dpo"]["n_trainable"] + 32


def test_without_held_out_pairs_there_are_no_figures(world: Any) -> None:
    folder = world.train("dpo", panel={"validation": 0.0})
    assert world.state(folder)["figures"] == []
    assert "dpo.eval" not in {name for name, lines in world.metrics(folder).items() if lines and "loss" in lines[0]} - {
        "dpo"
    }


# --- Cards ----------------------------------------------------------------------------------------------------------------------


def make_state(**options: Any) -> TrainerState:
    defaults: dict[str, Any] = {
        "method": "dpo",
        "model": "starter",
        "fingerprint": "abc",
        "config_hash": "def",
        "step": 7,
        "total_steps": 9,
        "outcome": "finished",
        "n_train": 10,
        "n_validation": 2,
        "n_trainable": 12345,
    }
    return TrainerState.model_validate(defaults | options)


def test_a_card_says_what_was_trained_on_what(world: Any, states: dict[str, Any]) -> None:
    for method in states:
        text = (world.folder / f"figures-{method}" / "alignment" / method / "README.md").read_text()
        _, front, body = text.split("---\n", 2)
        assert yaml.safe_load(front) == {
            "base_model": world.model,
            "library_name": "peft",
            "tags": ["triptych", method, "lora"],
        }
        assert "3 steps, finished; " in body
        for figure in states[method]["figures"]:
            assert f"| {figure['name']} | " in body
        assert "batch_size: 3" in body or "group_size: 3" in body


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        ("finished", "7 steps, finished"),
        ("stopped", "stopped by the collapse watch after 7 of 9 steps"),
        ("rolled_back", "rolled back by the collapse watch to step 7 of 9"),
    ],
)
def test_how_a_run_ended(outcome: str, text: str) -> None:
    assert text in model_card(make_state(outcome=outcome), DpoConfig())


def test_warnings_are_one_line_each() -> None:
    warnings = [
        Warned(step=None, level="note", signal="pairs", sentence="longer\nis better"),
        Warned(step=4, level="severe", signal="kl", sentence="step 4: far"),
    ]
    card = model_card(make_state(warnings=warnings), DpoConfig())
    assert "- **note**: longer is better\n" in card
    assert "- **severe**: step 4: far\n" in card
    assert "## Warnings" not in model_card(make_state(), DpoConfig())


def test_the_card_of_full_fine_tuning_names_no_adapter(world: Any) -> None:
    folder = world.train("dpo", lora=None)
    card = (folder / "README.md").read_text()
    assert "PeftModel" not in card
    assert "peft" not in card.split("---")[1]
    assert "AutoModelForCausalLM.from_pretrained(FOLDER)" in card
