"""What every audit does with a figure of single prompts: its mean, and its paired difference from the base's.

Values are mappings prompt id → number, None where unscored. Not here: what the figures mean.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from triptych.auditing.records import BASE, AuditRecord
from triptych.records import Estimate
from triptych.stats import bootstrap_statistic, clustered_bootstrap, paired_difference

Values = Mapping[str, float | None]
FloatArray = npt.NDArray[np.float64]
Statistic = Callable[..., FloatArray]
Item = TypeVar("Item")


class About(NamedTuple):
    """What a record is about, short of its figure."""

    model: str
    metric: str
    category: str | None = None
    scorer: str | None = None

    def record(self, estimate: Estimate, *, against: str | None = None, p: float | None = None) -> AuditRecord:
        return AuditRecord(**self._asdict(), against=against, estimate=estimate, p=p)


def by_model(items: Sequence[Item], model_of: Callable[[Item], str]) -> dict[str, list[Item]]:
    """The items of each model, models in the order of first mention."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(model_of(item), []).append(item)
    return groups


def mean(values: Values, *, seed: int, is_share: bool = False) -> Estimate:
    """The mean over prompts."""
    return clustered_bootstrap(list(values.values()), list(values), seed=seed, is_share=is_share)


def change(values: Values, base: Values, *, seed: int) -> Estimate:
    """The mean over prompts of value less base; exactly 0 where both are the same."""
    prompts = [prompt for prompt in base if prompt in values]
    return paired_difference([values[p] for p in prompts], [base[p] for p in prompts], prompts, seed=seed)


def means(
    about: About, values: Values, base: Values | None, *, seed: int, is_share: bool = False
) -> Iterator[AuditRecord]:
    """A figure and, given the base's values, its difference."""
    yield about.record(mean(values, seed=seed, is_share=is_share))
    if base is not None:
        yield about.record(change(values, base, seed=seed), against=BASE)


def statistics(
    about: About, statistic: Statistic, values: Values, base: Values | None, *, seed: int
) -> Iterator[AuditRecord]:
    """The same of any statistic of the values, such as a median; `statistic(x, axis)` may see NaN."""
    yield about.record(bootstrap_statistic(statistic, [list(values.values())], seed=seed))
    if base is not None:
        yield about.record(_contrast(_difference(statistic), values, base, seed), against=BASE)


def ratio_of_means(values: Values, base: Values, *, seed: int) -> Estimate:
    """Mean over base's mean; no value where the base's is 0."""
    return _contrast(_ratio, values, base, seed)


def _ratio(a: FloatArray, b: FloatArray, axis: int) -> FloatArray:
    return np.asarray(np.nanmean(a, axis=axis) / np.nanmean(b, axis=axis))


def sample_std(x: FloatArray, axis: int) -> FloatArray:
    """The standard deviation of a sample, of the values that there are."""
    return np.asarray(np.nanstd(x, axis=axis, ddof=1))


def _difference(statistic: Statistic) -> Statistic:
    return lambda a, b, axis: statistic(a, axis=axis) - statistic(b, axis=axis)


def _contrast(statistic: Statistic, values: Values, base: Values, seed: int) -> Estimate:
    prompts = [prompt for prompt in base if prompt in values]
    return bootstrap_statistic(statistic, [[values[p] for p in prompts], [base[p] for p in prompts]], seed=seed)
