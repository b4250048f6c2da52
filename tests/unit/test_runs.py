import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from triptych import runs
from triptych.config import config_hash, load_yaml
from triptych.errors import ConfigError, MissingInputError, OutputError
from triptych.files import TEMPORARY, read_json_lines
from triptych.runs import RunDirectory, read_manifest, read_metrics

CONFIG = {"decoding": {"samples": 2, "arms": ["greedy"]}, "alignment": {"beta": 0.1}}


@pytest.fixture(autouse=True)
def _no_device_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "device_description", lambda: "cpu: a test, 1 cores")


def open_run(out: Path, config: Mapping[str, Any] = CONFIG, *, seed: int = 3, fresh: bool = False) -> RunDirectory:
    return RunDirectory.open(out, command=["triptych", "study"], config=config, seed=seed, fresh=fresh)


def killed_child(out: Path, body: str) -> int:
    """Runs `body` with an open `run` in another process that kills itself at the end; its process id."""
    program = (
        "import os, signal, sys, json, pathlib\n"
        "from triptych import runs\n"
        "runs.device_description = lambda: 'cpu'\n"
        "config = json.loads(sys.argv[2])\n"
        "run = runs.RunDirectory.open(pathlib.Path(sys.argv[1]), command=[], config=config, seed=3)\n"
        f"{body}\n"
        "print(os.getpid(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, out, json.dumps(CONFIG)], check=False, capture_output=True, text=True
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    return int(child.stdout)


class TestManifest:
    def test_it_says_what_ran(self, tmp_path: Path) -> None:
        with open_run(tmp_path / "deep" / "run") as run:
            manifest = read_manifest(run.path)
        assert manifest == run.manifest
        assert manifest.command == ("triptych", "study")
        assert manifest.config == CONFIG
        assert manifest.config_hash == config_hash(CONFIG)
        assert manifest.seed == 3
        assert manifest.device == "cpu: a test, 1 cores"
        assert {"torch", "numpy"} <= manifest.packages.keys()
        assert manifest.stages == {}

    def test_the_configuration_stands_beside_it_in_its_own_order(self, tmp_path: Path) -> None:
        with open_run(tmp_path / "run"):
            pass
        loaded = load_yaml(tmp_path / "run" / "config.yaml")
        assert loaded == CONFIG
        assert list(loaded) == list(CONFIG)

    def test_opened_again_it_is_the_same_run(self, tmp_path: Path) -> None:
        with open_run(tmp_path / "run") as first, first.stage("decoding"):
            pass
        with open_run(tmp_path / "run") as second:
            assert second.manifest.run_id == first.manifest.run_id
            assert second.manifest.created == first.manifest.created
            assert second.is_done("decoding")
        events = [line["event"] for line in read_json_lines(tmp_path / "run" / "log.jsonl")]
        assert events == ["opened", "stage", "stage", "opened"]

    def test_runs_are_told_apart(self, tmp_path: Path) -> None:
        with open_run(tmp_path / "a") as first, open_run(tmp_path / "b") as second:
            assert first.manifest.run_id != second.manifest.run_id

    def test_a_folder_without_one(self, tmp_path: Path) -> None:
        with pytest.raises(MissingInputError, match="is no run directory"):
            read_manifest(tmp_path)
        with pytest.raises(MissingInputError, match="is no run directory"):
            read_manifest(tmp_path / "none")


class TestRefusals:
    def test_another_configuration_names_what_differs(self, tmp_path: Path) -> None:
        with open_run(tmp_path / "run"):
            pass
        changed = {"decoding": {"samples": 4, "arms": ["greedy", "beam"], "new": 1}, "alignment": {}}
        with pytest.raises(ConfigError) as caught:
            open_run(tmp_path / "run", changed)
        assert str(caught.value) == (
            f"{tmp_path / 'run'} holds a run of another configuration: decoding.samples was 2 and is 4, "
            'decoding.arms was ["greedy"] and is ["greedy","beam"], decoding.new is new (and 1 more); '
            "pass another --out, or --fresh to discard what it holds"
        )
        with pytest.raises(ConfigError, match="seed was 3 and is 4"):
            open_run(tmp_path / "run", seed=4)
        # A refusal frees the directory and changes nothing.
        with open_run(tmp_path / "run") as run:
            assert run.manifest.config == CONFIG

    def test_the_order_of_keys_is_no_difference(self, tmp_path: Path) -> None:
        with open_run(tmp_path / "run"):
            pass
        with open_run(tmp_path / "run", dict(reversed(CONFIG.items()))):
            pass

    def test_a_folder_of_somebody_else_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("")
        for fresh in (False, True):
            with pytest.raises(OutputError, match=r"holds no run of triptych but other files \(thesis\.tex\)"):
                open_run(tmp_path, fresh=fresh)
        assert os.listdir(tmp_path) == ["thesis.tex"]

    @pytest.mark.parametrize("name", ["manifest.json", ".git"])
    def test_a_manifest_of_another_program_is_not_ours(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text('{"name": "web app"}')
        with pytest.raises(OutputError, match="holds no run of triptych"):
            open_run(tmp_path)
        assert os.listdir(tmp_path) == [name]

    def test_a_file_is_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match="is a file where a folder is to be made"):
            open_run(tmp_path / "file")
        with pytest.raises(OutputError, match="a part of it is a file"):
            open_run(tmp_path / "file" / "run")

    def test_an_empty_folder_is_fine(self, tmp_path: Path) -> None:
        with open_run(tmp_path):
            pass

    def test_nan_in_a_configuration(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            open_run(tmp_path / "run", {"beta": math.nan})


class TestFresh:
    def test_it_discards_a_run_of_ours(self, tmp_path: Path) -> None:
        with open_run(tmp_path / "run") as first:
            (run := first.path / "decoding").mkdir()
            (run / "generations.parquet").write_text("")
        with open_run(tmp_path / "run", {"other": 1}, fresh=True) as second:
            assert second.manifest.config == {"other": 1}
            assert second.manifest.run_id != first.manifest.run_id
            assert not (second.path / "decoding").exists()


class TestStages:
    def test_running_then_done_with_seconds(self, tmp_path: Path) -> None:
        with open_run(tmp_path / "run") as run:
            with run.stage("decoding"):
                assert read_manifest(run.path).stages["decoding"].status == "running"
                assert not run.is_done("decoding")
            stage = read_manifest(run.path).stages["decoding"]
        assert stage.status == "done"
        assert 0.0 <= stage.seconds < 60.0
        assert not run.is_done("alignment")

    def test_a_failure_is_recorded_and_raised(self, tmp_path: Path) -> None:
        with open_run(tmp_path / "run") as run:
            with pytest.raises(RuntimeError, match="no tokens"), run.stage("decoding"):
                raise RuntimeError("no tokens")
            assert run.manifest.stages["decoding"].status == "failed"
            assert run.manifest.stages["decoding"].error == "RuntimeError: no tokens"
            with run.stage("decoding"):
                pass
            assert run.is_done("decoding")
            assert run.manifest.stages["decoding"].error is None

    def test_control_c_is_an_interruption(self, tmp_path: Path) -> None:
        with open_run(tmp_path / "run") as run:
            with pytest.raises(KeyboardInterrupt), run.stage("decoding"):
                raise KeyboardInterrupt
            assert run.manifest.stages["decoding"].status == "interrupted"

    def test_seconds_add_up_until_it_is_done(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # The clock is read at the start, for "running", and at the end: the first attempt takes 10 s, the second 5,
        # and a repetition of the finished stage counts anew.
        ticks = iter([0.0, 0.0, 10.0, 100.0, 100.0, 105.0, 200.0, 200.0, 201.0])
        with open_run(tmp_path / "run") as run:
            # Not the function of the module: a server that another test left behind would read this clock, too.
            monkeypatch.setattr("triptych.runs.time", SimpleNamespace(monotonic=lambda: next(ticks)))
            with pytest.raises(RuntimeError), run.stage("decoding"):
                raise RuntimeError
            seconds = []
            for _ in range(2):
                with run.stage("decoding"):
                    pass
                seconds.append(run.manifest.stages["decoding"].seconds)
        assert seconds == [15.0, 1.0]

    def test_memory_is_that_of_the_largest_attempt(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        peaks = iter([1, 900, 2, 500, 3, 400])
        monkeypatch.setattr("triptych.memory.MemoryWatch.peak", property(lambda _: next(peaks)))
        with open_run(tmp_path / "run") as run:
            with pytest.raises(RuntimeError), run.stage("decoding"):
                raise RuntimeError
            found = []
            for _ in range(2):
                with run.stage("decoding"):
                    pass
                found.append(run.manifest.stages["decoding"].peak_memory_bytes)
        # The first attempt at a stage that is done anew counts for nothing.
        assert found == [900, 400]

    def test_memory_is_measured(self, tmp_path: Path) -> None:
        with open_run(tmp_path / "run") as run:
            with run.stage("decoding"):
                pass
            peak = run.manifest.stages["decoding"].peak_memory_bytes
        assert peak is not None
        assert peak > 1 << 20

    def test_a_manifest_of_before_memory_was_measured_is_read(self, tmp_path: Path) -> None:
        with open_run(tmp_path / "run") as run, run.stage("decoding"):
            pass
        path = tmp_path / "run" / "manifest.json"
        written = json.loads(path.read_text())
        del written["stages"]["decoding"]["peak_memory_bytes"]
        path.write_text(json.dumps(written))
        assert read_manifest(tmp_path / "run").stages["decoding"].peak_memory_bytes is None

    def test_the_first_error_is_told_when_the_disk_is_full_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OutputError("disk full while writing manifest.json")

        with open_run(tmp_path / "run") as run:
            with pytest.raises(OutputError, match=r"generations\.parquet"), run.stage("decoding"):
                monkeypatch.setattr(runs, "atomic_write_json", full)
                raise OutputError("disk full while writing generations.parquet")
            monkeypatch.undo()


class TestWorkThrough:
    def test_only_what_waits_is_run_and_in_order(self, tmp_path: Path) -> None:
        seen: list[str] = []
        stages = {name: (lambda name=name: seen.append(name)) for name in ("a", "b", "c")}
        with open_run(tmp_path / "run") as run:
            with run.stage("b"):
                pass
            assert run.work_through(stages)
            assert seen == ["a", "c"]
            assert not run.work_through(stages)
            assert seen == ["a", "c"]

    def test_what_follows_a_failure_is_not_run(self, tmp_path: Path) -> None:
        def fail() -> None:
            raise ValueError("planted")

        seen: list[str] = []
        with open_run(tmp_path / "run") as run:
            with pytest.raises(ValueError, match="planted"):
                run.work_through({"a": fail, "b": lambda: seen.append("b")})
            assert not run.is_done("a")
        assert seen == []


class TestKilled:
    def test_another_process_goes_on(self, tmp_path: Path) -> None:
        out = tmp_path / "run"
        body = (
            "with run.stage('decoding'): pass\n"
            "stage = run.stage('alignment')\nstage.__enter__()\n"
            "with open(run.path / 'log.jsonl', 'a') as log: log.write('{\"event\": \"to')\n"
            f"(run.path / f'{TEMPORARY}{{os.getpid()}}-0-x.json').write_text('ha')\n"
        )
        pid = killed_child(out, body)
        assert (out / ".lock").read_text() == str(pid)
        assert read_manifest(out).stages["alignment"].status == "running"
        with open_run(out) as run:
            assert run.is_done("decoding")
            assert run.manifest.stages["alignment"].status == "interrupted"
            assert not list(out.glob(f"{TEMPORARY}*"))
            assert (out / ".lock").read_text() == str(os.getpid())
            # opened, decoding running and done, alignment running, opened; the torn line is gone.
            assert len(read_json_lines(out / "log.jsonl")) == 5

    def test_before_its_first_manifest(self, tmp_path: Path) -> None:
        (tmp_path / ".lock").write_text("1")
        (tmp_path / f"{TEMPORARY}999999999-0-manifest.json").write_text("{")
        with open_run(tmp_path) as run:
            assert run.manifest.stages == {}
        assert sorted(os.listdir(tmp_path)) == [".lock", "config.yaml", "log.jsonl", "manifest.json"]


class TestLock:
    def test_one_writer_at_a_time(self, tmp_path: Path) -> None:
        with open_run(tmp_path / "run"):
            with pytest.raises(OutputError, match=f"is being written by process {os.getpid()}: wait for it"):
                open_run(tmp_path / "run")
            # The refused one has not freed it.
            with pytest.raises(OutputError, match="is being written"):
                open_run(tmp_path / "run")
        with open_run(tmp_path / "run"):
            pass

    def test_close_may_be_repeated(self, tmp_path: Path) -> None:
        run = open_run(tmp_path / "run")
        run.close()
        run.close()

    @pytest.mark.parametrize("reason", ["no module", "no locks on this file system"])
    def test_without_locks_the_process_id_must_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
    ) -> None:
        if reason == "no module":
            monkeypatch.setattr(runs, "fcntl", None)
        else:

            def unsupported(*_: object) -> None:
                raise OSError("No locks available")

            monkeypatch.setattr("triptych.runs.fcntl.flock", unsupported)
        lock = tmp_path / ".lock"
        # The parent of this process lives; no process has the largest id there is.
        lock.write_text(str(os.getppid()))
        with pytest.raises(OutputError, match=f"process {os.getppid()}"):
            open_run(tmp_path)
        lock.write_text("999999999")
        with open_run(tmp_path):
            assert lock.read_text() == str(os.getpid())
        assert lock.read_text() == ""


class TestLogs:
    def test_a_line_an_event(self, tmp_path: Path) -> None:
        with open_run(tmp_path / "run") as run:
            run.log("checkpoint", step=3, path=Path("a/b"))
            line = read_json_lines(run.path / "log.jsonl")[-1]
        assert {key: line[key] for key in ("event", "step", "path")} == {
            "event": "checkpoint",
            "step": 3,
            "path": "a/b",
        }
        assert line["time"].endswith("+00:00")

    def test_a_line_a_step(self, tmp_path: Path) -> None:
        with open_run(tmp_path / "run") as run:
            run.metric("dpo", 1, loss=0.7, kl=math.nan)
            run.metric("grpo", 1, reward=None)
            run.metric("dpo", 2, loss=0.6)
            # A resumed run takes step 2 again.
            run.metric("dpo", 2, loss=0.5)
            assert read_metrics(run.path, "dpo") == [
                {"panel": "dpo", "step": 1, "loss": 0.7, "kl": None},
                {"panel": "dpo", "step": 2, "loss": 0.5},
            ]
            assert read_metrics(run.path, "none") == []
