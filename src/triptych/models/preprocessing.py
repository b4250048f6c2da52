"""Images as a vision model wants them: its processor's settings, and resizing as two small matrix products.

A resize of a line of pixels is linear: `out = weights @ in`. So images of one size are resized together, as
`rows @ image @ columnsᵀ`, and a centre crop costs less than nothing: the lines that it cuts off are never computed. The
weights are those of Pillow, with which the models were trained and are used.

Not here: models (`vision`), decoding of files (`triptych.data.images`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import transformers
from jaxtyping import Float
from torch import Tensor

from triptych.errors import ModelError
from triptych.models.loading import quiet_transformers
from triptych.models.sources import read_json

UInt8Image: TypeAlias = npt.NDArray[np.uint8]
"""[height, width, 3], RGB."""
Weights: TypeAlias = npt.NDArray[np.float32]
"""[out, in]: how much each pixel of a line counts for each of the new line."""
Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""

PROCESSOR = "preprocessor_config.json"
DEFAULT_SIZE = 224
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LEVELS = 255

RESAMPLINGS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}
"""How Pillow numbers them, and with it `preprocessor_config.json`."""

_SHORTEST_EDGE = ("Bit", "CLIP", "ChineseCLIP", "ConvNext", "MobileNet", "MobileViT", "VideoMAE")
"""Processors of which a plain number, `size: 224`, means the shorter edge; of all others, both."""
_WARPED_FROM = 384
"""ConvNextImageProcessor crops nothing from this size on."""
_DEFAULTED = (
    *("do_resize", "size", "resample", "crop_pct", "do_center_crop", "crop_size", "default_to_square"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)
"""Settings that files may leave to the processor's class."""
_BEYOND = (
    *("do_pad", "do_color_quantize", "do_flip_channel_order", "do_image_splitting", "do_thumbnail"),
    *("rescale_offset", "include_top"),
)
"""Settings that ask for more than a resize, a crop and a normalisation."""
_OF_THEIR_OWN = ("Levit", "PoolFormer", "Perceiver", "DPT", "GLPN")
"""Processors that resize in a way of their own."""


class ImageSettings(NamedTuple):
    """What a model's processor does to an image: resize, centre crop, rescale and normalise."""

    shortest_edge: int | None
    """The shorter edge after resizing, the ratio kept; None: to the `size` whatever the ratio."""
    size: Size
    """Of the images that come out: a centre crop where `shortest_edge` left more, padded with black where less."""
    resized: Size | None
    """What is resized to before the crop where the ratio is not kept; None: `size`, without a crop."""
    resample: str
    """One of `RESAMPLINGS`."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """The model sees (pixel - mean) / std, of pixels in 0 … 1."""


# --- Settings ---------------------------------------------------------------------------------------------------------


def read_settings(folder: Path, spec: str, default_size: Size | None) -> ImageSettings:
    """The settings in a model folder's `preprocessor_config.json`.

    What it leaves out is the default of the processor that it names. Where it names none, or there is no such file,
    the custom is taken: bilinear, to `default_size` (the configuration's, else 224 x 224) whatever the ratio, and
    ImageNet's mean and standard deviation. Departure: a processor that keeps the ratio and crops nothing gives images
    of many sizes; here the centre square is cropped.

    Raises `ModelError` for a processor that does more than resize, crop and normalise.
    """
    path = folder / PROCESSOR
    # transformers writes null for what the processor's class decides.
    given = {key: one for key, one in (read_json(path) if path.is_file() else {}).items() if one is not None}
    kind = str(given.get("image_processor_type") or given.get("feature_extractor_type") or "")
    _require_plain(given, kind, spec)
    values = {**_defaults(kind), **given}
    try:
        mean, std = _normalisation(values)
        return ImageSettings(*_sizes(values, kind, default_size), _resample(values), mean, std)
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"model {spec}: its {PROCESSOR} cannot be used ({error}); mend it") from error


def _defaults(kind: str) -> dict[str, Any]:
    """What a processor's class of transformers says where a file does not; empty for one that is not known here."""
    name = kind.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")
    with quiet_transformers():
        try:
            cls = getattr(transformers, name, None)
            found = {key: getattr(cls, key, None) for key in _DEFAULTED}
        except (ImportError, RuntimeError):  # of some, no variant can do without torchvision
            return {}
    return {key: value for key, value in found.items() if value is not None}


def _require_plain(values: Mapping[str, Any], kind: str, spec: str) -> None:
    remedy = "choose another model, or describe its images by resize, crop and normalisation there"
    if kind.startswith(_OF_THEIR_OWN):
        raise ModelError(f"model {spec}: {kind} resizes in a way of its own, which is not known here; {remedy}")
    if asked := [name for name in _BEYOND if values.get(name)]:
        raise ModelError(f"model {spec}: its {PROCESSOR} asks for {asked[0]}, which is not known here; {remedy}")


def _sizes(values: Mapping[str, Any], kind: str, default: Size | None) -> tuple[int | None, Size, Size | None]:
    """(shorter edge, size, size before the crop)."""
    given = values.get("size") if values.get("do_resize", True) else None
    is_edge = kind.startswith(_SHORTEST_EDGE) or values.get("default_to_square") is False
    edge = _shortest_edge(given, is_edge=is_edge)
    crop = _pair(values["crop_size"]) if values.get("do_center_crop") and "crop_size" in values else None
    if edge is None:
        resized = _pair(given) if given is not None else default or (DEFAULT_SIZE, DEFAULT_SIZE)
        return None, crop or resized, resized if crop else None
    if not kind.startswith("ConvNext"):
        return edge, crop or (edge, edge), None
    if edge >= _WARPED_FROM:
        return None, crop or (edge, edge), (edge, edge) if crop else None
    return int(edge / float(values.get("crop_pct") or 224 / 256)), crop or (edge, edge), None


def _shortest_edge(given: Any, *, is_edge: bool) -> int | None:
    if isinstance(given, Mapping):
        if "longest_edge" in given and "shortest_edge" in given:
            raise ValueError("size has a longest_edge, so that images would differ in size")
        return _positive(given["shortest_edge"]) if "shortest_edge" in given else None
    return _positive(given) if isinstance(given, int) and is_edge else None


def _pair(given: Any) -> Size:
    if isinstance(given, Mapping):
        edge = given.get("shortest_edge")
        return _positive(given.get("height", edge)), _positive(given.get("width", edge))
    if isinstance(given, Sequence) and not isinstance(given, str):
        height, width = given if len(given) == 2 else (given[0], given[0])
        return _positive(height), _positive(width)
    return _positive(given), _positive(given)


def _positive(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is no size in pixels")
    return value


def _resample(values: Mapping[str, Any]) -> str:
    number = values.get("resample", 2)
    if number not in RESAMPLINGS:
        raise ValueError(f"resample = {number!r} is unknown; known: {', '.join(map(str, RESAMPLINGS))}")
    return RESAMPLINGS[number]


def _normalisation(values: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation for pixels in 0 … 1, whatever the processor rescales its levels by."""
    factor = float(values.get("rescale_factor", 1 / LEVELS)) if values.get("do_rescale", True) else 1.0
    mean, std = values.get("image_mean", IMAGENET_MEAN), values.get("image_std", IMAGENET_STD)
    if not values.get("do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    channels = [_channels(one) for one in (mean, std)]
    if not all(value > 0 for value in channels[1]) or not factor > 0:
        raise ValueError("image_std and rescale_factor must be above 0")
    return _divided(channels[0], LEVELS * factor), _divided(channels[1], LEVELS * factor)


def _channels(values: Any) -> tuple[float, ...]:
    given = tuple(float(value) for value in (values if isinstance(values, Sequence) else [values] * 3))
    if len(given) != 3 or not all(map(math.isfinite, given)):
        raise ValueError(f"{values!r} is not one number for each of three channels")
    return given


def _divided(values: tuple[float, ...], by: float) -> tuple[float, ...]:
    # 255 · (1 / 255) need not be 1, and then the usual values would not be what stands in the file.
    return values if math.isclose(by, 1.0, rel_tol=1e-6) else tuple(value / by for value in values)


# --- Weights of a line ------------------------------------------------------------------------------------------------


class Filter(NamedTuple):
    """A resampling filter: its weight at a distance in pixels, and from where on that is 0."""

    weight: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
    support: float


def _box(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def _triangle(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.clip(1.0 - np.abs(x), 0.0, None)


def _cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' cubic convolution with a = -0.5 (Keys 1981)."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x**2 + 1.0
    far = ((x - 5.0) * x + 8.0) * x * a - 4.0 * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(np.abs(x) < 3.0, np.sinc(x) * np.sinc(x / 3.0), 0.0)


FILTERS = {
    "box": Filter(_box, 0.5),
    "bilinear": Filter(_triangle, 1.0),
    "bicubic": Filter(_cubic, 2.0),
    "lanczos": Filter(_lanczos, 3.0),
}


def line_weights(n_in: int, n_out: int, resample: str) -> Weights:
    """The weights by which Pillow resizes a line of `n_in` pixels to `n_out`: rows sum to 1.

        w[o, i] ∝ f((i + 0.5 - c_o) / s),   c_o = (o + 0.5) · n_in / n_out,   s = max(n_in / n_out, 1)

    so that shrinking widens the filter f and no pixel is missed (antialiasing). `nearest` takes the pixel at c_o.
    Source: Pillow's `Resample.c` and `Geometry.c`.
    """
    scale = n_in / n_out
    if resample == "nearest":
        # Where c_o is just between two pixels, rounding decides, and Pillow adds scale to scale.
        chosen = np.floor(np.cumsum([0.5 * scale, *[scale] * (n_out - 1)]))
        return np.asarray(np.arange(n_in) == chosen[:, None], dtype=np.float32)
    centres = (np.arange(n_out)[:, None] + 0.5) * scale
    weight, support = FILTERS[resample]
    stretch = max(scale, 1.0)
    first = np.maximum(np.trunc(centres - support * stretch + 0.5), 0)
    last = np.minimum(np.trunc(centres + support * stretch + 0.5), n_in)
    pixels = np.arange(n_in)
    values = np.where((pixels >= first) & (pixels < last), weight((pixels + 0.5 - centres) / stretch), 0.0)
    return np.asarray(values / values.sum(1, keepdims=True), dtype=np.float32)


def area_weights(n_in: int, n_out: int) -> Weights:
    """Weights to a line of `n_out` cells: each the mean over its area where that shrinks, else bilinear.

    Rows sum to 1, and shrinking keeps the mean of the line: all pixels count alike.
    """
    if n_out > n_in:
        return line_weights(n_in, n_out, "bilinear")
    scale = n_in / n_out
    first = np.arange(n_out)[:, None] * scale
    pixels = np.arange(n_in)
    overlap = np.minimum(first + scale, pixels + 1.0) - np.maximum(first, pixels)
    return np.asarray(np.clip(overlap, 0.0, None) / scale, dtype=np.float32)


def cropped(weights: Weights, n: int) -> Weights:
    """The weights of the middle `n` new pixels, as transformers crops: with rows of 0 where there are too few."""
    missing = max(n - len(weights), 0)
    before = -(-missing // 2)
    padded = np.pad(weights, ((before, missing - before), (0, 0)))
    start = (len(padded) - n) // 2
    return padded[start : start + n]


# --- Images -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def weights_for(settings: ImageSettings, size: Size) -> tuple[Weights, Weights]:
    """The weights of rows and of columns that make an image of `size` one of `settings.size`."""
    rows, columns = (
        cropped(line_weights(n_in, n_out, settings.resample), n)
        for n_in, n_out, n in zip(size, resized_to(settings, size), settings.size, strict=True)
    )
    return rows, columns


def resized_to(settings: ImageSettings, size: Size) -> Size:
    """What an image of `size` is resized to, before the crop."""
    if settings.shortest_edge is None:
        return settings.resized or settings.size
    height, width = size
    longer = int(settings.shortest_edge * max(size) / min(size))
    return (settings.shortest_edge, longer) if height < width else (longer, settings.shortest_edge)


def preprocess(images: Sequence[UInt8Image], settings: ImageSettings, device: torch.device) -> Float[Tensor, "b 3 h w"]:
    """The images resized and cropped as the model's own processor does, to levels of 8 bits, in 0 … 1, fp32.

    Each may be of another size; those of one size are done together. Not normalised (see `ImageSettings`).
    """
    sizes = _by_size(images)
    if len(sizes) == 1:
        return _resized(images, settings, device)
    out = torch.empty((len(images), 3, *settings.size), device=device)
    for rows in sizes.values():
        out[torch.tensor(rows, device=device)] = _resized([images[row] for row in rows], settings, device)
    return out


def _resized(images: Sequence[UInt8Image], settings: ImageSettings, device: torch.device) -> Tensor:
    """Of images of one size."""
    stacked = np.stack(images)
    levels = torch.from_numpy(stacked).to(device).permute(0, 3, 1, 2).float()
    return resize_levels(levels, *weights_for(settings, stacked.shape[1:3])).div_(LEVELS)


def resize_levels(levels: Float[Tensor, "b c i j"], rows: Weights, columns: Weights) -> Float[Tensor, "b c h w"]:
    """Along lines first, then across, each time to whole levels in 0 … 255, as Pillow does.

    Departure: since version 13, Pillow goes across first where that shrinks the image by much more. It makes no
    difference but where a filter overshoots or levels are rounded, and models were trained before that.
    """
    for_rows, for_columns = (torch.from_numpy(weights).to(levels.device) for weights in (rows, columns))
    wide = (levels @ for_columns.T).round_().clamp_(0, LEVELS)
    return (for_rows @ wide).round_().clamp_(0, LEVELS)


def _by_size(images: Sequence[UInt8Image]) -> dict[Size, list[int]]:
    sizes: dict[Size, list[int]] = {}
    for row, image in enumerate(images):
        sizes.setdefault((image.shape[0], image.shape[1]), []).append(row)
    return sizes
