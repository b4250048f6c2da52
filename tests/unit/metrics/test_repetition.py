import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.metrics import max_ngram_count, repeated_ngram_fraction, seq_rep_n

# No deadline: on a busy machine a single slow example is no failure.
PROPERTY = settings(deadline=None, max_examples=50)
TOKENS = st.lists(st.integers(0, 3), max_size=30)
ORDERS = st.integers(1, 4)


def test_repeated_ngram_fraction_by_hand() -> None:
    # 1 2 3 1 2 3 1: trigrams 123 231 312 123 231, five of them, three unique: 1 - 3/5.
    assert repeated_ngram_fraction([1, 2, 3, 1, 2, 3, 1]) == pytest.approx(2 / 5)
    # The same tokens one by one: seven, three unique.
    assert repeated_ngram_fraction([1, 2, 3, 1, 2, 3, 1], n=1) == pytest.approx(4 / 7)


def test_nothing_repeats_in_distinct_tokens() -> None:
    assert repeated_ngram_fraction([5, 6, 7, 8]) == 0.0


def test_no_ngram_is_nan_and_not_zero() -> None:
    assert math.isnan(repeated_ngram_fraction([1, 2]))
    assert math.isnan(repeated_ngram_fraction([], n=1))


def test_max_ngram_count_by_hand() -> None:
    # 7 7 7 7 7: the trigram 777 starts at positions 0, 1 and 2; overlapping occurrences count.
    assert max_ngram_count([7, 7, 7, 7, 7]) == 3
    # 1 2 3 1 2 3 1: 123 and 231 twice each, 312 once.
    assert max_ngram_count([1, 2, 3, 1, 2, 3, 1]) == 2
    assert max_ngram_count([1, 2]) == 0


def test_seq_rep_n_is_the_papers_name() -> None:
    assert seq_rep_n is repeated_ngram_fraction


@pytest.mark.parametrize("measure", [repeated_ngram_fraction, max_ngram_count])
def test_an_order_below_one_is_refused(measure: Callable[..., float]) -> None:
    with pytest.raises(ValueError, match="n must be at least 1 to form n-grams, got 0"):
        measure([1, 2, 3], n=0)


@PROPERTY
@given(TOKENS, ORDERS)
def test_the_two_measures_agree_on_whether_anything_repeats(tokens: list[int], n: int) -> None:
    fraction, most = repeated_ngram_fraction(tokens, n), max_ngram_count(tokens, n)
    if math.isnan(fraction):
        assert most == 0
    else:
        assert 0.0 <= fraction < 1.0
        assert (fraction > 0) == (most > 1)


@PROPERTY
@given(TOKENS, ORDERS)
def test_reversal_changes_neither(tokens: list[int], n: int) -> None:
    # Reversing the sequence reverses every n-gram: a bijection of n-grams that keeps their counts.
    assert max_ngram_count(tokens, n) == max_ngram_count(tokens[::-1], n)
    assert repeated_ngram_fraction(tokens, n) == pytest.approx(repeated_ngram_fraction(tokens[::-1], n), nan_ok=True)
