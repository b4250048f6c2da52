import subprocess
import sys

import numpy as np

from triptych.memory import peak_memory

MIB = 1 << 20
PRINT = "from triptych.memory import peak_memory; print(peak_memory())"
PARENT = f"""
import subprocess, sys
held = bytearray({400 * MIB})
print(subprocess.run([sys.executable, "-c", {PRINT!r}], capture_output=True, text=True, check=True).stdout)
"""


def test_what_is_taken_counts_even_after_it_was_given_back() -> None:
    before = peak_memory()
    held = np.ones(2 * before // 8)
    del held
    assert peak_memory() >= 1.9 * before


def test_a_fresh_process_does_not_begin_with_the_peak_of_its_parent() -> None:
    ran = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 200 * MIB
