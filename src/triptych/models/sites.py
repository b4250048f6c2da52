"""What a site of a vision model returns, and how it becomes the rows of an image.

Not here: reaching the site (`vision`).
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from triptych.errors import ConfigError
from triptych.models.preprocessing import Size, area_weights

Pooling = Literal["auto", "pooled", "cls", "mean", "spatial"]
Kind = Literal["vector", "tokens", "map", "map_channels_last"]


class Layout(NamedTuple):
    """What stands where in the tensor at a site."""

    kind: Kind
    """[b, d] · [b, t, d] · [b, d, h, w] · [b, h, w, d]"""
    width: int
    """d"""
    cells: Size | None = None
    """Height and width of the map, or of the grid that tokens lie on, row by row; None where they lie on none."""
    before: int = 0
    """Tokens before those of the grid: CLS, registers, distillation."""
    has_pooler: bool = False
    """Whether the model itself returns a pooled vector here."""


def first_tensor(output: Any) -> Tensor:
    """The tensor that a module returns, or the first of several. Raises ValueError where there is none."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    for value in values:
        if isinstance(value, Tensor):
            return value
    raise ValueError(f"it returns a {type(output).__name__} without a tensor")


def layout_of(shape: Sequence[int], size: Size, config: Any) -> Layout:
    """What an output of this shape is, of images of `size`. Raises ValueError where it is no activation of images."""
    match [*shape]:
        case [_, width]:
            return Layout("vector", width)
        case [_, tokens, width]:
            cells, before = _token_grid(tokens, size, config)
            return Layout("tokens", width, cells, before)
        case [_, first, second, third]:
            if _is_like(size, (second, third)) or not _is_like(size, (first, second)):
                return Layout("map", first, (second, third))
            return Layout("map_channels_last", third, (first, second))
    raise ValueError(f"what it returns has {len(shape)} axes, which is neither a vector, nor tokens, nor a map")


def _is_like(size: Size, cells: Size) -> bool:
    """Whether the cells have the image's ratio, within the rounding of one cell."""
    return abs(cells[0] * size[1] - cells[1] * size[0]) <= max(size)


def _token_grid(tokens: int, size: Size, config: Any) -> tuple[Size | None, int]:
    """The grid that the last tokens lie on, and how many come before; Swin halves its grid from stage to stage.

    (None, 0) where the tokens fit no grid of patches.
    """
    patch = getattr(config, "patch_size", None)
    if patch is None:
        return None, 0
    high, wide = (patch, patch) if isinstance(patch, int) else tuple(patch)[-2:]
    cells = (size[0] // high, size[1] // wide)
    extra = tokens - cells[0] * cells[1]
    # CLS, one for distillation, and registers.
    if 0 <= extra <= 2 + int(getattr(config, "num_register_tokens", 0) or 0):
        return cells, extra
    while max(cells) > 1:
        cells = (-(-cells[0] // 2), -(-cells[1] // 2))
        if cells[0] * cells[1] == tokens:
            return cells, 0
    return None, 0


# --- Pooling ----------------------------------------------------------------------------------------------------------


def resolve_pooling(pooling: str, layout: Layout, where: str) -> str:
    """What `auto` means here. Raises `ConfigError` for a pooling that is not possible, naming those that are."""
    on_grid = layout.cells is not None
    possible = {
        "cls": layout.kind == "tokens" and on_grid and layout.before > 0,
        "pooled": layout.has_pooler or layout.kind != "tokens",
        "mean": on_grid,
        "spatial": on_grid,
    }
    names = [name for name, is_possible in possible.items() if is_possible]
    if pooling == "auto" and names:
        return names[0]
    if pooling not in names:
        choice = f"choose one of: {', '.join(names)}" if names else "its tokens lie on no grid of patches"
        raise ConfigError(f"pooling '{pooling}' is not possible at {where} (a {layout.kind}); {choice}")
    return pooling


def resolve_grid(grid: int | None, pooling: str, layout: Layout, where: str) -> int | None:
    """The grid of `spatial` rows: as asked for, else the model's own. Raises `ConfigError` where it makes no sense."""
    if pooling != "spatial":
        if grid is not None:
            raise ConfigError(f"grid = {grid} goes with pooling 'spatial', not with '{pooling}'; leave one of them out")
        return None
    if grid is not None and grid < 1:
        raise ConfigError(f"grid = {grid} is out of range: it must be at least 1")
    if grid is None and layout.cells is not None and layout.cells[0] != layout.cells[1]:
        raise ConfigError(f"{where} has {layout.cells[0]} x {layout.cells[1]} cells, which is no square; pass grid")
    return grid if grid is not None else layout.cells[0] if layout.cells else None


def pooled(output: Any, layout: Layout, pooling: str, grid: int | None) -> Float[Tensor, "b g d"]:
    """The rows of each image, fp32, of what a site returned."""
    if pooling == "pooled" and layout.has_pooler:
        vectors: Tensor = output.pooler_output
        return vectors.float().flatten(1).unsqueeze(1)
    return POOLINGS[pooling](first_tensor(output), layout, grid)


def _vectors(value: Tensor, layout: Layout, grid: int | None) -> Tensor:
    return value.float().unsqueeze(1) if layout.kind == "vector" else _mean(value, layout, grid)


def _first_token(value: Tensor, _layout: Layout, _grid: int | None) -> Tensor:
    return value[:, :1].float()


def _mean(value: Tensor, layout: Layout, _grid: int | None) -> Tensor:
    return as_map(value, layout).float().mean((2, 3)).unsqueeze(1)


def _spatial(value: Tensor, layout: Layout, grid: int | None) -> Tensor:
    cells = as_map(value, layout).float()
    high, wide = (torch.from_numpy(area_weights(n, grid or n)).to(cells.device) for n in cells.shape[2:])
    return (high @ cells @ wide.T).flatten(2).transpose(1, 2)


POOLINGS: dict[str, Callable[[Tensor, Layout, int | None], Tensor]] = {
    "pooled": _vectors,
    "cls": _first_token,
    "mean": _mean,
    "spatial": _spatial,
}


def as_map(value: Tensor, layout: Layout) -> Float[Tensor, "b d h w"]:
    """Tokens of the grid, or a map of any order, as a map with its features first."""
    if layout.kind == "map":
        return value
    if layout.kind == "map_channels_last":
        return value.permute(0, 3, 1, 2)
    if layout.cells is None:
        raise ValueError("tokens that lie on no grid are no map")
    features = value[:, layout.before :].transpose(1, 2)
    return features.reshape(*features.shape[:2], *layout.cells)
