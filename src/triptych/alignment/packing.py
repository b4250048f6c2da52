"""Prompts with their completions, laid end to end without padding, each prompt once.

    [prompt 1 | completion 1a | completion 1b | prompt 2 | completion 2a | …]

A completion sees its prompt and itself; its positions go on from its prompt's, whatever lies between them. So values
and gradients are those of separate rows, and the prompt is computed once: a pair costs P + 2R tokens instead of
2(P + R), a group of G costs P + G·R instead of G(P + R).

Not here: which groups share a forward pass (`batches`), running a model over them (`backends`).
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

FEWEST_TOKENS = 128
"""Of a pass, unless there are no more."""


class Group(NamedTuple):
    """One prompt and the completions that continue it, as token ids; none of them is empty."""

    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]

    @property
    def n_tokens(self) -> int:
        """Tokens of the packed row."""
        return len(self.prompt) + sum(map(len, self.completions))


class Segment(NamedTuple):
    """A run of tokens that attends to a prefix and, causally, to itself."""

    start: int
    length: int
    prefix_start: int
    prefix_length: int
    """0 for a prompt, which has no prefix."""


class Packed(NamedTuple):
    """Groups ready for one forward pass: T tokens, N completions, t completion tokens."""

    ids: Int[Tensor, " T"]
    positions: Int[Tensor, " T"]
    segments: tuple[Segment, ...]
    """In the order of the tokens, which they cover."""
    sources: Int[Tensor, " t"]
    """Where the hidden state lies that predicts each completion token: that of the token before it."""
    targets: Int[Tensor, " t"]
    sequence: Int[Tensor, " t"]
    """Which completion each target belongs to, ascending."""
    lengths: Int[Tensor, " N"]
    """Tokens of each completion."""
    last: Int[Tensor, " N"]
    """Where the last token of each completion lies, for heads that read a whole text."""

    @property
    def n_tokens(self) -> int:
        return len(self.ids)


def pack(groups: Sequence[Group], *, share_prefix: bool = True) -> Packed:
    """Packs groups in their order; without `share_prefix` every completion brings a prompt of its own."""
    rows = groups if share_prefix else [Group(g.prompt, (one,)) for g in groups for one in g.completions]
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    sources: list[int] = []
    last: list[int] = []
    for prompt, completions in rows:
        start, m = len(ids), len(prompt)
        segments.append(Segment(start, m, start, 0))
        ids += prompt
        positions += range(m)
        for completion in completions:
            at, n = len(ids), len(completion)
            segments.append(Segment(at, n, start, m))
            ids += completion
            positions += range(m, m + n)
            sources += [start + m - 1, *range(at, at + n - 1)]
            last.append(at + n - 1)
    completions_N = [one for row in rows for one in row.completions]
    lengths = torch.tensor([len(one) for one in completions_N], dtype=torch.int64)
    return Packed(
        ids=torch.tensor(ids, dtype=torch.int64),
        positions=torch.tensor(positions, dtype=torch.int64),
        segments=tuple(segments),
        sources=torch.tensor(sources, dtype=torch.int64),
        targets=torch.tensor([token for one in completions_N for token in one], dtype=torch.int64),
        sequence=torch.repeat_interleave(torch.arange(len(lengths)), lengths),
        lengths=lengths,
        last=torch.tensor(last, dtype=torch.int64),
    )


def split(group: Group, max_tokens: int) -> list[Group]:
    """The completions in their order, behind the prompt again and again, in groups within `max_tokens` or of one."""
    parts = micro_batches([len(one) for one in group.completions], max_tokens=max_tokens - len(group.prompt))
    return [Group(group.prompt, group.completions[part.start : part.stop]) for part in parts]


def row_bounds(packed: Packed) -> list[tuple[int, int]]:
    """(start, stop) of each packed row: a prompt with its completions."""
    starts = [segment.start for segment in packed.segments if segment.prefix_length == 0]
    return list(zip(starts, [*starts[1:], packed.n_tokens], strict=True))


def visible(packed: Packed, start: int, stop: int) -> Bool[Tensor, "w w"]:
    """Which token (row) may see which (column) within the packed row start … stop."""
    mask = torch.zeros(stop - start, stop - start, dtype=torch.bool)
    for at, n, prefix, m in packed.segments:
        if start <= at < stop:
            own, shared = at - start, prefix - start
            mask[own : own + n, own : own + n] = torch.ones(n, n, dtype=torch.bool).tril()
            mask[own : own + n, shared : shared + m] = True
    return mask


def pass_tokens(sizes: Sequence[int], most: int, lanes: int) -> int:
    """At most `most` tokens of a pass, and so many fewer that every lane gets as much as the others, pass by pass.

    Not below `FEWEST_TOKENS`, where what a pass costs besides its tokens would be most of it.
    """
    if lanes == 1:
        return most
    rounds = math.ceil(sum(sizes) / (most * lanes))
    return min(most, max(FEWEST_TOKENS, math.ceil(sum(sizes) / max(1, rounds * lanes))))


def micro_batches(sizes: Sequence[int], *, max_tokens: int, max_groups: int | None = None) -> list[range]:
    """Consecutive ranges of groups whose tokens stay within `max_tokens`, each of at least one group."""
    starts = [0]
    total = 0
    for i, size in enumerate(sizes):
        is_full = total + size > max_tokens or (max_groups is not None and i - starts[-1] >= max_groups)
        if i > starts[-1] and is_full:
            starts.append(i)
            total = 0
        total += size
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(sizes)], strict=True) if b > a]


def offsets(lengths: Sequence[int]) -> list[int]:
    """0 and the running sums: completion i has tokens offsets[i] … offsets[i + 1]."""
    return [0, *accumulate(lengths)]
