"""What the interpretation panel left on disk, read and checked.

    dictionaries/measures.json                    required   list of DictionaryRecord
    dictionaries/dictionaries.json                optional   list of TrainedRecord
    dictionaries/universal/features.parquet       optional   one row a latent of the shared dictionary
    dictionaries/{shuffled,same}/features.parquet optional   the same of the two nulls; their entropies alone are read
    dictionaries/universal/images/index.json      optional   list of LatentPictures, the PNG files beside it
    dictionaries/backbones/*/training.json        optional   one BackboneRecord each
    dictionaries/matrices.json                    optional   list of MatrixRecord

Not here: statistics, and pixels (`triptych.reports.figures.latents`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from triptych.dictionaries.records import (
    FOLDER,
    MAIN,
    MATRICES,
    MEASURES,
    SPECIFIC,
    TOPS,
    TRAINED,
    UNIVERSAL,
    BackboneRecord,
    DictionaryRecord,
    Kind,
    LatentPictures,
    MatrixRecord,
    Role,
    TrainedRecord,
)
from triptych.errors import DataError
from triptych.records import Estimate
from triptych.reports.auditing_inputs import shown_name
from triptych.reports.inputs import FloatArray, IntArray, read_table
from triptych.reports.safe_text import clip
from triptych.runs import Manifest, read_manifest, read_records_json

BoolArray = npt.NDArray[np.bool_]
Class = Literal["universal", "mid", "specific"]
KIND_OF: Mapping[Class, Kind] = {"universal": "universal", "mid": "partial", "specific": "specific"}

IMAGES = f"{FOLDER}/{MAIN}/images"
TOPS_FILE = f"{FOLDER}/{MAIN}/{TOPS}"
FEATURES = "features.parquet"
NULLS: tuple[Role, ...] = ("shuffled", "same")
"""Their folders are called so, too."""
FIRES = "fires_"
MAX_NAME = 24
"""Characters of a model's name in tables, whose first column stays in place while others scroll."""
REQUIRED = ("latent", "firing_entropy", "co_fires", "dead")
OPTIONAL = ("co_fire_chance", "confirmed", "label", "label_auroc", "kind", "specific_to")
ROLES: tuple[Role, ...] = get_args(Role)


class Key(NamedTuple):
    """What tells one measure from every other, whatever the seed."""

    role: str
    metric: str
    source: str | None = None
    target: str | None = None
    factor: str | None = None


class Latents(NamedTuple):
    """The latents of the shared dictionary; one entry a latent in every array."""

    numbers: IntArray
    entropies: FloatArray
    """NaN where dead."""
    co_fires: IntArray
    chances: FloatArray
    """Co-fires that independent firing would give; NaN where not recorded."""
    confirmed: BoolArray
    """Fires together more often than by chance; False where not recorded."""
    dead: BoolArray
    fires: Mapping[str, IntArray]
    """By model: held-out rows."""
    cofires: Mapping[str, FloatArray]
    """By model: co-fires over its firings; NaN where it never fires."""
    energies: Mapping[str, FloatArray]
    labels: tuple[str | None, ...]
    label_aurocs: FloatArray
    has_chances: bool
    """Whether `chances` and `confirmed` were recorded."""
    kinds: npt.NDArray[np.str_] | None = None
    """By what latents explain; None where not recorded."""
    specific_to: tuple[str | None, ...] = ()
    """The model that a specific latent is of; empty where not recorded."""

    def of_class(self, name: Class) -> BoolArray:
        """Which live latents are of a class: by kind, or by firing entropy in a run from before there were kinds."""
        if self.kinds is None:
            return self.of_entropy(name)
        return np.asarray(self.kinds == KIND_OF[name], dtype=np.bool_)

    def of_entropy(self, name: Class) -> BoolArray:
        """Which live latents are of a class by firing entropy, as in the paper."""
        return ~self.dead & class_of(self.entropies, name)

    def owner(self, place: int) -> str | None:
        """The model that the latent is specific to, if any."""
        return self.specific_to[place] if self.specific_to else None

    @property
    def n_dead(self) -> int:
        return int(self.dead.sum())

    @property
    def n_live(self) -> int:
        return int((~self.dead).sum())


@dataclass(frozen=True)
class Dictionaries:
    """Everything the interpretation panel left on disk, short of weights and pixels."""

    run_dir: Path
    manifest: Manifest
    measures: tuple[DictionaryRecord, ...]
    trained: tuple[TrainedRecord, ...]
    latents: Latents | None
    null_entropies: Mapping[str, FloatArray]
    """By role of a null: the entropies of its live latents."""
    pictures: tuple[LatentPictures, ...]
    backbones: tuple[BackboneRecord, ...]
    matrices: tuple[MatrixRecord, ...] = ()
    """Files of activations that were given in the place of images; empty where there were images."""

    @property
    def unit(self) -> Literal["image", "row"]:
        """What is held out, and what latents fire on."""
        return "row" if self.matrices else "image"

    @cached_property
    def _by_key(self) -> dict[Key, dict[int | None, Estimate]]:
        found: dict[Key, dict[int | None, Estimate]] = {}
        for row in self.measures:
            key = Key(row.role, row.metric, row.source, row.target, row.factor)
            found.setdefault(key, {})[row.seed] = row.estimate
        return found

    def estimate(self, key: Key) -> Estimate | None:
        """A measure over all seeds; where that has no interval, as with one seed, that of the main dictionary's seed.

        None where it was not measured.
        """
        by_seed = self._by_key.get(key, {})
        over_seeds, of_main = by_seed.get(None), self._of_main_seed(by_seed)
        if over_seeds is None or (over_seeds.low is None and of_main is not None and of_main.low is not None):
            return of_main
        return over_seeds

    def of_main(self, metric: str) -> Estimate | None:
        """A measure of the very dictionary that figures show, rather than over seeds."""
        by_seed = self._by_key.get(Key(MAIN, metric), {})
        found = self._of_main_seed(by_seed) or by_seed.get(None)
        return None if found is None or found.mean is None else found

    def of_model(self, metric: str, model: str) -> Estimate | None:
        """A measure that compares dictionaries of one model, under whichever role it stands."""
        found = (self.estimate(Key(role, metric, model)) for role in ROLES)
        return next((estimate for estimate in found if estimate is not None), None)

    def independent_r2(self, model: str, *, equal_updates: bool = False) -> Estimate | None:
        """R² of the dictionary that the model has for itself."""
        name = "independent_equal_updates" if equal_updates else "independent"
        return self.of_model(f"r2_{name}", model) or self.estimate(Key(name, "r2", model, model))

    def _of_main_seed(self, by_seed: Mapping[int | None, Estimate]) -> Estimate | None:
        """Of the main dictionary's seed, else of the first that there is."""
        seeds = sorted(seed for seed in by_seed if seed is not None)
        chosen = self.main.seed if self.main is not None and self.main.seed in by_seed else next(iter(seeds), None)
        return None if chosen is None else by_seed[chosen]

    @property
    def main(self) -> TrainedRecord | None:
        """The shared dictionary that pictures and tables are about."""
        return next((one for one in self.trained if one.name == MAIN), None)

    @cached_property
    def models(self) -> tuple[str, ...]:
        """The models that share it."""
        if self.main is not None:
            return self.main.models
        sources = [row.source for row in self.measures if row.role == MAIN and row.metric == "r2"]
        of_features = () if self.latents is None else tuple(self.latents.fires)
        return of_features or tuple(dict.fromkeys(source for source in sources if source is not None))

    def named(self, model: str) -> str:
        """A model's name as tables and sentences have it: short, and numbered where two would look alike."""
        return self._names.get(model) or shown_name(model)

    @cached_property
    def _names(self) -> dict[str, str]:
        cut = [clip(shown_name(model), MAX_NAME) for model in self.models]
        names = [clipped.text + ("…" if clipped.left_out else "") for clipped in cut]
        if len(set(names)) < len(names):
            names = [f"{place}: {name}" for place, name in enumerate(names, start=1)]
        return dict(zip(self.models, names, strict=True))

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Of the shared dictionaries."""
        found = [one.seed for one in self.trained if one.role == MAIN]
        found += [row.seed for row in self.measures if row.role == MAIN and row.seed is not None]
        return tuple(sorted(set(found)))

    @cached_property
    def roles(self) -> tuple[Role, ...]:
        """Those that were measured."""
        found = {row.role for row in self.measures}
        return tuple(role for role in ROLES if role in found)

    @cached_property
    def factors(self) -> tuple[str, ...]:
        """Labelled properties of images that latents were compared with, in the order of the file."""
        return tuple(dict.fromkeys(row.factor for row in self.measures if row.factor is not None))

    def updates(self) -> list[tuple[str, str]]:
        """Role and `update` of the shared dictionaries that differ in it alone, `source` first."""
        known = {one.role: one.update for one in self.trained}
        found = [(role, known.get(role, "")) for role in (MAIN, "other_update") if role in self.roles]
        return sorted(found, key=lambda pair: pair[1] != "source")

    def pictured(self, kind: str) -> LatentPictures | None:
        """The latent of a kind whose pictures are shown: the first that has any."""
        return next((latent for latent in self.pictures if latent.kind == kind and latent.pictures), None)


def class_of(entropies: FloatArray, name: Class) -> BoolArray:
    """Which entropies are those of a class; NaN is of none."""
    universal, specific = entropies > UNIVERSAL, entropies < SPECIFIC
    classes = {"universal": universal, "specific": specific, "mid": ~universal & ~specific & ~np.isnan(entropies)}
    return np.asarray(classes[name], dtype=np.bool_)


def read_dictionaries(run_dir: Path) -> Dictionaries | None:
    """The panel's files of a run directory, checked; None where it has no measures."""
    if not (run_dir / MEASURES).is_file():
        return None
    trained = _read_if_there(run_dir / TRAINED, TrainedRecord)
    models = next((one.models for one in trained if one.name == MAIN), None)
    nulls = {role: _read_entropies(run_dir / FOLDER / role / FEATURES) for role in NULLS}
    return Dictionaries(
        run_dir=run_dir,
        manifest=read_manifest(run_dir),
        measures=tuple(read_records_json(run_dir / MEASURES, DictionaryRecord)),
        trained=trained,
        latents=_read_latents(run_dir / FOLDER / MAIN / FEATURES, models),
        null_entropies={role: found for role, found in nulls.items() if found is not None},
        pictures=_read_if_there(run_dir / IMAGES / "index.json", LatentPictures),
        backbones=tuple(_read_backbones(run_dir / FOLDER / "backbones")),
        matrices=_read_if_there(run_dir / MATRICES, MatrixRecord),
    )


def _read_if_there(path: Path, cls: Any) -> tuple[Any, ...]:
    return tuple(read_records_json(path, cls)) if path.is_file() else ()


def _read_entropies(path: Path) -> FloatArray | None:
    if not path.is_file():
        return None
    table = read_table(path, ("firing_entropy", "dead"))
    entropies = _floats(table, "firing_entropy")
    return entropies[~np.isnan(entropies) & ~_bools(table, "dead")]


def _read_latents(path: Path, models: tuple[str, ...] | None) -> Latents | None:
    """The models are those that the columns name, where none are given."""
    if not path.is_file():
        return None
    table = read_table(path, REQUIRED)
    present = pq.read_schema(path).names
    found = models or tuple(name.removeprefix(FIRES) for name in present if name.startswith(FIRES))
    own = [f"{part}_{model}" for model in found for part in ("fires", "cofire", "energy")]
    rest = read_table(path, [*own, *(name for name in OPTIONAL if name in present)])
    n = table.num_rows
    return Latents(
        numbers=_ints(table, "latent"),
        entropies=_floats(table, "firing_entropy"),
        co_fires=_ints(table, "co_fires"),
        chances=_floats(rest, "co_fire_chance"),
        confirmed=_bools(rest, "confirmed"),
        dead=_bools(table, "dead"),
        fires={model: _ints(rest, f"fires_{model}") for model in found},
        cofires={model: _floats(rest, f"cofire_{model}") for model in found},
        energies={model: _floats(rest, f"energy_{model}") for model in found},
        labels=tuple(rest["label"].to_pylist()) if "label" in present else (None,) * n,
        label_aurocs=_floats(rest, "label_auroc"),
        has_chances={"co_fire_chance", "confirmed"} <= set(present),
        kinds=np.array(rest["kind"].to_pylist()) if "kind" in present else None,
        specific_to=tuple(rest["specific_to"].to_pylist()) if "specific_to" in present else (),
    )


def _read_backbones(folder: Path) -> Iterable[BackboneRecord]:
    for path in sorted(folder.glob("*/training.json")):
        try:
            yield BackboneRecord.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ", ".join(str(step) for step in first["loc"]) or "the start"
            raise DataError(f"{path}: not a record of a backbone (at {where}: {first['msg']})") from None


def _values(table: pa.Table, name: str, missing: Any) -> list[Any]:
    if name not in table.column_names:
        return [missing] * table.num_rows
    return [missing if value is None else value for value in table.column(name).to_pylist()]


def _floats(table: pa.Table, name: str) -> FloatArray:
    return np.array(_values(table, name, np.nan), dtype=np.float64)


def _ints(table: pa.Table, name: str) -> IntArray:
    return np.array(_values(table, name, 0), dtype=np.int64)


def _bools(table: pa.Table, name: str) -> BoolArray:
    return np.array(_values(table, name, False), dtype=np.bool_)
