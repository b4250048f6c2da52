"""A cache folder that heals itself: built once, verified at every use, built again where it is damaged.

`triptych-cache.json`, written last, lists every file with its size and SHA-256. A folder without it, or that disagrees
with it, is built again. Two processes never build at once (a lock file), and readers never see half a folder (it is
renamed into place).

Not here: what goes into a folder, and run directories (`triptych.runs`).
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from triptych.errors import InputError, OutputError
from triptych.files import atomic_write_json

MARKER = "triptych-cache.json"

ALWAYS_HASHED_BYTES = 16 * 2**20
"""Files up to this size are hashed at every use; larger ones only where their modification time moved."""

logger = logging.getLogger(__name__)


def cache_root() -> Path:
    """Where Triptych keeps what it can rebuild: `TRIPTYCH_CACHE`, by default `~/.cache/triptych`."""
    chosen = os.environ.get("TRIPTYCH_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".cache" / "triptych"


def ensure_folder(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, verified against its marker; where that fails, `build(new)` fills a new one that takes its place.

    Raises `OutputError` where the cache cannot be written, and whatever input error `build` raises.
    """
    if is_verified(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            # Another process may have built it while this one waited.
            if not is_verified(folder):
                _replace(folder, build)
    except InputError:
        raise
    except OSError as error:
        raise OutputError(
            f"cache folder {folder.parent}: {error.strerror or error}; "
            "free some space, or set TRIPTYCH_CACHE to a folder that can be written"
        ) from error
    return folder


def is_verified(folder: Path) -> bool:
    """Whether every file of the marker is there, of its size and (where it may have changed) with its SHA-256."""
    entries = _read_marker(folder)
    if not entries:
        return False
    try:
        stats = {name: (folder / name).stat() for name in entries}
        if any(stats[name].st_size != entry.size for name, entry in entries.items()):
            return False
        moved = {name for name, entry in entries.items() if stats[name].st_mtime_ns != entry.mtime_ns}
        small = {name for name, entry in entries.items() if entry.size <= ALWAYS_HASHED_BYTES}
        if any(_sha256(folder / name) != entries[name].sha256 for name in moved | small):
            return False
    except OSError:
        return False
    if moved:
        times = {name: stats[name].st_mtime_ns for name in entries}
        _remember(folder, {name: entry._replace(mtime_ns=times[name]) for name, entry in entries.items()})
    return True


class _Entry(NamedTuple):
    size: int
    sha256: str
    mtime_ns: int


def _replace(folder: Path, build: Callable[[Path], None]) -> None:
    """Builds beside `folder` and renames; the caller holds the lock, so leftovers of killed builds can go too."""
    prefix = f".{folder.name}.new-"
    for leftover in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        fresh = scratch / "fresh"
        fresh.mkdir()
        build(fresh)
        _seal(fresh)
        if folder.exists():
            logger.warning("%s was incomplete or damaged and has been built again", folder)
            folder.rename(scratch / "damaged")
        fresh.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _seal(folder: Path) -> None:
    """Writes the marker, after everything it speaks of has reached the disk."""
    entries = {}
    for path in sorted(folder.iterdir()):
        # safetensors are written for their owner alone; whoever may read the folder may read its files.
        path.chmod(path.stat().st_mode | folder.stat().st_mode & 0o444)
        _sync(path)
        stat = path.stat()
        entries[path.name] = _Entry(stat.st_size, _sha256(path), stat.st_mtime_ns)
    _write_marker(folder, entries)
    _sync(folder)


def _remember(folder: Path, entries: Mapping[str, _Entry]) -> None:
    """Notes new modification times of sound files (a copied cache), so that large ones are hashed only once."""
    try:
        _write_marker(folder, entries)
    except OSError:
        logger.debug("%s is read-only: its touched files are hashed at every use", folder)


def _read_marker(folder: Path) -> dict[str, _Entry]:
    """The entries of the marker; none where it is absent or cannot be read as one."""
    try:
        files = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
        return {name: _Entry(int(e["size"]), str(e["sha256"]), int(e["mtime_ns"])) for name, e in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write_marker(folder: Path, entries: Mapping[str, _Entry]) -> None:
    atomic_write_json(folder / MARKER, {"files": {name: entry._asdict() for name, entry in entries.items()}})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Has the operating system write a file or folder out, so that a rename never outlives its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
