"""GRPO trains the policy that wrote: in bf16, where any other arithmetic is 0.02 nats a token away, and before any update."""

import dataclasses
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from triptych.alignment.adapters import LoraConfig
from triptych.alignment.importance import ImportanceSampling, importance_weights
from triptych.alignment.packing import Packed
from triptych.alignment.policy import Policy
from triptych.alignment.policy_losses import Gspo, PolicyBatch, policy_loss
from triptych.alignment.rollouts import RolloutGroup, roll_out
from triptych.data import load_prompts, render_prompt
from triptych.decoding import Stopping, TopP, decode
from triptych.decoding.backends.fused import supports
from triptych.models import LanguageModel, load_language_model
from triptych.models.loading import quiet_transformers
from triptych.models.tiny import tiny_language_model, tiny_llama
from triptych.records import Prompt

PROMPTS = [Prompt(id=f"p{i}", instruction=f"say {i}", prompt=f"say {'x' * 7 * i}") for i in range(6)]


def tiny_bf16() -> LanguageModel:
    model: Any = tiny_llama(3)
    lm = tiny_language_model(model.to(torch.bfloat16))
    return dataclasses.replace(lm, eos_ids=frozenset(range(2, 12)))


def shaken(lm: LanguageModel, size: float = 0.1) -> Policy:
    targets = ("q_proj", "v_proj", "down_proj")
    policy = Policy(lm, lora=LoraConfig(rank=4, targets=targets), seed=0, as_written=True)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.parameters.items():
            if ".lora_B." in name:
                parameter.copy_(size * torch.randn(parameter.shape, generator=draws))
    return policy


def written(policy: Policy, prompts: list[Prompt], **options: Any) -> list[RolloutGroup]:
    sizes: dict[str, Any] = {"group_size": 4, "max_new_tokens": 16, "temperature": 0.8, "seed": 0, "step": 0}
    return roll_out(policy.trained, prompts, **{**sizes, **options})


def read(policy: Policy, groups: list[RolloutGroup]) -> tuple[Packed, Tensor, Tensor]:
    packed = policy.pack([group.group for group in groups])
    behaviour = torch.tensor([p for group in groups for one in group.rollouts for p in one.behaviour_logprobs])
    return packed, policy.logprobs(packed, temperature=0.8).logprobs, behaviour


@pytest.mark.parametrize("size", [0.0, 0.1])
def test_what_is_read_is_what_was_written(size: float) -> None:
    policy = shaken(tiny_bf16(), size)
    _, found, behaviour = read(policy, written(policy, PROMPTS))
    assert len(behaviour) > 50
    assert float((found.detach() - behaviour).abs().mean()) < 1e-4
    other = policy.reference_logprobs(policy.pack([group.group for group in written(policy, PROMPTS)]), temperature=0.8)
    assert (float((other - found.detach()).abs().mean()) > 1e-2) == (size > 0.0)


def test_a_policy_that_has_not_moved_is_clipped_nowhere() -> None:
    # GSPO's clip range is a tenth of what bf16 rounds a token's log-probability by.
    policy = shaken(tiny_bf16())
    packed, found, behaviour = read(policy, written(policy, PROMPTS))
    n = len(packed.lengths)
    advantages, weights = torch.tensor([1.0, -1.0] * (n // 2)), torch.full((n,), 1.0 / len(behaviour))
    importance = importance_weights(ImportanceSampling(), found, behaviour, packed.sequence, n).weights
    batch = PolicyBatch(found, found.detach(), None, packed.sequence, advantages, weights, importance)
    out = policy_loss(Gspo(), batch)
    assert out.clip_fraction == 0.0
    out.loss.backward()
    assert max(float(p.grad.abs().max()) for p in policy.parameters.values() if p.grad is not None) > 0.0


@pytest.mark.parametrize("p", [0.6, 1.0])
def test_the_mean_raw_ratio_is_the_mass_that_the_sampler_keeps(p: float) -> None:
    """The identity of an importance ratio against a renormalised sampler; 1 where all of the support is kept."""
    policy = shaken(tiny_bf16())
    arms = [TopP(p=p, temperature=0.8)]
    options: dict[str, Any] = {"max_new_tokens": 8, "samples": 40, "stopping": Stopping(block=None, markers=())}
    drawn = decode(policy.trained, PROMPTS, arms, **options)
    by_prompt = [[one for one in drawn if one.prompt_id == prompt.id] for prompt in PROMPTS]
    groups = written(policy, PROMPTS, group_size=1)
    packed = policy.pack(
        [
            g.group._replace(completions=tuple(o.token_ids for o in own))
            for g, own in zip(groups, by_prompt, strict=True)
        ]
    )
    with torch.no_grad():
        reading = policy.logprobs(packed, temperature=0.8)
        logits: Any = policy.lm.base.get_output_embeddings()(reading.states).float() / 0.8
    behaviour = torch.tensor([v for own in by_prompt for one in own for v in one.sampler_logprobs or ()])
    probabilities = torch.softmax(logits, -1).sort(-1, descending=True).values
    before = probabilities.cumsum(-1) - probabilities
    mass = (probabilities * (before < p)).sum(-1)
    config = ImportanceSampling(clip_max=None)
    ratios = importance_weights(config, reading.logprobs, behaviour, packed.sequence, len(packed.lengths)).ratios
    # A truncated token's ratio is the mass of its own context, whatever token it is.
    differences = (ratios - mass).double()
    error = float(differences.std()) / len(differences) ** 0.5
    assert abs(float(differences.mean())) < max(3 * error, 1e-3)
    assert (float(ratios.mean()) < 0.9) == (p < 1.0)


def test_adapters_that_are_more_than_lora_take_the_generic_way() -> None:
    kinds = [
        peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True),
        peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
    ]
    for settings in [peft.LoraConfig(r=2, target_modules=["q_proj"]), *kinds]:
        lm = tiny_language_model(tiny_llama(3))
        base: Any = lm.model
        with quiet_transformers():
            model = peft.get_peft_model(base, settings)
        assert supports(dataclasses.replace(lm, model=model)) == (settings not in kinds), settings


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("size", [0.0, 0.01])
def test_the_real_policy_that_is_read_is_the_one_that_wrote(size: float) -> None:
    lm = load_language_model("starter", dtype="bfloat16")
    prompts = [
        one.model_copy(update={"prompt": render_prompt(one, "paper", lm.tokenizer)})
        for one in load_prompts("starter", limit=4)
    ]
    policy = shaken(lm, size)
    with torch.no_grad():
        _, found, behaviour = read(policy, written(policy, prompts, max_new_tokens=24))
    assert float((found - behaviour).abs().mean()) < 5e-3
