"""Worlds whose truth is set by hand (see conftest): a statement that holds must be found to hold, one that is false to
be false, and where nothing is there to be seen nothing may be decided."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from triptych.decoding.arms import by_arm, key_of
from triptych.decoding.claims import judge_claims, verdict_of
from triptych.decoding.contrasts import (
    Contrast,
    Evidence,
    curve_gap,
    distinct_slopes,
    equal_number_of_texts,
    jackknifed,
    log_spread_ratio,
    logprob_slopes,
    slope_weights,
    within_minus_across,
    within_minus_across_equal,
)
from triptych.decoding.measures import Rewards
from triptych.decoding.statements import STATEMENTS, hardest
from triptych.records import Claim, Estimate, FinalBeam, Generation

Make = Callable[..., Generation]


def verdicts(world: Any, rewards: Callable[[list[Generation]], Rewards] | None = None) -> dict[str, str]:
    """Quantity → verdict: every statement has its own quantity."""
    rows = world.generations()
    return {claim.quantity: claim.verdict for claim in judge_claims(rows, rewards(rows) if rewards else None)}


def matching(found: dict[str, str], *parts: str) -> set[str]:
    chosen = {verdict for quantity, verdict in found.items() if all(part in quantity for part in parts)}
    assert chosen, parts
    return chosen


def scored(slope: float, bonus: float, seed: int = 1) -> Callable[[list[Generation]], Rewards]:
    """Rewards that change with temperature, and by `bonus` for top-p."""

    def rewards(rows: list[Generation]) -> Rewards:
        rng = np.random.default_rng(seed)
        return {
            key_of(row): slope * (row.temperature or 0.0) + bonus * (row.strategy == "top_p") + rng.normal(0, 0.3)
            for row in rows
            if row.sample == 0
        }

    return rewards


def final_beams(rows: list[Generation], gaps: tuple[float, ...], reason: str = "eos") -> list[FinalBeam]:
    """The beams of the world's beam arm with runners-up that lie `gaps` nats behind, give or take."""
    rng = np.random.default_rng(0)
    beams = []
    for row in rows:
        if row.strategy == "beam":
            noise = rng.normal(0, 0.2)
            scores = [row.score or 0.0, *((row.score or 0.0) - abs(gap + noise) for gap in gaps)]
            beams += [
                FinalBeam(
                    prompt_id=row.prompt_id,
                    strategy=row.strategy,
                    params=row.params,
                    rank=rank,
                    score=score,
                    mean_logprob=score / row.n_tokens,
                    n_tokens=row.n_tokens,
                    stop_reason="eos" if rank == 1 else reason,
                    token_ids=row.token_ids,
                    logprobs=row.logprobs,
                    text=row.text,
                )
                for rank, score in enumerate(scores, start=1)
            ]
    return beams


class TestPlantedTruths:
    def test_log_probability_that_falls_is_seen_to_fall(self, make_world: Any) -> None:
        found = verdicts(make_world(slopes={"top_k": -1.0, "top_p": -2.0}))
        assert matching(found, "slope of mean log-probability") == {"agrees"}

    def test_log_probability_that_rises_is_seen_to_rise(self, make_world: Any) -> None:
        found = verdicts(make_world(slopes={"top_k": 1.0, "top_p": 2.0}))
        assert matching(found, "slope of mean log-probability") == {"disagrees"}

    def test_top_k_that_falls_faster_is_no_top_p_that_does(self, make_world: Any) -> None:
        found = verdicts(make_world(slopes={"top_k": -2.0, "top_p": -1.0}))
        assert matching(found, "slope of mean log-probability", "top-p less top-k") == {"disagrees"}

    def test_a_vocabulary_that_grows_with_temperature_makes_distinct_rise(self, make_world: Any) -> None:
        found = verdicts(make_world(vocabulary=lambda temperature: int(60 + 200 * temperature)))
        assert matching(found, "slope of Distinct-N across prompts") == {"agrees"}

    def test_larger_orders_climb_faster_only_while_they_have_room(self, make_world: Any) -> None:
        # Few words, so that even trigrams repeat; then so many that trigrams are all but distinct from the start.
        crowded = make_world(n_prompts=120, words=60, vocabulary=lambda temperature: int(5 + 20 * temperature))
        roomy = make_world(vocabulary=lambda temperature: int(200 + 2000 * temperature))
        assert matching(verdicts(crowded), "less that of Distinct-(N-1)") == {"agrees"}
        assert matching(verdicts(roomy), "less that of Distinct-(N-1)") == {"disagrees"}

    def test_beams_of_twice_the_spread_and_more_probable(self, make_world: Any) -> None:
        found = verdicts(make_world(beam_sd=0.6, beam_gain=1.0))
        assert matching(found, "SD of beam") == {"agrees"}
        assert matching(found, "cumulative log-probability of beam less greedy") == {"agrees"}
        narrow = verdicts(make_world(beam_sd=0.1, beam_gain=-1.0))
        assert matching(narrow, "SD of beam") == {"disagrees"}
        assert matching(narrow, "cumulative log-probability of beam less greedy") == {"disagrees"}

    @pytest.mark.parametrize(
        ("gaps", "verdict"),
        # Of four beams: the best has e³ / (e³ + 3) = 0.87 of them all; a fourth each, but for a hair; and half.
        [((3.0, 3.0, 3.0), "agrees"), ((0.1, 0.1, 0.1), "disagrees"), ((math.log(3),) * 3, "undecided")],
    )
    def test_one_winner_among_the_final_beams(self, make_world: Any, gaps: tuple[float, ...], verdict: str) -> None:
        rows = make_world().generations()
        claims = judge_claims(rows, beams=final_beams(rows, gaps))
        (claim,) = (claim for claim in claims if "best beam" in claim.quantity)
        assert claim.verdict == verdict
        assert claim.estimate.n_clusters == 60
        expected = -math.log(sum(math.exp(-gap) for gap in gaps))
        assert claim.estimate.value == pytest.approx(expected, abs=0.1)

    def test_rewards(self, make_world: Any) -> None:
        world = make_world(vocabulary=lambda temperature: int(100 + 300 * temperature))
        assert matching(verdicts(world, scored(-1.0, 0.5)), "reward") == {"agrees"}
        assert matching(verdicts(world, scored(+1.0, -0.5)), "reward") == {"disagrees"}

    def test_an_effect_of_zero_is_undecided(self, make_world: Any) -> None:
        # Within against across as the paper counts is no effect of zero: the pools are of different size.
        for seed in range(3):
            found = verdicts(make_world(seed=seed, vocabulary=lambda temperature: 40), scored(0.0, 0.0, seed))
            without = {
                quantity: verdict for quantity, verdict in found.items() if "each with the number" not in quantity
            }
            assert set(without.values()) <= {"undecided", "not tested"}, seed


class TestWithinAndAcross:
    """The same words in every text: ten texts of one prompt are exactly as varied as ten of ten prompts."""

    def test_the_paper_s_count_sees_a_difference_that_equal_numbers_do_not(self, make_world: Any) -> None:
        found = verdicts(make_world(n_prompts=100, vocabulary=lambda temperature: 40))
        assert matching(found, "Distinct-N within", "each with the number of texts it has") == {"agrees"}
        assert matching(found, "Distinct-N within", "as many prompts") == {"undecided"}

    def test_prompts_with_topics_of_their_own_are_more_varied_among_each_other(self, make_world: Any) -> None:
        found = verdicts(make_world(topics=True))
        assert matching(found, "Distinct-N within", "as many prompts") == {"disagrees"}

    def test_the_explanation_says_why_the_two_differ(self, make_world: Any) -> None:
        claims = judge_claims(make_world().generations())
        first = next(claim for claim in claims if "each with the number" in claim.quantity)
        assert "10 texts of one prompt stand against 60 texts" in first.explanation
        assert "favours the smaller pool" in first.explanation

    def test_choices_of_prompts_are_at_most_half_of_them(self, make_world: Any) -> None:
        rows = make_world(n_prompts=6, within=4, samples=10).generations()
        evidence = Evidence(by_arm(rows))
        arm = next(arm for arm in evidence.arms if arm.strategy == "top_p" and arm.temperature == 0.8)
        assert equal_number_of_texts(evidence, arm) == 3

    @pytest.mark.slow
    def test_intervals_hold_their_level(self, make_world: Any) -> None:
        # 60 worlds without a difference: an interval of 95 % misses 0 in 3 of them, in more than 8 with p < 0.003.
        missed = 0
        for seed in range(60):
            world = make_world(seed=seed, n_prompts=30, within=12, samples=5, temperatures=(0.8, 1.0), words=20)
            evidence = Evidence(by_arm(world.generations()), seed=seed)
            arm = next(arm for arm in evidence.arms if arm.strategy == "top_p" and arm.temperature == 0.8)
            estimate = within_minus_across_equal(evidence, arm)[0].estimate
            assert estimate.low is not None
            assert estimate.high is not None
            missed += not estimate.low <= 0.0 <= estimate.high
        assert missed <= 8


class TestVerdicts:
    @pytest.mark.parametrize(
        ("low", "high", "p", "sign", "expected"),
        [
            (0.1, 0.2, 0.01, +1, "agrees"),
            (0.1, 0.2, 0.01, -1, "disagrees"),
            (-0.2, -0.1, 0.01, -1, "agrees"),
            (0.1, 0.2, 0.06, +1, "undecided"),
            (-0.1, 0.2, 0.01, +1, "undecided"),
            (None, None, None, +1, "undecided"),
        ],
    )
    def test_they_need_the_interval_and_the_p_value(
        self, low: float | None, high: float | None, p: float | None, sign: int, expected: str
    ) -> None:
        estimate = Estimate(mean=0.15, low=low, high=high, n=9, n_clusters=9, method="made up")
        assert verdict_of(estimate, p, sign) == expected

    def test_the_hardest_part_decides_and_pays_for_the_choice_only_to_disagree(self) -> None:
        def part(mean: float, p: float) -> Contrast:
            return Contrast(
                Estimate(mean=mean, low=mean - 0.1, high=mean + 0.1, n=9, n_clusters=9, method="made up"), p
            )

        assert hardest([part(0.5, 0.01), part(0.2, 0.03)], +1) == part(0.2, 0.03)
        assert hardest([part(0.5, 0.01), part(-0.2, 0.02)], +1) == part(-0.2, 0.04)
        assert hardest([part(0.5, 0.01), part(-0.2, 0.02)], -1) == part(0.5, 0.02)

    def test_holm_s_correction_counts_the_statements_that_were_tested(self, make_world: Any) -> None:
        claims = judge_claims(make_world(slopes={"top_k": -1.0, "top_p": -1.0}).generations())
        tested = [claim for claim in claims if claim.verdict != "not tested"]
        assert all(f"{len(tested)} statements tested" in claim.explanation for claim in tested)

    def test_six_prompts_decide_nothing(self, make_world: Any) -> None:
        # The smallest p-value of six prompts is 2/64, before any correction.
        found = verdicts(make_world(n_prompts=6, within=4, samples=3, slopes={"top_k": -2.0, "top_p": -3.0}))
        assert matching(found, "slope of mean log-probability") == {"undecided"}


class TestWhatCannotBeTested:
    def untested(self, claims: list[Claim]) -> dict[str, str]:
        return {claim.quantity: claim.explanation for claim in claims if claim.verdict == "not tested"}

    def test_without_a_reward_model(self, make_world: Any) -> None:
        reasons = self.untested(judge_claims(make_world(n_prompts=8).generations()))
        assert {quantity for quantity in reasons if "reward" in quantity} == {
            quantity for statement in STATEMENTS if "reward" in (quantity := statement.quantity)
        }
        assert all("No completion has a reward" in reasons[quantity] for quantity in reasons if "reward" in quantity)

    def test_beams_without_a_runner_up_that_ended_alike(self, make_world: Any) -> None:
        rows = make_world(n_prompts=8).generations()
        for beams in ([], final_beams(rows, ()), final_beams(rows, (1.0, 2.0), "length")):
            (claim,) = (claim for claim in judge_claims(rows, beams=beams) if "best beam" in claim.quantity)
            assert claim.verdict == "not tested"
            assert claim.estimate.mean is None

    def test_scores_that_never_came_are_not_zero(self, make_world: Any) -> None:
        rows = make_world(n_prompts=8).generations()
        claims = judge_claims(rows, {key_of(row): None for row in rows if row.sample == 0})
        assert all(claim.verdict == "not tested" for claim in claims if "reward" in claim.quantity)

    def test_a_run_of_one_strategy(self, make_completion: Make) -> None:
        claims = judge_claims([make_completion(f"p{i}") for i in range(5)])
        assert {claim.verdict for claim in claims} == {"not tested"}
        assert all(claim.estimate.mean is None and claim.estimate.n == 0 for claim in claims)

    @pytest.mark.parametrize("n_prompts", [1, 2])
    def test_a_prompt_or_two_raise_nothing(self, make_world: Any, n_prompts: int) -> None:
        world = make_world(n_prompts=n_prompts, within=1, samples=2)
        assert set(verdicts(world, scored(-1.0, 0.5)).values()) <= {"undecided", "not tested"}

    def test_empty_texts_raise_nothing(self, make_completion: Make) -> None:
        rows = [
            make_completion(f"p{i}", strategy, {key: value, "temperature": t}, text="", mean_logprob=None, sample=s)
            for i in range(9)
            for strategy, key, value in (("top_k", "k", 50), ("top_p", "p", 0.9))
            for t in (0.2, 0.8)
            for s in range(2)
        ]
        assert {claim.verdict for claim in judge_claims(rows)} <= {"undecided", "not tested"}


class TestNumbers:
    def test_slopes_are_those_of_scipy(self) -> None:
        x, y = [0.2, 0.5, 0.8, 1.0, 1.2], np.array([3.0, 1.0, 4.0, 1.0, 5.0])
        assert float(slope_weights(x) @ y) == pytest.approx(scipy_stats.linregress(x, y).slope)

    def test_a_prompt_without_a_value_at_every_temperature_is_unscored(self, make_completion: Make) -> None:
        rows = [
            make_completion(k, "top_k", {"k": 50, "temperature": t}, mean_logprob=value)
            for k, t, value in (("a", 0.5, -1.0), ("a", 1.0, -2.0), ("b", 0.5, -1.0), ("b", 1.0, None))
        ]
        evidence = Evidence(by_arm(rows))
        assert logprob_slopes(evidence, evidence.sweep("top_k")) == {"a": pytest.approx(-2.0), "b": None}

    def test_the_jackknife_of_a_mean_is_student_s_t(self) -> None:
        values = np.random.default_rng(0).normal(0.3, 1.0, 25)
        without = (values.sum() - values) / 24
        estimate, p = jackknifed(float(values.mean()), without, 25)
        expected = scipy_stats.ttest_1samp(values, 0.0)
        assert p == pytest.approx(expected.pvalue)
        assert (estimate.low, estimate.high) == pytest.approx(tuple(expected.confidence_interval()))

    def test_the_spread_s_jackknife_is_that_of_the_definition(self, make_completion: Make) -> None:
        rng = np.random.default_rng(0)
        a, b = rng.normal(0, 2, 12), rng.normal(0, 1, 12)
        rows = [make_completion(f"p{i}", "beam", {"width": 4}, mean_logprob=float(v)) for i, v in enumerate(a)]
        rows += [make_completion(f"p{i}", "greedy", mean_logprob=float(v)) for i, v in enumerate(b)]
        evidence = Evidence(by_arm(rows))
        beam, greedy = evidence.only("beam"), evidence.only("greedy")
        assert beam is not None
        assert greedy is not None
        without = np.array([math.log(np.delete(a, i).std(ddof=1) / np.delete(b, i).std(ddof=1)) for i in range(12)])
        expected = jackknifed(math.log(a.std(ddof=1) / b.std(ddof=1)), without, 24)
        assert log_spread_ratio(evidence, beam, greedy).estimate.low == pytest.approx(expected.estimate.low)

    def test_leaving_out_a_prompt_is_what_the_paper_s_comparison_leaves_out(self, make_world: Any) -> None:
        rows = make_world(n_prompts=7, within=4, samples=3).generations()

        def difference(rows: list[Generation]) -> float:
            evidence = Evidence(by_arm(rows))
            arm = next(arm for arm in evidence.arms if arm.strategy == "top_p" and arm.temperature == 0.8)
            return within_minus_across(evidence, arm)[1].estimate.value

        ids = sorted({row.prompt_id for row in rows})
        without = np.array([difference([row for row in rows if row.prompt_id != k]) for k in ids])
        evidence = Evidence(by_arm(rows))
        arm = next(arm for arm in evidence.arms if arm.strategy == "top_p" and arm.temperature == 0.8)
        expected = jackknifed(difference(rows), without, 0, df=3)
        assert within_minus_across(evidence, arm)[1].estimate.low == pytest.approx(expected.estimate.low)

    def test_the_fixed_length_leaves_out_what_is_too_short(self, make_completion: Make) -> None:
        rows = [
            make_completion(f"p{i}", "top_k", {"k": 50, "temperature": t}, text="a b c d" if i else "a b")
            for i in range(4)
            for t in (0.5, 1.0)
        ]
        evidence = Evidence(by_arm(rows))
        sweep = evidence.sweep("top_k")
        assert [part.estimate.n_clusters for part in distinct_slopes(evidence, sweep, length=4)] == [3, 3, 3]
        assert [part.estimate.n_clusters for part in distinct_slopes(evidence, sweep)] == [4, 4, 4]

    def test_curves_are_compared_where_both_are(self) -> None:
        x1, y1 = np.array([0.0, 1.0]), np.array([1.0, 1.0])
        x2, y2 = np.array([2.0, 0.5]), np.array([0.0, 1.5])
        # Over 0.5 … 1 the second falls from 1.5 to 1.
        assert curve_gap(x1, y1, x2, y2) == pytest.approx(-0.25)
        assert math.isnan(curve_gap(x1, y1, x2 + 2, y2))
