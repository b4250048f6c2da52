import math

import pytest
import torch
from torch import Tensor

from triptych.alignment.losses import (
    LOSSES,
    Dpo,
    LossOutput,
    PairLogps,
    SimPo,
    bradley_terry,
    dpo,
    hinge,
    ipo,
    length_normalised_dpo,
    preference_loss,
    simpo,
)


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


# One pair: the log-ratios are -10 + 12 = 2 and -14 + 11 = -3, so the margin h is 5 nats.
PAIR = (one(-10.0), one(-14.0), one(-12.0), one(-11.0))
LENGTHS = (torch.tensor([4]), torch.tensor([6]))


def figures(output: LossOutput) -> tuple[float, float, float]:
    assert output.loss.item() == output.losses.item()
    return output.loss.item(), output.rewards_chosen.item(), output.rewards_rejected.item()


def test_dpo_by_hand() -> None:
    # βh = 0.5: ln(1 + e^-0.5) = ln 1.6065307 = 0.4740770.
    assert figures(dpo(*PAIR, beta=0.1)) == pytest.approx((0.4740770, 0.2, -0.3), abs=1e-7)


def test_cdpo_by_hand() -> None:
    # -log σ(-x) = -log σ(x) + x, so 0.9 · 0.4740770 + 0.1 · 0.9740770 = 0.5240770.
    assert figures(dpo(*PAIR, beta=0.1, label_smoothing=0.1)) == pytest.approx((0.5240770, 0.2, -0.3), abs=1e-7)


def test_cdpo_is_least_where_the_margin_says_how_sure_the_labels_are() -> None:
    # The derivative -(1 - ε) σ(-x) + ε σ(x) is 0 at σ(x) = 1 - ε; for ε = 0.1, x = ln 9.
    margin = torch.tensor([math.log(9.0)], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros_like(margin)
    dpo(margin, zero, zero, zero, beta=1.0, label_smoothing=0.1).loss.backward()
    assert margin.grad is not None
    assert margin.grad.item() == pytest.approx(0.0, abs=1e-15)


def test_ipo_by_hand() -> None:
    # 1 / (2τ) = 5 = h: nothing left. At τ = 0.25 the aim is 2: (5 - 2)² = 9.
    assert figures(ipo(*PAIR, tau=0.1)) == pytest.approx((0.0, 0.2, -0.3))
    assert figures(ipo(*PAIR, tau=0.25)) == pytest.approx((9.0, 0.5, -0.75))


def test_ipo_on_means_is_trls() -> None:
    # 2 / 4 - (-3 / 6) = 1; 1 / (2 · 0.1) = 5: (1 - 5)² = 16.
    chosen, rejected, ref_chosen, ref_rejected = PAIR
    a, b = LENGTHS
    assert ipo(chosen / a, rejected / b, ref_chosen / a, ref_rejected / b, tau=0.1).loss.item() == pytest.approx(16.0)


def test_hinge_by_hand() -> None:
    # 1 - 0.1 · 5 = 0.5; 1 - 0.3 · 5 < 0.
    assert figures(hinge(*PAIR, beta=0.1)) == pytest.approx((0.5, 0.2, -0.3))
    assert figures(hinge(*PAIR, beta=0.3)) == pytest.approx((0.0, 0.6, -0.9))


def test_length_normalised_dpo_by_hand() -> None:
    # 5 · (2 / 4 - (-3 / 6)) = 5: ln(1 + e^-5) = 0.0067153; rewards 5 · 0.5 and 5 · -0.5.
    output = length_normalised_dpo(*PAIR, *LENGTHS, beta=5.0)
    assert figures(output) == pytest.approx((0.0067153, 2.5, -2.5), abs=1e-7)
    # 0.8 · 0.0067153 + 0.2 · 5.0067153 = 1.0067153.
    smooth = length_normalised_dpo(*PAIR, *LENGTHS, beta=5.0, label_smoothing=0.2)
    assert smooth.loss.item() == pytest.approx(1.0067153, abs=1e-7)


def test_simpo_by_hand() -> None:
    # Means -10 / 4 = -2.5 and -14 / 7 = -2; 2 · (-2.5 + 2) - 1 = -2: ln(1 + e²) = 2.1269280.
    output = simpo(one(-10.0), one(-14.0), torch.tensor([4]), torch.tensor([7]), beta=2.0, gamma=1.0)
    assert figures(output) == pytest.approx((2.1269280, -5.0, -4.0), abs=1e-7)


def test_bradley_terry_by_hand() -> None:
    # ln(1 + e^-1) = 0.3132617, and 0.01 · (1.5 + 0.5)² = 0.04.
    assert figures(bradley_terry(one(1.5), one(0.5))) == pytest.approx((0.3132617, 1.5, 0.5), abs=1e-7)
    assert bradley_terry(one(1.5), one(0.5), centring=0.01).loss.item() == pytest.approx(0.3532617, abs=1e-7)


def test_centring_pulls_both_scores_towards_zero_and_nothing_else() -> None:
    chosen, rejected = one(1001.0).requires_grad_(), one(1000.0).requires_grad_()
    plain = torch.autograd.grad(bradley_terry(chosen, rejected).loss, (chosen, rejected))
    pulled = torch.autograd.grad(bradley_terry(chosen, rejected, centring=0.01).loss, (chosen, rejected))
    # d/dr of 0.01 (r_c + r_r)² is 0.02 · 2001 = 40.02 for both.
    assert [(p - q).item() for p, q in zip(pulled, plain, strict=True)] == pytest.approx([40.02, 40.02])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_dpo_starts_at_ln_2(label_smoothing: float) -> None:
    chosen, rejected = torch.tensor([-123.4567, -1.5]), torch.tensor([-98.7654, -2000.25])
    output = dpo(chosen, rejected, chosen.clone(), rejected.clone(), beta=0.1, label_smoothing=label_smoothing)
    assert output.losses.tolist() == pytest.approx([math.log(2.0)] * 2, abs=1e-7)
    assert output.rewards_chosen.tolist() == output.rewards_rejected.tolist() == [0.0, 0.0]


def test_an_empty_completion_counts_as_one_token_long() -> None:
    output = simpo(one(-3.0), one(0.0), torch.tensor([1]), torch.tensor([0]), beta=1.0, gamma=0.0)
    assert output.rewards_rejected.item() == 0.0
    assert output.loss.item() == pytest.approx(math.log(1.0 + math.exp(3.0)))


def test_of_no_pair_there_is_no_mean_but_an_empty_sum() -> None:
    none = torch.zeros(0)
    output = dpo(none, none, none, none)
    assert output.loss.isnan()
    assert output.losses.sum().item() == 0.0


def test_the_config_chooses_the_loss() -> None:
    assert set(LOSSES) == {"dpo", "ipo", "hinge", "length_normalised_dpo", "simpo"}
    pairs = PairLogps(*PAIR, *LENGTHS)
    assert preference_loss(Dpo(beta=0.3), pairs).loss == dpo(*PAIR, beta=0.3).loss


def test_a_missing_reference_is_told() -> None:
    pairs = PairLogps(PAIR[0], PAIR[1], None, None, *LENGTHS)
    assert preference_loss(SimPo(), pairs).loss.isfinite()
    with pytest.raises(ValueError, match=r"loss 'dpo' needs the reference's .* score the pairs"):
        preference_loss(Dpo(), pairs)
