"""The quality-diversity frontier: settings that no other beats on both, every strategy given equally many tries.

Quality is the mean reward where everything was scored, else the model's own mean log-probability, which is a substitute
and named as one: likelihood is not quality (Zhang et al. 2021, "Trading Off Diversity and Quality in Natural Language
Generation"). Diversity is EAD-1 over one completion a prompt: Distinct-1 corrected for the amount of text. A strategy
with more settings has more chances to lie on the frontier (Schaeffer et al. 2025), so each point carries the number.
Which settings lie on it is itself uncertain, so each point also carries the probability that it does.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from triptych.decoding.arms import Arm, by_arm, common_prompts, first_samples, key_of
from triptych.decoding.measures import Rewards, from_jackknife, mean_over_prompts
from triptych.metrics import (
    count_word_types,
    expectation_adjusted_distinct,
    expectation_adjusted_jackknife,
    expectation_adjusted_without_each,
)
from triptych.records import Estimate, FrontierPoint, Generation
from triptych.seeding import generator

FloatArray = npt.NDArray[np.float64]

LOGPROB_NAME = "mean log-probability (nats per token; not quality)"
DIVERSITY_NAME = "EAD-1 across prompts"

N_DRAWS = 4000
"""Draws behind a probability; its Monte Carlo error is at most 0.5 / √4000 = 0.008 (standard deviation)."""


class _Point(NamedTuple):
    arm: Arm
    quality: Estimate
    diversity: Estimate


def build_frontier(
    generations: Sequence[Generation], rewards: Rewards | None = None, *, reward_model: str | None = None, seed: int = 0
) -> list[FrontierPoint]:
    """One point a setting, arms in the order given, all on the prompts that every arm completed.

    The vocabulary size of EAD is the number of word types in the texts compared. Empty where the arms share no prompt.
    """
    arms = {arm: first_samples(rows) for arm, rows in by_arm(generations).items()}
    prompts = common_prompts(list(arms.values()))
    if not prompts:
        return []
    rows = {arm: [firsts[prompt_id] for prompt_id in prompts] for arm, firsts in arms.items()}
    scored = rewards if rewards is not None and _all_scored(list(rows.values()), rewards) else None
    vocabulary_size = count_word_types(generation.text for own in rows.values() for generation in own)
    points = [
        _Point(arm, _quality(own, scored, seed), _diversity([g.text for g in own], vocabulary_size))
        for arm, own in rows.items()
    ]
    quality_name = LOGPROB_NAME if scored is None else f"mean reward ({reward_model or 'reward model'})"
    budgets = Counter(arm.strategy for arm in rows)
    probabilities = membership(*_jackknife_table(list(rows.values()), scored, vocabulary_size), seed=seed)
    return [
        _record(point, quality_name, budgets[point.arm.strategy], is_on_frontier(point, points), probability)
        for point, probability in zip(points, probabilities, strict=True)
    ]


def is_on_frontier(point: _Point, points: Sequence[_Point]) -> bool:
    """Whether both figures of the point exist and no other point is at least as good on both and better on one."""
    if point.quality.mean is None or point.diversity.mean is None:
        return False
    return not any(_dominates(other, point) for other in points)


def membership(
    values: FloatArray, without_each: FloatArray, *, seed: int, n_draws: int = N_DRAWS
) -> list[float | None]:
    """How probably each setting is on the frontier: [settings], None where a setting has no figures or no spread.

    `values` [settings, 2] holds quality and diversity, `without_each` [prompts, settings, 2] the same without each
    prompt. All figures are drawn jointly,

        θ* = θ + s · Σ_k ε_k · √((K - 1) / K) · (θ(-k) - mean of θ(-·)),   ε_k ~ N(0, 1),   s² = (K - 1) / χ²(K - 1)

    for K prompts, so that the draws have the delete-a-prompt jackknife's covariance (and Student's tails, for few
    prompts). The settings answer the same prompts, so their errors are correlated, which is kept. The probability is
    the share of draws in which no other setting is at least as good on both figures and better on one.

    Why not the bootstrap over prompts: a prompt drawn twice adds words but no types, which lowers diversity. It reads
    as a probability where settings differ by more than the noise (calibration: `design/decoding-study.md`); among
    settings that hardly differ it is cautious at the low end, so that a low probability does not prove a setting worse.

    Source: ours; Tukey 1958 (jackknife), the multiplier form after Wu 1986.
    """
    n_prompts = len(without_each)
    if n_prompts < 2:
        return [None] * len(values)
    rng = generator(seed, "decoding", "frontier membership")
    deviations = (without_each - without_each.mean(axis=0)) * math.sqrt((n_prompts - 1) / n_prompts)
    scale = np.sqrt((n_prompts - 1) / rng.chisquare(n_prompts - 1, size=(n_draws, 1)))
    noise = scale * rng.standard_normal((n_draws, n_prompts))
    draws = values + (noise @ deviations.reshape(n_prompts, -1)).reshape(n_draws, *values.shape)
    return [_share_on_frontier(draws, setting) for setting in range(len(values))]


def _share_on_frontier(draws: FloatArray, setting: int) -> float | None:
    """Of draws [draws, settings, 2]; NaN, which stands for no value, dominates nothing."""
    if np.isnan(draws[:, setting]).any():
        return None
    gaps = draws - draws[:, setting : setting + 1]
    gaps[np.abs(gaps) < 1e-12] = 0.0  # settings that gave the same texts differ by rounding alone
    beaten = np.all(gaps >= 0.0, axis=2) & np.any(gaps > 0.0, axis=2)
    return float(np.mean(~np.any(beaten, axis=1)))


def _jackknife_table(
    rows: Sequence[Sequence[Generation]], rewards: Rewards | None, vocabulary_size: int
) -> tuple[FloatArray, FloatArray]:
    """Quality and diversity of every setting, [settings, 2], and without each prompt, [prompts, settings, 2]."""
    values, without_each = [], []
    for completions in rows:
        texts = [generation.text for generation in completions]
        quality = np.array([_quality_of(generation, rewards) for generation in completions], dtype=np.float64)
        scored = ~np.isnan(quality)
        total, count = float(quality[scored].sum()), int(scored.sum())
        mean = total / count if count else math.nan
        without = (total - quality) / (count - 1) if count > 1 else np.full(len(quality), math.nan)
        diversity = expectation_adjusted_distinct(texts, 1, vocabulary_size)
        diversity_without = expectation_adjusted_without_each(texts, 1, vocabulary_size)
        values.append([mean, diversity])
        without_each.append(np.stack([np.where(scored, without, mean), diversity_without], axis=1))
    return np.array(values), np.stack(without_each, axis=1)


def _dominates(one: _Point, other: _Point) -> bool:
    # NaN, which stands for no value, compares as false: such a point dominates nothing.
    quality, diversity = one.quality.value - other.quality.value, one.diversity.value - other.diversity.value
    return quality >= 0.0 and diversity >= 0.0 and (quality > 0.0 or diversity > 0.0)


def _all_scored(rows: Sequence[Sequence[Generation]], rewards: Rewards) -> bool:
    """A frontier with some points in rewards and some in nats would compare nothing."""
    return all(rewards.get(key_of(generation)) is not None for own in rows for generation in own)


def _quality(rows: Sequence[Generation], rewards: Rewards | None, seed: int) -> Estimate:
    return mean_over_prompts([_quality_of(g, rewards) for g in rows], [g.prompt_id for g in rows], seed=seed)


def _quality_of(generation: Generation, rewards: Rewards | None) -> float | None:
    return generation.mean_logprob if rewards is None else rewards[key_of(generation)]


def _diversity(texts: Sequence[str], vocabulary_size: int) -> Estimate:
    return from_jackknife(expectation_adjusted_jackknife(texts, 1, vocabulary_size), len(texts))


def _record(
    point: _Point, quality_name: str, budget: int, on_frontier: bool, probability: float | None
) -> FrontierPoint:
    return FrontierPoint(
        strategy=point.arm.strategy,
        params=point.arm.settings,
        temperature=point.arm.temperature,
        quality=point.quality,
        quality_name=quality_name,
        diversity=point.diversity,
        diversity_name=DIVERSITY_NAME,
        on_frontier=on_frontier,
        on_frontier_probability=probability,
        budget=budget,
    )
