"""Which image files show what a latent fires on: pictures of a few latents, thumbnails for all of them.

    dictionaries/universal/images/index.json     pictures of the latents that were picked, the files beside it
    dictionaries/universal/tops.parquet          the images (or rows) on which each live latent fires most
    dictionaries/universal/thumbnails.parquet    these images, made small

Any of them may be absent. A name or number from outside only ever looks something up that these files list. Not here:
how they are made (`triptych.dictionaries.pictures`, `….tops`).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from triptych.dictionaries.records import FOLDER, MAIN, THUMBNAILS, TOPS, LatentPictures, Picture
from triptych.errors import DataError
from triptych.explorer.text import clean_strings
from triptych.reports.dictionaries_inputs import IMAGES
from triptych.reports.inputs import FloatArray, IntArray, read_table

BASE = "/api/concepts"
OWN = f"{FOLDER}/{MAIN}"
"""Of the dictionary that the page shows."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,120}\.(png|jpg)", re.ASCII)
"""What the pictures stage writes, and nothing that a file system or a URL could read in another way."""
TYPES = {"png": "image/png", "jpg": "image/jpeg"}
MAGIC = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
MAX_BYTES = 8 * 2**20
"""Of one picture; those of a study have some ten thousand."""


class Encoded(NamedTuple):
    """An image as it goes over the wire."""

    data: bytes
    media_type: str


class Shot(NamedTuple):
    """An image or row on which a latent fires, or an image that drives it, and where it is served."""

    url: str | None
    """None of a row that is no image."""
    activation: float
    image_id: str | None


class Shots(NamedTuple):
    """What one model shows of a latent."""

    top: list[Shot]
    heat: list[Shot]
    maximised: list[Shot]


@final
class Tops:
    """`tops.parquet`, found by latent and model."""

    def __init__(self, table: pa.Table, models: Sequence[str]) -> None:
        places = {model: place for place, model in enumerate(models)}
        of_model = np.array([places.get(model, -1) for model in table["model"].to_pylist()], dtype=np.int64)
        latents, ranks = (_numbers(table, name) for name in ("latent", "rank"))
        order = np.lexsort((ranks, of_model, latents))
        order = order[of_model[order] >= 0]
        self._places = places
        self._latents, self._models = latents[order], of_model[order]
        self._rows, self._activations = _numbers(table, "row")[order], _floats(table, "activation")[order]
        self._ids = table["image_id"].take(pa.array(order))

    def of(self, latent: int, model: str) -> list[tuple[int, float, str | None]]:
        """Row, activation and id of the images, the strongest first."""
        begin, end = (int(np.searchsorted(self._latents, latent, side)) for side in ("left", "right"))
        own = begin + np.flatnonzero(self._models[begin:end] == self._places.get(model, -2))
        return [(int(self._rows[at]), float(self._activations[at]), self._ids[at].as_py()) for at in own.tolist()]


def _numbers(table: pa.Table, name: str) -> IntArray:
    if table[name].null_count:
        raise ValueError(f"the column {name} has rows without a number")
    return np.asarray(table[name].cast(pa.int64()).to_numpy(), dtype=np.int64)


def _floats(table: pa.Table, name: str) -> FloatArray:
    return np.asarray(table[name].cast(pa.float64()).to_numpy(), dtype=np.float64)


@final
class Thumbnails:
    """`thumbnails.parquet`: where each is lies in memory, the images themselves stay on the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        rows = _numbers(read_table(path, ("row",)), "row").tolist()
        metadata = pq.read_metadata(path)
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        places = [(group, at) for group, size in enumerate(sizes) for at in range(size)]
        self._places = dict(zip(rows, places, strict=True))

    def __contains__(self, row: int) -> bool:
        return row in self._places

    def read(self, row: int) -> Encoded | None:
        """None where there is none, or what is there is no PNG or JPEG."""
        if row not in self._places:
            return None
        group, at = self._places[row]
        try:
            # A handle of its own: reads go on in several threads.
            with pq.ParquetFile(self._path) as file:
                data = file.read_row_group(group, columns=["image"])["image"][at].as_py()
        except (pa.ArrowException, OSError, IndexError, KeyError):
            return None
        return _as_image(data)


def _as_image(data: Any) -> Encoded | None:
    """Bytes by how they begin; None for what begins like no PNG or JPEG."""
    if not isinstance(data, bytes):
        return None
    return next((Encoded(data, media_type) for magic, media_type in MAGIC.items() if data.startswith(magic)), None)


@final
class ConceptImages:
    """All images of a run's latents."""

    def __init__(
        self, run_dir: Path, pictures: Iterable[LatentPictures], models: Sequence[str], *, has_images: bool = True
    ) -> None:
        self._has_images = has_images
        self._folder = run_dir / IMAGES
        self._pictures: Mapping[int, LatentPictures] = {one.latent: one for one in pictures if one.pictures}
        tops, thumbnails = (run_dir / OWN / name for name in (TOPS, THUMBNAILS))
        self._tops = _read_tops(tops, models) if tops.is_file() else None
        self._thumbnails = Thumbnails(thumbnails) if thumbnails.is_file() else None

    @property
    def pictured(self) -> list[int]:
        """Latents with pictures, in the order of the index."""
        return list(self._pictures)

    def shots(self, latent: int, model: str) -> Shots:
        """A picked latent's pictures, else thumbnails or names of what it fires on most."""
        record = self._pictures.get(latent)
        own = [one for one in record.pictures if one.model == model] if record is not None else []
        top, heat, maximised = (_of_kind(own, kind) for kind in ("top", "heat", "maximised"))
        return Shots(top or self.thumbnails(latent, model), heat, maximised)

    def thumbnails(self, latent: int, model: str, n: int | None = None) -> list[Shot]:
        """At most n, the strongest first; of a run without images, rows by name."""
        if self._tops is not None and not self._has_images:
            return [Shot(None, activation, name) for _, activation, name in self._tops.of(latent, model)[:n]]
        if self._tops is None or self._thumbnails is None:
            return []
        found = [one for one in self._tops.of(latent, model) if one[0] in self._thumbnails]
        return [Shot(f"{BASE}/thumbnails/{row}", activation, name) for row, activation, name in found[:n]]

    def thumbnail(self, row: int) -> Encoded | None:
        return None if self._thumbnails is None else self._thumbnails.read(row)

    def picture(self, name: str) -> Encoded | None:
        """A file that the index lists; None for every other name, and for what is no plain file of the folder."""
        if name not in self._names:
            return None
        path = self._folder / name
        try:
            if path.resolve().parent != self._folder.resolve() or not path.is_file():
                return None
            if path.stat().st_size > MAX_BYTES:
                return None
            return Encoded(path.read_bytes(), TYPES[path.suffix[1:]])
        except OSError:
            return None

    @cached_property
    def _names(self) -> frozenset[str]:
        files = (picture.file for record in self._pictures.values() for picture in record.pictures)
        return frozenset(file for file in files if NAME.fullmatch(file))


def _of_kind(pictures: Iterable[Picture], kind: str) -> list[Shot]:
    found = [one for one in pictures if one.kind == kind and NAME.fullmatch(one.file)]
    ordered = sorted(found, key=lambda one: one.rank)
    return [Shot(f"{BASE}/images/{one.file}", one.activation, one.image_id) for one in ordered]


def _read_tops(path: Path, models: Sequence[str]) -> Tops:
    table = clean_strings(read_table(path, ("latent", "model", "rank", "row", "activation", "image_id")))
    try:
        return Tops(table, models)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(f"{path} holds other values than top images do ({error}); run the panel again") from error
