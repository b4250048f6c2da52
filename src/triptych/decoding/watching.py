"""Watching completions grow: what a page that shows them token by token is told of every step.

Nothing here changes what is drawn. Not here: who is told (`triptych.explorer`), and drawing itself (`sampling`).
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch

from triptych.decoding import transforms
from triptych.decoding.head import HeadSource
from triptych.decoding.sampling import FIRST_HEAD, parameter_columns
from triptych.decoding.search import Move, Predictions
from triptych.decoding.strategies import Sampler, Strategy
from triptych.records import Generation

SHOWN = 10
"""Alternatives of a token."""
LONGEST_HEAD = 4096
"""Tokens that are looked at to count what a truncation keeps; where it keeps more, nobody needs the exact number."""


class Glance(NamedTuple):
    """The most probable tokens at one step, and which of them could have been drawn."""

    ids: list[int]
    """At most `SHOWN`, the most probable first."""
    probabilities: list[float]
    """At the strategy's temperature, before truncation."""
    kept: list[bool]
    kept_count: int | None
    """Tokens that could have been drawn; None where they are more than `LONGEST_HEAD`."""
    kept_mass: float | None
    """Their probability together, before truncation; None likewise."""


@runtime_checkable
class Watcher(Protocol):
    """Told of one completion's steps, in order, by the thread that makes them."""

    def chose(self, token: int, logprob: float, sampler_logprob: float, glance: Glance) -> None:
        """A token was drawn, or taken greedily; log-probabilities in nats, as in `Generation`."""

    def moved(self, predictions: Predictions, move: Move) -> None:
        """A search went on, or ended."""

    def ended(self, generation: Generation) -> None:
        """The completion is finished."""


def glance(source: HeadSource, row: int, strategy: Strategy) -> Glance:
    """What `strategy` could have drawn at a row of the logits. Greedily there is one such token."""
    rows = torch.tensor([row], device=source.device)
    if not isinstance(strategy, Sampler):
        head = source.take(rows, SHOWN)
        probabilities = head.logp[0].double().exp().tolist()
        kept = [rank == 0 for rank in range(len(probabilities))]
        return Glance(head.ids[0].tolist(), probabilities, kept, 1, probabilities[0])
    truncate, columns = transforms.TRUNCATIONS[strategy.name], parameter_columns([strategy], source.device)
    m = FIRST_HEAD
    while True:
        head = source.take(rows, m)
        kept_head = truncate(head, *columns)
        # A mask that reaches the end of the head may go on behind it.
        is_whole = head.complete or not (kept_head.total.isnan().any() or kept_head.mask[0, -1])
        if is_whole or m >= LONGEST_HEAD:
            break
        m *= FIRST_HEAD
    return Glance(
        head.ids[0, :SHOWN].tolist(),
        head.logp[0, :SHOWN].double().exp().tolist(),
        kept_head.mask[0, :SHOWN].tolist(),
        int(kept_head.mask.sum()) if is_whole else None,
        float(kept_head.total[0]) if is_whole else None,
    )
