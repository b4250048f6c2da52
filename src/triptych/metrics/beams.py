"""How clearly the best of a search's final beams stands out."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class BeamLead(NamedTuple):
    """The best beam against the runners-up that ended as it did."""

    gap: float
    """Nats by which its cumulative log-probability exceeds that of the next-best."""
    log_odds: float
    """ln(its probability / that of the runners-up together); above 0 where it holds more than half of them all."""


def beam_lead(scores: Sequence[float], is_complete: Sequence[bool]) -> BeamLead | None:
    """The lead of the first of a search's final beams, which come with the best first; None where it has no rival.

    `scores` are cumulative log-probabilities in nats. Only beams that ended like the first count, complete ones against
    complete ones: a beam that was cut has the probability of all its continuations together.
    """
    if not scores:
        return None
    best, *others = [score for score, complete in zip(scores, is_complete, strict=True) if complete == is_complete[0]]
    if not others:
        return None
    largest = max(others)
    together = largest + math.log(math.fsum(math.exp(score - largest) for score in others))
    return BeamLead(best - largest, best - together)
