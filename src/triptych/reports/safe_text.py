"""Text from models and data files, made safe to look at: what is invisible or steers the display becomes visible.

HTML escaping alone does not stop a right-to-left override from reordering the page, a NUL from ending a file early for
some readers, or a lone surrogate from making the file unwritable as UTF-8. Not here: HTML escaping itself, which the
templates do.
"""

import re
from typing import NamedTuple

from markupsafe import Markup, escape

HIDDEN = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and newline
    "\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"  # invisible; direction
    "\u2028\u2029"  # line breaks that are no newline
    "\ud800-\udfff"  # lone surrogates: no UTF-8 form
    "\ufdd0-\ufdef\ufff9-\ufffb\ufffe\uffff"  # noncharacters and interlinear marks
    "\U000e0000-\U000e007f"  # tags: invisible text
    "]"
)
"""Characters that a reader cannot see, or that change how others are shown. Joiners (U+200C, U+200D) and variation
selectors stay: emoji and several scripts need them, and they move nothing."""


class Clipped(NamedTuple):
    """The beginning of a text."""

    text: str
    left_out: int
    """Characters that are not shown."""


def visible(char: str) -> str:
    """How a hidden character is shown: its code point in angle brackets."""
    return f"⟨U+{ord(char):04X}⟩"


def neutralise(text: str) -> str:
    """The text with every hidden character spelled out: plain text, safe to write and to escape."""
    return HIDDEN.sub(lambda match: visible(match[0]), text)


def markup(text: str) -> Markup:
    """The text as HTML: escaped, and hidden characters spelled out in a span that tells them from the text itself."""
    parts: list[str] = []
    end = 0
    for match in HIDDEN.finditer(text):
        parts += [escape(text[end : match.start()]), f'<span class="esc">{visible(match[0])}</span>']
        end = match.end()
    return Markup("".join([*parts, escape(text[end:])]))  # noqa: S704 - every part is escaped above


def clip(text: str, limit: int) -> Clipped:
    """At most `limit` characters: a megabyte on one line must not make a page that no browser opens."""
    return Clipped(text[:limit], max(0, len(text) - limit))
