"""What every audit does with a figure of single prompts: its mean, and its paired difference from the base's.

Values are mappings prompt id → number, None where unscored. Not here: what the figures mean.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from triptych import intervals
from triptych.auditing.records import BASE, AuditRecord
from triptych.records import Estimate
from triptych.stats import clustered_bootstrap, paired_difference, share_difference

Values = Mapping[str, float | None]
FloatArray = npt.NDArray[np.float64]
Item = TypeVar("Item")


class About(NamedTuple):
    """What a record is about, short of its figure."""

    model: str
    metric: str
    category: str | None = None
    scorer: str | None = None

    def record(self, estimate: Estimate, *, against: str | None = None, p: float | None = None) -> AuditRecord:
        return AuditRecord(**self._asdict(), against=against, estimate=estimate, p=p)


class Statistic(NamedTuple):
    """A statistic of one value a prompt, with the intervals that it has."""

    of: Callable[[Sequence[float | None]], Estimate]
    difference: Callable[[Sequence[float | None], Sequence[float | None], int], Estimate]
    """Of the values and the base's, prompt by prompt, with a seed."""


def by_model(items: Sequence[Item], model_of: Callable[[Item], str]) -> dict[str, list[Item]]:
    """The items of each model, models in the order of first mention."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(model_of(item), []).append(item)
    return groups


def mean(values: Values, *, seed: int, is_share: bool = False) -> Estimate:
    """The mean over prompts."""
    return clustered_bootstrap(list(values.values()), list(values), seed=seed, is_share=is_share)


def change(values: Values, base: Values, *, seed: int, is_share: bool = False) -> Estimate:
    """The mean over prompts of value less base; exactly 0 where both are the same."""
    prompts = [prompt for prompt in base if prompt in values]
    a, b = [values[p] for p in prompts], [base[p] for p in prompts]
    if is_share and {*a, *b} <= {0.0, 1.0, None}:
        return share_difference(a, b, prompts)
    return paired_difference(a, b, prompts, seed=seed)


def means(
    about: About, values: Values, base: Values | None, *, seed: int, is_share: bool = False
) -> Iterator[AuditRecord]:
    """A figure and, given the base's values, its difference."""
    yield about.record(mean(values, seed=seed, is_share=is_share))
    if base is not None:
        yield about.record(change(values, base, seed=seed, is_share=is_share), against=BASE)


def statistics(
    about: About, statistic: Statistic, values: Values, base: Values | None, *, seed: int
) -> Iterator[AuditRecord]:
    """The same of any statistic of the values, such as a median."""
    yield about.record(statistic.of(list(values.values())))
    if base is not None:
        prompts = [prompt for prompt in base if prompt in values]
        difference = statistic.difference([values[p] for p in prompts], [base[p] for p in prompts], seed)
        yield about.record(difference, against=BASE)


def ratio_of_means(values: Values, base: Values, *, seed: int) -> Estimate:
    """Mean over base's mean; no value where the base's is 0."""
    prompts = [prompt for prompt in base if prompt in values]
    columns = [[values[p] for p in prompts], [base[p] for p in prompts]]
    return intervals.jackknife_statistic(_ratio, columns, is_ratio=True)


def change_in_sd(changes: Values, scores: Values, *, least_spread: float = 0.0) -> Estimate:
    """The mean change in standard deviations of the scores, whose own error counts; no value where they have none.

    A spread below `least_spread`, in the unit of the scores, counts as that.
    """
    prompts = list(scores)
    columns = [[changes.get(p) for p in prompts], [scores[p] for p in prompts]]
    estimate = intervals.jackknife_statistic(partial(_standardised, least_spread=least_spread), columns)
    return estimate if estimate.mean is not None else estimate.model_copy(update={"method": NO_SPREAD})


NO_SPREAD = "no estimate: the scores have no spread to measure with"


def _ratio(a: FloatArray, b: FloatArray, axis: int) -> FloatArray:
    return np.asarray(np.nanmean(a, axis=axis) / np.nanmean(b, axis=axis))


def _standardised(changes: FloatArray, scores: FloatArray, axis: int, *, least_spread: float) -> FloatArray:
    spread = np.maximum(np.nanstd(scores, axis=axis, ddof=1), least_spread)
    return np.asarray(np.nanmean(changes, axis=axis) / spread)


def _smooth(statistic: Callable[..., FloatArray], *, is_spread: bool = False) -> Statistic:
    def difference(a: FloatArray, b: FloatArray, axis: int) -> FloatArray:
        return np.asarray(statistic(a, axis=axis) - statistic(b, axis=axis))

    return Statistic(
        lambda column: intervals.jackknife_statistic(statistic, [column], is_ratio=is_spread),
        lambda a, b, seed: intervals.jackknife_statistic(difference, [a, b]),
    )


sample_mean = _smooth(np.nanmean)
sample_std = _smooth(lambda x, axis: np.asarray(np.nanstd(x, axis=axis, ddof=1)), is_spread=True)
"""The standard deviation of a sample, of the values that there are."""
sample_median = Statistic(intervals.median, lambda a, b, seed: intervals.median_difference(a, b, seed=seed))
