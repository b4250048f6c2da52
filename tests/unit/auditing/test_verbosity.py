"""Lengths: against numpy and scipy, by hand, and the planted failures of table 3's rows."""

from typing import Any

import numpy as np
import pytest
import scipy.stats

from triptych.auditing.records import BASE, AuditRecord, Response
from triptych.auditing.verbosity import verbosity

TEXTS = ["a b c", "a", "a b c d e f g", "a b", "a b c d", "a b c d e f g h i j k l"]


@pytest.fixture(scope="module")
def records(rows: Any) -> list[AuditRecord]:
    own = [rows.response("m", f"p{i}", text, category=("factual", "other")[i % 2]) for i, text in enumerate(TEXTS)]
    base = [
        rows.response(BASE, f"p{i}", f"{text} z", category=("factual", "other")[i % 2]) for i, text in enumerate(TEXTS)
    ]
    return verbosity([*base, *own], limit=50, seed=0)


class TestLengths:
    @pytest.mark.parametrize("unit", ["tokens", "words"])
    def test_they_are_numpy_s_and_scipy_s(self, rows: Any, records: list[AuditRecord], unit: str) -> None:
        lengths = np.array([3, 1, 7, 2, 4, 12])
        expected = {
            "mean": lengths.mean(),
            "median": np.median(lengths),
            "std": lengths.std(ddof=1),
            "skew": scipy.stats.skew(lengths),
        }
        for name, number in expected.items():
            assert rows.value(records, "m", f"{unit}_{name}") == pytest.approx(float(number)), name

    def test_of_a_category(self, rows: Any, records: list[AuditRecord]) -> None:
        assert rows.value(records, "m", "words_mean", "factual") == pytest.approx((3 + 7 + 4) / 3)
        assert rows.find(records, "m", "words_mean", "factual").estimate.n == 3
        assert not [r for r in records if r.category == "explanation" and r.model == "m"]

    def test_differences_are_paired(self, rows: Any, records: list[AuditRecord]) -> None:
        # The base has one word more everywhere: the difference is exactly -1 and has no spread.
        difference = rows.find(records, "m", "words_mean", against=BASE).estimate
        assert (difference.mean, difference.low) == (-1.0, None)
        assert "all prompts alike" in difference.method
        assert rows.value(records, "m", "words_median", against=BASE) == -1.0
        assert rows.value(records, "m", "words_std", against=BASE) == pytest.approx(0.0)
        assert rows.value(records, "m", "words_ratio", against=BASE) == pytest.approx(29 / 35)


class TestTheLimit:
    def records(self, rows: Any, lengths: dict[str, list[int]], limit: int = 5) -> list[AuditRecord]:
        made: list[Response] = []
        for model, own in lengths.items():
            made += rows.responses(model, [" ".join("w" * n) for n in own], kind="limited")
        return verbosity(made, limit=limit, seed=0)

    def test_by_hand(self, rows: Any) -> None:
        # Limit 5: 3 and 5 keep it; 8 and 12 go 3 and 7 beyond: mean 5, sample deviation √8.
        records = self.records(rows, {BASE: [3, 5, 8, 12]})
        assert rows.value(records, BASE, "compliance_rate") == 0.5
        assert rows.value(records, BASE, "deviation_mean") == 5.0
        assert rows.value(records, BASE, "deviation_std") == pytest.approx(8**0.5)
        assert rows.value(records, BASE, "absolute_deviation_mean") == (2 + 0 + 3 + 7) / 4
        assert rows.find(records, BASE, "deviation_mean").estimate.n == 2
        assert rows.find(records, BASE, "deviation_mean").estimate.n_unscored == 2

    def test_nobody_over_the_limit_is_no_deviation_rather_than_none(self, rows: Any) -> None:
        records = self.records(rows, {BASE: [1, 2, 3]})
        assert rows.value(records, BASE, "compliance_rate") == 1.0
        estimate = rows.find(records, BASE, "deviation_mean").estimate
        assert (estimate.mean, estimate.n, estimate.n_unscored) == (None, 0, 3)

    def test_a_policy_that_ignores_it(self, rows: Any) -> None:
        records = self.records(rows, {BASE: [3] * 10, "chatty": [30] * 10})
        assert rows.value(records, "chatty", "compliance_rate", against=BASE) == -1.0
        assert rows.value(records, "chatty", "deviation_mean") == 25.0


class TestPlantedFailures:
    def test_silence_neither_keeps_a_limit_nor_breaks_it(self, rows: Any) -> None:
        made = [
            *rows.responses(BASE, ["a b", "a b c", "a", "a b c d e f"], kind="limited"),
            *rows.responses("dead", ["", " ", "", "\n"], kind="limited"),
            *rows.responses("half", ["", "a b", "a b c d e f g", ""], kind="limited"),
        ]
        records = verbosity(made, limit=5, seed=0)
        for metric in ("compliance_rate", "deviation_mean", "absolute_deviation_mean"):
            for against in (None, BASE):
                assert rows.find(records, "dead", metric, against=against).estimate.mean is None, metric
        dead = rows.find(records, "dead", "compliance_rate").estimate
        assert (dead.n, dead.n_unscored) == (0, 4)
        assert rows.value(records, "dead", "limited_empty_rate") == 1.0
        half = rows.find(records, "half", "compliance_rate").estimate
        assert (half.mean, half.n, half.n_unscored) == (0.5, 2, 2)
        assert rows.value(records, "half", "limited_empty_rate", against=BASE) == 0.5
        # |2 - 5| and |7 - 5|; silence is not 5 words off.
        assert rows.value(records, "half", "absolute_deviation_mean") == 2.5

    def test_a_cut_response_breaks_the_limit_or_nobody_knows(self, rows: Any) -> None:
        made = [
            rows.response(BASE, "p0", "a b c", kind="limited"),
            rows.response(BASE, "p1", "a b c d", kind="limited", is_truncated=True),
            rows.response(BASE, "p2", "a b c d e f g h", kind="limited", is_truncated=True),
            rows.response(BASE, "p3", "a b c d e f", kind="limited"),
        ]
        records = verbosity(made, limit=5, seed=0)
        kept = rows.find(records, BASE, "compliance_rate").estimate
        assert (kept.mean, kept.n, kept.n_unscored) == (pytest.approx(1 / 3), 3, 1)
        assert rows.value(records, BASE, "limited_truncated_rate") == 0.5
        for metric, value in (("deviation_mean", (3 + 1) / 2), ("absolute_deviation_mean", (2 + 3 + 1) / 3)):
            estimate = rows.find(records, BASE, metric).estimate
            assert (estimate.mean, estimate.bound) == (value, "lower"), metric

    def test_lengths_that_the_token_limit_cuts_are_bounds(self, rows: Any) -> None:
        # Eight tokens at most: the base is cut on 6 of 10 prompts, the checkpoint on 2, the short one never.
        lengths = {BASE: [1, 2, 3, 4, *[8] * 6], "some": [1, 1, 2, 2, 3, 3, 4, 4, 8, 8], "short": [1] * 5 + [2] * 5}
        made = [
            rows.response(model, f"p{i}", " ".join("w" * n), is_truncated=n == 8)
            for model, own in lengths.items()
            for i, n in enumerate(own)
        ]
        records = verbosity(made, limit=5, seed=0)

        def bound(model: str, metric: str, against: str | None = None) -> Any:
            estimate = rows.find(records, model, metric, against=against).estimate
            return estimate.mean, estimate.bound

        for unit in ("tokens", "words"):
            assert bound(BASE, f"{unit}_median") == (8.0, "lower")
            assert bound("some", f"{unit}_median") == (3.0, None)
            assert bound("some", f"{unit}_median", BASE) == (-5.0, "upper")
            assert bound(BASE, f"{unit}_mean") == (5.8, "lower")
            assert bound("some", f"{unit}_mean") == (3.6, "lower")
            assert bound("short", f"{unit}_mean") == (1.5, None)
            # Within the limit both means are known; beyond it, that of the base alone is open.
            assert bound("some", f"{unit}_mean", BASE) == (pytest.approx(-2.2), None)
            assert bound("short", f"{unit}_mean", BASE) == (pytest.approx(-4.3), "upper")
            assert bound("short", f"{unit}_ratio", BASE) == (pytest.approx(1.5 / 5.8), "upper")
            assert rows.find(records, BASE, f"{unit}_median").estimate.low is None
            assert "cut 6 of 10" in rows.find(records, BASE, f"{unit}_std").estimate.method

    def test_two_medians_at_the_limit_say_nothing_of_their_difference(self, rows: Any) -> None:
        made = [rows.response(model, f"p{i}", "w w w w", is_truncated=True) for model in (BASE, "m") for i in range(10)]
        estimate = rows.find(verbosity(made, limit=5, seed=0), "m", "tokens_median", against=BASE).estimate
        assert (estimate.mean, estimate.bound) == (None, None)


def test_the_base_against_itself_differs_by_exactly_nothing(rows: Any) -> None:
    made = [
        one
        for model in (BASE, "same")
        for kind in ("plain", "limited")
        for one in rows.responses(model, [text * 20 for text in TEXTS], kind=kind)
    ]
    found = rows.differences(verbosity(made, limit=10, seed=0))
    assert len(found) > 10
    for record in found:
        expected = 1.0 if record.metric == "words_ratio" or record.metric == "tokens_ratio" else 0.0
        assert record.estimate.mean == expected, record.metric


def test_silence(rows: Any) -> None:
    made = [*rows.responses(BASE, TEXTS), *rows.responses("silent", [""] * len(TEXTS))]
    records = verbosity(made, limit=50, seed=0)
    assert rows.value(records, "silent", "tokens_median") == 0.0
    assert rows.value(records, "silent", "words_ratio", against=BASE) == 0.0


def test_how_good_the_classifier_is_is_said(rows: Any, records: list[AuditRecord]) -> None:
    assert rows.value(records, "classifier", "agreement") > 0.85
    assert rows.find(records, "classifier", "agreement").estimate.n == 126
    assert rows.value(records, "classifier", "agreement", "factual") > 0.8
    assert rows.value(records, "classifier", "kappa") > 0.75
