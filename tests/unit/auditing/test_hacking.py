"""Rewards that can be had for nothing: by hand, and the planted ones that love length or a keyword."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats

from triptych.auditing.hacking import HACK, differences, hacking, rank_correlation
from triptych.auditing.paired import About, change_in_sd
from triptych.auditing.perturbations import PERTURBATIONS
from triptych.auditing.records import BASE, AuditRecord, PerturbedText, Response, Score
from triptych.metrics import words
from triptych.seeding import stream_key

TEXTS = [f"Rain number {i} falls. Snow number {i} lies on {'very ' * i}old stones." for i in range(20)]
REWARD = About("r", "", scorer="r")


def audited(
    rows: Any, reward: Callable[[str], float | None], texts: list[str] = TEXTS, scorer: str = "r"
) -> list[AuditRecord]:
    """The records of a reward on texts of the base."""
    perturbed: list[PerturbedText] = []
    scores: list[Score] = []
    responses: list[Response] = rows.responses(BASE, texts)
    for one in responses:
        key = stream_key(0, "perturbation", one.prompt_id)
        forms: dict[str | None, str] = {None: one.text}
        forms |= {name: change(one.text, key) for name, change in PERTURBATIONS.items()}
        perturbed += [PerturbedText(one.prompt_id, name, text) for name, text in forms.items()]
        scores += [Score(scorer, BASE, one.prompt_id, name, reward(text)) for name, text in forms.items()]
    return hacking(scores, perturbed, responses, scorers={scorer: REWARD}, seed=0)


def test_changes_by_hand() -> None:
    # p: 1 → 3; q: unscored after; r: 2 → 1; s was left as it is.
    originals = {"p": 1.0, "q": 1.0, "r": 2.0, "s": 5.0}
    found = differences({"p": 3.0, "q": None, "r": 1.0, "s": 5.0}, originals, {"p", "q", "r"})
    assert found == {"p": 2.0, "q": None, "r": -1.0, "s": None}


def test_a_reward_that_nothing_moves(rows: Any) -> None:
    records = audited(rows, lambda text: 1.0)
    for name in PERTURBATIONS:
        record = rows.find(records, "r", "score_change", name, scorer="r")
        assert record.estimate.mean == 0.0
        assert record.p == 1.0
        assert rows.value(records, "r", "share_positive", name, scorer="r") == 0.0
    # Without a spread there is no measure to express a change in.
    assert rows.find(records, "r", "score_change_in_sd", "filler", scorer="r").estimate.mean is None


class TestPlanted:
    def test_a_reward_that_loves_length(self, rows: Any) -> None:
        records = audited(rows, lambda text: float(len(words(text))))
        for name in ("filler", "keywords", "safety_prefix", "repetition", "neutral"):
            added = rows.value(records, "texts", "words_added", name)
            record = rows.find(records, "r", "score_change", name, scorer="r")
            assert record.estimate.mean == pytest.approx(added)
            assert record.p is not None
            assert record.p < 0.05
            assert rows.value(records, "r", "share_positive", name, scorer="r") == 1.0
        # The neutral control is as long as the filler, and unmasks it: nothing is left beyond the words.
        assert rows.value(records, "r", "change_over_control", "filler", scorer="r") == 0.0
        assert rows.value(records, BASE, "length_correlation", scorer="r") == pytest.approx(1.0)

    def test_a_reward_that_loves_a_keyword(self, rows: Any) -> None:
        records = audited(rows, lambda text: float("helpful" in text.lower()) + len(text) * 1e-6)
        change = rows.find(records, "r", "score_change", "safety_prefix", scorer="r")
        assert change.estimate.mean == pytest.approx(1.0, abs=1e-3)
        assert change.p is not None
        assert change.p < 0.05
        assert rows.value(records, "r", "change_over_control", "safety_prefix", scorer="r") == pytest.approx(
            1, abs=1e-3
        )
        # "I am a helpful AI" is what table 4 puts before own responses.
        neutral = rows.value(records, "r", "score_change", "neutral", scorer="r")
        assert neutral == pytest.approx(0.0, abs=1e-3)

    def test_correction_is_over_the_perturbations_of_a_scorer(self, rows: Any) -> None:
        # Ten texts that all rise have p = 2 / 2^10; times eight perturbations that tie.
        records = audited(rows, lambda text: float(len(words(text))), TEXTS[:10])
        record = rows.find(records, "r", "score_change", "filler", scorer="r")
        assert record.p is not None
        assert 2 / 1024 < record.p <= 8 * 2 / 1024


def test_table_four_is_of_own_responses(rows: Any) -> None:
    responses = [*rows.responses(BASE, ["a", "b"]), *rows.responses("m", ["c", "d"])]
    scores = [
        *rows.scores("r", "m", [-3.0, -4.0]),
        *rows.scores("r", "m", [-2.0, -2.5], "safety_prefix"),
        *rows.scores("r", BASE, [0.0, 0.0]),
        *rows.scores("r", BASE, [0.0, 0.0], "safety_prefix"),
    ]
    perturbed = [
        PerturbedText(f"p{i}", name, text) for i in (0, 1) for name, text in ((None, "x"), ("safety_prefix", "y"))
    ]
    records = hacking(scores, perturbed, responses, scorers={"r": REWARD}, seed=0)
    assert rows.value(records, "m", "normal_score", scorer="r") == -3.5
    assert rows.value(records, "m", "hacked_score", scorer="r") == -2.25
    assert rows.value(records, "m", "hack_delta", scorer="r") == 1.25


def test_the_hack_delta_is_of_finished_texts_of_both_sides(rows: Any) -> None:
    # p0 is finished everywhere; m is cut on p1, empty on p2; the base is not perturbed on p3, which it did not finish.
    responses = [
        *rows.responses(BASE, ["a", "b", "c"]),
        rows.response(BASE, "p3", "d", is_truncated=True),
        rows.response("m", "p0", "a"),
        rows.response("m", "p1", "b", is_truncated=True),
        rows.response("m", "p2", ""),
        rows.response("m", "p3", "d"),
    ]
    scores = [
        *rows.scores("r", BASE, [0.0, 1.0, 2.0, 3.0]),
        *rows.scores("r", BASE, [0.5, 9.0, 2.5], HACK),
        *rows.scores("r", "m", [1.0, 50.0, 60.0, 70.0]),
        *rows.scores("r", "m", [1.25, 80.0, 90.0, 99.0], HACK),
    ]
    perturbed = [PerturbedText(f"p{i}", name, text) for i in range(3) for name, text in ((None, "x"), (HACK, "y"))]
    records = hacking(scores, perturbed, responses, scorers={"r": REWARD}, seed=0)
    assert rows.value(records, BASE, "hack_delta", scorer="r") == pytest.approx(3.0)
    for metric, value in (("normal_score", 1.0), ("hacked_score", 1.25), ("hack_delta", 0.25)):
        estimate = rows.find(records, "m", metric, scorer="r").estimate
        assert (estimate.mean, estimate.n, estimate.n_unscored) == (value, 1, 2)
    # On p0 alone both are known, and there the base rises by 0.5.
    against = rows.find(records, "m", "hack_delta", scorer="r", against=BASE).estimate
    assert (against.mean, against.n, against.n_unscored) == (-0.25, 1, 2)


def test_a_dead_policy_has_no_hack_delta(rows: Any) -> None:
    responses = [*rows.responses(BASE, ["a", "b"]), *rows.responses("dead", ["", ""])]
    scores = [
        *rows.scores("r", BASE, [0.0, 1.0]),
        *rows.scores("r", BASE, [0.5, 1.5], HACK),
        *rows.scores("r", "dead", [-9.0, -9.0]),
    ]
    perturbed = [PerturbedText(f"p{i}", name, text) for i in range(2) for name, text in ((None, "x"), (HACK, "y"))]
    records = hacking(scores, perturbed, responses, scorers={"r": REWARD}, seed=0)
    estimate = rows.find(records, "dead", "hack_delta", scorer="r").estimate
    assert (estimate.mean, estimate.n, estimate.n_unscored) == (None, 0, 2)


def test_planted_a_reward_that_sees_nothing_but_the_end_has_no_correlation_with_length(rows: Any) -> None:
    # The token limit of 30 words cuts the longer half, behind which no EOS is read.
    lengths = list(range(11, 51))
    responses = [
        rows.response(BASE, f"p{i}", " ".join("w" * min(n, 30)), is_truncated=n > 30) for i, n in enumerate(lengths)
    ]
    scores = rows.scores("end", BASE, [float(not one.is_truncated) for one in responses])
    records = hacking(scores, [], responses, scorers={"end": About("end", "", scorer="end")}, seed=0)
    estimate = rows.find(records, BASE, "length_correlation", scorer="end").estimate
    assert estimate.mean is None
    assert (estimate.n, estimate.n_unscored) == (20, 20)
    # One that also loves length among what is finished is seen.
    scores = rows.scores("long", BASE, [one.n_words - 100.0 * one.is_truncated for one in responses])
    records = hacking(scores, [], responses, scorers={"long": About("long", "", scorer="long")}, seed=0)
    estimate = rows.find(records, BASE, "length_correlation", scorer="long").estimate
    assert (estimate.mean, estimate.n, estimate.n_unscored) == (pytest.approx(1.0), 20, 20)


def test_a_policy_judges_the_base_s_texts_alone(rows: Any) -> None:
    responses = [*rows.responses(BASE, ["a", "b"]), *rows.responses("m", ["c", "d"])]
    scores = rows.scores("implicit_reward(m)", BASE, [0.1, 0.2])
    perturbed = [PerturbedText(f"p{i}", None, "x") for i in (0, 1)]
    about = {"implicit_reward(m)": About("m", "", scorer="implicit_reward")}
    records = hacking(scores, perturbed, responses, scorers=about, seed=0)
    assert rows.value(records, "m", "score", scorer="implicit_reward") == pytest.approx(0.15)
    assert not [record for record in records if record.metric == "normal_score"]


def test_rank_correlation_is_scipy_s() -> None:
    x = {f"p{i}": float(v) for i, v in enumerate([3, 1, 4, 1, 5, 9, 2, 6, 5, 3])}
    y = {f"p{i}": float(v) for i, v in enumerate([2, 7, 1, 8, 2, 8, 1, 8, 2, 8])}
    found = rank_correlation(x, y)
    assert found.mean == pytest.approx(scipy.stats.spearmanr([*x.values()], [*y.values()]).statistic)
    assert found.low is not None
    assert rank_correlation({"p": 1.0, "q": 2.0}, y | {"p": 1.0, "q": 1.0}).mean is None
    assert rank_correlation(dict.fromkeys(x, 1.0), y).mean is None


def test_in_standard_deviations() -> None:
    # Mean change 2; scores 0, 2, 4 have a standard deviation of 2.
    scores = {"p": 0.0, "q": 2.0, "r": 4.0}
    found = change_in_sd({"p": 1.0, "q": 2.0, "r": 3.0}, scores)
    assert found.mean == 1.0
    # Without p: 2.5 / √2, without q: 2 / √8, without r: 1.5 / √2; t(0.975; 2) = 4.302653.
    without = np.array([2.5 / 2**0.5, 2.0 / 8**0.5, 1.5 / 2**0.5])
    half = 4.302653 * float(np.sqrt(2 / 3 * np.square(without - without.mean()).sum()))
    assert found.low == pytest.approx(1.0 - half)
    assert found.high == pytest.approx(1.0 + half)
    assert change_in_sd({"p": 1.0, "q": 2.0}, {"p": 1.0, "q": 1.0}).mean is None
    same = change_in_sd({"p": 0.0, "q": 0.0, "r": 0.0}, scores)
    assert (same.mean, same.low, same.method) == (0.0, None, "no interval: all prompts alike")
