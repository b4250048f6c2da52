"""Independent pieces of work side by side: a thread for each share of the cores, with matrix products of its own.

Cores that share a product wait for one another at its end, and a pass of a small model is thousands of small products;
cores that have a pass each do not wait at all (1.5 to 1.9 times as fast on two cores, LOG.md 2026-11-27). Results come
in the order of the pieces, so that their sums are the same whoever was first.

Not here: what a piece is (`alignment`, `auditing`), several processes (`workers`).
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, final

import numba
import torch

MOST = 4
"""Lanes: each holds the activations of a pass, and more cores than this share the products of a lane."""

AHEAD = 3
"""Pieces a lane that are begun or wait, or whose results do: no lane idles behind a slow one, and the gradients of a
long batch are never held all at once."""

Piece = TypeVar("Piece")
Result = TypeVar("Result")


@final
class Lanes:
    """As many threads as there are cores, at most `MOST`; the work must be safe to do in several at once.

    Args:
        count: None takes what this process may use (`torch.get_num_threads`); 1 works in the thread of the caller.
    """

    def __init__(self, count: int | None = None) -> None:
        cores = torch.get_num_threads()
        self.count = min(cores, MOST) if count is None else count
        if self.count > 1 and not _kernels_may_meet():
            self.count = 1
        self.threads = max(1, cores // self.count)
        """Of each lane's products."""

    def map(self, function: Callable[[Piece], Result], pieces: Sequence[Piece]) -> Iterator[Result]:
        """`function` of every piece, in their order; gradients are recorded where the caller records them.

        A single piece goes through a lane too: a product on another number of threads could round otherwise, and what
        is left of interrupted work must end as the whole would have. Raises what `function` raises, at its place, when
        the pieces that have begun are done; the others are dropped.
        """
        if self.count == 1:
            yield from map(function, pieces)
            return
        records = torch.is_grad_enabled()

        def work(piece: Piece) -> Result:
            with torch.set_grad_enabled(records):
                return function(piece)

        cores = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(self.count, "lane", initializer=_take_threads, initargs=(self.threads,)) as pool:
                pending: deque[Future[Result]] = deque()
                try:
                    for piece in pieces:
                        pending.append(pool.submit(work, piece))
                        if len(pending) >= AHEAD * self.count:
                            yield pending.popleft().result()
                    while pending:
                        yield pending.popleft().result()
                finally:
                    for future in pending:
                        future.cancel()
        finally:
            # A thread's number is its own; but threads yet to come begin with the last one that any thread has set.
            torch.set_num_threads(cores)


def _take_threads(count: int) -> None:
    torch.set_num_threads(count)
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))


def _kernels_may_meet() -> bool:
    """Whether kernels may run in two threads at once: Numba's own pool, its last resort, ends the process then."""
    numba.get_num_threads()  # Chooses the pool.
    return numba.threading_layer() in ("omp", "tbb")
