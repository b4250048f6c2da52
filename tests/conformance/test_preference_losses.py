"""What every preference loss must do. A loss enters by standing in `LOSSES`."""

from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from triptych.alignment.losses import LOSSES, LossOutput, PairLogps, PreferenceLoss, preference_loss
from triptych.config import Config, parse_config
from triptych.errors import ConfigError

CONFIGS: dict[str, Any] = {cls.model_fields["name"].default: cls for cls in get_args(get_args(PreferenceLoss)[0])}

# The defaults of every loss, and beside them values at which it does something else.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "dpo": [{}, {"beta": 1.0}, {"label_smoothing": 0.2}],
    "ipo": [{}, {"tau": 0.08}],
    "hinge": [{}, {"beta": 0.02}],
    "length_normalised_dpo": [{}, {"beta": 1.0}, {"label_smoothing": 0.2}],
    "simpo": [{}, {"beta": 5.0}, {"gamma": 0.0}],
}
EACH_LOSS = pytest.mark.parametrize(
    "config", [CONFIGS[name](**params) for name in LOSSES for params in VARIANTS[name]], ids=repr
)

# Out of range, one a parameter.
REFUSED: list[tuple[str, dict[str, Any]]] = [
    *[(name, {"beta": bad}) for name in ("dpo", "hinge", "length_normalised_dpo", "simpo") for bad in (0.0, -0.1)],
    *[(name, {"label_smoothing": bad}) for name in ("dpo", "length_normalised_dpo") for bad in (-0.1, 0.5)],
    ("ipo", {"tau": 0.0}),
    ("simpo", {"gamma": -1.0}),
    # Another loss's parameter.
    ("ipo", {"beta": 0.1}),
    ("dpo", {"tau": 0.1}),
]


def some_pairs(n: int = 6, dtype: torch.dtype = torch.float64) -> PairLogps:
    """Small margins of both signs: none beyond what ipo aims at (5 nats), none where the hinge has its kink."""
    generator = torch.Generator().manual_seed(0)
    chosen, rejected, ref_chosen, ref_rejected = (
        (-20 + torch.randn(n, generator=generator, dtype=torch.float64)).to(dtype) for _ in range(4)
    )
    lengths = (torch.randint(5, 30, (n,), generator=generator) for _ in range(2))
    return PairLogps(chosen, rejected, ref_chosen, ref_rejected, *lengths)


def with_gradients(pairs: PairLogps) -> PairLogps:
    return pairs._replace(
        chosen=pairs.chosen.detach().requires_grad_(), rejected=pairs.rejected.detach().requires_grad_()
    )


def gradients(output: LossOutput, pairs: PairLogps) -> tuple[Tensor, Tensor]:
    chosen, rejected = torch.autograd.grad(output.loss, (pairs.chosen, pairs.rejected))
    return chosen, rejected


def take(pairs: PairLogps, index: Tensor) -> PairLogps:
    columns: list[Any] = [None if column is None else column[index] for column in pairs]
    return PairLogps(*columns)


def test_every_loss_is_here() -> None:
    assert set(VARIANTS) == set(LOSSES) == set(CONFIGS)


@EACH_LOSS
def test_the_mean_is_that_of_the_losses_and_rewards_carry_no_gradient(config: Any) -> None:
    pairs = with_gradients(some_pairs())
    output = preference_loss(config, pairs)
    assert output.loss == output.losses.mean()
    assert output.losses.shape == output.rewards_chosen.shape == output.rewards_rejected.shape == (6,)
    assert output.loss.requires_grad
    assert not output.rewards_chosen.requires_grad
    assert not output.rewards_rejected.requires_grad


@EACH_LOSS
def test_it_keeps_fp32(config: Any) -> None:
    output = preference_loss(config, some_pairs(dtype=torch.float32))
    assert {column.dtype for column in output} == {torch.float32}
    expected = preference_loss(config, some_pairs())
    assert output.losses.tolist() == pytest.approx(expected.losses.tolist(), rel=1e-4, abs=1e-5)


@EACH_LOSS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("margin", [-1e4, -100.0, 0.0, 100.0, 1e4])
def test_values_and_gradients_are_finite(config: Any, dtype: torch.dtype, margin: float) -> None:
    lengths = torch.tensor([3, 1])
    zero, there = torch.zeros(2, dtype=dtype), torch.full((2,), margin, dtype=dtype)
    pairs = with_gradients(PairLogps(there, zero, zero, zero, lengths, lengths))
    output = preference_loss(config, pairs)
    assert output.losses.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(output, pairs))


@EACH_LOSS
def test_it_wants_the_chosen_up_and_the_rejected_down(config: Any) -> None:
    pairs = with_gradients(some_pairs())
    chosen, rejected = gradients(preference_loss(config, pairs), pairs)
    assert (chosen < 0).all()
    assert (rejected > 0).all()


@EACH_LOSS
def test_it_falls_as_the_margin_grows_from_nothing(config: Any) -> None:
    lengths, zero = torch.tensor([10] * 5), torch.zeros(5)
    # Up to 2 nats: less than the 5 that ipo aims at, and 1 for 10 tokens at a beta of 5, less than the ln 4 = 1.39 at
    # which a label smoothing of 0.2 turns round.
    chosen = torch.linspace(0.0, 2.0, 5)
    losses = preference_loss(config, PairLogps(chosen, zero, zero, zero, lengths, lengths)).losses
    assert (losses.diff() < 0).all()


@EACH_LOSS
def test_the_order_of_pairs_does_not_matter(config: Any) -> None:
    pairs, order = some_pairs(), torch.tensor([3, 0, 5, 1, 4, 2])
    output, shuffled = preference_loss(config, pairs), preference_loss(config, take(pairs, order))
    assert torch.equal(shuffled.losses, output.losses[order])
    assert shuffled.loss.item() == pytest.approx(output.loss.item(), rel=1e-12)


@EACH_LOSS
def test_micro_batches_add_up_to_the_whole(config: Any) -> None:
    pairs = with_gradients(some_pairs())
    whole = gradients(preference_loss(config, pairs), pairs)
    parts = [
        preference_loss(config, take(pairs, torch.tensor(index))).losses.sum() / 6 for index in ([0], [1, 2, 3], [4, 5])
    ]
    summed = torch.autograd.grad(sum(parts[1:], parts[0]), (pairs.chosen, pairs.rejected))
    for one, other in zip(whole, summed, strict=True):
        assert torch.allclose(one, other, rtol=1e-12)


@EACH_LOSS
def test_gradients_are_those_of_finite_differences(config: Any) -> None:
    pairs = with_gradients(some_pairs())

    def losses(chosen: Tensor, rejected: Tensor) -> Tensor:
        return preference_loss(config, pairs._replace(chosen=chosen, rejected=rejected)).losses

    assert torch.autograd.gradcheck(losses, (pairs.chosen, pairs.rejected))


@EACH_LOSS
def test_it_says_whether_it_needs_a_reference(config: Any) -> None:
    bare = some_pairs()._replace(ref_chosen=None, ref_rejected=None)
    if config.needs_reference:
        with pytest.raises(ValueError, match=f"loss '{config.name}' needs the reference's log-probabilities"):
            preference_loss(config, bare)
    else:
        assert torch.equal(preference_loss(config, bare).losses, preference_loss(config, some_pairs()).losses)


@pytest.mark.parametrize("name", LOSSES)
def test_every_parameter_is_read(name: str) -> None:
    perturbed = {key for params in VARIANTS[name] for key in params}
    assert perturbed == set(CONFIGS[name].model_fields) - {"name"}
    losses = [preference_loss(CONFIGS[name](**params), some_pairs()).loss.item() for params in VARIANTS[name]]
    assert len(set(losses)) == len(losses)


@pytest.mark.parametrize(("name", "params"), REFUSED)
def test_parameters_out_of_range_are_refused(name: str, params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CONFIGS[name](**params)


class Holder(Config):
    loss: PreferenceLoss


def test_the_union_is_tagged() -> None:
    holder = parse_config(Holder, {"loss": {"name": "ipo", "tau": 0.2}}, where="a.yaml")
    assert holder.loss == CONFIGS["ipo"](tau=0.2)
    with pytest.raises(ConfigError, match=r"^a\.yaml: loss: unknown name 'dpoo'; did you mean 'dpo'\?$"):
        parse_config(Holder, {"loss": {"name": "dpoo"}}, where="a.yaml")
    with pytest.raises(ConfigError, match=r"^a\.yaml: loss\.bata: unknown key 'bata' in Dpo; did you mean 'beta'\?$"):
        parse_config(Holder, {"loss": {"name": "dpo", "bata": 0.2}}, where="a.yaml")
