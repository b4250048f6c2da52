"""A small synthetic `dictionaries/` folder, with text that tries to break a page. Its figures are made up, not computed."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from triptych.dictionaries.records import (
    BackboneRecord,
    DictionaryRecord,
    LatentPictures,
    Picture,
    Role,
    TrainedRecord,
)
from triptych.records import Estimate
from triptych.runs import Manifest, write_records_json

HOSTILE = "\u202e<img src=x onerror=alert(5)>$\\frac{1}{2}$" + "z" * 300
LATENTS, ROWS = 400, 1000
OVER_SEEDS, OVER_IMAGES = "95% Student's t over seeds", "95% cluster bootstrap-t, 2000 resamples"
R2 = {("resnet", "resnet"): 0.759, ("resnet", "vit"): 0.618, ("vit", "resnet"): 0.718, ("vit", "vit"): 0.771}
COUNTS = {
    "universal": 120,
    "partial": 190,
    "specific": 60,
    "dead": 30,
    "confirmed": 150,
    "universal_by_variance": 140,
    "universal_by_counts": 160,
    "specific_by_counts": 55,
}


class MakeDictionaries(Protocol):
    def __call__(
        self,
        run_dir: Path,
        *,
        models: tuple[str, ...] = ("resnet", "vit"),
        seeds: tuple[int, ...] = (0, 1, 2),
        factors: tuple[str, ...] = ("shape", "hue", "texture"),
        hostile: bool = False,
        heat: bool = True,
        side: int = 96,
        without: tuple[str, ...] = (),
    ) -> Path: ...


class Maker:
    """Writes the files of one run; `without` names roles, metrics and files that are left out."""

    def __init__(
        self,
        models: tuple[str, ...],
        seeds: tuple[int, ...],
        factors: tuple[str, ...],
        without: tuple[str, ...],
        *,
        hostile: bool,
        heat: bool,
        side: int,
    ) -> None:
        self.rng = np.random.default_rng(0)
        self.models, self.seeds, self.factors, self.without = models, seeds, factors, without
        self.hostile, self.heat, self.side = hostile, heat, side

    # --- Measures ---

    def over_seeds(self, mean: float) -> Estimate:
        n = len(self.seeds)
        if n == 1:
            return Estimate(mean=mean, low=None, high=None, n=1, n_clusters=1, method="no interval: one seed")
        half = 0.02 * abs(mean) + 1e-3
        return Estimate(mean=mean, low=mean - half, high=mean + half, n=n, n_clusters=n, method=OVER_SEEDS)

    def over_images(self, mean: float, *, exact: bool) -> Estimate:
        if exact:
            return Estimate(mean=mean, low=None, high=None, n=1, n_clusters=1, method="no interval: one dictionary")
        return Estimate(mean=mean, low=mean - 0.01, high=mean + 0.01, n=ROWS, n_clusters=ROWS, method=OVER_IMAGES)

    def both(
        self, role: Role, metric: str, mean: float, *, exact: bool = False, **key: Any
    ) -> Iterator[DictionaryRecord]:
        """Of every seed, and over all."""
        if role in self.without or metric in self.without:
            return
        for place, seed in enumerate(self.seeds):
            estimate = self.over_images(mean * (1 + 0.01 * place), exact=exact)
            yield DictionaryRecord(role=role, metric=metric, seed=seed, estimate=estimate, **key)
        yield DictionaryRecord(role=role, metric=metric, estimate=self.over_seeds(mean), **key)

    def r2(self, source: str, target: str) -> float:
        return R2.get((source, target), 0.75 if source == target else 0.6)

    def measures(self) -> Iterator[DictionaryRecord]:
        shifts: dict[Role, float] = {
            "universal": 0.0,
            "other_update": 0.03,
            "sparc": -0.02,
            "shuffled": -0.5,
            "same": 0.05,
        }
        for role, shift in shifts.items():
            for source in self.models:
                for target in self.models:
                    value = self.r2(source, target) + (shift if source != target else 0.0)
                    yield from self.both(role, "r2", value, source=source, target=target)
                    yield from self.both(role, "r2_global", value + 0.05, source=source, target=target)
            for name, count in self.counts(role).items():
                yield from self.both(role, name, float(count), exact=True)
            yield from self.both(role, "co_firing_proportion", 0.2144 + shift / 10)
            yield from self.both(role, "co_firing_chance", 0.05)
            yield from self.both(role, "loss", 0.587 - shift, exact=True)
        for model in self.models:
            own = self.r2(model, model)
            yield from self.both("universal", "l0", 32.0, source=model)
            yield from self.both("universal", "co_firing", 0.31, source=model)
            yield from self.both("universal", "matching_cosine", 0.55, source=model)
            yield from self.both("universal", "matched", 0.21, source=model)
            yield from self.both("independent", "r2", own + 0.05, source=model, target=model)
            yield from self.both("independent_equal_updates", "r2", own + 0.03, source=model, target=model)
            yield from self.both("universal", "alignment_tax", 0.05, source=model)
            yield from self.both("universal", "alignment_tax_equal_updates", 0.03, source=model)
        for place, factor in enumerate(self.factors):
            yield from self.both("universal", "auroc_universal", 0.95 - 0.1 * place, factor=factor)
            yield from self.both("universal", "auroc_specific", 0.8 - 0.05 * place, factor=factor)
        yield from self.both("universal", "surprise", 1.0)

    def counts(self, role: Role) -> dict[str, int]:
        if role == "shuffled":
            return {**COUNTS, "universal": 0, "confirmed": 3, "universal_by_counts": 110}
        return {**COUNTS, "universal": 360, "universal_by_counts": 365, "specific": 0} if role == "same" else COUNTS

    def trained(self) -> Iterator[TrainedRecord]:
        roles: tuple[Role, ...] = ("universal", "other_update", "independent", "shuffled", "same")
        for role in roles:
            for place, seed in enumerate(self.seeds):
                name = role if place == 0 else f"{role}-{seed}"
                models = self.models if role != "independent" else self.models[:1]
                if role not in self.without:
                    yield TrainedRecord(
                        name=name,
                        role=role,
                        seed=seed,
                        models=models,
                        latents=LATENTS,
                        k=32,
                        update="all" if role == "other_update" else "source",
                        steps=5860,
                        samples=1_500_000,
                        loss=0.587,
                        seconds=73.2 + place,
                    )

    # --- Latents ---

    def features(self, *, shape: str = "main") -> pa.Table:
        """Specific latents of each model in turn, then mixed, then universal ones; the last 30 are dead."""
        rng, n, m = self.rng, LATENTS, len(self.models)
        lean = {"main": rng.beta(0.35, 0.35, n), "shuffled": rng.beta(0.8, 0.8, n), "same": np.full(n, 0.5)}[shape]
        lean = np.where(lean < 0.03, 0.0, np.where(lean > 0.97, 1.0, lean))
        total = rng.integers(20, 200, n)
        shares = np.stack([lean, *[(1 - lean) / (m - 1)] * (m - 1)], axis=1)
        fires = np.floor(total[:, None] * shares).astype(np.int64)
        dead = np.arange(n) >= n - COUNTS["dead"]
        fires[dead] = 0
        dead = fires.sum(axis=1) == 0
        p = fires / np.maximum(1, fires.sum(axis=1, keepdims=True))
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = -np.where(p > 0, p * np.log(p), 0.0).sum(axis=1) / np.log(m)
        co_fires = np.floor(fires.min(axis=1) * rng.uniform(0, 1, n)).astype(np.int64)
        chance = fires.prod(axis=1) / ROWS ** (m - 1)
        is_label = rng.uniform(size=n) < 0.8
        label = HOSTILE if self.hostile else "shape = star"
        columns: dict[str, Any] = {
            "latent": list(range(n)),
            "firing_entropy": [None if d else float(abs(e)) for e, d in zip(entropy, dead, strict=True)],
            "co_fires": co_fires.tolist(),
            "dead": dead.tolist(),
        }
        for place, model in enumerate(self.models):
            own = fires[:, place]
            columns[f"fires_{model}"] = own.tolist()
            columns[f"cofire_{model}"] = [float(c / f) if f else None for c, f in zip(co_fires, own, strict=True)]
            columns[f"energy_{model}"] = np.where(own > 0, np.exp(rng.normal(-5, 2, n)), 0.0).tolist()
        if "chance" not in self.without:
            columns["co_fire_chance"] = chance.tolist()
            columns["p_value"] = rng.uniform(size=n).tolist()
            columns["confirmed"] = (co_fires > 2 * chance).tolist()
            columns["label"] = [label if known and self.factors else None for known in is_label]
            columns["label_auroc"] = [float(a) if self.factors else None for a in rng.uniform(0.5, 1.0, n)]
        types = {"label": pa.string(), "label_auroc": pa.float64(), "firing_entropy": pa.float64()}
        return pa.table({name: pa.array(values, types.get(name)) for name, values in columns.items()})

    # --- Pictures ---

    def pictures(self, folder: Path) -> Iterator[LatentPictures]:
        folder.mkdir(parents=True)
        fires = dict.fromkeys(self.models, 90)
        yield self.latent(folder, 200, "universal", None, 0.998, fires)
        lonely = {**dict.fromkeys(self.models, 0), self.models[0]: 81}
        yield self.latent(folder, 3, "specific", self.models[0], 0.0, lonely)

    def latent(
        self, folder: Path, number: int, kind: Any, model: str | None, entropy: float, fires: dict[str, int]
    ) -> LatentPictures:
        found: list[Picture] = []
        for place, name in enumerate(self.models):
            found.append(self.picture(folder, number, place, name, "maximised", 0))
            for rank in range(5 if fires[name] else 0):
                found.append(self.picture(folder, number, place, name, "top", rank))
                if self.heat:
                    found.append(self.picture(folder, number, place, name, "heat", rank))
        best = (HOSTILE if self.hostile else "shape = star (AUROC 0.98)") if self.factors else None
        return LatentPictures(
            latent=number,
            kind=kind,
            model=model,
            entropy=entropy,
            fires=fires,
            co_fires=min(fires.values()) // 2,
            best=best,
            pictures=tuple(found),
        )

    def picture(self, folder: Path, number: int, place: int, model: str, kind: Any, rank: int) -> Picture:
        file = f"{number}-{place}-{kind}-{rank}.png"
        pixels = self.rng.integers(0, 256, (self.side, self.side, 3), dtype=np.uint8)
        if kind == "top":
            pixels[...] = [40 * rank, 200 - 30 * rank, 90 + 60 * place]
            pixels[self.side // 4 : self.side // 2, self.side // 4 : self.side // 2] = 255
        Image.fromarray(pixels).save(folder / file)
        image_id = (HOSTILE if self.hostile else f"test-{17 * rank}") if kind != "maximised" else None
        return Picture(model=model, kind=kind, file=file, rank=rank, activation=9.25 - rank, image_id=image_id)

    def backbones(self) -> Iterator[BackboneRecord]:
        for model in self.models:
            estimate = Estimate(mean=0.91, low=0.9, high=0.92, n=ROWS, n_clusters=ROWS, method="95% Wilson")
            yield BackboneRecord(
                name=model,
                family="vit" if "vit" in model else "resnet",
                parameters=1_204_352,
                images=8000,
                epochs=6,
                seconds=81.5,
                accuracy=dict.fromkeys(self.factors, estimate),
                chance=dict.fromkeys(self.factors, 0.125),
            )


def manifest() -> Manifest:
    return Manifest(
        run_id="2025-01-01T000000-abcdef01",
        created="2025-01-01T00:00:00.000+00:00",
        command=("triptych", "interpret", "vision"),
        config={},
        config_hash="0123456789abcdef",
        seed=0,
        python="3.11.7",
        packages={"triptych": "0.1.0"},
        git=None,
        device="CPU: a processor, 2 cores",
        stages={},
    )


@pytest.fixture(scope="session")
def make_dictionaries() -> MakeDictionaries:
    """Writes a run directory with a `dictionaries/` folder; `without` names roles, metrics or files left out."""

    def write(
        run_dir: Path,
        *,
        models: tuple[str, ...] = ("resnet", "vit"),
        seeds: tuple[int, ...] = (0, 1, 2),
        factors: tuple[str, ...] = ("shape", "hue", "texture"),
        hostile: bool = False,
        heat: bool = True,
        side: int = 96,
        without: tuple[str, ...] = (),
    ) -> Path:
        folder = run_dir / "dictionaries"
        folder.mkdir(parents=True)
        make = Maker(models, seeds, factors, without, hostile=hostile, heat=heat, side=side)
        (run_dir / "manifest.json").write_text(manifest().model_dump_json())
        write_records_json(folder / "measures.json", list(make.measures()))
        writers: dict[str, Callable[[], None]] = {
            "trained": lambda: write_records_json(folder / "dictionaries.json", list(make.trained())),
            "features": lambda: _write_features(folder / "universal", make, "main"),
            "shuffled": lambda: _write_features(folder / "shuffled", make, "shuffled"),
            "same": lambda: _write_features(folder / "same", make, "same"),
            "images": lambda: _write_pictures(folder / "universal" / "images", make),
            "backbones": lambda: _write_backbones(folder / "backbones", make),
        }
        for name, writer in writers.items():
            if name not in without:
                writer()
        return run_dir

    return write


def _write_features(folder: Path, make: Maker, shape: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(make.features(shape=shape), folder / "features.parquet")


def _write_pictures(folder: Path, make: Maker) -> None:
    index = list(make.pictures(folder))
    write_records_json(folder / "index.json", index)


def _write_backbones(folder: Path, make: Maker) -> None:
    for place, backbone in enumerate(make.backbones()):
        (folder / str(place)).mkdir(parents=True)
        (folder / str(place) / "training.json").write_text(json.dumps(backbone.model_dump(mode="json")))
