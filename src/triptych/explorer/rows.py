"""The narrow columns of a long table in memory: filtered by masks, ordered once, read page by page.

100,000 rows take a few megabytes, and their texts stay in Arrow memory, where a search is a scan: some 50 ms of one
core for 35 MB, shared among the cores. Not here: which columns a page has.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property, lru_cache, partial
from typing import Any, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from triptych.errors import MissingInputError, suggestion
from triptych.explorer.paging import Facet, Order
from triptych.explorer.text import name_of
from triptych.reports.dictionaries_inputs import BoolArray
from triptych.reports.inputs import FloatArray, IntArray

MAX_FACETS = 500
KEPT_SEARCHES = 32
KEPT_ORDERS = 16
MAX_SHARES, MIN_SHARE = 8, 4096
"""Threads of a search, and texts that one of them is worth."""


@final
class Coded:
    """A column of names: a code a row, and the shown name of every code."""

    def __init__(self, codes: IntArray, names: Sequence[str], labels: Mapping[str, str] | None = None) -> None:
        self.codes: IntArray = codes
        self.names: tuple[str, ...] = tuple(names)
        self._labels: Mapping[str, str] = labels or {}

    @classmethod
    def of(cls, column: pa.Array, missing: str = "") -> "Coded":
        """A text column; `missing` stands for null."""
        encoded = pc.fill_null(column, missing).dictionary_encode()
        names = [name_of(name) for name in encoded.dictionary.to_pylist()]
        return cls(encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), names)

    def mask(self, what: str, name: str) -> BoolArray:
        """Rows of a name. Raises MissingInputError where no row has it."""
        codes = [code for code, own in enumerate(self.names) if own == name]
        if not codes:
            raise MissingInputError(f"no {what} '{name_of(name)}' in this run{_known(name, self.names)}")
        return np.isin(self.codes, codes)

    def name(self, row: int) -> str:
        """The shown name of a row."""
        return self.names[int(self.codes[row])]

    @cached_property
    def facets(self) -> list[Facet]:
        """Every name with its number of rows, in the order of the codes; of very many the most frequent."""
        counts: Counter[str] = Counter()
        for name, n in zip(self.names, np.bincount(self.codes, minlength=len(self.names)).tolist(), strict=True):
            counts[name] += n
        kept = dict(counts.most_common(MAX_FACETS))
        return [
            Facet(value=name, label=self._labels.get(name, name), n=n) for name, n in counts.items() if name in kept
        ]


def _known(name: str, names: Sequence[str]) -> str:
    """A few names are listed, and of very many none: a message is one sentence."""
    return suggestion(name, names) if len(names) <= 20 else ""


@final
class Rows:
    """Columns of one table, all of one length."""

    def __init__(
        self, n: int, coded: Mapping[str, Coded], numbers: Mapping[str, FloatArray], texts: Iterable[pa.Array]
    ) -> None:
        self.n, self.coded, self.numbers = n, coded, numbers
        self._texts = tuple(texts)
        self.matches = lru_cache(KEPT_SEARCHES)(self._matches)
        self.ordered = lru_cache(KEPT_ORDERS)(self._ordered)

    def is_named(self, names: Mapping[str, str | None]) -> list[BoolArray]:
        """One mask for every column that a name is given for. Raises MissingInputError for a name that no row has."""
        return [self.coded[what].mask(what.replace("_", " "), name) for what, name in names.items() if name is not None]

    def is_within(self, column: str, low: float | None, high: float | None) -> list[BoolArray]:
        """Rows within bounds that are given; a row without a value is in none."""
        values = self.numbers[column]
        masks = [] if low is None else [values >= low]
        return masks if high is None else [*masks, values <= high]

    def _matches(self, query: str) -> BoolArray:
        """Rows with a text that holds `query`, upper and lower case alike."""
        found = np.zeros(self.n, dtype=np.bool_)
        for texts in self._texts:
            found |= _search(texts, query)
        return found

    def _ordered(self, column: str | None, order: Order) -> IntArray:
        """All rows, those without a value last and those of equal value as in the file; None: as in the file."""
        if column is None:
            return np.arange(self.n)[:: 1 if order == "asc" else -1]
        values = self.numbers[column]
        return np.argsort(values if order == "asc" else -values, kind="stable")

    def select(self, masks: Sequence[BoolArray], column: str | None, order: Order) -> IntArray:
        """The rows in all masks, in order."""
        in_order = self.ordered(column, order)
        return in_order[np.logical_and.reduce(masks)[in_order]] if masks else in_order


def _search(texts: pa.Array, query: str) -> BoolArray:
    if pa.types.is_dictionary(texts.type):
        return np.asarray(_search(texts.dictionary, query)[texts.indices.to_numpy(zero_copy_only=False)])
    size = max(MIN_SHARE, -(-len(texts) // _cores()))
    shares = [texts.slice(begin, size) for begin in range(0, len(texts), size)]
    found = list(_pool().map(partial(_search_share, query=query), shares))
    return np.concatenate(found) if found else np.zeros(0, dtype=np.bool_)


def _search_share(texts: pa.Array, query: str) -> BoolArray:
    """Arrow lets other threads run while it looks."""
    found = pc.fill_null(pc.match_substring(texts, query, ignore_case=True), False)
    return np.asarray(found.to_numpy(zero_copy_only=False), dtype=np.bool_)


def _cores() -> int:
    return min(MAX_SHARES, os.cpu_count() or 1)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_cores(), thread_name_prefix="search")


def encoded(texts: pa.Array) -> pa.Array:
    """A column of few texts that repeat, each kept and searched once."""
    return pc.fill_null(texts, "").dictionary_encode()


def floats(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """A column of numbers; null is NaN."""
    values: Any = pc.cast(column, pa.float64()).to_numpy()
    return np.array(values, dtype=np.float64)
