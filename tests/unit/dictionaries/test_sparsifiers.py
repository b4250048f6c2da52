import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from triptych.dictionaries.sparsifiers import (
    BatchTopK,
    JumpRelu,
    Matryoshka,
    TopK,
    above,
    batch_top_k,
    firing_count,
    jump_relu,
    prefixes,
    top_k,
)

PRE = torch.tensor([[3.0, -1.0, 2.0, 1.0], [0.5, 0.25, -4.0, 0.125]])


def test_top_k_keeps_the_largest_of_every_row() -> None:
    assert top_k(PRE, 2).tolist() == [[3.0, 0.0, 2.0, 0.0], [0.5, 0.25, 0.0, 0.0]]


def test_top_k_keeps_fewer_where_fewer_are_positive() -> None:
    assert top_k(torch.tensor([[-1.0, 2.0, -3.0], [0.0, -1.0, -2.0]]), 2).tolist() == [[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_of_ties_keeps_k(k: int) -> None:
    """Which of equal ones is left open, how many is not: with k = 2 of 5, 1, 1, 1 that is 5 and a single 1."""
    codes = top_k(torch.tensor([[1.0, 5.0, 1.0, 1.0]]), k)
    assert sorted(codes[0].tolist(), reverse=True) == [5.0, *[1.0] * (k - 1), *[0.0] * (4 - k)]


def test_batch_top_k_shares_its_latents_among_rows() -> None:
    """2 · 2 of the batch: 3, 2, 1 of the first row and 0.5 of the second."""
    assert batch_top_k(PRE, 2).tolist() == [[3.0, 0.0, 2.0, 1.0], [0.5, 0.0, 0.0, 0.0]]


def test_batch_top_k_of_ties_keeps_its_number() -> None:
    codes = batch_top_k(torch.ones(3, 4), 2)
    assert int((codes > 0).sum()) == 6
    assert float(codes.sum()) == 6.0


def test_above_needs_more_than_the_threshold_and_than_zero() -> None:
    pre = torch.tensor([[0.5, 0.75, -0.1, 0.0]])
    assert above(pre, torch.tensor([0.5, 0.5, -1.0, -1.0])).tolist() == [[0.0, 0.75, 0.0, 0.0]]


def test_jump_relu_is_above_its_threshold_or_zero() -> None:
    pre = torch.tensor([[0.5, 0.75, -0.1, 0.2]])
    assert jump_relu(pre, torch.tensor([0.5, 0.5, 0.1, 0.1])).tolist() == [[0.0, 0.75, 0.0, pytest.approx(0.2)]]


def gradients(pre: list[list[float]], thresholds: list[float], weights: list[list[float]]) -> tuple[Tensor, Tensor]:
    """Of Σ weight · code."""
    z, theta = torch.tensor(pre, requires_grad=True), torch.tensor(thresholds, requires_grad=True)
    (jump_relu(z, theta) * torch.tensor(weights)).sum().backward()
    assert z.grad is not None
    assert theta.grad is not None
    return z.grad, theta.grad


def test_jump_relu_gradients() -> None:
    """Equation 11 with ε = 0.05: a threshold gets −θ/ε times the sum of the gradients of codes within 0.025 of it.

    First latent, θ = 1: 1.02 and 0.98 are near, 2.0 is not: −1/0.05 · (3 + 5) = −160. Second, θ = 0.2: 0.19 is near, but
    0.3 is not: −0.2/0.05 · 7 = −28. Pre-activations get the gradient where they exceed the threshold.
    """
    d_pre, d_threshold = gradients(
        [[1.02, 0.19], [0.98, 0.3], [2.0, -0.2]], [1.0, 0.2], [[3.0, 7.0], [5.0, 11.0], [13.0, 17.0]]
    )
    assert d_threshold.tolist() == pytest.approx([-160.0, -28.0], rel=1e-5)
    assert d_pre.tolist() == [[3.0, 0.0], [0.0, 11.0], [13.0, 0.0]]


def test_firing_count_and_its_gradient() -> None:
    """Rows have 2 and 0 latents above: mean 1. Equation 12: two of the first latent are near, −2 · (1/ε) / 2 rows = −20."""
    pre = torch.tensor([[0.51, 2.0], [0.49, -1.0]], requires_grad=True)
    threshold = torch.tensor([0.5, 0.5], requires_grad=True)
    count = firing_count(pre, threshold)
    count.backward()
    assert float(count.detach()) == 1.0
    assert threshold.grad is not None
    assert threshold.grad.tolist() == pytest.approx([-20.0, 0.0])
    assert pre.grad is None


def test_firing_count_is_the_mean_number_of_codes() -> None:
    pre = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    threshold = torch.linspace(0.0, 0.7, 8)
    assert float(firing_count(pre, threshold)) == pytest.approx(
        float((jump_relu(pre, threshold) > 0).sum(1).float().mean())
    )


@pytest.mark.parametrize(
    ("sparsifier", "latents", "expected"),
    [
        (TopK(k=1), 16, (16,)),
        (BatchTopK(k=1), 16, (16,)),
        (JumpRelu(k=1), 16, (16,)),
        (Matryoshka(k=1), 16, (1, 2, 4, 8, 16)),
        # 0.0625 · 4 and 0.125 · 4 round to 0, but one latent is the least; 0.25 · 4 = 1 stands once.
        (Matryoshka(k=1), 4, (1, 2, 4)),
        (Matryoshka(k=1), 1, (1,)),
        # 0.99 · 10 rounds to all of them, which come last once.
        (Matryoshka(k=1, prefixes=(0.5, 0.99, 0.2)), 10, (2, 5, 10)),
        (Matryoshka(k=1, prefixes=()), 10, (10,)),
    ],
)
def test_prefixes(
    sparsifier: TopK | BatchTopK | JumpRelu | Matryoshka, latents: int, expected: tuple[int, ...]
) -> None:
    assert prefixes(sparsifier, latents) == expected


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_prefixes_are_proper_shares(share: float) -> None:
    with pytest.raises(ValidationError):
        Matryoshka(prefixes=(share,))


@pytest.mark.parametrize("kind", [TopK, BatchTopK, JumpRelu, Matryoshka])
def test_k_is_at_least_one(kind: type[TopK | BatchTopK | JumpRelu | Matryoshka]) -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        kind(k=0)
