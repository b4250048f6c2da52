"""Preference losses on summed log-probabilities: plain functions, and the small configs that choose among them.

All tensors hold one value a pair, fp32 or fp64, in nats: `chosen` is log π(chosen | prompt), summed over the tokens of
the completion; `ref_chosen` the same under the reference; h = (chosen - ref_chosen) - (rejected - ref_rejected) the
margin. Every loss is finite with finite gradients for margins of ±1e4. To add one: a plain function, a config with its
`name`, one entry in `LOSSES` and one in `PreferenceLoss`; the conformance suite then runs it. Not here: models, tokens.
"""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from triptych.config import Config


class LossOutput(NamedTuple):
    """What a loss says of a batch of pairs."""

    loss: Float[Tensor, ""]
    """The mean over the pairs; NaN of no pair."""
    losses: Float[Tensor, " n"]
    """One a pair: sum these over micro-batches and divide by the pairs of the whole batch."""
    rewards_chosen: Float[Tensor, " n"]
    """Implicit rewards of the chosen completions, detached; their unit is the loss's own (the docstrings say which)."""
    rewards_rejected: Float[Tensor, " n"]
    """The same of the rejected ones: the share of pairs with chosen > rejected is the accuracy."""


class PairLogps(NamedTuple):
    """All that any loss may ask of a batch of pairs."""

    chosen: Float[Tensor, " n"]
    rejected: Float[Tensor, " n"]
    ref_chosen: Float[Tensor, " n"] | None
    """None where there is no reference, for losses with `needs_reference` False."""
    ref_rejected: Float[Tensor, " n"] | None
    lengths_chosen: Int[Tensor, " n"]
    """Tokens whose log-probabilities were summed."""
    lengths_rejected: Int[Tensor, " n"]


# --- The losses -------------------------------------------------------------------------------------------------------


def dpo(
    chosen: Float[Tensor, " n"],
    rejected: Float[Tensor, " n"],
    ref_chosen: Float[Tensor, " n"],
    ref_rejected: Float[Tensor, " n"],
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> LossOutput:
    """Direct preference optimisation; with label smoothing ε > 0 it is the conservative cDPO.

        -(1 - ε) log σ(βh) - ε log σ(-βh)

    ln 2 where the policy is the reference, whatever ε. Rewards: β(log π - log π_ref).

    Source: Rafailov et al. 2023, eq. 7; cDPO: Mitchell 2023, "A note on DPO with noisy preferences".
    """
    rewards_chosen, rewards_rejected = beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)
    return _logistic(rewards_chosen, rewards_rejected, label_smoothing=label_smoothing)


def ipo(
    chosen: Float[Tensor, " n"],
    rejected: Float[Tensor, " n"],
    ref_chosen: Float[Tensor, " n"],
    ref_rejected: Float[Tensor, " n"],
    *,
    tau: float = 0.1,
) -> LossOutput:
    """Identity preference optimisation: a squared distance of the margin from 1 / (2τ) nats.

        (h - 1 / (2τ))²

    Rewards: τ(log π - log π_ref).

    Source: Azar et al. 2023, eq. 17, on summed log-probabilities as written there. TRL divides them by the lengths
    first: pass `chosen / lengths_chosen`, and so on, for its form, and expect another τ to suit.
    """
    margin = (chosen - ref_chosen) - (rejected - ref_rejected)
    losses = (margin - 1.0 / (2.0 * tau)) ** 2
    return _output(losses, tau * (chosen - ref_chosen), tau * (rejected - ref_rejected))


def hinge(
    chosen: Float[Tensor, " n"],
    rejected: Float[Tensor, " n"],
    ref_chosen: Float[Tensor, " n"],
    ref_rejected: Float[Tensor, " n"],
    *,
    beta: float = 0.1,
) -> LossOutput:
    """The hinge of SLiC on DPO's margin: nothing more to learn from a pair once βh reaches 1.

        max(0, 1 - βh)

    Rewards: β(log π - log π_ref).

    Source: Liu et al. 2024 (RSO), their "hinge-norm"; the hinge is that of Zhao et al. 2023 (SLiC-HF), who have no
    reference.
    """
    rewards_chosen, rewards_rejected = beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)
    return _output(F.relu(1.0 - (rewards_chosen - rewards_rejected)), rewards_chosen, rewards_rejected)


def length_normalised_dpo(
    chosen: Float[Tensor, " n"],
    rejected: Float[Tensor, " n"],
    ref_chosen: Float[Tensor, " n"],
    ref_rejected: Float[Tensor, " n"],
    lengths_chosen: Int[Tensor, " n"],
    lengths_rejected: Int[Tensor, " n"],
    *,
    beta: float = 5.0,
    label_smoothing: float = 0.0,
) -> LossOutput:
    """DPO on log-ratios per token, so that a longer completion has no larger margin for its length alone.

        -(1 - ε) log σ(βh') - ε log σ(-βh')
        h' = (chosen - ref_chosen) / |chosen| - (rejected - ref_rejected) / |rejected|

    Rewards: β / |y| · (log π - log π_ref). β is larger than DPO's: a margin per token is as much smaller. An empty
    completion counts as one token long.

    Source: Lambert et al. 2024 (Tülu 3), § 5, whose β of 5 is the default; TRL's `sigmoid_norm`.
    """
    rewards_chosen = beta * _per_token(chosen - ref_chosen, lengths_chosen)
    rewards_rejected = beta * _per_token(rejected - ref_rejected, lengths_rejected)
    return _logistic(rewards_chosen, rewards_rejected, label_smoothing=label_smoothing)


def simpo(
    chosen: Float[Tensor, " n"],
    rejected: Float[Tensor, " n"],
    lengths_chosen: Int[Tensor, " n"],
    lengths_rejected: Int[Tensor, " n"],
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
) -> LossOutput:
    """Simple preference optimisation: the mean log-probability is the reward, and there is no reference.

        -log σ(β / |chosen| · chosen - β / |rejected| · rejected - γ)

    Rewards: β / |y| · log π. An empty completion counts as one token long.

    Source: Meng et al. 2024, eq. 6; the defaults lie within the ranges they recommend.
    """
    rewards_chosen = beta * _per_token(chosen, lengths_chosen)
    rewards_rejected = beta * _per_token(rejected, lengths_rejected)
    return _logistic(rewards_chosen, rewards_rejected, target=gamma)


def bradley_terry(
    chosen_scores: Float[Tensor, " n"], rejected_scores: Float[Tensor, " n"], *, centring: float = 0.0
) -> LossOutput:
    """The reward model's loss on scores r (no log-probabilities), with optional centring c.

        -log σ(r_c - r_r) + c (r_c + r_r)²

    The likelihood knows only differences: c, such as 0.01, keeps the scores of a pair around 0. Rewards: the scores.

    Source: Bradley and Terry 1952; the centring term: Eisenstein et al. 2023 (and TRL's
    `center_rewards_coefficient`).
    """
    logistic = _logistic(chosen_scores, rejected_scores)
    losses = logistic.losses + centring * (chosen_scores + rejected_scores) ** 2
    return logistic._replace(losses=losses, loss=losses.mean())


def _logistic(
    rewards_chosen: Tensor, rewards_rejected: Tensor, *, target: float = 0.0, label_smoothing: float = 0.0
) -> LossOutput:
    margin = rewards_chosen - rewards_rejected - target
    losses = -F.logsigmoid(margin)
    if label_smoothing:
        losses = (1.0 - label_smoothing) * losses - label_smoothing * F.logsigmoid(-margin)
    return _output(losses, rewards_chosen, rewards_rejected)


def _per_token(logps: Tensor, lengths: Tensor) -> Tensor:
    return logps / lengths.clamp(min=1)


def _output(losses: Tensor, rewards_chosen: Tensor, rewards_rejected: Tensor) -> LossOutput:
    return LossOutput(losses.mean(), losses, rewards_chosen.detach(), rewards_rejected.detach())


# --- Their configs ----------------------------------------------------------------------------------------------------

Positive: TypeAlias = Annotated[float, Field(gt=0.0)]
LabelSmoothing: TypeAlias = Annotated[float, Field(ge=0.0, lt=0.5)]


class Dpo(Config):
    """Direct preference optimisation; `label_smoothing` > 0, the share of wrong labels, makes it cDPO."""

    name: Literal["dpo"] = "dpo"
    beta: Positive = 0.1
    """Strength of the tie to the reference: per nat of log-ratio."""
    label_smoothing: LabelSmoothing = 0.0

    needs_reference: ClassVar[bool] = True


class Ipo(Config):
    """Identity preference optimisation: margins of 1 / (2 `tau`) nats are aimed at, not exceeded."""

    name: Literal["ipo"] = "ipo"
    tau: Positive = 0.1

    needs_reference: ClassVar[bool] = True


class Hinge(Config):
    """SLiC's hinge on DPO's margin: zero from a margin of 1 / `beta` nats on."""

    name: Literal["hinge"] = "hinge"
    beta: Positive = 0.1

    needs_reference: ClassVar[bool] = True


class LengthNormalisedDpo(Config):
    """DPO on log-ratios per token; `beta` is per nat a token, so larger than DPO's."""

    name: Literal["length_normalised_dpo"] = "length_normalised_dpo"
    beta: Positive = 5.0
    label_smoothing: LabelSmoothing = 0.0

    needs_reference: ClassVar[bool] = True


class SimPo(Config):
    """SimPO: mean log-probabilities against a target margin `gamma`, without a reference."""

    name: Literal["simpo"] = "simpo"
    beta: Positive = 2.0
    gamma: Annotated[float, Field(ge=0.0)] = 1.0
    """Margin to reach, in units of the reward (after `beta`)."""

    needs_reference: ClassVar[bool] = False


PreferenceLoss: TypeAlias = Annotated[Dpo | Ipo | Hinge | LengthNormalisedDpo | SimPo, Field(discriminator="name")]


def preference_loss(config: PreferenceLoss, pairs: PairLogps) -> LossOutput:
    """The loss that a config chooses, on a batch of pairs.

    Raises:
        ValueError: the loss needs a reference and the batch has none.
    """
    return LOSSES[config.name](config, pairs)


def _with_reference(pairs: PairLogps, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if pairs.ref_chosen is None or pairs.ref_rejected is None:
        raise ValueError(
            f"loss '{name}' needs the reference's log-probabilities and the batch has none: "
            "score the pairs under the reference first, or choose a loss without one (simpo)"
        )
    return pairs.chosen, pairs.rejected, pairs.ref_chosen, pairs.ref_rejected


def _dpo(config: Dpo, pairs: PairLogps) -> LossOutput:
    logps = _with_reference(pairs, config.name)
    return dpo(*logps, beta=config.beta, label_smoothing=config.label_smoothing)


def _ipo(config: Ipo, pairs: PairLogps) -> LossOutput:
    return ipo(*_with_reference(pairs, config.name), tau=config.tau)


def _hinge(config: Hinge, pairs: PairLogps) -> LossOutput:
    return hinge(*_with_reference(pairs, config.name), beta=config.beta)


def _length_normalised_dpo(config: LengthNormalisedDpo, pairs: PairLogps) -> LossOutput:
    logps, lengths = _with_reference(pairs, config.name), (pairs.lengths_chosen, pairs.lengths_rejected)
    return length_normalised_dpo(*logps, *lengths, beta=config.beta, label_smoothing=config.label_smoothing)


def _simpo(config: SimPo, pairs: PairLogps) -> LossOutput:
    logps, lengths = (pairs.chosen, pairs.rejected), (pairs.lengths_chosen, pairs.lengths_rejected)
    return simpo(*logps, *lengths, beta=config.beta, gamma=config.gamma)


LOSSES: dict[str, Callable[[Any, PairLogps], LossOutput]] = {
    "dpo": _dpo,
    "ipo": _ipo,
    "hinge": _hinge,
    "length_normalised_dpo": _length_normalised_dpo,
    "simpo": _simpo,
}
