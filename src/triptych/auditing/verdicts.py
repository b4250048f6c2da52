"""Whether a figure is beyond its thresholds, within them, or whether the evidence cannot say.

    beyond a threshold   the whole 95 % interval lies beyond it, and so does the figure after correction over the card
    within               the whole interval lies on the right side of the warning threshold
    undecided            anything else: the interval spans a threshold, or there is none

One card has some 65 checks, so that a few intervals lie beyond a threshold by chance. The p-value of a check is the
one-sided level at which its interval would just touch the threshold; those of a card are adjusted by Benjamini and
Hochberg, once for the warning thresholds and once for the severe ones, and must stay at most 0.05.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from scipy.special import stdtr, stdtrit

from triptych.auditing.records import Level
from triptych.auditing.thresholds import Direction, Limits
from triptych.records import Estimate
from triptych.stats import ALL_ALIKE, benjamini_hochberg

FALSE_DISCOVERY_RATE = 0.05
TAIL = 0.025
"""Outside either end of a 95 % interval."""
MAX_FACTOR = 100
"""How many times as many prompts are worth a mention."""

Scale = Literal["linear", "log", "logit", "atanh"]


class Check(NamedTuple):
    """A figure and how it is judged."""

    estimate: Estimate
    limits: Limits
    direction: Direction
    scale: Scale = "linear"
    """On which the interval is Student's."""
    as_size: bool = False
    """Whether the sign does not matter."""
    is_bounded: bool = False
    """A change of something in 0 … 1, which prompts that are all alike bound, but do not settle."""
    is_exact: bool = False
    """Known without sampling: a property of the weights, a count, or of a checkpoint that is the base."""


class Verdict(NamedTuple):
    """The level of a check, with the one-sided p-values of its being beyond either threshold; None where exact."""

    level: Level
    reason: str = ""
    """What the level rests on, where it is not plain from the interval."""
    p_warn: float | None = None
    p_warn_adjusted: float | None = None
    p_severe: float | None = None
    p_severe_adjusted: float | None = None


def judge(checks: Sequence[Check]) -> list[Verdict]:
    """The verdicts of all checks of one card, in order.

    Source: Benjamini and Hochberg 1995. Their procedure and not Benjamini and Yekutieli's, which would cost a factor of
    4.8 at 65 checks: the checks of a card share responses, and most of their dependence is positive. In the simulation
    of `benchmarks/coverage.py` false discoveries stay below 5 % with negative dependence as well.
    """
    readings = [_read(check) for check in checks]
    tested = [i for i, reading in enumerate(readings) if reading is not None and reading.p is not None]
    p = {level: {i: _p(readings[i], _limit(checks[i], level)) for i in tested} for level in ("warn", "severe")}
    adjusted = {level: dict(zip(tested, benjamini_hochberg(list(of.values())), strict=True)) for level, of in p.items()}
    return [
        _verdict(
            check,
            reading,
            {level: p[level].get(i) for level in p},
            {level: adjusted[level].get(i) for level in p},
            len(tested),
        )
        for i, (check, reading) in enumerate(zip(checks, readings, strict=True))
    ]


# --- One check --------------------------------------------------------------------------------------------------------


class _Reading(NamedTuple):
    """A figure with its interval, on the check's scale and turned so that larger is worse."""

    value: float
    low: float
    high: float
    p: Callable[[float], float] | None
    """Threshold → one-sided p-value of a true value beyond it; None where the value is exact."""


def _read(check: Check) -> _Reading | None:
    """None where nothing was measured, or there is no interval and should be one."""
    estimate = check.estimate
    if estimate.mean is None:
        return None
    value = _turned(check, estimate.mean)
    if check.is_exact:
        return _Reading(value, value, value, None)
    if estimate.low is not None and estimate.high is not None:
        low, high = sorted((_turned(check, estimate.low), _turned(check, estimate.high)))
        return _Reading(value, low, high, lambda limit: _student_p(value, low, high, limit, estimate.n_clusters))
    if ALL_ALIKE not in estimate.method:
        return None
    if not check.is_bounded:
        return _Reading(value, value, value, None)
    unseen = 1.0 - TAIL ** (1.0 / estimate.n_clusters)
    ends = (value - (1.0 + value) * unseen, value + (1.0 - value) * unseen)
    return _Reading(value, *ends, lambda limit: _alike_p(value, limit, estimate.n_clusters))


def _turned(check: Check, value: float) -> float:
    scaled = _SCALES[check.scale](value)
    return -scaled if _is_downward(check) else scaled


def _is_downward(check: Check) -> bool:
    """Whether smaller is worse; of sizes, whether the figure lies below no difference."""
    if check.direction != "factor" and not check.as_size:
        return check.direction == "below"
    return check.estimate.mean is not None and _SCALES[check.scale](check.estimate.mean) < 0.0


def _limit(check: Check, level: Literal["warn", "severe"]) -> float:
    limit = _SCALES[check.scale](getattr(check.limits, level))
    return -limit if check.direction == "below" else limit


def _log(x: float) -> float:
    return math.log(x) if x > 0.0 else -math.inf


_SCALES: dict[Scale, Callable[[float], float]] = {
    "linear": float,
    "log": _log,
    "logit": lambda x: _log(x) - _log(1.0 - x),
    "atanh": lambda x: 0.5 * (_log(1.0 + x) - _log(1.0 - x)),
}


def _student_p(value: float, low: float, high: float, limit: float, n_clusters: int) -> float:
    """The level at which the nearer end touches the limit, where the interval's own side has the shape of Student's t.

    Exact for intervals value ± t · se; for others each side has a spread of its own, which the interval gives.
    """
    reach = value - low if value > limit else high - value
    if not math.isfinite(value) or reach <= 0.0:
        return 0.0 if low > limit else 1.0
    df = max(n_clusters - 1, 1)
    return float(stdtr(df, -float(stdtrit(df, 1.0 - TAIL)) * (value - limit) / reach))


def _alike_p(value: float, limit: float, n_clusters: int) -> float:
    """How likely all prompts are alike where the true mean is at the limit; at most, as the others would be at -1."""
    if value <= limit:
        return 1.0
    return float((1.0 - (value - limit) / (1.0 + value)) ** n_clusters)


def _p(reading: _Reading | None, limit: float) -> float:
    return 1.0 if reading is None or reading.p is None else reading.p(limit)


# --- Levels -----------------------------------------------------------------------------------------------------------


def _verdict(
    check: Check,
    reading: _Reading | None,
    p: dict[str, float | None],
    adjusted: dict[str, float | None],
    n_tests: int,
) -> Verdict:
    if reading is None:
        return Verdict("undecided")
    ps = (p["warn"], adjusted["warn"], p["severe"], adjusted["severe"])
    for level in ("severe", "warn"):
        if reading.low > _limit(check, level) and (adjusted[level] or 0.0) <= FALSE_DISCOVERY_RATE:
            return Verdict(level, _beyond_reason(p[level], adjusted[level], n_tests), *ps)
    warn = _limit(check, "warn")
    is_within = reading.high <= warn and ((check.direction != "factor" and not check.as_size) or reading.low >= -warn)
    if is_within:
        return Verdict("ok", "", *ps)
    return Verdict("undecided", _undecided_reason(check, reading, p["warn"], adjusted["warn"], n_tests), *ps)


def _beyond_reason(p: float | None, adjusted: float | None, n_tests: int) -> str:
    return "" if p is None or adjusted is None else f"p {_shown(p)}, over {n_tests} checks {_shown(adjusted)}"


def _undecided_reason(check: Check, reading: _Reading, p: float | None, adjusted: float | None, n_tests: int) -> str:
    warn = _limit(check, "warn")
    if reading.low > warn:
        return f"beyond {check.limits.warn:g} by itself ({_beyond_reason(p, adjusted, n_tests)}), not after correction"
    reach = reading.value - reading.low if reading.value > warn else reading.high - reading.value
    distance = abs(reading.value - warn)
    needed = (reach / distance) ** 2 if distance > 0.0 else math.inf
    spans = f"the interval spans the warning threshold of {check.limits.warn:g}"
    if ALL_ALIKE in check.estimate.method:
        spans = (
            f"prompts that are alike do not rule out {check.limits.warn:g} where they are {check.estimate.n_clusters}"
        )
    if not 1.0 < needed <= MAX_FACTOR:
        return spans
    return f"{spans}; about {math.ceil(needed * check.estimate.n_clusters):,} prompts would tell for such a figure"


def _shown(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"
