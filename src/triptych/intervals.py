"""Intervals of statistics that are no means: spreads, ratios, medians, rank correlations; one row a prompt.

Each kind of statistic has the simplest interval that covers 93 to 97 % at 20 to 60 prompts: `benchmarks/coverage.py`
simulates it, and docs/explanation/intervals.md has the table. None and NaN are unscored.
"""

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import scipy.stats
from scipy.special import bdtr, ndtri, stdtrit

from triptych.records import Estimate
from triptych.stats import (
    ALL_ALIKE,
    NOTHING_SCORED,
    ONE_CLUSTER,
    FloatArray,
    as_array,
    blocks,
    generator,
    jackknife_error,
)

Column = Sequence[float | None]
TOO_FEW = "no interval: too few prompts have a value"


def jackknife_statistic(
    statistic: Callable[..., FloatArray], columns: Sequence[Column], *, is_ratio: bool = False, level: float = 0.95
) -> Estimate:
    """A smooth statistic of the rows (a spread, a ratio of means, a change in standard deviations): t · se about it.

        se² = (K - 1) / K · Σ_k (θ_(k) - θ_(·))²,   [θ ± t(K - 1) · se],   of log θ for a ratio or a spread

    `statistic(*columns, axis)` reduces arrays [..., prompts] along `axis`; it sees None as NaN. θ_(k) leaves out row k.
    A ratio that is 0 without some row keeps the linear scale, cut at 0. n counts the rows without a missing value.

    Source: Tukey 1958; Efron and Tibshirani 1993, ch. 11. It covers more than BCa and the bootstrap-t do at 20 to 60
    prompts; of the spread of uncapped log-normal values no method covers 93 % there.
    """
    data = np.stack([as_array(column) for column in columns])
    n_rows = data.shape[1]
    n = int(np.count_nonzero(~np.isnan(data).any(axis=0)))
    data = data[:, ~np.isnan(data).all(axis=0)]
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        # Of a column without a value, and of too few rows: told below.
        warnings.simplefilter("ignore")
        value = float(statistic(*data, axis=-1)) if data.shape[1] else math.nan
        without_each = _without_each(statistic, data)
    counts = {"n": n, "n_clusters": n, "n_unscored": n_rows - n}
    if not math.isfinite(value):
        return Estimate(mean=None, low=None, high=None, method=NOTHING_SCORED, **counts)
    why_not = _why_no_interval(value, without_each)
    if why_not is not None:
        return Estimate(mean=value, low=None, high=None, method=why_not, **counts)
    is_log = is_ratio and value > 0.0 and bool((without_each > 0.0).all())
    half = _student_quantile(len(without_each), level) * jackknife_error(
        np.log(without_each) if is_log else without_each
    )
    low, high = (value * math.exp(-half), value * math.exp(half)) if is_log else (value - half, value + half)
    method = f"{100 * level:g}% delete-a-prompt jackknife{', of logarithms' if is_log else ''}"
    return Estimate(mean=value, low=max(low, 0.0) if is_ratio else low, high=high, method=method, **counts)


def _without_each(statistic: Callable[..., FloatArray], data: FloatArray) -> FloatArray:
    """[rows]: the statistic without each row."""
    n = data.shape[1]
    parts, start = [np.empty(0)], 0
    for size in blocks(n, n):
        left_out = np.arange(start, start + size)[:, None]
        kept = np.arange(n - 1)[None, :]
        parts.append(statistic(*data[:, kept + (kept >= left_out)], axis=-1))
        start += size
    return np.concatenate(parts)


def _why_no_interval(value: float, without_each: FloatArray) -> str | None:
    if len(without_each) < 2:
        return ONE_CLUSTER
    if not np.isfinite(without_each).all():
        return TOO_FEW
    if np.ptp(without_each) <= 1e-12 * max(abs(value), float(np.abs(without_each).max())):
        return f"no interval: {ALL_ALIKE}"
    return None


def median(column: Column, *, level: float = 0.95) -> Estimate:
    """The median, between order statistics: it minds neither skew nor values that are tied or cut at a limit.

        γ_d = P(d ≤ B ≤ K - d),   B ~ Binomial(K, ½),   d the largest with γ_d ≥ level
        I = (γ_d - level) / (γ_d - γ_{d+1}),   λ = (K - d) I / (d + (K - 2d) I)
        low = (1 - λ) x_(d) + λ x_(d+1), and high likewise from above

    Fewer than 6 prompts have none. The interval of heavily tied values may have width 0.

    Source: Hettmansperger and Sheather 1986; Nyblom 1992.
    """
    array = as_array(column)
    x = np.sort(array[~np.isnan(array)])
    n = len(x)
    counts = {"n": n, "n_clusters": n, "n_unscored": len(array) - n}
    if n == 0:
        return Estimate(mean=None, low=None, high=None, method=NOTHING_SCORED, **counts)
    value = float(np.median(x))
    if n == 1 or x[0] == x[-1] or n < _fewest(level):
        why = ONE_CLUSTER if n == 1 else f"no interval: {ALL_ALIKE}" if x[0] == x[-1] else TOO_FEW
        return Estimate(mean=value, low=None, high=None, method=why, **counts)
    coverage = 1.0 - 2.0 * bdtr(np.arange(n // 2 + 1) - 1.0, n, 0.5)
    coverage[0] = 1.0
    d = int(np.flatnonzero(coverage >= level)[-1])
    share = (coverage[d] - level) / (coverage[d] - (coverage[d + 1] if d + 1 < len(coverage) else 0.0))
    weight = (n - d) * share / (d + (n - 2 * d) * share)
    low = (1.0 - weight) * x[d - 1] + weight * x[d]
    high = (1.0 - weight) * x[n - d] + weight * x[n - d - 1]
    method = f"{100 * level:g}% order statistics, interpolated"
    return Estimate(mean=value, low=min(float(low), value), high=max(float(high), value), method=method, **counts)


def _fewest(level: float) -> int:
    """Prompts whose smallest and largest value hold the median between them at the level."""
    return math.ceil(1.0 - math.log2(1.0 - level))


def median_difference(a: Column, b: Column, *, seed: int, n_resamples: int = 2000, level: float = 0.95) -> Estimate:
    """The difference of two medians over the same prompts, between percentiles of resamples of whole prompts.

    It covers 97 to 98 % (more where values are heavily tied): the median of a resample is one of few values, on which
    BCa and studentised intervals founder. Source: Efron 1982, ch. 10; Wilcox 2022, § 5.9.
    """
    data = np.stack([as_array(a), as_array(b)])
    n = int(np.count_nonzero(~np.isnan(data).any(axis=0)))
    counts = {"n": n, "n_clusters": n, "n_unscored": data.shape[1] - n}
    if np.isnan(data).all(axis=1).any():
        return Estimate(mean=None, low=None, high=None, method=NOTHING_SCORED, **counts)
    data = data[:, ~np.isnan(data).all(axis=0)]
    value = float(np.nanmedian(data[0]) - np.nanmedian(data[1]))
    n_rows = data.shape[1]
    if n_rows == 1:
        return Estimate(mean=value, low=None, high=None, method=ONE_CLUSTER, **counts)
    rng = generator(seed)
    parts = []
    with warnings.catch_warnings():
        # Of resamples without a value: left out.
        warnings.simplefilter("ignore")
        for size in blocks(n_resamples, n_rows):
            x, y = data[:, rng.integers(0, n_rows, size=(size, n_rows))]
            parts.append(np.nanmedian(x, axis=-1) - np.nanmedian(y, axis=-1))
    resampled = np.concatenate(parts)
    low, high = (float(end) for end in np.nanquantile(resampled, [0.5 - level / 2, 0.5 + level / 2]))
    if np.nanmin(resampled) == np.nanmax(resampled):
        return Estimate(mean=value, low=None, high=None, method=f"no interval: {ALL_ALIKE}", **counts)
    method = f"{100 * level:g}% percentile bootstrap over prompts, {n_resamples} resamples"
    return Estimate(mean=value, low=min(low, value), high=max(high, value), method=method, **counts)


def rank_correlation(x: Column, y: Column, *, level: float = 0.95) -> Estimate:
    """Spearman's ρ (mid-ranks for ties), with Fisher's z and the standard error of Bonett and Wright.

        tanh(artanh ρ ± z · √((1 + ρ²/2) / (K - 3)))

    No value with fewer than 3 prompts that have both, or where a side is constant; no interval below 5.

    Source: Bonett and Wright 2000.
    """
    data = np.stack([as_array(x), as_array(y)])
    known = data[:, ~np.isnan(data).any(axis=0)]
    n = known.shape[1]
    counts = {"n": n, "n_clusters": n, "n_unscored": data.shape[1] - n}
    if n < 3 or np.any(np.ptp(known, axis=1) == 0.0):
        why = "fewer than 3 prompts with both" if n < 3 else "one of the two is the same everywhere"
        return Estimate(mean=None, low=None, high=None, method=f"no estimate: {why}", **counts)
    rho = float(np.corrcoef(scipy.stats.rankdata(known, axis=1))[0, 1])
    if n < 5:
        return Estimate(mean=float(np.clip(rho, -1.0, 1.0)), low=None, high=None, method=TOO_FEW, **counts)
    # Fisher's z of ranks that agree in full is infinite: their interval is that of one exchange of neighbours.
    one_exchange = 1.0 - 12.0 / (n * (n**2 - 1.0))
    is_full, rho = abs(rho) >= 1.0 - 1e-12, float(np.clip(rho, -one_exchange, one_exchange))
    half = float(ndtri(0.5 + level / 2)) * math.sqrt((1.0 + rho**2 / 2.0) / (n - 3))
    low, high = math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)
    method = f"{100 * level:g}% Fisher's z, Bonett and Wright's standard error"
    if is_full:
        low, rho, high = (low, 1.0, 1.0) if rho > 0.0 else (-1.0, -1.0, high)
    return Estimate(mean=rho, low=low, high=high, method=method, **counts)


def _student_quantile(n: int, level: float) -> float:
    return float(stdtrit(n - 1, 0.5 + level / 2))
