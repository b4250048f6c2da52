"""Matrices of activations in files: which one is meant, what is read of it, and what is refused in one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from triptych.config import parse_config
from triptych.data.images import Factor
from triptych.dictionaries.matrices import (
    BLOCK_ROWS,
    Matrix,
    MatrixConfig,
    open_matrix,
    parse_matrix,
    read_labels,
    scan,
    take_rows,
)
from triptych.dictionaries.matrix_stores import RowNames, open_matrices
from triptych.dictionaries.plan import DictionariesConfig
from triptych.errors import ConfigError, DataError, MissingInputError

VALUES = np.arange(24, dtype=np.float32).reshape(8, 3)


def open_at(path: Path, key: str | None = None, name: str = "a") -> Matrix:
    return open_matrix(name, MatrixConfig(file=str(path), key=key))


def whole(matrix: Matrix) -> Any:
    return matrix.read(0, matrix.rows).double().numpy()


# --- NAME=FILE:KEY ----------------------------------------------------------------------------------------------------

SUFFIXES = (".safetensors", ".npy", ".parquet", ".NPY")
TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)


@given(
    name=TEXTS.filter(lambda text: "=" not in text and text.strip()),
    stem=TEXTS.filter(lambda text: "." not in text),
    suffix=st.sampled_from(SUFFIXES),
    key=st.none() | TEXTS,
)
def test_what_is_joined_is_parsed(name: str, stem: str, suffix: str, key: str | None) -> None:
    text = f"{name}={stem}{suffix}" + ("" if key is None else f":{key}")
    assert parse_matrix(text) == (name, MatrixConfig(file=stem + suffix, key=key))


@given(text=st.text(max_size=30))
def test_parsing_never_fails_in_another_way(text: str) -> None:
    try:
        name, config = parse_matrix(text)
    except ConfigError:
        name, equals, file = text.partition("=")
        assert not (equals and name.strip() and file.strip())
    else:
        assert f"{name}={config.file}" + ("" if config.key is None else f":{config.key}") == text


@pytest.mark.parametrize("text", ["", "a", "a=", "=a.npy", " =a.npy", "a.npy:key"])
def test_name_and_file_are_needed(text: str) -> None:
    with pytest.raises(ConfigError, match="NAME=FILE"):
        parse_matrix(text)


def test_colons_and_equals_signs_may_stand_in_paths_and_keys() -> None:
    assert parse_matrix("a=c:/x=1/acts.safetensors:layer:4=out") == (
        "a",
        MatrixConfig(file="c:/x=1/acts.safetensors", key="layer:4=out"),
    )


# --- Reading ----------------------------------------------------------------------------------------------------------


def write_safetensors(path: Path, values: Any) -> None:
    save_file({"a": torch.from_numpy(np.ascontiguousarray(values))}, path)


def write_npy(path: Path, values: Any) -> None:
    np.save(path, values)


def write_columns(path: Path, values: Any) -> None:
    columns = {f"f{at}": column for at, column in enumerate(values.T)}
    pq.write_table(pa.table({**columns, "id": [f"r{n}" for n in range(len(values))]}), path, row_group_size=3)


def write_lists(path: Path, values: Any) -> None:
    kind = pa.list_(pa.from_numpy_dtype(values.dtype))
    pq.write_table(pa.table({"emb": pa.array(list(values), kind), "id": range(len(values))}), path, row_group_size=3)


def write_fixed_lists(path: Path, values: Any) -> None:
    flat = pa.array(values.ravel())
    pq.write_table(pa.table({"emb": pa.FixedSizeListArray.from_arrays(flat, values.shape[1])}), path, row_group_size=3)


WRITERS: dict[str, tuple[str, Callable[[Path, Any], None]]] = {
    "safetensors": ("m.safetensors", write_safetensors),
    "npy": ("m.npy", write_npy),
    "columns": ("m.parquet", write_columns),
    "lists": ("m.parquet", write_lists),
    "fixed lists": ("m.parquet", write_fixed_lists),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_kind_of_file_gives_the_same_matrix(tmp_path: Path, kind: str, dtype: str) -> None:
    file, write = WRITERS[kind]
    write(tmp_path / file, VALUES.astype(dtype))
    matrix = open_at(tmp_path / file)
    assert (matrix.rows, matrix.width, matrix.dtype) == (8, 3, dtype)
    np.testing.assert_array_equal(whole(matrix), VALUES)
    # Across groups of rows.
    np.testing.assert_array_equal(matrix.read(2, 7).double().numpy(), VALUES[2:7])
    taken = take_rows(matrix, np.array([1, 5, 6]))
    assert taken.dtype == (torch.float16 if dtype == "float16" else torch.float32)
    np.testing.assert_array_equal(taken.double().numpy(), VALUES[[1, 5, 6]])


def test_bfloat16_is_read(tmp_path: Path) -> None:
    save_file({"a": torch.from_numpy(VALUES).bfloat16()}, tmp_path / "m.safetensors")
    matrix = open_at(tmp_path / "m.safetensors")
    assert matrix.dtype == "bfloat16"
    assert take_rows(matrix, np.array([0, 7])).dtype == torch.bfloat16
    assert scan(matrix) == scan(open_at(tmp_path / "m.safetensors"))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [">f4", "<f4"])
def test_arrays_of_any_order_are_read(tmp_path: Path, order: Any, dtype: str) -> None:
    np.save(tmp_path / "m.npy", np.asarray(VALUES, dtype=dtype, order=order))
    np.testing.assert_array_equal(whole(open_at(tmp_path / "m.npy")), VALUES)


def test_rows_are_taken_across_blocks(tmp_path: Path) -> None:
    values = np.arange(2 * BLOCK_ROWS + 10, dtype=np.float64)[:, None] * np.ones((1, 2))
    np.save(tmp_path / "m.npy", values)
    rows = np.array([0, BLOCK_ROWS - 1, BLOCK_ROWS, 2 * BLOCK_ROWS + 9])
    np.testing.assert_array_equal(take_rows(open_at(tmp_path / "m.npy"), rows).numpy(), values[rows])


def test_a_fingerprint_is_of_all_values(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", VALUES)
    before = scan(open_at(tmp_path / "m.npy"))
    for change in (VALUES.astype(np.float64), VALUES[:, :2], np.where(VALUES == 23, 24, VALUES)):
        np.save(tmp_path / "m.npy", change)
        assert scan(open_at(tmp_path / "m.npy")) != before


def test_which_tensor_is_meant(tmp_path: Path) -> None:
    a, b = torch.from_numpy(VALUES), torch.from_numpy(VALUES + 1)
    save_file({"a": a, "b": b, "label": torch.zeros(8, dtype=torch.int64)}, tmp_path / "two.safetensors")
    save_file({"b": b, "label": torch.zeros(8)}, tmp_path / "single.safetensors")
    assert open_at(tmp_path / "two.safetensors").key == "a"
    assert open_at(tmp_path / "two.safetensors", "b").key == "b"
    assert open_at(tmp_path / "single.safetensors").key == "b"
    with pytest.raises(DataError, match=r"a, b.*c=.*two.safetensors:KEY"):
        open_at(tmp_path / "two.safetensors", name="c")


# --- What is refused --------------------------------------------------------------------------------------------------


def damaged(path: Path, values: Any) -> None:
    write = write_npy if path.suffix == ".npy" else write_safetensors
    write(path, values)
    path.write_bytes(path.read_bytes()[:-8])


REFUSED: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "another key": ("m.safetensors:aa", lambda p: write_safetensors(p, VALUES), "did you mean 'a'"),
    "a key of an array": ("m.npy:a", lambda p: write_npy(p, VALUES), "leave ':a' out"),
    "one dimension": ("m.npy", lambda p: write_npy(p, VALUES[0]), "1-dimensional"),
    "three dimensions": ("m.safetensors", lambda p: write_safetensors(p, VALUES[None]), r"3-dimensional \(1 x 8 x 3\)"),
    "integers": ("m.npy", lambda p: write_npy(p, VALUES.astype(np.int32)), "holds int32"),
    "complex numbers": ("m.npy", lambda p: write_npy(p, VALUES.astype(np.complex64)), "holds complex64"),
    "one row": ("m.npy", lambda p: write_npy(p, VALUES[:1]), "has 1 row"),
    "no row": ("m.safetensors", lambda p: write_safetensors(p, VALUES[:0]), "has 0 row"),
    "no feature": ("m.safetensors", lambda p: write_safetensors(p, VALUES[:, :0]), "0 features"),
    "a cut array": ("m.npy", lambda p: damaged(p, VALUES), "m.npy cannot be read"),
    "cut safetensors": ("m.safetensors", lambda p: damaged(p, VALUES), "m.safetensors cannot be read"),
    "an empty file": ("m.npy", lambda p: p.write_bytes(b""), "m.npy cannot be read"),
    "no Parquet": ("m.parquet", lambda p: p.write_bytes(b"PAR1 and nothing"), "m.parquet cannot be read"),
    "objects": (
        "m.npy",
        lambda p: np.save(p, np.array([[{}], [1]], dtype=object), allow_pickle=True),
        "m.npy cannot be read",
    ),
    "a pickle": ("m.safetensors", lambda p: torch.save({"a": torch.ones(8, 3)}, p), "m.safetensors cannot be read"),
    "another suffix": ("m.pt", lambda p: torch.save({}, p), "'.pt' are not read"),
    "no suffix": ("m", lambda p: p.write_bytes(b"x"), "'' are not read"),
    "text columns": (
        "m.parquet",
        lambda p: pq.write_table(pa.table({"x": ["a", "b"], "n": [1, 2]}), p),
        r"no floating-point columns \(its columns: x \(string\), n \(int64\)\)",
    ),
    "a column of single values": (
        "m.parquet:x",
        lambda p: pq.write_table(pa.table({"x": [1.0, 2.0]}), p),
        "column 'x' of .* holds double",
    ),
    "two columns of lists": (
        "m.parquet",
        lambda p: pq.write_table(pa.table({"x": [[1.0], [2.0]], "y": [[1.0], [2.0]]}), p),
        "several matrices",
    ),
    "rows of other lengths": (
        "m.parquet",
        lambda p: pq.write_table(pa.table({"x": [[1.0], [2.0, 3.0]]}), p),
        "row 1 .* has 2 features and row 0 1",
    ),
    "a missing value": ("m.parquet", lambda p: pq.write_table(pa.table({"x": [1.0, None]}), p), "row 1 .*lacks"),
    "a missing value in a list": (
        "m.parquet",
        lambda p: pq.write_table(pa.table({"x": [[1.0, 2.0], [3.0, None]]}), p),
        "row 1 .*lacks",
    ),
    "not a number": ("m.npy", lambda p: write_npy(p, np.where(VALUES == 7, np.nan, VALUES)), "nan in row 2, feature 1"),
    "infinity": ("m.npy", lambda p: write_npy(p, np.where(VALUES == 3, np.inf, VALUES)), "inf in row 1, feature 0"),
    "beyond float32": (
        "m.npy",
        lambda p: write_npy(p, np.where(VALUES == 3, 1e300, VALUES.astype(np.float64))),
        r"1e\+300 in row 1, feature 0",
    ),
    "all rows alike": ("m.npy", lambda p: write_npy(p, np.tile(VALUES[0], (8, 1))), "nothing varies"),
    "a folder": ("m.npy", lambda p: p.mkdir(), "is a folder"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_matrix_is_refused(tmp_path: Path, name: str) -> None:
    file, write, says = REFUSED[name]
    config = parse_matrix(f"a={tmp_path / file}")[1]
    write(Path(config.file))
    with pytest.raises(DataError, match=says) as raised:
        scan(open_matrix("a", config))
    assert len(str(raised.value).splitlines()) == 1


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"nowhere\.npy does not exist"):
        open_at(tmp_path / "nowhere.npy")


# --- Labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [np.array([0, 1] * 4), np.array(["a", "b"] * 4)])
def test_labels_of_every_kind_of_file(tmp_path: Path, values: Any) -> None:
    expected = tuple(map(str, values.tolist()))
    np.save(tmp_path / "kind.npy", values)
    pq.write_table(pa.table({"kind": values, "x": VALUES[:, 0]}), tmp_path / "l.parquet")
    for file, key in (("kind.npy", None), ("l.parquet", None), ("l.parquet", "kind")):
        labels = read_labels(MatrixConfig(file=str(tmp_path / file), key=key), 8, "activations")
        assert (labels.name, labels.values) == ("kind", expected)


BAD_LABELS: dict[str, tuple[Any, str]] = {
    "too few": (np.array([0, 1] * 3), "are 6 and the activations have 8 rows"),
    "all different": (np.arange(8), "8 different values"),
    "all alike": (np.zeros(8, dtype=np.int64), "1 different value"),
    "numbers": (np.linspace(0, 1, 8), "8 of float64"),
    "a matrix": (np.zeros((8, 2), dtype=np.int64), "8 x 2"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_what_are_no_labels_is_refused(tmp_path: Path, name: str) -> None:
    values, says = BAD_LABELS[name]
    np.save(tmp_path / "l.npy", values)
    with pytest.raises(DataError, match=says):
        read_labels(MatrixConfig(file=str(tmp_path / "l.npy")), 8, "activations")


def test_labels_that_cannot_be_told_apart_are_named(tmp_path: Path) -> None:
    save_file({"x": torch.arange(8), "y": torch.arange(8), "m": torch.ones(8, 2)}, tmp_path / "l.safetensors")
    with pytest.raises(DataError, match="x, y"):
        read_labels(MatrixConfig(file=str(tmp_path / "l.safetensors")), 8, "activations")


# --- Which rows are for what ------------------------------------------------------------------------------------------


def config_of(folder: Path, **changes: Any) -> DictionariesConfig:
    if not (folder / "a.npy").is_file():
        draw = np.random.default_rng(0)
        np.save(folder / "a.npy", draw.normal(size=(100, 5)))
        np.save(folder / "b.npy", draw.normal(size=(100, 7)))
    matrices = {"train": {name: {"file": str(folder / f"{name}.npy")} for name in "ab"}}
    settings = {"matrices": matrices, "universal": {"coder": {"latents": 16, "sparsifier": {"name": "top_k", "k": 2}}}}
    return parse_config(DictionariesConfig, {**settings, **changes}, where="test")


def test_rows_are_trained_on_or_held_out(tmp_path: Path) -> None:
    opened = open_matrices(config_of(tmp_path), seed=3)
    train, test = opened.train.rows, opened.test.rows
    assert (len(train), len(test)) == (80, 20)
    assert sorted([*train, *test]) == list(range(100))
    assert (np.diff(train) > 0).all()
    again, other = (open_matrices(config_of(tmp_path), seed).test.rows for seed in (3, 4))
    assert again.tolist() == test.tolist() != other.tolist()


def test_a_limit_leaves_held_out_rows_as_they_are(tmp_path: Path) -> None:
    everything, some = (open_matrices(config_of(tmp_path, limit=limit), seed=0) for limit in (None, 30))
    assert len(some.train.rows) == 30
    assert set(some.train.rows) <= set(everything.train.rows)
    assert some.test.rows.tolist() == everything.test.rows.tolist()


def test_rows_have_names_with_their_labels() -> None:
    names = RowNames(3, {})
    assert (len(names), names[1], names[1:]) == (3, "row 1", ["row 1", "row 2"])
    kinds = Factor(("cat", "dog"), np.array([1, 0, 1], dtype=np.int32))
    assert RowNames(3, {"kind": kinds})[1] == "row 1, kind = cat"


CONFLICTS: dict[str, tuple[dict[str, Any], str]] = {
    "models": ({"models": {"r": {"source": "r"}}}, "models as well"),
    "images": ({"images": "photos"}, "images as well"),
    "backbones": ({"backbones": {}}, "backbones as well"),
    "a folder of activations": ({"activations": "here"}, "activations as well"),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_matrices_exclude_images(tmp_path: Path, name: str) -> None:
    changes, says = CONFLICTS[name]
    with pytest.raises(ConfigError, match=says):
        config_of(tmp_path, **changes)


def test_defaults_written_out_are_no_conflict(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert parse_config(DictionariesConfig, config.model_dump(mode="json"), where="config.yaml") == config
