"""From matrices in files to the activation stores of a run: which rows are held out, and what the files must fulfil.

    activations/{train,test}/<model>/   stores, whose `images` are numbers of rows in the file they come from
    activations/labels.parquet          a label a row of the file that held-out rows come from
    matrices.json                       which files these were (a list of MatrixRecord)

From here on there is one path: training and measures read stores, whatever filled them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, cast, final, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from triptych.config import config_hash
from triptych.data.image_files import Factor
from triptych.dictionaries.matrices import Labels, Matrix, open_matrix, read_labels, scan, take_rows
from triptych.dictionaries.plan import DictionariesConfig, MatricesConfig
from triptych.dictionaries.records import MATRICES, MatrixRecord
from triptych.dictionaries.store import (
    ShardInfo,
    StoredDtype,
    StoreInfo,
    shard_name,
    write_info,
    write_shard,
)
from triptych.errors import ConfigError, DataError, InputError, MissingInputError
from triptych.files import atomic_path, read_records_json, write_records_json
from triptych.progress import progress
from triptych.seeding import generator

SHARD_ROWS = 8192
LABELS = "labels.parquet"
MIN_HELD_OUT = 2
"""Rows: one has no spread, and R² none without it."""

IntArray = npt.NDArray[np.int64]


class Part(NamedTuple):
    """The rows to train on, or those held out."""

    matrices: Mapping[str, Matrix]
    rows: IntArray
    """Their numbers in the files, ascending."""


class Opened(NamedTuple):
    """The files of a study, their headers read and compared."""

    train: Part
    test: Part
    labels: Labels | None
    """A label a row of the files that `test` is of."""


def open_matrices(config: DictionariesConfig, seed: int) -> Opened:
    """The matrices of a study and which rows are for what; only headers and labels are read.

    Held out are the rows of `test`, else `test_share` of the rows, chosen by `seed` and disjoint from those for
    training. Raises an InputError where files do not fit together, or have fewer training rows than latents.
    """
    matrices = cast(MatricesConfig, config.matrices)
    train = {name: open_matrix(name, given) for name, given in matrices.train.items()}
    n_train = _require_same_rows(train)
    if matrices.test:
        test = {name: open_matrix(name, matrices.test[name]) for name in train}
        n_test = _require_same_rows(test)
        _require_same_widths(train, test)
        chosen, held_out = np.arange(n_train), np.arange(n_test)
    else:
        test, n_test = train, n_train
        order = generator(seed, "rows", "held out").permutation(n_train)
        n_held = max(round(config.test_share * n_train), MIN_HELD_OUT)
        chosen, held_out = np.sort(order[n_held:]), np.sort(order[:n_held])
    chosen = _sample(chosen, config.limit, seed, "train")
    held_out = _sample(held_out, config.test_limit, seed, "test")
    _require_enough(config, train, len(chosen))
    labels = None if matrices.labels is None else read_labels(matrices.labels, n_train, "activations")
    if matrices.test_labels is not None:
        labels = read_labels(matrices.test_labels, n_test, "held-out activations")
    return Opened(Part(train, chosen), Part(test, held_out), labels)


class Sizes(NamedTuple):
    """How much there is, by the headers of files."""

    train: int
    test: int
    widths: dict[str, int]


def header_sizes(config: DictionariesConfig, seed: int = 0) -> Sizes | None:
    """For estimates; None where files cannot be used, which is for others to say."""
    try:
        train, test, _ = open_matrices(config, seed)
    except InputError:
        return None
    return Sizes(len(train.rows), len(test.rows), {name: matrix.width for name, matrix in train.matrices.items()})


def _require_same_rows(matrices: Mapping[str, Matrix]) -> int:
    first, *others = matrices.values()
    for other in others:
        if other.rows != first.rows:
            raise DataError(
                f"{first.place} has {first.rows:,} rows and {other.place} {other.rows:,}; row n of all must be of the "
                "same thing: give files of the same rows"
            )
    return first.rows


def _require_same_widths(train: Mapping[str, Matrix], test: Mapping[str, Matrix]) -> None:
    for name, matrix in train.items():
        if matrix.width != test[name].width:
            raise DataError(
                f"{matrix.place} is {matrix.width:,} wide and held out {test[name].place} {test[name].width:,}; give "
                "activations of the same site"
            )


def _require_enough(config: DictionariesConfig, train: Mapping[str, Matrix], n_rows: int) -> None:
    latents = config.universal.coder.latents
    if n_rows < latents:
        places = ", ".join(matrix.place for matrix in train.values())
        raise ConfigError(
            f"{n_rows:,} rows to train on ({places}) are fewer than {latents:,} latents, each of which could learn a "
            f"row by heart; give more rows, or at most {n_rows:,} latents"
        )


def _sample(rows: IntArray, limit: int | None, seed: int, part: str) -> IntArray:
    if limit is None or limit >= len(rows):
        return rows.astype(np.int64)
    order = generator(seed, "rows", "sample", part).permutation(len(rows))
    return np.sort(rows[order[:limit]]).astype(np.int64)


# --- What the files are -----------------------------------------------------------------------------------------------


def check_matrices(config: DictionariesConfig, run_dir: Path, seed: int, *, is_copied: bool) -> list[MatrixRecord]:
    """What the files hold, once all of their values have been read.

    Raises an InputError for files and values that cannot be used, and where a file is not the one that the run in
    `run_dir` began with. A run that has its copies (`is_copied`) does not need the files any more.
    """
    path = run_dir / MATRICES
    before = read_records_json(path, MatrixRecord) if path.is_file() else []
    try:
        records = describe(open_matrices(config, seed))
    except MissingInputError:
        if is_copied:
            return before
        raise
    now = {(record.part, record.name): record for record in records}
    for record in before:
        if now[record.part, record.name].fingerprint != record.fingerprint:
            raise DataError(
                f"'{record.name}' ({record.file}) has changed since this run began; give the file as it was, or pass "
                "another --out, or --fresh to discard what the run holds"
            )
    return records


def describe(opened: Opened) -> list[MatrixRecord]:
    """One record a matrix, and one of labels. All values are read and checked."""
    parts: dict[Literal["train", "test"], Part] = {"train": opened.train}
    if opened.test.matrices is not opened.train.matrices:
        parts["test"] = opened.test
    records = [_described(split, matrix) for split, part in parts.items() for matrix in part.matrices.values()]
    if (labels := opened.labels) is not None:
        records.append(
            MatrixRecord(
                name=labels.name,
                part="labels",
                file=str(labels.file),
                key=labels.key,
                rows=len(labels.values),
                width=1,
                dtype="labels",
                fingerprint=config_hash({"values": labels.values}),
            )
        )
    return records


def _described(part: Literal["train", "test"], matrix: Matrix) -> MatrixRecord:
    return MatrixRecord(
        name=matrix.name,
        part=part,
        file=str(matrix.file),
        key=matrix.key,
        rows=matrix.rows,
        width=matrix.width,
        dtype=matrix.dtype,
        fingerprint=scan(matrix),
    )


# --- A run's own copies -----------------------------------------------------------------------------------------------


def copy_matrices(
    opened: Opened, records: Sequence[MatrixRecord], run_dir: Path, folder: Path, *, show_progress: bool = False
) -> None:
    """Stores in `folder/{train,test}/<model>`, labels and the list of files; each file is whole or absent.

    `records` are those that `check_matrices` made of the same files.
    """
    write_records_json(run_dir / MATRICES, records)
    if opened.labels is not None:
        with atomic_path(folder / LABELS) as temporary:
            pq.write_table(pa.table({opened.labels.name: pa.array(opened.labels.values, pa.string())}), temporary)
    fingerprints: dict[tuple[str, str], str] = {(record.part, record.name): record.fingerprint for record in records}
    parts = {"train": opened.train, "test": opened.test}
    total = sum(len(part.rows) * len(part.matrices) for part in parts.values())
    with progress(total, "rows", "activations", enabled=show_progress) as meter:
        for split, part in parts.items():
            for name, matrix in part.matrices.items():
                # Held-out rows of the same file are of the file to train on.
                fingerprint = fingerprints.get((split, name), fingerprints["train", name])
                info = _store_info(matrix, fingerprint, part.rows, split)
                for shard in range(info.n_shards):
                    rows = part.rows[shard * SHARD_ROWS : (shard + 1) * SHARD_ROWS]
                    path = folder / split / name / shard_name(shard)
                    write_shard(path, take_rows(matrix, rows), torch.from_numpy(rows))
                    info = info.model_copy(update={"shards": (*info.shards, ShardInfo(file=path.name, rows=len(rows)))})
                    meter.advance(len(rows))
                # Last: a store that has it is whole.
                write_info(folder / split / name, info.model_copy(update={"complete": True}))


def _store_info(matrix: Matrix, fingerprint: str, rows: IntArray, split: str) -> StoreInfo:
    return StoreInfo(
        model=matrix.name,
        spec=str(matrix.file),
        fingerprint=fingerprint,
        site=matrix.key or "",
        pooling="as given",
        grid=None,
        images=f"rows of matrices, {split}",
        images_fingerprint=hashlib.blake2b(rows.tobytes(), digest_size=16).hexdigest(),
        rows_per_image=1,
        width=matrix.width,
        dtype="float32" if matrix.dtype == "float64" else cast(StoredDtype, matrix.dtype),
        computed_in=matrix.dtype,
        shard_images=SHARD_ROWS,
        n_images=len(rows),
        skipped=(),
        shards=(),
        complete=False,
    )


def stored_factors(folder: Path) -> dict[str, Factor]:
    """The labels of a run's copies, by number of the row; empty where there are none."""
    if not (folder / LABELS).is_file():
        return {}
    table = pq.read_table(folder / LABELS)
    (name,) = table.column_names
    values, numbers = np.unique(np.array(table[name].to_pylist()), return_inverse=True)
    return {name: Factor(tuple(values.tolist()), numbers.astype(np.int32))}


@final
class RowNames(Sequence[str]):
    """`row 17, label = cat`: what a row is called, by its number in the file."""

    def __init__(self, n_rows: int, factors: Mapping[str, Factor]) -> None:
        self._n_rows, self._factors = n_rows, factors

    def __len__(self) -> int:
        return self._n_rows

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[at] for at in range(*row.indices(self._n_rows))]
        labels = [f", {name} = {factor.values[factor.of[row]]}" for name, factor in self._factors.items()]
        return f"row {row}{''.join(labels)}"
