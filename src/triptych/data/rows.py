"""What prompts and preference pairs read alike in the rows of a table: texts, ids, and the order of the starter sets.

Not here: where the rows come from (`tables`).
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any, TypeVar

from triptych.data.tables import Row
from triptych.errors import DataError

Item = TypeVar("Item")


def checked_text(value: Any, what: str, where: str) -> str:
    """A text as it stands; None, which formats without empty texts put for these, is the empty text."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: {what} is a {type(value).__name__}, not a text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {what} holds half a character (a lone surrogate); write it out whole") from error
    return value


def row_id(row: Row, where: str, number: int) -> str:
    """The id of a row as a text; where it has none, its number: `row-000017`."""
    value = row.fields.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return checked_text(value, "'id'", where).strip() or f"row-{number:06d}"


def require_unique_ids(rows: Sequence[Row], ids: Sequence[str], source: str) -> None:
    place_of: dict[str, str] = {}
    for row, one in zip(rows, ids, strict=True):
        if one in place_of:
            raise DataError(f"{source}, {row.place}: id '{one}' is already that of {place_of[one]}")
        place_of[one] = row.place


def keys_of(fields: Mapping[str, Any]) -> str:
    """The columns of a row, for a message."""
    return ", ".join(str(key) for key in fields) or "none"


def dealt(items: Sequence[Item], category: Callable[[Item], str | None]) -> list[Item]:
    """One item of each category in turn, each category in its own order; what is left of longer ones follows."""
    by_category: dict[str | None, list[Item]] = {}
    for item in items:
        by_category.setdefault(category(item), []).append(item)
    turns = zip_longest(*by_category.values())
    return [item for item in chain.from_iterable(turns) if item is not None]
