"""What the trainers left on disk, read and checked.

    alignment/<method>/trainer_state.json   required    what the run has come to: one TrainerState
    alignment/<method>/adapter_config.json  optional    which modules the adapter is on
    metrics.jsonl                           optional    panel <method>: one line an optimizer step;
                                                        panel <method>.eval: one line an evaluation; step 0 is before

<method> is reward, dpo or grpo; a run directory has any of them. A value that is null, absent or no number is missing:
it is left out of its curve and never taken for zero. Not here: statistics; nothing is computed in passing.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from triptych.alignment.state import STATE, Figure, Method, TrainerState
from triptych.errors import DataError
from triptych.reports import format as fmt
from triptych.reports.inputs import FloatArray, IntArray
from triptych.reports.settings import lookup
from triptych.runs import Manifest, read_manifest, read_metrics

FOLDER = "alignment"
METHODS: tuple[Method, ...] = ("reward", "dpo", "grpo")
"""In the order of the page."""
OTHER_PANELS = ("decoding", "auditing", "dictionaries")
"""Parts of a configuration that say nothing about training."""
ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's name for it; `triptych.models` has it too, and needs torch."""
PARTIAL_REWARD = "reward/"
"""What the names of single reward functions begin with in the log."""
STAGE_WORDS = frozenset({"eval", "final", "validation", "held", "out"})
"""Parts of a figure's name that say when or where it was measured, not what."""

Line = Mapping[str, Any]


class Curve(NamedTuple):
    """The finite values of one name in the log, by step; both arrays may be empty."""

    steps: IntArray
    values: FloatArray

    @property
    def is_empty(self) -> bool:
        return not self.steps.size


@dataclass(frozen=True)
class TrainingRun:
    """One training run: its state, and its log line by line."""

    state: TrainerState
    lines: tuple[Line, ...]
    """One an optimizer step."""
    evaluations: tuple[Line, ...]
    """One an evaluation on held-out data."""
    config: Mapping[str, Any]
    """The settings of this run; empty where the manifest has none."""
    lora_targets: tuple[str, ...] = ()
    """Modules that the adapter is on, from its own configuration; none after full fine-tuning."""

    @property
    def method(self) -> Method:
        return self.state.method

    @cached_property
    def partial_rewards(self) -> tuple[str, ...]:
        """Names in the log of the single reward functions, as they stand there."""
        names = {name for line in (*self.lines, *self.evaluations) for name in line if name.startswith(PARTIAL_REWARD)}
        return tuple(sorted(names))

    @property
    def loss_name(self) -> str | None:
        """Which loss was trained with; None where the run does not record it."""
        loss = self.config.get("loss")
        name = loss.get("name") if isinstance(loss, Mapping) else loss
        return name if isinstance(name, str) else None

    def training(self, name: str) -> Curve:
        """The values of the optimizer steps."""
        return _curve(self.lines, name)

    def evaluated(self, name: str) -> Curve:
        """The values of the evaluations."""
        return _curve(self.evaluations, name)

    def before(self, name: str) -> float | None:
        """What the evaluation before the first step found."""
        return self._evaluated_at(0, name)

    def after(self, name: str) -> float | None:
        """What the evaluation of the adapter that was kept found: that of its step, else the last one."""
        value = self._evaluated_at(self.state.step, name)
        curve = self.evaluated(name)
        return value if value is not None or curve.is_empty else float(curve.values[-1])

    def figure(self, name: str) -> Figure | None:
        """The final figure of a name, with its interval: `eval_kl` and `final_kl` are figures of `kl`."""
        wanted = _words(name)
        return next((figure for figure in self.state.figures if _words(figure.name) == wanted), None)

    def _evaluated_at(self, step: int, name: str) -> float | None:
        return next((_value(line, name) for line in self.evaluations if line["step"] == step), None)


@dataclass(frozen=True)
class Alignment:
    """Everything the alignment panel left on disk, short of weights."""

    run_dir: Path
    manifest: Manifest
    runs: Mapping[Method, TrainingRun]
    """At least one, in the order of the page."""


def read_alignment(run_dir: Path) -> Alignment | None:
    """The training runs of a run directory, checked; None where it has none that has begun to be recorded."""
    states = {method: path for method in METHODS if (path := run_dir / FOLDER / method / STATE).is_file()}
    if not states:
        return None
    manifest = read_manifest(run_dir)
    runs = {method: _read_run(run_dir, method, path, manifest.config) for method, path in states.items()}
    return Alignment(run_dir, manifest, runs)


def number(value: object) -> float | None:
    """A value of the log as a finite float; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def plain(value: float) -> str:
    """Three significant digits of a number that brings no interval; all whole digits, and at most five decimals."""
    if float(value).is_integer():
        return fmt.number(float(value), 0)
    return fmt.number(float(value), min(5, max(0, 2 - math.floor(math.log10(abs(value))))))


def _read_run(run_dir: Path, method: Method, path: Path, config: Mapping[str, Any]) -> TrainingRun:
    try:
        state = TrainerState.model_validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"]) or "the start"
        raise DataError(
            f"{path} cannot be read as the state of a training run (at {where}: {first['msg']}); it was written by "
            "another version or damaged: train again"
        ) from None
    if state.method != method:
        raise DataError(f"{path} is the state of a {state.method} run; move it to {FOLDER}/{state.method}")
    lines, evaluations = read_metrics(run_dir, method), read_metrics(run_dir, f"{method}.eval")
    own = _own_config(config, method)
    return TrainingRun(state, tuple(lines), tuple(evaluations), own, _lora_targets(path.parent / ADAPTER_CONFIG))


def _lora_targets(path: Path) -> tuple[str, ...]:
    try:
        read = json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); train again") from error
    found = read.get("target_modules") if isinstance(read, dict) else None
    return tuple(sorted(map(str, found))) if isinstance(found, list) else ()


def _own_config(config: Mapping[str, Any], method: Method) -> Mapping[str, Any]:
    """The part of a configuration that is named after the method; of a run with this method alone, all of it."""
    found = lookup(config, method)
    if isinstance(found, Mapping):
        return found
    return {key: value for key, value in config.items() if key not in OTHER_PANELS}


def _curve(lines: Sequence[Line], name: str) -> Curve:
    points = [(line["step"], value) for line in lines if (value := _value(line, name)) is not None]
    return Curve(
        steps=np.array([step for step, _ in points], dtype=np.int64),
        values=np.array([value for _, value in points], dtype=np.float64),
    )


def _value(line: Line, name: str) -> float | None:
    """A value of a line. There is no accuracy where no pair has a margin: a policy that is its own reference."""
    return None if name == "accuracy" and line.get("margin") == 0 else number(line.get(name))


def _words(name: str) -> frozenset[str]:
    return frozenset(name.split("_")) - STAGE_WORDS
