"""How much memory a process has used, and giving back what it no longer needs."""

import ctypes
import gc
import resource
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import final

import psutil

STATUS = Path("/proc/self/status")
SECONDS_BETWEEN_LOOKS = 0.2


def release() -> None:
    """Frees models that are out of use: with their adapters they refer to one another, and wait for this.

    And gives the system what the C library keeps back of what was freed, an arena for every thread, where it can.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes.

    From Linux's own count where there is one: what POSIX counts begins, in a fresh process, with the peak of the
    one that started it.
    """
    if STATUS.is_file():
        for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@final
class MemoryWatch:
    """The largest resident size of this process while a `with` block runs, whatever it was before.

    A thread looks every 0.2 s, and a peak between two looks is missed, unless it is the largest of the whole process:
    that one the system has counted. It draws no random number and touches nothing that the block works on.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="memory watch", daemon=True)
        self._before = peak_memory()
        self._largest = 0

    @property
    def peak(self) -> int:
        """Bytes, so far."""
        self._look()
        since_start = peak_memory()
        return since_start if since_start > self._before else self._largest

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _look_on(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_LOOKS):
            self._look()

    def _look(self) -> None:
        self._largest = max(self._largest, int(self._process.memory_info().rss))
