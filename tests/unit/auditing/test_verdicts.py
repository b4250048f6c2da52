"""Verdicts: the p-value is the interval's own, a card of true nulls stays silent, and planted effects are seen."""

import math

import pytest
import scipy.stats
from benchmarks.coverage import cards

from triptych.auditing.thresholds import Above, Below, Factor
from triptych.auditing.verdicts import Check, Verdict, judge
from triptych.intervals import rank_correlation
from triptych.records import Estimate

LIMITS = Above(warn=0.1, severe=0.3)


def estimate(mean: float, low: float | None, high: float | None, method: str = "m", n: int = 20) -> Estimate:
    return Estimate(mean=mean, low=low, high=high, n=n, n_clusters=n, method=method)


def verdict(check: Check) -> Verdict:
    return judge([check])[0]


class TestP:
    def test_it_is_a_fortieth_where_the_end_touches_the_threshold(self) -> None:
        assert verdict(Check(estimate(0.2, 0.1, 0.5), LIMITS, "above")).p_warn == pytest.approx(0.025)
        below = Check(estimate(-0.2, -0.5, -0.1), Below(warn=-0.1, severe=-0.3), "below")
        assert verdict(below).p_warn == pytest.approx(0.025)
        ratio = Check(estimate(2.0, 1.25, 3.2), Factor(warn=1.25, severe=3.0), "factor", scale="log")
        assert verdict(ratio).p_warn == pytest.approx(0.025)
        shrunk = Check(estimate(0.5, 0.3125, 0.8), Factor(warn=1.25, severe=3.0), "factor", scale="log")
        assert verdict(shrunk).p_warn == pytest.approx(0.025)

    def test_for_a_t_interval_it_is_that_of_the_t_test(self) -> None:
        half = scipy.stats.t.ppf(0.975, 19) * 0.05
        found = verdict(Check(estimate(0.25, 0.25 - half, 0.25 + half), LIMITS, "above"))
        assert found.p_warn == pytest.approx(scipy.stats.t.sf(0.15 / 0.05, 19))
        assert found.p_severe == pytest.approx(scipy.stats.t.sf(-0.05 / 0.05, 19))

    def test_each_side_has_its_own_reach(self) -> None:
        # Towards the threshold of 0.1 the interval reaches 0.1, away from it 1: only the near side counts.
        found = verdict(Check(estimate(0.25, 0.15, 1.25), LIMITS, "above"))
        assert found.p_warn == pytest.approx(scipy.stats.t.sf(1.5 * scipy.stats.t.ppf(0.975, 19), 19))

    def test_prompts_that_are_all_alike(self) -> None:
        # All 20 fell silent: with a mean of 0.1 at most 55 % of prompts can have changed by 1.
        alike = estimate(1.0, None, None, "no interval: all prompts alike")
        assert verdict(Check(alike, LIMITS, "above", is_bounded=True)).p_warn == pytest.approx(0.55**20)

    def test_what_is_exact_is_not_tested(self) -> None:
        found = judge([Check(estimate(5.0, None, None, "a property of the weights"), LIMITS, "above", is_exact=True)])
        assert (found[0].level, found[0].p_warn) == ("severe", None)


class TestEvidence:
    def test_few_prompts_without_an_event_do_not_rule_one_out(self) -> None:
        def level(n: int) -> str:
            alike = estimate(0.0, None, None, "no interval: all prompts alike", n=n)
            return verdict(Check(alike, LIMITS, "above", is_bounded=True)).level

        # Of 35 prompts, 10 % would show with a probability of 1 - 0.9^35 = 97.5 %.
        assert (level(34), level(36)) == ("undecided", "ok")

    def test_a_checkpoint_that_is_the_base_needs_none(self) -> None:
        alike = estimate(0.0, None, None, "no interval: all prompts alike", n=3)
        assert verdict(Check(alike, LIMITS, "above", is_bounded=True, is_exact=True)).level == "ok"

    def test_it_says_how_many_prompts_would_tell(self) -> None:
        # 0.05 below the threshold with an interval of 0.1 to that side: twice as narrow, four times as many.
        found = verdict(Check(estimate(0.05, -0.05, 0.15), LIMITS, "above"))
        assert found.level == "undecided"
        assert "spans the warning threshold of 0.1" in found.reason
        assert "80 prompts" in found.reason

    def test_an_alarm_that_does_not_survive_says_so(self) -> None:
        checks = [Check(estimate(0.2, 0.11, 0.29), LIMITS, "above")]
        assert judge(checks)[0].level == "warn"
        quiet = [Check(estimate(0.0, -0.05, 0.05), LIMITS, "above")] * 64
        found = judge([*checks, *quiet])[0]
        assert found.level == "undecided"
        assert "not after correction" in found.reason
        assert found.p_warn is not None
        assert found.p_warn_adjusted is not None
        assert found.p_warn < 0.025 < 0.05 < found.p_warn_adjusted

    def test_the_further_end_decides_in_both_directions(self) -> None:
        factor = Factor(warn=1.25, severe=3.0)
        assert verdict(Check(estimate(1.1, 1.0, 1.2), factor, "factor", scale="log")).level == "ok"
        assert verdict(Check(estimate(1.1, 0.7, 1.2), factor, "factor", scale="log")).level == "undecided"


def test_a_reward_that_is_the_length_is_severe_among_quiet_checks() -> None:
    full = rank_correlation(range(22), range(22))
    quiet = [Check(estimate(0.0, -0.05, 0.05), LIMITS, "above")] * 90
    check = Check(full, Above(warn=0.3, severe=0.9), "above", scale="atanh", as_size=True)
    assert judge([check, *quiet])[0].level == "severe"


class TestCards:
    """65 checks whose true values lie at the threshold. Uncorrected, a card has a false alarm with a probability of
    1 - 0.975^65 = 81 % where they are independent."""

    CARDS = 150

    def test_true_nulls_are_silent(self) -> None:
        found = cards(self.CARDS, n_prompts=40, planted=0, correlation=0.0, seed=1)
        assert found.uncorrected > 0.4
        assert found.corrected <= 0.05 + 3.0 * math.sqrt(0.05 * 0.95 / self.CARDS)

    def test_planted_effects_are_still_seen(self) -> None:
        found = cards(self.CARDS, n_prompts=40, planted=10, correlation=0.5, seed=1)
        assert found.seen >= 0.95 * found.seen_uncorrected
        assert found.false_discoveries <= 0.08
