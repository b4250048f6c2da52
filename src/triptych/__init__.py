"""Triptych: decode, align and interpret small models, and say what changed and whether to trust it."""

import os

__version__ = "0.1.0"

# GNU OpenMP lets idle threads spin for milliseconds before they sleep. Beside any other busy process that turns a
# decoding step of 100 ms into seconds, for each short parallel region then waits for a thread that is not running.
# Spinning 20,000 times (tens of microseconds) keeps the speed of an idle machine and most of it on a busy one
# (LOG.md, 2026-11-23). It counts only where torch is not imported yet, and never overrides the user's choice.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
