"""Images through several models into activation stores: each image is decoded once and every model sees it.

A few threads decode ahead while the models run. Shards are written whole and noted in `store.json`, so that a kill
costs one shard; going on gives the very bytes that an uninterrupted run gives, as batches begin anew with every shard.

Not here: models (`triptych.models.vision`), the files (`store`), decoding (`triptych.data.images`).
"""

import re
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Literal, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from triptych.data.image_files import ImageSet, UInt8Image
from triptych.dictionaries.store import (
    DTYPES,
    INFO,
    ActivationStore,
    ShardInfo,
    StoredDtype,
    StoreInfo,
    check_shards,
    read_info,
    shard_name,
    write_info,
    write_shard,
)
from triptych.errors import ConfigError, DataError, ModelError
from triptych.files import make_folder, remove_stale
from triptych.models.vision import VisionModel
from triptych.progress import Meter, progress

OnCorrupt = Literal["stop", "skip"]

DECODERS = 2
"""Threads that decode: Pillow lets go of the interpreter's lock while it does."""
BATCHES_AHEAD = 2
"""How far they may be ahead of the models: memory is bounded, and the models never wait."""

_NAME = re.compile(r"\w[\w.-]*")
_UNFINISHED = {"shards", "skipped", "complete"}
"""What changes while a store grows; all else says what it is of."""


class Decoded(NamedTuple):
    """One image of the set, or why there is none."""

    number: int
    """Its index in the set."""
    image: UInt8Image | None
    error: DataError | None


def extract(
    images: ImageSet,
    models: Mapping[str, VisionModel],
    folder: str | Path,
    *,
    shard_images: int = 2048,
    batch_size: int = 64,
    on_corrupt: OnCorrupt = "stop",
    dtype: StoredDtype = "float32",
    show_progress: bool = True,
) -> dict[str, ActivationStore]:
    """The activations of every model on all images, in `folder/<model>`.

    Stores of the same models, sites and images that are there already are kept, and unfinished ones go on. An image
    that cannot be decoded stops the work, or is left out for all models (`skip`) and noted in the stores.

    Raises DataError for such an image, for a folder that holds something else, and where no image is left; ModelError
    for activations that are no numbers; ConfigError for parameters out of range.
    """
    _require_sensible(images, models, shard_images, batch_size)
    root = Path(folder)
    begun = {
        name: _begun(root / name, _wanted(name, model, images, shard_images, dtype)) for name, model in models.items()
    }
    growing = [_Growing(root / name, models[name], info) for name, info in begun.items() if not info.complete]
    spans = _spans(len(images), shard_images, min((one.done for one in growing), default=None))
    total = sum(len(span) for span in spans.values())
    with progress(total, "images", "activations", enabled=show_progress and total > 0) as meter:
        for shard, span in spans.items():
            lacking = [one for one in growing if one.done == shard]
            skipped = _fill(images, span, lacking, batch_size, on_corrupt, meter)
            for one in lacking:
                one.finish_shard(skipped)
    return {name: ActivationStore.open(root / name) for name in models}


def _require_sensible(images: ImageSet, models: Mapping[str, VisionModel], shard_images: int, batch_size: int) -> None:
    for what, number in (("shard_images", shard_images), ("batch_size", batch_size)):
        if number < 1:
            raise ConfigError(f"{what} = {number} is out of range: it must be at least 1")
    if not models:
        raise ConfigError("no models to extract activations of; name at least one")
    for name in models:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"model name '{name}' cannot be a folder's name; use letters, digits, '_', '-' and '.'")
    if not len(images):
        raise DataError(f"{images.source} has no images to extract activations of; choose others")


def _spans(n_images: int, shard_images: int, first: int | None) -> dict[int, range]:
    """The images of every shard from the first that some store lacks; None where no store lacks any."""
    starts = range(0 if first is None else first * shard_images, 0 if first is None else n_images, shard_images)
    return {start // shard_images: range(start, min(start + shard_images, n_images)) for start in starts}


def _fill(
    images: ImageSet,
    span: range,
    stores: Sequence["_Growing"],
    batch_size: int,
    on_corrupt: OnCorrupt,
    meter: Meter,
) -> tuple[str, ...]:
    """Runs the images of one shard through the models that lack it; the ids of those that were skipped."""
    skipped: list[str] = []
    with closing(_decoded(images, span, batch_size)) as batches:
        for batch in batches:
            if (bad := _corrupt(batch)) and on_corrupt == "stop":
                raise DataError(f"{bad[0].error}; mend or remove it, or skip such images (on_corrupt='skip')")
            skipped += [images.ids[one.number] for one in bad]
            if pictures := {one.number: one.image for one in batch if one.image is not None}:
                for store in stores:
                    store.add(pictures, images.ids)
            meter.advance(len(batch))
    return tuple(skipped)


def _corrupt(batch: Sequence[Decoded]) -> list[Decoded]:
    return [one for one in batch if one.error is not None]


# --- Decoding ---------------------------------------------------------------------------------------------------------


def _decoded(images: ImageSet, span: range, batch_size: int) -> Generator[list[Decoded]]:
    """The images of `span` in order, in batches, decoded ahead by some threads; close it to stop them."""
    starts = deque(range(span.start, span.stop, batch_size))
    pending: deque[list[Future[Decoded]]] = deque()
    pool = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
    try:
        while starts or pending:
            while starts and len(pending) <= BATCHES_AHEAD:
                start = starts.popleft()
                indices = range(start, min(start + batch_size, span.stop))
                pending.append([pool.submit(_decode, images, index) for index in indices])
            yield [future.result() for future in pending.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(images: ImageSet, index: int) -> Decoded:
    try:
        return Decoded(index, images.read(index), None)
    except DataError as error:
        return Decoded(index, None, error)


# --- Stores that grow -------------------------------------------------------------------------------------------------


def _wanted(name: str, model: VisionModel, images: ImageSet, shard_images: int, dtype: StoredDtype) -> StoreInfo:
    return StoreInfo(
        model=name,
        spec=model.spec,
        fingerprint=model.fingerprint,
        site=model.site,
        pooling=model.pooling,
        grid=model.grid,
        images=images.source,
        images_fingerprint=images.fingerprint,
        rows_per_image=model.rows_per_image,
        width=model.width,
        dtype=dtype,
        computed_in=str(model.dtype).removeprefix("torch."),
        shard_images=shard_images,
        n_images=len(images),
        skipped=(),
        shards=(),
        complete=False,
    )


@final
class _Growing:
    """The store of one model while it is filled: `done` shards are finished."""

    def __init__(self, folder: Path, model: VisionModel, begun: StoreInfo) -> None:
        self._folder = folder
        self._model = model
        self._info = begun
        self._images: list[int] = []
        n_rows = min(begun.shard_images, begun.n_images) * begun.rows_per_image
        self._rows = torch.empty((n_rows, begun.width), dtype=DTYPES[begun.dtype])

    @property
    def done(self) -> int:
        return len(self._info.shards)

    @property
    def _filled(self) -> int:
        """Rows of the shard that is being filled."""
        return len(self._images) * self._info.rows_per_image

    def add(self, pictures: Mapping[int, UInt8Image], ids: Sequence[str]) -> None:
        """The rows of some images (by their index in the set) to the shard that is being filled."""
        with torch.inference_mode():
            model = self._model
            rows = model.features(model.preprocess([*pictures.values()]))
        self._require_finite(rows, [ids[index] for index in pictures])
        start = self._filled
        self._images += pictures
        self._rows[start : self._filled] = rows.flatten(0, 1)

    def finish_shard(self, skipped: Sequence[str]) -> None:
        """Writes the shard that has been filled, then the note that it is finished."""
        info = self._info
        shard = ShardInfo(file=shard_name(self.done), rows=self._filled)
        written = torch.tensor(self._images, dtype=torch.int32)
        write_shard(self._folder / shard.file, self._rows[: self._filled], written)
        shards = (*info.shards, shard)
        is_last = len(shards) == info.n_shards
        if is_last and not any(one.rows for one in shards):
            raise DataError(f"none of the {info.n_images} images of {info.images} can be decoded; choose others")
        self._info = info.model_copy(
            update={"shards": shards, "skipped": (*info.skipped, *skipped), "complete": is_last}
        )
        write_info(self._folder, self._info)
        self._images = []

    def _require_finite(self, rows: Float[Tensor, "b g d"], ids: Sequence[str]) -> None:
        if bool(torch.isfinite(rows).all()):
            return
        first = int((~torch.isfinite(rows)).flatten(1).any(1).nonzero()[0])
        info = self._info
        raise ModelError(
            f"activations of model {info.spec} at site '{info.site}' are not finite for image {ids[first]} "
            f"(computed in {info.computed_in}); choose another site, or dtype float32"
        )


def _begun(folder: Path, wanted: StoreInfo) -> StoreInfo:
    """What is there of the wanted store: all, some shards or none. DataError where something else is in its place."""
    make_folder(folder)
    remove_stale(folder)
    if not (folder / INFO).is_file():
        write_info(folder, wanted)
        return wanted
    found = read_info(folder)
    if differing := _differing(found, wanted):
        what = ", ".join(f"{name} {getattr(found, name)} and not {getattr(wanted, name)}" for name in differing)
        raise DataError(
            f"{folder} holds activations of {_described(found)} and not of {_described(wanted)} ({what}); "
            "choose another folder, or remove it"
        )
    check_shards(folder, found)
    return found


def _differing(found: StoreInfo, wanted: StoreInfo) -> list[str]:
    """The fields in which two stores are not of the same; shards of a finished one may be of any size."""
    free = _UNFINISHED | ({"shard_images"} if found.complete else set())
    # A model or data set that has only moved is the same: it is known by its fingerprint.
    free |= {"model", "spec", "images"}
    return [name for name in StoreInfo.model_fields if name not in free and _differs(found, wanted, name)]


def _differs(found: StoreInfo, wanted: StoreInfo, name: str) -> bool:
    return bool(getattr(found, name) != getattr(wanted, name))


def _described(info: StoreInfo) -> str:
    return f"model {info.spec} at site '{info.site}' on {info.images}"
