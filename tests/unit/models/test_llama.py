"""Packed products: what they compute, and who shares one."""

import gc

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.models import llama
from triptych.models.llama import PackedLinear, packed_linear


def weight(rows: int, seed: int = 0, *, frozen: bool = True) -> nn.Parameter:
    drawn = torch.randn(rows, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return nn.Parameter(drawn.bfloat16(), requires_grad=not frozen)


def adjacent(*sizes: int) -> list[nn.Parameter]:
    merged = weight(sum(sizes)).detach()
    return [nn.Parameter(rows, requires_grad=False) for rows in merged.split(list(sizes))]


X = torch.randn(5, 16, generator=torch.Generator().manual_seed(9)).bfloat16()


@pytest.mark.parametrize("weights", [[weight(8)], [weight(8), weight(4, 1)], adjacent(8, 4, 12)], ids=len)
@pytest.mark.parametrize("rows", [1, 5])
def test_the_product_of_the_stacked_weights(weights: list[Tensor], rows: int) -> None:
    found = packed_linear(*weights)(X[:rows])
    expected = F.linear(X[:rows].float(), torch.cat(weights).float())
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-1)


def test_weights_that_lie_together_are_not_copied() -> None:
    first, second = adjacent(8, 4)
    stacked = llama._stacked([first, second])
    assert stacked.data_ptr() == first.data_ptr()
    assert torch.equal(stacked, torch.cat([first, second]))
    apart = llama._stacked([second, first])
    assert apart.data_ptr() not in (first.data_ptr(), second.data_ptr())
    assert torch.equal(apart, torch.cat([second, first]))


needs_packing = pytest.mark.skipif(not llama._packs(), reason="this torch has no packed products")


@needs_packing
def test_frozen_weights_are_packed_once_while_in_use() -> None:
    weights = adjacent(8, 4)
    first = packed_linear(*weights)
    assert isinstance(first, PackedLinear)
    assert packed_linear(*weights) is first
    assert packed_linear(weights[0]) is not first
    before = len(llama._SHARED)
    del first
    gc.collect()
    assert len(llama._SHARED) == before - 1


@needs_packing
def test_what_may_change_is_not_shared() -> None:
    trained = weight(8, frozen=False)
    first = packed_linear(trained)
    assert packed_linear(trained) is not first
    plain = weight(8).detach()
    first = packed_linear(plain)
    assert packed_linear(plain) is not first
    frozen = weight(8)
    first = packed_linear(frozen)
    with torch.no_grad():
        frozen.mul_(2.0)
    torch.testing.assert_close(packed_linear(frozen)(X), 2.0 * first(X))
