import errno
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from triptych import files
from triptych.errors import DataError, MissingInputError, OutputError
from triptych.files import (
    append_json_line,
    atomic_path,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    drop_torn_line,
    make_folder,
    output_errors,
    read_json_lines,
    read_records_json,
    remove_stale,
    write_records_json,
)
from triptych.records import Estimate, Prompt

PROMPTS = [Prompt(id="1", instruction="Say hi.", answers=("hi",)), Prompt(id="é\n2", instruction="")]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


class TestAtomicWrites:
    def test_text_bytes_and_json(self, tmp_path: Path) -> None:
        atomic_write_text(tmp_path / "new" / "a.txt", "é\r\n")
        atomic_write_bytes(tmp_path / "new" / "b.bin", b"\x00")
        atomic_write_json(tmp_path / "new" / "c.json", {"p": PROMPTS[0], "x": None})
        assert (tmp_path / "new" / "a.txt").read_bytes() == "é\r\n".encode()
        assert (tmp_path / "new" / "b.bin").read_bytes() == b"\x00"
        assert '"instruction": "Say hi."' in (tmp_path / "new" / "c.json").read_text()
        assert names(tmp_path / "new") == ["a.txt", "b.bin", "c.json"]

    def test_the_old_file_stays_until_the_end_and_after_a_failure(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        path.write_text("old")
        with pytest.raises(RuntimeError, match="half-way"), atomic_path(path) as temporary:
            assert temporary.suffix == ".parquet"
            temporary.write_text("new")
            assert path.read_text() == "old"
            raise RuntimeError("half-way")
        assert path.read_text() == "old"
        assert names(tmp_path) == ["a.parquet"]

    def test_nan_is_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            atomic_write_json(tmp_path / "a.json", math.nan)
        assert names(tmp_path) == []

    def test_a_kill_leaves_one_content_or_the_other(self, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        atomic_write_text(path, "0" * 300_000)
        program = (
            "import sys, pathlib\n"
            "from triptych.files import atomic_write_text\n"
            "print('ready', flush=True)\n"
            "for i in range(10**9): atomic_write_text(pathlib.Path(sys.argv[1]), str(i % 10) * 300_000)\n"
        )
        for milliseconds in (5, 17, 43):
            with subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE) as writer:
                assert writer.stdout is not None
                writer.stdout.readline()
                time.sleep(milliseconds / 1000)
                writer.send_signal(signal.SIGKILL)
            content = path.read_text()
            assert len(content) == 300_000
            assert len(set(content)) == 1

    def test_what_a_killed_writer_left_is_removed(self, tmp_path: Path) -> None:
        path = tmp_path / "inner" / "a.txt"
        atomic_write_text(path, "old")
        program = (
            "import sys, os, signal, pathlib\n"
            "from triptych.files import atomic_path\n"
            "with atomic_path(pathlib.Path(sys.argv[1])) as temporary:\n"
            "    temporary.write_text('ne')\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        killed = subprocess.run([sys.executable, "-c", program, path], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert path.read_text() == "old"
        assert len(names(path.parent)) == 2
        remove_stale(tmp_path)
        assert names(path.parent) == ["a.txt"]

    def test_a_living_writers_file_is_not_stale(self, tmp_path: Path) -> None:
        # Our parent process lives as long as we do.
        partial = tmp_path / f"{files.TEMPORARY}{os.getppid()}-0-a.txt"
        partial.write_text("ne")
        remove_stale(tmp_path)
        assert partial.exists()


class TestProblems:
    @pytest.mark.parametrize(
        ("number", "expected"),
        [
            (
                errno.ENOSPC,
                "disk full while writing {}: free some space or pass another --out; what was finished is kept",
            ),
            (errno.EACCES, "no permission to write {}: change it or pass another --out"),
            (errno.EROFS, "{} lies on a read-only file system: pass another --out"),
        ],
    )
    def test_the_file_and_the_remedy_are_named(self, tmp_path: Path, number: int, expected: str) -> None:
        path = tmp_path / "a.txt"
        with pytest.raises(OutputError) as caught, atomic_path(path) as temporary:
            temporary.write_text("ne")
            raise OSError(number, os.strerror(number))
        assert str(caught.value) == expected.format(path)
        assert isinstance(caught.value.__cause__, OSError)
        assert names(tmp_path) == []

    def test_a_full_device(self) -> None:
        full = Path("/dev/full")
        if not full.exists():
            pytest.skip("this system has no /dev/full")
        with pytest.raises(OutputError, match="disk full while writing /dev/full"):
            append_json_line(full, {"event": "x"})

    def test_a_full_disk_told_by_a_library_in_its_own_error(self, tmp_path: Path) -> None:
        # safetensors: its message for ENOSPC, which is no OSError.
        with pytest.raises(OutputError, match="disk full"), output_errors(tmp_path / "m.safetensors"):
            raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    def test_a_file_where_a_folder_is_needed(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match="is a file where a folder is to be made"):
            make_folder(tmp_path / "file")
        with pytest.raises(OutputError, match="a part of it is a file and not a folder"):
            atomic_write_text(tmp_path / "file" / "inner" / "a.txt", "")

    def test_a_folder_where_a_file_is_needed(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").mkdir()
        with pytest.raises(OutputError, match="is a folder where a file is to be written"):
            atomic_write_text(tmp_path / "a.txt", "")

    def test_a_name_too_long(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="too long a name"):
            atomic_write_text(tmp_path / ("x" * 255), "")

    def test_errors_about_other_files_pass(self, tmp_path: Path) -> None:
        denied = PermissionError(errno.EACCES, "Permission denied", "/elsewhere/input.jsonl")
        with pytest.raises(PermissionError) as caught, atomic_path(tmp_path / "run" / "a.txt"):
            raise denied
        assert caught.value is denied
        with pytest.raises(FileNotFoundError), output_errors(tmp_path):
            (tmp_path / "none").read_text()


class TestLines:
    def test_a_line_holds_null_for_what_has_no_value(self, tmp_path: Path) -> None:
        path = tmp_path / "log.jsonl"
        append_json_line(path, {"loss": math.nan, "inner": [{"x": math.inf}, 1.5], "text": "é\n"})
        append_json_line(path, {"loss": 0.5})
        assert path.read_text().count("\n") == 2
        assert read_json_lines(path) == [{"loss": None, "inner": [{"x": None}, 1.5], "text": "é\n"}, {"loss": 0.5}]

    def test_a_torn_line_is_not_read_and_can_be_dropped(self, tmp_path: Path) -> None:
        path = tmp_path / "log.jsonl"
        path.write_text('{"a": 1}\n{"a": ')
        assert read_json_lines(path) == [{"a": 1}]
        drop_torn_line(path)
        append_json_line(path, {"a": 2})
        assert read_json_lines(path) == [{"a": 1}, {"a": 2}]

    def test_no_file_has_no_lines(self, tmp_path: Path) -> None:
        drop_torn_line(tmp_path / "none")
        assert read_json_lines(tmp_path / "none") == []

    def test_a_disk_that_fills_within_a_line_leaves_no_half(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "log.jsonl"
        append_json_line(path, {"a": 1})
        write, calls = os.write, []

        def two_bytes_then_full(descriptor: int, data: bytes) -> int:
            calls.append(data)
            if len(calls) > 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(descriptor, data[:2])

        monkeypatch.setattr(os, "write", two_bytes_then_full)
        with pytest.raises(OutputError, match="disk full"):
            append_json_line(path, {"a": 2})
        assert path.read_text() == '{"a": 1}\n'

    @pytest.mark.parametrize("line", ["[1]", "{", "1"])
    def test_a_line_that_is_no_object_is_named(self, tmp_path: Path, line: str) -> None:
        path = tmp_path / "log.jsonl"
        path.write_text(f'{{"a": 1}}\n{line}\n')
        with pytest.raises(DataError, match=r"log\.jsonl, line 2: not a JSON object"):
            read_json_lines(path)


class TestRecords:
    def test_round_trip(self, tmp_path: Path) -> None:
        path = tmp_path / "p.json"
        write_records_json(path, PROMPTS)
        assert read_records_json(path, Prompt) == PROMPTS
        # A bracket, a record a line, a bracket.
        assert len(path.read_text().splitlines()) == 4

    def test_none_at_all(self, tmp_path: Path) -> None:
        write_records_json(tmp_path / "p.json", [])
        assert read_records_json(tmp_path / "p.json", Prompt) == []

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ('[{"id": 1, "instruction": ""}]', "not a list of Prompt (at 0, id: Input should be a valid string)"),
            ('[{"id": "1", "instruction": "", "x": 1}]', "(at 0, x: Extra inputs are not permitted)"),
            ('{"id": "1"}', "not a list of Prompt (at the start"),
            ("[", "not a list of Prompt (at the start"),
        ],
    )
    def test_anything_else_is_refused(self, tmp_path: Path, text: str, expected: str) -> None:
        path = tmp_path / "p.json"
        path.write_text(text)
        with pytest.raises(DataError) as caught:
            read_records_json(path, Prompt)
        assert expected in str(caught.value)

    def test_nan_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "e.json"
        path.write_text('[{"mean": NaN, "low": null, "high": null, "n": 0, "n_clusters": 0, "method": ""}]')
        with pytest.raises(DataError, match="finite"):
            read_records_json(path, Estimate)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(MissingInputError, match="no such file"):
            read_records_json(tmp_path / "none.json", Prompt)
