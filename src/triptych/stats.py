"""From scores to Estimates: intervals and tests whose unit is the prompt, not the completion.

Completions of one prompt resemble one another, so prompts are what is resampled, flipped and counted. Values that are
None or NaN are unscored: left out and counted, never zero. Statistics that are no means (`triptych.intervals`) and
pooled figures whose bootstrap is biased (`metrics.distinct_n_jackknife`) bring their own intervals.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

from triptych.records import Estimate

FloatArray = npt.NDArray[np.float64]

MIN_CLUSTERS_FOR_BOOTSTRAP = 8
"""Below, the bootstrap-t interval is several times as long as Student's for little coverage (see the docstring)."""

MAX_EXACT_CLUSTERS = 14
"""Up to so many prompts the sign-flip test goes through all 2^14 patterns."""

BLOCK_CELLS = 1 << 19
"""Resampled cells held at once: 4 MB of float64, whatever the number of prompts and resamples."""


def clustered_bootstrap(
    values: Sequence[float | None],
    clusters: Sequence[Hashable],
    *,
    seed: int,
    n_resamples: int = 2000,
    level: float = 0.95,
    is_share: bool = False,
) -> Estimate:
    """The mean of the values, with an interval that knows they come in clusters (prompts).

        r = Σ_k S_k / Σ_k m_k,     se² = K / (K - 1) · Σ_k (S_k - r·m_k)² / (Σ_k m_k)²
        [r - q(1 - α/2) · se,  r - q(α/2) · se],   q: quantiles of (r* - r) / se* over resamples of whole clusters

    S_k sum and m_k number of the scored values of cluster k, K clusters. Unit: that of the values. `clusters[i]` says
    which prompt value i belongs to. Which interval is used stands in `method`:

    * shares (`is_share`) that are all 0 or 1, a proportion: Wilson's score interval on the effective sample size
      p(1 - p) / se², times (z / t(K - 1))²; where all values are equal the effective size is the number of clusters. It
      stays within [0, 1] and is never of width 0. Other shares take one of the intervals below, cut to [0, 1].
    * fewer than 8 clusters, or so few that differ that a quantile is infinite: r ± t(K - 1) · se.
    * otherwise the bootstrap-t.
    * one cluster, or all clusters alike: no interval, and `method` says so.

    Why the bootstrap-t: in 1000 simulations of skewed clustered values (log-normal effects, unequal sizes) at 10, 20,
    40 and 60 clusters it covered 92, 92, 94 and 93 %, BCa 84, 87, 91 and 91 %, the percentile interval 82, 85, 91 and
    90 %, Student's t 86, 86, 91 and 90 %; for normal values all but the percentile and BCa intervals reach 95 %.
    For proportions it is erratic (resamples without an event have no spread) and leaves [0, 1].

    Source: Cochran 1977, ch. 6 (the ratio estimator); Efron and Tibshirani 1993, § 12.5 (bootstrap-t), § 8.4 (whole
    clusters); Korn and Graubard 1998 (effective sample size). Departure: Wilson's interval where Korn and Graubard put
    Clopper and Pearson's, which over-covers.
    """
    sums = _cluster_sums(values, clusters)
    if is_share and not sums.is_within_unit:
        raise ValueError("shares must lie in 0 … 1")
    estimate = _estimate(sums, seed, n_resamples, level, is_proportion=is_share and sums.is_binary)
    if not is_share or estimate.low is None or estimate.high is None:
        return estimate
    return estimate.model_copy(update={"low": max(0.0, estimate.low), "high": min(1.0, estimate.high)})


def paired_difference(
    a: Sequence[float | None],
    b: Sequence[float | None],
    clusters: Sequence[Hashable],
    *,
    seed: int,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """The mean of a_i - b_i over pairs of the same prompt, with the interval of `clustered_bootstrap`.

    Neither end is nearer than Student's t has it: differences have long tails on both sides, on which the bootstrap-t
    alone covers 90 to 93 %.

    A pair with an unscored side is unscored. A difference is never treated as a proportion. Unit: that of the values.
    """
    if len(a) != len(b):
        raise ValueError(f"a and b must pair up: {len(a)} values against {len(b)}")
    sums = _cluster_sums(as_array(a) - as_array(b), clusters)
    estimate = _estimate(sums, seed, n_resamples, level, is_proportion=False, is_paired=True)
    return estimate.model_copy(update={"method": f"paired difference, {estimate.method}"})


def share_difference(
    a: Sequence[float | None], b: Sequence[float | None], clusters: Sequence[Hashable], *, level: float = 0.95
) -> Estimate:
    """The mean of a_i - b_i over pairs of 0s and 1s (a change of a share), which few events do not shorten.

        one prompt that got better by 1 and one that got worse by 1 are added to the K cluster means d_k:
        d̃ = Σ d_k / (K + 2),   se² = ((Σ d_k² + 2) / (K + 2) - d̃²) / (K + 2),   [d̃ ± z · se], cut to [-1, 1]

    The mean itself has nothing added. A pair with an unscored side is unscored. Where all prompts are alike there is no
    interval. The bootstrap-t is erratic here, as resamples without an event have no spread.

    Source: Bonett and Price 2012. Departure: clusters weigh alike, by their means (with one pair a prompt: theirs).
    """
    if len(a) != len(b):
        raise ValueError(f"a and b must pair up: {len(a)} values against {len(b)}")
    sums = _cluster_sums(as_array(a) - as_array(b), clusters)
    counts = {"n": int(sums.counts.sum()), "n_clusters": len(sums.sums), "n_unscored": sums.n_unscored}
    n_clusters = len(sums.sums)
    if n_clusters < 2 or sums.standard_error == 0.0:
        why = (NOTHING_SCORED, ONE_CLUSTER)[n_clusters] if n_clusters < 2 else _ALL_ALIKE
        mean = sums.ratio if n_clusters else None
        return Estimate(mean=mean, low=None, high=None, method=f"paired difference, {why}", **counts)
    means = sums.sums / sums.counts
    centre = float(means.sum()) / (n_clusters + 2)
    error = math.sqrt(((float(np.square(means).sum()) + 2) / (n_clusters + 2) - centre**2) / (n_clusters + 2))
    half = float(ndtri(0.5 + level / 2)) * error
    low, high = max(-1.0, min(sums.ratio, centre - half)), min(1.0, max(sums.ratio, centre + half))
    method = f"paired difference of shares, {100 * level:g}% Bonett and Price"
    return Estimate(mean=sums.ratio, low=low, high=high, method=method, **counts)


def exponential(estimate: Estimate) -> Estimate:
    """e to the mean and to both ends: of log-perplexities, the interval of a perplexity."""
    ends = {
        name: None if value is None else math.exp(value) for name, value in estimate if name in ("mean", "low", "high")
    }
    return estimate.model_copy(update={**ends, "method": f"{estimate.method}, of logarithms"})


def bare(value: float | None, n: int, why: str) -> Estimate:
    """A figure that has no interval, and why."""
    method = f"no interval: {why}" if value is not None else NOTHING_SCORED
    return Estimate(mean=value, low=None, high=None, n=n, n_clusters=n, method=method)


def sign_flip_test(
    differences: Sequence[float | None], clusters: Sequence[Hashable], *, seed: int, n_flips: int = 9999
) -> float:
    """Two-sided p-value of the hypothesis that each prompt's difference is as likely to have either sign.

        p = share of sign patterns ε with |Σ_k ε_k S_k| ≥ |Σ_k S_k|

    All 2^K patterns for up to 14 prompts with a non-zero sum S_k, else (1 + hits) / (1 + n_flips) over random ones, so
    that p is never 0. No difference at all, or none scored, gives 1: nothing speaks against the hypothesis.

    Source: Fisher 1935, § 21, with prompts for pairs; the added one: Phipson and Smyth 2010.
    """
    if n_flips < 1:
        raise ValueError(f"n_flips must be at least 1, got {n_flips}")
    sums = _cluster_sums(differences, clusters).sums
    sums = sums[sums != 0.0]
    # Patterns that tie with the observed one in exact arithmetic must not be lost to rounding.
    threshold = abs(float(sums.sum())) - 1e-12 * float(np.abs(sums).sum())
    if len(sums) <= MAX_EXACT_CLUSTERS:
        return float(np.mean(np.abs(_all_signs(len(sums)) @ sums) >= threshold))
    rng = generator(seed)
    hits = 0
    for rows in blocks(n_flips, len(sums)):
        signs = rng.integers(0, 2, size=(rows, len(sums)), dtype=np.int8) * 2.0 - 1.0
        hits += int(np.count_nonzero(np.abs(signs @ sums) >= threshold))
    return (1 + hits) / (1 + n_flips)


def holm(pvalues: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: reject where they are at most α to keep the family's error at α.

        p̃_(i) = max_{j ≤ i} min(1, (m - j + 1) · p_(j)),   p_(1) ≤ … ≤ p_(m)

    Source: Holm 1979; needs no independence.
    """
    p = np.asarray(pvalues, dtype=np.float64)
    if not np.all((p >= 0.0) & (p <= 1.0)):
        raise ValueError(f"p-values must lie in 0 … 1, got {list(pvalues)}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in adjusted]


def benjamini_hochberg(pvalues: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: reject where they are at most q for a false discovery rate of at most q.

        p̃_(i) = min_{j ≥ i} min(1, m / j · p_(j)),   p_(1) ≤ … ≤ p_(m)

    Source: Benjamini and Hochberg 1995; for independent tests, and positively dependent ones (Benjamini and Yekutieli
    2001).
    """
    p = np.asarray(pvalues, dtype=np.float64)
    if not np.all((p >= 0.0) & (p <= 1.0)):
        raise ValueError(f"p-values must lie in 0 … 1, got {list(pvalues)}")
    order = np.argsort(p, kind="stable")
    stepped = np.minimum.accumulate((p[order] * len(p) / np.arange(1, len(p) + 1))[::-1])[::-1]
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in adjusted]


def jackknife_estimate(
    value: float, low: float | None, high: float | None, n_groups: int, *, n: int | None = None, n_unscored: int = 0
) -> Estimate:
    """An Estimate of a figure that brings its own delete-a-group jackknife interval (95 %).

    `n` counts the observations behind it; None where each group is one. NaN stands for a figure that has nothing to
    count.
    """
    if math.isnan(value):
        mean, method = None, NOTHING_SCORED
    else:
        mean, method = value, "95% delete-a-group jackknife" if low is not None else ONE_CLUSTER
    return Estimate(
        mean=mean,
        low=low,
        high=high,
        n=n_groups if n is None else n,
        n_clusters=n_groups,
        n_unscored=n_unscored,
        method=method,
    )


def jackknife_error(without_each: FloatArray) -> float:
    """The standard error of a figure, given the same figure without each prompt (Tukey 1958)."""
    n = len(without_each)
    return math.sqrt((n - 1) / n * float(np.square(without_each - without_each.mean()).sum()))


def delete_one(value: float, without_each: FloatArray, *, n: int) -> Estimate:
    """A pooled figure, or a difference of two, ± t(prompts - 1) times its jackknife error; n counts observations."""
    n_prompts = len(without_each)
    if math.isnan(value) or n_prompts < 2 or np.isnan(without_each).any():
        mean, method = (None, NOTHING_SCORED) if math.isnan(value) else (value, ONE_CLUSTER)
        return Estimate(mean=mean, low=None, high=None, n=n, n_clusters=n_prompts, method=method)
    error = jackknife_error(without_each)
    if error <= 1e-12 * max(1.0, abs(value)):
        return Estimate(mean=value, low=None, high=None, n=n, n_clusters=n_prompts, method=_ALL_ALIKE)
    half = _student_quantile(n_prompts, 0.95) * error
    method = "95% delete-a-prompt jackknife"
    return Estimate(mean=value, low=value - half, high=value + half, n=n, n_clusters=n_prompts, method=method)


NOTHING_SCORED = "no estimate: nothing was scored"
ONE_CLUSTER = "no interval: one prompt"
ALL_ALIKE = "all prompts alike"
"""Why there is no interval where no prompt differs from another."""
_ALL_ALIKE = f"no interval: {ALL_ALIKE}"


class _ClusterSums(NamedTuple):
    """The scored values, cluster by cluster."""

    sums: FloatArray
    """[clusters]"""
    counts: FloatArray
    """[clusters], at least 1 each."""
    n_unscored: int
    is_binary: bool
    """Every scored value is 0 or 1."""
    is_within_unit: bool
    """Every scored value lies in 0 … 1."""

    @property
    def ratio(self) -> float:
        return float(self.sums.sum() / self.counts.sum())

    @property
    def standard_error(self) -> float:
        """Of the ratio of sums, linearised; 0 where all cluster means agree but for rounding."""
        n_clusters, residuals = len(self.sums), self.sums - self.ratio * self.counts
        if np.all(np.abs(residuals) <= 1e-12 * np.abs(self.sums)):
            return 0.0
        squares = float(np.square(residuals).sum())
        return math.sqrt(n_clusters / (n_clusters - 1) * squares) / float(self.counts.sum())


class _Interval(NamedTuple):
    low: float | None
    high: float | None
    method: str


def _estimate(
    clusters: _ClusterSums,
    seed: int,
    n_resamples: int,
    level: float,
    *,
    is_proportion: bool,
    is_paired: bool = False,
) -> Estimate:
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}")
    scored = len(clusters.sums) > 0
    low, high, method = _interval(clusters, seed, n_resamples, level, is_proportion, is_paired)
    return Estimate(
        mean=clusters.ratio if scored else None,
        low=low,
        high=high,
        n=int(clusters.counts.sum()),
        n_clusters=len(clusters.sums),
        n_unscored=clusters.n_unscored,
        method=method,
    )


def _interval(
    clusters: _ClusterSums, seed: int, n_resamples: int, level: float, is_proportion: bool, is_paired: bool
) -> _Interval:
    n_clusters = len(clusters.sums)
    if n_clusters == 0:
        return _Interval(None, None, NOTHING_SCORED)
    if n_clusters == 1:
        return _Interval(None, None, ONE_CLUSTER)
    if is_proportion:
        return _wilson(clusters, level)
    if clusters.standard_error == 0.0:
        return _Interval(None, None, _ALL_ALIKE)
    if n_clusters < MIN_CLUSTERS_FOR_BOOTSTRAP:
        return _student(clusters, level, f"fewer than {MIN_CLUSTERS_FOR_BOOTSTRAP} prompts")
    least = _student_quantile(n_clusters, level) if is_paired else 0.0
    return _bootstrap_t(clusters, seed, n_resamples, level, least)


def _wilson(clusters: _ClusterSums, level: float) -> _Interval:
    p, z = clusters.ratio, float(ndtri(0.5 + level / 2))
    n = _effective_size(clusters) * (z / _student_quantile(len(clusters.sums), level)) ** 2
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)
    # The clamps undo rounding at p = 0 and p = 1, where an end is p itself.
    low, high = min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))
    return _Interval(low, high, f"{100 * level:g}% Wilson, effective sample size of clusters")


def _effective_size(clusters: _ClusterSums) -> float:
    """How many independent 0/1 draws would know the proportion as well; at most the number of observations."""
    p, error = clusters.ratio, clusters.standard_error
    if p in (0.0, 1.0):
        return float(len(clusters.sums))
    n = float(clusters.counts.sum())
    return n if error == 0.0 else min(n, p * (1 - p) / error**2)


def _student(clusters: _ClusterSums, level: float, reason: str) -> _Interval:
    half = _student_quantile(len(clusters.sums), level) * clusters.standard_error
    method = f"{100 * level:g}% cluster-robust Student's t ({reason})"
    return _Interval(clusters.ratio - half, clusters.ratio + half, method)


def _student_quantile(n_clusters: int, level: float) -> float:
    return float(stdtrit(n_clusters - 1, 0.5 + level / 2))


def _bootstrap_t(clusters: _ClusterSums, seed: int, n_resamples: int, level: float, least: float) -> _Interval:
    """Both quantiles are at least `least` from 0."""
    studentised = _studentised_resamples(clusters, seed, n_resamples)
    tails = [0.5 - level / 2, 0.5 + level / 2]
    # An order statistic, not a blend of two: resamples of no spread are infinite.
    below, above = (float(q) for q in np.quantile(studentised, tails, method="inverted_cdf"))
    if not (math.isfinite(below) and math.isfinite(above)):
        return _student(clusters, level, "too few prompts differ for the bootstrap")
    centre, error = clusters.ratio, clusters.standard_error
    # Both ends belong to the interval's own side of the mean, whatever a very lopsided sample does.
    low, high = centre - max(above, least) * error, centre - min(below, -least) * error
    return _Interval(low, high, f"{100 * level:g}% cluster bootstrap-t, {n_resamples} resamples")


def _studentised_resamples(clusters: _ClusterSums, seed: int, n_resamples: int) -> FloatArray:
    """(r* - r) / se* for every resample of whole clusters; infinite where a resample has no spread."""
    sums, counts, n_clusters = clusters.sums, clusters.counts, len(clusters.sums)
    # The mean is taken out first, so that the expanded square below does not cancel; then r* - r is r* itself.
    sums = sums - clusters.ratio * counts
    columns = np.stack([sums, counts, sums * sums, sums * counts, counts * counts], axis=1)
    rng = generator(seed)
    parts = [_resample_weights(rng, rows, n_clusters) @ columns for rows in blocks(n_resamples, n_clusters)]
    s, m, ss, sm, mm = np.concatenate(parts).T
    deviation = s / m
    # Σ w (S - r* m)², expanded so that five sums are enough for any r*.
    squares = ss - 2.0 * deviation * sm + deviation**2 * mm
    has_spread = squares > 1e-12 * ss
    error = np.sqrt(n_clusters / (n_clusters - 1) * np.where(has_spread, squares, 1.0)) / m
    infinite = np.where(deviation == 0.0, 0.0, np.copysign(np.inf, deviation))
    return np.where(has_spread, deviation / error, infinite).astype(np.float64, copy=False)


def _resample_weights(rng: np.random.Generator, rows: int, n_clusters: int) -> FloatArray:
    """[rows, clusters]: how often each cluster is among n_clusters draws with replacement."""
    draws = rng.integers(0, n_clusters, size=(rows, n_clusters), dtype=np.int32)
    cells = draws + np.arange(rows, dtype=np.int64)[:, None] * n_clusters
    counted = np.bincount(cells.ravel(), minlength=rows * n_clusters)
    return counted.reshape(rows, n_clusters).astype(np.float64)


def _all_signs(n: int) -> FloatArray:
    """[2^n, n]: every pattern of signs."""
    bits = np.arange(1 << n)[:, None] >> np.arange(n)[None, :]
    return (2 * (bits & 1) - 1).astype(np.float64)


def blocks(rows: int, columns: int) -> Iterator[int]:
    """Row counts that add up to `rows`, each with at most BLOCK_CELLS cells."""
    size = max(1, BLOCK_CELLS // max(1, columns))
    for start in range(0, rows, size):
        yield min(size, rows - start)


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def as_array(values: Sequence[float | None] | FloatArray) -> FloatArray:
    """Float64, None as NaN."""
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _cluster_sums(values: Sequence[float | None] | FloatArray, clusters: Sequence[Hashable]) -> _ClusterSums:
    if len(values) != len(clusters):
        raise ValueError(f"clusters must name one prompt a value: {len(values)} values, {len(clusters)} clusters")
    array = as_array(values)
    scored = ~np.isnan(array)
    if not np.all(np.isfinite(array[scored])):
        raise ValueError("values must be finite or unscored (None, NaN), got an infinite one")
    number_of: dict[Hashable, int] = {}
    numbers = [number_of.setdefault(name, len(number_of)) for name, keep in zip(clusters, scored, strict=True) if keep]
    index, kept = np.array(numbers, dtype=np.int64), array[scored]
    return _ClusterSums(
        sums=np.bincount(index, weights=kept, minlength=len(number_of)).astype(np.float64),
        counts=np.bincount(index, minlength=len(number_of)).astype(np.float64),
        n_unscored=int(np.count_nonzero(~scored)),
        is_binary=bool(np.isin(kept, (0.0, 1.0)).all()),
        is_within_unit=bool(((kept >= 0.0) & (kept <= 1.0)).all()),
    )
