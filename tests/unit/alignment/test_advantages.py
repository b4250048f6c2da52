import math

import pytest
import torch

from triptych.alignment.advantages import centred, group_normalised, leave_one_out, zero_variance_share

NAN = math.nan


def test_group_normalised_by_hand() -> None:
    # Mean 3; deviations -2, -1, 1, 2; sample variance (4 + 1 + 1 + 4) / 3 = 10 / 3, std 1.8257419.
    rewards = torch.tensor([[1.0, 2.0, 4.0, 5.0]], dtype=torch.float64)
    expected = [d / (1.8257419 + 1e-4) for d in (-2, -1, 1, 2)]
    assert group_normalised(rewards).tolist()[0] == pytest.approx(expected, rel=1e-7)
    # With eps = 1: divided by 2.8257419.
    assert group_normalised(rewards, eps=1.0)[0, 3].item() == pytest.approx(0.7077787, abs=1e-7)


def test_centred_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0, 5.0], [0.0, 0.0, 0.0, 1.0]])
    assert centred(rewards).tolist() == [[-2.0, -1.0, 1.0, 2.0], [-0.25, -0.25, -0.25, 0.75]]


def test_leave_one_out_by_hand() -> None:
    # 1 - (2 + 4 + 5) / 3 = -8/3; 2 - 10/3 = -4/3; 4 - 8/3 = 4/3; 5 - 7/3 = 8/3.
    rewards = torch.tensor([[1.0, 2.0, 4.0, 5.0]], dtype=torch.float64)
    assert leave_one_out(rewards).tolist()[0] == pytest.approx([-8 / 3, -4 / 3, 4 / 3, 8 / 3])


def test_unscored_completions_leave_the_statistics() -> None:
    # Of 1 and 3: mean 2, deviations ∓1, sample variance 2, std √2. Leave-one-out: 1 - 3 and 3 - 1.
    rewards = torch.tensor([[1.0, NAN, 3.0, NAN]], dtype=torch.float64)
    root = 1.0 / (math.sqrt(2.0) + 1e-4)
    assert group_normalised(rewards).tolist()[0] == pytest.approx([-root, 0.0, root, 0.0])
    assert centred(rewards).tolist()[0] == [-1.0, 0.0, 1.0, 0.0]
    assert leave_one_out(rewards).tolist()[0] == [-2.0, 0.0, 2.0, 0.0]


def test_a_residue_of_rounding_makes_no_advantage() -> None:
    # 0.1 + 0.2 and 0.3 differ by 6e-17. Divided by their own standard deviation they would be ±0.9, with any eps of 0.
    alike = torch.tensor([[0.1 + 0.2, 0.3, 0.3, 0.3], [5.0, 5.0 + 1e-9, 5.0, 5.0]], dtype=torch.float64)
    assert torch.equal(group_normalised(alike, eps=0.0), torch.zeros_like(alike))
    # Seven times 0.1 in fp32: the mean is 1 ulp off.
    assert torch.equal(group_normalised(torch.full((1, 7), 0.1), eps=0.0), torch.zeros(1, 7))


def test_a_small_difference_is_one() -> None:
    # A thousandth, on rewards around 10: std 0.0005 with eps 1e-4 → ± 0.00075 / 0.0006 and so on.
    rewards = torch.tensor([[10.0, 10.0, 10.0, 10.001]], dtype=torch.float64)
    assert group_normalised(rewards).tolist()[0] == pytest.approx([-0.25 / 0.6] * 3 + [0.75 / 0.6], rel=1e-6)


def test_the_share_of_groups_without_variance() -> None:
    rewards = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, NAN], [2.0, 2.0, NAN], [NAN, NAN, 7.0], [NAN, NAN, NAN]])
    # Three groups have two scored; the first and the third are all alike.
    assert zero_variance_share(rewards) == pytest.approx(2 / 3)
    assert zero_variance_share(rewards[:1]) == 1.0
    assert zero_variance_share(rewards[1:2]) == 0.0
    assert zero_variance_share(rewards[3:]) is None
