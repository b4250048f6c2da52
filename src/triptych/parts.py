"""Finished units of a stage that still runs, so that a kill costs one unit and not the stage.

Not here: the stage's own file, which takes the place of the parts when all units are done.
"""

import shutil
from pathlib import Path
from typing import final

import pyarrow as pa
import pyarrow.parquet as pq

from triptych.files import atomic_path

_UNIT = b"triptych.unit"


@final
class PartStore:
    """What a stage has finished while it still runs: a parquet file a unit (a prompt), kept over a kill.

    `key` names what the parts depend on (a configuration's hash): parts of another key are discarded. Unit ids are any
    texts; they are kept inside the files, which are numbered.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._folder = folder
        self._own = folder / key
        if folder.exists():
            for other in folder.iterdir():
                if other != self._own:
                    shutil.rmtree(other)
        self._parts = {_unit_of(path): path for path in sorted(self._own.glob("[0-9]*.parquet"))}

    def save(self, unit: str, table: pa.Table) -> None:
        """Keeps a finished unit; one that is kept already is replaced."""
        path = self._parts.get(unit, self._own / f"{len(self._parts):06d}.parquet")
        metadata = {**(table.schema.metadata or {}), _UNIT: unit.encode()}
        with atomic_path(path) as temporary:
            pq.write_table(table.replace_schema_metadata(metadata), temporary)
        self._parts[unit] = path

    def done_ids(self) -> frozenset[str]:
        return frozenset(self._parts)

    def read(self, unit: str) -> pa.Table:
        """The table of a finished unit, as it was saved."""
        return _without_unit(pq.read_table(self._parts[unit]))

    def read_all(self) -> dict[str, pa.Table]:
        """Unit id → its table, as it was saved."""
        return {unit: self.read(unit) for unit in self._parts}

    def discard(self) -> None:
        """Removes all parts: for when the stage has written its own file."""
        if self._folder.exists():
            shutil.rmtree(self._folder)
        self._parts = {}


def _unit_of(path: Path) -> str:
    unit: bytes = pq.read_schema(path).metadata[_UNIT]
    return unit.decode()


def _without_unit(table: pa.Table) -> pa.Table:
    rest = {key: value for key, value in table.schema.metadata.items() if key != _UNIT}
    return table.replace_schema_metadata(rest or None)
