"""Sparsifiers: pre-activations in, sparse codes out; and the small configs that choose among them.

Every one is a plain function of tensors. All clamp at zero, so that to fire means to be positive. To add one: a config
with its `name`, a function in `SPARSIFIERS`, a member of `Sparsifier`; the conformance suite runs it by itself.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from triptych.config import Config

Codes = Float[Tensor, "n f"]
Thresholds = Float[Tensor, " f"]

BANDWIDTH = 0.05
"""Of the kernel that gives JumpReLU's thresholds a gradient, in units of pre-activations."""


class TopK(Config):
    """The k largest of every row (Makhzani and Frey 2014; Gao et al. 2024)."""

    name: Literal["top_k"] = "top_k"
    k: int = Field(default=32, ge=1)


class BatchTopK(Config):
    """The k·n largest of a batch of n rows while training; above a threshold afterwards (Bussmann et al. 2024)."""

    name: Literal["batch_top_k"] = "batch_top_k"
    k: int = Field(default=32, ge=1)


class JumpRelu(Config):
    """Above a threshold that is learnt for every latent (Rajamanoharan et al. 2024)."""

    name: Literal["jump_relu"] = "jump_relu"
    k: int = Field(default=32, ge=1)
    """The mean number of firing latents that training aims at."""
    penalty: float = Field(default=0.1, gt=0)
    """Weight of (L0 / k − 1)² in the loss, whose reconstruction part is 1 for a dictionary that explains nothing."""
    threshold: float = Field(default=0.5, gt=0)
    """To begin with."""


class Matryoshka(Config):
    """BatchTopK whose first latents must reconstruct alone, too, so general ones come first (Bussmann et al. 2025)."""

    name: Literal["matryoshka"] = "matryoshka"
    k: int = Field(default=32, ge=1)
    prefixes: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.0625, 0.125, 0.25, 0.5)
    """Shares of the latents that reconstruct alone; all of them always do."""


Sparsifier = Annotated[TopK | BatchTopK | JumpRelu | Matryoshka, Field(discriminator="name")]


def top_k(pre: Codes, k: int) -> Codes:
    """z_nf = max(0, pre_nf) where pre_nf is among the k largest of row n, else 0."""
    kept = pre.topk(min(k, pre.shape[1]), dim=1)
    return torch.zeros_like(pre).scatter(1, kept.indices, kept.values.relu())


def batch_top_k(pre: Codes, k: int) -> Codes:
    """z_nf = pre_nf where it is positive and among the k·n largest positive ones of the batch of n rows, else 0."""
    positive = pre.relu()
    count = min(k * pre.shape[0], positive.numel())
    kept = positive.flatten().topk(count, sorted=False)
    return torch.zeros_like(positive).flatten().scatter(0, kept.indices, kept.values).view_as(pre)


def above(pre: Codes, threshold: Thresholds) -> Codes:
    """z_nf = pre_nf where it exceeds max(0, threshold_f), else 0."""
    return pre * (pre > threshold.clamp_min(0))


def jump_relu(pre: Codes, threshold: Thresholds) -> Codes:
    """z_nf = pre_nf where it exceeds its threshold, which gets a gradient by a rectangular kernel (eq. 11)."""
    result: Tensor = _JumpRelu.apply(pre.relu(), threshold)  # type: ignore[no-untyped-call]
    return result


def firing_count(pre: Codes, threshold: Thresholds) -> Float[Tensor, ""]:
    """Mean number of latents above their threshold in a row, with a gradient for the thresholds (eq. 12)."""
    steps: Tensor = _Step.apply(pre, threshold)  # type: ignore[no-untyped-call]
    return steps.sum(1).mean()


class _JumpRelu(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, pre: Tensor, threshold: Tensor) -> Tensor:
        context.save_for_backward(pre, threshold)
        return pre * (pre > threshold)

    @staticmethod
    def backward(context: Any, *d_codes: Tensor) -> tuple[Tensor, Tensor]:
        pre, threshold = context.saved_tensors
        near = (pre - threshold).abs() < BANDWIDTH / 2
        return (pre > threshold) * d_codes[0], -(threshold / BANDWIDTH * near * d_codes[0]).sum(0)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, pre: Tensor, threshold: Tensor) -> Tensor:
        context.save_for_backward(pre, threshold)
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(context: Any, *d_steps: Tensor) -> tuple[None, Tensor]:
        pre, threshold = context.saved_tensors
        near = (pre - threshold).abs() < BANDWIDTH / 2
        return None, -(near * d_steps[0] / BANDWIDTH).sum(0)


SPARSIFIERS: dict[str, Callable[[Codes, int, Thresholds], Codes]] = {
    "top_k": lambda pre, k, _: top_k(pre, k),
    "batch_top_k": lambda pre, k, _: batch_top_k(pre, k),
    "jump_relu": lambda pre, _, threshold: jump_relu(pre, threshold),
    "matryoshka": lambda pre, k, _: batch_top_k(pre, k),
}
"""(pre-activations, k, thresholds) → codes, as they are in training."""

AFTERWARDS: dict[str, Callable[[Codes, int, Thresholds], Codes]] = {
    **SPARSIFIERS,
    "batch_top_k": lambda pre, _, threshold: above(pre, threshold),
    "matryoshka": lambda pre, _, threshold: above(pre, threshold),
}
"""The same once training is over: a row's code must not depend on who shares its batch."""


def prefixes(sparsifier: "TopK | BatchTopK | JumpRelu | Matryoshka", latents: int) -> tuple[int, ...]:
    """Numbers of first latents that reconstruct by themselves, ascending; all of them come last."""
    shares = sparsifier.prefixes if isinstance(sparsifier, Matryoshka) else ()
    return (*sorted({max(1, round(share * latents)) for share in shares} - {latents}), latents)
