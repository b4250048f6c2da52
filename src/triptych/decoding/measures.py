"""What an arm's completions are like, in numbers with intervals: likelihood, length, stopping, repetition, diversity.

Completions in, [`ArmMeasure`][triptych.records.ArmMeasure] records out; no file, no device. Three scopes:

* `arm`: every completion. Completions of a prompt are averaged first, so that a prompt counts once however many
  samples it has; then the mean over prompts.
* `across`: sample 0 of every prompt, pooled.
* `within`: the samples of one prompt pooled, then the mean over the prompts that have at least two.

Not here: what the numbers say about the paper (`claims`), which setting is best (`frontier`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from triptych.decoding.arms import Arm, CompletionKey, by_arm, by_prompt, first_samples, key_of
from triptych.metrics import (
    Jackknife,
    count_word_types,
    distinct_n,
    distinct_n_jackknife,
    expectation_adjusted_jackknife,
    max_ngram_count,
    self_bleu,
    seq_rep_n,
    words,
)
from triptych.records import ArmMeasure, Estimate, Generation
from triptych.stats import clustered_bootstrap, jackknife_estimate

ORDERS = (1, 2, 3)
"""The N of Distinct-N."""

SELF_BLEU_TEXTS = 10
"""Texts that are compared with one another: Self-BLEU rises with their number, and ten is a prompt's samples."""

ALL_ALIKE = "no interval: all prompts alike"

Scope = Literal["across", "within", "arm"]
Rewards = Mapping[CompletionKey, float | None]


def measure_arms(
    generations: Sequence[Generation], rewards: Rewards | None = None, *, seed: int = 0, length: int = 20
) -> list[ArmMeasure]:
    """Every measure of every arm, arms in the order given.

    `rewards` holds the completions that were to be scored, None where no score came; without it there is no measure
    `reward`. `length` is the L of `distinct_n_at_L`, in words. EAD-1's vocabulary size is the number of word types in
    the texts of all arms given here: one number for all, so that their figures compare, and free of any tokenizer;
    `method` states it. A measure that nothing could be computed for has no mean: unscored is not zero.
    """
    vocabulary_size = count_word_types(generation.text for generation in generations)
    measures: list[ArmMeasure] = []
    for arm, rows in by_arm(generations).items():
        estimates = [*_arm_estimates(rows, rewards, seed)]
        estimates += _across_estimates(list(first_samples(rows).values()), vocabulary_size, length, seed)
        estimates += _within_estimates([group for group in by_prompt(rows).values() if len(group) >= 2], seed)
        measures += [_record(arm, metric, scope, estimate) for metric, scope, estimate in estimates]
    return measures


def mean_over_prompts(
    values: Sequence[float | None], prompt_ids: Sequence[str], *, seed: int, is_share: bool = False
) -> Estimate:
    """The mean over prompts of the prompts' own means, with the interval of `clustered_bootstrap`; None is unscored.

    `n` counts scored completions. Departure from the clustered mean itself: there a prompt with ten samples weighs
    ten times as much as one with a single sample.
    """
    scored: dict[str, list[float]] = {prompt_id: [] for prompt_id in prompt_ids}
    for value, prompt_id in zip(values, prompt_ids, strict=True):
        if value is not None and not math.isnan(value):
            scored[prompt_id].append(value)
    means = [math.fsum(own) / len(own) if own else None for own in scored.values()]
    n = sum(len(own) for own in scored.values())
    estimate = clustered_bootstrap(means, list(scored), seed=seed, is_share=is_share)
    return estimate.model_copy(update={"n": n, "n_unscored": len(values) - n})


def from_jackknife(figure: Jackknife, n_texts: int) -> Estimate:
    """A pooled figure of `n_texts` texts, one a prompt; those without an n-gram are unscored."""
    estimate = jackknife_estimate(
        figure.value, figure.low, figure.high, figure.n_groups, n_unscored=n_texts - figure.n_groups
    )
    if figure.standard_error == 0.0:
        return estimate.model_copy(update={"low": None, "high": None, "method": ALL_ALIKE})
    return estimate


_Named = tuple[str, Scope, Estimate]


def _record(arm: Arm, metric: str, scope: Scope, estimate: Estimate) -> ArmMeasure:
    return ArmMeasure(
        strategy=arm.strategy,
        params=arm.settings,
        temperature=arm.temperature,
        metric=metric,
        scope=scope,
        estimate=estimate,
    )


# --- every completion -------------------------------------------------------------------------------------------------


def _sampler_mean_logprob(generation: Generation) -> float | None:
    # Greedy draws from one token: its log-probability is 0 by definition, and no measurement.
    sampled = None if generation.temperature is None else generation.sampler_logprobs
    return math.fsum(sampled) / len(sampled) if sampled else None


def _stopped(reason: str) -> Callable[[Generation], float]:
    return lambda generation: float(generation.stop_reason == reason)


OF_ONE_COMPLETION: dict[str, Callable[[Generation], float | None]] = {
    "mean_logprob": lambda generation: generation.mean_logprob,
    "sampler_mean_logprob": _sampler_mean_logprob,
    "tokens": lambda generation: float(generation.n_tokens),
    "words": lambda generation: float(len(words(generation.text))),
    "seq_rep_3": lambda generation: seq_rep_n(generation.token_ids, 3),
    "max_ngram_count": lambda generation: float(max_ngram_count(generation.token_ids, 3)),
    **{f"stop_{reason}": _stopped(reason) for reason in ("eos", "length", "repeat", "marker")},
}
"""Measures of a single completion; None or NaN is unscored."""

_SHARES = frozenset(metric for metric in OF_ONE_COMPLETION if metric.startswith("stop_")) | {"seq_rep_3"}


def _arm_estimates(rows: Sequence[Generation], rewards: Rewards | None, seed: int) -> list[_Named]:
    prompt_ids = [generation.prompt_id for generation in rows]
    estimates: list[_Named] = []
    for metric, measure in OF_ONE_COMPLETION.items():
        values = [measure(generation) for generation in rows]
        estimates.append((metric, "arm", mean_over_prompts(values, prompt_ids, seed=seed, is_share=metric in _SHARES)))
    if rewards is not None:
        scored = [generation for generation in rows if key_of(generation) in rewards]
        ids = [generation.prompt_id for generation in scored]
        rewarded = [rewards[key_of(generation)] for generation in scored]
        estimates.append(("reward", "arm", mean_over_prompts(rewarded, ids, seed=seed)))
    return estimates


# --- pooled over prompts ----------------------------------------------------------------------------------------------


def _across_estimates(rows: Sequence[Generation], vocabulary_size: int, length: int, seed: int) -> list[_Named]:
    texts = [generation.text for generation in rows]
    cut = beginnings(texts, length)
    estimates: list[_Named] = []
    for n in ORDERS:
        distinct = from_jackknife(distinct_n_jackknife(texts, n), len(texts))
        at_length = from_jackknife(distinct_n_jackknife(cut, n), len(texts))
        estimates += [(f"distinct_{n}", "across", distinct), (f"distinct_{n}_at_{length}", "across", at_length)]
    adjusted = from_jackknife(expectation_adjusted_jackknife(texts, vocabulary_size), len(texts))
    stated = {"method": f"{adjusted.method}; V = {vocabulary_size:,} word types of this run"}
    estimates.append(("ead_1", "across", adjusted.model_copy(update=stated)))
    return [*estimates, ("self_bleu", "across", _self_bleu_across(texts, seed))]


def beginnings(texts: Sequence[str], length: int) -> list[str]:
    """The first `length` words of every text that has as many; the others are left out."""
    by_text = [words(text) for text in texts]
    return [" ".join(own[:length]) for own in by_text if len(own) >= length]


def _self_bleu_across(texts: Sequence[str], seed: int) -> Estimate:
    """The mean Self-BLEU of groups of about ten prompts' texts, so that it compares with that within a prompt.

    Departure from Zhu et al. 2018, who take all texts as references: the figure would rise with the number of prompts.
    The interval is over groups.
    """
    n_groups = max(1, len(texts) // SELF_BLEU_TEXTS)
    groups = [texts[start::n_groups] for start in range(n_groups)]
    estimate = clustered_bootstrap([self_bleu(group) for group in groups], range(n_groups), seed=seed, is_share=True)
    scored = 0 if estimate.mean is None else len(texts)
    start = "no interval" if estimate.low is None else f"{estimate.method} (groups for prompts)"
    method = f"{start}: {n_groups} group{'s' if n_groups > 1 else ''} of about {len(texts) // n_groups} prompts"
    return estimate.model_copy(
        update={"n": scored, "n_clusters": scored, "n_unscored": len(texts) - scored, "method": method}
    )


# --- within a prompt --------------------------------------------------------------------------------------------------


def _within_estimates(groups: Sequence[Sequence[Generation]], seed: int) -> list[_Named]:
    if not groups:
        return []
    ids = [group[0].prompt_id for group in groups]
    texts = [[generation.text for generation in group] for group in groups]
    estimates: list[_Named] = []
    for n in ORDERS:
        values = [distinct_n(group, n) for group in texts]
        estimates.append((f"distinct_{n}", "within", clustered_bootstrap(values, ids, seed=seed, is_share=True)))
    bleu = clustered_bootstrap([self_bleu(group) for group in texts], ids, seed=seed, is_share=True)
    return [*estimates, ("self_bleu", "within", bleu)]
