"""The GRPO family on flat, ragged tokens: no padding, so nothing is masked and nothing is counted twice.

`t` runs over the completion tokens of a micro-batch, one completion after another; `sequence[t]` says which of its `n`
completions a token belongs to. Log-probabilities are in nats, at the sampling temperature. A completion never spans two
micro-batches.

Each token weighs what [`token_weights`][triptych.alignment.policy_losses.token_weights] gives its completion, computed
once over the whole batch: micro-batches and processes then only add up, and 1 × 8 is 8 × 1. To add a variant: a config
with its `name`, an entry in `SURROGATES`, if need be one in `AGGREGATIONS`, and a place in `PolicyLoss`.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from triptych.config import Config

MAX_EXPONENT = 20.0
"""Ratios are continued along their tangent beyond e^20: their sums and gradients stay finite and keep their sign."""


class PolicyBatch(NamedTuple):
    """The completion tokens of a micro-batch."""

    logps: Float[Tensor, " t"]
    """Under the policy that is trained; these carry the gradient."""
    old_logps: Float[Tensor, " t"]
    """Under the policy before the first update on these completions, by the pass that trains it: what ratios and clip
    ranges are taken against. In the first update they are `logps` themselves, and every ratio is exactly 1."""
    ref_logps: Float[Tensor, " t"] | None
    """Under the reference; None where no KL is wanted."""
    sequence: Int[Tensor, " t"]
    """The completion of each token: 0 … n - 1, ascending."""
    advantages: Float[Tensor, " n"]
    """One a completion."""
    weights: Float[Tensor, " n"]
    """Of each token of a completion, from `token_weights` over the whole batch; 0: left out."""
    importance: Float[Tensor, " t"] | None = None
    """What the surrogate of each token is multiplied with, for having been written by another distribution; without
    gradient (`triptych.alignment.importance`). None: 1."""


class PolicyLossOutput(NamedTuple):
    """The loss of a micro-batch and what to report of it: sums, so that `total` of the parts is that of the whole.

    Tokens of completions with weight 0 are in none of them.
    """

    loss: Float[Tensor, ""]
    """This micro-batch's share, with its gradient: the shares add up to the loss of the batch."""
    tokens: Float[Tensor, ""]
    """How many tokens were counted."""
    clipped: Float[Tensor, ""]
    """How many of them had their gradient cut by the clip range."""
    k1: Float[Tensor, ""] | None
    """Sum of log π - log π_ref; None without a reference. Only the policy's own samples make a KL of it."""
    k3: Float[Tensor, ""] | None
    """Sum of r - 1 - log r, never negative; the same KL in the mean."""

    @property
    def clip_fraction(self) -> float | None:
        """Share of the tokens that were clipped; None of no token."""
        return _mean(self.clipped, self.tokens)

    @property
    def kl(self) -> float | None:
        """Mean of k3, nats per token; None without a reference or tokens."""
        return None if self.k3 is None else _mean(self.k3, self.tokens)


class Surrogate(NamedTuple):
    """Losses, one a token, and where the clip range cut the gradient off."""

    losses: Float[Tensor, " t"]
    clipped: Bool[Tensor, " t"]


# --- How tokens are weighted ------------------------------------------------------------------------------------------


def per_completion(lengths: Int[Tensor, " n"], kept: Bool[Tensor, " n"], max_tokens: int) -> Float[Tensor, " n"]:
    """GRPO: the mean over the completions of the mean over their tokens, 1 / (N |y_i|) (Shao et al. 2024, eq. 3)."""
    return kept / (kept.sum() * lengths).clamp(min=1)


def per_token(lengths: Int[Tensor, " n"], kept: Bool[Tensor, " n"], max_tokens: int) -> Float[Tensor, " n"]:
    """DAPO: the mean over all tokens of the batch, 1 / Σ |y_j| (Yu et al. 2025, eq. 8)."""
    return kept / (lengths * kept).sum().clamp(min=1)


def fixed_length(lengths: Int[Tensor, " n"], kept: Bool[Tensor, " n"], max_tokens: int) -> Float[Tensor, " n"]:
    """Dr. GRPO: as if every completion had the longest length allowed, 1 / (N max_tokens) (Liu et al. 2025, § 3)."""
    return kept / (kept.sum() * max_tokens).clamp(min=1)


Aggregation = Literal["grpo", "dapo", "dr_grpo"]

AGGREGATIONS: dict[Aggregation, Callable[[Tensor, Tensor, int], Tensor]] = {
    "grpo": per_completion,
    "dapo": per_token,
    "dr_grpo": fixed_length,
}


def token_weights(
    lengths: Int[Tensor, " n"], kept: Bool[Tensor, " n"], *, aggregation: Aggregation, max_tokens: int
) -> Float[Tensor, " n"]:
    """The weight of each token of completion i in the loss of the batch, fp32; once over the *whole* batch.

    `lengths` counts tokens, `kept` says which completions take part (truncated ones may be masked out), `max_tokens` is
    the longest length allowed. Masked and empty completions get weight 0; if all are, all weights are 0.

    Departure from TRL 1.16: there a masked completion keeps its place in the denominators of `grpo` and `dr_grpo`, so
    that a batch with many truncated completions takes smaller steps; here it leaves them, as it leaves `dapo`'s.
    """
    return AGGREGATIONS[aggregation](lengths, kept & (lengths > 0), max_tokens).float()


# --- Their terms ------------------------------------------------------------------------------------------------------


def clipped_surrogate(
    logps: Float[Tensor, " t"],
    old_logps: Float[Tensor, " t"],
    advantages_per_token: Float[Tensor, " t"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    delta: float | None = None,
) -> Surrogate:
    """PPO's pessimistic surrogate with a clip range of two sides.

        -min(ρA, clip(ρ, 1 - clip_low, 1 + clip_high) A),   ρ = exp(logp - old_logp)

    `delta` bounds ρ also where A < 0 and nothing else does. `clipped` is True where the gradient is cut off: A > 0 and
    ρ > 1 + clip_high, or A < 0 and ρ < 1 - clip_low (or > delta).

    Source: Schulman et al. 2017, eq. 7; two ranges: Yu et al. 2025 (DAPO), eq. 10; delta: INTELLECT-2, 2025.
    Written without the min, whose two arms share the gradient where they tie. TRL does not count what delta clips.
    """
    return _clip(_exp(logps - old_logps), advantages_per_token, clip_low, clip_high, delta)


def sequence_log_ratio(
    logps: Float[Tensor, " t"], old_logps: Float[Tensor, " t"], sequence: Int[Tensor, " t"], n: int
) -> Float[Tensor, " n"]:
    """GSPO's log importance ratio of whole completions, length-normalised; 0 for a completion without tokens.

        log s_i = 1 / |y_i| · Σ_t (logp_t - old_logp_t)

    The gradient flows through every logp_t with weight 1 / |y_i|.

    Source: Zheng et al. 2025, eq. 7 (not the token variant GSPO-token of eq. 13).
    """
    sums = logps.new_zeros(n).index_add(0, sequence, logps - old_logps)
    return sums / torch.bincount(sequence, minlength=n).clamp(min=1)


def k1(logps: Float[Tensor, " t"], ref_logps: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """log π - log π_ref: on the policy's own samples an unbiased estimate of KL(π‖π_ref), of either sign.

    Source: Schulman 2020, "Approximating KL divergence". As a loss it does nothing: its mean gradient is 0.
    """
    return logps - ref_logps


def k3(logps: Float[Tensor, " t"], ref_logps: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """r - 1 - log r with r = π_ref / π: on the policy's own samples an unbiased estimate of KL(π‖π_ref), and never < 0.

    Source: Schulman 2020; GRPO's penalty, Shao et al. 2024, eq. 4. Its mean gradient is that of KL(π_ref‖π).
    """
    log_ratio = ref_logps - logps
    return _exp_minus_one(log_ratio) - log_ratio


def _exp(x: Tensor) -> Tensor:
    """e^x, continued along its tangent beyond `MAX_EXPONENT`: at infinity, the zero gradient of a clip would be NaN."""
    bounded = x.clamp(max=MAX_EXPONENT)
    return bounded.exp() * (1.0 + (x - bounded))


def _exp_minus_one(x: Tensor) -> Tensor:
    """The same less one, without the cancellation near 0 that would make k3 negative."""
    bounded = x.clamp(max=MAX_EXPONENT)
    return bounded.expm1() + bounded.exp() * (x - bounded)


def _clip(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, delta: float | None) -> Surrogate:
    up, down = advantages > 0, advantages < 0
    bounded = torch.where(up, ratio.clamp(max=1.0 + clip_high), ratio.clamp(min=1.0 - clip_low, max=delta))
    too_low = ratio < 1.0 - clip_low
    beyond = too_low if delta is None else too_low | (ratio > delta)
    return Surrogate(-advantages * bounded, (up & (ratio > 1.0 + clip_high)) | (down & beyond))


# --- Their configs ----------------------------------------------------------------------------------------------------

Beta: TypeAlias = Annotated[float, Field(ge=0.0)]
ClipLow: TypeAlias = Annotated[float, Field(gt=0.0, lt=1.0)]
ClipHigh: TypeAlias = Annotated[float, Field(gt=0.0)]


class ClippedLoss(Config):
    """What the family shares; each member sets its own defaults and its aggregation."""

    beta: Beta
    """Weight of the k3 penalty against the reference, per nat; 0: no penalty, and no reference is needed."""
    clip_low: ClipLow
    clip_high: ClipHigh
    delta: float | None = None
    """Upper bound of the ratio where the advantage is negative; above 1 + `clip_high`."""

    aggregation: ClassVar[Aggregation]

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0.0

    @model_validator(mode="after")
    def _delta_beyond_the_clip_range(self) -> "ClippedLoss":
        if self.delta is not None and self.delta <= 1.0 + self.clip_high:
            raise ValueError(f"delta {self.delta} is not above 1 + clip_high = {1.0 + self.clip_high}")
        return self


class Grpo(ClippedLoss):
    """GRPO with its paper's KL weight of 0.04 (TRL 1.16 has 0, which leaves nothing to hold a small model back)."""

    name: Literal["grpo"] = "grpo"
    beta: Beta = 0.04
    clip_low: ClipLow = 0.2
    clip_high: ClipHigh = 0.2

    aggregation: ClassVar[Aggregation] = "grpo"


class Dapo(ClippedLoss):
    """The loss of DAPO (Yu et al. 2025): every token weighs the same, the clip range is wider above, and no KL (§ 2.3).

    Two of the paper's four parts are here, clip-higher (§ 3.1) and the token-level loss (§ 3.3). It lacks dynamic
    sampling (§ 3.2), so groups of equal rewards stay in the batch and their tokens in the denominator; and the length
    penalty of overlong reward shaping (§ 3.4), of which `mask_truncated` is the filtering that the paper starts from.
    """

    name: Literal["dapo"] = "dapo"
    beta: Beta = 0.0
    clip_low: ClipLow = 0.2
    clip_high: ClipHigh = 0.28

    aggregation: ClassVar[Aggregation] = "dapo"


class DrGrpo(ClippedLoss):
    """Dr. GRPO: a fixed length in the denominator, and no KL as in its paper; advantages are `centred` by default."""

    name: Literal["dr_grpo"] = "dr_grpo"
    beta: Beta = 0.0
    clip_low: ClipLow = 0.2
    clip_high: ClipHigh = 0.2

    aggregation: ClassVar[Aggregation] = "dr_grpo"


class Gspo(ClippedLoss):
    """GSPO: one ratio a completion. It varies less than a token's, so its clip range is a thousandth (its § 5.1)."""

    name: Literal["gspo"] = "gspo"
    beta: Beta = 0.0
    clip_low: ClipLow = 3e-4
    clip_high: ClipHigh = 4e-4

    aggregation: ClassVar[Aggregation] = "grpo"


PolicyLoss: TypeAlias = Annotated[Grpo | Dapo | DrGrpo | Gspo, Field(discriminator="name")]


def _by_token(config: ClippedLoss, batch: PolicyBatch) -> Surrogate:
    ratio = _exp(batch.logps - batch.old_logps)
    return _clip(ratio, batch.advantages[batch.sequence], config.clip_low, config.clip_high, config.delta)


def _by_completion(config: ClippedLoss, batch: PolicyBatch) -> Surrogate:
    """Each token stands for its completion: weighted with 1 / (N |y_i|), they make its 1 / N."""
    log_ratio = sequence_log_ratio(batch.logps, batch.old_logps, batch.sequence, len(batch.advantages))
    whole = _clip(_exp(log_ratio), batch.advantages, config.clip_low, config.clip_high, config.delta)
    return Surrogate(whole.losses[batch.sequence], whole.clipped[batch.sequence])


SURROGATES: dict[str, Callable[[ClippedLoss, PolicyBatch], Surrogate]] = {
    "grpo": _by_token,
    "dapo": _by_token,
    "dr_grpo": _by_token,
    "gspo": _by_completion,
}


def policy_loss(config: PolicyLoss, batch: PolicyBatch) -> PolicyLossOutput:
    """The loss that a config chooses, of one micro-batch.

        Σ_t w(t) · (importance_t · surrogate_t + beta · k3_t),   w(t) = weights[sequence[t]]

    As TRL has it, the penalty is not weighted. The loss is 0 in the first update (where advantages sum to 0 and the
    importance is 1), and its gradient is not.
    No token at all gives 0.

    Raises:
        ValueError: `beta` > 0 and the batch has no reference log-probabilities.
    """
    if config.needs_reference and batch.ref_logps is None:
        raise ValueError(
            f"loss '{config.name}' with beta {config.beta} needs the reference's log-probabilities and the batch has "
            "none: score the completions under the reference, or set beta to 0"
        )
    surrogate, weights = SURROGATES[config.name](config, batch), batch.weights[batch.sequence]
    counted = weights > 0
    losses, sum_k1, sum_k3 = surrogate.losses, None, None
    if batch.importance is not None:
        losses = batch.importance * losses
    if batch.ref_logps is not None:
        penalty = k3(batch.logps, batch.ref_logps)
        losses = losses + config.beta * penalty if config.beta else losses
        sum_k1 = _sum(k1(batch.logps, batch.ref_logps), counted)
        sum_k3 = _sum(penalty, counted)
    return PolicyLossOutput(
        loss=(weights * losses).sum(),
        tokens=counted.sum().to(losses.dtype),
        clipped=_sum(surrogate.clipped.to(losses.dtype), counted),
        k1=sum_k1,
        k3=sum_k3,
    )


def total(parts: Sequence[PolicyLossOutput]) -> PolicyLossOutput:
    """The sums over the micro-batches (at least one) of a batch, detached: its loss, and the means of the whole."""
    return PolicyLossOutput(
        loss=torch.stack([part.loss.detach() for part in parts]).sum(),
        tokens=torch.stack([part.tokens for part in parts]).sum(),
        clipped=torch.stack([part.clipped for part in parts]).sum(),
        k1=_sum_of([part.k1 for part in parts]),
        k3=_sum_of([part.k3 for part in parts]),
    )


def _sum(values: Tensor, counted: Tensor) -> Tensor:
    return (values.detach() * counted).sum()


def _sum_of(sums: Sequence[Tensor | None]) -> Tensor | None:
    known = [one for one in sums if one is not None]
    return torch.stack(known).sum() if len(known) == len(sums) else None


def _mean(sum_of: Tensor, count: Tensor) -> float | None:
    return float(sum_of / count) if count > 0 else None
