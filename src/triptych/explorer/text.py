"""How text leaves the server: hidden characters spelled out, never too long, and always whole UTF-8.

All text of a run is a model's, a data file's or a user's. Lists get excerpts, single items a `Text`, names one line.
Not here: HTML; the page shows text as text.
"""

import math

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from triptych.reports.safe_text import clip, neutralise

MAX_EXCERPT = 160
MAX_TEXT = 20_000
MAX_NAME = 200


class Text(BaseModel):
    """A text, or its beginning."""

    text: str
    left_out: int
    """Characters that are not shown."""


def text_of(text: str | None) -> Text:
    """A text of a single item; None is the empty text."""
    clipped = clip(text or "", MAX_TEXT)
    return Text(text=neutralise(clipped.text), left_out=clipped.left_out)


def excerpt(text: str | None) -> str:
    """The beginning of a text on one line. White space beyond the limit is not looked through."""
    given = text or ""
    line = " ".join(given[: 2 * MAX_EXCERPT].split())
    is_whole = len(line) <= MAX_EXCERPT and len(given) <= 2 * MAX_EXCERPT
    return neutralise(line[:MAX_EXCERPT]) + ("" if is_whole else "…")


def name_of(name: str) -> str:
    """A name, fit to be shown and to be sent back as a filter."""
    clipped = clip(name, MAX_NAME)
    return neutralise(clipped.text) + ("…" if clipped.left_out else "")


def finite(value: float | None) -> float | None:
    """A number that JSON can hold: neither NaN nor infinite."""
    return value if value is not None and math.isfinite(value) else None


def excerpts(texts: pa.Array) -> list[str]:
    """Excerpts of some texts, of which a megabyte each is not copied for its first words."""
    return [excerpt(text) for text in pc.utf8_slice_codeunits(texts, 0, 2 * MAX_EXCERPT + 1).to_pylist()]


def clean_strings(table: pa.Table) -> pa.Table:
    """The table with every text column in one piece, and bytes in it that are no UTF-8 replaced.

    Parquet does not check what a column of texts holds; one bad byte would make every search and page fail.
    """
    for index, field in enumerate(table.schema):
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            # 64-bit offsets: the texts of a large run are more than 2 GB.
            table = table.set_column(index, field.name, _clean(table.column(index)))
    return table


def _clean(column: pa.ChunkedArray) -> pa.Array:
    chunks = [chunk.cast(pa.large_binary()) for chunk in column.chunks]
    whole = pa.concat_arrays([*chunks, pa.array([], pa.large_binary())])
    texts = whole.view(pa.large_string())
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        decoded = [None if raw is None else raw.decode("utf-8", "replace") for raw in whole.to_pylist()]
        return pa.array(decoded, pa.large_string())
    return texts
