"""Pictures of latents: which ones to show, the images on which they fire most, where in them, and what drives them.

Everything is written below `<dictionary>/images/`: small PNG files of what a model sees (resized and cropped as its
processor does it) and, last, `index.json`, a list of `LatentPictures`. Names of files carry numbers alone, as those of
models and images may hold anything. Not here: the optimised inputs themselves (`visualisation`).
"""

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from PIL import Image
from scipy.sparse import csr_matrix
from torch import Tensor

from triptych.dictionaries.records import LatentPictures, Picture
from triptych.dictionaries.visualisation import Driven, Sees
from triptych.errors import DataError
from triptych.files import atomic_write_bytes, write_records_json

UInt8Image: TypeAlias = npt.NDArray[np.uint8]
"""[height, width, 3], RGB."""

IMAGES = "images"
INDEX = "index.json"

LONGEST_SIDE = 160
"""Pixels: larger pictures are shrunk, as a page holds many of them."""


COLOURS = "inferno"
"""Perceptually uniform, and black where nothing fires."""

COLDEST, HOTTEST = 0.45, 0.65
"""Opacity of a heat map where the latent does not fire, and where it fires most."""


@runtime_checkable
class ImageSource(Protocol):
    """The part of `triptych.data.images.ImageSet` that is needed."""

    @property
    def ids(self) -> Sequence[str]: ...

    def read(self, index: int) -> UInt8Image: ...


@runtime_checkable
class Views(Sees, Protocol):
    """The part of `triptych.models.vision.VisionModel` that is needed."""

    @property
    def grid(self) -> int | None: ...

    def preprocess(self, images: Sequence[UInt8Image]) -> Float[Tensor, "b 3 h w"]: ...


class LatentFeatures(NamedTuple):
    """What is known of every latent of a dictionary; arrays are [latents]."""

    entropy: npt.NDArray[np.floating]
    """Of firing; NaN for dead latents."""
    universal: npt.NDArray[np.bool_]
    specific_to: Sequence[str | None]
    """Model, where specific."""
    fires: Mapping[str, npt.NDArray[np.integer]]
    """Model → held-out rows on which it fires."""
    co_fires: npt.NDArray[np.integer]
    """Rows on which it fires for all models."""
    energy: Mapping[str, npt.NDArray[np.floating]]
    """Model → ‖E[z] D‖²."""
    best: Mapping[int, str] | None = None
    """Latent → what it is about, where labels tell."""


class Pick(NamedTuple):
    """A latent to show."""

    latent: int
    kind: Literal["universal", "specific"]
    model: str | None
    """Whose it is, where specific."""


class Top(NamedTuple):
    """An image on which a latent fires."""

    image: int
    activation: float
    """In the sparse code; the highest of the image's rows."""


class Shown(NamedTuple):
    """One model's side of the pictures."""

    name: str
    position: int
    model: Views
    codes: csr_matrix
    """[rows, latents]."""
    driven: Driven | None


# --- Which ------------------------------------------------------------------------------------------------------------


def pick_latents(features: LatentFeatures, *, universal: int = 8, specific: int = 4) -> list[Pick]:
    """The latents that weigh most: `universal` ones, then `specific` ones of each model.

    Universal ones are ranked by co-firing times energy: the mean over models of |C| / |F_i|, times the mean over models
    of its share of the model's energy. Specific ones by the energy of their model. Where labels tell what latents are
    about, the first of each meaning come before the second ones: else a page may show the strongest one eight times.
    Of equals, the lower number goes first; there are fewer, or none, where no more qualify.
    """
    meanings = {latent: text.partition(" (")[0] for latent, text in (features.best or {}).items()}
    together = _co_firing(features) * np.mean([_shares(energy) for energy in features.energy.values()], axis=0)
    picks = [Pick(latent, "universal", None) for latent in _best(together, features.universal, universal, meanings)]
    for name in features.fires:
        own = np.array([owner == name for owner in features.specific_to], dtype=np.bool_)
        best = _best(features.energy[name], own, specific, meanings)
        picks += [Pick(latent, "specific", name) for latent in best]
    return picks


def _co_firing(features: LatentFeatures) -> npt.NDArray[np.float64]:
    shares = [features.co_fires / np.maximum(fires, 1) for fires in features.fires.values()]
    return np.asarray(np.mean(shares, axis=0), dtype=np.float64)


def _shares(energy: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Models have units of their own."""
    known = np.nan_to_num(np.asarray(energy, dtype=np.float64))
    return known / max(float(known.sum()), np.finfo(np.float64).tiny)


def _best(
    score: npt.NDArray[np.floating], allowed: npt.NDArray[np.bool_], n: int, meanings: Mapping[int, str]
) -> list[int]:
    order = np.argsort(-np.nan_to_num(score), kind="stable")
    seen: Counter[str] = Counter()
    rounds = []
    for latent in map(int, order[allowed[order]]):
        meaning = meanings.get(latent)
        rounds.append((0 if meaning is None else seen[meaning], latent))
        if meaning is not None:
            seen[meaning] += 1
    # A stable sort: within a round, the strongest stay first.
    return [latent for _, latent in sorted(rounds, key=lambda one: one[0])[:n]]


# --- On which images, and where in them -------------------------------------------------------------------------------


def top_images(
    codes: csr_matrix, latents: Sequence[int], images_of_rows: npt.NDArray[np.integer], n: int
) -> list[list[Top]]:
    """Of each latent, the n images on which it fires most, the strongest first; of equals the lower index first.

    Images on which it does not fire are left out. `codes` is [rows, latents], `images_of_rows` the image of each row.
    """
    if codes.shape[0] != len(images_of_rows):
        raise DataError(
            f"codes have {codes.shape[0]} rows and {len(images_of_rows)} are said to be of an image: "
            "pass the codes and the rows of the same store"
        )
    columns = codes[:, list(latents)].tocsc()
    ends = columns.indptr
    return [
        _tops(images_of_rows[columns.indices[start:end]], columns.data[start:end], n) for start, end in pairwise(ends)
    ]


def _tops(images: npt.NDArray[np.integer], activations: npt.NDArray[np.floating], n: int) -> list[Top]:
    found, place = np.unique(images, return_inverse=True)
    highest = np.zeros(len(found), dtype=np.float64)
    np.maximum.at(highest, place, activations)
    # Images are in order, so a stable sort keeps the lower index first.
    order = np.argsort(-highest, kind="stable")[:n]
    return [Top(int(found[at]), float(highest[at])) for at in order if highest[at] > 0]


def activation_map(
    codes: csr_matrix, latent: int, images_of_rows: npt.NDArray[np.integer], image: int, grid: int
) -> Float[np.ndarray, "grid grid"]:
    """How strongly a latent fires in each cell of an image, row by row from the top left."""
    rows = np.flatnonzero(images_of_rows == image)
    if len(rows) != grid * grid:
        raise DataError(f"image {image} has {len(rows)} rows of codes where a {grid} × {grid} grid has {grid * grid}")
    strengths = codes[rows][:, [latent]].toarray()
    return np.asarray(strengths, dtype=np.float32).reshape(grid, grid)


def heat_overlay(image: UInt8Image, strengths: Float[np.ndarray, "grid grid"], highest: float) -> UInt8Image:
    """The image behind a translucent map of where the latent fires, from black through red to yellow at `highest`."""
    height, width = image.shape[:2]
    cells = Image.fromarray(np.clip(strengths / max(highest, 1e-12), 0.0, 1.0).astype(np.float32))
    heat = np.asarray(cells.resize((width, height), Image.Resampling.BILINEAR)).clip(0.0, 1.0)
    opacity = (COLDEST + (HOTTEST - COLDEST) * heat)[..., None]
    colours = mpl.colormaps[COLOURS](heat)[..., :3] * 255.0
    mixed: UInt8Image = np.rint((1.0 - opacity) * image + opacity * colours).astype(np.uint8)
    return mixed


# --- Files ------------------------------------------------------------------------------------------------------------


def write_pictures(
    folder: Path,
    picks: Sequence[Pick],
    features: LatentFeatures,
    models: Mapping[str, Views],
    codes: Mapping[str, csr_matrix],
    images_of_rows: npt.NDArray[np.integer],
    images: ImageSource,
    *,
    maximised: Mapping[str, Driven] | None = None,
    n_top: int = 6,
) -> list[LatentPictures]:
    """Writes the pictures of the picked latents of the dictionary in `folder`, and returns what `index.json` says.

    Each file is whole or absent, and the index is written when all of them are there; files of other picks are removed
    after that. `maximised` is what `maximise` made of the latents of `picks`, in their order.
    """
    target, sides = folder / IMAGES, _sides(models, codes, maximised)
    latents = [pick.latent for pick in picks]
    tops = {side.name: top_images(side.codes, latents, images_of_rows, n_top) for side in sides}
    records = []
    for at, pick in enumerate(picks):
        pictures: list[Picture] = []
        for side in sides:
            pictures += _top_pictures(target, side, pick.latent, tops[side.name][at], images_of_rows, images)
            if side.driven is not None:
                pictures.append(_maximised_picture(target, side, pick.latent, at, side.driven))
        records.append(_record(pick, features, pictures))
    write_records_json(target / INDEX, records)
    _remove_others(target, {picture.file for record in records for picture in record.pictures})
    return records


def _sides(
    models: Mapping[str, Views], codes: Mapping[str, csr_matrix], maximised: Mapping[str, Driven] | None
) -> list[Shown]:
    return [
        Shown(name, position, model, codes[name], None if maximised is None else maximised[name])
        for position, (name, model) in enumerate(models.items())
    ]


def _top_pictures(
    target: Path,
    side: Shown,
    latent: int,
    tops: Sequence[Top],
    images_of_rows: npt.NDArray[np.integer],
    images: ImageSource,
) -> Iterator[Picture]:
    """An image of the set and, of a spatial site, the same with its heat map; colours mean the same in all of them."""
    for rank, top in enumerate(tops):
        seen = as_bytes(side.model.preprocess([images.read(top.image)])[0])
        common = {"model": side.name, "rank": rank, "activation": top.activation, "image_id": images.ids[top.image]}
        yield Picture(kind="top", file=_save(target, side, latent, "top", rank, seen), **common)
        if side.model.grid is not None:
            strengths = activation_map(side.codes, latent, images_of_rows, top.image, side.model.grid)
            overlay = heat_overlay(seen, strengths, tops[0].activation)
            yield Picture(kind="heat", file=_save(target, side, latent, "heat", rank, overlay), **common)


def _maximised_picture(target: Path, side: Shown, latent: int, at: int, driven: Driven) -> Picture:
    file = _save(target, side, latent, "max", 0, as_bytes(driven.images[at]))
    return Picture(model=side.name, kind="maximised", file=file, rank=0, activation=float(driven.last[at]))


def _record(pick: Pick, features: LatentFeatures, pictures: Sequence[Picture]) -> LatentPictures:
    return LatentPictures(
        latent=pick.latent,
        kind=pick.kind,
        model=pick.model,
        entropy=float(features.entropy[pick.latent]),
        fires={name: int(fires[pick.latent]) for name, fires in features.fires.items()},
        co_fires=int(features.co_fires[pick.latent]),
        best=(features.best or {}).get(pick.latent),
        pictures=tuple(pictures),
    )


def _save(target: Path, side: Shown, latent: int, kind: str, rank: int, pixels: UInt8Image) -> str:
    name = f"{latent:05d}-m{side.position}-{kind}-{rank}.png"
    atomic_write_bytes(target / name, png(pixels))
    return name


def _remove_others(target: Path, files: set[str]) -> None:
    for path in target.glob("[0-9]*-m[0-9]*-*.png"):
        if path.name not in files:
            path.unlink(missing_ok=True)


def as_bytes(pixels: Float[Tensor, "3 h w"]) -> UInt8Image:
    """[0, 1], channels first → 0 … 255, channels last."""
    scaled = (pixels.detach().float().cpu().clamp(0.0, 1.0) * 255.0).round()
    return np.ascontiguousarray(scaled.permute(1, 2, 0).numpy().astype(np.uint8))


def png(pixels: UInt8Image) -> bytes:
    """A PNG file, at most 160 pixels a side; smaller ones keep their size."""
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
