"""Figures 12 and 13: what drives a universal and a specific latent, model by model.

One band a model: the input that was optimised to drive the latent, the held-out images on which it fires most, and
below these where in them it fires. Pictures are embedded, so that the SVG needs no other file; they are made so small
that a figure stays below half a megabyte whatever it shows.
"""

from collections.abc import Sequence
from math import isqrt
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from triptych.dictionaries.records import LatentPictures, Picture
from triptych.reports.alignment_inputs import plain
from triptych.reports.auditing_inputs import shown_name
from triptych.reports.dictionaries_inputs import IMAGES, Dictionaries
from triptych.reports.figures import style
from triptych.reports.figures.curves import drawable
from triptych.reports.figures.dictionaries import DictionarySpec, said
from triptych.reports.format import joined, number, plural
from triptych.reports.safe_text import neutralise

Kind = Literal["universal", "specific"]

MAX_TOP = 4
"""Top-activating images of a model; the folder has them all."""
MAX_SIDE = 224
MAX_READ = 4096
"""Sides in pixels: of a picture in the figure, and of one that is opened at all."""
BUDGET = 110_000
"""Pixels of one figure: in the worst case four bytes each, as PNG in base64."""
BAND, WORDS, GAP, MAX_TILE = 0.28, 0.36, 0.07, 0.95
"""Inches: a model's title, the words below a picture, the space between two, and the side of a picture."""


class Band(NamedTuple):
    """The pictures of one model."""

    model: str
    maximised: Picture | None
    top: tuple[Picture, ...]
    heat: tuple[Picture | None, ...]
    """One a top image; empty where there are no heat maps."""

    @property
    def pictures(self) -> list[Picture]:
        given = (self.maximised, *self.top, *self.heat)
        return [picture for picture in given if picture is not None]


def draw_latent(run: Dictionaries, kind: Kind) -> Figure:
    """The pictures of the first latent of a kind."""
    latent = _latent(run, kind)
    bands = bands_of(run, latent)
    side = _side(sum(len(band.pictures) for band in bands))
    columns = 1 + max(1, *(len(band.top) for band in bands))
    tile = min(MAX_TILE, (style.WIDTH - GAP * (columns - 1)) / columns)
    heights = [BAND + (tile + WORDS) + (tile + GAP) * bool(band.heat) for band in bands]
    with style.applied():
        figure = Figure(figsize=(style.WIDTH, sum(heights)))
        top = sum(heights)
        for band, height in zip(bands, heights, strict=True):
            _draw_band(Sheet(figure, tile, top), run, latent, band, side)
            top -= height
    return figure


class Sheet(NamedTuple):
    """Where the pictures of a band go: inches from the left and from the bottom of the figure."""

    figure: Figure
    tile: float
    top: float

    def axes(self, row: int, column: int) -> Axes:
        """A place for one picture; row 1 is below the words of row 0."""
        width, height = self.figure.get_size_inches()
        left = column * (self.tile + GAP)
        bottom = self.top - BAND - self.tile - row * (WORDS + self.tile)
        axes = self.figure.add_axes((left / width, bottom / height, self.tile / width, self.tile / height))
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        return axes


def _draw_band(sheet: Sheet, run: Dictionaries, latent: LatentPictures, band: Band, side: int) -> None:
    first = sheet.axes(0, 0)
    first.set_title(f"{drawable(band.model)}: fires on {latent.fires.get(band.model, 0):,} rows")
    if band.maximised is None:
        _words(first, "no maximised\ninput")
    else:
        _tile(first, run, band.maximised, side, "maximised")
    for place, picture in enumerate(band.top, start=1):
        _tile(sheet.axes(0, place), run, picture, side, f"top {place}")
    if not band.top:
        never = not latent.fires.get(band.model, 0)
        _words(sheet.axes(0, 1), "fires on no\nheld-out row" if never else "no top\nimages")
    if band.heat:
        _words(sheet.axes(1, 0), "where it\nfires")
        for place, heat in enumerate(band.heat, start=1):
            if heat is not None:
                _tile(sheet.axes(1, place), run, heat, side, "")


def _tile(axes: Axes, run: Dictionaries, picture: Picture, side: int, label: str) -> None:
    pixels = read_picture(run.run_dir / IMAGES, picture.file, side)
    if pixels is None:
        _words(axes, "picture\nmissing")
    else:
        axes.imshow(pixels, interpolation="none")
    if label:
        axes.set_xlabel(f"{label}\n{plain(picture.activation)}", fontsize=style.SMALL, labelpad=2)


def _words(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=style.SMALL, transform=axes.transAxes)


def read_picture(folder: Path, file: str, side: int) -> np.ndarray | None:
    """A PNG of the folder as RGB, at most `side` pixels wide and high; None where it cannot be read.

    A name that leads out of the folder is not followed, and a picture of gigantic sides is not unpacked.
    """
    if Path(file).name != file:
        return None
    try:
        with Image.open(folder / file, formats=("PNG",)) as image:
            if max(image.size) > MAX_READ:
                return None
            rgb = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    rgb.thumbnail((side, side), Image.Resampling.BOX)
    return np.asarray(rgb, dtype=np.uint8)


def _side(n_pictures: int) -> int:
    """Pixels of a side, so that all pictures together keep to the budget."""
    return min(MAX_SIDE, isqrt(BUDGET // max(1, n_pictures)))


def _latent(run: Dictionaries, kind: Kind) -> LatentPictures:
    found = run.pictured(kind)
    if found is None:
        raise ValueError(f"this run has no pictures of a {kind} latent")
    return found


def bands_of(run: Dictionaries, latent: LatentPictures) -> list[Band]:
    """The pictures by model, in the order of the run; a model without any has a band that says so."""
    others = [picture.model for picture in latent.pictures]
    return [_band(latent, model) for model in dict.fromkeys([*run.models, *latent.fires, *others])]


def _band(latent: LatentPictures, model: str) -> Band:
    own = [picture for picture in latent.pictures if picture.model == model]
    top = sorted((picture for picture in own if picture.kind == "top"), key=lambda picture: picture.rank)[:MAX_TOP]
    heat = {picture.rank: picture for picture in own if picture.kind == "heat"}
    return Band(
        model,
        next((picture for picture in own if picture.kind == "maximised"), None),
        tuple(top),
        tuple(heat.get(picture.rank) for picture in top) if heat and top else (),
    )


# --- In words ---------------------------------------------------------------------------------------------------------


def _caption(run: Dictionaries, kind: Kind) -> str:
    latent = _latent(run, kind)
    bands = bands_of(run, latent)
    without = [said(band.model) for band in bands if band.maximised is None]
    lacking = f" No input was maximised for {joined(without, last='or')}." if without else ""
    heat = (
        " Second line: the same images with a map of where it fires, bright where it fires most."
        if any(band.heat for band in bands)
        else ""
    )
    n = len([picture for band in bands for picture in band.pictures])
    return (
        f"{_headline(run, latent)} Maximised: an input optimised, for each model by itself and from the same start, to "
        f"drive the latent through that model’s encoder; its number is the activation before the top k are kept. Top: "
        f"held-out images on which the latent fires most for that model, with its activation.{heat}{lacking} Units "
        f"differ from model to model. Nothing here measures whether pictures are alike. n = {plural(n, 'picture')}."
    )


def _headline(run: Dictionaries, latent: LatentPictures) -> str:
    whose = f", whose firings are those of {said(latent.model)}" if latent.model is not None else ""
    fires = joined([f"{fires:,} of {said(model)}" for model, fires in latent.fires.items()])
    label = f"; best label: {shown_name(latent.best)}" if latent.best else "; no label was compared with it"
    return (
        f"Latent {latent.latent:,} ({latent.kind}{whose}): firing entropy {number(latent.entropy, 3)}; it fires on "
        f"{fires or 'no'} held-out rows, on {latent.co_fires:,} for all models at once{label}."
    )


def _alt(run: Dictionaries, kind: Kind) -> str:
    latent = _latent(run, kind)
    sentences = [_spoken(band) for band in bands_of(run, latent)]
    return neutralise(f"Pictures of a latent, one band a model. {_headline(run, latent)} {' '.join(sentences)}")


def _spoken(band: Band) -> str:
    maximised = (
        "no maximised input" if band.maximised is None else f"maximised input {plain(band.maximised.activation)}"
    )
    top = [
        f"{shown_name(picture.image_id) if picture.image_id else 'an unnamed image'} {plain(picture.activation)}"
        for picture in band.top
    ]
    return f"{said(band.model)}: {maximised}; top images {', '.join(top) or 'none'}."


def _absent(run: Dictionaries, kind: Kind) -> str | None:
    if run.pictured(kind) is not None:
        return None
    if run.unit == "row":
        return "this run has no images: its activations were given as matrices"
    return f"this run has no pictures of a {kind} latent (dictionaries/universal/images)"


SPECS: Sequence[DictionarySpec] = (
    DictionarySpec(
        "figure_12",
        "Figure 12. Coordinated activation maximisation: a universal latent",
        lambda run: _absent(run, "universal"),
        lambda run: draw_latent(run, "universal"),
        lambda run: _caption(run, "universal"),
        lambda run: _alt(run, "universal"),
    ),
    DictionarySpec(
        "figure_13",
        "Figure 13. Coordinated activation maximisation: a specific latent",
        lambda run: _absent(run, "specific"),
        lambda run: draw_latent(run, "specific"),
        lambda run: _caption(run, "specific"),
        lambda run: _alt(run, "specific"),
    ),
)
