"""Rows of data files and hub data sets, as plain dictionaries, each with the place it came from.

Reads .jsonl, .json (a list of objects), .csv and .parquet. Every way in which such a file can be damaged is a
`DataError` of one sentence that names the file and the place.

Not here: what the columns mean (`prompts`).
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from triptych.errors import DataError, MissingInputError, suggestion

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


class Row(NamedTuple):
    """One row of a table."""

    place: str
    """Where it stands, for messages: `line 17`, `row 17`."""
    fields: Mapping[str, Any]
    """Column → value; what the file leaves out is absent or None."""


def read_table(source: str) -> list[Row]:
    """The rows of a local file or, where there is no such file, of the `train` split of a hub data set.

    Raises `MissingInputError` where a path does not exist, `DataError` where something cannot be read as a table of at
    least one row.
    """
    path = Path(source).expanduser()
    if source and path.exists():
        return read_file(path)
    if not is_hub_id(source):
        raise MissingInputError(f"data file {source!r} does not exist; check the path")
    # Only a hub data set needs the library, which takes seconds to import.
    from triptych.data.hub import read_hub_rows

    return [Row(f"row {number}", fields) for number, fields in enumerate(read_hub_rows(source), start=1)]


def is_hub_id(source: str) -> bool:
    """Whether a source that is no local file can be a data set of the hub."""
    is_path = source.startswith(("/", "./", "../", "~")) or Path(source).suffix.lower() in READERS
    return not is_path and _HUB_ID.fullmatch(source) is not None


def read_file(path: Path) -> list[Row]:
    """The rows of a local file, by its suffix; `DataError` where it is damaged, empty or of another kind."""
    if path.is_dir():
        raise DataError(f"{path} is a folder; give a file in it ({', '.join(READERS)})")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: files of type '{path.suffix}' are not read{suggestion(path.suffix, READERS)}")
    try:
        rows = list(reader(path, path.read_bytes()))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if not rows:
        raise DataError(f"{path} is empty: it has no rows")
    return rows


def _json_lines(path: Path, data: bytes) -> Iterator[Row]:
    # Not str.splitlines: it also breaks at separators that JSON strings may contain.
    for number, line in enumerate(_text(path, data).split("\n"), start=1):
        if line.strip():
            place = f"line {number}"
            yield Row(place, _object(path, place, _parsed(path, place, line)))


def _json(path: Path, data: bytes) -> Iterator[Row]:
    text = _text(path, data)
    if not text.strip():
        return
    if _holds_several_values(text):
        yield from _json_lines(path, data)
        return
    value = _parsed(path, "", text)
    if not isinstance(value, list):
        raise DataError(f"{path} holds one JSON {_kind(value)}, not a list of objects; put it in [ ], or use .jsonl")
    for number, item in enumerate(value, start=1):
        yield Row(f"row {number}", _object(path, f"row {number}", item))


def _csv(path: Path, data: bytes) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(_text(path, data), newline=""), strict=True)
    try:
        if len(set(reader.fieldnames or ())) < len(reader.fieldnames or ()):
            raise DataError(f"{path}, line 1: the header names a column twice; rename one")
        for fields in reader:
            place = f"line {reader.line_num}"
            if None in fields:
                raise DataError(f"{path}, {place}: more fields than the header names; quote commas inside a field")
            yield Row(place, {name: value or None for name, value in fields.items()})
    except csv.Error as error:
        raise DataError(f"{path}, after line {reader.line_num}: not CSV ({error})") from error


def _parquet(path: Path, data: bytes) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        rows = pa.parquet.read_table(pa.BufferReader(data)).to_pylist()
    # A damaged file can fail anywhere in Arrow, also on strings that are not UTF-8.
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read as Parquet ({repr(error).splitlines()[0]})") from error
    for number, fields in enumerate(rows, start=1):
        yield Row(f"row {number}", fields)


READERS: dict[str, Callable[[Path, bytes], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _text(path: Path, data: bytes) -> str:
    try:
        return data.removeprefix(_BYTE_ORDER_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        offset = error.start + len(data) - len(error.object)
        raise DataError(f"{path}, line {line}: byte {offset} is not UTF-8; save the file as UTF-8") from error


def _parsed(path: Path, place: str, text: str) -> Any:
    where = f"{path}, {place}" if place else f"{path}"
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"column {error.colno}" if place else f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{where}: not JSON ({error.msg} at {at})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: this JSON is too large or too deeply nested to read") from error


def _holds_several_values(text: str) -> bool:
    """Whether this is JSON Lines by another name, as `.json` files of data sets often are."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.msg == "Extra data" and text.lstrip().startswith("{")
    except (ValueError, RecursionError):
        return False
    return False


def _object(path: Path, place: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{path}, {place}: a JSON {_kind(value)} where an object with named fields is expected")
    return value


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
