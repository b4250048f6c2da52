"""Importance weights of the sampler: hand-derived numbers, and what their mean must be."""

import math

import pytest
import torch

from triptych.alignment.importance import ImportanceFigures, ImportanceSampling, importance_weights
from triptych.config import parse_config
from triptych.errors import ConfigError

# Two completions, of 2 tokens and of 1; their ratios token by token are 2, 4 and 0.25, those of the whole 8 and 0.25.
OLD = torch.log(torch.tensor([0.4, 0.8, 0.1]))
BEHAVIOUR = torch.log(torch.tensor([0.2, 0.2, 0.4]))
SEQUENCE = torch.tensor([0, 0, 1])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"mode": "token_truncate"}, [2.0, 3.0, 0.25]),
        ({"mode": "token_mask"}, [2.0, 0.0, 0.25]),
        ({"mode": "sequence_truncate"}, [3.0, 3.0, 0.25]),
        ({"mode": "sequence_mask"}, [0.0, 0.0, 0.25]),
        ({"mode": "token_truncate", "clip_max": None, "clip_min": 0.5}, [2.0, 4.0, 0.5]),
        ({"mode": "token_mask", "clip_max": None, "clip_min": 0.5}, [2.0, 4.0, 0.0]),
    ],
    ids=str,
)
def test_weights_of_every_mode(settings: dict[str, object], expected: list[float]) -> None:
    found = importance_weights(ImportanceSampling.model_validate(settings), OLD, BEHAVIOUR, SEQUENCE, 2)
    assert found.weights.tolist() == pytest.approx(expected)


def test_figures_of_parts_are_those_of_the_whole() -> None:
    config = ImportanceSampling(mode="token_mask")
    whole = ImportanceFigures.measure(importance_weights(config, OLD, BEHAVIOUR, SEQUENCE, 2))
    first = importance_weights(config, OLD[:2], BEHAVIOUR[:2], SEQUENCE[:2], 1)
    second = importance_weights(config, OLD[2:], BEHAVIOUR[2:], SEQUENCE[2:] - 1, 1)
    parts = ImportanceFigures.measure(first) | ImportanceFigures.measure(second)
    expected = {
        "importance_min": 0.0,
        "importance_mean": 2.25 / 3,
        "importance_max": 2.0,
        "importance_ess": 2.25**2 / (3 * (4 + 0.0625)),
        "importance_masked": 1 / 3,
        "importance_raw": 6.25 / 3,
    }
    assert whole.named() == pytest.approx(expected)
    assert parts.named() == pytest.approx(expected)
    assert set(ImportanceFigures().named().values()) == {None}


def test_bounds_out_of_order_are_refused() -> None:
    with pytest.raises(ConfigError, match="clip_min 3.0 is not below clip_max 2.0"):
        parse_config(ImportanceSampling, {"clip_min": 3.0, "clip_max": 2.0}, where="a.yaml")


@pytest.mark.parametrize("kept", [6, 3, 2])
def test_the_mean_of_the_raw_ratio_is_the_mass_that_the_sampler_keeps(kept: int) -> None:
    """1 at full support; under a truncation, whose probabilities are renormalised, the mass kept of the policy."""
    draws = torch.Generator().manual_seed(0)
    sampler = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.04], dtype=torch.float64)
    policy = torch.tensor([0.3, 0.3, 0.2, 0.1, 0.05, 0.05], dtype=torch.float64)
    behaviour = sampler.clone()
    behaviour[kept:] = 0.0
    behaviour /= behaviour.sum()
    tokens = torch.multinomial(behaviour, 20_000, replacement=True, generator=draws)
    config = ImportanceSampling(clip_max=None)
    ratios = importance_weights(
        config, policy.log()[tokens], behaviour.log()[tokens], torch.zeros_like(tokens), 1
    ).ratios
    error = float(ratios.std()) / math.sqrt(len(ratios))
    assert float(ratios.mean()) == pytest.approx(float(policy[:kept].sum()), abs=3 * error + 1e-12)
