"""The training loop that reward model, DPO and GRPO share: step, look, evaluate, save; resumed where it was killed.

What a step computes is the task's business (`dpo`, `reward_model`, `grpo`); how gradients become a step that of
`optimisation`; what survives a kill that of `checkpoints`.
"""

import time
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn

from triptych.alignment.adapters import LoraConfig
from triptych.alignment.optimisation import Optimiser, OptimiserConfig
from triptych.alignment.state import Warned
from triptych.checkpoints import Checkpoint, Checkpoints
from triptych.config import Config
from triptych.errors import ConfigError
from triptych.progress import progress
from triptych.workers import Journal, Workers


class TrainingConfig(Config):
    """What every kind of training has."""

    lora: LoraConfig | None = LoraConfig()
    """None trains all weights (`full fine-tuning`)."""
    quantisation: Literal["8bit"] | None = None
    """`8bit` loads the base through bitsandbytes."""
    optimiser: OptimiserConfig
    max_length: int = Field(default=1024, ge=2)
    """Tokens of a prompt with its longest answer; what is longer loses its end."""
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens of one forward and backward pass at most, which memory goes with; a step accumulates as many as it needs,
    on a CPU by the fused path one a core at a time (`triptych.lanes`). None: 512 on a CPU, which more would make no
    faster, and 16,384 elsewhere."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Prompts of one such pass at most; None: as many as fit."""
    gradient_checkpointing: bool = False
    """A third more computation for a fraction of the memory."""
    share_prefix: bool = True
    """Compute a prompt once for all its completions."""
    path: Literal["fused", "generic"] | None = None
    """Which code runs the model; None takes the fused path where there is one."""
    eval_every: int | None = Field(default=None, ge=1)
    """Steps between evaluations; None: before the first step and after the last."""
    checkpoint_every: int = Field(default=50, ge=1)
    """Steps between checkpoints; the last one is always kept until the run is finished."""

    def pass_tokens(self, device: torch.device) -> int:
        """Tokens of one pass on a device."""
        return self.micro_batch_tokens or (512 if device.type == "cpu" else 16_384)


class Decision(NamedTuple):
    """What is to be done after a step."""

    action: Literal["go_on", "stop", "rollback"]
    warnings: tuple[Warned, ...] = ()
    healthy_step: int | None = None
    """The checkpoint that a rollback goes to must not be later."""


GO_ON = Decision("go_on")


@runtime_checkable
class Task(Protocol):
    """One kind of training."""

    name: str
    """The panel in `metrics.jsonl`."""
    total_steps: int

    def accumulate(self, step: int) -> dict[str, float | None]:
        """Adds this worker's gradients of step `step`; what was measured, of all workers."""

    def evaluate(self) -> dict[str, float | None]:
        """Held-out figures of the model as it is."""

    def judge(self, step: int, measured: Mapping[str, float | None]) -> Decision:
        """What to do after `step` steps."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the task."""

    def restore(self, state: Mapping[str, Any]) -> None: ...

    def can_pause(self, step: int) -> bool:
        """Whether everything that step `step` needs can be made again from the weights alone."""


class Stateless:
    """The part of a task whose steps are functions of the seed and the weights, and which nothing stops."""

    def judge(self, step: int, measured: Mapping[str, float | None]) -> Decision:
        return GO_ON

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing."""

    def can_pause(self, step: int) -> bool:
        return True


class Trained(NamedTuple):
    """How a run ended."""

    step: int
    """Of the weights that the model now has."""
    outcome: Literal["finished", "stopped", "rolled_back"]
    warnings: tuple[Warned, ...]
    total_steps: int
    seconds: float
    tokens: int


class Weights(NamedTuple):
    """The trainable parameters by name: what a checkpoint holds."""

    parameters: Mapping[str, nn.Parameter]

    def read(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        if set(tensors) != set(self.parameters):
            raise ConfigError(
                "the checkpoint has other trainable weights than the recipe; pass another --out, or --fresh"
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])


def train(
    task: Task,
    parameters: Mapping[str, nn.Parameter],
    config: TrainingConfig,
    checkpoints: Checkpoints,
    journal: Journal,
    workers: Workers,
    *,
    show_progress: bool,
) -> Trained:
    """Takes the steps of `task` that are not taken yet, from the newest sound checkpoint.

    A killed and resumed run ends with the weights of an undisturbed one: data order, dropout and rollouts are functions
    of the seed and the step, and a checkpoint holds everything else.

    Raises `WorkError` where a gradient is not finite, and what the task raises.
    """
    weights, optimiser = Weights(parameters), Optimiser(parameters, config.optimiser)
    start, spent, tokens = 0, 0.0, 0
    warnings: list[Warned] = []
    if (kept := checkpoints.latest()) is not None:
        weights.write(kept.weights)
        optimiser.restore(kept.optimizer)
        task.restore(kept.extra["task"])
        start, spent, tokens = kept.step, kept.extra["seconds"], kept.extra["tokens"]
        warnings = [Warned.model_validate(one) for one in kept.extra["warnings"]]
        journal.log("resumed", panel=task.name, step=start)
    began = time.monotonic()
    saved = start

    def save(step: int, hold: int | None) -> None:
        if workers.is_main:
            extra = {
                "task": task.state(),
                "seconds": spent + time.monotonic() - began,
                "tokens": tokens,
                "warnings": [one.model_dump(mode="json") for one in warnings],
            }
            checkpoints.save(Checkpoint(step, weights.read(), optimiser.state(), extra), hold=hold)
        workers.wait()

    def evaluate(step: int) -> None:
        journal.metric(f"{task.name}.eval", step, **task.evaluate())

    if start == 0:
        evaluate(0)
        # What a rollback can always go to.
        save(0, None)
    outcome: Literal["finished", "stopped", "rolled_back"] = "finished"
    step = start
    healthy: int | None = 0
    with progress(task.total_steps - start, "steps", task.name, enabled=show_progress and workers.is_main) as meter:
        for step in range(start + 1, task.total_steps + 1):
            clock = time.monotonic()
            measured = task.accumulate(step - 1)
            workers.sum(optimiser.gradients())
            norm, rate = optimiser.step(step - 1, task.total_steps)
            tokens += int(measured.get("tokens") or 0)
            measured |= {"grad_norm": norm, "learning_rate": rate, "seconds": time.monotonic() - clock}
            journal.metric(task.name, step, **measured)
            decision = task.judge(step, measured)
            for one in decision.warnings:
                warnings.append(one)
                journal.log("warning", panel=task.name, step=one.step, level=one.level, sentence=one.sentence)
            healthy = decision.healthy_step if decision.healthy_step is not None else healthy
            meter.advance()
            if decision.action == "rollback":
                step = _roll_back(checkpoints, weights, healthy)
                outcome = "rolled_back"
                break
            if decision.action == "stop":
                outcome = "stopped"
                break
            is_last = step == task.total_steps
            if config.eval_every is not None and step % config.eval_every == 0 and not is_last:
                evaluate(step)
            if not is_last and step - saved >= config.checkpoint_every and task.can_pause(step):
                save(step, _newest_until(checkpoints.steps(), healthy))
                saved = step
    if step != start or outcome == "rolled_back" or start == task.total_steps:
        evaluate(step)
    return Trained(step, outcome, tuple(warnings), task.total_steps, spent + time.monotonic() - began, tokens)


def _roll_back(checkpoints: Checkpoints, weights: Weights, healthy: int | None) -> int:
    """Puts back the newest checkpoint of a healthy policy; its step."""
    step = _newest_until(checkpoints.steps(), healthy)
    if step is None:
        raise ConfigError("there is no healthy checkpoint to roll back to; lower checkpoint_every")
    weights.write(checkpoints.read(step).weights)
    return step


def _newest_until(steps: list[int], limit: int | None) -> int | None:
    return max((step for step in steps if limit is None or step <= limit), default=None)
