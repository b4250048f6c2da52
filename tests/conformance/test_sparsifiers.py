"""What every sparsifier must do. One enters by standing in `SPARSIFIERS`."""

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from triptych.dictionaries.sparsifiers import AFTERWARDS, BANDWIDTH, SPARSIFIERS, Sparsifier

ROWS, LATENTS, K = 20, 16, 3
Rule = Callable[[Tensor, int, Tensor], Tensor]

PHASES = {"training": SPARSIFIERS, "afterwards": AFTERWARDS}
RULES = {f"{name}-{phase}": (name, rules[name]) for phase, rules in PHASES.items() for name in rules}
EACH = pytest.mark.parametrize(("name", "rule"), RULES.values(), ids=RULES)
EACH_AFTERWARDS = pytest.mark.parametrize(("name", "rule"), AFTERWARDS.items(), ids=AFTERWARDS)

BY_ROW = {"top_k"}
"""Which keep at most k of every row, and k·n of a batch."""
BY_BATCH = {"batch_top_k", "matryoshka"}
"""Which keep at most k·n of a batch while training."""


def some_pre(dtype: torch.dtype = torch.float32) -> Tensor:
    """About half are positive; one row has none, one has two (fewer than k), one is zero throughout."""
    pre = torch.randn(ROWS, LATENTS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pre[3] = -pre[3].abs()
    pre[4, 2:] = -pre[4, 2:].abs()
    pre[4, :2] = pre[4, :2].abs()
    pre[5] = 0.0
    return pre.to(dtype)


def some_thresholds(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.linspace(0.0, 1.0, LATENTS, dtype=dtype)


def test_every_one_has_a_config_and_both_rules() -> None:
    names = {one.model_fields["name"].default for one in get_args(get_args(Sparsifier)[0])}
    assert names == set(SPARSIFIERS) == set(AFTERWARDS)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shape_and_type_are_those_of_the_pre_activations(name: str, rule: Rule, dtype: torch.dtype) -> None:
    pre = some_pre(dtype)
    codes = rule(pre, K, some_thresholds(dtype))
    assert codes.shape == pre.shape
    assert codes.dtype == dtype


@EACH
def test_codes_are_positive_pre_activations_or_zero(name: str, rule: Rule) -> None:
    pre = some_pre()
    codes = rule(pre, K, some_thresholds())
    assert (codes >= 0).all()
    assert (codes[pre <= 0] == 0).all()
    fires = codes > 0
    assert torch.equal(codes[fires], pre[fires])
    assert fires.any()


@EACH
def test_no_more_fire_than_k_says(name: str, rule: Rule) -> None:
    pre = some_pre()
    fires = rule(pre, K, some_thresholds()) > 0
    if name in BY_ROW:
        positive = (pre > 0).sum(1)
        assert torch.equal(fires.sum(1), positive.clamp(max=K))
    elif rule is SPARSIFIERS[name] and name in BY_BATCH:
        assert int(fires.sum()) == K * ROWS
        assert int(fires.sum(1).max()) > K
    else:
        assert torch.equal(fires, (pre > some_thresholds()) & (pre > 0))


@EACH
def test_what_is_kept_is_no_smaller_than_what_is_left_out(name: str, rule: Rule) -> None:
    """By row, by batch, or by latent where there are thresholds."""
    pre = some_pre()
    fires = rule(pre, K, some_thresholds()) > 0
    if name in BY_ROW:
        groups = zip(pre, fires, strict=True)
    elif rule is SPARSIFIERS[name] and name in BY_BATCH:
        groups = zip([pre.flatten()], [fires.flatten()], strict=True)
    else:
        groups = zip(pre.T, fires.T, strict=True)
    for values, kept in groups:
        if kept.any() and (~kept).any():
            assert values[kept].min() >= values[~kept].max()


@EACH
def test_as_many_as_there_are_latents_keeps_all_that_is_positive(name: str, rule: Rule) -> None:
    pre = some_pre()
    assert torch.equal(rule(pre, LATENTS, torch.zeros(LATENTS)), pre.clamp_min(0))


@EACH
def test_more_than_there_are_latents_is_all_of_them(name: str, rule: Rule) -> None:
    pre = some_pre()
    assert torch.equal(rule(pre, 10 * LATENTS, torch.zeros(LATENTS)), pre.clamp_min(0))


@EACH
def test_nothing_positive_is_nothing_kept(name: str, rule: Rule) -> None:
    pre = -some_pre().abs()
    assert not rule(pre, K, torch.zeros(LATENTS)).any()


@EACH
def test_gradient_flows_to_what_is_kept_and_nowhere_else(name: str, rule: Rule) -> None:
    """The sum of codes has a gradient of 1 where a latent fires; pre-activations of exactly 0 do not."""
    pre = some_pre().requires_grad_()
    codes = rule(pre, K, some_thresholds())
    codes.sum().backward()
    assert pre.grad is not None
    assert torch.equal(pre.grad, (codes > 0).float())


@EACH
def test_the_same_again(name: str, rule: Rule) -> None:
    assert torch.equal(rule(some_pre(), K, some_thresholds()), rule(some_pre(), K, some_thresholds()))


@EACH
def test_the_unit_does_not_matter(name: str, rule: Rule) -> None:
    """Pre-activations and thresholds four times as large: codes four times as large, exactly (a power of two)."""
    pre, thresholds = some_pre(), some_thresholds()
    assert torch.equal(rule(4 * pre, K, 4 * thresholds), 4 * rule(pre, K, thresholds))


@EACH
def test_the_order_of_rows_does_not_matter(name: str, rule: Rule) -> None:
    pre, order = some_pre(), torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    assert torch.equal(rule(pre[order], K, some_thresholds()), rule(pre, K, some_thresholds())[order])


@EACH_AFTERWARDS
def test_after_training_a_row_does_not_depend_on_its_batch(name: str, rule: Rule) -> None:
    pre, thresholds = some_pre(), some_thresholds()
    alone = torch.cat([rule(row[None], K, thresholds) for row in pre])
    assert torch.equal(rule(pre, K, thresholds), alone)


@EACH_AFTERWARDS
def test_after_training_negative_thresholds_let_nothing_negative_through(name: str, rule: Rule) -> None:
    pre = some_pre()
    codes = rule(pre, LATENTS, torch.full((LATENTS,), -0.7))
    assert torch.equal(codes, pre.clamp_min(0))


@EACH
def test_thresholds_that_are_learnt_have_their_gradient(name: str, rule: Rule) -> None:
    """dz/dθ = −θ/ε where the pre-activation is within ε/2 of θ (JumpReLU, eq. 11); others learn none.

    θ = 0.5, ε = 0.05: of 0.3, 0.49, 0.51 and 0.6 two are near, so that Σ 2z has the gradient −2 · 2 · 0.5 / 0.05 = −40.
    """
    threshold = torch.tensor([0.5], requires_grad=True)
    codes = rule(torch.tensor([[0.3], [0.49], [0.51], [0.6]]).requires_grad_(), 1, threshold)
    (2 * codes).sum().backward()
    assert pytest.approx(0.05) == BANDWIDTH
    if name == "jump_relu":
        assert threshold.grad is not None
        assert float(threshold.grad) == pytest.approx(-40.0)
    else:
        assert threshold.grad is None
