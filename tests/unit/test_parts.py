import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa

from triptych.parts import PartStore


def table(*tokens: int) -> pa.Table:
    return pa.table({"token": pa.array(tokens, pa.int32())}, metadata={b"k": b"v"})


def test_finished_units_come_back_whatever_their_names(tmp_path: Path) -> None:
    store = PartStore(tmp_path / "parts", "key")
    units = {"alpaca-1": table(1, 2), "a/b: é\n" + "x" * 300: table(), "": table(3)}
    for unit, rows in units.items():
        store.save(unit, rows)
    again = PartStore(tmp_path / "parts", "key")
    assert again.done_ids() == frozenset(units)
    read = again.read_all()
    assert all(read[unit].equals(rows, check_metadata=True) for unit, rows in units.items())
    assert pa.concat_tables([read[unit] for unit in units]).num_rows == 3


def test_a_unit_saved_again_is_replaced(tmp_path: Path) -> None:
    store = PartStore(tmp_path / "parts", "key")
    store.save("a", table(1))
    store.save("b", table(2))
    store.save("a", table(3))
    again = PartStore(tmp_path / "parts", "key")
    assert again.read_all()["a"].equals(table(3))
    assert len(again.done_ids()) == 2


def test_parts_of_another_key_are_discarded(tmp_path: Path) -> None:
    PartStore(tmp_path / "parts", "old").save("a", table(1))
    assert PartStore(tmp_path / "parts", "new").done_ids() == frozenset()
    assert PartStore(tmp_path / "parts", "old").done_ids() == frozenset()


def test_discard_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    store = PartStore(tmp_path / "parts", "key")
    store.save("a", table(1))
    store.discard()
    store.discard()
    assert not (tmp_path / "parts").exists()
    assert store.done_ids() == frozenset()
    store.save("b", table(2))
    assert PartStore(tmp_path / "parts", "key").done_ids() == {"b"}


def test_a_kill_costs_the_unit_that_was_being_saved(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, pathlib\n"
        "import pyarrow as pa, pyarrow.parquet as pq\n"
        "from triptych.parts import PartStore\n"
        "store = PartStore(pathlib.Path(sys.argv[1]), 'key')\n"
        "store.save('a', pa.table({'x': [1]}))\n"
        "pq.write_table = lambda table, path: (path.write_bytes(b'PAR1'), os.kill(os.getpid(), signal.SIGKILL))\n"
        "store.save('b', pa.table({'x': [2]}))\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, tmp_path / "parts"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path / "parts" / "key")) == 2
    assert PartStore(tmp_path / "parts", "key").done_ids() == {"a"}
