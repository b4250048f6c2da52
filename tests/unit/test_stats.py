import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.records import Estimate
from triptych.stats import (
    bare,
    benjamini_hochberg,
    clustered_bootstrap,
    delete_one,
    exponential,
    holm,
    jackknife_estimate,
    paired_difference,
    share_difference,
    sign_flip_test,
)

# No deadline: on a busy machine a single slow example is no failure.
PROPERTY = settings(deadline=None, max_examples=50)


def bounds(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


def skewed_clusters(n_clusters: int, rng: np.random.Generator) -> tuple[list[float], list[int]]:
    """Values of mean 1: an exponential effect of the prompt times an exponential one of each of its 1 … 8 values."""
    sizes = rng.integers(1, 9, size=n_clusters)
    clusters = np.repeat(np.arange(n_clusters), sizes)
    values = rng.exponential(1.0, n_clusters)[clusters] * rng.exponential(1.0, len(clusters))
    return values.tolist(), clusters.tolist()


class TestFewPrompts:
    def test_students_t_by_hand(self) -> None:
        # Mean 2; residuals -1, 0, 1: se² = 3/2 · 2 / 3² = 1/3. t(0.975; 2) = 4.302653 (any table of Student's t).
        estimate = clustered_bootstrap([1, 2, 3], ["p", "q", "r"], seed=0)
        assert estimate.mean == pytest.approx(2)
        assert bounds(estimate) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), rel=1e-6)
        assert (estimate.n, estimate.n_clusters, estimate.n_unscored) == (3, 3, 0)
        assert estimate.method == "95% cluster-robust Student's t (fewer than 8 prompts)"

    def test_clusters_of_unequal_size_by_hand(self) -> None:
        # p: 1, 1, 1; q: 5. r = 8/4 = 2; residuals S - r·m: 3 - 6 = -3 and 5 - 2 = 3; se² = 2/1 · 18 / 4² = 9/4.
        # t(0.975; 1) = 12.706205.
        estimate = clustered_bootstrap([1, 5, 1, 1], ["p", "q", "p", "p"], seed=0)
        assert estimate.mean == pytest.approx(2)
        assert bounds(estimate)[1] == pytest.approx(2 + 12.706205 * 1.5, rel=1e-6)
        assert (estimate.n, estimate.n_clusters) == (4, 2)

    def test_one_prompt_has_no_interval(self) -> None:
        estimate = clustered_bootstrap([1, 2, 3], ["p"] * 3, seed=0)
        assert (estimate.mean, estimate.low, estimate.high) == (2.0, None, None)
        assert estimate.method == "no interval: one prompt"

    def test_nothing_scored_has_no_mean(self) -> None:
        estimate = clustered_bootstrap([None, math.nan], ["p", "q"], seed=0)
        assert (estimate.mean, estimate.n, estimate.n_clusters, estimate.n_unscored) == (None, 0, 0, 2)
        assert estimate.method == "no estimate: nothing was scored"
        assert clustered_bootstrap([], [], seed=0).n_unscored == 0

    def test_unscored_is_not_zero(self) -> None:
        scored = clustered_bootstrap([1, 2, 3], ["p", "q", "r"], seed=0)
        with_gaps = clustered_bootstrap([None, 1, 2, math.nan, 3], ["s", "p", "q", "q", "r"], seed=0)
        # Prompt s has no scored value: it is no cluster.
        assert with_gaps == scored.model_copy(update={"n_unscored": 2})

    def test_prompts_alike_have_no_interval(self) -> None:
        estimate = clustered_bootstrap([0.3] * 40, range(40), seed=0)
        assert (estimate.low, estimate.high, estimate.method) == (None, None, "no interval: all prompts alike")


class TestProportions:
    def test_is_what_they_are_called_not_what_they_look_like(self) -> None:
        # Lengths that happen to be all 0 are no proportion.
        assert clustered_bootstrap([0] * 20, range(20), seed=0).method == "no interval: all prompts alike"
        assert "Wilson" not in clustered_bootstrap([0, 1] * 10, range(20), seed=0).method

    def test_other_shares_stay_within_0_and_1(self) -> None:
        shares = [1.0, 0.9, 1.0, 0.2, 1.0]
        assert bounds(clustered_bootstrap(shares, range(5), seed=0))[1] > 1.0
        assert bounds(clustered_bootstrap(shares, range(5), seed=0, is_share=True))[1] == 1.0

    def test_no_share_lies_outside(self) -> None:
        with pytest.raises(ValueError, match="0 … 1"):
            clustered_bootstrap([0.5, 1.5], range(2), seed=0, is_share=True)

    def test_all_zero_by_hand(self) -> None:
        # p = 0: Wilson's upper end is z² / (n + z²) with n = 40·(z/t)², that is
        # t² / (40 + t²); t(0.975; 39) = 2.022691: 4.091279 / 44.091279.
        estimate = clustered_bootstrap([0] * 80, [i % 40 for i in range(80)], seed=0, is_share=True)
        assert bounds(estimate) == pytest.approx((0.0, 4.091279 / 44.091279), rel=1e-6)
        assert estimate.method == "95% Wilson, effective sample size of clusters"

    def test_all_one_mirrors_all_zero(self) -> None:
        low, high = bounds(clustered_bootstrap([0] * 12, range(12), seed=0, is_share=True))
        assert bounds(clustered_bootstrap([1] * 12, range(12), seed=0, is_share=True)) == pytest.approx(
            (1 - high, 1 - low)
        )

    def test_half_of_ten_by_hand(self) -> None:
        # se² = 10/9 · 10 · 0.25 / 10² = 1/36, effective size 0.25 · 36 = 9, times (z/t)², t(0.975; 9) = 2.262157.
        # With u = t²/9 Wilson's half-width at p = 1/2 is √(u / (1 + u)) / 2.
        u = 2.262157**2 / 9
        half = math.sqrt(u / (1 + u)) / 2
        estimate = clustered_bootstrap([0, 1] * 5, range(10), seed=0, is_share=True)
        assert bounds(estimate) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-6)

    @PROPERTY
    @given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 9)), min_size=2, max_size=60))
    def test_the_interval_is_wide_and_within_0_and_1(self, rows: list[tuple[int, int]]) -> None:
        estimate = clustered_bootstrap(
            [value for value, _ in rows], [cluster for _, cluster in rows], seed=0, is_share=True
        )
        if estimate.n_clusters > 1:
            low, high = bounds(estimate)
            assert 0.0 <= low <= estimate.value <= high <= 1.0
            assert high - low > 0.01

    def test_copies_within_a_prompt_add_nothing(self) -> None:
        # 20 prompts, half of them all 1: the effective size is the number of prompts, whatever the samples a prompt.
        once = clustered_bootstrap([i % 2 for i in range(20)], range(20), seed=0, is_share=True)
        copied = clustered_bootstrap([i % 2 for i in range(20)] * 10, [*range(20)] * 10, seed=0, is_share=True)
        assert bounds(copied) == pytest.approx(bounds(once))
        assert copied.n == 200


class TestBootstrapT:
    def test_it_covers_a_skewed_clustered_mean(self) -> None:
        # 1000 populations of mean 1 by construction. A coverage of 95 % has a standard deviation of 0.7 % here, so 93
        # to 97 % is about three of them. The percentile interval covers 89.9 % of the same.
        rng = np.random.default_rng(20)
        covered, below, above = 0, 0, 0
        for seed in range(1000):
            values, clusters = skewed_clusters(40, rng)
            low, high = bounds(clustered_bootstrap(values, clusters, seed=seed, n_resamples=1000))
            covered, below, above = covered + (low <= 1 <= high), below + (high < 1), above + (low > 1)
        assert 930 <= covered <= 970
        # Under skew an interval misses mostly by staying below; a symmetric one does so almost always.
        assert above > 0.1 * (below + above)

    def test_it_nears_students_t_on_many_normal_values(self) -> None:
        values = np.random.default_rng(3).normal(5.0, 2.0, size=200)
        estimate = clustered_bootstrap(values.tolist(), range(200), seed=1)
        # t(0.975; 199) = 1.971957; the ends of a bootstrap of 2000 vary by some percent of the width.
        half = 1.971957 * float(values.std(ddof=1)) / math.sqrt(200)
        low, high = bounds(estimate)
        assert estimate.mean == pytest.approx(float(values.mean()))
        assert (estimate.value - low) / half == pytest.approx(1.0, abs=0.08)
        assert (high - estimate.value) / half == pytest.approx(1.0, abs=0.08)
        assert estimate.method == "95% cluster bootstrap-t, 2000 resamples"

    def test_a_long_upper_tail_reaches_further_up(self) -> None:
        values, clusters = skewed_clusters(40, np.random.default_rng(0))
        estimate = clustered_bootstrap(values, clusters, seed=0)
        low, high = bounds(estimate)
        assert high - estimate.value > estimate.value - low

    @PROPERTY
    @given(st.integers(0, 2**32), st.integers(1, 4), st.floats(-1e6, 1e6))
    def test_copies_scale_and_shift(self, seed: int, copies: int, shift: float) -> None:
        values, clusters = skewed_clusters(12, np.random.default_rng(seed))
        low, high = bounds(clustered_bootstrap(values, clusters, seed=7, n_resamples=200))
        moved = clustered_bootstrap(
            [-2 * v + shift for v in values] * copies, clusters * copies, seed=7, n_resamples=200
        )
        # Copies within prompts add nothing; -2·x mirrors the interval, up to one order statistic of 200.
        assert moved.value == pytest.approx(shift - 2 * clustered_bootstrap(values, clusters, seed=7).value, abs=1e-6)
        assert bounds(moved)[1] - bounds(moved)[0] == pytest.approx(2 * (high - low), rel=0.35)

    def test_the_seed_decides(self) -> None:
        values, clusters = skewed_clusters(30, np.random.default_rng(5))
        assert clustered_bootstrap(values, clusters, seed=1) == clustered_bootstrap(values, clusters, seed=1)
        assert clustered_bootstrap(values, clusters, seed=1) != clustered_bootstrap(values, clusters, seed=2)

    def test_too_few_prompts_that_differ(self) -> None:
        # A resample that draws neither of the two has no spread: (38/40)^40 = 13 % of them.
        estimate = clustered_bootstrap([0.5, 0.7] + [0.0] * 38, range(40), seed=0)
        assert estimate.method == "95% cluster-robust Student's t (too few prompts differ for the bootstrap)"
        assert estimate.low is not None

    def test_a_level_and_its_name(self) -> None:
        values, clusters = skewed_clusters(30, np.random.default_rng(5))
        wide = clustered_bootstrap(values, clusters, seed=1, level=0.995)
        assert bounds(wide)[0] < bounds(clustered_bootstrap(values, clusters, seed=1))[0]
        assert wide.method.startswith("99.5% ")


class TestPairedDifference:
    def test_by_hand(self) -> None:
        # Differences 1, 2, 3 of three prompts, as in the test of Student's t above.
        estimate = paired_difference([2, 4, 6, None, 1], [1, 2, 3, 1, math.nan], [*"pqrpp"], seed=0)
        assert bounds(estimate)[0] == pytest.approx(2 - 4.302653 / math.sqrt(3), rel=1e-6)
        assert (estimate.n, estimate.n_clusters, estimate.n_unscored) == (3, 3, 2)
        assert estimate.method.startswith("paired difference, 95% cluster-robust Student's t")

    def test_differences_of_0_and_1_are_no_proportion(self) -> None:
        estimate = paired_difference([1, 0, 1, 0], [0, 0, 0, 0], range(4), seed=0)
        assert bounds(estimate)[0] < 0

    def test_lengths_must_agree(self) -> None:
        with pytest.raises(ValueError, match="2 values against 1"):
            paired_difference([1, 2], [1], [0, 1], seed=0)


class TestSignFlip:
    def test_three_prompts_by_hand(self) -> None:
        # Of the 8 patterns of ±1 ± 2 ± 3 only +++ and --- reach 6.
        assert sign_flip_test([1, 2, 3], [*"pqr"], seed=0) == pytest.approx(2 / 8)

    def test_the_unit_is_the_prompt(self) -> None:
        # Sums 3, 3: ++ and -- of 4 reach 6. The zero sum of r (1 - 1) flips to itself and changes nothing.
        assert sign_flip_test([1, 2, 3, 1, -1], [*"ppqrr"], seed=0) == pytest.approx(2 / 4)

    def test_ties_are_kept_despite_rounding(self) -> None:
        # 0.1 + 0.2 - 0.3 is 5.6e-17 in floating point: all 4 patterns are at least as far from 0.
        assert sign_flip_test([0.1, 0.2, -0.3], [*"ppq"], seed=0) == 1.0

    def test_no_difference_speaks_against_nothing(self) -> None:
        assert sign_flip_test([0, 0], [*"pq"], seed=0) == 1.0
        assert sign_flip_test([None], ["p"], seed=0) == 1.0
        assert sign_flip_test([], [], seed=0) == 1.0

    def test_many_prompts_by_counting(self) -> None:
        # 12 of 16 equal differences positive, sum 8: P(|B - 8| ≥ 4), B binomial(16, 1/2), is
        # 2 · (1820 + 560 + 120 + 16 + 1) / 65536 = 0.0768. Four standard deviations of 9999 draws are 0.0107.
        p = sign_flip_test([1.0] * 12 + [-1.0] * 4, range(16), seed=0)
        assert p == pytest.approx(0.0768, abs=0.0107)
        assert p == sign_flip_test([1.0] * 12 + [-1.0] * 4, range(16), seed=0)

    def test_p_is_never_zero(self) -> None:
        assert sign_flip_test([1.0] * 50, range(50), seed=0, n_flips=99) == pytest.approx(1 / 100)


class TestHolm:
    def test_by_hand(self) -> None:
        # Ascending 0.01·3, 0.03·2, 0.04·1 → 0.03, 0.06, 0.06 (not below the one before).
        assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])

    def test_one_none_and_the_ceiling(self) -> None:
        assert holm([0.2]) == [0.2]
        assert holm([]) == []
        assert holm([0.9, 0.8]) == [1.0, 1.0]

    @pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
    def test_no_probability_is_refused(self, p: float) -> None:
        with pytest.raises(ValueError, match=r"p-values must lie in 0 … 1"):
            holm([0.5, p])


class TestJackknife:
    def test_an_interval_is_taken_over(self) -> None:
        estimate = jackknife_estimate(0.5, 0.4, 0.6, 12, n=48)
        assert (estimate.mean, estimate.low, estimate.high) == (0.5, 0.4, 0.6)
        assert (estimate.n, estimate.n_clusters) == (48, 12)
        assert estimate.method == "95% delete-a-group jackknife"

    def test_one_group_and_nothing(self) -> None:
        assert jackknife_estimate(0.5, None, None, 1).method == "no interval: one prompt"
        nothing = jackknife_estimate(math.nan, None, None, 0, n_unscored=3)
        assert (nothing.mean, nothing.n, nothing.n_unscored) == (None, 0, 3)


class TestRefusals:
    def test_clusters_must_name_every_value(self) -> None:
        with pytest.raises(ValueError, match="2 values, 1 clusters"):
            clustered_bootstrap([1, 2], ["p"], seed=0)

    def test_infinite_values(self) -> None:
        with pytest.raises(ValueError, match="finite or unscored"):
            clustered_bootstrap([1, math.inf], ["p", "q"], seed=0)

    @pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
    def test_a_level_outside_0_and_1(self, level: float) -> None:
        with pytest.raises(ValueError, match="level must lie between 0 and 1"):
            clustered_bootstrap([1, 2], ["p", "q"], seed=0, level=level)

    def test_no_resamples(self) -> None:
        with pytest.raises(ValueError, match="n_resamples must be at least 1"):
            clustered_bootstrap([1, 2], ["p", "q"], seed=0, n_resamples=0)
        with pytest.raises(ValueError, match="n_flips must be at least 1"):
            sign_flip_test([1, 2], ["p", "q"], seed=0, n_flips=0)


class TestShareDifference:
    def test_by_hand(self) -> None:
        # d = 1, 0, 0, 0: d̃ = 1/6, se² = ((1 + 2)/6 - 1/36)/6 = 17/216.
        found = share_difference([1, 1, 0, 0], [0, 1, 0, 0], ["p", "q", "r", "s"])
        half = 1.959964 * math.sqrt(17 / 216)
        assert found.mean == 0.25
        assert bounds(found) == pytest.approx((1 / 6 - half, 1 / 6 + half), rel=1e-6)

    def test_alike_one_and_nothing(self) -> None:
        assert share_difference([1, 0], [1, 0], ["p", "q"]).method.endswith("no interval: all prompts alike")
        assert share_difference([1, 0], [1, 0], ["p", "q"]).mean == 0.0
        assert share_difference([1], [0], ["p"]).method.endswith("no interval: one prompt")
        assert share_difference([None], [0], ["p"]).mean is None

    def test_it_stays_within_what_a_share_can_change(self) -> None:
        found = share_difference([1, 1, 1, 1, 0], [0, 0, 0, 0, 0], range(5))
        assert found.high == 1.0


class TestBenjaminiHochberg:
    def test_by_hand(self) -> None:
        # 0.01·4/1 = 0.04, 0.02·4/2 = 0.04, 0.04·4/3 = 0.0533, 0.9·4/4 = 0.9.
        assert benjamini_hochberg([0.9, 0.01, 0.04, 0.02]) == pytest.approx([0.9, 0.04, 0.16 / 3, 0.04])

    def test_nothing_and_no_probabilities(self) -> None:
        assert benjamini_hochberg([]) == []
        with pytest.raises(ValueError, match="must lie in 0 … 1"):
            benjamini_hochberg([1.5])

    @given(st.lists(st.floats(0.0, 1.0), max_size=20))
    def test_it_lies_between_the_raw_value_and_holm_s(self, pvalues: list[float]) -> None:
        for raw, adjusted, holms in zip(pvalues, benjamini_hochberg(pvalues), holm(pvalues), strict=True):
            assert raw <= adjusted + 1e-12
            assert adjusted <= holms + 1e-12


class TestDeleteOne:
    def test_by_hand(self) -> None:
        # θ(i) = 1, 2, 3: mean 2, squares 2, se² = 2/3 · 2 = 4/3; t(0.975; 2) = 4.302653.
        found = delete_one(2.0, np.array([1.0, 2.0, 3.0]), n=7)
        half = 4.302653 * math.sqrt(4 / 3)
        assert bounds(found) == pytest.approx((2.0 - half, 2.0 + half), rel=1e-6)
        assert (found.n, found.n_clusters) == (7, 3)

    def test_no_spread_one_prompt_and_nothing(self) -> None:
        assert delete_one(0.0, np.zeros(5), n=5).method == "no interval: all prompts alike"
        assert delete_one(1.0, np.array([1.0]), n=1).method == "no interval: one prompt"
        assert delete_one(math.nan, np.array([1.0, 2.0]), n=2).mean is None


class TestWithoutIntervals:
    def test_the_exponential_of_an_interval(self) -> None:
        one = Estimate(mean=math.log(2.0), low=0.0, high=math.log(8.0), n=5, n_clusters=3, method="a method")
        found = exponential(one)
        assert (found.mean, found.low, found.high) == pytest.approx((2.0, 1.0, 8.0))
        assert (found.n, found.n_clusters, found.method) == (5, 3, "a method, of logarithms")
        assert exponential(one.model_copy(update={"mean": None, "low": None, "high": None})).mean is None

    def test_a_figure_of_the_whole_has_none_and_says_why(self) -> None:
        found = bare(3.0, 7, "a figure of the whole")
        assert (found.mean, found.low, found.high, found.n) == (3.0, None, None, 7)
        assert found.method == "no interval: a figure of the whole"
        assert bare(None, 7, "x").method == "no estimate: nothing was scored"
