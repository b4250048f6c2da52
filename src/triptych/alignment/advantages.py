"""Advantages: from the rewards of a prompt's completions to how much better each is than its siblings.

Rewards come as one row a prompt, NaN where a completion is unscored: it leaves the statistics of its group and has
advantage 0 (unscored is not zero). A group with fewer than two scored completions, or whose rewards are all alike, says
nothing: its advantages are exactly 0. To add one: a plain function and one entry in `ADVANTAGES`.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SPREAD_FLOOR = 1e-6
"""Rewards that lie within so much of one another (times the largest, where that exceeds 1) are alike: sums of rounded
rewards differ by 1e-9, and dividing that by its own standard deviation makes advantages of it."""

AdvantageName = Literal["group_normalised", "centred", "leave_one_out"]


def group_normalised(rewards_P_G: Float[Tensor, "p g"], eps: float = 1e-4) -> Float[Tensor, "p g"]:
    """GRPO's advantages: standard scores within the group.

        A_i = (r_i - mean r) / (std r + eps),   std with n - 1 in the denominator

    Source: Shao et al. 2024 (DeepSeekMath), § 4.1.2; eps and the unbiased std as in TRL. Departure: a group of equal
    rewards gets exactly 0, where rounding would leave a residue.
    """
    group = _statistics(rewards_P_G)
    std = (group.deviations.square().sum(-1) / (group.counts - 1).clamp(min=1)).sqrt()
    return _where_told(group, group.deviations / (std + eps)[:, None])


def centred(rewards_P_G: Float[Tensor, "p g"]) -> Float[Tensor, "p g"]:
    """Dr. GRPO's advantages: A_i = r_i - mean r. No division, which favours prompts that are almost solved or hopeless.

    Source: Liu et al. 2025, "Understanding R1-Zero-like training", § 3.
    """
    group = _statistics(rewards_P_G)
    return _where_told(group, group.deviations)


def leave_one_out(rewards_P_G: Float[Tensor, "p g"]) -> Float[Tensor, "p g"]:
    """RLOO's advantages: the reward less the mean of the others', an unbiased baseline.

        A_i = r_i - Σ_{j ≠ i} r_j / (n - 1) = n / (n - 1) · (r_i - mean r)

    Source: Ahmadian et al. 2024 (Kool et al. 2019).
    """
    group = _statistics(rewards_P_G)
    scale = group.counts / (group.counts - 1).clamp(min=1)
    return _where_told(group, scale[:, None] * group.deviations)


ADVANTAGES: dict[AdvantageName, Callable[[Tensor], Tensor]] = {
    "group_normalised": group_normalised,
    "centred": centred,
    "leave_one_out": leave_one_out,
}


def zero_variance_share(rewards_P_G: Float[Tensor, "p g"]) -> float | None:
    """The share of groups whose rewards are all alike, so that nothing is learnt from them.

    Of the groups with at least two scored completions; None where there is none.
    """
    group = _statistics(rewards_P_G)
    comparable = group.counts >= 2
    if not comparable.any():
        return None
    return float((~group.differ & comparable).sum() / comparable.sum())


class _Statistics(NamedTuple):
    deviations: Float[Tensor, "p g"]
    """From the mean of the scored; 0 where unscored."""
    counts: Int[Tensor, " p"]
    """Scored completions."""
    differ: Bool[Tensor, " p"]
    """At least two scored, and not alike."""


def _statistics(rewards_P_G: Tensor) -> _Statistics:
    scored = ~rewards_P_G.isnan()
    rewards, counts = rewards_P_G.nan_to_num(nan=0.0), scored.sum(-1)
    mean = rewards.sum(-1, keepdim=True) / counts.clamp(min=1)[:, None]
    deviations = torch.where(scored, rewards - mean, 0.0)
    spread = torch.where(scored, rewards, -torch.inf).amax(-1) - torch.where(scored, rewards, torch.inf).amin(-1)
    alike = spread <= SPREAD_FLOOR * rewards.abs().amax(-1).clamp(min=1.0)
    return _Statistics(deviations, counts, (counts >= 2) & ~alike)


def _where_told(group: _Statistics, advantages: Tensor) -> Tensor:
    return torch.where(group.differ[:, None], advantages, 0.0)
