"""Group relative policy optimisation: prompts and rewards in, an adapter out, and a watch over its collapse.

A step of rollouts feeds `iterations` optimizer steps. Nothing here is specific to one loss or advantage: those are
plain functions chosen by the configuration.
"""

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from statistics import median
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from triptych.alignment.advantages import ADVANTAGES, AdvantageName, zero_variance_share
from triptych.alignment.dpo import dropout_generator
from triptych.alignment.encoding import EncodedPair
from triptych.alignment.head import TokenComparison
from triptych.alignment.importance import ImportanceFigures, ImportanceSampling, importance_weights
from triptych.alignment.loop import Decision, TrainingConfig
from triptych.alignment.optimisation import OptimiserConfig, accumulate
from triptych.alignment.packing import Group, Packed, micro_batches, offsets, pass_tokens
from triptych.alignment.policy import Policy
from triptych.alignment.policy_losses import (
    DrGrpo,
    Grpo,
    PolicyBatch,
    PolicyLoss,
    PolicyLossOutput,
    k3,
    policy_loss,
    token_weights,
    total,
)
from triptych.alignment.reward_functions import NamedReward
from triptych.alignment.rollouts import RolloutGroup, Scored, roll_out, score_rollouts
from triptych.alignment.state import Warned
from triptych.alignment.watch import CollapseWatch
from triptych.alignment.watch_rules import StepHealth, WatchConfig
from triptych.records import Prompt
from triptych.seeding import generator
from triptych.workers import Workers


def _default_advantage(settings: Mapping[str, Any]) -> AdvantageName:
    return "centred" if isinstance(settings.get("loss"), DrGrpo) else "group_normalised"


class GrpoConfig(TrainingConfig):
    """Training on rewards."""

    optimiser: OptimiserConfig = OptimiserConfig(learning_rate=5e-5, schedule="constant")
    loss: PolicyLoss = Grpo()
    advantage: AdvantageName = Field(default_factory=_default_advantage)
    """`dr_grpo` takes `centred` unless told otherwise, and refuses `group_normalised`."""
    rewards: tuple[str, ...] = ("checks",)
    """`checks`, `concise`, `brevity`, `repetition`, `reward_model` (the study's own), `model:DIR`, `FILE.py:FUNCTION`,
    `PACKAGE.MODULE:FUNCTION`; with `=WEIGHT`."""
    gold: str | None = None
    """An independent scorer in the same words: measured at evaluations, never trained on."""
    prompts: str = "starter"
    """`starter`, a file or a hub data set; `pairs`: the prompts of the panel's pairs, split as they are."""
    only_checked: bool = False
    """Only prompts that have something to check."""
    prompts_per_step: int = Field(default=8, ge=1)
    """Over all workers."""
    group_size: int = Field(default=4, ge=2)
    max_new_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=1.0, gt=0.0)
    steps: int = Field(default=50, ge=1)
    """Optimizer steps."""
    iterations: Annotated[int, Field(ge=1)] = 1
    """Optimizer steps on the same rollouts (μ)."""
    importance_sampling: ImportanceSampling = ImportanceSampling()
    """Of the gap between the engine that writes and the pass that trains."""
    mask_truncated: bool = False
    """Leave completions out of the loss that ran into the length limit."""
    eval_prompts: int = Field(default=32, ge=1)
    """Held-out prompts of an evaluation."""
    watch: WatchConfig = WatchConfig()

    @model_validator(mode="after")
    def _dr_grpo_divides_by_no_spread(self) -> "GrpoConfig":
        if isinstance(self.loss, DrGrpo) and self.advantage == "group_normalised":
            raise ValueError(
                "loss 'dr_grpo' with advantage 'group_normalised' is not Dr. GRPO, which divides by no spread; leave "
                "the advantage out, or choose loss 'dapo' or 'grpo'"
            )
        return self


class Rolled(NamedTuple):
    """Rollouts with all that the loss needs of them."""

    groups: list[RolloutGroup]
    advantages: Tensor
    """[completions]"""
    weights: Tensor
    """[completions]: of each of its tokens, over the batch of all workers."""
    measured: dict[str, float | None]


class ReadTokens(NamedTuple):
    """Texts as policy and reference read them: nats, a value a token, of all workers."""

    prompts: list[int]
    """A number of the prompt whose text each token belongs to."""
    logprobs: list[float]
    references: list[float]
    kl: list[float]


class GrpoTask:
    """GRPO as the training loop sees it."""

    name = "grpo"

    def __init__(
        self,
        policy: Policy,
        config: GrpoConfig,
        train: Sequence[Prompt],
        validation: Sequence[Prompt],
        held_out_pairs: Sequence[EncodedPair],
        rewards: Sequence[NamedReward],
        gold: NamedReward | None,
        workers: Workers,
        *,
        seed: int,
    ) -> None:
        self.policy, self._config, self._workers, self._seed = policy, config, workers, seed
        self._train, self._validation, self._pairs = train, validation[: config.eval_prompts], held_out_pairs
        self.rewards, self._gold = rewards, gold
        self._pass_tokens = config.pass_tokens(policy.lm.device)
        self._watch = CollapseWatch(config.watch)
        self._rolled: Rolled | None = None
        self._old_logprobs: list[Tensor] = []
        """Of the rollouts, pass by pass, from the first update on them."""
        self.total_steps = config.steps
        self.last_evaluation: dict[str, list[float | None]] = {}
        """Rewards, gold and lengths of the latest evaluation, a value a held-out prompt, for paired figures."""
        self.first_evaluation: dict[str, list[float | None]] = {}
        """The same before the first step."""
        self.own_tokens: ReadTokens | None = None
        """Of the completions of the latest evaluation."""
        self.held_out_tokens: ReadTokens | None = None
        """Of held-out chosen answers, at the latest evaluation."""

    def accumulate(self, step: int) -> dict[str, float | None]:
        if self._rolled is None or step % self._config.iterations == 0:
            self._rolled, self._old_logprobs = self._roll(step), []
        return {**self._rolled.measured, **self._update(self._rolled, step)}

    def evaluate(self) -> dict[str, float | None]:
        measured = self._evaluate_samples()
        return measured | self._evaluate_pairs()

    def judge(self, step: int, measured: Mapping[str, float | None]) -> Decision:
        fields = {name: measured.get(name) for name in StepHealth._fields}
        alarms = self._watch.observe(step, StepHealth(**fields))
        warnings = tuple(Warned(step=a.step, level=a.level, signal=a.signal, sentence=a.sentence) for a in alarms)
        healthy = self._watch.last_healthy_step
        # The policy that wrote step s is the one before the first update on its rollouts.
        healthy = None if healthy is None else (healthy - 1) // self._config.iterations * self._config.iterations
        is_severe = any(alarm.level == "severe" for alarm in alarms)
        action = self._config.watch.action if is_severe else "warn"
        return Decision("go_on" if action == "warn" else action, warnings, healthy)

    def state(self) -> dict[str, Any]:
        return {"watch": self._watch.state(), "first_evaluation": self.first_evaluation}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._watch.restore(state["watch"])
        self.first_evaluation = state["first_evaluation"]

    def can_pause(self, step: int) -> bool:
        """Between rollouts: those of a step are made again from the weights that wrote them."""
        return step % self._config.iterations == 0

    def _roll(self, step: int) -> Rolled:
        config = self._config
        chosen = [self._train[row] for row in self._workers.share(self.prompt_rows(step // config.iterations))]
        groups = self._write(chosen, step)
        scored = score_rollouts(groups, self.rewards)
        rewards_P_G = torch.tensor([[math.nan if r is None else r for r in row] for row in scored.total])
        rewards_P_G = rewards_P_G.view(-1, config.group_size)
        rollouts = [one for group in groups for one in group.rollouts]
        lengths = torch.tensor([len(one.token_ids) for one in rollouts], dtype=torch.int64)
        kept = torch.tensor([not (config.mask_truncated and one.is_truncated) for one in rollouts], dtype=torch.bool)
        return Rolled(
            groups=groups,
            advantages=ADVANTAGES[config.advantage](rewards_P_G).reshape(-1),
            weights=self._weights(lengths, kept),
            measured=self.measure(groups, scored, rewards_P_G),
        )

    def prompt_rows(self, round_number: int) -> list[int]:
        """Rows of the prompts of a round: shuffled epochs end to end, so that each prompt comes equally often."""
        n, size = len(self._train), self._config.prompts_per_step
        rows: list[int] = []
        at = round_number * size
        while len(rows) < size:
            epoch, within = divmod(at + len(rows), n)
            order = generator(self._seed, "prompt order", epoch).permutation(n)
            rows += [int(row) for row in order[within : within + size - len(rows)]]
        return rows

    def _write(self, prompts: Sequence[Prompt], step: int) -> list[RolloutGroup]:
        config = self._config
        return roll_out(
            self.policy.trained,
            prompts,
            group_size=config.group_size,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=self._seed,
            step=step,
        )

    def _weights(self, lengths: Tensor, kept: Tensor) -> Tensor:
        """Token weights over the batch of all workers, this worker's part of them."""
        every = torch.tensor(self._workers.gather(lengths.tolist()), dtype=torch.int64)
        every_kept = torch.tensor(self._workers.gather(kept.tolist()), dtype=torch.bool)
        config = self._config
        weights = token_weights(
            every, every_kept, aggregation=config.loss.aggregation, max_tokens=config.max_new_tokens
        )
        counts = [int(count) for count in self._workers.gather([len(lengths)])]
        start = sum(counts[: self._workers.rank])
        return weights[start : start + len(lengths)]

    def _update(self, rolled: Rolled, step: int) -> dict[str, float | None]:
        config = self._config
        parts, sums, importance = [], torch.zeros(6, dtype=torch.float64), ImportanceFigures()
        old_logprobs: list[Tensor] = []
        starts = offsets([len(group.rollouts) for group in rolled.groups])
        sizes = [group.group.n_tokens for group in rolled.groups]

        def read(part: tuple[int, range]) -> tuple[Tensor, tuple[PolicyLossOutput, Tensor, ImportanceFigures, Tensor]]:
            number, part_rows = part
            groups = [rolled.groups[i] for i in part_rows]
            rows = slice(starts[part_rows.start], starts[part_rows.stop])
            packed = self.policy.pack([group.group for group in groups])
            dropout = dropout_generator(config, self._seed, step, groups[0].prompt.id)
            own = self.policy.logprobs(packed, temperature=config.temperature, generator=dropout)
            device = own.logprobs.device
            logps = own.logprobs.detach()
            # Of the same pass in the first update, so that what is new is what an update did, and no rounding.
            old = self._old_logprobs[number] if self._old_logprobs else logps
            behaviour = torch.tensor([p for g in groups for one in g.rollouts for p in one.behaviour_logprobs])
            behaviour, sequence = behaviour.to(device), packed.sequence.to(device)
            weights = importance_weights(config.importance_sampling, old, behaviour, sequence, len(packed.lengths))
            # Also where it has no weight in the loss: a policy that drifts unmeasured is how collapses go unseen.
            reference = self.policy.reference_logprobs(packed, temperature=config.temperature)
            batch = PolicyBatch(
                logps=own.logprobs,
                old_logps=old,
                ref_logps=reference,
                sequence=sequence,
                advantages=rolled.advantages[rows].to(device),
                weights=rolled.weights[rows].to(device),
                importance=weights.weights if config.importance_sampling.correction else None,
            )
            out = policy_loss(config.loss, batch)
            first = self.policy.first_token_probability(own, packed, self.policy.lm.eos_ids)
            gap = logps - behaviour
            measured = (
                own.entropies.sum(),
                k3(logps, reference).sum(),
                gap.abs().sum(),
                gap.sum(),
                first.sum(),
                torch.tensor(float(packed.n_tokens), device=device),
            )
            sums_of = torch.stack(measured).double().cpu()
            return out.loss, (out, sums_of, ImportanceFigures.measure(weights), old)

        most = pass_tokens(sizes, self._pass_tokens, self.policy.trunk.lanes.count)
        passes = micro_batches(sizes, max_tokens=most, max_groups=config.micro_batch_size)
        todo, lanes = [*enumerate(passes)], self.policy.trunk.lanes
        for out, measured, figures, old in accumulate(read, todo, self.policy.parameters.values(), lanes):
            parts.append(out)
            sums += measured
            importance |= figures
            old_logprobs.append(old)
        self._old_logprobs = old_logprobs
        n_tokens = sum(len(one.token_ids) for group in rolled.groups for one in group.rollouts)
        n = sum(len(group.rollouts) for group in rolled.groups)
        whole = total(parts) if parts else None
        counted = [0.0, 0.0, 0.0] if whole is None else [float(whole.loss), float(whole.clipped), float(whole.tokens)]
        entropy, divergence, gap, bias, first_eos, tokens, loss, clipped, seen, all_tokens, all_n = (
            self._workers.sum_of([*sums.tolist(), *counted, float(n_tokens), float(n)])
        )
        return {
            "loss": loss,
            "clip_fraction": clipped / seen if seen else None,
            "entropy": entropy / all_tokens,
            "kl": divergence / all_tokens,
            "behaviour_gap": gap / all_tokens,
            "behaviour_bias": bias / all_tokens,
            **self._together(importance).named(),
            "eos_first": first_eos / all_n,
            "tokens": tokens,
        }

    def _together(self, figures: ImportanceFigures) -> ImportanceFigures:
        """Of all workers."""
        every, width = self._workers.gather(figures), len(figures)
        parts = [ImportanceFigures(*every[at : at + width]) for at in range(0, len(every), width)]
        return reduce(or_, parts)

    def measure(self, groups: Sequence[RolloutGroup], scored: Scored, rewards_P_G: Tensor) -> dict[str, float | None]:
        """What a batch of rollouts looks like, over all workers."""
        rollouts = [one for group in groups for one in group.rollouts]
        lengths = self._workers.gather([float(one.n_tokens) for one in rollouts])
        truncated = self._workers.gather([float(one.is_truncated) for one in rollouts])
        rewards = torch.tensor(self._workers.gather(rewards_P_G.reshape(-1).tolist())).view(-1, self._config.group_size)
        known = rewards[rewards.isfinite()]
        spread = rewards.std(dim=1)
        spread = spread[spread.isfinite()]
        p10, p90 = (float(np.percentile(lengths, q)) for q in (10, 90))
        return {
            "reward": float(known.mean()) if len(known) else None,
            "reward_std": float(spread.mean()) if len(spread) else None,
            "zero_variance": zero_variance_share(rewards),
            "length_mean": sum(lengths) / len(lengths),
            "length_median": float(median(lengths)),
            "length_p10": p10,
            "length_p90": p90,
            "empty_rate": sum(length == 0 for length in lengths) / len(lengths),
            "truncated_rate": sum(truncated) / len(truncated),
            **{f"reward/{name}": _mean(self._gathered(values)) for name, values in scored.by_name.items()},
        }

    def _gathered(self, values: Sequence[float | None]) -> list[float | None]:
        everyone = self._workers.gather([math.nan if value is None else value for value in values])
        return [None if math.isnan(value) else value for value in everyone]

    def _evaluate_samples(self) -> dict[str, float | None]:
        """One completion of each held-out prompt, drawn as in training, with the same draws at every evaluation."""
        if not self._validation:
            return {}
        rows = self._workers.share(range(len(self._validation)))
        config = self._config
        groups = roll_out(
            self.policy.trained,
            [self._validation[row] for row in rows],
            group_size=1,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=self._seed,
            step=-1,
        )
        rewards = [row[0] for row in score_rollouts(groups, self.rewards).total]
        gold = [row[0] for row in score_rollouts(groups, [self._gold]).total] if self._gold is not None else []
        rewards, gold = self._gathered(rewards), self._gathered(gold)
        lengths = self._workers.gather([float(group.rollouts[0].n_tokens) for group in groups])
        self.last_evaluation = {"reward": rewards, "gold": gold, "length": [*lengths]}
        self.first_evaluation = self.first_evaluation or self.last_evaluation
        self.own_tokens = self._read([group.group for group in groups], rows)
        return {
            "reward": _mean(rewards),
            "gold": _mean(gold),
            "length_median": float(median(lengths)),
            "empty_rate": sum(length == 0 for length in lengths) / len(lengths),
            "kl": _mean(self.own_tokens.kl),
        }

    def _evaluate_pairs(self) -> dict[str, float | None]:
        """Perplexity on held-out chosen answers: what the policy has forgotten."""
        if not self._pairs:
            return {}
        numbers: dict[tuple[int, ...], int] = {}
        prompts = [numbers.setdefault(pair.group.prompt, len(numbers)) for pair in self._pairs]
        rows = self._workers.share(range(len(self._pairs)))
        chosen = [Group(self._pairs[row].group.prompt, self._pairs[row].group.completions[:1]) for row in rows]
        read = self.held_out_tokens = self._read(chosen, [prompts[row] for row in rows])
        logprob, reference = (math.fsum(values) / len(values) for values in (read.logprobs, read.references))
        return {"perplexity": math.exp(-logprob), "perplexity_reference": math.exp(-reference)}

    def _read(self, groups: Sequence[Group], prompts: Sequence[int]) -> ReadTokens:
        """The completions of this worker's groups, one each, with those of all others; `prompts` number them."""
        found = ReadTokens([], [], [], [])

        def read(part: range) -> tuple[Packed, TokenComparison]:
            packed = self.policy.pack([groups[i] for i in part])
            return packed, self.policy.compare(packed)

        sizes, lanes = [group.n_tokens for group in groups], self.policy.trunk.lanes
        passes = micro_batches(sizes, max_tokens=pass_tokens(sizes, self._pass_tokens, lanes.count))
        for part, (packed, compared) in zip(passes, lanes.map(read, passes), strict=True):
            found.prompts.extend(prompts[part.start + i] for i in packed.sequence.tolist())
            for column, values in zip(found[1:], compared, strict=True):
                column.extend(values.tolist())
        numbers, *columns = (self._workers.gather(column) for column in found)
        return ReadTokens([int(number) for number in numbers], *columns)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
