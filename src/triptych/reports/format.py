"""How numbers are written, decided once: figures, tables and sentences all call these.

A true minus sign, no more decimals than the interval supports, and never a blank that could be read as zero.
"""

import math
import re

from triptych.records import Estimate

MINUS = "−"
NBSP = "\u00a0"
"""Keeps a number with its unit and the ends of an interval on one line."""
NO_VALUE = "no value"
MAX_DECIMALS = 4


def number(value: float, decimals: int) -> str:
    """A number with a fixed count of decimals, thousands set apart, and no negative zero."""
    text = f"{value:,.{decimals}f}"
    if float(text.replace(",", "")) == 0:
        text = text.removeprefix("-")
    return text.replace("-", MINUS)


def decimals_for(estimate: Estimate, default: int = 3) -> int:
    """Decimals that show two significant digits of the interval's half-width; `default` where there is none.

    An interval without width, such as that of a share of none, needs no more than its number has.
    """
    if estimate.low is None or estimate.high is None:
        return default
    if estimate.high == estimate.low:
        return next(n for n in range(default + 1) if n == default or round(estimate.low, n) == round(estimate.low, 9))
    half_width = (estimate.high - estimate.low) / 2
    return min(MAX_DECIMALS, max(0, 1 - math.floor(math.log10(half_width))))


BOUNDS = {"lower": f"≥{NBSP}", "upper": f"≤{NBSP}", None: ""}
"""What stands before a figure of what a limit cut."""


def value(estimate: Estimate, decimals: int | None = None) -> str:
    """The mean alone; `≥ 128` where it is a bound."""
    if estimate.mean is None:
        return NO_VALUE
    is_whole = estimate.bound is not None and estimate.low is None and estimate.mean.is_integer()
    return BOUNDS[estimate.bound] + number(estimate.mean, 0 if is_whole else _decimals(estimate, decimals))


def interval(estimate: Estimate, decimals: int | None = None) -> str:
    """`[low, high]`, or why there is none."""
    if estimate.low is None or estimate.high is None:
        return f"no interval: {why_no_interval(estimate)}"
    shown = _decimals(estimate, decimals)
    return f"[{number(estimate.low, shown)},{NBSP}{number(estimate.high, shown)}]"


def _decimals(estimate: Estimate, wanted: int | None) -> int:
    has_width = estimate.low is None or estimate.low != estimate.high
    return decimals_for(estimate) if wanted is None or not has_width else wanted


def with_interval(estimate: Estimate, decimals: int | None = None) -> str:
    """`0.612 [0.598, 0.626]`, `0.612 (no interval: one prompt)`, or `no value`."""
    if estimate.mean is None:
        return NO_VALUE
    bounds = interval(estimate, decimals)
    shown = value(estimate, decimals)
    return f"{shown} ({bounds})" if estimate.low is None else f"{shown}{NBSP}{bounds}"


def why_no_interval(estimate: Estimate) -> str:
    """The reason in words: what the record's method says, or that there is one prompt."""
    *_, reason = re.split(r"no (?:interval|estimate): ", estimate.method)  # of a difference something stands before it
    is_told = reason != estimate.method
    return "one prompt" if estimate.mean is not None and estimate.n_clusters == 1 and not is_told else reason


def counts(estimate: Estimate, unit: str = "completions") -> str:
    """`n = 252 completions of 252 prompts, 3 unscored`."""
    unscored = f", {estimate.n_unscored:,} unscored" if estimate.n_unscored else ""
    return f"n = {estimate.n:,} {unit} of {plural(estimate.n_clusters, 'prompt')}{unscored}"


def plural(count: int, noun: str) -> str:
    """`1 prompt`, `2 prompts`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def share(fraction: float) -> str:
    """A fraction as a percentage: `12.5 %`."""
    return f"{number(100 * fraction, 1)}{NBSP}%"


def with_true_minus(text: str) -> str:
    """A sentence that came with a run: its negative numbers get the minus sign that all others have."""
    return re.sub(r"(?<![\w.-])-(?=\d)", MINUS, text)


def p_value(p: float) -> str:
    """`0.012`; below a thousandth `< 0.001`: what few resamples cannot tell apart is not told apart."""
    return f"<{NBSP}0.001" if p < 0.001 else number(p, 3)


def joined(items: list[str], last: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}" if items else ""


def duration(seconds: float) -> str:
    """`0.42 s`, `12.3 s`, `4 min 05 s`, `2 h 03 min`."""
    if seconds < 60:
        return f"{seconds:.2f}{NBSP}s" if seconds < 1 else f"{seconds:.1f}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{NBSP}min {rest:02d}{NBSP}s"
    return f"{minutes // 60}{NBSP}h {minutes % 60:02d}{NBSP}min"


def size(n_bytes: float) -> str:
    """`269 MB`, `1.6 GB`: powers of ten, as drives and papers count."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.1f}{NBSP}{unit}"
    return f"{n_bytes:.0f}{NBSP}B"
