"""What a run depended on and no configuration says: package versions, the state of the source, the machine.

Not here: advice on what a machine can do (`triptych doctor`).
"""

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from triptych.records import Record

PACKAGES = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "fastapi",
    "filelock",
    "gguf",
    "jaxtyping",
    "jinja2",
    "matplotlib",
    "numba",
    "numpy",
    "peft",
    "pillow",
    "protobuf",
    "psutil",
    "pyarrow",
    "pydantic",
    "pyyaml",
    "rich",
    "safetensors",
    "scipy",
    "sentencepiece",
    "tokenizers",
    "torch",
    "transformers",
    "triptych",
    "trl",
    "typer",
    "uvicorn",
)
"""Ours, what we require, and tokenizers, on which token ids depend."""


class GitState(Record):
    """The commit that the package's source was at, and whether files of the package differed from it."""

    commit: str
    dirty: bool


def package_versions() -> dict[str, str]:
    """Name → version of the packages that figures may depend on; those not installed are left out."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def git_state(package: Path | None = None) -> GitState | None:
    """The state of the checkout that a package folder (default: our own) is the source of.

    None where git is missing, nothing is committed, or the package is installed rather than checked out: a virtual
    environment inside somebody's repository says nothing about our source.
    """
    folder = package or Path(__file__).parent
    top = _git(folder, "rev-parse", "--show-toplevel")
    if not top or folder.resolve() != Path(top).resolve() / "src" / folder.name:
        return None
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    status = _git(folder, "status", "--porcelain", "--", ".")
    if not commit or status is None:
        return None
    return GitState(commit=commit, dirty=bool(status))


def device_description() -> str:
    """The accelerator, if any, and the processor with the cores we may use, for people to read."""
    # A second or more: commands that only read a run directory do not pay for it.
    import torch

    processor = f"{_processor_name()}, {_usable_cores()} cores"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return f"cuda: {', '.join(names)}; {processor}"
    if torch.backends.mps.is_available():
        return f"mps; {processor}"
    return f"cpu: {processor}"


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, None where it fails. It takes no lock: a run must not get in the way of one's own git."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],  # noqa: S607 - git is found on the path
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor_name() -> str:
    listing = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.+)$", listing.read_text(), re.MULTILINE) if listing.exists() else None
    return named[1].strip() if named else platform.processor() or platform.machine()


def _usable_cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
