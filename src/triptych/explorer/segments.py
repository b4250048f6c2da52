"""Two texts compared word by word, as the page shows it.

Not here: the comparison itself (`triptych.reports.word_diff`).
"""

from collections.abc import Iterator

from pydantic import BaseModel

from triptych.reports.safe_text import neutralise
from triptych.reports.word_diff import stretches

MAX_COMPARED = 4000
"""Characters: the time of a comparison grows with the square of the words, and anyone may ask for one."""


class Segment(BaseModel):
    """A piece of a text."""

    text: str
    changed: bool
    """The other text has not these words, or has them elsewhere."""


def compared(original: str, text: str) -> list[Segment]:
    """A text in pieces, compared with the original; what follows its first part is not there."""
    return list(_segments(original, text))


def _segments(original: str, text: str) -> Iterator[Segment]:
    for stretch in stretches(original, text, MAX_COMPARED):
        if not stretch.is_changed:
            yield Segment(text=neutralise(stretch.white + stretch.text), changed=False)
            continue
        if stretch.white:
            yield Segment(text=neutralise(stretch.white), changed=False)
        yield Segment(text=neutralise(stretch.text), changed=True)
