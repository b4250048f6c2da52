import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from triptych.errors import ModelError, OutputError
from triptych.models import cache
from triptych.models.cache import MARKER, cache_root, ensure_folder, is_verified

CONTENT = {"large.bin": b"x" * 1000, "small.json": b"{}"}


@pytest.fixture(autouse=True)
def _small_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    # So that large.bin counts as large, as the weights do.
    monkeypatch.setattr(cache, "ALWAYS_HASHED_BYTES", 100)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models" / "thing-1"


class Builder:
    """Writes CONTENT and counts how often it was asked to."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        for name, data in CONTENT.items():
            (folder / name).write_bytes(data)


def test_a_folder_is_built_once(folder: Path) -> None:
    build = Builder()
    assert not is_verified(folder)
    assert ensure_folder(folder, build) == folder
    assert ensure_folder(folder, build) == folder
    assert build.calls == 1
    assert {name: (folder / name).read_bytes() for name in CONTENT} == CONTENT


def flip_a_byte(path: Path) -> None:
    """Same size, new content, new modification time: what a bad disk or an interrupted copy leaves."""
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


def flip_a_byte_unnoticed(path: Path) -> None:
    stat = path.stat()
    flip_a_byte(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def write_marker(folder: Path, text: str) -> None:
    (folder / MARKER).write_text(text, encoding="utf-8")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "large file truncated": lambda folder: os.truncate(folder / "large.bin", 999),
    "large file flipped": lambda folder: flip_a_byte(folder / "large.bin"),
    "small file flipped, time kept": lambda folder: flip_a_byte_unnoticed(folder / "small.json"),
    "file missing": lambda folder: (folder / "small.json").unlink(),
    "marker missing": lambda folder: (folder / MARKER).unlink(),
    "marker empty": lambda folder: write_marker(folder, ""),
    "marker of no files": lambda folder: write_marker(folder, '{"files": {}}'),
    "marker of another kind": lambda folder: write_marker(folder, '{"files": [1]}'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_folder_is_built_again(folder: Path, damage: Callable[[Path], None]) -> None:
    build = Builder()
    ensure_folder(folder, build)
    damage(folder)
    assert not is_verified(folder)
    ensure_folder(folder, build)
    assert build.calls == 2
    assert is_verified(folder)
    assert {name: (folder / name).read_bytes() for name in CONTENT} == CONTENT


def test_a_copied_cache_is_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_folder(folder, Builder())
    os.utime(folder / "large.bin", ns=(1, 1))
    hashed: list[str] = []
    plain = cache._sha256

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return plain(path)

    monkeypatch.setattr(cache, "_sha256", counted)
    assert is_verified(folder)
    assert is_verified(folder)
    # The small file at each use, the touched large one at the first alone.
    assert sorted(hashed) == ["large.bin", "small.json", "small.json"]


def test_a_failed_build_leaves_nothing(folder: Path) -> None:
    def fail(new: Path) -> None:
        (new / "half").write_bytes(b"x")
        raise ModelError("no network")

    with pytest.raises(ModelError, match="no network"):
        ensure_folder(folder, fail)
    assert [path.name for path in folder.parent.iterdir()] == [".thing-1.lock"]


def test_leftovers_of_a_killed_build_are_removed(folder: Path) -> None:
    leftover = folder.parent / ".thing-1.new-killed"
    leftover.mkdir(parents=True)
    (leftover / "half").write_bytes(b"x")
    ensure_folder(folder, Builder())
    assert not leftover.exists()


def test_two_at_once_build_once(folder: Path) -> None:
    both_started = threading.Barrier(2)
    build = Builder()

    def ensure() -> Path:
        both_started.wait(timeout=10)
        return ensure_folder(folder, build)

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(ensure) for _ in range(2)]
    assert [future.result() for future in futures] == [folder, folder]
    assert build.calls == 1


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where a folder should be", encoding="utf-8")
    with pytest.raises(
        OutputError, match=r"cache folder .*models: .*set TRIPTYCH_CACHE to a folder that can be written"
    ):
        ensure_folder(tmp_path / "models" / "thing-1", Builder())


def test_files_are_readable_by_whoever_may_read_the_folder(folder: Path) -> None:
    def build(new: Path) -> None:
        Builder()(new)
        (new / "large.bin").chmod(0o600)
        new.chmod(0o755)

    ensure_folder(folder, build)
    assert (folder / "large.bin").stat().st_mode & 0o777 == 0o644


def test_the_cache_root_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.setenv("TRIPTYCH_CACHE", "~/elsewhere")
    assert cache_root() == Path.home() / "elsewhere"
    monkeypatch.delenv("TRIPTYCH_CACHE")
    assert cache_root() == Path.home() / ".cache" / "triptych"
