import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triptych.data.tables import READERS, read_file, read_table
from triptych.errors import DataError, MissingInputError

ROWS: list[dict[str, Any]] = [{"instruction": 'Say hi,\n"please"', "input": "ünïcode \u2028 🙂"}, {"instruction": "b"}]


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def fields(rows: Sequence[Any]) -> list[dict[str, Any]]:
    return [dict(row.fields) for row in rows]


def test_json_lines(tmp_path: Path) -> None:
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n"
    rows = read_file(write(tmp_path / "x.jsonl", text))
    assert fields(rows) == ROWS
    assert [row.place for row in rows] == ["line 1", "line 2"]


def test_blank_lines_are_skipped_but_counted(tmp_path: Path) -> None:
    rows = read_file(write(tmp_path / "x.jsonl", '\n{"a": 1}\n \n{"a": 2}'))
    assert [row.place for row in rows] == ["line 2", "line 4"]


def test_a_json_list(tmp_path: Path) -> None:
    rows = read_file(write(tmp_path / "x.json", json.dumps(ROWS, indent=2)))
    assert fields(rows) == ROWS
    assert [row.place for row in rows] == ["row 1", "row 2"]


def test_json_lines_by_the_name_of_json(tmp_path: Path) -> None:
    assert fields(read_file(write(tmp_path / "x.json", '{"a": 1}\n{"a": 2}'))) == [{"a": 1}, {"a": 2}]


def test_csv(tmp_path: Path) -> None:
    text = 'instruction,input\r\n"Say hi,\n""please""",ünïcode\r\nb,\r\n'
    rows = read_file(write(tmp_path / "x.csv", text))
    assert fields(rows) == [
        {"instruction": 'Say hi,\n"please"', "input": "ünïcode"},
        {"instruction": "b", "input": None},
    ]
    # The first row takes two lines of the file.
    assert [row.place for row in rows] == ["line 3", "line 4"]


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    assert fields(read_file(tmp_path / "x.parquet")) == [ROWS[0], {"instruction": "b", "input": None}]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_byte_order_mark_is_accepted(tmp_path: Path, suffix: str) -> None:
    text = {".jsonl": '{"a": "1"}', ".json": '[{"a": "1"}]', ".csv": "a\n1\n"}[suffix]
    assert fields(read_file(write(tmp_path / f"x{suffix}", b"\xef\xbb\xbf" + text.encode()))) == [{"a": "1"}]


def test_the_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    assert len(read_file(write(tmp_path / "x.JSONL", "{}"))) == 1


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.jsonl", "", r"x.jsonl is empty: it has no rows"),
        ("x.jsonl", "\n \n", r"is empty"),
        ("x.json", " ", r"is empty"),
        ("x.json", "[]", r"is empty"),
        ("x.csv", "", r"is empty"),
        ("x.csv", "a,b\n", r"is empty"),
        ("x.jsonl", '{"a": 1}\n{"a": }', r"x.jsonl, line 2: not JSON \(Expecting value at column 7\)"),
        ("x.jsonl", "[1]", r"line 1: a JSON list where an object with named fields is expected"),
        ("x.jsonl", "null", r"line 1: a JSON null where"),
        ("x.json", '[{"a": 1},\n{"a" 2}]', r"x.json: not JSON \(Expecting ':' delimiter at line 2, column 6\)"),
        ("x.json", '{"a": 1}', r"holds one JSON object, not a list of objects"),
        ("x.json", '"text"', r"holds one JSON string"),
        ("x.json", "[1]", r"row 1: a JSON number where"),
        ("x.jsonl", "[" * 100_000, r"line 1: this JSON is too large or too deeply nested"),
        ("x.jsonl", '{"a": ' + "9" * 5000 + "}", r"line 1: this JSON is too large"),
        ("x.jsonl", b'{"a": 1}\n{"a": "\xff"}', r"x.jsonl, line 2: byte 16 is not UTF-8; save the file as UTF-8"),
        ("x.csv", b"\xef\xbb\xbfa\n\xff\n", r"line 2: byte 5 is not UTF-8"),
        ("x.json", "[1]".encode("utf-16"), r"line 1: byte 0 is not UTF-8"),
        ("x.csv", "a,b\n1,2,3\n", r"line 2: more fields than the header names"),
        ("x.csv", "a,a\n1,2\n", r"line 1: the header names a column twice"),
        ("x.csv", 'a\n"open', r"x.csv, after line 1: not CSV"),
        ("x.parquet", "no parquet", r"cannot be read as Parquet"),
        ("x.parquet", b"", r"cannot be read as Parquet"),
        ("x.txt", "text", r"files of type '.txt' are not read"),
        ("x", "text", r"files of type '' are not read"),
    ],
)
def test_damaged_files_are_one_sentence(tmp_path: Path, name: str, data: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_file(write(tmp_path / name, data))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_torn_parquet_file(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    data = (tmp_path / "x.parquet").read_bytes()
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_file(write(tmp_path / "x.parquet", data[: len(data) // 2]))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder; give a file in it"):
        read_file(tmp_path)


@pytest.mark.parametrize("source", ["/no/such/file", "./gone", "~/gone.jsonl", "prompts.jsonl", "a/b/c", ""])
def test_what_looks_like_a_path_and_is_not_there(source: str) -> None:
    with pytest.raises(MissingInputError, match="does not exist; check the path"):
        read_table(source)


@pytest.mark.parametrize("suffix", READERS)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_no_bytes_give_anything_but_rows_or_a_data_error(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = write(tmp_path / f"x{suffix}", data)
    try:
        rows = read_file(path)
    except DataError:
        return
    assert rows
