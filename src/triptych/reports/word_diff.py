"""Which words of a text another one has not, or has elsewhere.

Not here: how they are marked.
"""

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
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
    matcher = SequenceMatcher(None, before, [word for _, word in shown], autojunk=False)
    kept = {block.b + offset for block in matcher.get_matching_blocks() for offset in range(block.size)}
    for is_kept, run in groupby(enumerate(shown), key=lambda piece: piece[0] in kept):
        (_, (white, first)), *others = run
        yield Stretch(white, first + "".join(space + word for _, (space, word) in others), not is_kept)
