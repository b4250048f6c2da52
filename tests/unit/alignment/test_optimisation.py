import math

import pytest
import torch
from torch import nn
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from triptych.alignment.optimisation import Optimiser, OptimiserConfig, Schedule, learning_rate
from triptych.errors import WorkError

RATE = 0.01


def config(**options: object) -> OptimiserConfig:
    return OptimiserConfig.model_validate({"learning_rate": RATE, **options})


def parameters() -> dict[str, nn.Parameter]:
    draws = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(4, 3, generator=draws)) for name in ("one", "two")}


def give_gradients(to: dict[str, nn.Parameter], step: int, scale: float = 1.0) -> None:
    draws = torch.Generator().manual_seed(100 + step)
    for parameter in to.values():
        parameter.grad = scale * torch.randn(parameter.shape, generator=draws)


# --- Rates ---------------------------------------------------------------------------------------------------------------

THEIRS = {
    "constant": lambda optimizer, warm, total: get_constant_schedule_with_warmup(optimizer, warm),
    "linear": get_linear_schedule_with_warmup,
    "cosine": get_cosine_schedule_with_warmup,
}


@pytest.mark.parametrize("total", [1, 7, 20])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("schedule", THEIRS)
def test_rates_are_those_of_transformers(schedule: Schedule, warmup: float, total: int) -> None:
    # Its Trainer rounds a share of warm-up steps up, as we do.
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=RATE)
    scheduler = THEIRS[schedule](optimizer, math.ceil(warmup * total), total)
    for step in range(total):
        found = learning_rate(config(schedule=schedule, warmup=warmup), step, total)
        assert found == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_rates_by_hand() -> None:
    # Ten steps, two of warm-up: 0, half, then down over eight.
    rates = [learning_rate(config(warmup=0.2), step, 10) / RATE for step in (0, 1, 2, 6, 9)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.125])


# --- Steps ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"betas": (0.8, 0.95)}, {"epsilon": 1e-3}, {"weight_decay": 0.1}, {"schedule": "constant"}],
    ids=lambda options: ",".join(options) or "defaults",
)
def test_steps_are_those_of_torch(options: dict[str, object]) -> None:
    ours, theirs, settings = parameters(), parameters(), config(clip=None, **options)
    optimiser = Optimiser(ours, settings)
    adamw = torch.optim.AdamW(
        theirs.values(), lr=RATE, betas=settings.betas, eps=settings.epsilon, weight_decay=settings.weight_decay
    )
    for step in range(4):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimiser.step(step, 4)
        adamw.param_groups[0]["lr"] = learning_rate(settings, step, 4)
        adamw.step()
        for name, parameter in ours.items():
            assert torch.equal(parameter, theirs[name])
            assert parameter.grad is None


def test_the_norm_is_that_of_the_whole_gradient() -> None:
    ours = parameters()
    give_gradients(ours, 0)
    flat = torch.cat([parameter.grad.flatten() for parameter in ours.values() if parameter.grad is not None])
    norm, rate = Optimiser(ours, config(schedule="constant")).step(0, 3)
    assert norm == pytest.approx(float(flat.norm()), rel=1e-6)
    assert rate == RATE


@pytest.mark.parametrize("clip", [0.5, 100.0])
def test_clipping_is_torch_s(clip: float) -> None:
    ours, theirs = parameters(), parameters()
    optimiser = Optimiser(ours, config(clip=clip, schedule="constant", epsilon=0.1))
    adamw = torch.optim.AdamW(theirs.values(), lr=RATE, eps=0.1, weight_decay=0.0)
    for step in range(3):
        give_gradients(ours, step, 10.0 ** (step - 1))
        give_gradients(theirs, step, 10.0 ** (step - 1))
        norm, _ = optimiser.step(step, 3)
        assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs.values(), clip)), rel=1e-6)
        adamw.step()
        for name, parameter in ours.items():
            torch.testing.assert_close(parameter, theirs[name])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_touches_no_weight(bad: float) -> None:
    ours = parameters()
    before = {name: parameter.detach().clone() for name, parameter in ours.items()}
    give_gradients(ours, 0)
    gradient = ours["two"].grad
    assert gradient is not None
    gradient[1, 1] = bad
    optimiser = Optimiser(ours, config())
    with pytest.raises(WorkError, match=rf"the gradient of step 7 is {bad}; lower the learning rate"):
        optimiser.step(7, 10)
    for name, parameter in ours.items():
        assert torch.equal(parameter, before[name])
    assert optimiser.state() == {}


def test_a_parameter_without_a_gradient_has_one_of_zeros() -> None:
    # A worker without a share of a batch still takes part in the sum.
    ours = parameters()
    assert [gradient.abs().max() for gradient in Optimiser(ours, config()).gradients()] == [0.0, 0.0]


def test_a_restored_state_goes_on_to_the_bit() -> None:
    whole, first, second = parameters(), parameters(), parameters()
    undisturbed, before, after = (Optimiser(one, config()) for one in (whole, first, second))
    for step in range(4):
        give_gradients(whole, step)
        undisturbed.step(step, 4)
    for step in range(2):
        give_gradients(first, step)
        before.step(step, 4)
    with torch.no_grad():
        for name, parameter in second.items():
            parameter.copy_(first[name])
    after.restore(before.state())
    for step in (2, 3):
        give_gradients(second, step)
        after.step(step, 4)
    for name, parameter in whole.items():
        assert torch.equal(parameter, second[name])
    assert set(after.state()) == {f"{name}:{key}" for name in whole for key in ("step", "exp_avg", "exp_avg_sq")}
