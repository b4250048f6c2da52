import math

import pytest

from triptych.metrics import beam_lead


def test_by_hand() -> None:
    # Probabilities 0.5, 0.2 and 0.1: 2.5 times the next, and 0.5 / 0.3 of both together.
    lead = beam_lead([math.log(0.5), math.log(0.2), math.log(0.1)], [True] * 3)
    assert lead is not None
    assert lead.gap == pytest.approx(math.log(2.5))
    assert lead.log_odds == pytest.approx(math.log(5 / 3))


def test_only_beams_that_ended_like_the_best_are_rivals() -> None:
    # A cut beam stands behind a complete one, though it is more probable.
    lead = beam_lead([-5.0, -6.0, -2.0], [True, True, False])
    assert lead == pytest.approx((1.0, 1.0))
    assert beam_lead([-5.0, -2.0], [True, False]) is None
    assert beam_lead([-2.0, -3.0], [False, False]) == pytest.approx((1.0, 1.0))


def test_a_beam_alone_has_no_lead() -> None:
    assert beam_lead([-5.0], [True]) is None
    assert beam_lead([], []) is None


def test_scores_far_below_0_do_not_underflow() -> None:
    assert beam_lead([-2000.0, -2001.0, -2001.0], [True] * 3) == pytest.approx((1.0, 1.0 - math.log(2)))
