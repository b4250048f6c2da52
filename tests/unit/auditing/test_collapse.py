"""What is lost: by hand, and each planted failure."""

import math
from typing import Any

import pytest

from triptych.auditing.collapse import collapse
from triptych.auditing.records import BASE, AuditRecord, Level, Response
from triptych.auditing.thresholds import Thresholds
from triptych.auditing.verdicts import Check, judge
from triptych.data.pairs import load_pairs
from triptych.metrics import distinct_n
from triptych.records import Prompt

TEXTS = [" ".join(["rain", *(f"w{(31 * i + 7 * j * j) % 211}" for j in range(20))]) for i in range(20)]
PROMPTS = {
    f"p{i}": Prompt(id=f"p{i}", instruction="?", answers=("rain",) if i % 2 else (), checks={"max_words": 30})
    for i in range(20)
}


def measured(rows: Any, own: list[Response]) -> list[AuditRecord]:
    base = [*rows.responses(BASE, TEXTS), *rows.responses(BASE, TEXTS, kind="greedy")]
    return collapse([*base, *own], PROMPTS, seed=0)


def test_the_base_by_hand(rows: Any) -> None:
    records = measured(rows, [])
    assert rows.value(records, BASE, "empty_rate") == 0.0
    assert rows.value(records, BASE, "accuracy") == 1.0
    assert rows.find(records, BASE, "accuracy").estimate.n == 10
    assert rows.value(records, BASE, "checks") == 1.0
    # Every token was drawn with probability 1/e: an entropy of one nat.
    assert rows.value(records, BASE, "entropy") == pytest.approx(1.0)
    assert rows.value(records, BASE, "distinct_2") == pytest.approx(distinct_n(TEXTS, 2))
    assert not rows.differences(records)


def test_the_base_against_itself_differs_by_exactly_nothing(rows: Any) -> None:
    found = rows.differences(measured(rows, [*rows.responses("m", TEXTS), *rows.responses("m", TEXTS, kind="greedy")]))
    assert {record.metric for record in found} >= {
        "empty_rate",
        "distinct_1",
        "matched_distinct_2",
        "self_bleu",
        "accuracy",
        "entropy",
    }
    for record in found:
        assert record.estimate.mean == (1.0 if record.metric == "entropy_ratio" else 0.0), record.metric
        assert record.estimate.low is None


class TestPlantedFailures:
    def test_a_model_that_answers_with_eos_alone(self, rows: Any) -> None:
        records = measured(rows, rows.responses("silent", [""] * 20))
        assert rows.value(records, "silent", "empty_rate", against=BASE) == 1.0
        # Of no words nothing is known but that there are none.
        assert rows.find(records, "silent", "distinct_1").estimate.mean is None
        assert rows.value(records, "silent", "checks") == 0.0

    def test_a_model_that_is_silent_now_and_then(self, rows: Any) -> None:
        records = measured(rows, rows.responses("silent", [text if i % 2 else " " for i, text in enumerate(TEXTS)]))
        estimate = rows.find(records, "silent", "empty_rate", against=BASE).estimate
        assert estimate.mean == 0.5
        assert estimate.low > 0.2

    def test_a_model_that_repeats_itself(self, rows: Any) -> None:
        records = measured(rows, rows.responses("stuck", ["no no no no no no no no"] * 20))
        # 9 tokens with EOS: 7 trigrams, of which "no no no" (six times) and one with EOS are 2 different ones.
        assert rows.value(records, "stuck", "repetition") == pytest.approx(1 - 2 / 7)
        assert rows.value(records, "stuck", "repetition", against=BASE) == pytest.approx(1 - 2 / 7)
        assert rows.value(records, "stuck", "distinct_2", against=BASE) < -0.1

    def test_a_model_that_gives_everybody_the_same_answer(self, rows: Any) -> None:
        records = measured(rows, rows.responses("same", TEXTS[:1] * 20))
        assert rows.value(records, "same", "self_bleu") == pytest.approx(1.0)
        assert rows.value(records, "same", "self_bleu", against=BASE) > 0.1

    def test_a_model_that_has_forgotten(self, rows: Any) -> None:
        wrong = [text.replace("rain", "snow") for text in TEXTS]
        records = measured(rows, [*rows.responses("m", TEXTS), *rows.responses("m", wrong, kind="greedy")])
        assert rows.value(records, "m", "accuracy", against=BASE) == -1.0

    def test_a_model_that_is_sure_of_everything(self, rows: Any) -> None:
        sure = [one._replace(logprobs=[-0.1] * len(one.logprobs)) for one in rows.responses("sure", TEXTS)]
        records = measured(rows, sure)
        assert rows.value(records, "sure", "entropy_ratio", against=BASE) == pytest.approx(0.1)

    def test_a_model_that_never_stops(self, rows: Any) -> None:
        records = measured(rows, rows.responses("endless", TEXTS, is_truncated=True))
        assert rows.value(records, "endless", "truncated_rate", against=BASE) == 1.0


@pytest.fixture(scope="module")
def written(rows: Any) -> list[Response]:
    """English of a base: the chosen answers of the starter pairs."""
    texts = [pair.chosen for pair in load_pairs("starter", limit=60)]
    made: list[Response] = rows.responses(BASE, texts)
    return made


def diversity(rows: Any, base: list[Response], own: list[str]) -> tuple[AuditRecord, Level]:
    prompts = {one.prompt_id: Prompt(id=one.prompt_id, instruction="?") for one in base}
    records = collapse([*base, *rows.responses("m", own)], prompts, seed=0)
    record = rows.find(records, "m", "matched_distinct_2", against=BASE)
    return record, judge([Check(record.estimate, Thresholds().diversity, "below")])[0].level


class TestDiversityAtEqualAmountsOfText:
    @pytest.mark.parametrize("start", [0, 1])
    def test_texts_cut_to_half_are_no_less_varied(self, rows: Any, written: list[Response], start: int) -> None:
        halves = [one.text.split() for one in written]
        own = [" ".join((w[: len(w) // 2], w[len(w) // 2 :])[start]) for w in halves]
        record, level = diversity(rows, written, own)
        assert abs(record.estimate.mean or 0.0) < 0.03
        assert level == "ok"
        assert record.estimate.low is not None

    def test_half_of_the_texts_are_no_less_varied(self, rows: Any, written: list[Response]) -> None:
        record, level = diversity(rows, written, [one.text if i % 2 else "" for i, one in enumerate(written)])
        assert abs(record.estimate.mean or 0.0) < 0.03
        assert level == "ok"

    def test_texts_that_repeat_their_words_are_flagged(self, rows: Any, written: list[Response]) -> None:
        record, level = diversity(rows, written, [f"{one.text} {one.text}" for one in written])
        assert (record.estimate.mean or 0.0) < -0.15
        assert level == "warn"
        # Also where they are cut to the length that they had.
        own = [" ".join((one.text.split()[: one.n_words // 2 + 1]) * 2) for one in written]
        assert diversity(rows, written, own)[1] == "severe"

    def test_the_same_answer_to_everybody_is_flagged(self, rows: Any, written: list[Response]) -> None:
        assert diversity(rows, written, [written[0].text] * len(written))[1] == "severe"

    def test_silence_has_no_diversity(self, rows: Any, written: list[Response]) -> None:
        assert diversity(rows, written, [""] * len(written))[0].estimate.mean is None


def test_a_response_too_short_to_repeat_anything_is_unscored(rows: Any) -> None:
    records = measured(rows, rows.responses("brief", ["yes"] * 10 + TEXTS[10:]))
    estimate = rows.find(records, "brief", "repetition").estimate
    assert (estimate.n, estimate.n_unscored) == (10, 10)
    assert math.isfinite(estimate.mean)
