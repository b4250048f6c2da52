"""Checkpoints: trainable weights, optimizer and position in one folder that is there as a whole or not at all.

    checkpoints/step-000050/   weights.safetensors   optimizer.safetensors   state.json

`state.json` holds the SHA-256 of the others. The newest sound checkpoint is taken; a damaged one is named, and the one
before it is used. There is no random state to save: every draw depends on the seed and the step alone.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from triptych.errors import ConfigError
from triptych.files import TEMPORARY, atomic_write_json, make_folder, output_errors

FOLDER = "checkpoints"
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"

logger = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    """A training run after `step` optimizer steps."""

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    extra: dict[str, Any]
    """What the method keeps besides: counters, the collapse watch."""


class Checkpoints:
    """The checkpoints of one run, the newest `keep` of them, and any that are held."""

    def __init__(self, folder: Path, key: str, *, keep: int = 2) -> None:
        self._folder = folder / FOLDER
        self._key = key
        self._keep = keep

    def save(self, checkpoint: Checkpoint, *, hold: int | None = None) -> None:
        """Writes a checkpoint under a temporary name, then renames it; older ones go, but never step `hold`."""
        final = self._path(checkpoint.step)
        partial = self._folder / f"{TEMPORARY}{final.name}"
        shutil.rmtree(partial, ignore_errors=True)
        make_folder(partial)
        try:
            self._write(partial, checkpoint)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        for step in self.steps()[: -self._keep]:
            if step != hold:
                shutil.rmtree(self._path(step), ignore_errors=True)

    def latest(self) -> Checkpoint | None:
        """The newest sound checkpoint; None where there is none.

        Raises `ConfigError` where it belongs to another recipe.
        """
        for step in reversed(self.steps()):
            try:
                return self.read(step)
            except ConfigError:
                # Which is a ValueError, too.
                raise
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                logger.warning("checkpoint %s is damaged (%s); the one before it is used", self._path(step), error)
        return None

    def read(self, step: int) -> Checkpoint:
        """The checkpoint of a step, checked against its sums."""
        folder = self._path(step)
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if state["key"] != self._key:
            raise ConfigError(
                f"{folder} belongs to another recipe, base or data set; pass another --out, or --fresh to discard it"
            )
        for name in (WEIGHTS, OPTIMIZER):
            if _digest(folder / name) != state["sha256"][name]:
                raise ValueError(f"{name} does not have the SHA-256 of its state.json")
        return Checkpoint(step, load_file(folder / WEIGHTS), load_file(folder / OPTIMIZER), state["extra"])

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        return sorted(int(path.name.removeprefix("step-")) for path in self._folder.glob("step-*"))

    def discard(self) -> None:
        """Removes all: for when the run is finished."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, folder: Path, checkpoint: Checkpoint) -> None:
        for name, tensors in ((WEIGHTS, checkpoint.weights), (OPTIMIZER, checkpoint.optimizer)):
            with output_errors(folder / name):
                save_file(_contiguous(tensors), folder / name)
        sums = {name: _digest(folder / name) for name in (WEIGHTS, OPTIMIZER)}
        state = {"key": self._key, "step": checkpoint.step, "sha256": sums, "extra": checkpoint.extra}
        atomic_write_json(folder / STATE, state)

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:06d}"


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            yield block
