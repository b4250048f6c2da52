"""Images to train dictionaries on and images held out: of the starter set, a folder, a Parquet file or a hub data set.

Labels become factors. A part of the images is a random sample that depends on the seed alone, for many sets are sorted.

Not here: reading and decoding (`image_files`), how starter images are drawn (`starter_images`).
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt

from triptych.data.image_files import (
    SUFFIXES,
    EncodedImages,
    Factor,
    ImageSet,
    UInt8Image,
    decode_image,
    read_hub_split,
    read_image_folder,
    read_image_parquet,
    reason,
)
from triptych.data.starter_images import DEFAULT_IMAGES, StarterImages
from triptych.errors import ConfigError, DataError, MissingInputError
from triptych.seeding import generator

__all__ = ["STARTER", "Factor", "ImageSet", "ImageSplit", "Selection", "UInt8Image", "decode_image", "load_images"]

STARTER = "starter"
TRAIN_NAMES = ("train",)
TEST_NAMES = ("test", "validation", "valid", "val")
"""Of folders and hub splits, the first that is there."""

_FEW = 10

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


class ImageSplit(NamedTuple):
    """Images to train on, and others that nothing is trained on."""

    train: ImageSet
    test: ImageSet


class _Source(NamedTuple):
    """What a source holds; of one without a test split all is `train`."""

    train: ImageSet
    test: ImageSet | None


def load_images(
    source: str,
    *,
    test_source: str | None = None,
    limit: int | None = None,
    test_limit: int | None = None,
    test_share: float = 0.2,
    seed: int = 0,
) -> ImageSplit:
    """Training and held-out images of `starter`, a folder, a `.parquet` file or a hub data set.

    Held out are the images of `test_source` (of its test split, where it has one), else the source's own test split,
    else `test_share` of its images, chosen by `seed` and disjoint from those for training. `limit` and `test_limit`
    take a sample of each, chosen by `seed`, in the order of the source; what is held out does not depend on them.
    `starter` draws 8,000 and 2,000 images by `seed`, or as many as the limits say.

    Test labels are numbered as those of training; a column is a factor if it sorts training images into kinds.

    Raises `MissingInputError`, `DataError` (naming what cannot be read) or `ConfigError` (a number out of range).
    """
    _check_numbers(limit, test_limit, test_share)
    if test_source is not None and _same(source, test_source):
        raise ConfigError(f"test source {test_source!r} is the source itself; leave it out to hold out a part of it")
    read = _read(source, seed, limit, test_limit)
    test = read.test if test_source is None else _test_of(_read(test_source, seed, test_limit, test_limit))
    train = _select(read.train, _kinds(read.train, None))
    if test is None:
        train, test = _held_out(train, test_share, seed)
    else:
        test = _select(test, _numbered_alike(train.factors, _kinds(test, read.train), test.source))
    return ImageSplit(_sample(train, limit, seed, "train"), _sample(test, test_limit, seed, "test"))


@final
@dataclass(frozen=True, repr=False, eq=False)
class Selection:
    """An `ImageSet` of some images of another, under other names of factors where these are given."""

    whole: ImageSet
    chosen: npt.NDArray[np.int64]
    source: str
    named: Mapping[str, Factor]
    """The factors of the whole set."""

    @cached_property
    def fingerprint(self) -> str:
        """Of the whole set's, the images chosen, and the names of their factors."""
        names = "".join(f"{name}{factor.values}" for name, factor in self.named.items())
        digest = hashlib.blake2b(f"{self.whole.fingerprint}:{names}".encode(), digest_size=16)
        digest.update(self.chosen.tobytes())
        return digest.hexdigest()

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(self.whole.ids[index] for index in self.chosen)

    @cached_property
    def factors(self) -> Mapping[str, Factor]:
        return {name: Factor(factor.values, factor.of[self.chosen]) for name, factor in self.named.items()}

    def __len__(self) -> int:
        return len(self.chosen)

    def read(self, index: int) -> UInt8Image:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)} images")
        return self.whole.read(int(self.chosen[index]))


def _check_numbers(limit: int | None, test_limit: int | None, test_share: float) -> None:
    for name, value in (("limit", limit), ("test limit", test_limit)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1 (leave it out for all images)")
    if not 0 < test_share < 1:
        raise ConfigError(f"test share is {test_share}; it must lie between 0 and 1, such as 0.2")


def _same(source: str, other: str) -> bool:
    one, two = (os.path.realpath(os.path.expanduser(name)) for name in (source, other))
    return one == two


def _read(source: str, seed: int, limit: int | None, test_limit: int | None) -> _Source:
    if source == STARTER:
        return _Source(
            StarterImages(seed, "train", limit or DEFAULT_IMAGES["train"]),
            StarterImages(seed, "test", test_limit or DEFAULT_IMAGES["test"]),
        )
    path = Path(source).expanduser()
    try:
        if source and path.exists():
            return _read_folder(source, path) if path.is_dir() else _Source(_read_file(source, path), None)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({reason(error)})") from error
    if source.startswith(("/", "./", "../", "~")) or path.suffix.lower() == ".parquet" or not _HUB_ID.fullmatch(source):
        raise MissingInputError(f"images {source!r} do not exist; check the path")
    # Only a hub data set needs the library, which takes seconds to import.
    from triptych.data.hub import read_hub_splits

    splits = read_hub_splits(source)
    train, test = _first(TRAIN_NAMES, splits), _first(TEST_NAMES, splits)
    if train is None:
        raise DataError(f"data set {source} has no split '{TRAIN_NAMES[0]}' (its splits: {', '.join(splits)})")
    return _Source(
        read_hub_split(source, train, splits[train]), read_hub_split(source, test, splits[test]) if test else None
    )


def _read_file(source: str, path: Path) -> EncodedImages:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return read_image_parquet(source, path)
    what = "is one image; give its folder" if suffix in SUFFIXES else "is neither a folder of images nor .parquet"
    raise DataError(f"{path} {what}")


def _read_folder(source: str, path: Path) -> _Source:
    """A folder `train` (and one of `TEST_NAMES`) of images or class folders, or these themselves."""
    folders = {entry.name for entry in path.iterdir() if entry.is_dir()}
    train, test = _first(TRAIN_NAMES, folders), _first(TEST_NAMES, folders)
    if train is None:
        return _Source(read_image_folder(source, path, path), None)
    return _Source(
        read_image_folder(f"{source}, {train}", path / train, path),
        read_image_folder(f"{source}, {test}", path / test, path) if test else None,
    )


def _first(names: Sequence[str], known: Mapping[str, object] | set[str]) -> str | None:
    return next((name for name in names if name in known), None)


def _test_of(source: _Source) -> ImageSet:
    return source.train if source.test is None else source.test


def _kinds(images: ImageSet, train: ImageSet | None) -> dict[str, Factor]:
    """The factors of a set that sort images into kinds; those that the training images have are judged by these."""
    judges = {name: train if train is not None and name in train.factors else images for name in images.factors}
    return {name: factor for name, factor in images.factors.items() if _is_kind(name, judges[name])}


def _is_kind(name: str, images: ImageSet) -> bool:
    """Declared as such, or with two or more images a value, which ids and captions do not have.

    Of at most ten values it is enough that one is repeated, for sets that are small themselves.
    """
    if not (isinstance(images, EncodedImages) and name in images.undeclared):
        return True
    of = images.factors[name].of
    given = int(np.count_nonzero(of >= 0))
    distinct = len(np.unique(of[of >= 0]))
    return distinct < given and (distinct <= _FEW or 2 * distinct <= given)


def _numbered_alike(train: Mapping[str, Factor], test: Mapping[str, Factor], source: str) -> dict[str, Factor]:
    """The factors of test images with the values of training, which must hold all that the test images have."""
    return {
        name: _renumbered(name, factor, train[name].values, source) if name in train else factor
        for name, factor in test.items()
    }


def _renumbered(name: str, factor: Factor, values: tuple[str, ...], source: str) -> Factor:
    number_of = {value: number for number, value in enumerate(values)}
    numbers = np.array([number_of.get(value, -1) for value in factor.values] + [-1], dtype=np.int32)
    for value in _unknown(factor, numbers):
        known = f"{', '.join(values[:10])}{', ...' if len(values) > 10 else ''}"
        raise DataError(f"{source}: the {name} '{value}' is none of the training images ({known}); name them alike")
    return Factor(values, numbers[factor.of])


def _unknown(factor: Factor, numbers: npt.NDArray[np.int32]) -> Iterator[str]:
    for number in np.unique(factor.of[factor.of >= 0]):
        if numbers[number] < 0:
            yield factor.values[number]


def _select(images: ImageSet, factors: Mapping[str, Factor], chosen: npt.NDArray[np.int64] | None = None) -> ImageSet:
    """These images with these factors; the set itself where nothing changes."""
    if chosen is None and all(factors.get(name) is factor for name, factor in images.factors.items()):
        return images
    return Selection(images, np.arange(len(images)) if chosen is None else chosen, images.source, factors)


def _held_out(images: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    n = len(images)
    if n < 2:
        raise DataError(f"{images.source} holds {n} image; at least 2 are needed, one to train on and one held out")
    held = min(max(round(share * n), 1), n - 1)
    order = generator(seed, "images", "held out").permutation(n).astype(np.int64)
    return (
        Selection(images, np.sort(order[held:]), f"{images.source}, train", images.factors),
        Selection(images, np.sort(order[:held]), f"{images.source}, held out", images.factors),
    )


def _sample(images: ImageSet, limit: int | None, seed: int, part: str) -> ImageSet:
    """At most `limit` images. In the order of the source, which large files are read fastest in."""
    if limit is None or limit >= len(images):
        return images
    order = generator(seed, "images", "sample", part).permutation(len(images)).astype(np.int64)
    return Selection(images, np.sort(order[:limit]), images.source, images.factors)
