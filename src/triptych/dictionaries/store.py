"""Activations of one model on disk: shards of rows in safetensors, and `store.json`, which says what they are of.

    store.json                what was run on what, and the shards
    shard_00000.safetensors   `rows` [n, d] and `images` [n images]: which images of the set the rows are of, in order

Shards are read one after the other. A store is complete or refused; only extraction looks into one that is not.

Not here: filling one (`triptych.dictionaries.extraction`).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from triptych.errors import DataError, MissingInputError
from triptych.files import atomic_path, atomic_write_json
from triptych.records import Record

INFO = "store.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

StoredDtype = Literal["float32", "bfloat16", "float16"]


class ShardInfo(Record):
    """One finished shard."""

    file: str
    rows: int


class StoreInfo(Record):
    """What a store holds: `store.json`."""

    model: str
    """Its name among the models of a run."""
    spec: str
    """The folder or hub id it was loaded from."""
    fingerprint: str
    """Of configuration, weights and processor."""
    site: str
    pooling: str
    grid: int | None
    images: str
    """Where the images are from."""
    images_fingerprint: str
    rows_per_image: int
    width: int
    dtype: StoredDtype
    """In which rows are kept."""
    computed_in: str
    """In which the model ran: `bfloat16` moves its activations a little."""
    shard_images: int
    """Images of a shard, skipped ones among them."""
    n_images: int
    """Images of the set, skipped ones among them."""
    skipped: tuple[str, ...]
    """Ids of images that could not be decoded."""
    shards: tuple[ShardInfo, ...]
    complete: bool

    @property
    def n_shards(self) -> int:
        """Shards of the complete store."""
        return -(-self.n_images // self.shard_images)


@final
@dataclass(frozen=True)
class ActivationStore:
    """The activations of one model, complete."""

    folder: Path
    info: StoreInfo

    @classmethod
    def open(cls, folder: str | Path) -> "ActivationStore":
        """The store in a folder, all of its shards looked at from the outside (their headers).

        Raises MissingInputError or DataError naming what is missing, unfinished or of a wrong shape.
        """
        path = Path(folder)
        info = read_info(path)
        if not info.complete:
            raise DataError(
                f"activation store {path} is unfinished ({len(info.shards)} of {info.n_shards} shards); "
                "run the extraction again, it goes on from there"
            )
        check_shards(path, info)
        return cls(path, info)

    @property
    def width(self) -> int:
        """Features of a row."""
        return self.info.width

    @property
    def n_rows(self) -> int:
        """Rows of all shards."""
        return sum(self.shard_rows)

    @property
    def shard_rows(self) -> tuple[int, ...]:
        """Rows of each shard."""
        return tuple(shard.rows for shard in self.info.shards)

    @property
    def n_shards(self) -> int:
        return len(self.info.shards)

    def read(self, shard: int) -> Float[Tensor, "n d"]:
        """The rows of one shard, fp32."""
        return self._tensor(shard, "rows").float()

    def load(self) -> Float[Tensor, "n d"]:
        """All rows, fp32, in the order of the images."""
        rows = torch.empty((self.n_rows, self.width))
        start = 0
        for shard in range(self.n_shards):
            stop = start + self.shard_rows[shard]
            rows[start:stop] = self._tensor(shard, "rows")
            start = stop
        return rows

    def images_of_rows(self) -> Int[Tensor, " n"]:
        """The index of every row's image in the set; rows of one image are its cells, row by row of the grid."""
        images = torch.cat([self._tensor(shard, "images") for shard in range(self.n_shards)])
        return images.long().repeat_interleave(self.info.rows_per_image)

    def _tensor(self, shard: int, name: str) -> Tensor:
        path = self.folder / self.info.shards[shard].file
        with _shard_errors(path), safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor


def matching_rows(stores: Mapping[str, ActivationStore]) -> None:
    """Checks that row n of all stores is of the same part of the same image.

    Raises DataError naming two stores that are not, and in what they differ.
    """
    if not stores:
        return
    (first, one), *others = stores.items()
    for name, other in others:
        for field, what in _MATCHING.items():
            mine, theirs = getattr(one.info, field), getattr(other.info, field)
            if mine != theirs:
                raise DataError(
                    f"activation stores '{first}' and '{name}' do not pair up: {what} {_short(mine)} against "
                    f"{_short(theirs)}; extract both from the same images in one go"
                )
        if not torch.equal(one.images_of_rows(), other.images_of_rows()):
            raise DataError(
                f"activation stores '{first}' and '{name}' do not pair up: their rows are of other images, or in "
                "another order; extract both from the same images in one go"
            )


_MATCHING = {
    "n_images": "images:",
    "images_fingerprint": "fingerprint of the images:",
    "rows_per_image": "rows of an image:",
    "skipped": "skipped images:",
}
"""What stores that pair up have in common, and how to say it."""


def _short(value: object) -> str:
    return (", ".join(value[:3]) or "none") if isinstance(value, tuple) else str(value)


# --- Files ------------------------------------------------------------------------------------------------------------


def shard_name(shard: int) -> str:
    return f"shard_{shard:05d}.safetensors"


def read_info(folder: Path) -> StoreInfo:
    """`store.json` of a folder; MissingInputError or DataError where there is none, or it is none."""
    if not folder.is_dir():
        raise MissingInputError(f"activation store {folder} does not exist; check the path")
    path = folder / INFO
    if not path.is_file():
        raise DataError(f"{folder} is no activation store: it has no {INFO}")
    try:
        return StoreInfo.model_validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"]) or "the start"
        raise DataError(f"{path} does not describe a store (at {where}: {first['msg']}); extract again") from error


def write_info(folder: Path, info: StoreInfo) -> None:
    atomic_write_json(folder / INFO, info)


def write_shard(path: Path, rows: Float[Tensor, "n d"], images: Int[Tensor, " i"]) -> None:
    """The same bytes for the same tensors."""
    with atomic_path(path) as temporary:
        save_file({"images": images.to(torch.int32), "rows": rows.contiguous()}, temporary)


def check_shards(folder: Path, info: StoreInfo) -> None:
    """Checks what all shards of `info` say of themselves.

    Raises DataError or MissingInputError naming the first that is not as `info` says.
    """
    for shard in info.shards:
        path = folder / shard.file
        expected = {"rows": [shard.rows, info.width], "images": [shard.rows // info.rows_per_image]}
        with _shard_errors(path), safe_open(path, framework="pt") as file:
            found = {name: list(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
        for name, shape in expected.items():
            if found.get(name) != shape:
                said = " x ".join(map(str, found[name])) if name in found else "missing"
                raise DataError(
                    f"{path}: its {name} are {said} and {INFO} says {' x '.join(map(str, shape))}; {_REMEDY}"
                )


_REMEDY = "remove the folder and extract again"


@contextmanager
def _shard_errors(path: Path) -> Iterator[None]:
    """Turns what opening a shard raises into a sentence that names it."""
    if not path.is_file():
        raise MissingInputError(f"activation store {path.parent} lacks {path.name}; {_REMEDY}")
    try:
        yield
    except SafetensorError as error:
        raise DataError(f"{path} is damaged ({error}); {_REMEDY}") from error
