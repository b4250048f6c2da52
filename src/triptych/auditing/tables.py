"""Rows of the auditing panel as parquet tables and back.

Not here: what the rows are (`records`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from triptych.errors import DataError
from triptych.files import atomic_path

Row = TypeVar("Row")


def table_of(rows: Sequence[Any], schema: pa.Schema) -> pa.Table:
    """NamedTuples as a table."""
    columns = zip(*rows, strict=True) if rows else ([] for _ in schema)
    arrays = [pa.array(list(column), field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def rows_of(table: pa.Table, row: type[Row]) -> list[Row]:
    """The rows of a table as NamedTuples of its columns."""
    return [row(**fields) for fields in table.to_pylist()]


def write_rows(path: Path, tables: Sequence[pa.Table], schema: pa.Schema) -> None:
    """Some tables one behind the other, as one file."""
    whole = pa.concat_tables([schema.empty_table(), *(table.replace_schema_metadata(None) for table in tables)])
    with atomic_path(path) as temporary:
        pq.write_table(whole, temporary)


def read_rows(path: Path, row: type[Row]) -> list[Row]:
    """The rows of a file. Raises `DataError` where it cannot be read as such."""
    try:
        return rows_of(pq.read_table(path), row)
    except (pa.ArrowException, OSError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read ({reason}); remove it and run the audit again") from error
