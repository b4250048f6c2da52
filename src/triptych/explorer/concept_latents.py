"""The latents of a run's shared dictionary: their classes, what labels say of them, and a page of those in question.

    dictionaries/universal/features.parquet     read by `triptych.reports.dictionaries_inputs`
    dictionaries/universal/agreement.parquet    optional: latent, model, factor, value, AUROC

Everything is in memory, in arrays with an entry a latent. Texts are shown with what is hidden in them spelled out, and
are searched and filtered as they are shown. Not here: images (`concept_images`), and the web (`concepts`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from triptych.dictionaries.records import FOLDER, MAIN
from triptych.errors import DataError
from triptych.explorer.text import clean_strings, name_of
from triptych.reports.dictionaries_inputs import BoolArray, Dictionaries, Latents
from triptych.reports.inputs import FloatArray, IntArray, read_table

AGREEMENT = f"{FOLDER}/{MAIN}/agreement.parquet"

ClassName = Literal["universal", "mid", "specific", "dead"]
CLASSES: tuple[ClassName, ...] = ("universal", "mid", "specific", "dead")
"""In the order of their numbers."""
SortKey = Literal["latent", "entropy", "co_fires", "label_auroc", "fires"]


def shown_names(names: Sequence[str]) -> dict[str, str]:
    """Name → the name as it is shown, numbered where two would look alike: they are keys in what is sent."""
    found = [name_of(name) for name in names]
    if len(set(found)) < len(found):
        found = [f"{place}: {name}" for place, name in enumerate(found, start=1)]
    return dict(zip(names, found, strict=True))


class Agreement(NamedTuple):
    """How well a latent ranks the images of one value above all others."""

    factor: str
    value: str
    auroc: float
    model: str | None
    """As it is in files; None where labels alone are known."""


class Column(NamedTuple):
    """The agreements of one value; an entry an agreement."""

    numbers: IntArray
    """Of the latents."""
    aurocs: FloatArray


class Wanted(NamedTuple):
    """Which latents are in question, in which order. None is no condition."""

    cls: ClassName | None = None
    confirmed: bool | None = None
    pictured: bool | None = None
    q: str | None = None
    factor: str | None = None
    value: str | None = None
    min_auroc: float | None = None
    sort: SortKey = "latent"
    descending: bool = False


@dataclass(frozen=True)
class ConceptLatents:
    """What is known of every latent, and of what it is about."""

    latents: Latents
    agreements: dict[int, tuple[Agreement, ...]]
    """By number of a latent; the best first."""
    pictured: frozenset[int]

    @cached_property
    def places(self) -> dict[int, int]:
        """Number of a latent → its place in the arrays."""
        return {number: place for place, number in enumerate(self.latents.numbers.tolist())}

    @cached_property
    def classes(self) -> IntArray:
        """The place of each latent's class in `CLASSES`."""
        live = [self.latents.of_class(name) for name in ("universal", "mid", "specific")]
        return np.select(live, [0, 1, 2], 3).astype(np.int64)

    def class_at(self, place: int) -> ClassName:
        return CLASSES[int(self.classes[place])]

    @cached_property
    def fires(self) -> IntArray:
        """Of all models together."""
        zero = np.zeros(len(self.latents.numbers), dtype=np.int64)
        return np.asarray(sum(self.latents.fires.values(), zero), dtype=np.int64)

    @cached_property
    def factors(self) -> dict[str, list[str]]:
        """Factor → its values, as shown and sorted."""
        return {factor: sorted(values) for factor, values in sorted(self._by_value.items())}

    def matching(self, wanted: Wanted) -> IntArray:
        """Places of the latents in question, in the order asked for; of equals the lower number goes first.

        What has no value goes last, whichever way the order runs.
        """
        keep = self._plain_conditions(wanted) & self._by_labels(wanted)
        places = np.flatnonzero(keep)
        key = self._sort_values(wanted.sort)[places]
        key = np.where(np.isnan(key), np.inf, -key if wanted.descending else key)
        return places[np.lexsort((self.latents.numbers[places], key))]

    def neighbours(self, place: int) -> tuple[int | None, int | None]:
        """The latents of the same class before and after this one, by number."""
        own = np.sort(self.latents.numbers[self.classes == self.classes[place]])
        at = int(np.searchsorted(own, self.latents.numbers[place]))
        before = int(own[at - 1]) if at > 0 else None
        return before, int(own[at + 1]) if at + 1 < len(own) else None

    def _plain_conditions(self, wanted: Wanted) -> BoolArray:
        keep = np.ones(len(self.latents.numbers), dtype=np.bool_)
        if wanted.cls is not None:
            keep &= self.classes == CLASSES.index(wanted.cls)
        if wanted.confirmed is not None:
            keep &= self.latents.confirmed == wanted.confirmed
        if wanted.pictured is not None:
            keep &= np.isin(self.latents.numbers, list(self.pictured)) == wanted.pictured
        return keep

    def _by_labels(self, wanted: Wanted) -> BoolArray:
        """A factor's conditions are met by one and the same agreement; without a factor, AUROC is the label's."""
        keep = np.ones(len(self.latents.numbers), dtype=np.bool_)
        if wanted.q is not None:
            sought = wanted.q.casefold()
            keep &= np.array([sought in text for text in self._texts], dtype=np.bool_)
        if wanted.factor is not None:
            keep &= np.isin(self.latents.numbers, self._agreeing(wanted))
        elif wanted.min_auroc is not None:
            keep &= np.nan_to_num(self.latents.label_aurocs, nan=-1.0) >= wanted.min_auroc
        return keep

    def _agreeing(self, wanted: Wanted) -> IntArray:
        """Numbers of the latents with an agreement of this factor and value, and at least this AUROC."""
        of_factor = self._by_value.get(wanted.factor or "", {})
        values = of_factor if wanted.value is None else [wanted.value]
        least = -np.inf if wanted.min_auroc is None else wanted.min_auroc
        found = [column.numbers[column.aurocs >= least] for value in values if (column := of_factor.get(value))]
        return np.concatenate([np.zeros(0, dtype=np.int64), *found])

    @cached_property
    def _by_value(self) -> dict[str, dict[str, Column]]:
        """Factor → value → agreements: thousands of latents are filtered at once."""
        rows: dict[tuple[str, str], list[tuple[int, float]]] = {}
        for number, own in self.agreements.items():
            for one in own:
                rows.setdefault((one.factor, one.value), []).append((number, one.auroc))
        found: dict[str, dict[str, Column]] = {}
        for (factor, value), pairs in rows.items():
            numbers, aurocs = zip(*pairs, strict=True)
            column = Column(np.array(numbers, dtype=np.int64), np.array(aurocs, dtype=np.float64))
            found.setdefault(factor, {})[value] = column
        return found

    @cached_property
    def _texts(self) -> list[str]:
        """What a search looks at, latent by latent."""
        texts = []
        for number, label in zip(self.latents.numbers.tolist(), self.latents.labels, strict=True):
            about = [f"{one.factor} = {one.value}" for one in self.agreements.get(number, ())]
            texts.append("\n".join([name_of(label or ""), *about]).casefold())
        return texts

    def _sort_values(self, key: SortKey) -> FloatArray:
        values = {
            "latent": self.latents.numbers,
            "entropy": self.latents.entropies,
            "co_fires": self.latents.co_fires,
            "label_auroc": self.latents.label_aurocs,
            "fires": self.fires,
        }
        return values[key].astype(np.float64)


def read_latents(run: Dictionaries, pictured: Iterable[int]) -> ConceptLatents:
    """The latents of a run; none where it has no features. Raises DataError for a file that cannot be read."""
    latents = run.latents or _no_latents(run.models)
    path = run.run_dir / AGREEMENT
    rows = _read_agreements(path) if path.is_file() else _of_labels(latents)
    found: dict[int, list[Agreement]] = {}
    for latent, agreement in rows:
        found.setdefault(latent, []).append(agreement)
    best_first = {latent: tuple(sorted(own, key=lambda one: -one.auroc)) for latent, own in found.items()}
    return ConceptLatents(latents, best_first, frozenset(pictured))


def _no_latents(models: Sequence[str]) -> Latents:
    ints, floats = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float64)
    flags = np.zeros(0, dtype=np.bool_)
    by_model = dict.fromkeys(models, floats)
    counts = dict.fromkeys(models, ints)
    return Latents(ints, floats, ints, floats, flags, flags, counts, by_model, by_model, (), floats, False)


def _read_agreements(path: Path) -> list[tuple[int, Agreement]]:
    table = clean_strings(read_table(path, ("latent", "model", "factor", "value", "auroc")))
    try:
        latents, aurocs = table["latent"].cast(pa.int64()).to_pylist(), table["auroc"].cast(pa.float64()).to_pylist()
        texts = [table[name].cast(pa.large_string()).to_pylist() for name in ("factor", "value", "model")]
    except pa.ArrowException as error:
        raise DataError(f"{path} holds other values than agreements do ({error}); run the panel again") from error
    seen: dict[str, str] = {}
    rows = []
    for latent, auroc, factor, value, model in zip(latents, aurocs, *texts, strict=True):
        if latent is None or auroc is None or auroc != auroc or factor is None or value is None:
            continue
        names = [seen.setdefault(text, name_of(text)) for text in (factor, value)]
        rows.append((latent, Agreement(names[0], names[1], auroc, model)))
    return rows


def _of_labels(latents: Latents) -> list[tuple[int, Agreement]]:
    """Where there is no file of agreements, the labels say the best one: `shape = star`."""
    rows = []
    for number, label, auroc in zip(
        latents.numbers.tolist(), latents.labels, latents.label_aurocs.tolist(), strict=True
    ):
        factor, separator, value = (label or "").partition(" = ")
        if separator and auroc == auroc:
            rows.append((number, Agreement(name_of(factor), name_of(value), auroc, None)))
    return rows
