import os
import shutil
import subprocess
from pathlib import Path

import pytest

from triptych.environment import device_description, git_state, package_versions

GIT_ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", folder, *arguments], env=GIT_ENVIRONMENT, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A checkout of its own, under src, with nothing committed."""
    if shutil.which("git") is None:
        pytest.skip("this machine has no git")
    folder = tmp_path / "src" / "package"
    folder.mkdir(parents=True)
    (folder / "a.py").write_text("")
    git(tmp_path, "init", "--quiet")
    return folder


class TestGit:
    def test_nothing_committed(self, package: Path) -> None:
        assert git_state(package) is None

    def test_a_commit_then_a_change(self, package: Path) -> None:
        git(package, "add", ".")
        git(package, "commit", "--quiet", "--message", "a")
        state = git_state(package)
        assert state is not None
        assert (state.commit, state.dirty) == (git(package, "rev-parse", "HEAD"), False)
        # A file outside the package changes no figure; one inside may, tracked or not.
        (package.parent / "notes.txt").write_text("")
        state = git_state(package)
        assert state is not None
        assert not state.dirty
        (package / "b.py").write_text("")
        state = git_state(package)
        assert state is not None
        assert state.dirty

    def test_installed_inside_somebodys_repository(self, package: Path) -> None:
        git(package, "add", ".")
        git(package, "commit", "--quiet", "--message", "a")
        installed = package.parents[1] / ".venv" / "lib" / "package"
        installed.mkdir(parents=True)
        assert git_state(installed) is None

    def test_no_repository_at_all(self, tmp_path: Path) -> None:
        assert git_state(tmp_path) is None

    def test_no_git(self, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        assert git_state(package) is None


def test_versions_are_those_of_the_packages() -> None:
    import torch

    versions = package_versions()
    assert versions["torch"] == torch.__version__
    assert "no-such-package" not in versions


def test_the_device_names_a_kind_and_the_cores() -> None:
    kind, _, rest = device_description().partition(":")
    assert kind in ("cpu", "cuda") or kind.startswith("mps")
    assert "cores" in rest or kind.startswith("mps")
