"""What was trained is what is loaded: adapters, merged models, reward models, and the base that they belong to."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from triptych.alignment.adapters import LoraConfig, load_adapter_state, save_adapter, with_lora
from triptych.alignment.backends.fused import PROJECTIONS
from triptych.alignment.encoding import encode_answer
from triptych.alignment.merge import merge
from triptych.alignment.packing import Group
from triptych.alignment.policy import Policy
from triptych.alignment.reward_model import RewardConfig, new_scorer
from triptych.data.templates import encode_prompt, render_prompt
from triptych.errors import ModelError, OutputError
from triptych.files import atomic_write_json
from triptych.models import load_language_model, load_reward_model
from triptych.models.loading import quiet_transformers
from triptych.models.sources import REWARD_CONFIG
from triptych.models.tiny import tiny_gpt2, tiny_language_model, tiny_llama
from triptych.records import Prompt

IDS = torch.tensor([[4, 5, 6, 7, 100, 200]])


def shake(parameters: dict[str, Any]) -> None:
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draws))


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=IDS).logits.float()
    return logits


def plain_peft(base: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    with quiet_transformers():
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), folder).eval()


def saved_policy(world: Any, folder: Path, targets: Any = PROJECTIONS) -> Policy:
    lm = load_language_model(world.model, dtype="float32", device="cpu")
    policy = Policy(lm, lora=LoraConfig(rank=2, alpha=5.0, targets=targets), seed=0)
    shake(policy.parameters)
    save_adapter(policy.model, folder)
    return policy


# --- New adapters -------------------------------------------------------------------------------------------------------------


def test_a_new_adapter_changes_nothing_and_depends_on_the_seed_alone() -> None:
    plain = logits_of(tiny_llama(3))
    one, same, other = (
        with_lora(tiny_llama(3), LoraConfig(rank=2), task="CAUSAL_LM", spec="tiny", seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(logits_of(one), plain)
    for (name, first), (_, second), (_, third) in zip(*(m.named_parameters() for m in (one, same, other)), strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third) == (".lora_A." not in name), name
        assert first.requires_grad == (".lora_" in name), name
    assert not one.training
    assert not any(module.training for module in one.modules())


def test_an_adapter_of_a_bf16_base_is_fp32() -> None:
    model = with_lora(tiny_llama(3).bfloat16(), LoraConfig(), task="CAUSAL_LM", spec="tiny", seed=0)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_modules_that_are_not_there() -> None:
    with pytest.raises(ModelError, match=r"LoRA does not fit model tiny: .*; name modules it has, such as .*q_proj"):
        with_lora(tiny_llama(), LoraConfig(targets=("c_attn",)), task="CAUSAL_LM", spec="tiny", seed=0)


# --- Saved and loaded -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [None, PROJECTIONS, "all-linear"], ids=str)
def test_plain_peft_reads_what_was_saved(world: Any, tmp_path: Path, targets: Any) -> None:
    policy = saved_policy(world, tmp_path, targets)
    expected = logits_of(policy.model)
    assert not torch.allclose(expected, logits_of(tiny_llama()), atol=1e-2)
    assert torch.equal(logits_of(plain_peft(world.model, tmp_path)), expected)
    assert torch.equal(logits_of(load_language_model(world.model, dtype="float32", adapter=tmp_path).model), expected)
    # No path of this machine's cache, and the base by the name that the user gave.
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == world.model
    assert sorted(settings["target_modules"]) == settings["target_modules"]


def test_of_another_architecture(tmp_path: Path) -> None:
    model = with_lora(tiny_gpt2(3), LoraConfig(rank=2), task="CAUSAL_LM", spec="tiny", seed=0)
    shake({name: p for name, p in model.named_parameters() if p.requires_grad})
    save_adapter(model, tmp_path)
    with quiet_transformers():
        read = PeftModel.from_pretrained(tiny_gpt2(3), tmp_path).eval()
    assert torch.equal(logits_of(read), logits_of(model))


def test_a_saved_state_goes_back_into_a_model(world: Any, tmp_path: Path) -> None:
    policy = saved_policy(world, tmp_path)
    fresh = Policy(tiny_language_model(tiny_llama()), lora=LoraConfig(rank=2, alpha=5.0, targets=PROJECTIONS), seed=9)
    load_adapter_state(fresh.model, load_file(tmp_path / "adapter_model.safetensors"))
    assert torch.equal(logits_of(fresh.model), logits_of(policy.model))


@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_a_trained_policy_is_not_its_base(world: Any, method: str) -> None:
    folder = world.train(method)
    found = logits_of(plain_peft(world.model, folder))
    base = logits_of(load_language_model(world.model, dtype="float32").model)
    assert (found - base).abs().max() > 1e-3
    run = folder.parents[1]
    assert torch.equal(logits_of(load_language_model(world.model, dtype="float32", adapter=run).model), found)


def test_an_adapter_of_another_base_is_refused(world: Any) -> None:
    folder = world.train("dpo")
    with pytest.raises(ModelError, match=r"was trained on .*model, not on .*other \(their weights differ\)"):
        load_language_model(world.other_model, dtype="float32", adapter=folder)
    # Without its state nothing certain is known, and shapes fit.
    (folder / "trainer_state.json").unlink()
    load_language_model(world.other_model, dtype="float32", adapter=folder)


# --- Merged -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_a_merged_model_is_base_and_adapter(world: Any, tmp_path: Path, dtype: str, tolerance: float) -> None:
    policy = saved_policy(world, tmp_path / "adapter")
    folder = merge(world.model, tmp_path / "adapter", tmp_path / "merged", dtype=dtype)
    with quiet_transformers():
        merged = AutoModelForCausalLM.from_pretrained(folder)
    expected = logits_of(policy.model)
    assert (logits_of(merged) - expected).abs().max() < tolerance * expected.abs().max()
    lm = load_language_model(folder, dtype="float32")
    assert not any("lora" in name for name, _ in lm.model.named_parameters())
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_merging_into_something(world: Any, tmp_path: Path) -> None:
    saved_policy(world, tmp_path / "adapter")
    with pytest.raises(OutputError, match="is not empty: pass another --out"):
        merge(world.model, tmp_path / "adapter", tmp_path / "adapter")


# --- Reward models --------------------------------------------------------------------------------------------------------------

PAIRS = [("Why?", "because"), ("Why?", "so"), ("Who am I?", ""), ("Why?", "no " * 30)]


@pytest.mark.parametrize("template", ["chat", "alpaca", "paper"])
@pytest.mark.parametrize("max_length", [250, 200])
def test_a_reward_model_scores_as_it_was_trained_to(world: Any, tmp_path: Path, template: Any, max_length: int) -> None:
    config = RewardConfig(lora=LoraConfig(rank=2), max_length=max_length)
    scorer, tokenizer, _, reading = new_scorer(
        world.model, config, template=template, dtype="float32", device="cpu", seed=4
    )
    shake(scorer.parameters)
    save_adapter(scorer.model, tmp_path)
    atomic_write_json(tmp_path / REWARD_CONFIG, reading)
    loaded = load_reward_model(tmp_path, dtype="float32")
    expected = []
    for question, answer in PAIRS:
        rendered = render_prompt(Prompt(id="x", instruction=question), template, tokenizer)
        ids = tuple(encode_prompt(rendered, tokenizer))
        group = Group(ids, (encode_answer(answer, tokenizer)[: max_length - len(ids)],))
        expected.append(float(scorer.scores([group]).detach()))
    found = loaded.score(PAIRS)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert len({round(value, 3) for value in expected}) == len(PAIRS)
    assert loaded.score([]) == []
    # Company and order do not matter.
    assert loaded.score(PAIRS[::-1]) == pytest.approx(expected[::-1], rel=1e-4, abs=1e-5)


def test_a_prompt_that_leaves_no_room_is_not_scored(world: Any, tmp_path: Path) -> None:
    config = RewardConfig(lora=LoraConfig(rank=2), max_length=60)
    made = new_scorer(world.model, config, dtype="float32", device="cpu", seed=0)
    save_adapter(made.scorer.model, tmp_path)
    atomic_write_json(tmp_path / REWARD_CONFIG, made.reading)
    values = load_reward_model(tmp_path).score([("x" * 100, "y"), ("x", "y")])
    assert values[0] is None
    assert values[1] is not None


def test_a_new_head_is_a_function_of_the_seed(world: Any) -> None:
    heads = [
        new_scorer(world.model, RewardConfig(), dtype="float32", device="cpu", seed=seed).scorer.parameters
        for seed in (0, 0, 1)
    ]
    name = next(name for name in heads[0] if "score" in name)
    assert torch.equal(heads[0][name], heads[1][name])
    assert not torch.equal(heads[0][name], heads[2][name])


def test_a_trained_reward_model_from_its_run(world: Any) -> None:
    folder = world.train("reward", epochs=8, max_steps=20)
    losses = [line["loss"] for line in world.metrics(folder)["reward"]]
    assert sum(losses[-4:]) < sum(losses[:4])
    saved = load_file(folder / "adapter_model.safetensors")
    assert any(name.endswith("score.weight") for name in saved)
    for spec in (folder, folder.parents[1]):
        scores = load_reward_model(spec).score([("Q1?", "yes yes "), ("Q1?", "no 1")])
        assert None not in scores
        assert scores[0] > scores[1]  # type: ignore[operator]


def test_a_fully_tuned_reward_model_reads_as_it_was_trained_to(world: Any) -> None:
    folder = world.train("reward", lora=None, panel={"template": "alpaca"}, epochs=8, max_steps=20)
    assert (folder / REWARD_CONFIG).is_file()
    scores = load_reward_model(folder).score([("Q1?", "yes yes "), ("Q1?", "no 1")])
    assert None not in scores
    assert scores[0] > scores[1]  # type: ignore[operator]
    assert type(load_reward_model(folder)).__name__ == "TrainedRewardModel"
