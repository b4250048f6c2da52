"""From losses to a step: gradients summed over passes, then AdamW with a schedule and clipping.

Learning rates are pure functions of the step, so there is no scheduler state to save.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from triptych.config import Config
from triptych.errors import WorkError
from triptych.lanes import Lanes

Part = TypeVar("Part")
Measured = TypeVar("Measured")

Schedule = Literal["constant", "linear", "cosine"]

# Share of the peak rate that is left when `progress` of the steps after the warm-up are done.
SCHEDULES: dict[Schedule, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}


class OptimiserConfig(Config):
    """AdamW (Loshchilov and Hutter 2019)."""

    learning_rate: float = Field(gt=0.0)
    schedule: Schedule = "linear"
    warmup: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the steps over which the rate rises linearly from 0."""
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = Field(default=1e-8, gt=0.0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    clip: float | None = Field(default=1.0, gt=0.0)
    """Largest norm of the whole gradient; None: no clipping."""


def learning_rate(config: OptimiserConfig, step: int, total: int) -> float:
    """The rate of optimizer step `step`, 0 … total - 1; as transformers' schedules have it."""
    warm = math.ceil(config.warmup * total)
    if step < warm:
        return config.learning_rate * step / warm
    return config.learning_rate * SCHEDULES[config.schedule]((step - warm) / max(1, total - warm))


def accumulate(
    read: Callable[[Part], tuple[Tensor, Measured]],
    parts: Sequence[Part],
    parameters: Iterable[nn.Parameter],
    lanes: Lanes,
) -> Iterator[Measured]:
    """Adds to the parameters' gradients those of the loss that `read` gives for each part, and yields what it measured.

    In the order of the parts, wherever they run: sums do not depend on who was first.
    """
    if lanes.count == 1:
        for part in parts:
            loss, measured = read(part)
            loss.backward()
            yield measured
        return
    trained = [*parameters]

    def differentiate(part: Part) -> tuple[Sequence[Tensor | None], Measured]:
        loss, measured = read(part)
        return torch.autograd.grad(loss, trained, allow_unused=True), measured

    for gradients, measured in lanes.map(differentiate, parts):
        for parameter, gradient in zip(trained, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        yield measured


class Optimiser:
    """AdamW over named parameters, with its state as plain tensors."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimiserConfig) -> None:
        self._parameters = dict(parameters)
        self._config = config
        self._adamw = torch.optim.AdamW(
            list(self._parameters.values()),
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
        )

    def gradients(self) -> list[Tensor]:
        """Those of all parameters, in order; zeros where a worker had nothing to do."""
        for parameter in self._parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]

    def step(self, step: int, total: int) -> tuple[float, float]:
        """Clips and steps; the norm of the gradient before clipping, and the learning rate.

        Raises `WorkError` for a gradient that is not finite, before any weight is touched.
        """
        rate = learning_rate(self._config, step, total)
        gradients = self.gradients()
        norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.float()) for g in gradients])))
        if not math.isfinite(norm):
            raise WorkError(
                f"the gradient of step {step} is {norm}; lower the learning rate or look at the data of the step"
            )
        if self._config.clip is not None and norm > self._config.clip:
            for gradient in gradients:
                gradient.mul_(self._config.clip / (norm + 1e-6))
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        return norm, rate

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts by parameter; empty before the first step."""
        return {
            f"{name}:{key}": torch.as_tensor(value).detach().clone().contiguous()
            for name, parameter in self._parameters.items()
            for key, value in self._adamw.state.get(parameter, {}).items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for key, value in state.items():
            name, _, kind = key.rpartition(":")
            self._adamw.state[self._parameters[name]][kind] = value.clone()
