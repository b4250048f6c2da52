"""What every advantage must do. One enters by standing in `ADVANTAGES`."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from triptych.alignment.advantages import ADVANTAGES, AdvantageName

EACH = pytest.mark.parametrize("name", ADVANTAGES)
NAN = math.nan


def some_rewards() -> Tensor:
    """Five prompts, groups of six, a few unscored."""
    rewards = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rewards[1, 2] = rewards[3, 0] = rewards[3, 5] = NAN
    return rewards


def test_every_name_is_one_that_a_config_may_hold() -> None:
    assert set(ADVANTAGES) == set(get_args(AdvantageName))


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_type_are_those_of_the_rewards(name: AdvantageName, dtype: torch.dtype) -> None:
    rewards = some_rewards().to(dtype)
    advantages = ADVANTAGES[name](rewards)
    assert advantages.shape == rewards.shape
    assert advantages.dtype == dtype
    assert advantages.isfinite().all()


@EACH
def test_they_sum_to_zero_in_every_group(name: AdvantageName) -> None:
    assert ADVANTAGES[name](some_rewards()).sum(-1).tolist() == pytest.approx([0.0] * 5, abs=1e-12)


@EACH
def test_they_keep_the_order_of_the_rewards(name: AdvantageName) -> None:
    rewards = some_rewards()
    advantages = ADVANTAGES[name](rewards)
    for row, given in zip(advantages, rewards, strict=True):
        scored = ~given.isnan()
        assert torch.equal(row[scored].argsort(), given[scored].argsort())
        assert (row[~scored] == 0.0).all()


@EACH
def test_a_constant_added_to_a_group_changes_nothing(name: AdvantageName) -> None:
    rewards = some_rewards()
    shifted = rewards + torch.tensor([[0.0], [1.0], [-3.0], [100.0], [0.5]], dtype=torch.float64)
    assert torch.allclose(ADVANTAGES[name](shifted), ADVANTAGES[name](rewards), atol=1e-10)


@EACH
def test_order_does_not_matter(name: AdvantageName) -> None:
    rewards = some_rewards()
    prompts, group = torch.tensor([4, 2, 0, 1, 3]), torch.tensor([5, 0, 3, 1, 4, 2])
    shuffled = ADVANTAGES[name](rewards[prompts][:, group])
    assert torch.allclose(shuffled, ADVANTAGES[name](rewards)[prompts][:, group], atol=1e-12)


@EACH
def test_an_unscored_completion_is_as_if_it_were_not_there(name: AdvantageName) -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0]])
    padded = torch.tensor([[1.0, NAN, 2.0, 4.0, NAN]])
    assert torch.allclose(ADVANTAGES[name](padded)[:, [0, 2, 3]], ADVANTAGES[name](rewards))


@EACH
@pytest.mark.parametrize(
    "row",
    [
        [0.0, 0.0, 0.0],
        [0.1, 0.1, 0.1],
        [-7.3e6, -7.3e6, -7.3e6],
        [0.0, 1e-9, 0.0],
        [1e8, 1e8 + 8.0, 1e8],
        [2.5, NAN, NAN],
        [2.5, NAN, 2.5],
        [NAN, NAN, NAN],
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_group_that_says_nothing_gets_exactly_zero(name: AdvantageName, row: list[float], dtype: torch.dtype) -> None:
    rewards = torch.tensor([row, [0.0, 1.0, 2.0]], dtype=dtype)
    advantages = ADVANTAGES[name](rewards)
    assert advantages[0].tolist() == [0.0, 0.0, 0.0]
    assert (advantages[1, [0, 2]] != 0.0).all()


@EACH
def test_a_group_of_one_says_nothing(name: AdvantageName) -> None:
    assert ADVANTAGES[name](torch.tensor([[3.0], [-1.0]])).tolist() == [[0.0], [0.0]]


@EACH
@pytest.mark.parametrize("scale", [1e-3, 1e4, 1e15])
def test_extreme_rewards_give_finite_advantages(name: AdvantageName, scale: float) -> None:
    assert ADVANTAGES[name](some_rewards().float() * scale).isfinite().all()
