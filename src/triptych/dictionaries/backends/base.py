"""What both ways to compute a training step share."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Batch = Sequence[Float[Tensor, "n _"]]
"""Normalised rows of every model, the same images in each."""


class Backend(Protocol):
    """A dictionary in training: weights, moments, and how a step is taken."""

    def step(self, batch: Batch, sources: Sequence[int], rate: float) -> Float[Tensor, ""]:
        """One step from the codes of some models; the loss Σ_j of that batch, a mean over sources, not synchronised."""
        ...

    def fired(self) -> Bool[Tensor, " f"]:
        """Which latents have fired for any source since this was last asked."""
        ...

    def forget(self, latents: Bool[Tensor, " f"]) -> None:
        """Zero moments for latents that were begun again (their weights are the caller's to set, then `reload`)."""
        ...

    def reorder(self, place: int, order: Int[Tensor, " f"]) -> None:
        """The latents of one model in another order, with all that is remembered of them: latent f becomes order[f]."""
        ...

    def reload(self) -> None:
        """The weights have been changed from outside."""
        ...

    def moments(self) -> dict[str, Tensor]:
        """All that the optimiser remembers, by name."""
        ...

    def restore(self, moments: Mapping[str, Tensor]) -> None:
        """Takes the place of `moments` of an earlier process."""
        ...


class Firing:
    """Which latents have fired since last asked."""

    def __init__(self, latents: int, device: torch.device) -> None:
        self.mask = torch.zeros(latents, dtype=torch.bool, device=device)

    def take(self) -> Bool[Tensor, " f"]:
        taken = self.mask.clone()
        self.mask.zero_()
        return taken
