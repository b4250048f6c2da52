"""Files that are whole or absent: atomic writes, lines that are never torn, and one sentence for what went wrong.

Not here: what the files mean (`runs`), and reading of inputs.
"""

import errno
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
from pydantic import TypeAdapter, ValidationError

from triptych.config import to_plain
from triptych.errors import DataError, MissingInputError, OutputError
from triptych.records import Record

RecordT = TypeVar("RecordT", bound=Record)

TEMPORARY = ".partial-"
"""What the names of unfinished files begin with."""

_counter = itertools.count()

_ANOTHER = "pass another --out"
_DISK_FULL = f"disk full while writing {{path}}: free some space or {_ANOTHER}; what was finished is kept"
_NOT_ALLOWED = f"no permission to write {{path}}: change it or {_ANOTHER}"
_PROBLEMS = {
    errno.ENOSPC: _DISK_FULL,
    errno.EDQUOT: _DISK_FULL,
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: f"{{path}} lies on a read-only file system: {_ANOTHER}",
    errno.ENOTDIR: f"{{path}} cannot be made, because a part of it is a file and not a folder: {_ANOTHER}",
    errno.EISDIR: f"{{path}} is a folder where a file is to be written: move it away or {_ANOTHER}",
    errno.ENAMETOOLONG: "{path} is too long a name for this file system: pass a shorter --out",
}


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turns a full disk, missing permission and the like inside the block into an OutputError about `path`.

    Errors about other files pass. A full disk is also recognised in the errors of Rust libraries (safetensors), which
    are no OSError.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        problem = _PROBLEMS.get(error.errno or 0)
        if problem is None or not _concerns(error, path):
            raise
        raise OutputError(problem.format(path=path)) from error
    except Exception as error:
        if "No space left on device" not in str(error):
            raise
        raise OutputError(_DISK_FULL.format(path=path)) from error


def make_folder(path: Path) -> None:
    """The folder with its parents, where it does not exist yet. Raises OutputError where it cannot be one."""
    with output_errors(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise OutputError(f"{path} is a file where a folder is to be made: move it away or {_ANOTHER}") from None
        except FileNotFoundError:
            # Of the parents that are made on the way: file systems such as /proc take no folders.
            raise OutputError(f"{path} cannot be made, because no folders can be made there: {_ANOTHER}") from None


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary sibling to write to: it takes the place of `path` when the block ends well, else it is removed.

    Readers see the old file or the new one, whole, also after a kill or a power cut. The sibling keeps the suffix, for
    writers that go by it. The folder is made. Raises OutputError as `output_errors` does.
    """
    make_folder(path.parent)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{next(_counter)}-{path.name}")
    with output_errors(path):
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: Path, text: str) -> None:
    """UTF-8, line ends as given."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: Path, obj: object) -> None:
    """JSON of plain values and records, indented. NaN raises a ValueError: say None for what has no value."""
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False, default=to_plain)
    atomic_write_text(path, f"{text}\n")


def remove_stale(folder: Path) -> None:
    """Removes the temporary files below a folder whose writers are gone."""
    for path in folder.rglob(f"{TEMPORARY}*"):
        writer = path.name.removeprefix(TEMPORARY).partition("-")[0]
        # A container may give every process the same id: a file of our own id is from before, too.
        alive = writer.isdecimal() and int(writer) != os.getpid() and psutil.pid_exists(int(writer))
        if not alive and path.is_file():
            path.unlink(missing_ok=True)


def write_records_json(path: Path, records: Sequence[Record]) -> None:
    """A JSON list with one record a line."""
    lines = [record.model_dump_json() for record in records]
    atomic_write_text(path, "[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n")


def read_records_json(path: Path, cls: type[RecordT]) -> list[RecordT]:
    """The records of a file by `write_records_json`: unknown keys, wrong types and NaN are refused.

    Raises MissingInputError, or DataError naming the record and the field.
    """
    try:
        return TypeAdapter(list[cls]).validate_json(path.read_bytes(), strict=True)  # type: ignore[valid-type]
    except FileNotFoundError:
        raise MissingInputError(f"{path}: no such file") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ", ".join(str(step) for step in first["loc"])
        raise DataError(f"{path}: not a list of {cls.__name__} (at {where or 'the start'}: {first['msg']})") from None


def append_json_line(path: Path, record: Mapping[str, Any]) -> None:
    """Adds one line of JSON in a single write, so that lines of several writers do not mix; NaN becomes null."""
    line = json.dumps(_without_nan(record), ensure_ascii=False, allow_nan=False, default=to_plain).encode() + b"\n"
    with output_errors(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        size = os.fstat(descriptor).st_size
        try:
            while line:
                line = line[os.write(descriptor, line) :]
        except OSError:
            # Half a line would spoil the next one; the error to tell is the first.
            with suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
        finally:
            os.close(descriptor)


def drop_torn_line(path: Path) -> None:
    """Removes a last line without its newline: what a killed writer left. No file is fine."""
    with output_errors(path):
        if not path.exists():
            return
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file, while it may still be written; empty where there is none.

    Raises DataError naming the line that is no JSON object.
    """
    if not path.exists():
        return []
    text = path.read_bytes()
    records = []
    for number, line in enumerate(text[: text.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number}: not a JSON object")
        records.append(record)
    return records


def _without_nan(obj: Any) -> Any:
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, Mapping):
        return {key: _without_nan(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_without_nan(value) for value in obj]
    return obj


def _sync(path: Path) -> None:
    """To the disk itself: a file, or the entries of a folder where the system can."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _concerns(error: OSError, path: Path) -> bool:
    """Whether the error is about `path`, its folder or a parent; writing errors name no file."""
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return True
    named = Path(os.fsdecode(error.filename))
    return path.is_relative_to(named) or named.is_relative_to(path.parent)
