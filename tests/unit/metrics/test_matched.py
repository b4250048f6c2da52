"""Distinct-n at equal amounts of text: against all draws there are, and by properties."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.metrics import distinct_n, matched_distinct_n, matched_distinct_without_each, ngrams, words

TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=5).map(" ".join), min_size=1, max_size=4)


def by_all_draws(texts: list[str], m: int, n: int) -> float:
    grams = [gram for text in texts for gram in ngrams(words(text), n)]
    counts = [len(set(draw)) / m for draw in combinations(grams, m)]
    return math.fsum(counts) / len(counts)


def test_by_hand() -> None:
    # Of a, a, b two are drawn: aa has one type, ab (twice) has two: 5/3 types of 2.
    assert matched_distinct_n(["a a b"], ["x", "y"], 1) == pytest.approx((5 / 6, 1.0))


@settings(deadline=None, max_examples=60)
@given(TEXTS, TEXTS, st.integers(1, 2))
def test_it_is_the_mean_over_all_draws(texts: list[str], other: list[str], n: int) -> None:
    sizes = [sum(len(ngrams(words(text), n)) for text in side) for side in (texts, other)]
    found = matched_distinct_n(texts, other, n)
    if 0 in sizes:
        assert all(map(math.isnan, found))
        return
    if math.comb(max(sizes), min(sizes)) > 3000:
        return
    for side, value in zip((texts, other), found, strict=True):
        assert value == pytest.approx(by_all_draws(side, min(sizes), n), abs=1e-9)
    # The smaller side is not drawn from.
    small = (texts, other)[int(np.argmin(sizes))]
    assert found[int(np.argmin(sizes))] == pytest.approx(distinct_n(small, n))


@settings(deadline=None, max_examples=60)
@given(TEXTS, TEXTS)
def test_sides_swap_and_the_seed_is_of_no_effect(texts: list[str], other: list[str]) -> None:
    first = matched_distinct_n(texts, other, 1)
    assert matched_distinct_n(other, texts, 1, seed=3)[::-1] == pytest.approx(first, nan_ok=True)
    same = matched_distinct_n(texts, texts, 1)
    assert same == pytest.approx((distinct_n(texts, 1),) * 2, nan_ok=True)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.text("ab ", max_size=8), st.text("ab ", max_size=8)), min_size=1, max_size=5))
def test_without_each_prompt(pairs: list[tuple[str, str]]) -> None:
    texts, other = [one for one, _ in pairs], [two for _, two in pairs]
    without = matched_distinct_without_each(texts, other, 1)
    for row in range(len(pairs)):
        mine, theirs = (side[:row] + side[row + 1 :] for side in (texts, other))
        expected = matched_distinct_n(mine, theirs, 1)
        assert (without.texts[row], without.other[row]) == pytest.approx(expected, nan_ok=True)


def test_large_texts_keep_their_precision() -> None:
    # 40,000 words of which half is drawn: of each type with c occurrences all are missed with (1/2)^c, nearly.
    texts = [" ".join(f"w{i}" for i in range(10_000))] * 4
    value, _ = matched_distinct_n(texts, [" ".join(f"v{i}" for i in range(20_000))], 1)
    assert value == pytest.approx(10_000 * (1 - 0.5**4) / 20_000, abs=1e-4)


def test_prompts_must_pair_up() -> None:
    with pytest.raises(ValueError, match="2 texts against 1"):
        matched_distinct_without_each(["a", "b"], ["a"], 1)
