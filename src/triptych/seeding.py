"""Named, counter-based random streams: the draw of a row depends on what the row is, never on who shares its batch.

A stream is a 64-bit key, a hash of (seed, names...). Its n-th uniform is a bijective mix of key and counter
(SplitMix64, Steele et al. 2014), so any draw can be computed alone, in any order, on any device, with no state to
carry: a resumed or re-batched run draws the same numbers.
"""

import hashlib

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def stream_key(seed: int, *names: str | int) -> int:
    """The 64-bit key of the stream called `names` under `seed`: BLAKE2b of the parts, each with its type and length."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (seed, *names):
        encoded = str(part).encode("utf-8", "surrogatepass")
        digest.update(f"{type(part).__name__}:{len(encoded)}:".encode())
        digest.update(encoded)
    return int.from_bytes(digest.digest(), "little")


def uniforms(keys: npt.NDArray[np.uint64], counters: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """One uniform in the open interval (0, 1) for each (key, counter), with 53 random bits."""
    with np.errstate(over="ignore"):
        x = keys + (counters.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * _MIX_1
        x = (x ^ (x >> np.uint64(27))) * _MIX_2
        x = x ^ (x >> np.uint64(31))
    drawn: npt.NDArray[np.float64] = ((x >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return drawn


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator (Philox) keyed by the stream's name, for code that needs more than uniforms."""
    return np.random.Generator(np.random.Philox(stream_key(seed, *names)))
