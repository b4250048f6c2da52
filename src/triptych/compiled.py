"""Numba kernels that round alike in every process, the one on a new machine that runs them first included.

A kernel used by the very process that compiled it is not the one that later processes load from the disk cache: the
body of a parallel loop is optimised once for the one, and once more, linked with what calls it, for the other. Sums
then differ in the last bit, which bfloat16 makes a different text of. So what is missing in the cache is compiled by a
helper process, and everybody loads it from there. Not here: the kernels, and what they are made of (`simd`).
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-call,misc,no-any-unimported"

import atexit
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from threading import Lock
from typing import Any, final

from numba import njit, types
from numba.core.caching import FunctionCache

IS_HELPER = "TRIPTYCH_COMPILES"
"""Set in the environment of the helper process, which compiles for itself."""
DONE = b"done\n"
Description = list[str | int | bool]
"""Of a type: its name, then what it needs besides. JSON, so that nothing is ever unpickled."""

logger = logging.getLogger(__name__)


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` with these options and a disk cache, whose machine code is the same in every process."""

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = njit(cache=True, **options)(function)
        dispatcher._cache = _CompiledApart(dispatcher.py_func)
        return dispatcher

    return decorate


@final
class _CompiledApart(FunctionCache):
    """Numba's cache of one function, which has the helper compile what it misses."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function; None, which has this process compile it, only where the helper could not."""
        found = super().load_overload(sig, target_context)
        if found is None and not os.environ.get(IS_HELPER) and _helper.compile(self._py_func, sig):
            found = super().load_overload(sig, target_context)
        return found


@final
class _Helper:
    """The process that compiles, started when it is first needed and kept for what else is missing."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def compile(self, function: Callable[..., Any], signature: Any) -> bool:
        """Whether the function is in the cache now."""
        with self._lock:
            try:
                described = [describe(one) for one in signature]
                asked = json.dumps([function.__module__, function.__qualname__, described]).encode()
                process = self._process or self._start()
                if process.stdin is None or process.stdout is None:
                    return False
                process.stdin.write(asked + b"\n")
                process.stdin.flush()
                return process.stdout.readline() == DONE
            except (OSError, TypeError) as error:
                logger.warning("kernels are compiled here, and may round otherwise than in later runs: %s", error)
                return False

    def close(self) -> None:
        """Ends the process: it reads until there is nothing more to come."""
        if self._process is not None:
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        logger.info("compiling kernels for this machine (once; about a minute in all)")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "triptych.compiled"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, IS_HELPER: "1"},
        )
        atexit.register(self.close)
        return self._process


_helper = _Helper()


def describe(numba_type: Any) -> Description:
    """The type of an argument in plain values. Raises TypeError for one that no kernel takes."""
    if type(numba_type) is types.Array:
        array = (numba_type.ndim, numba_type.layout, not numba_type.mutable, numba_type.aligned)
        return ["array", str(numba_type.dtype), *array]
    if isinstance(numba_type, types.UniTuple):
        return ["tuple", str(numba_type.dtype), numba_type.count]
    if isinstance(numba_type, types.Number | types.Boolean):
        return [str(numba_type)]
    raise TypeError(f"{numba_type} cannot be named to the process that compiles; add it to `describe`")


def type_of(description: Description) -> Any:
    """What `describe` described."""
    if description[0] == "array":
        _, dtype, ndim, layout, is_read_only, is_aligned = description
        return types.Array(getattr(types, str(dtype)), ndim, layout, readonly=is_read_only, aligned=is_aligned)
    if description[0] == "tuple":
        return types.UniTuple(getattr(types, str(description[1])), description[2])
    return getattr(types, str(description[0]))


def main() -> None:
    """The helper: compiles what each line names, and answers each with a line."""
    for line in sys.stdin.buffer:
        module, name, signature = json.loads(line)
        getattr(import_module(module), name).compile(tuple(type_of(one) for one in signature))
        sys.stdout.buffer.write(DONE)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
