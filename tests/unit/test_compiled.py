"""Kernels round alike in the process that runs them first and in all later ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from triptych.compiled import _Helper, describe, type_of

# Attention in float32 is where the two ways of compiling were seen to differ.
PROGRAM = """
import hashlib
import numpy as np
from triptych.decoding.kernels import decode_attention

stream = np.random.default_rng(0)
draw = lambda *shape: stream.normal(size=shape).astype(np.float32)
keys, values, shared_keys, shared_values = draw(8, 3, 64, 64), draw(8, 3, 64, 64), draw(3, 100, 64), draw(3, 100, 64)
rows, out, factors = np.arange(8), np.zeros((8, 576), np.float32), draw(8, 64)
lengths, starts, prompts = np.full(8, 20), np.zeros(8, np.int64), np.full(8, 37)
decode_attention(
    draw(8, 960), factors, factors, keys, values, np.arange(9), rows, lengths, shared_keys, shared_values,
    starts, prompts, (0, 0, 0), out
)
print(hashlib.sha256(out.tobytes()).hexdigest(), len(decode_attention.stats.cache_hits))
"""


@pytest.mark.slow
def test_the_first_process_has_the_code_of_all_later_ones(tmp_path: Path) -> None:
    def run() -> str:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    first = run()
    assert list(tmp_path.rglob("*.nbc"))
    # Both have taken it from the cache.
    assert first.split()[1] == "1"
    assert run() == first


def test_where_no_helper_can_be_started_kernels_are_compiled_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    helper = _Helper()
    assert not helper.compile(run_nothing, ())
    assert "kernels are compiled here" in caplog.text
    helper.close()


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((2, 3), np.float32),
        np.zeros((2, 3), np.uint16)[:, ::2],
        np.zeros((2, 3, 4), np.int64).T,
        np.frombuffer(b"read-only bytes", np.uint8),
        (0, 0, 0),
        3,
        1e-5,
        np.float32(0.5),
        True,
    ],
    ids=str,
)
def test_types_of_arguments_go_to_the_helper_and_back(value: object) -> None:
    given = numba.typeof(value)
    assert type_of(json.loads(json.dumps(describe(given)))) == given


def test_a_type_that_cannot_be_named_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot be named to the process that compiles"):
        describe(numba.typeof("text"))


def run_nothing() -> None:
    """Something with a name."""
