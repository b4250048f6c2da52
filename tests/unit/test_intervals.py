"""Intervals of statistics that are no means: by hand, and against simulated populations that BCa does not cover."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
from benchmarks.coverage import CELLS, FloatArray, Pair, cover

from triptych.intervals import jackknife_statistic, median, median_difference, rank_correlation
from triptych.records import Estimate


def bounds(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


class TestJackknife:
    def test_of_a_mean_it_is_student_s_t(self) -> None:
        values = [1.0, 4.0, 2.0, 8.0, 5.0]
        found = jackknife_statistic(np.mean, [values])
        expected = scipy.stats.t.interval(0.95, 4, 4.0, scipy.stats.sem(values))
        assert found.mean == 4.0
        assert bounds(found) == pytest.approx(expected)

    def test_of_a_ratio_it_is_of_logarithms(self) -> None:
        def ratio(a: FloatArray, b: FloatArray, axis: int) -> FloatArray:
            return np.asarray(a.mean(axis) / b.mean(axis))

        a, b = [2.0, 3.0, 7.0], [1.0, 2.0, 3.0]
        found = jackknife_statistic(ratio, [a, b], is_ratio=True)
        logs = np.log([10 / 5, 9 / 4, 5 / 3])
        half = 4.302653 * math.sqrt(2 / 3 * np.square(logs - logs.mean()).sum())
        assert found.mean == 2.0
        assert bounds(found) == pytest.approx((2 * math.exp(-half), 2 * math.exp(half)), rel=1e-6)

    def test_a_ratio_that_a_row_holds_up_reaches_0(self) -> None:
        def ratio(a: FloatArray, b: FloatArray, axis: int) -> FloatArray:
            return np.asarray(a.mean(axis) / b.mean(axis))

        assert bounds(jackknife_statistic(ratio, [[0, 0, 5, 0], [1, 2, 3, 4]], is_ratio=True))[0] == 0.0
        silent = jackknife_statistic(ratio, [[0, 0, 0], [1, 2, 3]], is_ratio=True)
        assert (silent.mean, silent.method) == (0.0, "no interval: all prompts alike")

    def test_columns_go_together_and_alike_is_no_interval(self) -> None:
        a = [1.0, 5.0, 2.0, 8.0, 3.0]
        found = jackknife_statistic(lambda x, y, axis: np.asarray(y.mean(axis) - x.mean(axis)), [a, [v + 1 for v in a]])
        assert (found.mean, found.low, found.method) == (1.0, None, "no interval: all prompts alike")

    def test_one_row_few_rows_and_nothing(self) -> None:
        assert jackknife_statistic(np.mean, [[3.0]]).method == "no interval: one prompt"
        spread = jackknife_statistic(lambda x, axis: np.asarray(np.nanstd(x, axis=axis, ddof=1)), [[3.0, 4.0]])
        assert spread.method == "no interval: too few prompts have a value"
        none = jackknife_statistic(np.nanmean, [[None, None]])
        assert (none.mean, none.n, none.n_unscored) == (None, 0, 2)


class TestMedian:
    def test_six_are_spanned_by_the_smallest_and_the_largest(self) -> None:
        # P(1 ≤ B ≤ 5) = 1 - 2/64 = 0.96875, P(2 ≤ B ≤ 4) = 50/64: I = 0.01875 / 0.1875 = 0.1, λ = 0.5 / (1 + 0.4).
        found = median([6.0, 1.0, 2.0, 3.0, 4.0, 5.0])
        weight = 0.5 / 1.4
        assert found.mean == 3.5
        assert bounds(found) == pytest.approx((1 + weight, 6 - weight))

    def test_fewer_have_none(self) -> None:
        assert median([1.0, 2.0, 3.0, 4.0, 5.0]).method == "no interval: too few prompts have a value"
        assert median([3.0]).method == "no interval: one prompt"
        assert median([3.0] * 9).method == "no interval: all prompts alike"
        assert median([None]).mean is None

    def test_a_difference_from_itself_is_nothing(self) -> None:
        values = [1.0, 5.0, 2.0, 8.0, 3.0, 9.0]
        found = median_difference(values, values, seed=0)
        assert (found.mean, found.low, found.method) == (0.0, None, "no interval: all prompts alike")
        assert median_difference([1.0], [2.0], seed=0).method == "no interval: one prompt"
        assert median_difference([None, None], [1.0, 2.0], seed=0).mean is None


class TestRankCorrelation:
    def test_by_hand(self) -> None:
        # Ranks 1 … 5 against 2, 1, 4, 3, 5: Σd² = 4, ρ = 1 - 24/120 = 0.8; half √(1.32 / 2)·z.
        found = rank_correlation([1, 2, 3, 4, 5], [20, 10, 40, 30, 50])
        half = 1.959964 * math.sqrt(0.66)
        assert found.mean == pytest.approx(0.8)
        assert bounds(found) == pytest.approx((math.tanh(math.atanh(0.8) - half), math.tanh(math.atanh(0.8) + half)))

    def test_ties_take_their_middle_rank(self) -> None:
        x, y = [3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]
        assert rank_correlation(x, y).mean == pytest.approx(scipy.stats.spearmanr(x, y).statistic)

    def test_ranks_that_agree_in_full(self) -> None:
        # As for one exchange of neighbours among 20: ρ = 1 - 12 / (20 · 399); the end at 1 is 1.
        found = rank_correlation(range(20), [x * x for x in range(20)])
        rho = 1 - 12 / (20 * 399)
        half = 1.959964 * math.sqrt((1 + rho**2 / 2) / 17)
        assert found.mean == 1.0
        assert bounds(found) == pytest.approx((math.tanh(math.atanh(rho) - half), 1.0))
        against = rank_correlation(range(20), [-x for x in range(20)])
        assert bounds(against) == pytest.approx((-1.0, -math.tanh(math.atanh(rho) - half)))

    def test_what_cannot_be_ranked(self) -> None:
        assert rank_correlation([1, 2], [1, 2]).mean is None
        assert rank_correlation([1, 2, 3], [1, 1, 1]).mean is None
        assert rank_correlation([1, None, 3, 4], [1, 2, 3, 5]).n_unscored == 1


REPLICATIONS = 400
FEWEST = 0.95 - 3.0 * math.sqrt(0.95 * 0.05 / REPLICATIONS)
"""Of hits: three Monte-Carlo standard errors below 95 %. BCa's 84 to 91 % lie below it."""


@pytest.mark.parametrize(
    "name",
    [
        "change of a standard deviation, lengths cut at 64",
        "change in standard deviations, lengths cut at 64",
        "ratio of means, lengths",
        "median, lengths cut at 64",
        "difference of medians, lengths cut at 64",
        "difference of shares, 0.15 and 0.05",
        "rank correlation, lengths cut at 64",
    ],
)
def test_intervals_cover_at_20_prompts(name: str) -> None:
    (cell,) = [cell for cell in CELLS if cell.name == name]
    assert cover(cell, 20, replications=REPLICATIONS, seed=7).share >= FEWEST


def test_bca_would_not() -> None:
    (cell,) = [cell for cell in CELLS if cell.name == "ratio of means, lengths"]

    def bca(sample: Pair, seed: int) -> Estimate:
        def ratio(a: FloatArray, b: FloatArray, axis: int) -> FloatArray:
            return np.asarray(a.mean(axis) / b.mean(axis))

        options: dict[str, Any] = {"n_resamples": 500, "paired": True, "vectorized": True, "method": "BCa"}
        found = scipy.stats.bootstrap(sample, ratio, rng=seed, **options).confidence_interval
        value = float(ratio(*sample, axis=-1))
        return Estimate(mean=value, low=found.low, high=found.high, n=20, n_clusters=20, method="BCa")

    assert cover(cell._replace(estimate=bca), 20, replications=REPLICATIONS, seed=7).share < FEWEST
