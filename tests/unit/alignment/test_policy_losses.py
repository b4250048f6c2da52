import math

import pytest
import torch
from torch import Tensor

from triptych.alignment.policy_losses import (
    AGGREGATIONS,
    Aggregation,
    Dapo,
    DrGrpo,
    Grpo,
    Gspo,
    PolicyBatch,
    clipped_surrogate,
    k1,
    k3,
    policy_loss,
    sequence_log_ratio,
    token_weights,
    total,
)


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- Weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        # Two of four count (one is empty, one masked): 1 / (2 · 2) and 1 / (2 · 4).
        ("grpo", [0.25, 0.125, 0.0, 0.0]),
        # Six tokens.
        ("dapo", [1 / 6, 1 / 6, 0.0, 0.0]),
        # 1 / (2 · 8).
        ("dr_grpo", [1 / 16, 1 / 16, 0.0, 0.0]),
    ],
)
def test_token_weights_by_hand(aggregation: Aggregation, expected: list[float]) -> None:
    lengths, kept = torch.tensor([2, 4, 0, 6]), torch.tensor([True, True, True, False])
    weights = token_weights(lengths, kept, aggregation=aggregation, max_tokens=8)
    assert weights.tolist() == pytest.approx(expected)
    assert weights.dtype == torch.float32


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_all_masked_is_all_zero(aggregation: Aggregation) -> None:
    weights = token_weights(torch.tensor([3, 5]), torch.tensor([False, False]), aggregation=aggregation, max_tokens=8)
    assert weights.tolist() == [0.0, 0.0]
    none = torch.zeros(0, dtype=torch.int64)
    assert token_weights(none, none.bool(), aggregation=aggregation, max_tokens=8).shape == (0,)


# --- Surrogate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        # -min(ρA, clip(ρ)A) with the range 0.8 … 1.3.
        (1.5, 1.0, -1.3, True),
        (1.5, 2.0, -2.6, True),
        (1.5, -1.0, 1.5, False),
        (0.5, 1.0, -0.5, False),
        (0.5, -1.0, 0.8, True),
        (1.1, 1.0, -1.1, False),
        (0.9, -1.0, 0.9, False),
        (1.5, 0.0, 0.0, False),
    ],
)
def test_the_clipped_surrogate_by_hand(ratio: float, advantage: float, loss: float, clipped: bool) -> None:
    logps = f64(-2.0 + math.log(ratio)).requires_grad_()
    surrogate = clipped_surrogate(logps, f64(-2.0), f64(advantage), clip_low=0.2, clip_high=0.3)
    assert surrogate.losses.item() == pytest.approx(loss)
    assert surrogate.clipped.item() is clipped
    surrogate.losses.sum().backward()
    assert logps.grad is not None
    # d(-ρA)/d logp = -ρA.
    assert logps.grad.item() == pytest.approx(0.0 if clipped else -ratio * advantage)


def test_delta_bounds_the_ratio_where_nothing_else_does() -> None:
    logps = f64(math.log(5.0), math.log(1.5), math.log(5.0))
    surrogate = clipped_surrogate(logps, f64(0.0, 0.0, 0.0), f64(-1.0, -1.0, 1.0), delta=2.0)
    # 5 → 2; 1.5 stays; with A > 0 the clip at 1.2 comes first.
    assert surrogate.losses.tolist() == pytest.approx([2.0, 1.5, -1.2])
    assert surrogate.clipped.tolist() == [True, False, True]


def test_where_the_policy_wrote_itself_the_gradient_is_that_of_reinforce() -> None:
    logps = f64(-1.0, -2.0, -0.5).requires_grad_()
    surrogate = clipped_surrogate(logps, logps.detach(), f64(1.0, -2.0, 0.5))
    assert surrogate.losses.tolist() == [-1.0, 2.0, -0.5]
    surrogate.losses.sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == [-1.0, 2.0, -0.5]


def test_a_ratio_beyond_any_clip_still_pulls_back() -> None:
    # A < 0 and a log-ratio of 25: e^20 · (1 + 5), the tangent at 20, so the gradient is e^20.
    logps = f64(25.0).requires_grad_()
    surrogate = clipped_surrogate(logps, f64(0.0), f64(-1.0))
    assert surrogate.losses.item() == pytest.approx(math.exp(20.0) * 6.0)
    surrogate.losses.sum().backward()
    assert logps.grad is not None
    assert logps.grad.item() == pytest.approx(math.exp(20.0))


def test_the_sequence_ratio_is_the_mean_of_its_tokens() -> None:
    logps = f64(-1.0, -2.0, -3.0, -1.0, -0.5).requires_grad_()
    behaviour, sequence = f64(-1.1, -2.3, -3.0, -0.7, -0.5), torch.tensor([0, 0, 2, 2, 2])
    # (0.1 + 0.3) / 2; nothing; (0 - 0.3 + 0) / 3.
    found = sequence_log_ratio(logps, behaviour, sequence, 3)
    assert found.tolist() == pytest.approx([0.2, 0.0, -0.1])
    found.sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == pytest.approx([1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3])


# --- KL ---------------------------------------------------------------------------------------------------------------


def test_k1_and_k3_by_hand() -> None:
    # r = π_ref / π = e^-1 and e^1: 0.3678794 - 1 + 1 and 2.7182818 - 1 - 1.
    logps, ref_logps = f64(-1.0, -3.0, -2.0), f64(-2.0, -2.0, -2.0)
    assert k1(logps, ref_logps).tolist() == [1.0, -1.0, 0.0]
    assert k3(logps, ref_logps).tolist() == pytest.approx([0.3678794, 0.7182818, 0.0], abs=1e-7)


def test_their_means_are_the_kl() -> None:
    # Exactly: weighted by π over a whole vocabulary.
    generator = torch.Generator().manual_seed(0)
    logps, ref_logps = (torch.randn(50, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(2))
    kl = (logps.exp() * (logps - ref_logps)).sum().item()
    assert (logps.exp() * k1(logps, ref_logps)).sum().item() == pytest.approx(kl)
    assert (logps.exp() * k3(logps, ref_logps)).sum().item() == pytest.approx(kl)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_k3_is_never_negative(dtype: torch.dtype) -> None:
    differences = torch.cat([torch.logspace(-12, 4, 2000, dtype=dtype), -torch.logspace(-12, 4, 2000, dtype=dtype)])
    values = k3(torch.zeros_like(differences), differences)
    assert values.isfinite().all()
    assert (values >= 0).all()
    # And it is the square over two where the two are close.
    close = differences.abs().sub(1e-2).abs() < 1e-4
    assert torch.allclose(values[close], differences[close] ** 2 / 2, rtol=1e-2)


# --- The whole --------------------------------------------------------------------------------------------------------

# Two completions of 2 and 3 tokens, advantages 1 and -2, log-ratios to the behaviour 0.1, 0.3 | -0.5, 0, 0.
BATCH = PolicyBatch(
    logps=f64(-1.0, -2.0, -1.5, -1.0, -3.0),
    old_logps=f64(-1.1, -2.3, -1.0, -1.0, -3.0),
    ref_logps=f64(-2.0, -2.0, -1.5, -1.0, -2.0),
    sequence=torch.tensor([0, 0, 1, 1, 1]),
    advantages=f64(1.0, -2.0),
    weights=f64(1.0, 1.0),
)
# Ratios 1.1051709, 1.3498588 → 1.2 | 0.6065307 → 0.8, 1, 1; times A, negated: -1.1051709, -1.2 | 1.6, 2, 2.
TOKEN_LOSSES = (-1.1051709, -1.2, 1.6, 2.0, 2.0)
# k3 of log-ratios ref - π = -1, 0, 0, 0, 1: 0.3678794, 0, 0, 0, 0.7182818.


def weighted(aggregation: Aggregation) -> PolicyBatch:
    both = torch.tensor([True, True])
    return BATCH._replace(weights=token_weights(torch.tensor([2, 3]), both, aggregation=aggregation, max_tokens=10))


def test_grpo_by_hand() -> None:
    # ½ (mean of 2 + mean of 3) = ½ (-1.15258545 + 1.8666667) = 0.3570406.
    output = policy_loss(Grpo(beta=0.0), weighted("grpo"))
    assert output.loss.item() == pytest.approx(0.3570406, abs=1e-6)
    # + 0.04 · ½ (0.3678794 / 2 + 0.7182818 / 3) = 0.04 · 0.2116835 = 0.0084673.
    output = policy_loss(Grpo(), weighted("grpo"))
    assert output.loss.item() == pytest.approx(0.3655079, abs=1e-6)
    assert output.clip_fraction == pytest.approx(2 / 5)
    # (0.3678794 + 0.7182818) / 5 and (1 - 1) / 5.
    assert output.kl == pytest.approx(0.2172322, abs=1e-7)
    assert output.k1 is not None
    assert output.k1.item() == pytest.approx(0.0)


def test_dapo_by_hand() -> None:
    # The sum, 3.2948291, over 5; at 1.28 above the second is -1.28: 3.2148291 / 5.
    assert policy_loss(Dapo(clip_high=0.2), weighted("dapo")).loss.item() == pytest.approx(sum(TOKEN_LOSSES) / 5)
    assert policy_loss(Dapo(), weighted("dapo")).loss.item() == pytest.approx(0.6429658, abs=1e-6)


def test_dr_grpo_by_hand() -> None:
    # The sum over 2 · 10.
    assert policy_loss(DrGrpo(), weighted("dr_grpo")).loss.item() == pytest.approx(sum(TOKEN_LOSSES) / 20)


def test_gspo_by_hand() -> None:
    # s = e^0.2 = 1.2214 and e^(-0.5 / 3) = 0.8464817. Wide range: ½ (-1.2214028 + 2 · 0.8464817) = 0.2357803.
    output = policy_loss(Gspo(clip_low=0.5, clip_high=0.5), weighted("grpo"))
    assert output.loss.item() == pytest.approx(0.2357803, abs=1e-6)
    assert output.clip_fraction == 0.0
    # Its own: both are clipped, ½ (-1.0004 + 2 · 0.9997) = 0.4995.
    output = policy_loss(Gspo(), weighted("grpo"))
    assert output.loss.item() == pytest.approx(0.4995, abs=1e-6)
    assert output.clip_fraction == 1.0


def test_without_a_reference_there_is_no_kl_to_report() -> None:
    output = policy_loss(Dapo(), weighted("dapo")._replace(ref_logps=None))
    assert output.k1 is None
    assert output.kl is None
    # With one it is reported even where it is not penalised.
    assert policy_loss(Dapo(), weighted("dapo")).kl == pytest.approx(0.2172322, abs=1e-7)


def test_totals_are_sums() -> None:
    one = policy_loss(Grpo(), weighted("grpo"))
    both = total([one, one])
    assert both.loss.item() == pytest.approx(2 * one.loss.item())
    assert both.tokens.item() == 10
    assert both.clip_fraction == one.clip_fraction
    assert both.kl == pytest.approx(one.kl)
    assert total([one, one._replace(k3=None)]).kl is None


def test_no_token_at_all() -> None:
    none = torch.zeros(0)
    batch = PolicyBatch(none, none, none, none.long(), none, none)
    output = policy_loss(Grpo(), batch)
    assert output.loss.item() == 0.0
    assert output.clip_fraction is None
    assert output.kl is None
