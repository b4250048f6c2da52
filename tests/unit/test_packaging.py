import re
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from triptych.environment import PACKAGES

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]


def requirements(*groups: list[str]) -> list[Requirement]:
    return [Requirement(text) for group in groups for text in group]


class TestRequirements:
    def test_every_requirement_is_pinned_within_its_range(self) -> None:
        pins = dict(pin.split("==") for pin in PINS)
        for requirement in requirements(PROJECT["dependencies"], *EXTRAS.values()):
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement

    def test_pins_are_exact_sorted_and_portable(self) -> None:
        names = [pin.split("==")[0] for pin in PINS]
        assert all(re.fullmatch(r"[a-z0-9-]+==[0-9a-z.]+", pin) for pin in PINS)
        assert names == sorted(set(names))

    def test_ranges_are_open_above(self) -> None:
        for requirement in requirements(PROJECT["dependencies"], *EXTRAS.values()):
            assert [part.operator for part in requirement.specifier] == [">="], requirement

    def test_a_manifest_records_every_requirement(self) -> None:
        names = {requirement.name for requirement in requirements(PROJECT["dependencies"])}
        assert names <= set(PACKAGES)


class TestWheel:
    def test_it_holds_every_file_of_the_package(self, tmp_path: Path) -> None:
        pytest.importorskip("hatchling", reason="make test installs it")
        copy = tmp_path / "checkout"
        copy.mkdir()
        for name in ("pyproject.toml", "LICENSE", "README.md", ".gitignore"):
            shutil.copy(ROOT / name, copy)
        shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
        # One of each kind, whatever the package holds today.
        planted = copy / "src" / "triptych" / "planted"
        planted.mkdir()
        for suffix in ("jsonl", "json", "yaml", "css", "js", "html.j2", "svg"):
            (planted / f"a.{suffix}").write_text("")
        command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
        subprocess.run(command, cwd=copy, check=True, capture_output=True)
        with zipfile.ZipFile(next(tmp_path.glob("triptych-*.whl"))) as wheel:
            held = {name for name in wheel.namelist() if ".dist-info/" not in name}
            meta = {Path(name).name for name in wheel.namelist() if ".dist-info/" in name}
        source = copy / "src"
        assert held == {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
        assert {"LICENSE", "entry_points.txt"} <= meta

    def test_the_command_is_the_package_s(self) -> None:
        assert PROJECT["scripts"] == {"triptych": "triptych.cli:main"}

    def test_the_licence_is_there(self) -> None:
        text = (ROOT / "LICENSE").read_text()
        assert PROJECT["license"] == "Apache-2.0"
        assert "Apache License" in text
        assert "END OF TERMS AND CONDITIONS" in text


OLD_PYTHON = """#!/bin/sh
[ "$1" = --version ] && { echo "Python 3.9.1"; exit 0; }
exit 1
"""

# Passes for a Python: notes its calls, and makes an environment whose pip works once the file `works` is there.
NEW_PYTHON = """#!/bin/sh
[ "$1" = --version ] && { echo "Python 3.12.0"; exit 0; }
[ "$1" = -c ] && exit 0
echo "$*" >> calls
case "$*" in
    "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python;;
    *"pip install"*) [ -e works ];;
esac
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="this machine has no make")
class TestMakefile:
    @pytest.fixture
    def checkout(self, tmp_path: Path) -> Path:
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, tmp_path)
        for name, text in (("old", OLD_PYTHON), ("new", NEW_PYTHON)):
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        return tmp_path

    def make(self, checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        # Not the flags of a make that may be running this test.
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "MAKEFLAGS": ""}
        return subprocess.run(
            ["make", "--no-print-directory", *arguments],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def test_an_old_or_missing_python_is_named(self, checkout: Path) -> None:
        old = self.make(checkout, "lint", "PYTHON=./old")
        assert old.returncode != 0
        assert "Triptych needs Python 3.11 or newer; './old' is Python 3.9.1." in old.stderr
        assert (
            "Triptych needs Python 3.11 or newer; './none' is missing."
            in self.make(checkout, "lint", "PYTHON=./none").stderr
        )
        assert not (checkout / ".venv").exists()

    def test_set_up_is_done_once_and_again_after_an_interruption(self, checkout: Path) -> None:
        stamp = ".venv/.ready-dev"
        assert self.make(checkout, stamp, "PYTHON=./new").returncode != 0
        assert not (checkout / stamp).exists()
        (checkout / "works").write_text("")
        again = self.make(checkout, stamp, "PYTHON=./new")
        assert again.returncode == 0, again.stderr
        assert (checkout / stamp).exists()
        install = "-m pip install --quiet --constraint constraints.txt --editable .[dev]"
        # The environment that was there is kept; a third call has nothing to do.
        assert self.make(checkout, stamp, "PYTHON=./new").returncode == 0
        made = (checkout / "calls").read_text().splitlines()
        assert [call for call in made if "--version" not in call] == ["-m venv --clear .venv", install, install]

    def test_set_up_is_redone_when_the_requirements_change(self, checkout: Path) -> None:
        (checkout / "works").write_text("")
        for name in (".venv/.ready", ".venv/.ready-bench"):
            assert self.make(checkout, name, "PYTHON=./new").returncode == 0
        for name in ("pyproject.toml", "constraints.txt"):
            # A second ahead: file systems may not tell less apart.
            later = (checkout / ".venv/.ready").stat().st_mtime + 1
            subprocess.run(["touch", "-d", f"@{later:.0f}", name], cwd=checkout, check=True)
            assert self.make(checkout, "--question", ".venv/.ready", "PYTHON=./new").returncode == 1
        extras = [
            call.rpartition(" ")[2] for call in (checkout / "calls").read_text().splitlines() if "install" in call
        ]
        assert extras == [".", ".[bench]"]

    def test_help_lists_the_targets(self, checkout: Path) -> None:
        listed = self.make(checkout).stdout
        assert [line.split()[1] for line in listed.splitlines()] == [
            "study",
            "test",
            "bench",
            "lint",
            "docs",
            "help",
            "clean",
        ]


def test_ci_runs_what_developers_run() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    assert "make test" in script.read_text()
