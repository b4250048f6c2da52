"""The run directory: a manifest, stages that are done once, logs, and one writer at a time.

    with RunDirectory.open(out, command=argv, config=config.model_dump(mode="json"), seed=0) as run:
        if not run.is_done("decoding"):
            with run.stage("decoding"):
                ...

A killed run is opened again with the same call: stages that are done stay, one that was running is interrupted and
starts over from what it kept (`PartStore`). Not here: what the stages do, and the layout of their files.
"""

import json
import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, final

import psutil
from pydantic import ValidationError

from triptych.config import canonical_json, config_hash, dump_yaml, to_plain
from triptych.environment import GitState, device_description, git_state, package_versions
from triptych.errors import ConfigError, MissingInputError, OutputError
from triptych.files import (
    TEMPORARY,
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
from triptych.memory import MemoryWatch, release
from triptych.parts import PartStore
from triptych.records import Record

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "Manifest",
    "PartStore",
    "RunDirectory",
    "StageRecord",
    "atomic_path",
    "atomic_write_bytes",
    "atomic_write_json",
    "atomic_write_text",
    "output_errors",
    "read_json_lines",
    "read_manifest",
    "read_metrics",
    "read_records_json",
    "write_records_json",
]

MANIFEST = "manifest.json"
CONFIG = "config.yaml"
SPLIT = "split.json"
LOG = "log.jsonl"
METRICS = "metrics.jsonl"
LOCK = ".lock"

StageStatus = Literal["running", "done", "failed", "interrupted"]


class StageRecord(Record):
    """How far a stage is. `seconds` adds up over resumed attempts (a killed attempt could not tell its own)."""

    status: StageStatus
    started: str
    seconds: float
    error: str | None = None
    peak_memory_bytes: int | None = None
    """Largest resident size of the process that was seen during the stage, of all its attempts; see `MemoryWatch`."""


class Manifest(Record):
    """`manifest.json`: all that is needed to repeat the run, and what is finished. Times are UTC, ISO 8601."""

    run_id: str
    created: str
    command: tuple[str, ...]
    config: dict[str, Any]
    config_hash: str
    seed: int
    python: str
    packages: dict[str, str]
    git: GitState | None
    device: str
    stages: dict[str, StageRecord]


@final
class RunDirectory:
    """A run directory that this process alone writes; made by `open`, released by `close` or a `with` block."""

    def __init__(self, path: Path, manifest: Manifest, lock: "_Lock") -> None:
        self.path = path
        self.manifest = manifest
        self._lock = lock

    @classmethod
    def open(
        cls, out: Path, *, command: Sequence[str], config: Mapping[str, Any], seed: int, fresh: bool = False
    ) -> "RunDirectory":
        """Makes the run directory, or goes on with the run that it holds.

        `fresh` discards what it holds. Raises ConfigError where it holds a run of another configuration or seed,
        OutputError where it is in use, cannot be written, or holds something that is no run of ours.
        """
        make_folder(out)
        _require_ours(out)
        lock = _Lock(out)
        try:
            if fresh:
                _empty(out)
            remove_stale(out)
            manifest = _manifest_for(out, command, config, seed)
            drop_torn_line(out / LOG)
            drop_torn_line(out / METRICS)
            run = cls(out, manifest, lock)
            run._save(manifest)
            atomic_write_text(out / CONFIG, dump_yaml(manifest.config))
            run.log("opened", command=list(command), packages=manifest.packages, git=manifest.git)
        except BaseException:
            lock.release()
            raise
        return run

    def is_done(self, stage: str) -> bool:
        record = self.manifest.stages.get(stage)
        return record is not None and record.status == "done"

    def reopen(self, *stages: str) -> None:
        """Forgets that stages are done, because what they were made from is about to change."""
        kept = {name: record for name, record in self.manifest.stages.items() if name not in stages}
        self._save(self.manifest.model_copy(update={"stages": kept}))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Records in the manifest that a stage is running, then that it is done or failed, its seconds and its memory.

        Whether a stage that is done is worth repeating is the caller's to ask (`is_done`).
        """
        before = self.manifest.stages.get(name)
        earlier = None if before is None or before.status == "done" else before
        started, clock, memory = _now(), time.monotonic(), MemoryWatch()

        def record(status: StageStatus, error: BaseException | None = None) -> None:
            entry = StageRecord(
                status=status,
                started=started,
                seconds=round((earlier.seconds if earlier else 0.0) + time.monotonic() - clock, 3),
                error=None if error is None else f"{type(error).__name__}: {error}",
                peak_memory_bytes=max(memory.peak, (earlier.peak_memory_bytes if earlier else None) or 0),
            )
            self._save(self.manifest.model_copy(update={"stages": {**self.manifest.stages, name: entry}}))
            self.log("stage", name=name, **entry.model_dump(exclude={"started"}))

        with memory:
            record("running")
            try:
                yield
            except BaseException as error:
                # What failed may be the disk itself; the first error is the one to tell.
                with suppress(OutputError):
                    record("failed" if isinstance(error, Exception) else "interrupted", error)
                raise
            record("done")

    def work_through(self, stages: Mapping[str, Callable[[], None]]) -> bool:
        """Runs the stages that are not done yet, in order; whether there were any."""
        waiting = [name for name in stages if not self.is_done(name)]
        for name in waiting:
            release()
            with self.stage(name):
                stages[name]()
        return bool(waiting)

    def log(self, event: str, **fields: Any) -> None:
        """One line of `log.jsonl`: `{"time", "event", …}`."""
        append_json_line(self.path / LOG, {"time": _now(), "event": event, **fields})

    def metric(self, panel: str, step: int, **values: float | None) -> None:
        """One line of `metrics.jsonl`: `{"panel", "step", name: value, …}`; what has no value is null."""
        numbers = {name: None if value is None else float(value) for name, value in values.items()}
        append_json_line(self.path / METRICS, {"panel": panel, "step": step, **numbers})

    def abandon_if_empty(self) -> None:
        """Removes what `open` wrote where no stage has left a file or is done, so that the folder is free again."""
        own = {MANIFEST, CONFIG, SPLIT, LOG, METRICS, LOCK}
        if any(self.is_done(stage) for stage in self.manifest.stages) or {p.name for p in self.path.iterdir()} - own:
            return
        self.close()
        for name in own:
            (self.path / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()

    def close(self) -> None:
        self._lock.release()

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _save(self, manifest: Manifest) -> None:
        atomic_write_json(self.path / MANIFEST, manifest)
        self.manifest = manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a run directory. Raises MissingInputError where the folder is none."""
    manifest = _manifest_in(folder)
    if manifest is None:
        raise MissingInputError(f"{folder} is no run directory: it has no {MANIFEST} by triptych")
    return manifest


def read_metrics(folder: Path, panel: str) -> list[dict[str, Any]]:
    """The steps of a panel in order; of a step that a resumed run took again, the last line."""
    lines = read_json_lines(folder / METRICS)
    last = {line["step"]: line for line in lines if line["panel"] == panel}
    return [last[step] for step in sorted(last)]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _manifest_in(folder: Path) -> Manifest | None:
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes(), strict=True)
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def _require_ours(out: Path) -> None:
    with output_errors(out):
        # A run that was killed before its first manifest leaves only these.
        others = [name for name in os.listdir(out) if name != LOCK and not name.startswith(TEMPORARY)]
    if others and _manifest_in(out) is None:
        raise OutputError(f"{out} holds no run of triptych but other files ({min(others)}): pass another --out")


def _empty(out: Path) -> None:
    with output_errors(out):
        for entry in out.iterdir():
            if entry.name == LOCK:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _manifest_for(out: Path, command: Sequence[str], config: Mapping[str, Any], seed: int) -> Manifest:
    """A new manifest, or that of the run to go on with, brought up to this process."""
    plain: dict[str, Any] = json.loads(json.dumps(config, default=to_plain))
    before = _manifest_in(out)
    if before is not None:
        _require_same(out, before, plain, seed)
    stages = {} if before is None else before.stages
    created = _now()
    return Manifest(
        run_id=f"{created[:19].replace(':', '')}-{uuid.uuid4().hex[:8]}" if before is None else before.run_id,
        created=created if before is None else before.created,
        command=tuple(command),
        config=plain,
        config_hash=config_hash(plain),
        seed=seed,
        python=platform.python_version(),
        packages=package_versions(),
        git=git_state(),
        device=device_description(),
        # Nobody else has the lock: what is still said to run was killed.
        stages={name: _interrupted(stage) for name, stage in stages.items()},
    )


def _interrupted(stage: StageRecord) -> StageRecord:
    return stage.model_copy(update={"status": "interrupted"}) if stage.status == "running" else stage


def _require_same(out: Path, before: Manifest, config: Mapping[str, Any], seed: int) -> None:
    found = list(_differences({"seed": before.seed, **before.config}, {"seed": seed, **config}))
    if found:
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise ConfigError(
            f"{out} holds a run of another configuration: {', '.join(found[:3])}{more}; pass another --out, or --fresh "
            "to discard what it holds"
        )


def _differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*before, *now]):
            inner = f"{path}.{key}" if path else key
            if key not in now:
                yield f"{inner} is gone"
            elif key not in before:
                yield f"{inner} is new"
            else:
                yield from _differences(before[key], now[key], inner)
    elif canonical_json(before) != canonical_json(now):
        yield f"{path} was {canonical_json(before)} and is {canonical_json(now)}"


@final
class _Lock:
    """At most one process writes a run directory. A process that dies frees it, whatever the file says."""

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK
        with output_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        holder = os.read(descriptor, 32).decode(errors="replace").strip()
        if _is_held(descriptor, holder):
            os.close(descriptor)
            raise OutputError(f"{folder} is being written by process {holder}: wait for it, or pass another --out")
        self._descriptor: int | None = descriptor
        _rewrite(descriptor, str(os.getpid()))

    def release(self) -> None:
        """Again is fine."""
        if self._descriptor is not None:
            _rewrite(self._descriptor, "")
            os.close(self._descriptor)
            self._descriptor = None


def _is_held(descriptor: int, holder: str) -> bool:
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            # A network file system may have no locks: there, too, the process id must do.
            return _is_alive(holder)
        return False
    return _is_alive(holder)


def _is_alive(holder: str) -> bool:
    return holder.isdecimal() and int(holder) != os.getpid() and psutil.pid_exists(int(holder))


def _rewrite(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, text.encode())
