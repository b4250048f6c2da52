"""Lengths that a limit cut, against what they might have become."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.censoring import (
    censored_mean,
    censored_mean_difference,
    censored_median,
    censored_median_difference,
    is_median_exact,
)
from triptych.records import Estimate
from triptych.reports import format as fmt


def known(mean: float | None = 128.0) -> Estimate:
    return Estimate(mean=mean, low=100.0, high=130.0, n=9, n_clusters=9, method="95% of it")


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=7))
def test_a_median_is_exact_where_nothing_that_was_cut_could_move_it(texts: list[tuple[int, bool]]) -> None:
    lengths, cut = [float(length) for length, _ in texts], [is_cut for _, is_cut in texts]
    if_endless = [length + 1e6 * is_cut for length, is_cut in zip(lengths, cut, strict=True)]
    assert is_median_exact(lengths, cut) == (np.median(lengths) == np.median(if_endless))


@pytest.mark.parametrize(
    ("texts", "exact"),
    [
        ([(1.0, False), (2.0, False), (8.0, True)], True),
        ([(1.0, False), (8.0, True), (8.0, True)], False),
        # The text in the middle is cut, and with it the mean of the two in the middle.
        ([(1.0, False), (2.0, False), (8.0, True), (8.0, True)], False),
        # Cut, but longer than the middle two: words are cut at any number of them.
        ([(1.0, False), (2.0, False), (3.0, False), (3.0, True)], True),
    ],
)
def test_medians_by_hand(texts: list[tuple[float, bool]], exact: bool) -> None:
    assert is_median_exact(*zip(*texts, strict=True)) is exact


def test_a_median_among_cut_texts_is_a_bound_without_interval() -> None:
    assert censored_median(known(), is_exact=True) == known()
    bound = censored_median(known(), is_exact=False)
    assert (bound.mean, bound.low, bound.bound) == (128.0, None, "lower")
    assert fmt.value(bound) == f"≥{fmt.NBSP}128"
    assert fmt.with_interval(bound).startswith(f"≥{fmt.NBSP}128")


@pytest.mark.parametrize(
    ("is_exact", "is_base_exact", "bound", "mean"),
    [
        (True, True, None, -40.0),
        # The base's median is 128 or more, so that the difference is -40 or less.
        (True, False, "upper", -40.0),
        (False, True, "lower", -40.0),
        (False, False, None, None),
    ],
)
def test_differences_of_medians_are_one_sided_or_unknown(
    is_exact: bool, is_base_exact: bool, bound: str | None, mean: float | None
) -> None:
    estimate = Estimate(mean=-40.0, low=-50.0, high=-30.0, n=9, n_clusters=9, method="m")
    found = censored_median_difference(estimate, is_exact=is_exact, is_base_exact=is_base_exact)
    assert (found.bound, found.mean) == (bound, mean)
    assert (found.low is None) == (not (is_exact and is_base_exact))


def test_means_of_cut_texts_are_bounds_that_keep_their_interval() -> None:
    assert censored_mean(known(), [False] * 9) == known()
    bound = censored_mean(known(), [True, *[False] * 8])
    assert (bound.bound, bound.low, bound.high) == ("lower", 100.0, 130.0)
    assert bound.method == "95% of it; within the token limit, which cut 1 of 9 texts"
    assert fmt.with_interval(bound) == f"≥{fmt.NBSP}128{fmt.NBSP}[100,{fmt.NBSP}130]"


@pytest.mark.parametrize(
    ("own", "base", "bound"),
    [(False, False, None), (True, False, "lower"), (False, True, "upper"), (True, True, None)],
)
def test_differences_of_means_are_one_sided_where_one_side_is_cut(own: bool, base: bool, bound: str | None) -> None:
    found = censored_mean_difference(known(), [own, False], [base])
    assert (found.mean, found.bound) == (128.0, bound)
    assert ("token limit" in found.method) == (own or base)


def test_what_has_no_value_is_no_bound() -> None:
    nothing = Estimate(mean=None, low=None, high=None, n=0, n_clusters=0, method="no estimate: nothing was scored")
    assert censored_median(nothing, is_exact=False) == nothing
    assert censored_median_difference(nothing, is_exact=False, is_base_exact=False) == nothing
    assert censored_mean(nothing, [True]) == censored_mean_difference(nothing, [True], [True]) == nothing
