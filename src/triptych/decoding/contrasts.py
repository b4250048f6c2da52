"""The numbers behind statements about decoding: trends over temperature, spreads, gaps, each with interval and p-value.

Two kinds. Means over prompts (of slopes, of paired differences) take the bootstrap over prompts and the sign-flip test.
Figures of pooled texts (Distinct-N, and what is computed from several of them) take the delete-a-prompt jackknife,

    θ ± t(0.975; df) · se,   se² = (G - 1) / G · Σ_k (θ(-k) - mean of θ(-·))²,   p = P(|t(df)| ≥ |θ / se|),

because a bootstrap would repeat texts, which adds n-grams but no types. Not here: what the paper says (`claims`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

from triptych.decoding.arms import Arm, by_prompt, common_prompts, first_samples, key_of, temperature_sweep
from triptych.decoding.measures import ALL_ALIKE, ORDERS, Rewards
from triptych.metrics import BeamLead, NgramTable, beam_lead, distinct_n, distinct_n_without_each, words
from triptych.records import Estimate, FinalBeam, Generation
from triptych.seeding import generator
from triptych.stats import clustered_bootstrap, jackknife_error, sign_flip_test

FloatArray = npt.NDArray[np.float64]

N_DRAWS = 2000
"""Random choices of prompts behind an expectation over choices; in each prompt's share of them lies the noise."""

GRID = 50
"""Points at which two curves of reward over diversity are compared."""

JACKKNIFE = "95% delete-a-prompt jackknife"


class Contrast(NamedTuple):
    """A number that would be 0 if there were nothing to say."""

    estimate: Estimate
    p: float | None
    """Two-sided p-value of the hypothesis that it is 0; None without an interval."""


@dataclass(frozen=True)
class Evidence:
    """What a run holds to test statements with."""

    arms: Mapping[Arm, Sequence[Generation]]
    rewards: Rewards | None = None
    """None where no reward model scored."""
    seed: int = 0
    fixed_length: int = 20
    """Words of every text that length-matched figures look at."""
    beams: Mapping[Arm, Mapping[str, Sequence[FinalBeam]]] = field(default_factory=dict)
    """The final beams of every beam arm and prompt, the best first; empty where the run kept none."""

    def sweep(self, strategy: str) -> list[Arm]:
        """The temperature sweep of a strategy, by temperature; empty where there is none."""
        return temperature_sweep(self.arms, strategy)

    def only(self, strategy: str) -> Arm | None:
        """The arm of a strategy that has completions for most prompts; None where it was not run."""
        arms = [arm for arm in self.arms if arm.strategy == strategy]
        return max(arms, key=lambda arm: len(first_samples(self.arms[arm])), default=None)

    def firsts(self, arms: Sequence[Arm]) -> list[dict[str, Generation]]:
        """Sample 0 of every prompt, arm by arm."""
        return [first_samples(self.arms[arm]) for arm in arms]

    def reward(self, generation: Generation) -> float | None:
        """What the reward model said; None where it said nothing."""
        return None if self.rewards is None else self.rewards.get(key_of(generation))


# --- from values to contrasts -----------------------------------------------------------------------------------------


def over_prompts(values: Mapping[str, float | None], seed: int) -> Contrast:
    """The mean of one value a prompt, with the bootstrap's interval and the sign-flip test's p-value."""
    numbers, ids = list(values.values()), list(values)
    estimate = clustered_bootstrap(numbers, ids, seed=seed)
    return Contrast(estimate, None if estimate.low is None else sign_flip_test(numbers, ids, seed=seed))


def jackknifed(value: float, without_each: FloatArray, n: int, df: int | None = None) -> Contrast:
    """A pooled figure with the interval that follows from leaving out one prompt at a time.

    `n` counts the completions behind it; `df` defaults to the number of prompts less one.
    """
    n_prompts = len(without_each)
    degrees = n_prompts - 1 if df is None else df
    if math.isnan(value) or np.isnan(without_each).any() or degrees < 1:
        mean = None if math.isnan(value) else value
        return Contrast(_estimate(mean, None, n, n_prompts, "no interval: too few prompts"), None)
    error = jackknife_error(without_each)
    if error <= 1e-12 * max(1.0, abs(value)):
        return Contrast(_estimate(value, None, n, n_prompts, ALL_ALIKE), None)
    half = float(stdtrit(degrees, 0.975)) * error
    p = 2.0 * float(stdtr(degrees, -abs(value) / error))
    return Contrast(_estimate(value, half, n, n_prompts, JACKKNIFE), p)


def _estimate(mean: float | None, half: float | None, n: int, n_prompts: int, method: str) -> Estimate:
    low, high = (None, None) if half is None or mean is None else (mean - half, mean + half)
    return Estimate(mean=mean, low=low, high=high, n=n, n_clusters=n_prompts, method=method)


def slope_weights(levels: Sequence[float]) -> FloatArray:
    """w with w · y the least-squares slope of y over the levels."""
    centred = np.asarray(levels, dtype=np.float64) - float(np.mean(levels))
    weights: FloatArray = centred / float(centred @ centred)
    return weights


# --- log-probability --------------------------------------------------------------------------------------------------


def logprob_slopes(evidence: Evidence, sweep: Sequence[Arm]) -> dict[str, float | None]:
    """Each prompt's slope of mean log-probability over temperature, in nats per token and unit of temperature.

    Samples of a prompt are averaged first. A prompt without a value at every temperature is None.
    """
    weights = slope_weights([_temperature(arm) for arm in sweep])
    means = [_prompt_means(evidence.arms[arm], lambda generation: generation.mean_logprob) for arm in sweep]
    prompts = dict.fromkeys(prompt_id for by_id in means for prompt_id in by_id)
    slopes: dict[str, float | None] = {}
    for prompt_id in prompts:
        values = [by_id.get(prompt_id) for by_id in means]
        scored = [value for value in values if value is not None]
        slopes[prompt_id] = float(weights @ np.array(scored)) if len(scored) == len(sweep) else None
    return slopes


def cumulative_gap(evidence: Evidence, arm: Arm, reference: Arm) -> Contrast:
    """How much more probable, in nats a completion, an arm's completions are than the reference's, prompt by prompt."""
    ours, theirs = evidence.firsts([arm, reference])
    prompts = common_prompts([ours, theirs])
    return over_prompts(
        {k: math.fsum(ours[k].logprobs) - math.fsum(theirs[k].logprobs) for k in prompts}, evidence.seed
    )


def beam_leads(evidence: Evidence, arm: Arm) -> dict[str, BeamLead | None]:
    """How far each prompt's best beam leads; None where no other final beam ended as it did."""
    return {
        prompt_id: beam_lead([beam.score for beam in beams], [beam.stop_reason == "eos" for beam in beams])
        for prompt_id, beams in evidence.beams.get(arm, {}).items()
    }


def log_spread_ratio(evidence: Evidence, arm: Arm, reference: Arm) -> Contrast:
    """ln(SD of the arm's mean log-probabilities over prompts / SD of the reference's), on the same prompts."""
    ours, theirs = (
        {k: g.mean_logprob for k, g in firsts.items() if g.mean_logprob is not None}
        for firsts in evidence.firsts([arm, reference])
    )
    prompts = [prompt_id for prompt_id in ours if prompt_id in theirs]
    if len(prompts) < 3:
        return jackknifed(math.nan, np.empty(0), 0)
    a, b = (np.array([values[k] for k in prompts]) for values in (ours, theirs))
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(np.log(a.std(ddof=1) / b.std(ddof=1)))
        without_each = np.log(_std_without_each(a) / _std_without_each(b))
    if not math.isfinite(value) or not np.isfinite(without_each).all():
        return jackknifed(math.nan, np.empty(0), 0)
    return jackknifed(value, without_each, 2 * len(prompts))


# --- diversity --------------------------------------------------------------------------------------------------------


class Pooled(NamedTuple):
    """A figure of pooled texts at several levels, whole and without each prompt."""

    values: FloatArray
    """[levels]"""
    without_each: FloatArray
    """[levels, prompts]"""


def pooled_distinct(texts_by_level: Sequence[Sequence[str]], n: int) -> Pooled:
    """Distinct-n at every level; text k of every level belongs to prompt k."""
    values = np.array([distinct_n(texts, n) for texts in texts_by_level])
    return Pooled(values, np.stack([distinct_n_without_each(texts, n) for texts in texts_by_level]))


def distinct_slopes(evidence: Evidence, sweep: Sequence[Arm], length: int | None = None) -> list[Contrast]:
    """The slope over temperature of Distinct-1, -2 and -3 across prompts; on the first `length` words where given."""
    weights, texts = slope_weights([_temperature(arm) for arm in sweep]), _sweep_texts(evidence, sweep, length)
    trends = [pooled_distinct(texts, n) for n in ORDERS]
    n = len(texts) * len(texts[0])
    return [jackknifed(float(weights @ trend.values), weights @ trend.without_each, n) for trend in trends]


def distinct_slope_gaps(evidence: Evidence, sweep: Sequence[Arm], length: int | None = None) -> list[Contrast]:
    """How much steeper Distinct-2 rises than Distinct-1, and Distinct-3 than Distinct-2."""
    weights, texts = slope_weights([_temperature(arm) for arm in sweep]), _sweep_texts(evidence, sweep, length)
    trends = [pooled_distinct(texts, n) for n in ORDERS]
    n = len(texts) * len(texts[0])
    return [
        jackknifed(
            float(weights @ (larger.values - smaller.values)),
            weights @ (larger.without_each - smaller.without_each),
            n,
        )
        for smaller, larger in pairwise(trends)
    ]


def within_minus_across(evidence: Evidence, arm: Arm) -> list[Contrast]:
    """Distinct-1, -2, -3: the mean within a prompt, less that of one text of every prompt pooled."""
    groups, firsts = _samples_within(evidence, arm), first_samples(evidence.arms[arm])
    texts = [generation.text for generation in firsts.values()]
    return [
        _within_minus(groups, list(firsts), n, distinct_n(texts, n), distinct_n_without_each(texts, n)) for n in ORDERS
    ]


def equal_number_of_texts(evidence: Evidence, arm: Arm) -> int:
    """As many texts as every prompt has samples, but at most half the number of prompts, so that choices differ."""
    groups = _samples_within(evidence, arm)
    return min(min(map(len, groups.values()), default=0), len(first_samples(evidence.arms[arm])) // 2)


def within_minus_across_equal(evidence: Evidence, arm: Arm) -> list[Contrast]:
    """The same with equal numbers of texts: m samples of one prompt against one sample of m prompts.

    The latter is the expectation over choices of m prompts, from `N_DRAWS` random ones; without prompt k, from those
    that do not hold it.
    """
    size = equal_number_of_texts(evidence, arm)
    firsts = first_samples(evidence.arms[arm])
    groups = {prompt_id: texts[:size] for prompt_id, texts in _samples_within(evidence, arm).items()}
    draws = _draws(len(firsts), size, evidence.seed)
    contrasts = []
    for n in ORDERS:
        table = NgramTable([generation.text for generation in firsts.values()], n)
        values = np.array([table.distinct(rows) for rows in draws])
        contrasts.append(_within_minus(groups, list(firsts), n, *_expectation(values, draws, len(firsts))))
    return contrasts


def _within_minus(
    groups: Mapping[str, Sequence[str]], prompts: Sequence[str], n: int, across: float, across_without: FloatArray
) -> Contrast:
    scored = {k: value for k, texts in groups.items() if not math.isnan(value := distinct_n(texts, n))}
    if len(scored) < 2:
        return jackknifed(math.nan, np.empty(0), 0)
    total, count = math.fsum(scored.values()), len(scored)
    within = total / count
    within_without = np.array([(total - scored[k]) / (count - 1) if k in scored else within for k in prompts])
    n_texts = sum(map(len, groups.values())) + len(prompts)
    return jackknifed(within - across, within_without - across_without, n_texts, df=count - 1)


def _draws(n_prompts: int, size: int, seed: int) -> npt.NDArray[np.int64]:
    """[draws, size]: choices of prompts without repetition."""
    rng = generator(seed, "decoding", "equal numbers of texts")
    order = rng.random((N_DRAWS, n_prompts)).argsort(axis=1)
    draws: npt.NDArray[np.int64] = order[:, :size].astype(np.int64)
    return draws


def _expectation(values: FloatArray, draws: npt.NDArray[np.int64], n_prompts: int) -> tuple[float, FloatArray]:
    """The mean over draws, and over those without each prompt; draws without an n-gram do not count."""
    scored = ~np.isnan(values)
    holds = np.zeros((len(values), n_prompts), dtype=np.bool_)
    holds[np.arange(len(values))[:, None], draws] = True
    counts = (~holds[scored]).sum(axis=0)
    sums = values[scored] @ (~holds[scored])
    without = np.divide(sums, counts, out=np.full(n_prompts, np.nan), where=counts > 0)
    return float(values[scored].mean()) if scored.any() else math.nan, without


# --- reward -----------------------------------------------------------------------------------------------------------


def reward_slope_over_diversity(evidence: Evidence, sweep: Sequence[Arm]) -> Contrast:
    """The least-squares slope of mean reward over Distinct-1 across the temperatures of a sweep."""
    rewards, diversity = _rewards_and_diversity(evidence, sweep, _scored_prompts(evidence, sweep))
    if not rewards.without_each.size or np.ptp(diversity.values) == 0.0:
        return jackknifed(math.nan, np.empty(0), 0)
    value = float(slope_weights(diversity.values.tolist()) @ rewards.values)
    without = [
        float(slope_weights(d.tolist()) @ r)
        for d, r in zip(diversity.without_each.T, rewards.without_each.T, strict=True)
    ]
    return jackknifed(value, np.array(without), rewards.without_each.size)


def reward_gap_at_equal_temperature(evidence: Evidence, ours: Sequence[Arm], theirs: Sequence[Arm]) -> Contrast:
    """The mean difference of reward between two sweeps at the same temperatures and prompts."""
    prompts = _scored_prompts(evidence, [*ours, *theirs])
    gaps = _reward_table(evidence, ours, prompts) - _reward_table(evidence, theirs, prompts)
    return over_prompts(dict(zip(prompts, gaps.mean(axis=0).tolist(), strict=True)), evidence.seed)


def reward_gap_at_equal_diversity(evidence: Evidence, ours: Sequence[Arm], theirs: Sequence[Arm]) -> Contrast:
    """The mean difference of reward between two sweeps over the range of Distinct-1 that both reach.

    Reward between two settings is interpolated linearly over Distinct-1. No value where the ranges do not overlap.
    """
    prompts = _scored_prompts(evidence, [*ours, *theirs])
    a_reward, a_diversity = _rewards_and_diversity(evidence, ours, prompts)
    b_reward, b_diversity = _rewards_and_diversity(evidence, theirs, prompts)
    value = curve_gap(a_diversity.values, a_reward.values, b_diversity.values, b_reward.values)
    columns = (a_diversity, a_reward, b_diversity, b_reward)
    without = [
        curve_gap(*(pooled.without_each[:, k] for pooled in columns)) for k in range(a_reward.without_each.shape[1])
    ]
    return jackknifed(value, np.array(without), len(prompts) * (len(ours) + len(theirs)))


def curve_gap(x1: FloatArray, y1: FloatArray, x2: FloatArray, y2: FloatArray) -> float:
    """The mean of y1 - y2 over the range of x that both polygons cover; NaN where there is none."""
    if not (x1.size and x2.size):
        return math.nan
    low, high = max(x1.min(), x2.min()), min(x1.max(), x2.max())
    if not low < high:
        return math.nan
    grid = np.linspace(low, high, GRID)
    first, second = np.argsort(x1, kind="stable"), np.argsort(x2, kind="stable")
    return float(np.mean(np.interp(grid, x1[first], y1[first]) - np.interp(grid, x2[second], y2[second])))


class _RewardCurve(NamedTuple):
    rewards: Pooled
    diversity: Pooled


def _rewards_and_diversity(evidence: Evidence, sweep: Sequence[Arm], prompts: Sequence[str]) -> _RewardCurve:
    """Mean reward and Distinct-1 at every setting of a sweep, whole and without each of the prompts."""
    if len(prompts) < 2:
        nothing = Pooled(np.empty(0), np.empty((len(sweep), 0)))
        return _RewardCurve(nothing, nothing)
    rewards = _reward_table(evidence, sweep, prompts)
    without = (rewards.sum(axis=1, keepdims=True) - rewards) / (len(prompts) - 1)
    texts = [[arm[k].text for k in prompts] for arm in evidence.firsts(sweep)]
    return _RewardCurve(Pooled(rewards.mean(axis=1), without), pooled_distinct(texts, 1))


def _reward_table(evidence: Evidence, arms: Sequence[Arm], prompts: Sequence[str]) -> FloatArray:
    """[arms, prompts]: rewards of prompts that have one in every arm."""
    table = [[evidence.reward(arm[k]) for k in prompts] for arm in evidence.firsts(arms)]
    return np.array(table, dtype=np.float64).reshape(len(arms), len(prompts))


def _scored_prompts(evidence: Evidence, arms: Sequence[Arm]) -> list[str]:
    """Prompts that have a reward in every arm."""
    firsts = evidence.firsts(arms)
    return [k for k in common_prompts(firsts) if all(evidence.reward(arm[k]) is not None for arm in firsts)]


# --- small parts ------------------------------------------------------------------------------------------------------


def _temperature(arm: Arm) -> float:
    if arm.temperature is None:
        raise ValueError(f"arm {arm.strategy} {arm.params} has no temperature: it is no part of a sweep")
    return arm.temperature


def _prompt_means(
    generations: Sequence[Generation], value: Callable[[Generation], float | None]
) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for prompt_id, own in by_prompt(generations).items():
        scored = [number for generation in own if (number := value(generation)) is not None]
        means[prompt_id] = math.fsum(scored) / len(scored) if scored else None
    return means


def _sweep_texts(evidence: Evidence, sweep: Sequence[Arm], length: int | None) -> list[list[str]]:
    """[temperatures][prompts]: texts of the prompts that every temperature has, cut to `length` words where given."""
    firsts = evidence.firsts(sweep)
    prompts = common_prompts(firsts)
    if length is None:
        return [[arm[k].text for k in prompts] for arm in firsts]
    by_arm_words = [{k: words(arm[k].text) for k in prompts} for arm in firsts]
    long_enough = [k for k in prompts if all(len(own[k]) >= length for own in by_arm_words)]
    return [[" ".join(own[k][:length]) for k in long_enough] for own in by_arm_words]


def _samples_within(evidence: Evidence, arm: Arm) -> dict[str, list[str]]:
    """The texts of every prompt that has at least two samples."""
    groups = by_prompt(evidence.arms[arm])
    return {k: [generation.text for generation in own] for k, own in groups.items() if len(own) >= 2}


def _std_without_each(values: FloatArray) -> FloatArray:
    """The standard deviation (n - 1) without each value."""
    n = len(values)
    centred = values - values.mean()
    squares = float(centred @ centred)
    # Without value k the mean moves by -c_k / (n - 1), and Σ c² loses c_k² · n / (n - 1).
    without: FloatArray = np.sqrt(np.maximum(0.0, squares - centred**2 * n / (n - 1)) / (n - 2))
    return without
