"""What a run's files hold, read once and again only when one of them has been replaced.

A study may go on, or be made again, while its run is explored. Not here: what is read.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar, final

Held = TypeVar("Held")
Stamp = tuple[tuple[int, int, int] | None, ...]


@final
class Fresh(Generic[Held]):
    """A value made from files; `get` makes it anew where they are not those that it was made from."""

    def __init__(self, paths: Sequence[Path], load: Callable[[], Held]) -> None:
        self._paths, self._load = tuple(paths), load
        self._lock = Lock()
        self._held: tuple[Stamp, Held] | None = None

    def get(self) -> Held:
        """The value; whoever else asks while it is made waits for it. An error is not kept."""
        with self._lock:
            stamp = tuple(_stamp(path) for path in self._paths)
            if self._held is None or self._held[0] != stamp:
                self._held = None
                self._held = (stamp, self._load())
            return self._held[1]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is replaced; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
