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
    assert rows.value(records, "classifier", "agreement") > 0.75
    assert rows.find(records, "classifier", "agreement").estimate.n == 240
    assert rows.value(records, "classifier", "agreement", "factual") > 0.7
    assert rows.value(records, "classifier", "kappa") > 0.65
