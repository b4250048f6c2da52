"""Every command and program of README and pages runs, or is parsed and resolved.

A command runs where it has an option that no command of its name had before it; where it needs a GPU, the hub or an hour
it does not. Not here: finding commands and what they are run on (`tests.documented`).
"""

import importlib
import os
import re
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from tests.documented import PAGES, ROOT, TRIPTYCH, Command, commands, furnish, on_tiny, programs
from torch.distributed.run import get_args_parser

from triptych import inputs
from triptych.cli import run

ELSEWHERE = (
    "HuggingFaceTB/",
    "HuggingFaceH4/",
    "yahma/",
    "uoft-cs/",
    "microsoft/",
    "google/",
    "cuda",
    "=./resnet",
    "=./vit",
)
"""Hub ids, GPUs, and models that readers have to bring: what no test can have."""

WORK = {
    "triptych.study": ("run_study",),
    "triptych.dry_run": ("plan_study",),
    "triptych.doctor": ("diagnose",),
    "triptych.reports.export": ("export",),
    "triptych.alignment.on_policy": ("run_pairs",),
    "triptych.alignment.merge": ("merge",),
    **{f"triptych.bench.{name}": ("run",) for name in ("decode", "dpo", "grpo", "audit", "usae")},
}
"""What commands call once their options are read and their configuration is resolved."""


class Resolved(BaseException):
    """The work would begin now."""


def begin(*_: Any, **__: Any) -> None:
    raise Resolved


def of_triptych() -> list[Command]:
    return [command for command in commands() if command.program in TRIPTYCH]


def is_elsewhere(command: Command) -> bool:
    """Whether it needs what is not here: a GPU, the hub, an hour of benchmarks, somebody's models."""
    words = " ".join(command.words)
    return command.name[0] == "bench" or "--dry-run" in words or any(one in words for one in ELSEWHERE)


def require_resolved(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The options exist, and the configuration that they make is a valid one."""
    with monkeypatch.context() as patched:
        for module, names in WORK.items():
            for name in names:
                patched.setattr(importlib.import_module(module), name, begin)
        with pytest.raises(Resolved):
            pytest.fail(f"{' '.join(words)}: ended with {run([*words, '--quiet'])} before any work")


# --- what there is ----------------------------------------------------------------------------------------------------


def test_every_command_is_of_a_known_program() -> None:
    known = {*TRIPTYCH, "make", "torchrun"}
    assert [one for one in commands() if one.program not in known] == []
    assert {one.name[0] for one in of_triptych()} == {
        *("study", "decode", "align", "audit", "interpret", "report", "explore", "doctor", "bench"),
    }


def test_make_has_the_targets_and_the_study_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    for command in commands():
        if command.program == "make":
            target, *rest = [word for word in command.words[1:] if "=" not in word or word.startswith("ARGS=")]
            assert target in targets, command
            if target == "study":
                require_resolved(["study", *" ".join(rest).removeprefix("ARGS=").split()], monkeypatch)


def test_torchrun_has_the_options_and_trains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    found = [command for command in commands() if command.program == "torchrun"]
    assert found
    for command in found:
        parsed = get_args_parser().parse_args([*command.words[1:]])
        assert parsed.module
        assert parsed.training_script == "triptych"
        require_resolved(parsed.training_script_args, monkeypatch)


# --- what runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The model's path; everything runs beside it, one page after the other."""
    folder, before = tmp_path_factory.mktemp("reader"), Path.cwd()
    os.chdir(folder)
    yield furnish(folder)
    os.chdir(before)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "hub_is_reachable", lambda: False)
    monkeypatch.setattr("triptych.doctor.hub_is_reachable", lambda: False)
    monkeypatch.setattr("triptych.doctor.PROBE_SECONDS", 0.01)
    monkeypatch.setattr("triptych.doctor.LAYERS", 1)


@pytest.fixture
def short_visit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server stops by itself, as soon as it has started."""
    serve = uvicorn.Server.run

    def run_shortly(self: uvicorn.Server, *args: Any, **kwargs: Any) -> None:
        def end() -> None:
            while not self.started:
                pause.wait(0.02)
            self.should_exit = True

        pause = threading.Event()
        threading.Thread(target=end, daemon=True).start()
        serve(self, *args, **kwargs)
        assert self.started

    monkeypatch.setattr(uvicorn.Server, "run", run_shortly)


@pytest.fixture
def short_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures, which take most of the time of so small a work; `triptych report` makes them all the same."""

    def note(run_dir: Path) -> Path:
        page = run_dir / "report.html"
        page.write_text("a report", encoding="utf-8")
        return page

    monkeypatch.setattr("triptych.reports.build_report", note)


@pytest.mark.slow
def test_every_command_runs_or_resolves(
    here: str,
    short_visit: None,
    short_report: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("rewards.py").write_text(
        "def polite(prompts, completions, **_):\n    return [float(len(c)) for c in completions]\n"
    )
    tried: set[tuple[str, ...]] = set()
    for command in of_triptych():
        is_known = command.options <= tried and command.name != ("explore",)
        if is_elsewhere(command) or is_known or not _has_inputs(command):
            require_resolved(command.words[1:], monkeypatch)
            continue
        tried |= command.options
        assert run(on_tiny(command, here)) in _expected(command), (command, capsys.readouterr().err)
        capsys.readouterr()
    assert {name for name, *_ in tried} == {one.name[0] for one in of_triptych()} - {"bench"}
    assert Path("runs/look/report.html").is_file()
    assert Path("runs/stopped/report.html").is_file()
    assert Path("models/aligned/model.safetensors").is_file()


def _has_inputs(command: Command) -> bool:
    """Whether the runs it reads are there: some are made by commands that need a GPU."""
    outs = {after for before, after in zip(command.words, command.words[1:], strict=False) if before == "--out"}
    named = [
        part for word in command.words for part in re.split(r"[=:]", word) if part.startswith(("runs/", "models/"))
    ]
    return command.name[0] in ("study", "explore") or all(Path(part).exists() for part in named if part not in outs)


def _expected(command: Command) -> set[int]:
    """A tiny random model may well have severe findings."""
    return {0, 1} if "--fail-on" in command.words else {0}


@pytest.mark.slow
# Between PEFT and transformers, where a program loads an adapter by PEFT alone.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("number", range(len(programs())), ids=[page for page, _ in programs()])
def test_every_program_runs(here: str, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    page, text = programs()[number]
    file = Path("program.py")
    file.write_text(text.replace('"starter"', repr(here)), encoding="utf-8")
    runpy.run_path(str(file))
    assert capsys.readouterr().out or "save" in text or "write_text" in text, page


# --- the website ------------------------------------------------------------------------------------------------------


class _Loaded(HTMLParser):
    """Addresses that a page loads by itself; links that one may follow are no matter."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe"):
            self.found.append(given.get("src") or "")
        if tag == "link" and given.get("rel") in ("stylesheet", "preload", "icon", "preconnect"):
            self.found.append(given.get("href") or "")


@pytest.mark.slow
def test_the_website_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len(PAGES) - 1
    for page in pages:
        loaded = _Loaded()
        text = page.read_text(encoding="utf-8")
        loaded.feed(text)
        assert [one for one in loaded.found if one.startswith(("http:", "https:", "//"))] == [], page
        assert "<!-- generated" not in text, page
