"""How much memory a process has used, and giving back what it no longer needs."""

import gc
import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def release() -> None:
    """Frees models that are out of use: with their adapters they refer to one another, and wait for this."""
    gc.collect()


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
