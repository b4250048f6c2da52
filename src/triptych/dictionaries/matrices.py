"""Matrices of activations in files: `.safetensors`, `.npy` and `.parquet`, read block by block.

    matrix = open_matrix("cnn", MatrixConfig(file="acts.safetensors", key="cnn"))
    matrix.read(0, 8192)      # [8192, width], in the file's own dtype
    scan(matrix)              # a fingerprint of all values; DataError where they cannot be trained on

Which matrix of a file: `key`; else the one called like the model; else the only one that the file holds. A Parquet file
holds a matrix as a column of lists of floats, or as all of its floating-point columns side by side.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from triptych.config import Config
from triptych.dictionaries.store import DTYPES as STORED
from triptych.errors import ConfigError, DataError, InputError, MissingInputError, suggestion

BLOCK_ROWS = 8192
"""Read at once."""
DTYPES = {**STORED, "float64": torch.float64}
_SAFETENSORS_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_NAMED = re.compile(r"(?P<file>.+?\.(?:safetensors|npy|parquet))(?::(?P<key>.+))?", re.IGNORECASE | re.DOTALL)
_ARROW_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)
"""A damaged file can fail anywhere in Arrow."""


class MatrixConfig(Config):
    """A matrix in a file."""

    file: str = Field(min_length=1)
    """`.safetensors`, `.npy` or `.parquet`."""
    key: str | None = None
    """Which tensor or column; None: the one called like the model, else the only one."""


class Matrix(NamedTuple):
    """A matrix [rows, width] in a file."""

    name: str
    """What messages call it: the name of its model."""
    file: Path
    key: str | None
    rows: int
    width: int
    dtype: str
    """A key of `DTYPES`."""
    read: Callable[[int, int], Tensor]
    """Rows from start to stop, in the file's dtype."""

    @property
    def place(self) -> str:
        return f"'{self.name}' ({_place(self.file, self.key)})"


def parse_matrix(text: str, option: str = "--activations") -> tuple[str, MatrixConfig]:
    """`NAME=FILE` or `NAME=FILE:KEY`. FILE ends at its first known suffix, so that paths and keys may hold colons.

    Raises ConfigError where there is no name or no file.
    """
    name, equals, rest = text.partition("=")
    if not equals or not name.strip() or not rest.strip():
        raise ConfigError(f"{option} '{text}' is not of the form NAME=FILE or NAME=FILE:KEY")
    return name, parse_file(rest)


def parse_file(text: str) -> MatrixConfig:
    """`FILE` or `FILE:KEY`; what has no known suffix is a file's name as a whole, for `open_matrix` to refuse."""
    match = _NAMED.fullmatch(text)
    return MatrixConfig(file=text) if match is None else MatrixConfig(file=match["file"], key=match["key"])


def open_matrix(name: str, config: MatrixConfig) -> Matrix:
    """The matrix that `config` names; only its header is read.

    Raises MissingInputError or DataError naming the file, what is wrong with it, and what it holds instead.
    """
    path = _existing(name, config)
    matrix = _OPENERS[path.suffix.lower()](name, path, config.key)
    if matrix.rows < 2:
        rows = f"{matrix.rows} row{'' if matrix.rows == 1 else 's'}"
        raise DataError(f"{matrix.place} has {rows}; a dictionary needs many, at least as many as latents")
    if matrix.width < 1:
        raise DataError(f"{matrix.place} is 0 features wide; give one with at least one")
    return matrix


def scan(matrix: Matrix) -> str:
    """A fingerprint of dtype, shape and all values.

    Raises DataError for values that are not finite in float32, and for a matrix whose rows are all alike.
    """
    digest = hashlib.blake2b(f"{matrix.dtype} {matrix.rows} {matrix.width}".encode(), digest_size=16)
    low = torch.full((matrix.width,), torch.inf)
    high = -low
    for start, block in blocks(matrix):
        digest.update(block.contiguous().view(torch.uint8).numpy().tobytes())
        rows = block.float()
        _require_finite(matrix, start, block, rows)
        low, high = torch.minimum(low, rows.amin(0)), torch.maximum(high, rows.amax(0))
    if torch.equal(low, high):
        raise DataError(f"all {matrix.rows:,} rows of {matrix.place} are alike: nothing varies; check file and key")
    return digest.hexdigest()


def blocks(matrix: Matrix) -> Iterator[tuple[int, Float[Tensor, "n _"]]]:
    """All rows in order, each block with the number of its first row."""
    for start in range(0, matrix.rows, BLOCK_ROWS):
        yield start, matrix.read(start, min(start + BLOCK_ROWS, matrix.rows))


def take_rows(matrix: Matrix, rows: npt.NDArray[np.int64]) -> Tensor:
    """Some rows [n, width], float64 as float32; `rows` are numbers in ascending order."""
    dtype = STORED.get(matrix.dtype, torch.float32)
    taken = torch.empty((len(rows), matrix.width), dtype=dtype)
    for start in range(int(rows[0]) // BLOCK_ROWS * BLOCK_ROWS, int(rows[-1]) + 1, BLOCK_ROWS):
        begin, end = np.searchsorted(rows, (start, start + BLOCK_ROWS))
        if begin < end:
            block = matrix.read(start, min(start + BLOCK_ROWS, matrix.rows))
            taken[begin:end] = block[torch.from_numpy(rows[begin:end] - start)].to(dtype)
    return taken


def _require_finite(matrix: Matrix, start: int, block: Tensor, rows: Tensor) -> None:
    finite = torch.isfinite(rows)
    if bool(finite.all()):
        return
    row, column = (int(at) for at in (~finite).nonzero()[0])
    value = float(block[row, column])
    raise DataError(
        f"{matrix.place} has the value {value:g} in row {start + row:,}, feature {column:,} (both from 0), which is no "
        "finite number in float32; mend or leave out that row in all files"
    )


# --- Labels -----------------------------------------------------------------------------------------------------------


class Labels(NamedTuple):
    """One label a row."""

    name: str
    """Of what they say: the key, else the file's name."""
    file: Path
    key: str | None
    values: tuple[str, ...]


def read_labels(config: MatrixConfig, rows: int, whose: str) -> Labels:
    """The labels of all rows: integers or strings, as many as `whose` matrices have rows.

    Without a key: the tensor or column called `label` or `labels`, else the only one that can be labels. Raises
    MissingInputError or DataError naming the file and what is wrong with it.
    """
    path = _existing("labels", config)
    key, values = _LABEL_READERS[path.suffix.lower()](path, config.key)
    place = f"labels ({_place(path, key)})"
    if values.ndim != 1 or values.dtype.kind not in "iuU":
        shape = " x ".join(map(str, values.shape)) or "a single value"
        raise DataError(f"{place} are {shape} of {values.dtype}; give one integer or string a row")
    if len(values) != rows:
        raise DataError(f"{place} are {len(values):,} and the {whose} have {rows:,} rows; give one label a row")
    distinct = len(np.unique(values))
    if distinct < 2 or 2 * distinct > len(values):
        raise DataError(
            f"{place} have {distinct:,} different values in {len(values):,} rows, which sorts them into no kinds; give "
            "labels that several rows share, or leave them out"
        )
    return Labels(key or path.stem, path, key, tuple(map(str, values.tolist())))


def _labels_of_safetensors(path: Path, key: str | None) -> tuple[str | None, npt.NDArray[np.generic]]:
    with _readable(path), safe_open(path, framework="pt") as file:
        headers = {name: file.get_slice(name) for name in sorted(file.keys())}
        usable = [name for name, part in headers.items() if len(part.get_shape()) == 1 and part.get_dtype()[0] in "IU"]
        chosen = _choose_labels(path, key, list(headers), usable)
        values: npt.NDArray[np.generic] = file.get_tensor(chosen).numpy()
    return chosen, values


def _labels_of_npy(path: Path, key: str | None) -> tuple[str | None, npt.NDArray[np.generic]]:
    return None, _array(path, key)


def _labels_of_parquet(path: Path, key: str | None) -> tuple[str | None, npt.NDArray[np.generic]]:
    with _readable(path):
        schema = pq.read_schema(path)
        usable = [f.name for f in schema if pa.types.is_integer(f.type) or _is_text(f.type)]
        chosen = _choose_labels(path, key, schema.names, usable)
        column = pq.read_table(path, columns=[chosen])[chosen]
        if column.null_count:
            raise DataError(f"labels ({_place(path, chosen)}) lack {column.null_count:,} values; give one a row")
        values = np.array(column.cast(pa.string()).to_pylist()) if chosen in usable else column.to_numpy()
    return chosen, values


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _choose_labels(path: Path, key: str | None, names: Sequence[str], usable: Sequence[str]) -> str:
    if key is not None:
        return _require_key(path, key, names)
    usual = [name for name in ("label", "labels") if name in usable]
    if usual or len(usable) == 1:
        return (usual or [*usable])[0]
    listed = ", ".join(usable) or "none"
    raise DataError(f"{path} holds no single set of labels (integers or strings: {listed}); name one as FILE:KEY")


# --- Files ------------------------------------------------------------------------------------------------------------


def _existing(name: str, config: MatrixConfig) -> Path:
    path = Path(config.file).expanduser()
    if path.suffix.lower() not in _OPENERS:
        raise DataError(
            f"'{name}': files of type '{path.suffix}' are not read ({config.file}); give {', '.join(_OPENERS)}"
        )
    if path.is_dir():
        raise DataError(f"'{name}': {path} is a folder; give a file in it")
    if not path.is_file():
        raise MissingInputError(f"'{name}': {path} does not exist; check the path")
    return path


def _place(path: Path, key: str | None) -> str:
    return str(path) if key is None else f"{path}:{key}"


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what opening a damaged file raises into a sentence that names it."""
    try:
        yield
    except InputError:
        raise
    except (SafetensorError, EOFError, *_ARROW_ERRORS) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} cannot be read as {path.suffix.lower()} ({reason}); write it again") from error


def _require_key(path: Path, key: str, names: Sequence[str]) -> str:
    if key not in names:
        raise DataError(f"{path} has no '{key}'{suggestion(key, names) if names else '; it is empty'}")
    return key


def _choose(name: str, path: Path, key: str | None, names: Sequence[str], usable: Sequence[str]) -> str:
    """The key that is meant, among all names of a file and those that can be a matrix."""
    if key is not None:
        return _require_key(path, key, names)
    if name in names:
        return name
    if len(usable) == 1:
        return usable[0]
    what = f"several matrices ({', '.join(usable)})" if usable else f"no matrix (only {', '.join(names) or 'nothing'})"
    raise DataError(f"'{name}': {path} holds {what}; name one as {name}={path}:KEY")


def _matrix(
    name: str, path: Path, key: str | None, shape: Sequence[int], dtype: str, read: Callable[[int, int], Tensor]
) -> Matrix:
    place = f"'{name}' ({_place(path, key)})"
    if len(shape) != 2:
        sizes = " x ".join(map(str, shape)) or "a single value"
        raise DataError(f"{place} is {len(shape)}-dimensional ({sizes}); give a matrix, rows x features")
    if dtype not in DTYPES:
        raise DataError(f"{place} holds {dtype}; give activations as {', '.join(DTYPES)}")
    return Matrix(name, path, key, shape[0], shape[1], dtype, read)


def _open_safetensors(name: str, path: Path, key: str | None) -> Matrix:
    with _readable(path), safe_open(path, framework="pt") as file:
        headers = {tensor: file.get_slice(tensor) for tensor in sorted(file.keys())}
        usable = [tensor for tensor, part in headers.items() if len(part.get_shape()) == 2]
        chosen = _choose(name, path, key, list(headers), usable)
        shape, code = headers[chosen].get_shape(), headers[chosen].get_dtype()

    def read(start: int, stop: int) -> Tensor:
        with _readable(path), safe_open(path, framework="pt") as file:
            rows: Tensor = file.get_slice(chosen)[start:stop]
        return rows

    return _matrix(name, path, chosen, shape, _SAFETENSORS_DTYPES.get(code, code), read)


def _open_npy(name: str, path: Path, key: str | None) -> Matrix:
    array = _array(path, key)

    def read(start: int, stop: int) -> Tensor:
        # A copy in the machine's byte order: the map is read-only.
        return torch.from_numpy(np.array(array[start:stop], dtype=array.dtype.newbyteorder("="), order="C"))

    return _matrix(name, path, None, array.shape, array.dtype.name, read)


def _array(path: Path, key: str | None) -> npt.NDArray[np.generic]:
    """The array of a file, memory-mapped; pickles are never loaded."""
    if key is not None:
        raise DataError(f"{path} holds one array without a name; leave ':{key}' out")
    with _readable(path):
        array: npt.NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _open_parquet(name: str, path: Path, key: str | None) -> Matrix:
    with _readable(path):
        schema, metadata = pq.read_schema(path), pq.read_metadata(path)
        lists = [field.name for field in schema if _is_list(field.type)]
        if key is None and not lists:
            chosen = [field.name for field in schema if pa.types.is_floating(field.type)]
            kinds = [schema.field(column).type for column in chosen]
            if not chosen:
                listed = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
                raise DataError(f"'{name}': {path} has no floating-point columns (its columns: {listed}); give others")
        else:
            key = _choose(name, path, key, schema.names, lists)
            chosen, kind = [key], schema.field(key).type
            if not _is_list(kind):
                raise DataError(
                    f"'{name}': column '{key}' of {path} holds {kind}; give a column of lists of floats, or no KEY, "
                    "which takes all floating-point columns"
                )
            kinds = [kind.value_type]
        columns = _Columns(name, path, chosen, metadata)
        width = len(chosen) if key is None else columns.width()
    dtypes = {_ARROW_DTYPES.get(str(kind), str(kind)) for kind in kinds}
    widest = max(dtypes, key=lambda dtype: DTYPES[dtype].itemsize if dtype in DTYPES else math.inf)
    return _matrix(name, path, key, (metadata.num_rows, width), widest, columns.read)


_ARROW_DTYPES = {"halffloat": "float16", "float": "float32", "double": "float64"}


def _is_list(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list)


@final
class _Columns:
    """Columns of a Parquet file as a matrix: one group of rows at a time is in memory."""

    def __init__(self, name: str, path: Path, columns: Sequence[str], metadata: pq.FileMetaData) -> None:
        self._name, self._path, self._columns = name, path, [*columns]
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self._held: tuple[int, npt.NDArray[np.floating]] | None = None

    def width(self) -> int:
        return self._group(0).shape[1] if len(self._starts) > 1 else 0

    def read(self, start: int, stop: int) -> Tensor:
        pieces = []
        first = int(np.searchsorted(self._starts, start, "right")) - 1
        for group in range(first, len(self._starts) - 1):
            begin, end = int(self._starts[group]), int(self._starts[group + 1])
            if begin >= stop:
                break
            pieces.append(self._group(group)[max(start - begin, 0) : min(stop, end) - begin])
        return torch.from_numpy(np.concatenate(pieces))

    def _group(self, group: int) -> npt.NDArray[np.floating]:
        if self._held is None or self._held[0] != group:
            with _readable(self._path), pq.ParquetFile(self._path) as file:
                table = file.read_row_group(group, columns=self._columns)
                self._held = (group, self._matrix(table, int(self._starts[group])))
        return self._held[1]

    def _matrix(self, table: pa.Table, start: int) -> npt.NDArray[np.floating]:
        for column in table.columns:
            self._require_values(column, start)
        if not _is_list(table.schema.types[0]):
            return np.stack([column.to_numpy() for column in table.columns], axis=1)
        column = table.columns[0].combine_chunks()
        lengths = np.asarray(pc.list_value_length(column))
        if len(set(lengths.tolist())) > 1:
            row = int((lengths != lengths[0]).argmax())
            raise DataError(
                f"'{self._name}': row {start + row:,} of {self._path} has {lengths[row]} features and row {start:,} "
                f"{lengths[0]}; give as many in every row"
            )
        values = column.flatten()
        self._require_values(values, start, int(lengths[0]))
        return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(len(lengths), -1)

    def _require_values(self, values: pa.Array | pa.ChunkedArray, start: int, per_row: int = 1) -> None:
        if values.null_count:
            row = start + int(np.asarray(values.is_null()).argmax()) // per_row
            raise DataError(
                f"'{self._name}': row {row:,} (from 0) of {self._path} lacks a value; fill it, or leave the row out of "
                "all files"
            )


_OPENERS: dict[str, Callable[[str, Path, str | None], Matrix]] = {
    ".safetensors": _open_safetensors,
    ".npy": _open_npy,
    ".parquet": _open_parquet,
}
_LABEL_READERS: dict[str, Callable[[Path, str | None], tuple[str | None, npt.NDArray[np.generic]]]] = {
    ".safetensors": _labels_of_safetensors,
    ".npy": _labels_of_npy,
    ".parquet": _labels_of_parquet,
}
