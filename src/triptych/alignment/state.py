"""What a training run has come to: `trainer_state.json` in its folder, for the report and the model card."""

from typing import Literal

from triptych.records import Estimate, Record

Method = Literal["reward", "dpo", "grpo"]

STATE = "trainer_state.json"


class Figure(Record):
    """One measured figure of a finished run."""

    name: str
    """Such as `eval_accuracy`."""
    estimate: Estimate
    description: str
    """What was measured, on what, and its unit: for the model card and the report."""


class Warned(Record):
    """Something the run warned of: the data check before it, or the collapse watch during it."""

    step: int | None
    """None for what was known before the first step."""
    level: Literal["note", "warn", "severe"]
    signal: str
    sentence: str


class TrainerState(Record):
    """One training run."""

    method: Method
    model: str
    """The base, as the user named it."""
    fingerprint: str
    """Of the base: configuration and weights."""
    config_hash: str
    step: int
    """Optimizer steps taken; of the adapter that lies beside this file."""
    total_steps: int
    outcome: Literal["running", "finished", "stopped", "rolled_back"]
    n_train: int
    """Pairs or prompts."""
    n_validation: int
    n_trainable: int
    """Trainable parameters."""
    seconds: float = 0.0
    tokens: int = 0
    """Tokens that went through a forward and a backward pass."""
    peak_bytes: int = 0
    """Largest resident size of the process."""
    path: str = ""
    """`fused`, `generic` or `trl`."""
    figures: tuple[Figure, ...] = ()
    warnings: tuple[Warned, ...] = ()
