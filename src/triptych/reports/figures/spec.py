"""What a figure is to the report, and the sentences that all captions share."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from triptych.records import Estimate
from triptych.reports.arms import Arm, at_temperature, name_arms
from triptych.reports.format import NBSP, joined, plural, with_interval
from triptych.reports.inputs import Decoding, FloatArray

BOX_KEY = (
    "Box: quartiles; dark line: median; diamond: mean; whiskers reach to the last value within 1.5 interquartile "
    "ranges."
)

MAX_LISTED = 3
"""Arms that a caption names one by one."""


class FigureSpec(NamedTuple):
    """One figure: functions of the run alone, so that the same run gives the same figure."""

    name: str
    """Stem of its files, such as `figure_04`."""
    title: str
    absent: Callable[[Decoding], str | None]
    """Why this run has no such figure; None where it has."""
    draw: Callable[[Decoding], Figure]
    caption: Callable[[Decoding], str]
    """What is shown: n, units, and what the interval is."""
    alt: Callable[[Decoding], str]
    """The figure in words, with its numbers, for those who do not see it."""


def arms_of(run: Decoding, *strategies: str) -> list[Arm]:
    """The run's arms of some strategies, in order."""
    return [arm for arm in run.arms if arm.strategy in strategies]


def sweeps(run: Decoding) -> list[Arm]:
    """The paper's temperature sweeps, top-k and top-p; where the run has neither, every arm with a temperature."""
    with_temperature = [arm for arm in run.arms if arm.temperature is not None]
    return [arm for arm in with_temperature if arm.strategy in ("top_k", "top_p")] or with_temperature


def having(arms: Iterable[Arm], values: Callable[[Arm], FloatArray]) -> dict[Arm, FloatArray]:
    """The finite values of each arm; arms without any are left out."""
    finite = {arm: values(arm)[np.isfinite(values(arm))] for arm in arms}
    return {arm: kept for arm, kept in finite.items() if len(kept)}


def spoken(points: Sequence[tuple[float, Estimate]]) -> str:
    """A temperature sweep in words, for alt texts."""
    return "; ".join(f"{at_temperature(temperature)}: {with_interval(estimate)}" for temperature, estimate in points)


def no_arm(run: Decoding, *strategies: str) -> str | None:
    """Why there is nothing to draw, where the run has none of the strategies."""
    names = joined([strategy.replace("_", "-") for strategy in strategies], last="or")
    return None if arms_of(run, *strategies) else f"this run has no {names} arm"


def interval_sentence(estimates: Iterable[Estimate | None]) -> str:
    """What the error bars are, or why there are none."""
    given = [estimate for estimate in estimates if estimate is not None]
    methods = sorted({estimate.method.removeprefix("95% ") for estimate in given if estimate.low is not None})
    if methods:
        return f"Error bars: 95{NBSP}% intervals, clustered by prompt ({'; '.join(methods)})."
    if any(estimate.n_clusters == 1 for estimate in given):
        return "No error bars: one prompt gives no interval."
    return "No error bars: this run gives no interval."


def points_sentence(estimates: Iterable[Estimate | None]) -> str:
    """`n = 240 to 252 prompts a point.`"""
    sizes = sorted(
        {estimate.n_clusters for estimate in estimates if estimate is not None and estimate.mean is not None}
    )
    if not sizes:
        return ""
    span = plural(sizes[0], "prompt") if len(sizes) == 1 else f"{sizes[0]:,} to {plural(sizes[-1], 'prompt')}"
    return f"n = {span} a point."


def count_sentence(run: Decoding, arms: Sequence[Arm]) -> str:
    """`n = 252 completions of 252 prompts an arm.`; arms that differ are counted group by group."""
    names = name_arms(run.arms)
    groups: dict[tuple[int, int], list[str]] = {}
    for arm in arms:
        groups.setdefault((len(run.rows[arm].prompt_ids), run.rows[arm].n_prompts), []).append(names[arm])
    if len(groups) == 1:
        return f"n = {_completions(*next(iter(groups)))}{'' if len(arms) == 1 else ' an arm'}."
    by_size = sorted(groups.items(), key=lambda group: len(group[1]))  # the unnamed others come last
    parts = [f"{_completions(*size)} ({_members(members)})" for size, members in by_size]
    return f"n = {'; '.join(parts)}."


def _completions(n: int, n_prompts: int) -> str:
    return f"{plural(n, 'completion')} of {plural(n_prompts, 'prompt')}"


def _members(names: list[str]) -> str:
    return joined(names) if len(names) <= MAX_LISTED else f"each of {len(names)} other arms"
