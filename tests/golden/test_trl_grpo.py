"""The GRPO family as TRL computes it (1.16): advantages, losses and gradients of the same rollouts.

TRL's trainer is given completions instead of generating them; advantages, padding, masks and reference log-probabilities
are its own, and so is the loss. The behaviour log-probabilities are the policy's with some noise, so that some tokens are
clipped. fp32 on CPU, no dropout; temperature 0.7, because logits must be divided by it in all three places.
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import torch
from torch import Tensor

from triptych.alignment.adapters import LoraConfig
from triptych.alignment.advantages import ADVANTAGES, AdvantageName
from triptych.alignment.grpo import GrpoConfig
from triptych.alignment.importance import ImportanceSampling, Mode, importance_weights
from triptych.alignment.packing import Group, Packed
from triptych.alignment.policy import Policy
from triptych.alignment.policy_losses import (
    Dapo,
    DrGrpo,
    Grpo,
    Gspo,
    PolicyBatch,
    PolicyLoss,
    PolicyLossOutput,
    policy_loss,
    token_weights,
)
from triptych.models import LanguageModel, load_language_model
from triptych.models.tiny import EOS_ID, tiny_language_model, tiny_llama
from triptych.seeding import generator

pytest.importorskip("trl")

# What TRL, PEFT and datasets warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")

LORA = LoraConfig(rank=4, alpha=8.0)
TEMPERATURE = 0.7
MAX_NEW_TOKENS = 12
PROMPTS = ["Say something.", "And now?", "Count from one to three, please.", "Hm"]
# Of the four completions of each prompt; the last one of a prompt that is full is cut off by the limit, without EOS.
LENGTHS = [(3, 7, 1, 5), (12, 2, 6, 4), (9, 9, 3, 12), (2, 4, 8, 6)]
REWARDS: list[list[float | None]] = [
    [1.0, 0.0, 0.5, 0.25],
    [0.1, None, 0.7, -2.0],  # one without a score
    [0.3, 0.3, 0.3, 0.3],  # all alike: nothing to learn
    [0.0, 0.0, 1.0, 1.0],
]
G = 4


class Rollouts(NamedTuple):
    """Hand-made completions with what was drawn beside them."""

    policy: Policy
    groups: list[Group]
    packed: Packed
    noise: Tensor
    """Of the behaviour log-probabilities, one a token of `packed`."""

    def behaviour(self, scale: float) -> Tensor:
        with torch.no_grad():
            logprobs = self.policy.logprobs(self.packed, temperature=TEMPERATURE).logprobs
        return logprobs + scale * self.noise


def make_rollouts(lm: LanguageModel) -> Rollouts:
    policy = Policy(lm, lora=LORA, seed=0)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.parameters.items():
            if ".lora_B." in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=draws))
    rng = generator(0, "completions")
    tokenizer: Any = lm.tokenizer

    def complete(n: int) -> tuple[int, ...]:
        drawn = tuple(int(token) for token in rng.integers(20, 250, n))
        return drawn if n == MAX_NEW_TOKENS else (*drawn[:-1], EOS_ID)

    groups = [
        Group(tuple(tokenizer(prompt)["input_ids"]), tuple(complete(n) for n in lengths))
        for prompt, lengths in zip(PROMPTS, LENGTHS, strict=True)
    ]
    packed = policy.pack(groups)
    return Rollouts(policy, groups, packed, torch.randn(len(packed.targets), generator=draws))


@pytest.fixture(scope="module")
def rollouts() -> Rollouts:
    return make_rollouts(tiny_language_model(tiny_llama(3)))


def trl_trainer(case: Rollouts, base: Any, tokenizer: Any, folder: Path, **settings: Any) -> Any:
    """TRL's trainer with our LoRA weights, that takes our completions for its own."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    n = len(PROMPTS) * G
    options: dict[str, Any] = {
        "output_dir": str(folder),
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "num_generations": G,
        "per_device_train_batch_size": n,
        "max_completion_length": MAX_NEW_TOKENS,
        "temperature": TEMPERATURE,
        "use_bias_correction_kl": False,
    }
    adapter: Any = case.policy.model
    trainer = GRPOTrainer(
        model=base,
        reward_funcs=lambda completions, **columns: [reward for row in REWARDS for reward in row],
        args=GRPOConfig(**{**options, **settings}),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
        processing_class=tokenizer,
        peft_config=copy.deepcopy(adapter.peft_config["default"]),
    )
    theirs = trained_by(trainer)
    with torch.no_grad():
        for name, parameter in case.policy.parameters.items():
            theirs[name].copy_(parameter)
    prompt_ids = [list(group.prompt) for group in case.groups for _ in group.completions]
    completion_ids = [list(one) for group in case.groups for one in group.completions]
    texts = tokenizer.batch_decode(completion_ids)
    trainer._generate = lambda prompts: (prompt_ids, completion_ids, None, texts, None, {}, None, [])
    # Outside of its training loop, it would not know.
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def trained_by(trainer: Any) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}


def tiny_trainer(case: Rollouts, folder: Path, **settings: Any) -> Any:
    other = tiny_language_model(tiny_llama(3))
    return trl_trainer(case, other.base, other.tokenizer, folder, **settings)


class Step(NamedTuple):
    loss: float
    gradients: dict[str, Tensor]


def by_trl(trainer: Any, case: Rollouts, behaviour: Tensor) -> Step:
    inputs = trainer._generate_and_score_completions([{"prompt": prompt} for prompt in PROMPTS for _ in range(G)])
    mask = torch.zeros_like(inputs["completion_ids"], dtype=torch.bool)
    for row, n in enumerate(case.packed.lengths.tolist()):
        mask[row, :n] = True
    padded = torch.zeros(mask.shape)
    # Rows of a mask are read in the order in which tokens are packed.
    padded[mask] = behaviour
    loss = trainer._compute_loss(trainer.model, {**inputs, "old_per_token_logps": padded})
    loss.backward()
    return Step(float(loss), taken(trained_by(trainer)))


def natively(
    case: Rollouts, loss: PolicyLoss, behaviour: Tensor, advantage: AdvantageName, kept: Tensor | None = None
) -> tuple[Step, PolicyLossOutput]:
    packed = case.packed
    batch = PolicyBatch(
        logps=case.policy.logprobs(packed, temperature=TEMPERATURE).logprobs,
        old_logps=behaviour,
        ref_logps=case.policy.reference_logprobs(packed, temperature=TEMPERATURE) if loss.beta else None,
        sequence=packed.sequence,
        advantages=ADVANTAGES[advantage](given_rewards()).reshape(-1),
        weights=token_weights(
            packed.lengths,
            torch.ones(len(packed.lengths), dtype=torch.bool) if kept is None else kept,
            aggregation=loss.aggregation,
            max_tokens=MAX_NEW_TOKENS,
        ),
    )
    out = policy_loss(loss, batch)
    out.loss.backward()
    return Step(float(out.loss), taken(case.policy.parameters)), out


def first_step_by_trl(trainer: Any, case: Rollouts, behaviour: Tensor) -> Step:
    """Old log-probabilities and importance ratios by TRL itself, as where vLLM has written."""
    trainer.use_vllm = True
    sampled = [one.tolist() for one in behaviour.split(case.packed.lengths.tolist())]
    before, after = (trainer._generate(PROMPTS)[part] for part in (slice(4), slice(5, None)))
    trainer._generate = lambda prompts: (*before, sampled, *after)
    inputs = trainer._generate_and_score_completions([{"prompt": prompt} for prompt in PROMPTS for _ in range(G)])
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return Step(float(loss), taken(trained_by(trainer)))


def first_step_natively(case: Rollouts, loss: PolicyLoss, behaviour: Tensor, config: ImportanceSampling) -> Step:
    packed = case.packed
    logps = case.policy.logprobs(packed, temperature=TEMPERATURE).logprobs
    batch = PolicyBatch(
        logps=logps,
        old_logps=logps.detach(),
        ref_logps=case.policy.reference_logprobs(packed, temperature=TEMPERATURE) if loss.beta else None,
        sequence=packed.sequence,
        advantages=ADVANTAGES["group_normalised"](given_rewards()).reshape(-1),
        weights=token_weights(
            packed.lengths,
            torch.ones(len(packed.lengths), dtype=torch.bool),
            aggregation=loss.aggregation,
            max_tokens=MAX_NEW_TOKENS,
        ),
        importance=importance_weights(config, logps, behaviour, packed.sequence, len(packed.lengths)).weights,
    )
    out = policy_loss(loss, batch)
    assert out.clip_fraction == 0.0
    out.loss.backward()
    return Step(float(out.loss), taken(case.policy.parameters))


def given_rewards() -> Tensor:
    return torch.tensor([[math.nan if reward is None else reward for reward in row] for row in REWARDS])


def taken(parameters: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    gradients = {}
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        gradients[name], parameter.grad = parameter.grad, None
    return gradients


def require_same(found: Step, expected: Step, record: Callable[[str, object], None]) -> None:
    """Losses to 1e-4, gradients to 1e-4 of the largest entry and in their norm."""
    scale = max(float(gradient.abs().max()) for gradient in expected.gradients.values())
    norms = [torch.stack([g.norm() for g in one.gradients.values()]).norm() for one in (found, expected)]
    assert set(found.gradients) == set(expected.gradients)
    largest = {
        "loss": abs(found.loss - expected.loss),
        "gradient": max(float((found.gradients[n] - g).abs().max()) for n, g in expected.gradients.items()) / scale,
        "gradient_norm": float((norms[0] - norms[1]).abs()),
    }
    record("largest deviations", {name: f"{value:.2g}" for name, value in largest.items()})
    assert scale > 1e-3
    assert {name: value for name, value in largest.items() if value > 1e-4} == {}


LOSSES: dict[str, tuple[Callable[[float], PolicyLoss], dict[str, Any], float]] = {
    # The loss with a beta, TRL's settings, and how far the behaviour policy is off: some tokens are clipped, not all.
    "grpo": (lambda beta: Grpo(beta=beta), {"loss_type": "grpo"}, 0.3),
    "dapo": (lambda beta: Dapo(beta=beta), {"loss_type": "dapo", "epsilon_high": 0.28}, 0.3),
    "dr_grpo": (lambda beta: DrGrpo(beta=beta), {"loss_type": "dr_grpo"}, 0.3),
    "gspo": (
        lambda beta: Gspo(beta=beta),
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
        1e-3,
    ),
    "grpo with delta": (lambda beta: Grpo(beta=beta, delta=1.3), {"loss_type": "grpo", "delta": 1.3}, 0.3),
}


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_trls(
    name: str, beta: float, rollouts: Rollouts, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    loss, settings, noise = LOSSES[name]
    behaviour = rollouts.behaviour(noise)
    expected = by_trl(tiny_trainer(rollouts, tmp_path, beta=beta, **settings), rollouts, behaviour)
    found, out = natively(rollouts, loss(beta), behaviour, "group_normalised")
    require_same(found, expected, record_property)
    assert 0.0 < (out.clip_fraction or 0.0) < 0.9
    assert beta == 0.0 or (out.kl or 0.0) > 1e-3


def test_dr_grpo_as_configured_is_trls_without_scaled_rewards(
    rollouts: Rollouts, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    behaviour = rollouts.behaviour(0.3)
    trainer = tiny_trainer(rollouts, tmp_path, loss_type="dr_grpo", scale_rewards="none")
    config = GrpoConfig(loss=DrGrpo())
    found, _ = natively(rollouts, config.loss, behaviour, config.advantage)
    require_same(found, by_trl(trainer, rollouts, behaviour), record_property)


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("name", ["grpo", "gspo"])
def test_first_steps_are_trls(
    name: str, mode: Mode, rollouts: Rollouts, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The ratio is 1, and what is between sampler and training pass is a weight of its own; bounds that bind."""
    loss, settings, _ = LOSSES[name]
    behaviour = rollouts.behaviour(0.3)
    config = ImportanceSampling(mode=mode, clip_max=1.4, clip_min=0.7)
    theirs = {f"vllm_importance_sampling_{key}": value for key, value in config}
    expected = first_step_by_trl(tiny_trainer(rollouts, tmp_path, beta=0.04, **settings, **theirs), rollouts, behaviour)
    require_same(first_step_natively(rollouts, loss(0.04), behaviour, config), expected, record_property)


@pytest.mark.parametrize(("name", "scale"), [("group_normalised", "group"), ("centred", "none")])
def test_advantages_are_trls(name: AdvantageName, scale: str, rollouts: Rollouts, tmp_path: Path) -> None:
    trainer = tiny_trainer(rollouts, tmp_path, scale_rewards=scale)
    inputs = trainer._generate_and_score_completions([{"prompt": prompt} for prompt in PROMPTS for _ in range(G)])
    found = ADVANTAGES[name](given_rewards()).reshape(-1)
    # Equal rewards have an advantage of exactly 0 here; their mean is off by rounding there.
    torch.testing.assert_close(found, inputs["advantages"], rtol=1e-5, atol=1e-3)
    alike = slice(2 * G, 3 * G)
    assert (found[alike] == 0).all()
    others = torch.ones_like(found, dtype=torch.bool)
    others[alike] = False
    torch.testing.assert_close(found[others], inputs["advantages"][others], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo"])
def test_masked_completions_leave_the_denominator_here_alone(
    name: str, rollouts: Rollouts, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The departure that `token_weights` documents: with 2 of 16 truncated, TRL's `grpo` and `dr_grpo` are 14/16 of ours."""
    loss, settings, noise = LOSSES[name]
    behaviour = rollouts.behaviour(noise)
    kept = torch.tensor([group[-1] == EOS_ID for one in rollouts.groups for group in one.completions])
    assert (~kept).sum() == 2
    trainer = tiny_trainer(rollouts, tmp_path, mask_truncated_completions=True, **settings)
    expected = by_trl(trainer, rollouts, behaviour)
    found, _ = natively(rollouts, loss(0.0), behaviour, "group_normalised", kept)
    share = 1.0 if name == "dapo" else 14 / 16
    shrunk = Step(found.loss * share, {n: g * share for n, g in found.gradients.items()})
    require_same(shrunk, expected, record_property)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo", "gspo"])
def test_losses_of_the_real_model_are_trls(
    name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    loss, settings, noise = LOSSES[name]
    lm, other = (load_language_model("starter", dtype="float32") for _ in range(2))
    case = make_rollouts(lm)
    behaviour = case.behaviour(noise)
    trainer = trl_trainer(case, other.base, other.tokenizer, tmp_path, beta=0.04, **settings)
    found, _ = natively(case, loss(0.04), behaviour, "group_normalised")
    require_same(found, by_trl(trainer, case, behaviour), record_property)
