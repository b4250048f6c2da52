"""What every policy loss must do. A loss enters by standing in `SURROGATES`."""

from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from triptych.alignment.policy_losses import (
    AGGREGATIONS,
    SURROGATES,
    ClippedLoss,
    PolicyBatch,
    PolicyLoss,
    PolicyLossOutput,
    policy_loss,
    token_weights,
    total,
)
from triptych.config import Config, parse_config
from triptych.errors import ConfigError

CONFIGS: dict[str, Any] = {cls.model_fields["name"].default: cls for cls in get_args(get_args(PolicyLoss)[0])}

# The defaults of every loss, and beside them values at which it does something else.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "grpo": [{}, {"beta": 0.0}, {"clip_low": 0.05}, {"clip_high": 0.05}, {"delta": 1.4}],
    "dapo": [{}, {"beta": 0.1}, {"clip_low": 0.05}, {"clip_high": 0.05}, {"delta": 1.4}],
    "dr_grpo": [{}, {"beta": 0.1}, {"clip_low": 0.05}, {"clip_high": 0.05}, {"delta": 1.4}],
    "gspo": [{}, {"beta": 0.1}, {"clip_low": 0.05}, {"clip_high": 0.05}, {"delta": 1.05}],
}
EACH_LOSS = pytest.mark.parametrize(
    "config", [CONFIGS[name](**params) for name in SURROGATES for params in VARIANTS[name]], ids=repr
)
EACH_DEFAULT = pytest.mark.parametrize("config", [CONFIGS[name]() for name in SURROGATES], ids=lambda c: c.name)

LENGTHS = torch.tensor([3, 1, 5, 2, 4])
MAX_TOKENS = 6
ADVANTAGES = torch.tensor([1.2, -0.4, 0.3, -1.1, 0.0], dtype=torch.float64)


def weights_of(config: ClippedLoss, lengths: Tensor = LENGTHS, kept: Tensor | None = None) -> Tensor:
    everything = torch.ones_like(lengths, dtype=torch.bool)
    kept = everything if kept is None else kept
    return token_weights(lengths, kept, aggregation=config.aggregation, max_tokens=MAX_TOKENS)


def sequence_of(lengths: Tensor) -> Tensor:
    return torch.arange(len(lengths)).repeat_interleave(lengths)


def some_batch(config: ClippedLoss, spread: float = 0.2, dtype: torch.dtype = torch.float64) -> PolicyBatch:
    """Five completions; `spread` is the standard deviation of the log-ratios."""
    generator = torch.Generator().manual_seed(3)
    t = int(LENGTHS.sum())
    logps, to_behaviour, to_ref = (torch.randn(t, generator=generator, dtype=torch.float64) for _ in range(3))
    return PolicyBatch(
        logps=(logps - 3).to(dtype).requires_grad_(),
        old_logps=(logps - 3 + spread * to_behaviour).to(dtype),
        ref_logps=(logps - 3 + spread * to_ref).to(dtype),
        sequence=sequence_of(LENGTHS),
        advantages=ADVANTAGES.to(dtype),
        weights=weights_of(config),
    )


def gradient(config: Any, batch: PolicyBatch) -> Tensor:
    (found,) = torch.autograd.grad(policy_loss(config, batch).loss, batch.logps)
    return found


def figures(output: PolicyLossOutput) -> list[float | None]:
    return [None if value is None else value.item() for value in output]


def take(batch: PolicyBatch, completions: list[int]) -> PolicyBatch:
    """The micro-batch of these completions, in this order."""
    tokens = torch.cat([(batch.sequence == i).nonzero()[:, 0] for i in completions])
    assert batch.ref_logps is not None
    return PolicyBatch(
        logps=batch.logps[tokens],
        old_logps=batch.old_logps[tokens],
        ref_logps=batch.ref_logps[tokens],
        sequence=sequence_of(LENGTHS[completions]),
        advantages=batch.advantages[completions],
        weights=batch.weights[completions],
    )


def test_every_loss_is_here() -> None:
    assert set(VARIANTS) == set(SURROGATES) == set(CONFIGS)
    assert {cls.aggregation for cls in CONFIGS.values()} == set(AGGREGATIONS)


# --- Against rows padded to one length, as TRL computes them ----------------------------------------------------------


def padded_loss(config: ClippedLoss, batch: PolicyBatch) -> Tensor:
    """The loss on padded rows with a mask, written after the formulas of TRL 1.16 (no completion is left out here)."""
    mask = torch.arange(int(LENGTHS.max())) < LENGTHS[:, None]

    def rows(flat: Tensor) -> Tensor:
        return torch.zeros(mask.shape, dtype=flat.dtype).masked_scatter(mask, flat)

    assert batch.ref_logps is not None
    logps, behaviour, ref = rows(batch.logps), rows(batch.old_logps), rows(batch.ref_logps)
    log_ratio = logps - behaviour
    if config.model_dump()["name"] == "gspo":
        log_ratio = ((log_ratio * mask).sum(-1) / mask.sum(-1))[:, None]
    first, second = log_ratio.exp(), log_ratio.exp().clamp(1 - config.clip_low, 1 + config.clip_high)
    if config.delta is not None:
        first = first.clamp(max=config.delta)
    advantages = batch.advantages[:, None]
    losses = -torch.min(first * advantages, second * advantages)
    losses = losses + config.beta * ((ref - logps).exp() - (ref - logps) - 1)
    if config.aggregation == "grpo":
        return ((losses * mask).sum(-1) / mask.sum(-1)).mean()
    denominator = mask.sum() if config.aggregation == "dapo" else len(LENGTHS) * MAX_TOKENS
    return (losses * mask).sum() / denominator


@EACH_LOSS
@pytest.mark.parametrize("spread", [0.0, 0.01, 0.5, 1.5])
def test_it_is_the_padded_loss(config: Any, spread: float) -> None:
    batch = some_batch(config, spread)
    expected = padded_loss(config, batch)
    (expected_gradient,) = torch.autograd.grad(expected, batch.logps)
    # The weights are fp32.
    assert policy_loss(config, batch).loss.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-8)
    assert torch.allclose(gradient(config, batch), expected_gradient, rtol=1e-6, atol=1e-8)


# --- What holds for all -----------------------------------------------------------------------------------------------


@EACH_LOSS
def test_at_the_start_the_loss_is_zero_and_its_gradient_is_not(config: Any) -> None:
    # Four completions of one length, advantages that sum to 0, and the policy still the one that wrote.
    lengths, advantages = torch.tensor([3, 3, 3, 3]), torch.tensor([1.5, -0.5, -1.25, 0.25], dtype=torch.float64)
    logps = torch.linspace(-4, -1, 12, dtype=torch.float64).requires_grad_()
    same = logps.detach()
    batch = PolicyBatch(logps, same, same, sequence_of(lengths), advantages, weights_of(config, lengths))
    output = policy_loss(config, batch)
    assert output.loss.item() == pytest.approx(0.0, abs=1e-12)
    assert output.clip_fraction == 0.0
    assert output.kl == 0.0
    found = gradient(config, batch)
    assert found.abs().max() > 0.01


@EACH_LOSS
def test_it_wants_good_completions_up_and_bad_ones_down(config: Any) -> None:
    batch = some_batch(config, spread=0.0)
    found = gradient(config, batch)
    # Descent goes against the gradient; what is no better than its siblings is left alone.
    assert torch.equal(torch.sign(-found), torch.sign(batch.advantages)[batch.sequence])


@EACH_LOSS
def test_the_order_of_completions_does_not_matter(config: Any) -> None:
    batch = some_batch(config)
    whole, shuffled = policy_loss(config, batch), policy_loss(config, take(batch, [3, 0, 4, 2, 1]))
    assert figures(shuffled) == pytest.approx(figures(whole), rel=1e-12)


@EACH_LOSS
@pytest.mark.parametrize("split", [[[0], [1], [2], [3], [4]], [[0, 1], [2, 3, 4]], [[4, 2], [0, 3], [1]]])
def test_micro_batches_add_up_to_the_whole(config: Any, split: list[list[int]]) -> None:
    batch = some_batch(config)
    parts = [policy_loss(config, take(batch, completions)) for completions in split]
    whole, summed = policy_loss(config, batch), total(parts)
    assert figures(summed) == pytest.approx(figures(whole), rel=1e-12)
    assert summed.clip_fraction == pytest.approx(whole.clip_fraction)
    assert summed.kl == pytest.approx(whole.kl)
    (accumulated,) = torch.autograd.grad(sum((part.loss for part in parts[1:]), parts[0].loss), batch.logps)
    assert torch.allclose(accumulated, gradient(config, batch), rtol=1e-12)


@EACH_LOSS
def test_a_masked_completion_is_as_if_it_were_not_there(config: Any) -> None:
    batch = some_batch(config)
    kept = torch.tensor([True, False, True, True, False])
    masked = batch._replace(weights=weights_of(config, kept=kept))
    alone = take(batch, [0, 2, 3])._replace(weights=weights_of(config, lengths=LENGTHS[[0, 2, 3]]))
    assert figures(policy_loss(config, masked)) == pytest.approx(figures(policy_loss(config, alone)), rel=1e-12)
    found = gradient(config, masked)
    assert (found[~kept[batch.sequence]] == 0).all()


@EACH_LOSS
def test_all_masked_is_zero(config: Any) -> None:
    none = torch.zeros(5, dtype=torch.bool)
    batch = some_batch(config, spread=5.0)._replace(weights=weights_of(config, kept=none))
    output = policy_loss(config, batch)
    assert output.loss.item() == 0.0
    assert output.clip_fraction is None
    assert output.kl is None
    assert (gradient(config, batch) == 0).all()


@EACH_LOSS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_ratio", [-1e4, -100.0, -20.0, 20.0, 100.0, 1e4])
def test_values_and_gradients_are_finite(config: Any, dtype: torch.dtype, log_ratio: float) -> None:
    batch = some_batch(config, spread=0.0, dtype=dtype)
    far = batch.logps.detach() - log_ratio
    for changed in (batch._replace(old_logps=far), batch._replace(ref_logps=far)):
        output = policy_loss(config, changed)
        assert all(value.isfinite() for value in output if value is not None)
        assert gradient(config, changed).isfinite().all()


@EACH_LOSS
def test_it_keeps_fp32(config: Any) -> None:
    output = policy_loss(config, some_batch(config, dtype=torch.float32))
    assert {value.dtype for value in output if value is not None} == {torch.float32}
    expected = policy_loss(config, some_batch(config))
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=1e-4, abs=1e-6)


@EACH_LOSS
def test_gradients_are_those_of_finite_differences(config: Any) -> None:
    batch = some_batch(config)

    def loss(logps: Tensor) -> Tensor:
        return policy_loss(config, batch._replace(logps=logps)).loss

    assert torch.autograd.gradcheck(loss, (batch.logps,))


@EACH_LOSS
def test_what_is_reported_carries_no_gradient(config: Any) -> None:
    output = policy_loss(config, some_batch(config))
    assert [value.requires_grad for value in output if value is not None] == [True, False, False, False, False]


@EACH_LOSS
def test_it_says_whether_it_needs_a_reference(config: Any) -> None:
    bare = some_batch(config)._replace(ref_logps=None)
    assert config.needs_reference == (config.beta > 0)
    if config.needs_reference:
        with pytest.raises(ValueError, match=f"loss '{config.name}' with beta .* needs the reference's"):
            policy_loss(config, bare)
    else:
        assert policy_loss(config, bare).loss == policy_loss(config, some_batch(config)).loss


@EACH_DEFAULT
def test_every_parameter_is_read(config: Any) -> None:
    params = VARIANTS[config.name]
    assert {key for one in params for key in one} == set(CONFIGS[config.name].model_fields) - {"name"}
    # So far off that both clip ranges and delta matter.
    batch = some_batch(config, spread=1.5)
    losses = [policy_loss(CONFIGS[config.name](**one), batch).loss.item() for one in params]
    assert len(set(losses)) == len(losses)


@EACH_DEFAULT
@pytest.mark.parametrize(
    "params",
    [
        {"beta": -0.1},
        {"clip_low": 0.0},
        {"clip_low": 1.0},
        {"clip_high": 0.0},
        {"delta": 1.0001},
        {"delta": -3.0},
        {"epsilon": 0.2},
    ],
    ids=str,
)
def test_parameters_out_of_range_are_refused(config: Any, params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CONFIGS[config.name](**params)


class Holder(Config):
    loss: PolicyLoss


def test_the_union_is_tagged() -> None:
    holder = parse_config(Holder, {"loss": {"name": "dapo", "beta": 0.01}}, where="a.yaml")
    assert holder.loss == CONFIGS["dapo"](beta=0.01)
    with pytest.raises(ConfigError, match=r"^a\.yaml: loss: unknown name 'gppo'; did you mean 'g[rs]po'\?$"):
        parse_config(Holder, {"loss": {"name": "gppo"}}, where="a.yaml")
    with pytest.raises(ConfigError, match=r"^a\.yaml: loss: delta 1\.1 is not above 1 \+ clip_high = 1\.28$"):
        parse_config(Holder, {"loss": {"name": "dapo", "delta": 1.1}}, where="a.yaml")
