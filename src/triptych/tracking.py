"""A run that is also logged elsewhere: TensorBoard or Weights & Biases through Accelerate, and only where asked for."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

from triptych.errors import ConfigError, suggestion
from triptych.runs import RunDirectory

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb"}
"""Name → the package it needs."""


@final
class Tracked:
    """A run directory whose metrics also go to a tracker, where there is one."""

    def __init__(self, run: RunDirectory, tracker: Any) -> None:
        self.run = run
        self._tracker = tracker

    @property
    def path(self) -> Path:
        return self.run.path

    def is_done(self, stage: str) -> bool:
        return self.run.is_done(stage)

    def stage(self, name: str) -> AbstractContextManager[None]:
        return self.run.stage(name)

    def log(self, event: str, **fields: Any) -> None:
        self.run.log(event, **fields)

    def metric(self, panel: str, step: int, **values: float | None) -> None:
        self.run.metric(panel, step, **values)
        if self._tracker is not None:
            known = {f"{panel}/{name}": value for name, value in values.items() if value is not None}
            self._tracker.log(known, step=step)


@contextmanager
def tracked(run: RunDirectory, name: str | None) -> Iterator[Tracked]:
    """The run, logged to `tensorboard` (in its folder `tracking`) or `wandb` as well; None: to its own files alone.

    Raises `ConfigError` for an unknown tracker, or one that is not installed.
    """
    tracker = None if name is None else _start(name, run)
    try:
        yield Tracked(run, tracker)
    finally:
        if tracker is not None:
            tracker.finish()


def _start(name: str, run: RunDirectory) -> Any:
    if name not in TRACKERS:
        raise ConfigError(f"tracker '{name}' is unknown{suggestion(name, TRACKERS)}")
    if find_spec(TRACKERS[name]) is None:
        raise ConfigError(f"tracker '{name}' is not installed: pip install 'triptych[tracking]'")
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    if name == "tensorboard":
        tracker: Any = TensorBoardTracker("triptych", logging_dir=run.path / "tracking")
    else:
        tracker = WandBTracker("triptych", dir=str(run.path))
    tracker.start()
    return tracker
