"""GRPO on tiny models: who gets which reward, what the ratios are taken against, and policies that fall silent."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from triptych.alignment.adapters import LoraConfig
from triptych.alignment.advantages import group_normalised
from triptych.alignment.grpo import GrpoConfig, GrpoTask
from triptych.alignment.loop import Trained, train
from triptych.alignment.policy import Policy
from triptych.alignment.reward_functions import BUILTIN_REWARDS, NamedReward
from triptych.checkpoints import Checkpoints
from triptych.config import parse_config
from triptych.errors import ConfigError
from triptych.models.tiny import tiny_gpt2, tiny_language_model, tiny_llama
from triptych.records import Prompt
from triptych.workers import SilentJournal, Workers

PROMPTS = [Prompt(id=f"p{i}", instruction=f"say {i}", prompt=f"say {'x' * i}") for i in range(8)]
LORA = LoraConfig(rank=4, alpha=8.0)


def make_policy(
    model: Any | None = None, *, eos: Sequence[int] = (2,), lora: LoraConfig = LORA, shaken: bool = True
) -> Policy:
    lm = tiny_language_model(tiny_llama(3) if model is None else model)
    policy = Policy(dataclasses.replace(lm, eos_ids=frozenset(eos)), lora=lora, seed=0)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.parameters.items():
            if ".lora_B." in name and shaken:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draws))
    return policy


def by_length(prompts: list[str], completions: list[str]) -> list[float | None]:
    return [float(len(completion)) for completion in completions]


def make_task(policy: Policy, reward: Any = by_length, **options: Any) -> GrpoTask:
    config = GrpoConfig.model_validate(
        {"lora": LORA, "prompts_per_step": 4, "group_size": 4, "max_new_tokens": 8, **options}
    )
    return GrpoTask(policy, config, PROMPTS[:6], PROMPTS[6:], (), [NamedReward("own", reward)], None, Workers(), seed=0)


def gradients(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in policy.parameters.items() if p.grad is not None}


# --- Configuration ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "advantage"),
    [
        ({}, "group_normalised"),
        ({"loss": {"name": "dapo"}}, "group_normalised"),
        ({"loss": {"name": "dr_grpo"}}, "centred"),
        ({"loss": {"name": "dr_grpo"}, "advantage": "leave_one_out"}, "leave_one_out"),
        ({"loss": {"name": "grpo"}, "advantage": "centred"}, "centred"),
    ],
)
def test_dr_grpo_divides_by_no_spread(options: dict[str, Any], advantage: str) -> None:
    config = parse_config(GrpoConfig, options, where="test")
    assert config.advantage == advantage
    # The resolved recipe names it, and reads back as the same.
    assert parse_config(GrpoConfig, config.model_dump(mode="json"), where="test") == config


def test_dr_grpo_refuses_standard_scores() -> None:
    with pytest.raises(ConfigError, match="dr_grpo.*group_normalised"):
        parse_config(GrpoConfig, {"loss": {"name": "dr_grpo"}, "advantage": "group_normalised"}, where="test")


def test_a_task_with_dr_grpo_takes_rewards_less_their_mean() -> None:
    task = make_task(make_policy(), loss={"name": "dr_grpo"})
    task.accumulate(0)
    rolled = task._rolled
    assert rolled is not None
    lengths = torch.tensor([[float(len(rollout.text)) for rollout in group.rollouts] for group in rolled.groups])
    expected = lengths - lengths.mean(dim=1, keepdim=True)
    torch.testing.assert_close(rolled.advantages, expected.reshape(-1))


# --- Behaviour --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("model", [tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
def test_the_policy_that_learns_is_the_one_that_wrote(model: Any, temperature: float) -> None:
    # The engine's own numbers (its kernels, its cache, its merged weights) against a pass of the training path.
    policy = make_policy(model(3), eos=range(2, 22), lora=LoraConfig(rank=4))
    task = make_task(policy, temperature=temperature, lora={"rank": 4})
    measured = task.accumulate(0)
    assert measured["behaviour_gap"] == pytest.approx(0.0, abs=1e-4)
    assert measured["clip_fraction"] == 0.0
    rolled = task._rolled
    assert rolled is not None
    groups = [group.group for group in rolled.groups]
    with torch.no_grad():
        now = policy.logprobs(policy.pack(groups), temperature=temperature).logprobs
    kept = torch.tensor([p for g in rolled.groups for one in g.rollouts for p in one.behaviour_logprobs])
    assert (now - kept).exp().sub(1.0).abs().max() < 1e-4
    assert len({one.text for g in rolled.groups for one in g.rollouts}) > 8


def test_the_first_loss_is_nothing_and_its_gradient_is_not() -> None:
    # Ratios are 1, so that the loss of a group is minus the sum of its advantages, 0; the penalty of a new policy is 0 too.
    policy = make_policy(shaken=False)
    measured = make_task(policy).accumulate(0)
    assert measured["loss"] == pytest.approx(0.0, abs=1e-5)
    assert measured["kl"] == 0.0
    assert max(float(gradient.abs().max()) for gradient in gradients(policy).values()) > 1e-4


def test_a_second_iteration_uses_the_same_rollouts() -> None:
    policy = make_policy()
    task = make_task(policy, iterations=2)
    first = task.accumulate(0)
    rolled = task._rolled
    with torch.no_grad():
        for name, parameter in policy.parameters.items():
            if ".lora_B." in name:
                parameter.mul_(1.5)
    second = task.accumulate(1)
    assert task._rolled is rolled
    assert second["reward"] == first["reward"]
    assert float(second["behaviour_gap"] or 0) > 1e-2 > float(first["behaviour_gap"] or 0)
    assert not task.can_pause(1)
    assert task.can_pause(2)
    task.accumulate(2)
    assert task._rolled is not rolled


# --- Rewards -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_eos", [1, 20])
def test_rewards_reach_their_completions(n_eos: int) -> None:
    task = make_task(make_policy(eos=range(2, 2 + n_eos)))
    measured = task.accumulate(0)
    rolled = task._rolled
    assert rolled is not None
    lengths = torch.tensor([[float(len(one.text)) for one in group.rollouts] for group in rolled.groups])
    torch.testing.assert_close(rolled.advantages, group_normalised(lengths).reshape(-1))
    assert measured["reward"] == pytest.approx(float(lengths.mean()))
    assert measured["reward_std"] == pytest.approx(float(lengths.std(dim=1).mean()))
    assert measured["reward/own"] == measured["reward"]


def test_a_reward_pulls_where_it_points() -> None:
    # One step up the gradient makes what was rewarded likelier, and the rest less likely.
    policy = make_policy(eos=range(2, 22))
    task = make_task(policy, loss={"name": "grpo", "beta": 0.0}, prompts_per_step=6)
    task.accumulate(0)
    rolled = task._rolled
    assert rolled is not None
    packed = policy.pack([group.group for group in rolled.groups])
    scales = (rolled.advantages * rolled.weights)[packed.sequence]
    with torch.no_grad():
        before = (policy.logprobs(packed).logprobs * scales).sum()
        for name, parameter in policy.parameters.items():
            parameter.sub_(0.02 * gradients(policy)[name])
        after = (policy.logprobs(packed).logprobs * scales).sum()
    assert after > before


def test_a_completion_without_a_score_has_no_advantage() -> None:
    def some(prompts: list[str], completions: list[str]) -> list[float | None]:
        return [None if i % 4 == 0 else float(i % 4) for i in range(len(completions))]

    task = make_task(make_policy(), some)
    measured = task.accumulate(0)
    assert task._rolled is not None
    assert task._rolled.advantages.view(4, 4)[:, 0].tolist() == [0.0] * 4
    # Of 1, 2 and 3: mean 2, standard deviation 1.
    assert task._rolled.advantages.view(4, 4)[0].tolist() == pytest.approx([0.0, -1.0, 0.0, 1.0], abs=1e-3)
    assert measured["reward"] == 2.0


def test_no_score_at_all() -> None:
    policy = make_policy(shaken=False)
    measured = make_task(policy, lambda prompts, completions: [None] * len(completions)).accumulate(0)
    assert (measured["reward"], measured["reward_std"], measured["zero_variance"]) == (None, None, None)
    assert measured["loss"] == 0.0


def test_each_prompt_comes_equally_often() -> None:
    task = make_task(make_policy())
    # Six prompts, four a round: three rounds are two epochs.
    rows = [row for number in range(3) for row in task.prompt_rows(number)]
    assert sorted(rows) == sorted([*range(6)] * 2)
    assert sorted(rows[:6]) == [*range(6)]


# --- Nothing to learn from -----------------------------------------------------------------------------------------------------


def require_finite(policy: Policy, measured: Mapping[str, float | None]) -> None:
    assert all(value is None or math.isfinite(value) for value in measured.values())
    assert all(gradient.isfinite().all() for gradient in gradients(policy).values())


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo", "gspo"])
def test_every_completion_is_masked_out(loss: str) -> None:
    policy = make_policy(eos=[])
    measured = make_task(policy, mask_truncated=True, loss={"name": loss, "beta": 0.1}).accumulate(0)
    assert measured["truncated_rate"] == 1.0
    assert measured["loss"] == 0.0
    assert measured["clip_fraction"] is None
    # What the policy does is seen all the same.
    assert float(measured["kl"] or 0) > 0
    require_finite(policy, measured)
    assert all((gradient == 0).all() for gradient in gradients(policy).values())


def test_every_completion_is_empty() -> None:
    policy = make_policy(eos=range(260))
    task = make_task(policy)
    measured = task.accumulate(0)
    assert (measured["empty_rate"], measured["length_median"], measured["truncated_rate"]) == (1.0, 0.0, 0.0)
    assert measured["eos_first"] == pytest.approx(1.0, abs=1e-5)
    assert task._rolled is not None
    assert all(len(one.token_ids) == 1 for group in task._rolled.groups for one in group.rollouts)
    require_finite(policy, measured)
    require_finite(policy, task.evaluate())


def test_the_first_token_s_probability_of_an_end() -> None:
    policy = make_policy(eos=range(2, 22))
    task = make_task(policy, temperature=0.7)
    measured = task.accumulate(0)
    assert task._rolled is not None
    shares = []
    for group in task._rolled.groups:
        logits = policy.model(input_ids=torch.tensor([group.prompt_ids])).logits[0, -1].detach()
        shares.append(float(torch.softmax(logits, -1)[2:22].sum()))
    assert measured["eos_first"] == pytest.approx(sum(shares) / len(shares), rel=1e-4)


# --- A planted collapse ----------------------------------------------------------------------------------------------------------


def train_briefly(folder: Path, action: str, *, steps: int = 30, rate: float = 0.05) -> tuple[Trained, Policy]:
    """A policy that is paid for silence."""
    lora = LoraConfig(rank=4, alpha=16.0, targets="all-linear")
    policy = make_policy(eos=range(2, 10), shaken=False, lora=lora)
    task = make_task(
        policy,
        BUILTIN_REWARDS["brevity"],
        lora=lora,
        prompts_per_step=6,
        group_size=8,
        max_new_tokens=24,
        steps=steps,
        optimiser={"learning_rate": rate, "schedule": "constant"},
        loss={"name": "grpo", "beta": 0.0},
        watch={"action": action, "baseline_steps": 2, "window": 2},
        checkpoint_every=1,
    )
    checkpoints = Checkpoints(folder, "key")
    trained = train(
        task, policy.parameters, task._config, checkpoints, SilentJournal(folder), Workers(), show_progress=False
    )
    return trained, policy


def test_a_policy_that_is_paid_for_silence_falls_silent_and_is_stopped(tmp_path: Path) -> None:
    trained, policy = train_briefly(tmp_path, "stop")
    assert trained.outcome == "stopped"
    assert trained.step < 30
    assert any(one.level == "severe" for one in trained.warnings)
    assert {one.signal for one in trained.warnings} & {"empty_rate", "eos_first", "length_median"}
    # The watch stopped it early, but not before it had shrunk.
    lengths = make_task(policy, max_new_tokens=24, prompts_per_step=6).accumulate(0)["length_median"]
    before = make_task(make_policy(eos=range(2, 10), shaken=False), max_new_tokens=24).accumulate(0)["length_median"]
    assert lengths is not None
    assert before is not None
    assert lengths < before / 2


def test_a_rollback_puts_a_healthy_policy_back_exactly(tmp_path: Path) -> None:
    trained, policy = train_briefly(tmp_path, "rollback")
    assert trained.outcome == "rolled_back"
    severe = min(one.step for one in trained.warnings if one.step is not None and one.level == "severe")
    assert trained.step < severe
    kept = Checkpoints(tmp_path, "key").read(trained.step)
    assert set(kept.weights) == set(policy.parameters)
    for name, parameter in policy.parameters.items():
        assert torch.equal(parameter, kept.weights[name])
