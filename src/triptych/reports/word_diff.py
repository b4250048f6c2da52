"""Which words of a text another one has not, or has elsewhere.

They are those outside a longest common subsequence, found with one bit a word (Hyyrö, Bit-parallel LCS-length
computation revisited, 2004): the texts of a model that is stuck in a loop take no longer than others, where `difflib`
takes minutes. Not here: how the words are marked.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

WORD = re.compile(r"(\s*)(\S+)")


class Stretch(NamedTuple):
    """Neighbouring words of one kind."""

    white: str
    """The white space before them, which belongs to neither kind."""
    text: str
    is_changed: bool
    """They are not in the other text, or not in this place."""


def stretches(original: str, text: str, limit: int) -> Iterator[Stretch]:
    """The first `limit` characters of a text as stretches, compared with the original."""
    # Both are clipped, the original later: words beyond its end would all seem to be added.
    shown = WORD.findall(text[:limit])
    before = [word for _, word in WORD.findall(original[: 2 * limit])]
    kept = common_words(before, [word for _, word in shown])
    for is_kept, run in groupby(enumerate(shown), key=lambda piece: piece[0] in kept):
        (_, (white, first)), *others = run
        yield Stretch(white, first + "".join(space + word for _, (space, word) in others), not is_kept)


def common_words(before: Sequence[str], after: Sequence[str]) -> set[int]:
    """The places in `after` of a longest common subsequence; of several the one that comes first in `after`."""
    lines = _lines(before, after)
    row, column, found = len(after), len(before), set[int]()
    while row and column:
        if lines[row] >> (column - 1) & 1:
            column -= 1
            continue
        row -= 1
        if lines[row] >> (column - 1) & 1:
            column -= 1
            found.add(row)
    return found


def _lines(before: Sequence[str], after: Sequence[str]) -> list[int]:
    """After each word of `after`, none included: bit j is 0 where a longer subsequence ends at word j of `before`."""
    places: dict[str, int] = {}
    for place, word in enumerate(before):
        places[word] = places.get(word, 0) | 1 << place
    everywhere = (1 << len(before)) - 1
    lines = [everywhere]
    for word in after:
        last = lines[-1]
        matches = last & places.get(word, 0)
        lines.append(((last + matches) | (last - matches)) & everywhere)
    return lines
