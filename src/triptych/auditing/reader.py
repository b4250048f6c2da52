"""A model as audits read it: texts behind prompts, packed without padding, to log-probabilities and exact divergences.

Policy and base read the very same passes, by the same code, so that what is the same model diverges by exactly 0. The
body is in the model's dtype; its last states and the head are float32: logits of 20 in bf16 are 0.06 apart, which alone
is a divergence of 10⁻³. What is read is chosen in `prompts`, what follows from it in `divergence` and `hacking`.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.alignment.head import TokenComparison, any_head, compare_heads, frozen_head
from triptych.alignment.packing import Group, Packed, micro_batches, pack
from triptych.alignment.policy import logits_of, plain_head, require_known_head
from triptych.alignment.trunk import make_trunk
from triptych.lanes import Lanes
from triptych.models import LanguageModel


class Reader:
    """One model, ready to read; with `beside`, a head that both have is in memory once.

    Raises `ModelError` for an architecture whose head is not known.
    """

    def __init__(self, lm: LanguageModel, beside: "Reader | None" = None) -> None:
        require_known_head(lm.base, lm.spec)
        self.lm = lm
        self.trunk = make_trunk(lm.base, lm.model, (), lora=None)
        head = plain_head(lm.base, torch.float32)
        if head is not None and beside is not None and beside._head is not None and torch.equal(head, beside._head):
            head = beside._head
        self.logits = logits_of(lm.base) if head is None else partial(F.linear, weight=head)
        self._head: Tensor | None = head

    @torch.no_grad()
    def states(self, packed: Packed) -> Tensor:
        """What the head reads before each completion token, [t, H] float32."""
        hidden = self.trunk.run(packed, True, None)
        return self.trunk.states(hidden[packed.sources.to(hidden.device)]).float()

    @torch.no_grad()
    def sums(self, packed: Packed) -> list[float]:
        """The log-probability of each completion, nats."""
        states = self.states(packed)
        targets = packed.targets.to(states.device)
        if self._head is not None:
            read = frozen_head(states, self._head, targets, 1.0).logprobs
        else:
            read = any_head(states, self.logits, targets, 1.0).logprobs
        summed = read.new_zeros(len(packed.lengths)).index_add(0, packed.sequence.to(read.device), read)
        return [float(value) for value in summed.cpu()]


def compare(reader: Reader, states: Tensor, base: Reader, base_states: Tensor, packed: Packed) -> TokenComparison:
    """Log-probabilities under both, and the exact KL(policy ‖ base) of each prediction, nats, on the CPU."""
    targets = packed.targets.to(states.device)
    found = compare_heads(states, base_states, reader.logits, base.logits, targets)
    return TokenComparison(*(column.cpu() for column in found))


def lanes_of(readers: Sequence[Reader]) -> Lanes:
    """For passes that all of them read: no more than the narrowest has."""
    return min((reader.trunk.lanes for reader in readers), key=lambda lanes: lanes.count)


class Pass(NamedTuple):
    """Some groups that are read together."""

    rows: range
    """Which of the groups."""
    packed: Packed


def passes(groups: Sequence[Group], readers: Sequence[Reader]) -> Iterator[Pass]:
    """The groups in their order, as many a pass as memory likes; prompts are shared where all readers can."""
    shares = all(reader.trunk.shares_prefix for reader in readers)
    on_cpu = readers[0].lm.device.type == "cpu"
    for rows in micro_batches([group.n_tokens for group in groups], max_tokens=1024 if on_cpu else 16_384):
        yield Pass(rows, pack([groups[i] for i in rows], share_prefix=shares))
