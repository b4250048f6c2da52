"""Paired rows: activations of several models on the same images, read from memory or from stores, window by window.

What fits into the budget is one window and is shuffled as a whole; what does not is read store shard by store shard, a
few shuffled shards at a time, sequentially: random reads from disk were nine times slower. Rows are normalised when a
window is made. Not here: extraction (`extraction`), the files (`store`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from triptych.errors import DataError, suggestion
from triptych.seeding import generator

SUMMED_ROWS = 4096

Rows = Float[Tensor, "n _"]
"""Of one model; widths differ between models."""


@runtime_checkable
class Shards(Protocol):
    """Activations in pieces: an `ActivationStore`, or a tensor in memory (`InMemory`)."""

    @property
    def width(self) -> int: ...

    @property
    def shard_rows(self) -> Sequence[int]: ...

    def read(self, shard: int) -> Rows: ...


@final
class InMemory:
    """A tensor [rows, width] as one shard."""

    def __init__(self, activations: Rows) -> None:
        self._activations = activations
        self.width = activations.shape[1]
        self.shard_rows = (activations.shape[0],)

    def read(self, shard: int) -> Rows:
        return self._activations.detach()


class Moments(NamedTuple):
    """Of every feature over all rows, float64."""

    mean: Float[Tensor, " d"]
    variance: Float[Tensor, " d"]
    """The population's: divided by n."""


@final
class PairedRows:
    """The same rows in every model. `pairing` permutes the rows of a model: the shuffled null."""

    def __init__(
        self,
        sources: Mapping[str, Shards | Tensor],
        *,
        budget_bytes: int = 6 * 2**30,
        pairing: Mapping[str, Int[Tensor, " n"]] | None = None,
    ) -> None:
        if not sources:
            raise DataError("there are no activations; give those of at least one model")
        self.names = tuple(sources)
        self._sources = [InMemory(one) if isinstance(one, Tensor) else one for one in sources.values()]
        self.widths = {name: one.width for name, one in zip(self.names, self._sources, strict=True)}
        self.shard_rows = tuple(self._sources[0].shard_rows)
        self._pairing = pairing or {}
        _require_pairs(self.names, self._sources)
        _require_permutations(self._pairing, self.names, self.n_rows)
        bytes_per_row = 4 * sum(self.widths.values())
        self.window_shards = max(1, int(budget_bytes // max(1, bytes_per_row * max(self.shard_rows))))
        if self._pairing and len(self.shard_rows) > self.window_shards:
            raise DataError("rows can only be paired anew where they fit into memory; take fewer images")
        self._whole: list[Rows] | None = None

    @property
    def n_rows(self) -> int:
        return sum(self.shard_rows)

    @property
    def is_one_window(self) -> bool:
        return self.n_windows == 1

    @property
    def n_windows(self) -> int:
        """Of an epoch."""
        return -(-len(self.shard_rows) // self.window_shards)

    def shards(self) -> Iterator[list[Rows]]:
        """Raw rows of all models, shard by shard in order, paired."""
        if self.is_one_window:
            # As stored, so that sums do not depend on the budget.
            whole = self.whole()
            for start, size in zip(_starts(self.shard_rows), self.shard_rows, strict=True):
                yield [rows[start : start + size] for rows in whole]
            return
        for shard in range(len(self.shard_rows)):
            yield [self._read(place, shard) for place in range(len(self.names))]

    def whole(self) -> list[Rows]:
        """All raw rows of all models, kept in memory from the first call on."""
        if self._whole is None:
            pieces = range(len(self.shard_rows))
            rows = [torch.cat([self._read(place, shard) for shard in pieces]) for place in range(len(self.names))]
            orders = [self._pairing.get(name) for name in self.names]
            self._whole = [one if order is None else one[order] for one, order in zip(rows, orders, strict=True)]
        return self._whole

    def windows(self, seed: int, epoch: int) -> Iterator[list[Rows]]:
        """Raw rows of all models, in windows that fit into the budget; shards in an order of the epoch's own."""
        if self.is_one_window:
            yield self.whole()
            return
        order = generator(seed, "shards", epoch).permutation(len(self.shard_rows))
        for start in range(0, len(order), self.window_shards):
            chosen = [int(shard) for shard in order[start : start + self.window_shards]]
            yield [torch.cat([self._read(place, shard) for shard in chosen]) for place in range(len(self.names))]

    def moments(self) -> list[Moments]:
        """Mean and variance of every feature of every model, in two passes over float64."""
        means = [total / self.n_rows for total in self._sums([torch.zeros(w, dtype=torch.float64) for w in self._wide])]
        squares = self._sums(means, power=2)
        return [Moments(mean, total / self.n_rows) for mean, total in zip(means, squares, strict=True)]

    @property
    def _wide(self) -> list[int]:
        return list(self.widths.values())

    def _sums(self, centres: Sequence[Tensor], power: int = 1) -> list[Tensor]:
        totals = [torch.zeros(w, dtype=torch.float64) for w in self._wide]
        for rows in self.shards():
            for total, one, centre in zip(totals, rows, centres, strict=True):
                # In pieces: a float64 copy of a whole shard may be as large as all that training needs.
                for piece in one.split(SUMMED_ROWS):
                    total += (piece.double() - centre).pow(power).sum(0)
        return totals

    def _read(self, place: int, shard: int) -> Rows:
        rows = self._sources[place].read(shard)
        if not bool(torch.isfinite(rows).all()):
            bad = int((~torch.isfinite(rows).all(1)).nonzero()[0])
            raise DataError(
                f"activations of '{self.names[place]}' are not finite (row {bad} of shard {shard}); "
                "extract them again, in float32"
            )
        return rows


def _require_pairs(names: Sequence[str], sources: Sequence[Shards]) -> None:
    for name, one in zip(names, sources, strict=True):
        if sum(one.shard_rows) != sum(sources[0].shard_rows):
            raise DataError(
                f"'{names[0]}' has {sum(sources[0].shard_rows):,} rows and '{name}' {sum(one.shard_rows):,}: they must "
                "be activations of the same images"
            )
        if tuple(one.shard_rows) != tuple(sources[0].shard_rows):
            raise DataError(f"the shards of '{names[0]}' and '{name}' are cut differently; extract them together")
    if not sources[0].shard_rows or sum(sources[0].shard_rows) < 2:
        raise DataError(f"'{names[0]}' has fewer than 2 rows; take more images")


def _require_permutations(pairing: Mapping[str, Tensor], names: Sequence[str], n_rows: int) -> None:
    for name, order in pairing.items():
        if name not in names:
            raise DataError(f"pairing names '{name}', of which there are no activations{suggestion(name, names)}")
        if not torch.equal(order.sort().values.cpu().long(), torch.arange(n_rows)):
            raise DataError(f"the pairing of '{name}' is no permutation of its {n_rows:,} rows")


def _starts(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:place]) for place in range(len(sizes))]
