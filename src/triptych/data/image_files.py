"""Sets of encoded images: folders, Parquet files and hub data sets, and how one image of them is decoded.

Nothing is decoded before it is read: a set holds paths, or bytes by the row group. Every way in which a source or an
image can be damaged is a `DataError` of one sentence that names the file or row.

Not here: splits and samples (`images`), drawn images (`starter_images`).
"""

import hashlib
import io
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, final, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps, UnidentifiedImageError

from triptych.errors import DataError

UInt8Image: TypeAlias = npt.NDArray[np.uint8]
"""[height, width, 3] RGB."""
Fetch: TypeAlias = Callable[[int], bytes]
"""The encoded image of a number."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
IMAGE_COLUMNS = ("img", "image")
LABEL = "label"

MAX_PIXELS = 1 << 26
"""Of an image that is decoded (8192 × 8192): a few kilobytes may claim to be many gigabytes."""
MAX_CACHED_BYTES = 1 << 30
"""Of encoded images that a Parquet file keeps in memory."""

_ORIENTATION = 0x0112
_SAMPLES = 64
"""Places of a large source whose bytes go into its fingerprint."""
_ARROW_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)
"""A damaged file can fail anywhere in Arrow, also on strings that are not UTF-8."""


class Factor(NamedTuple):
    """One labelled property of images: `label` of CIFAR-10; `shape`, `hue`, ... of the starter set."""

    values: tuple[str, ...]
    """Names of its values."""
    of: npt.NDArray[np.int32]
    """[images], the number of each image's value; -1 where it is not given."""


@runtime_checkable
class ImageSet(Protocol):
    """Images by number, each decoded or drawn when it is read."""

    @property
    def source(self) -> str:
        """What the user wrote, with the split."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash that differs where the images differ."""
        ...

    @property
    def ids(self) -> Sequence[str]:
        """Unique and stable, for messages and files."""
        ...

    @property
    def factors(self) -> Mapping[str, Factor]:
        """Empty where images are not labelled."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> UInt8Image:
        """One image; raises `DataError` naming it where it cannot be decoded, `IndexError` beyond the last."""
        ...


@final
@dataclass(frozen=True, repr=False, eq=False)
class EncodedImages:
    """An `ImageSet` of files or rows."""

    source: str
    fingerprint: str
    ids: Sequence[str]
    factors: Mapping[str, Factor]
    undeclared: frozenset[str]
    """Factors that are columns of texts or numbers like any other: they may be ids or captions."""
    fetch: Fetch
    place: Callable[[int], str]
    """How messages call an image."""

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> UInt8Image:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)} images")
        place = self.place(index)
        try:
            data = self.fetch(index)
        except OSError as error:
            raise DataError(f"{place} cannot be read ({reason(error)})") from error
        return decode_image(data, place)


def decode_image(data: bytes, place: str) -> UInt8Image:
    """An encoded image as RGB, turned as its EXIF orientation says, transparent parts on white.

    Grey and 16-bit values become three of 8 bits (v / 257), palettes, CMYK and YCbCr the colours they stand for;
    of an animation the first picture is read. Raises `DataError` beginning with `place` where the image is damaged, of
    another format than `FORMATS`, or larger than `MAX_PIXELS`.
    """
    if not data:
        raise DataError(f"{place} is empty: it holds no image; replace or remove it")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            return np.array(_as_rgb(_upright(image)))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{place} has more than {MAX_PIXELS:,} pixels; scale it down or remove it") from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"{place} is no image of a known format ({', '.join(FORMATS)}); replace or remove it"
        ) from error
    except Exception as error:
        raise DataError(f"{place} is damaged: {reason(error)}; replace or remove it") from error


def reason(error: Exception) -> str:
    """The first line of an error, for use in a sentence."""
    said = error.strerror if isinstance(error, OSError) else None
    return (said or str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".: ")


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
    except Exception:  # noqa: BLE001  (damaged notes about a picture are no damage to it; what they raise is not documented)
        turned = False
    return ImageOps.exif_transpose(image) if turned else image


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bits(np.asarray(image)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    if image.has_transparency_data:
        # Mode La cannot be converted to RGBA in one step.
        layers = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), layers).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bits(grey: npt.NDArray[Any]) -> Image.Image:
    if grey.min() < 0 or grey.max() > 0xFFFF:
        raise ValueError("its pixels have more than 16 bits; save it with 8 or 16 bits")
    return Image.fromarray(((grey.astype(np.uint32) + 128) // 257).astype(np.uint8))


def read_image_folder(source: str, folder: Path, root: Path) -> EncodedImages:
    """The images of class folders (`cat/1.png`, at any depth), whose names are the factor `label`; or a flat folder's.

    Images beside class folders have no label. Hidden files and those of other suffixes are passed over. Ids are paths
    below `root`. The fingerprint is of these paths, sizes and times of change, not of contents.
    """
    entries = sorted(folder.iterdir())
    names = _visible(path.name for path in entries if path.is_dir())
    files: list[tuple[Path, str | None]] = [(path, name) for name in names for path in _images_below(folder / name)]
    classes = sorted({name for _, name in files if name})
    files += [(path, None) for path in entries if path.is_file() and _is_image(path.name)]
    if not files:
        raise DataError(f"{folder} holds no images ({', '.join(SUFFIXES)}){_instead(folder)}")
    paths = [path for path, _ in files]
    ids = tuple(path.relative_to(root).as_posix() for path in paths)
    return EncodedImages(
        source,
        _digest(_stamp(one, path) for one, path in zip(ids, paths, strict=True)),
        ids,
        {LABEL: _named([name for _, name in files], classes)} if classes else {},
        frozenset(),
        lambda index: paths[index].read_bytes(),
        lambda index: str(paths[index]),
    )


def _visible(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.startswith(".") and name != "__MACOSX"]


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def _images_below(folder: Path) -> list[Path]:
    found = []
    for where, folders, names in os.walk(folder):
        folders[:] = _visible(folders)
        found += [Path(where, name) for name in names if _is_image(name)]
    return sorted(found)


def _instead(folder: Path) -> str:
    tables = sorted(path.name for path in folder.iterdir() if path.suffix.lower() == ".parquet")
    return f"; give the file {tables[0]} in it" if tables else "; give a folder of images, or of one folder a class"


def _stamp(name: str, path: Path) -> bytes:
    try:
        stat = path.stat()
    except OSError:  # such as a link to nowhere: an error only if the image is asked for
        return f"{name}\n".encode("utf-8", "surrogateescape")
    return f"{name}\t{stat.st_size}\t{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape")


def read_image_parquet(source: str, path: Path) -> EncodedImages:
    """The images of a Parquet file in the image schema of `datasets`: a column of {bytes, path}, labels beside it.

    Labels are read at once, images a row group at a time and up to `MAX_CACHED_BYTES` kept; reading in order is fast. A
    row without bytes names a file, beside the Parquet file. The fingerprint is of the file's size, its footer and 64
    blocks of 4 KiB spread over it.
    """
    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            if metadata.num_rows == 0:
                raise DataError(f"{path} is empty: it has no rows")
            column = _image_column(schema, str(path))
            factors = _factors(file.read(_label_columns(schema)), schema)
    except _ARROW_ERRORS as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as Parquet ({reason(error)})") from error
    groups = _RowGroups(path, column, [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)])
    return EncodedImages(
        source,
        _digest(_parquet_sample(path)),
        _row_ids(metadata.num_rows),
        factors,
        frozenset(factors).difference(_declared_names(schema)),
        groups.fetch,
        lambda index: f"{path}, row {index + 1}",
    )


@final
class _RowGroups:
    """The image column of a Parquet file, of which the row groups that were read last are kept. Thread-safe."""

    def __init__(self, path: Path, column: str, rows: Sequence[int]) -> None:
        self._path = path
        self._column = column
        self._starts = np.cumsum([0, *rows])
        self._kept: dict[int, Any] = {}
        self._lock = threading.Lock()

    def fetch(self, index: int) -> bytes:
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        try:
            with self._lock:
                value = self._group(group)[index - int(self._starts[group])].as_py()
        except _ARROW_ERRORS as error:
            raise DataError(
                f"{self._path}, row {index + 1}: its row group {group + 1} cannot be read ({reason(error)})"
            ) from error
        return _encoded(value, f"{self._path}, row {index + 1}", self._path.parent)

    def _group(self, group: int) -> Any:
        column = self._kept.pop(group, None)
        if column is None:
            with pq.ParquetFile(self._path) as file:
                column = file.read_row_group(group, columns=[self._column]).column(0)
            while self._kept and sum(kept.nbytes for kept in self._kept.values()) + column.nbytes > MAX_CACHED_BYTES:
                del self._kept[next(iter(self._kept))]
        # The last in the dictionary is the one that was asked for last.
        self._kept[group] = column
        return column


def _encoded(value: Any, place: str, folder: Path) -> bytes:
    """The bytes of a value of an image column: {bytes, path} or bytes; of a path alone, those of the file."""
    if isinstance(value, bytes):
        return value
    data, path = (value or {}).get("bytes"), (value or {}).get("path")
    if isinstance(data, bytes):
        return data
    if not path:
        raise DataError(f"{place} has no image; fill it in or remove the row")
    try:
        return Path(folder, path).read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"{place} names the file {str(path)[:200]!r}, which cannot be read; store its bytes") from error


def _image_column(schema: pa.Schema, source: str) -> str:
    found = [name for name in schema.names if _is_image_type(schema.field(name).type)]
    named = [name for name in IMAGE_COLUMNS if name in found]
    if not named and len(found) != 1:
        why = f"has several ({', '.join(found)})" if found else f"has only {', '.join(schema.names) or 'none'}"
        raise DataError(f"{source}: no column 'img' or 'image' of images (it {why}); name the column so")
    return (named or found)[0]


def _is_image_type(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        names = {kind.field(k).name for k in range(kind.num_fields)}
        return "bytes" in names and _is_image_type(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _parquet_sample(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    yield size.to_bytes(8, "little")
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        file.seek(-8 - int.from_bytes(file.read(4), "little"), os.SEEK_END)
        yield file.read()
        for start in np.linspace(0, size, _SAMPLES, endpoint=False).astype(np.int64):
            file.seek(int(start))
            yield file.read(4096)


def read_hub_split(source: str, split: str, dataset: Any) -> EncodedImages:
    """The images of one split of a `datasets.Dataset`, not decoded by that library.

    The fingerprint is of the names of set and split, the columns, the number of rows, the labels, and the bytes of 64
    images spread over it.
    """
    place = f"{source}, {split}"
    if len(dataset) == 0:
        raise DataError(f"data set {source}: its split '{split}' is empty")
    schema = dataset.features.arrow_schema
    column = _image_column(schema, f"data set {place}")
    factors = _factors(dataset.select_columns(_label_columns(schema)).with_format("arrow")[:], schema)
    images = dataset.select_columns([column]).with_format(None)

    def fetch(index: int) -> bytes:
        return _encoded(images[index][column], f"{place}, row {index + 1}", Path())

    head = f"{place}:{len(dataset)}:{','.join(schema.names)}".encode()
    labels = [name.encode() + factor.of.tobytes() for name, factor in factors.items()]
    spread = np.unique(np.linspace(0, len(dataset) - 1, _SAMPLES).astype(np.int64))
    return EncodedImages(
        place,
        _digest([head, *labels, *(fetch(int(index)) for index in spread)]),
        _row_ids(len(dataset)),
        factors,
        frozenset(factors).difference(_declared_names(schema)),
        fetch,
        lambda index: f"{place}, row {index + 1}",
    )


def _label_columns(schema: pa.Schema) -> list[str]:
    return [name for name in schema.names if _is_label_type(schema.field(name).type)]


def _is_label_type(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_label_type(kind.value_type)
    fitting = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string)
    return any(fits(kind) for fits in fitting)


def _declared_names(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """Column → names of its values, of columns that `datasets` knows as a ClassLabel."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: tuple(kind["names"]) for name, kind in features.items() if kind.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _factors(table: pa.Table, schema: pa.Schema) -> dict[str, Factor]:
    declared = _declared_names(schema)
    return {name: _factor(table.column(name).to_pylist(), declared.get(name)) for name in table.column_names}


def _factor(values: Sequence[Any], names: Sequence[str] | None) -> Factor:
    """Of class numbers with their names, else of the values in order. None and numbers below 0 are not given."""
    if names is not None:
        numbers = np.array([-1 if value is None else value for value in values], dtype=np.int64)
        return Factor(tuple(names), np.where((numbers < len(names)) & (numbers >= 0), numbers, -1).astype(np.int32))
    given = [value if isinstance(value, str) or (value is not None and value >= 0) else None for value in values]
    known = sorted({value for value in given if value is not None})
    return _named([None if value is None else str(value) for value in given], [str(value) for value in known])


def _named(values: Sequence[str | None], names: Sequence[str]) -> Factor:
    number_of = {name: number for number, name in enumerate(names)}
    return Factor(
        tuple(names), np.array([-1 if value is None else number_of[value] for value in values], dtype=np.int32)
    )


def _row_ids(rows: int) -> tuple[str, ...]:
    return tuple(f"row-{number:06d}" for number in range(1, rows + 1))


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
