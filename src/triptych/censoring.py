"""Lengths that the token limit cuts are known from below alone: what may still be said of their median and mean.

Not here: the medians and means themselves.
"""

from collections.abc import Iterable, Sequence

from triptych.records import Estimate

BOTH_CUT = "no estimate: the token limit cuts both medians"
MEDIAN_CUT = "no interval: the token limit cuts the median"


def is_median_exact(lengths: Iterable[float], is_cut: Iterable[bool]) -> bool:
    """Whether the sample median is the same however long the cut texts would have become.

    It is where nothing up to the upper middle of the sorted lengths is cut, a cut text standing behind whole ones of
    its length (as Kaplan and Meier 1958 have it); else the median of what was written is a lower bound.
    """
    ordered = sorted(zip(lengths, is_cut, strict=True))
    return not any(cut for _, cut in ordered[: len(ordered) // 2 + 1])


def censored_median(estimate: Estimate, *, is_exact: bool) -> Estimate:
    """The median of lengths as written, marked as a lower bound where it is not exact; a bound has no interval."""
    if is_exact or estimate.mean is None:
        return estimate
    return estimate.model_copy(update={"low": None, "high": None, "bound": "lower", "method": MEDIAN_CUT})


def censored_median_difference(estimate: Estimate, *, is_exact: bool, is_base_exact: bool) -> Estimate:
    """The difference of two such medians: a lower bound where only the first is one, an upper bound where only the
    base's is, and unknown where both are."""
    if (is_exact and is_base_exact) or estimate.mean is None:
        return estimate
    changed = {"low": None, "high": None, "bound": "upper" if is_exact else "lower", "method": MEDIAN_CUT}
    if not is_exact and not is_base_exact:
        changed |= {"mean": None, "bound": None, "method": BOTH_CUT}
    return estimate.model_copy(update=changed)


def censored_mean(estimate: Estimate, is_cut: Sequence[bool]) -> Estimate:
    """The mean of lengths as written: a lower bound where any is cut.

    Its interval is that of the mean within the token limit (the restricted mean of survival analysis, Royston and
    Parmar 2013), which is what means of equal limits compare.
    """
    if not any(is_cut) or estimate.mean is None:
        return estimate
    return estimate.model_copy(update={"bound": "lower", "method": as_cut(estimate.method, is_cut)})


def censored_mean_difference(estimate: Estimate, is_cut: Sequence[bool], is_base_cut: Sequence[bool]) -> Estimate:
    """The difference or ratio of two such means: one-sided where one side alone is cut, and in any case exact for the
    means within the token limit."""
    if not (any(is_cut) or any(is_base_cut)) or estimate.mean is None:
        return estimate
    bound = None if any(is_cut) and any(is_base_cut) else "lower" if any(is_cut) else "upper"
    method = f"{as_cut(estimate.method, is_cut)} and {sum(is_base_cut)} of {len(is_base_cut)} of the base's"
    return estimate.model_copy(update={"bound": bound, "method": method})


def as_cut(method: str, is_cut: Sequence[bool]) -> str:
    """A method that says how many texts the token limit cut."""
    return f"{method}; within the token limit, which cut {sum(is_cut)} of {len(is_cut)} texts"
