import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub.constants
import pytest
import torch
import yaml

from triptych.cli import failure_of, run
from triptych.commands.options import Globals
from triptych.decoding.table import read_generations
from triptych.errors import ConfigError, WorkError
from triptych.models.tiny import save_tiny

SOURCE = Path(__file__).parents[2] / "src"


class Said(NamedTuple):
    """What a command line came to."""

    code: int
    out: str
    err: str


Call = Callable[..., Said]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of its own, with two good prompts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.jsonl").write_text('{"id": "a", "instruction": "Count."}\n{"id": "b", "instruction": "Sing."}\n')
    return tmp_path


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run_and_read(*arguments: str | Path) -> Said:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return run_and_read


def decode_arguments(
    model: Path | str = "starter", prompts: str = "good.jsonl", out: str = "run", *more: str
) -> list[str]:
    return [
        "decode",
        "--quiet",
        "--model",
        str(model),
        "--prompts",
        prompts,
        "--out",
        out,
        "--max-new-tokens",
        "6",
        *more,
    ]


def require_one_sentence(said: Said, code: int = 2) -> str:
    """The sentence of an error: the one line on stderr."""
    assert said.code == code, said
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in said.err + said.out
    return lines[0]


class TestHelp:
    @pytest.mark.parametrize(
        "command", ["study", "decode", "interpret vision", "report", "explore", "doctor", "bench decode", "bench usae"]
    )
    def test_every_command_shows_how_it_is_used(self, call: Call, command: str) -> None:
        said = call(*command.split(), "--help")
        assert said.code == 0
        assert "Example" in said.out
        assert f"triptych {command}" in said.out

    def test_it_answers_without_the_heavy_libraries(self) -> None:
        # Measured 0.2 s; torch alone takes more than one.
        code = "import sys; from triptych.cli import run; run(['--help']); sys.exit('torch' in sys.modules)"
        environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr

    def test_the_version(self, call: Call) -> None:
        assert call("--version").out.strip().count(".") == 2


class TestBadUsage:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["studdy"], "No such command 'studdy'"),
            (["study", "--recip", "smoke"], "No such option: --recip"),
            (["decode", "--model", "m"], "Missing option '--prompts'"),
            (
                ["decode", "--model", "m", "--prompts", "p", "--out", "o", "--limit", "few"],
                "Invalid value for '--limit'",
            ),
            (["study", "--recipe", "smok"], "unknown recipe 'smok'; did you mean 'smoke'?"),
            (["study", "--recipe", "none.yaml"], "none.yaml: no such file"),
            (["study", "--set", "decoding.limt=3"], "unknown key 'limt' in DecodingConfig; did you mean 'limit'?"),
            (["study", "--set", "decoding.limit"], "override 'decoding.limit' is not of the form key.subkey=value"),
            (["study", "--set", "seed=-1"], "seed is -1 but must be >= 0"),
            (["report", "nowhere"], "nowhere is no run directory"),
        ],
    )
    def test_it_is_told_in_one_sentence(self, call: Call, here: Path, arguments: list[str], message: str) -> None:
        assert message in require_one_sentence(call(*arguments))
        assert not (here / "runs").exists()


def write(name: str, content: bytes | str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return make


BAD_PROMPTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "missing": (lambda folder: None, "none.jsonl", "'none.jsonl' does not exist; check the path"),
    "empty": (write("p.jsonl", ""), "p.jsonl", "p.jsonl is empty"),
    "without instruction": (
        write("p.jsonl", '{"instruction": "a"}\n{"text": "b"}\n'),
        "p.jsonl",
        "p.jsonl, line 2: neither",
    ),
    "not UTF-8": (write("p.jsonl", b'{"instruction": "a"}\n{"instruction": "\xff"}\n'), "p.jsonl", "line 2: byte"),
    "not JSON": (write("p.jsonl", '{"instruction": "a"}\n{"instruction"\n'), "p.jsonl", "p.jsonl, line 2: not JSON"),
    "another type": (write("p.txt", "a"), "p.txt", "files of type '.txt' are not read"),
    "too long": (
        write("p.jsonl", '{"id": "tome", "prompt": "' + "x" * 300 + '"}\n'),
        "p.jsonl",
        "prompt 'tome' has 309 tokens",
    ),
}

BAD_STRATEGIES = {
    "greddy": "unknown strategy 'greddy'; did you mean 'greedy'?",
    "top_k:k=0": "strategy 'top_k': k = 0 is out of range",
    "top_p:p=1.5": "strategy 'top_p': p = 1.5 is out of range",
    "top_p:temperature=0": "strategy 'top_p': temperature = 0 is out of range",
    "top_p:temperature=-1": "strategy 'top_p': temperature = -1 is out of range",
    "beam:width=0": "strategy 'beam': width = 0 is out of range",
    "beam:widht=4": "unknown parameter 'widht' of strategy 'beam'; did you mean 'width'?",
    "greedy:temperature=1": "unknown parameter 'temperature' of strategy 'greedy'; it takes none",
    "top_p:p": "strategy 'top_p:p' is malformed",
    "top_p:[": "strategy 'top_p:[' is malformed",
}


class TestBadInput:
    @pytest.mark.parametrize("case", BAD_PROMPTS)
    def test_prompts(self, call: Call, here: Path, model: Path, case: str) -> None:
        make, name, message = BAD_PROMPTS[case]
        make(here)
        assert message in require_one_sentence(call(*decode_arguments(model, name)))
        assert not (here / "run").exists()

    @pytest.mark.parametrize("spec", BAD_STRATEGIES)
    def test_strategies(self, call: Call, here: Path, model: Path, spec: str) -> None:
        said = call(*decode_arguments(model), "--strategy", spec)
        assert BAD_STRATEGIES[spec] in require_one_sentence(said)
        assert not (here / "run").exists()

    @pytest.mark.parametrize(
        ("option", "value", "message"),
        [
            ("--limit", "0", "limit is 0 but must be >= 1"),
            ("--max-new-tokens", "0", "max_new_tokens is 0 but must be >= 1"),
            ("--samples", "0", "--samples is 0; it must be at least 1"),
            ("--seed", "-1", "seed is -1 but must be >= 0"),
            ("--template", "alpacca", "template 'alpacca' is unknown; did you mean 'alpaca'?"),
        ],
    )
    def test_numbers_and_names(
        self, call: Call, here: Path, model: Path, option: str, value: str, message: str
    ) -> None:
        assert message in require_one_sentence(call(*decode_arguments(model), option, value))
        assert not (here / "run").exists()

    def test_models(self, call: Call, here: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        bare, pickled = here / "bare", here / "pickled"
        for folder in (bare, pickled):
            folder.mkdir()
            shutil.copy(model / "config.json", folder)
        torch.save({}, pickled / "pytorch_model.bin")
        for spec, message in {
            "./none": "model folder ./none does not exist",
            str(bare): "its weights are missing",
            str(pickled): "has only pickled weights (pytorch_model.bin)",
            "nobody/nothing": "model nobody/nothing is not in the local cache",
        }.items():
            assert message in require_one_sentence(call(*decode_arguments(spec)))
            assert not (here / "run").exists()

    def test_a_corrected_command_finds_the_folder_free(self, call: Call, here: Path, model: Path) -> None:
        assert call(*decode_arguments(model, "none.jsonl")).code == 2
        assert call(*decode_arguments(model)).code == 0


class TestOutput:
    def test_a_file_in_the_way(self, call: Call, here: Path, model: Path) -> None:
        (here / "run").write_text("mine")
        assert "run is a file where a folder is to be made" in require_one_sentence(call(*decode_arguments(model)))
        assert (here / "run").read_text() == "mine"

    @pytest.mark.parametrize("out", ["/dev/null/run", "/proc/none/run"])
    def test_a_folder_that_cannot_be_made(self, call: Call, here: Path, model: Path, out: str) -> None:
        if not Path(out).parents[1].exists():
            pytest.skip("this system has no such place")
        assert f"{out} cannot be made" in require_one_sentence(call(*decode_arguments(model, out=out)))

    def test_a_folder_of_something_else(self, call: Call, here: Path, model: Path) -> None:
        (here / "run").mkdir()
        (here / "run" / "thesis.txt").write_text("mine")
        assert "holds no run of triptych but other files (thesis.txt)" in require_one_sentence(
            call(*decode_arguments(model))
        )
        assert [path.name for path in (here / "run").iterdir()] == ["thesis.txt"]

    def test_a_full_disk_keeps_what_is_finished(
        self, call: Call, here: Path, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, parts_kept = os.fsync, 0

        def full(descriptor: int) -> None:
            nonlocal parts_kept
            parts_kept += "/parts/" in os.readlink(f"/proc/self/fd/{descriptor}")
            # Each part is synced, and the folder it lies in: the second prompt's does not fit any more.
            if parts_kept > 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        if not Path("/proc/self/fd").exists():
            pytest.skip("this system does not name open files")
        monkeypatch.setattr(os, "fsync", full)
        assert "disk full while writing" in require_one_sentence(call(*decode_arguments(model)))
        assert len(list((here / "run" / "decoding" / "parts").rglob("*.parquet"))) == 1
        assert not list((here / "run").rglob(".partial-*"))
        monkeypatch.setattr(os, "fsync", real)
        assert call(*decode_arguments(model)).code == 0

    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[Path]:
        """A disk of 200 kB, where this process may mount one."""
        place = tmp_path / "small"
        place.mkdir()
        mount = shutil.which("mount")
        command = [mount or "mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)]
        if mount is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("mounting a small disk takes a superuser")
        yield place
        subprocess.run(["umount", str(place)], check=True)

    def test_a_disk_that_is_really_full(self, call: Call, here: Path, model: Path, small_disk: Path) -> None:
        (small_disk / "ballast").write_bytes(bytes(160_000))
        said = call(*decode_arguments(model, out=str(small_disk / "run")))
        assert "disk full" in require_one_sentence(said)
        (small_disk / "ballast").unlink()
        assert "disk full" in require_one_sentence(call(*decode_arguments(model, out=str(small_disk / "run"))))


class TestDecode:
    def test_it_prints_the_report_s_path_and_then_the_figures(self, call: Call, here: Path, model: Path) -> None:
        said = call(
            *decode_arguments(model, "good.jsonl", "run", "--samples", "2", "--seed", "3", "--limit", "1", "--json")
        )
        assert said.code == 0, said.err
        lines = said.out.splitlines()
        assert lines[0] == str(Path("run") / "report.html")
        figures = json.loads(lines[-1])
        assert figures["report"] == lines[0]
        assert figures["did_work"] is True
        assert [section["id"] for section in figures["findings"]["sections"]] == ["decoding"]
        rows = read_generations(here / "run" / "decoding" / "generations.parquet")
        assert figures["decoding"]["rows"] == len(rows)
        assert [(row.strategy, row.sample) for row in rows] == [
            ("greedy", 0),
            ("beam", 0),
            ("top_k", 0),
            ("top_k", 1),
            ("top_p", 0),
            ("top_p", 1),
        ]
        assert {(row.seed, row.prompt_id) for row in rows} == {(3, "a")}
        assert sum(figures["decoding"]["claims"].values()) > 10

    def test_the_same_command_again_changes_nothing(self, call: Call, here: Path, model: Path) -> None:
        arguments = [*decode_arguments(model), "--strategy", "greedy", "--json"]
        assert call(*arguments).code == 0
        before = {path: path.stat().st_mtime_ns for path in (here / "run" / "decoding").iterdir()}
        again = call(*arguments)
        assert json.loads(again.out.splitlines()[-1])["did_work"] is False
        assert before == {path: path.stat().st_mtime_ns for path in (here / "run" / "decoding").iterdir()}

    def test_another_command_does_not_go_on_with_it_but_fresh_starts_over(
        self, call: Call, here: Path, model: Path
    ) -> None:
        assert call(*decode_arguments(model), "--strategy", "greedy").code == 0
        other = [*decode_arguments(model), "--strategy", "greedy", "--limit", "1"]
        assert "decoding.limit was null and is 1" in require_one_sentence(call(*other))
        assert call(*other, "--fresh").code == 0
        assert len(read_generations(here / "run" / "decoding" / "generations.parquet")) == 1

    def test_the_report_is_rebuilt(self, call: Call, here: Path, model: Path) -> None:
        assert call(*decode_arguments(model), "--strategy", "greedy").code == 0
        page = here / "run" / "report.html"
        page.unlink()
        said = call("report", "run")
        assert (said.code, said.out.strip()) == (0, str(Path("run") / "report.html"))
        assert page.exists()


RECIPE: dict[str, Any] = {
    "decoding": {
        "prompts": "good.jsonl",
        "max_new_tokens": 4,
        "strategies": ["greedy", "top_p:p=0.9,temperature=[0.5,1.0]"],
    }
}


class TestStudy:
    def test_a_recipe_of_one_s_own_and_its_config_repeat_the_run(self, call: Call, here: Path, model: Path) -> None:
        (here / "mine.yaml").write_text(yaml.safe_dump(RECIPE))
        said = call("study", "--quiet", "--recipe", "mine.yaml", "--set", f"model={model}", "--set", "seed=4")
        assert (said.code, said.out.strip()) == (0, str(Path("runs/mine/report.html")))
        config = here / "runs" / "mine" / "config.yaml"
        assert call("study", "--quiet", "--recipe", config, "--out", "again").code == 0
        first, second = (
            read_generations(folder / "decoding" / "generations.parquet") for folder in (config.parent, here / "again")
        )
        assert first == second
        assert {row.seed for row in first} == {4}

    def test_notes_go_to_stderr_and_quiet_stops_them(self, call: Call, here: Path, model: Path) -> None:
        (here / "mine.yaml").write_text(yaml.safe_dump(RECIPE))
        arguments = ["study", "--recipe", "mine.yaml", "--set", f"model={model}"]
        said = call(*arguments)
        assert "decoding" in said.err
        # What was found, and where it stands as the last line.
        lines = said.out.splitlines()
        assert lines[0] == "Decoding"
        assert lines[1].startswith("  The model ")
        assert any(line.startswith("Time") for line in lines)
        assert max(map(len, lines)) <= 100
        assert lines[-1] == str(Path("runs/mine/report.html"))
        assert call(*arguments, "--fresh", "--quiet").err == ""


class TestErrors:
    def test_a_traceback_only_with_debug(self, call: Call, here: Path) -> None:
        assert "Traceback" in call("--debug", "report", "nowhere").err
        assert "Traceback" in call("report", "nowhere", "--debug").err
        assert "Traceback" not in call("report", "nowhere").err

    def test_json_has_the_error_too(self, call: Call, here: Path) -> None:
        said = call("report", "nowhere", "--json")
        assert json.loads(said.out.splitlines()[-1])["exit_code"] == said.code == 2

    @pytest.mark.parametrize(
        ("error", "code", "part"),
        [
            (ConfigError("k = 0"), 2, "k = 0"),
            (WorkError("the work"), 1, "the work"),
            (KeyboardInterrupt(), 130, "stopped; run the same command again to go on"),
            (OSError(errno.ENOSPC, "No space left on device", "here/x"), 2, "disk full while writing here/x"),
            (MemoryError(), 1, "out of memory"),
            (RuntimeError("what"), 1, "unexpected RuntimeError: what (run again with --debug"),
        ],
    )
    def test_every_kind_has_its_exit_code(self, error: BaseException, code: int, part: str) -> None:
        exit_code, sentence = failure_of(error)
        assert exit_code == code
        assert part in sentence

    def test_control_c(self, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
        def stopped(*arguments: Any, **options: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("triptych.study.load_recipe", stopped)
        said = call("study")
        assert said.code == 130
        assert said.err.splitlines()[-1] == "error: stopped; run the same command again to go on"

    def test_global_options_are_global(self) -> None:
        assert Globals() == Globals(debug=False, json=False, quiet=False)


# In single precision: half precision rounds so coarsely that another batch may choose another token.
LONGER_RECIPE: dict[str, Any] = {
    "dtype": "float32",
    "decoding": {
        "prompts": "many.jsonl",
        "max_new_tokens": 40,
        "strategies": ["greedy", "top_p:p=0.9,temperature=[0.5,1.0]"],
    },
}


@pytest.mark.slow
class TestKilled:
    """`kill -9` in the middle, then the same command: the same completions as without."""

    def start(self, folder: Path, out: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "triptych", "study", "--quiet", "--recipe", "recipe.yaml", "--out", out]
        environment = {**os.environ, "PYTHONPATH": str(SOURCE), "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def finish(self, folder: Path, out: str) -> None:
        process = self.start(folder, out)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err.decode()

    def test_the_same_command_goes_on(self, here: Path, model: Path) -> None:
        rows = [{"id": f"q{i}", "instruction": f"Tell me {i} things about {'x' * (i % 7)}."} for i in range(80)]
        (here / "many.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        (here / "recipe.yaml").write_text(yaml.safe_dump({"model": str(model), **LONGER_RECIPE}))
        self.finish(here, "whole")

        process, parts = self.start(here, "run"), here / "run" / "decoding" / "parts"
        deadline = time.monotonic() + 200
        while len(list(parts.rglob("[0-9]*.parquet"))) < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
        process.communicate()
        assert process.returncode == -9, "it was finished before it could be killed"
        assert 3 <= len(list(parts.rglob("[0-9]*.parquet"))) < 80

        self.finish(here, "run")
        whole, again = (read_generations(here / out / "decoding" / "generations.parquet") for out in ("whole", "run"))
        # What is computed in another batch differs in the last bits.
        rounded = {"logprobs", "sampler_logprobs", "mean_logprob", "score"}
        for one, other in zip(whole, again, strict=True):
            assert one.model_dump(exclude=rounded) == other.model_dump(exclude=rounded)
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert not parts.exists()
