import subprocess
import sys
import threading
import time

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from triptych import memory
from triptych.memory import MemoryWatch, peak_memory

MIB = 1 << 20
PRINT = "from triptych.memory import peak_memory; print(peak_memory())"
PARENT = f"""
import subprocess, sys
held = bytearray({400 * MIB})
print(subprocess.run([sys.executable, "-c", {PRINT!r}], capture_output=True, text=True, check=True).stdout)
"""


def more_than_ever() -> npt.NDArray[np.float64]:
    """So much memory that the process has not held as much before, whatever other tests have held."""
    missing = peak_memory() - psutil.Process().memory_info().rss
    return np.ones((max(0, missing) + 300 * MIB) // 8)


def test_what_is_taken_counts_even_after_it_was_given_back() -> None:
    before = peak_memory()
    held = more_than_ever()
    del held
    assert peak_memory() >= before + 200 * MIB


def test_a_fresh_process_does_not_begin_with_the_peak_of_its_parent() -> None:
    ran = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 200 * MIB


def test_a_watch_tells_the_peak_of_its_block_alone() -> None:
    held = more_than_ever()
    largest = peak_memory()
    del held
    with MemoryWatch() as quiet:
        time.sleep(2.5 * memory.SECONDS_BETWEEN_LOOKS)
    assert 0 < quiet.peak < largest - 200 * MIB
    with MemoryWatch() as busy:
        held = more_than_ever()
        del held
    assert busy.peak >= largest


def test_what_was_held_between_looks_counts_although_the_process_has_held_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SECONDS_BETWEEN_LOOKS", 0.01)
    held = more_than_ever()
    del held
    with MemoryWatch() as watch:
        held = np.ones(100 * MIB // 8)
        time.sleep(0.1)
        while_held = watch.peak
        del held
    assert watch.peak >= while_held > 100 * MIB


def test_its_thread_ends_with_the_block() -> None:
    before = threading.active_count()
    with pytest.raises(RuntimeError), MemoryWatch():
        assert threading.active_count() == before + 1
        raise RuntimeError
    assert threading.active_count() == before
