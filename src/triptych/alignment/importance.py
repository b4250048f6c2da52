"""Importance weights of the sampler: completions are written by one distribution and trained under another.

Ratio and clip range of a policy loss are taken against the training pass itself (`policy_losses`). What is between that
and the distribution that the tokens were drawn from is corrected apart from it, as TRL does for vLLM:

    ratio_t = π_old(y_t) / b(y_t)

where b is what was *drawn* from: other arithmetic, other weights, and under a truncation renormalised. So the mean of
the raw ratio under b is the mass that b keeps of π_old: 1 at full support, less under top-p. A truncated sampler says
nothing of the tokens that it never draws, and no weight mends that.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from triptych.config import Config

Mode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


class ImportanceSampling(Config):
    """The correction for the gap between sampler and training pass; names and meanings are TRL's `vllm_…`.

    Departure: TRL's default mode is `sequence_mask`. The ratio of a sequence is a product over its tokens, so that
    rounding alone masks long completions; a token's does not grow.
    """

    correction: bool = True
    """Whether it enters the loss; it is measured in any case."""
    mode: Mode = "token_truncate"
    """A ratio a token or a completion; those beyond the bounds are set to them (`truncate`) or to 0 (`mask`)."""
    clip_max: float | None = Field(default=3.0, gt=0.0)
    clip_min: float | None = Field(default=None, ge=0.0)

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "ImportanceSampling":
        if self.clip_min is not None and self.clip_max is not None and self.clip_min >= self.clip_max:
            raise ValueError(f"clip_min {self.clip_min} is not below clip_max {self.clip_max}")
        return self


class Importance(NamedTuple):
    """Weights of a batch; a unit is a token or a completion, by the mode."""

    weights: Float[Tensor, " t"]
    """One a token."""
    ratios: Float[Tensor, " u"]
    """Raw, one a unit."""
    bounded: Float[Tensor, " u"]
    """The weights, one a unit."""
    masked: Bool[Tensor, " u"]
    """Units beyond the bounds."""


def importance_weights(
    config: ImportanceSampling,
    old_logps: Float[Tensor, " t"],
    behaviour_logps: Float[Tensor, " t"],
    sequence: Int[Tensor, " t"],
    n: int,
) -> Importance:
    """The weight of every token of n completions, fp32, without gradient; log-probabilities in nats.

    `behaviour_logps` are of the distribution drawn from, `sequence` says which completion a token belongs to.
    Source: truncation, Ionides 2008 and Yao et al. 2025; masks and sequence ratios, TRL 1.16.
    """
    log_ratio = (old_logps - behaviour_logps).detach()
    by_sequence = config.mode.startswith("sequence")
    if by_sequence:
        log_ratio = log_ratio.new_zeros(n).index_add(0, sequence, log_ratio)
    ratios = log_ratio.exp()
    low = -torch.inf if config.clip_min is None else config.clip_min
    high = torch.inf if config.clip_max is None else config.clip_max
    masked = (ratios < low) | (ratios > high)
    bounded = ratios.masked_fill(masked, 0.0) if config.mode.endswith("mask") else ratios.clamp(low, high)
    return Importance(bounded[sequence] if by_sequence else bounded, ratios, bounded, masked)


class ImportanceFigures(NamedTuple):
    """What a step's importance weights were like; sums and extremes, so that parts add up to the whole."""

    low: float = torch.inf
    high: float = -torch.inf
    units: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    masked: float = 0.0
    raw: float = 0.0

    @classmethod
    def measure(cls, importance: Importance) -> "ImportanceFigures":
        """Of one pass."""
        _, ratios, bounded, masked = importance
        if not len(bounded):
            return cls()
        sums = [float(one.double().sum()) for one in (bounded, bounded.double().square(), masked, ratios)]
        return cls(float(bounded.min()), float(bounded.max()), float(len(bounded)), *sums)

    def __or__(self, other: "ImportanceFigures") -> "ImportanceFigures":
        """Of both together."""
        sums = (a + b for a, b in zip(self[2:], other[2:], strict=True))
        return ImportanceFigures(min(self.low, other.low), max(self.high, other.high), *sums)

    def named(self) -> dict[str, float | None]:
        """By the names of metrics: of the weights; `importance_ess` is (Σw)² / (n Σw²), the share of the units left.

        `importance_raw` is the mean of the ratios before they are bounded: 1 within its error at full support.
        """
        if not self.units:
            names = ("min", "mean", "max", "ess", "masked", "raw")
            return {f"importance_{name}": None for name in names}
        return {
            "importance_min": self.low,
            "importance_mean": self.total / self.units,
            "importance_max": self.high,
            "importance_ess": self.total**2 / (self.units * self.squares) if self.squares else 0.0,
            "importance_masked": self.masked / self.units,
            "importance_raw": self.raw / self.units,
        }
