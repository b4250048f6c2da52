"""Checkpoints beside their base: by hand, and a policy that wins by writing more."""

from typing import Any

import pytest

from triptych.auditing.comparison import comparison
from triptych.auditing.divergence import divergence
from triptych.auditing.records import BASE


def test_by_hand(rows: Any) -> None:
    responses = [*rows.responses(BASE, ["a b"] * 4), *rows.responses("m", ["c d"] * 4)]
    scores = [*rows.scores("r", BASE, [0.0, 1.0, 2.0, None]), *rows.scores("r", "m", [1.0, 1.0, 1.0, 5.0])]
    records = comparison(scores, responses, [], scorers=["r"], seed=0)
    assert rows.value(records, BASE, "score", scorer="r") == 1.0
    assert rows.value(records, "m", "score", scorer="r") == 2.0
    # Paired where both are scored: +1, 0, -1; a win, a tie, a loss.
    assert rows.value(records, "m", "score", scorer="r", against=BASE) == 0.0
    assert rows.value(records, "m", "win_rate", scorer="r", against=BASE) == 0.5
    assert rows.value(records, "m", "win_rate_length_controlled", scorer="r", against=BASE) == pytest.approx(0.5)


def test_the_base_against_itself(rows: Any) -> None:
    texts = [f"{'w ' * (i + 1)}" for i in range(12)]
    responses = [*rows.responses(BASE, texts), *rows.responses("same", texts)]
    scores = [one for model in (BASE, "same") for one in rows.scores("r", model, [float(i % 5) for i in range(12)])]
    records = comparison(scores, responses, [], scorers=["r"], seed=0)
    assert rows.value(records, "same", "score", scorer="r", against=BASE) == 0.0
    assert rows.value(records, "same", "score_change_in_sd", scorer="r", against=BASE) == 0.0
    assert rows.value(records, "same", "win_rate", scorer="r", against=BASE) == 0.5
    assert rows.value(records, "same", "win_rate_length_controlled", scorer="r", against=BASE) == 0.5


def test_a_policy_that_wins_by_writing_more(rows: Any) -> None:
    # A reward of one a word; the policy is longer in 32 of 40 comparisons, shorter in 8, and has no other merit.
    lengths = [(10, 14 if i % 5 else 6) for i in range(40)]
    responses = [
        *rows.responses(BASE, [" ".join("w" * a) for a, _ in lengths]),
        *rows.responses("long", [" ".join("w" * b) for _, b in lengths]),
    ]
    scores = [
        *rows.scores("words", BASE, [float(a) for a, _ in lengths]),
        *rows.scores("words", "long", [float(b) for _, b in lengths]),
    ]
    records = comparison(scores, responses, [], scorers=["words"], seed=0)
    raw = rows.value(records, "long", "win_rate", scorer="words", against=BASE)
    controlled = rows.value(records, "long", "win_rate_length_controlled", scorer="words", against=BASE)
    assert raw == 0.8
    # Separated data, so that Firth's penalty decides: half-way between logits of 32.5/0.5 and 0.5/8.5.
    assert controlled == pytest.approx(1 / (1 + ((0.5 / 32.5) * (8.5 / 0.5)) ** 0.5), abs=0.02)


def test_beside_the_win_rate_stands_that_of_finished_answers(rows: Any) -> None:
    responses = [
        rows.response(BASE, "p0", "a"),
        rows.response(BASE, "p1", "a", is_truncated=True),
        rows.response(BASE, "p2", "a"),
        rows.response("m", "p0", "b"),
        rows.response("m", "p1", "b"),
        rows.response("m", "p2", "b", is_truncated=True),
    ]
    scores = [*rows.scores("r", BASE, [0.0, 0.0, 1.0]), *rows.scores("r", "m", [1.0, 1.0, 0.0])]
    records = comparison(scores, responses, [], scorers=["r"], seed=0)
    assert rows.value(records, "m", "win_rate", scorer="r", against=BASE) == pytest.approx(2 / 3)
    finished = rows.find(records, "m", "win_rate_finished", scorer="r", against=BASE).estimate
    assert (finished.mean, finished.n, finished.n_unscored) == (1.0, 1, 2)


def test_distance_is_the_root_of_the_kl(rows: Any) -> None:
    tokens = [rows.token("m", f"p{i}", -1.0, -1.0, kl=0.25, text="own") for i in range(10)]
    records = comparison([], [], divergence(tokens, seed=0), scorers=[], seed=0)
    assert rows.value(records, "m", "sqrt_kl") == pytest.approx(0.5)
