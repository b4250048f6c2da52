"""Vision models: one call from a spec to activations at a named site, pooled to rows that a dictionary can be fed.

Any vision model of transformers serves (ResNet, ViT, DINOv2, ConvNeXt, Swin, DeiT, CLIP's image tower, …). A forward
pass ends at the site. Below fp32 the weights are made ready for it: BatchNorm folded into convolutions, channels last,
linear layers packed. In fp32 nothing is touched.

Not here: what a site returns and how it becomes rows (`sites`), resizing (`preprocessing`), where activations are kept
(`triptych.dictionaries.store`).
"""

import hashlib
import inspect
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import MODEL_MAPPING, PretrainedConfig, PreTrainedModel

from triptych.errors import ConfigError, ModelError
from triptych.models.hardware import detect_hardware
from triptych.models.hub import cached_snapshot, first_line
from triptych.models.loading import (
    LOAD_ERRORS,
    freeze,
    load_pretrained,
    quiet_transformers,
    read_config,
    resolve_device,
    resolve_dtype,
)
from triptych.models.preprocessing import ImageSettings, Size, UInt8Image, preprocess, read_settings
from triptych.models.sites import Layout, Pooling, first_tensor, layout_of, pooled, resolve_grid, resolve_pooling
from triptych.models.sources import ModelSource, fingerprint, resolve_source, weight_files

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")

OUTPUT = "output"
"""The site that is no module: what the model returns."""


@dataclass(frozen=True, eq=False)
class VisionModel:
    """A vision model that is read at one site: in evaluation mode, frozen, on one device."""

    model: PreTrainedModel = field(repr=False)
    spec: str
    """What the user asked for: a folder or a hub id."""
    site: str
    """A module's dotted path, or `output`."""
    pooling: str
    """`pooled`, `cls`, `mean` or `spatial`: what `auto` came to."""
    fingerprint: str
    """16 hexadecimal digits that change with configuration, weights or the processor's settings."""
    width: int
    """Features of a row."""
    grid: int | None
    """Rows and columns of cells of an image, where spatial."""
    settings: ImageSettings
    layout: Layout
    revision: str | None = None
    """The commit of the hub repository; None for anything local."""

    @property
    def image_size(self) -> Size:
        """Height and width of the pixels that `features` takes."""
        return self.settings.size

    @property
    def rows_per_image(self) -> int:
        """1, or a row for each cell of the grid, row by row."""
        return 1 if self.grid is None else self.grid**2

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in; features are fp32 whatever it is."""
        return self.model.dtype

    def preprocess(self, images: Sequence[UInt8Image]) -> Float[Tensor, "b 3 h w"]:
        """The images, of any sizes, resized and cropped as the model's own processor does; in 0 … 1, not normalised."""
        return preprocess(images, self.settings, self.device)

    def features(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b g d"]:
        """The rows of each image: fp32, differentiable in the pixels, which lie in 0 … 1 and are normalised here."""
        if pixels.shape[-2:] != self.image_size:
            raise ValueError(f"pixels are {tuple(pixels.shape[-2:])} and the model takes {self.image_size}")
        mean, std = (torch.tensor(one, device=pixels.device).view(3, 1, 1) for one in self.settings[-2:])
        order = torch.contiguous_format if self.dtype == torch.float32 else torch.channels_last
        inputs = (pixels - mean).div_(std).to(self.dtype, memory_format=order)
        return pooled(run_to(self.model, self.site, inputs), self.layout, self.pooling, self.grid)


def load_vision_model(
    spec: str | Path,
    *,
    site: str | None = None,
    pooling: Pooling = "auto",
    grid: int | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
) -> VisionModel:
    """A vision model from a hub id or a local folder, to be read at `site`.

    `site` is a module's dotted path inside the model (`encoder.stages.2`, `layernorm`); by default it is what the model
    returns. `pooling` makes rows of what is there:

    * `pooled`: the model's own pooled vector at its output; elsewhere the mean over a map.
    * `cls`: the first token.   * `mean`: over the map, or over the tokens of the grid.
    * `spatial`: a row for each cell of `grid` x `grid`, to which the map or the grid of tokens is resampled (means over
      areas, bilinear where it enlarges), so that rows of several models are about the same part of the image. Without
      `grid` it is the model's own.
    * `auto`: `cls` where there is such a token, else `pooled`, or `mean` of tokens that the model does not pool.

    Raises `ModelError`, `MissingInputError` or `ConfigError`, each with the remedy.
    """
    chosen_device = resolve_device(device)
    chosen_dtype = resolve_dtype(dtype, chosen_device)
    source = resolve_vision_source(str(spec))
    backbone = _backbone(source, read_config(source))
    model = load_pretrained(backbone, source, torch.float32, torch.device("cpu"))
    settings = read_settings(source.folder, source.spec, _image_size(model.config))
    name = _known_site(model, source.spec, site)
    layout = _layout(model, source.spec, name, settings.size)
    chosen = resolve_pooling(pooling, layout, f"site '{name}' of model {source.spec}")
    return VisionModel(
        model=_prepared(model, source.spec, name, chosen_dtype, chosen_device),
        spec=source.spec,
        site=name,
        pooling=chosen,
        fingerprint=_fingerprint(source, settings),
        width=layout.width,
        grid=resolve_grid(grid, chosen, layout, f"site '{name}' of model {source.spec}"),
        settings=settings,
        layout=layout,
        revision=source.revision,
    )


# --- Loading ----------------------------------------------------------------------------------------------------------


def resolve_vision_source(spec: str) -> ModelSource:
    """As for other models; but one without a tokenizer is complete all the same, and is not asked for again."""
    if _HUB_ID.fullmatch(spec) and not Path(spec).exists():
        # What looks like an id may be none, for reasons that only the hub's library knows.
        with suppress(ValueError):
            folder = cached_snapshot(spec)
            if folder is not None and (files := weight_files(folder)) and all(path.is_file() for path in files):
                return ModelSource(spec, "hub", folder, revision=folder.name)
    return resolve_source(spec)


def _backbone(source: ModelSource, config: PretrainedConfig) -> Any:
    """The class of the images' part of a model, as `load_pretrained` takes it. Raises `ModelError` for other models."""
    vision = getattr(config, "vision_config", None)
    chosen = vision if isinstance(vision, PretrainedConfig) else config
    try:
        found: Any = MODEL_MAPPING[type(chosen)]
    except KeyError as error:
        raise ModelError(f"model {source.spec} is of a kind ({config.model_type}) that has no plain model") from error
    cls = found[0] if isinstance(found, tuple | list) else found
    if cls.main_input_name != "pixel_values":
        raise ModelError(f"model {source.spec} is a {cls.__name__}, which reads no images; choose a vision model")
    # Classifiers were saved without a pooler, and a random one would be no part of the model.
    optional = "add_pooling_layer" in inspect.signature(cls.__init__).parameters
    options = {"add_pooling_layer": False} if optional and not _has_pooler_weights(source) else {}
    return SimpleNamespace(from_pretrained=partial(cls.from_pretrained, **options))


def _has_pooler_weights(source: ModelSource) -> bool:
    names: set[str] = set()
    for path in weight_files(source.folder):
        try:
            with safe_open(path, framework="pt") as file:
                names.update(file.keys())
        except SafetensorError as error:
            raise ModelError(
                f"model {source.spec}: its safetensors are damaged ({first_line(error)}); fetch the model again"
            ) from error
    return any("pooler" in name.split(".") for name in names)


def _image_size(config: PretrainedConfig) -> Size | None:
    size = getattr(config, "image_size", None)
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if isinstance(size, list | tuple) and len(size) == 2 else None


def _fingerprint(source: ModelSource, settings: ImageSettings) -> str:
    return hashlib.sha256(f"{fingerprint(source)}:{settings}".encode()).hexdigest()[:16]


# --- Sites ------------------------------------------------------------------------------------------------------------


def _known_site(model: PreTrainedModel, spec: str, site: str | None) -> str:
    if site is None or site == OUTPUT:
        return OUTPUT
    known = [name for name, _ in model.named_modules() if name]
    if site in known:
        return site
    near = get_close_matches(site, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"it begins with {', '.join(_first_level(known))}."
    raise ConfigError(
        f"site '{site}' is no module of model {spec}: {hint} "
        f"[name for name, _ in load_vision_model('{spec}').model.named_modules()] lists them all"
    )


def _first_level(names: Sequence[str]) -> list[str]:
    return [name for name in names if "." not in name]


@final
class _Reached(Exception):  # noqa: N818 - no error: it ends a forward pass at the site
    def __init__(self, output: Any) -> None:
        super().__init__("the site was reached")
        self.output = output


def run_to(model: PreTrainedModel, site: str, inputs: Float[Tensor, "b 3 h w"]) -> Any:
    """What the module at `site` returns, or the whole model; nothing behind the site is computed."""
    if site == OUTPUT:
        return model(pixel_values=inputs)

    def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
        raise _Reached(output)

    handle = model.get_submodule(site).register_forward_hook(stop)
    try:
        model(pixel_values=inputs)
    except _Reached as reached:
        return reached.output
    finally:
        handle.remove()
    raise ConfigError(f"site '{site}' is not run in a forward pass; choose a module that is")


def _layout(model: PreTrainedModel, spec: str, site: str, size: Size) -> Layout:
    """By a forward pass of one black image, from end to end: a site that runs twice would be ambiguous."""
    outputs: list[Any] = []
    module = model if site == OUTPUT else model.get_submodule(site)
    handle = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        with quiet_transformers(), torch.no_grad():
            model(pixel_values=torch.zeros(1, 3, *size, device=model.device))
    except LOAD_ERRORS as error:
        raise ModelError(f"model {spec} takes no images of {size[0]} x {size[1]}: {first_line(error)}") from error
    finally:
        handle.remove()
    if len(outputs) != 1:
        times = "is not run" if not outputs else f"is run {len(outputs)} times"
        raise ConfigError(f"site '{site}' of model {spec} {times} in a forward pass; choose a module that is run once")
    try:
        layout = layout_of(first_tensor(outputs[0]).shape, size, model.config)
    except ValueError as error:
        raise ConfigError(f"site '{site}' of model {spec}: {error}; choose another module") from error
    pooler = getattr(outputs[0], "pooler_output", None) if site == OUTPUT else None
    if pooler is None:
        return layout
    return layout._replace(has_pooler=True)


# --- Speed ------------------------------------------------------------------------------------------------------------


def _prepared(
    model: PreTrainedModel, spec: str, site: str, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """The model in its dtype, on its device; below fp32 also in the form that is fastest there."""
    if dtype == torch.float32:
        return freeze(model, spec, device)
    fold_batch_norms(model, site)
    plain: nn.Module = model
    plain.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    freeze(model, spec, device)
    if dtype == torch.bfloat16 and device.type == "cpu" and detect_hardware().has_native_bf16:
        pack_linears(model, site)
    return model


def fold_batch_norms(model: nn.Module, site: str) -> None:
    """Makes every convolution that only a BatchNorm reads do its work as well: w' = w · γ / √(σ² + ε), in fp32.

    These are the blocks of exactly `convolution`, `normalization` and, in some, `activation` (ResNet, RegNet, …). The
    convolution at `site` is left alone, as its own output is what is asked for.
    """
    for name, block in [*model.named_modules()]:
        parts = dict(block.named_children())
        if not {"convolution", "normalization"} <= set(parts) <= {"convolution", "normalization", "activation"}:
            continue
        convolution, norm = parts["convolution"], parts["normalization"]
        is_pair = type(convolution) is nn.Conv2d and type(norm) is nn.BatchNorm2d and norm.track_running_stats
        if is_pair and not norm.training and site != f"{name}.convolution".removeprefix("."):
            block.convolution = nn.utils.fuse_conv_bn_eval(convolution, norm)
            block.normalization = nn.Identity()


def pack_linears(model: nn.Module, site: str) -> None:
    """Packs all linear layers for oneDNN: a fifth faster, as their bias is added on the way and not beforehand."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return
    for name, block in [*model.named_modules()]:
        for child, linear in [*block.named_children()]:
            if type(linear) is nn.Linear and f"{name}.{child}".removeprefix(".") != site:
                setattr(block, child, _PackedLinear(linear))


@final
class _PackedLinear(nn.Module):
    """A frozen linear layer, with its weight packed once into the matrix library's own layout."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        # The packed product has no derivative.
        if x.requires_grad:
            return F.linear(x, self.weight, self.bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return out
