"""The starter images: pictures that this project draws, of one shape each, with six independent factors.

64 × 64 RGB. Every number of a picture (factors, nuisances, grain) is a draw of the stream (seed, split) at a counter
that belongs to the picture's index, so any picture can be drawn alone and in any order, and is the same to the byte:
pixels see nothing but additions, products and square roots, which are exactly rounded everywhere.

Shapes and textures are signed distances in pixels (negative inside); half a pixel either side of an outline is blended.

Not here: images from files (`image_files`), splits and samples (`images`).
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, TypeAlias, final

import numpy as np
import numpy.typing as npt

from triptych.data.image_files import Factor, UInt8Image
from triptych.seeding import stream_key, uniforms

Split = Literal["train", "test"]
Pixels: TypeAlias = npt.NDArray[np.float32]
"""[images, height, width], or what broadcasts to it."""
Distance = Callable[[Pixels, Pixels], Pixels]
"""Coordinates (right, up) to the signed distance from an outline, in the same unit."""

SIZE = 64
DEFAULT_IMAGES: Mapping[Split, int] = {"train": 8000, "test": 2000}
VERSION = 1
"""Goes up with every change of a pixel: fingerprints hold it."""

FACTORS: Mapping[str, tuple[str, ...]] = {
    "shape": ("circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent"),
    "hue": ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"),
    "texture": ("plain", "stripes", "checks", "dots"),
    "size": ("small", "medium", "large"),
    "position": (
        *("top left", "top", "top right"),
        *("left", "centre", "right"),
        *("bottom left", "bottom", "bottom right"),
    ),
    "background": ("plain", "gradient", "noise", "grid"),
}

_DEGREES = np.array([0, 27, 54, 125, 182, 222, 272, 322], dtype=np.float64)
_RADII = np.array([10.0, 13.2, 17.0])
_STEP = 13.0
"""Pixels from one position to the next."""
_CELL = 4
"""Pixels between the random brightnesses of the background `noise`."""

# Which counters of an image's own 8,192 are for what.
_PER_IMAGE = 1 << 13
_NUISANCES = 16
_LATTICE = 64
_GRAIN = 1024
_CHUNK = 16
"""Images drawn at a time: their arrays stay in the cache."""


class Scenes(NamedTuple):
    """What is in each picture: factors by their values' numbers, then nuisances. All arrays are [images, ...]."""

    factors: dict[str, npt.NDArray[np.int32]]
    nuisances: npt.NDArray[np.float64]
    """[images, nuisances], each uniform in (0, 1)."""
    lattice: Pixels
    """Of the background `noise`, [images, points, points] in (0, 1)."""
    grain: Pixels
    """In (0, 1)."""


def draw(seed: int, split: Split, indices: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """The pictures of these indices, [len(indices), 64, 64, 3]: each is the same in whatever company it is drawn."""
    wanted = np.asarray(indices, dtype=np.int64)
    drawn = np.empty((len(wanted), SIZE, SIZE, 3), dtype=np.uint8)
    for start in range(0, len(wanted), _CHUNK):
        drawn[start : start + _CHUNK] = render(scenes(seed, split, wanted[start : start + _CHUNK]))
    return drawn


def draw_factors(seed: int, split: Split, indices: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int32]]:
    """Factor → number of its value, [images]; no pixel is drawn."""
    u = _uniforms(seed, split, indices, 0, len(FACTORS))
    return {name: (u[:, k] * len(values)).astype(np.int32) for k, (name, values) in enumerate(FACTORS.items())}


def scenes(seed: int, split: Split, indices: npt.NDArray[np.int64]) -> Scenes:
    """All that is random in these pictures."""
    points = SIZE // _CELL + 1
    lattice = _uniforms(seed, split, indices, _LATTICE, points * points)
    upper = _uniforms(seed, split, indices, _GRAIN, SIZE * SIZE // 2)
    # Of a uniform's 53 random bits the last 37 make another one, for half the pixels.
    grain = np.concatenate([upper, upper * 2**16 % 1], axis=1)
    return Scenes(
        draw_factors(seed, split, indices),
        _uniforms(seed, split, indices, _NUISANCES, len(_Nuisances._fields)),
        lattice.astype(np.float32).reshape(-1, points, points),
        grain.astype(np.float32).reshape(-1, SIZE, SIZE),
    )


def render(scene: Scenes) -> npt.NDArray[np.uint8]:
    """Pictures [images, 64, 64, 3] of scenes: background, then the shape with its texture, then grain."""
    nuisances = _Nuisances(*scene.nuisances.T)
    radius = _RADII[scene.factors["size"]] * _between(nuisances.radius, 0.95, 1.05)
    right, up = _local(scene.factors["position"], nuisances)
    scale = _per_image(radius)
    inside = _cover(_by_value(SHAPES, scene.factors["shape"], right / scale, up / scale) * scale)
    lit = inside * (1 - _textures(scene.factors["texture"], right, up, nuisances))
    dimmed = inside - lit
    behind = (1 - inside) * _backgrounds(scene, nuisances)
    grain = (scene.grain - np.float32(0.5)) * np.float32(14.0) + np.float32(0.5)
    picture = np.empty((len(radius), SIZE, SIZE, 3), dtype=np.uint8)
    colours = _colours(scene.factors["hue"], nuisances)
    for channel, (light, dark, tint) in enumerate(zip(*colours, strict=True)):
        mixed = lit * _per_image(light)
        mixed += dimmed * _per_image(dark)
        mixed += behind * _per_image(tint)
        mixed += grain
        picture[..., channel] = np.clip(mixed, 0, 255, out=mixed)
    return picture


@final
@dataclass(frozen=True)
class StarterImages:
    """The first `n` pictures of a split, as an `ImageSet`; drawn as they are read."""

    seed: int
    split: Split
    n: int

    @property
    def source(self) -> str:
        return f"starter, {self.split}"

    @property
    def fingerprint(self) -> str:
        """Of the version of these drawings, the seed, the split and the number of pictures."""
        return hashlib.blake2b(f"{VERSION}:{self.seed}:{self.split}:{self.n}".encode(), digest_size=16).hexdigest()

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(f"{self.split}-{index:06d}" for index in range(self.n))

    @cached_property
    def factors(self) -> Mapping[str, Factor]:
        drawn = draw_factors(self.seed, self.split, np.arange(self.n))
        return {name: Factor(values, drawn[name]) for name, values in FACTORS.items()}

    def __len__(self) -> int:
        return self.n

    def read(self, index: int) -> UInt8Image:
        if not 0 <= index < self.n:
            raise IndexError(f"image {index} of {self.n} images")
        picture: UInt8Image = draw(self.seed, self.split, [index])[0]
        return picture


class _Nuisances(NamedTuple):
    """What differs between pictures of the same factors; uniform in (0, 1), one an image, in the order drawn."""

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    radius: npt.NDArray[np.float64]
    angle: npt.NDArray[np.float64]
    hue: npt.NDArray[np.float64]
    saturation: npt.NDArray[np.float64]
    brightness: npt.NDArray[np.float64]
    phase_1: npt.NDArray[np.float64]
    phase_2: npt.NDArray[np.float64]
    period: npt.NDArray[np.float64]
    tint: npt.NDArray[np.float64]
    darkness: npt.NDArray[np.float64]
    direction: npt.NDArray[np.float64]
    grid_x: npt.NDArray[np.float64]
    grid_y: npt.NDArray[np.float64]


def _uniforms(
    seed: int, split: Split, indices: npt.NDArray[np.int64], first: int, number: int
) -> npt.NDArray[np.float64]:
    """[images, number] draws, those of counters `first` and on of each image."""
    key = np.uint64(stream_key(seed, "starter images", split))
    counters = indices[:, None] * _PER_IMAGE + np.arange(first, first + number)
    return uniforms(np.full(1, key), counters)


def _local(position: npt.NDArray[np.int32], nuisances: _Nuisances) -> tuple[Pixels, Pixels]:
    """Coordinates of the pixels in pixels from the middle of the shape, turned with it by up to 20 degrees."""
    row, column = np.divmod(position, 3)
    x0 = SIZE / 2 + _STEP * (column - 1) + _between(nuisances.x, -1.5, 1.5)
    y0 = SIZE / 2 + _STEP * (row - 1) + _between(nuisances.y, -1.5, 1.5)
    angle = np.deg2rad(_between(nuisances.angle, -20, 20))[:, None]
    x = np.arange(SIZE) + 0.5 - x0[:, None]
    y = y0[:, None] - np.arange(SIZE) - 0.5
    return _outer(np.cos(angle) * x, np.sin(angle) * y), _outer(-np.sin(angle) * x, np.cos(angle) * y)


def _circle(x: Pixels, y: Pixels) -> Pixels:
    return _length(x, y) - np.float32(0.9)


def _square(x: Pixels, y: Pixels) -> Pixels:
    return _both(np.abs(x), np.abs(y)) - np.float32(0.8)


def _triangle(x: Pixels, y: Pixels) -> Pixels:
    """Equilateral, a point upwards: the farthest of three lines. Its middle lies a little lower than that of others."""
    y = y + np.float32(0.15)
    slanted = np.abs(x) * np.float32(3**0.5 / 2) + y * np.float32(0.5)
    return _both(slanted, -y) - np.float32(0.58)


def _star(x: Pixels, y: Pixels) -> Pixels:
    """Five points: the plane is folded along the star's axes onto half an arm, whose outline is one line."""
    x = np.abs(x)
    for angle in (72, 36):
        across, along = np.float32(np.cos(np.deg2rad(angle))), np.float32(-np.sin(np.deg2rad(angle)))
        twice: Pixels = np.float32(2) * np.maximum(x * across + y * along, np.float32(0))
        x, y = np.abs(x - twice * across), y - twice * along
    tip, notch = np.array([0, 1.12]), 0.5 * np.array([np.sin(np.pi / 5), np.cos(np.pi / 5)])
    edge = (notch - tip) / np.hypot(*(notch - tip))
    return x * np.float32(-edge[1]) + (y - np.float32(tip[1])) * np.float32(edge[0])


def _cross(x: Pixels, y: Pixels) -> Pixels:
    long, wide = np.float32(0.95), np.float32(0.33)
    x, y = np.abs(x), np.abs(y)
    return _either(_both(x - long, y - wide), _both(x - wide, y - long))


def _ring(x: Pixels, y: Pixels) -> Pixels:
    from_middle: Pixels = np.abs(_length(x, y) - np.float32(0.7))
    return from_middle - np.float32(0.26)


def _heart(x: Pixels, y: Pixels) -> Pixels:
    """A square on its corner, and discs on its upper two sides."""
    half = np.float32(0.52)
    x, y = np.abs(x) * np.float32(0.5**0.5), (y + np.float32(0.12)) * np.float32(0.5**0.5)
    along, across = x + y, x - y
    square = _both(np.abs(along), np.abs(across)) - half
    return _either(square, _length(along - half, across) - half)


def _crescent(x: Pixels, y: Pixels) -> Pixels:
    """A disc without another."""
    return _both(_length(x, y) - np.float32(0.98), np.float32(0.8) - _length(x - np.float32(0.45), y))


SHAPES: Mapping[str, Distance] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
    "crescent": _crescent,
}
"""Each about one unit in radius."""


def _plain(x: Pixels, y: Pixels) -> Pixels:
    return np.ones_like(x)


def _stripes(x: Pixels, y: Pixels) -> Pixels:
    return np.abs(_wave(x)) - np.float32(0.25)


def _checks(x: Pixels, y: Pixels) -> Pixels:
    """Where one of two sets of stripes is, and not both."""
    one, other = _stripes(x * np.float32(0.8), y), _stripes(y * np.float32(0.8), x)
    return _both(_either(one, other), -_both(one, other))


def _dots(x: Pixels, y: Pixels) -> Pixels:
    return _length(_wave(x), _wave(y)) - np.float32(0.29)


TEXTURES: Mapping[str, Distance] = {"plain": _plain, "stripes": _stripes, "checks": _checks, "dots": _dots}
"""Their outlines repeat with a period of one unit."""


def _textures(texture: npt.NDArray[np.int32], right: Pixels, up: Pixels, nuisances: _Nuisances) -> Pixels:
    """How far each pixel is covered by the pattern, which moves and turns with the shape, 0 to 1."""
    period = _per_image(_between(nuisances.period, 5.6, 6.6))
    x, y = right / period + _per_image(nuisances.phase_1), up / period + _per_image(nuisances.phase_2)
    return _cover(_by_value(TEXTURES, texture, x, y) * period)


def _backgrounds(scene: Scenes, nuisances: _Nuisances) -> Pixels:
    """Brightness behind the shape; 1 is that of the plain one."""
    kinds = scene.factors["background"]
    light = np.ones((len(kinds), SIZE, SIZE), dtype=np.float32)
    for value, name in enumerate(FACTORS["background"]):
        chosen = np.flatnonzero(kinds == value)
        if len(chosen) and name in _BACKGROUNDS:
            here = _Nuisances(*(nuisance[chosen] for nuisance in nuisances))
            light[chosen] = _BACKGROUNDS[name](scene.lattice[chosen], here)
    return light


def _gradient(lattice: Pixels, nuisances: _Nuisances) -> Pixels:
    """From side to side, in any direction."""
    angle = 2 * np.pi * nuisances.direction[:, None]
    middle = (np.arange(SIZE) + 0.5) / SIZE - 0.5
    return np.maximum(_outer(2.4 * np.cos(angle) * middle + 1.4, 2.4 * np.sin(angle) * middle), np.float32(0.1))


def _noise(lattice: Pixels, nuisances: _Nuisances) -> Pixels:
    """Random brightnesses every few pixels, and straight lines between them."""
    before, step = np.divmod(np.arange(SIZE), _CELL)
    part: Pixels = ((step + 0.5) / _CELL).astype(np.float32)
    rows: Pixels = lattice[:, before] * (1 - part[:, None]) + lattice[:, before + 1] * part[:, None]
    light: Pixels = rows[:, :, before] * (1 - part) + rows[:, :, before + 1] * part
    return light * np.float32(2.6) - np.float32(0.1)


def _grid(lattice: Pixels, nuisances: _Nuisances) -> Pixels:
    """Lines about a pixel wide, eight pixels apart."""
    x = np.abs(_wave(((np.arange(SIZE) + 0.5) / 8 + nuisances.grid_x[:, None]).astype(np.float32)))
    y = np.abs(_wave(((np.arange(SIZE) + 0.5) / 8 + nuisances.grid_y[:, None]).astype(np.float32)))
    lines = _cover((_either(x[:, None, :], y[:, :, None]) - np.float32(0.07)) * np.float32(8))
    return np.float32(0.8) + np.float32(1.5) * lines


_BACKGROUNDS: Mapping[str, Callable[[Pixels, _Nuisances], Pixels]] = {
    "gradient": _gradient,
    "noise": _noise,
    "grid": _grid,
}


def _colours(
    hue: npt.NDArray[np.int32], nuisances: _Nuisances
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Colours of the shape, its pattern and the plain background, each [channels, images], 0 to 255."""
    value = 255 * _between(nuisances.brightness, 0.85, 1.0)
    degrees = _DEGREES[hue] + _between(nuisances.hue, -5, 5)
    light = value * _pure(degrees, _between(nuisances.saturation, 0.72, 0.92))
    tint = 255 * _between(nuisances.darkness, 0.14, 0.26) * _pure(360 * nuisances.tint, np.full(len(hue), 0.25))
    return light, 0.42 * light, tint


def _pure(degrees: npt.NDArray[np.float64], saturation: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """RGB [3, images] of full value (HSV)."""
    sixths = (degrees[None] / 60 + np.array([[5], [3], [1]])) % 6
    missing: npt.NDArray[np.float64] = np.clip(np.minimum(sixths, 4 - sixths), 0, 1)
    return 1 - saturation * missing


def _by_value(table: Mapping[str, Distance], value: npt.NDArray[np.int32], x: Pixels, y: Pixels) -> Pixels:
    """Each image by its own function; the table is in the order of the factor's values."""
    result = np.empty_like(x)
    for number, distance in enumerate(table.values()):
        chosen = np.flatnonzero(value == number)
        if len(chosen):
            result[chosen] = distance(x[chosen], y[chosen])
    return result


def _cover(distance: Pixels) -> Pixels:
    """How much of a pixel lies inside, of its signed distance in pixels: 0 to 1."""
    covered: Pixels = np.clip(np.float32(0.5) - distance, 0, 1)
    return covered


def _wave(x: Pixels) -> Pixels:
    """How far from the nearest whole number plus a half, -0.5 to 0.5."""
    return x - np.floor(x) - np.float32(0.5)


def _length(x: Pixels, y: Pixels) -> Pixels:
    return np.sqrt(x * x + y * y)


def _both(one: Pixels, other: Pixels) -> Pixels:
    """The outline of what lies inside both."""
    farther: Pixels = np.maximum(one, other)
    return farther


def _either(one: Pixels, other: Pixels) -> Pixels:
    """The outline of what lies inside at least one."""
    nearer: Pixels = np.minimum(one, other)
    return nearer


def _between(u: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.float64]:
    return low + (high - low) * u


def _per_image(values: npt.NDArray[np.float64]) -> Pixels:
    return values.astype(np.float32)[:, None, None]


def _outer(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> Pixels:
    """[images, height, width] sums of [images, width] and [images, height]."""
    return x.astype(np.float32)[:, None, :] + y.astype(np.float32)[:, :, None]
