import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from triptych.dictionaries.rows import PairedRows
from triptych.errors import DataError

BYTES_PER_ROW = 4 * (3 + 2)


class Shards:
    """A tensor in pieces; remembers which were read."""

    def __init__(self, rows: Tensor, cuts: Sequence[int]) -> None:
        self._pieces: tuple[Tensor, ...] = rows.split(list(cuts))
        self.width = rows.shape[1]
        self.shard_rows = tuple(cuts)
        self.read_ones: list[int] = []

    def read(self, shard: int) -> Tensor:
        self.read_ones.append(shard)
        return self._pieces[shard]


def numbered(n: int = 20) -> dict[str, Tensor]:
    """Row r of `a` is r, of `b` r + 1000: pairs can be told."""
    rows = torch.arange(n, dtype=torch.float32)[:, None]
    return {"a": rows.expand(n, 3).contiguous(), "b": (rows + 1000).expand(n, 2).contiguous()}


def in_shards(tensors: dict[str, Tensor], cuts: Sequence[int]) -> dict[str, Shards]:
    return {name: Shards(rows, cuts) for name, rows in tensors.items()}


# --- Moments ----------------------------------------------------------------------------------------------------------


def test_moments_by_hand() -> None:
    """1, 2, 6: mean 3, variance (4 + 1 + 9) / 3."""
    (moments,) = PairedRows({"a": torch.tensor([[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]])}).moments()
    assert moments.mean.tolist() == [3.0, 5.0]
    assert moments.variance.tolist() == pytest.approx([14 / 3, 0.0])


def test_moments_of_a_large_mean_keep_their_digits() -> None:
    """A mean of 10,000 and a deviation of 0.1: one pass over float32 squares would lose the variance."""
    noise = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * 0.1
    rows = noise + torch.tensor([1e4, -1e4, 0.0, 3e5])
    (moments,) = PairedRows({"a": rows}).moments()
    exact = rows.numpy().astype(np.float64)
    assert moments.mean.dtype == moments.variance.dtype == torch.float64
    np.testing.assert_allclose(moments.mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, exact.var(0), rtol=1e-9)


@pytest.mark.parametrize("budget", [10**9, 7 * BYTES_PER_ROW])
def test_moments_of_several_shards_are_those_of_one(budget: int) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {"a": torch.randn(20, 3, generator=generator) + 50, "b": torch.randn(20, 2, generator=generator)}
    whole = PairedRows(tensors).moments()
    cut = PairedRows(in_shards(tensors, (7, 7, 6)), budget_bytes=budget).moments()
    for one, other in zip(whole, cut, strict=True):
        torch.testing.assert_close(one.mean, other.mean, rtol=1e-13, atol=0)
        torch.testing.assert_close(one.variance, other.variance, rtol=1e-12, atol=0)


# --- Windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget_rows", "windows"), [(1, 4), (6, 4), (11, 4), (12, 2), (18, 2), (23, 2), (24, 1), (1000, 1)]
)
def test_windows_hold_as_many_shards_as_fit(budget_rows: int, windows: int) -> None:
    """Four shards of at most 6 rows: at least one is read, two fit from 12 rows on, three from 18, all from 24."""
    rows = PairedRows(in_shards(numbered(), (6, 6, 6, 2)), budget_bytes=budget_rows * BYTES_PER_ROW)
    assert len(list(rows.windows(0, 0))) == windows
    assert rows.is_one_window == (windows == 1)
    assert all(len(a) <= max(6, budget_rows) for a, _ in rows.windows(0, 0))


@pytest.mark.parametrize("budget_rows", [1, 12, 18, 1000])
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_an_epoch_has_every_row_once_and_in_pairs(budget_rows: int, epoch: int) -> None:
    rows = PairedRows(in_shards(numbered(), (6, 6, 6, 2)), budget_bytes=budget_rows * BYTES_PER_ROW)
    seen = []
    for a, b in rows.windows(0, epoch):
        assert torch.equal(a[:, 0] + 1000, b[:, 0])
        seen += a[:, 0].tolist()
    assert sorted(seen) == list(range(20))
    assert rows.n_rows == 20


def test_the_order_of_shards_is_the_epochs_own_and_repeatable() -> None:
    def orders(seed: int) -> list[tuple[int, ...]]:
        stores = in_shards(numbered(24), (3,) * 8)
        rows = PairedRows(stores, budget_bytes=1)
        for epoch in range(4):
            list(rows.windows(seed, epoch))
        read = stores["a"].read_ones
        return [tuple(read[start : start + 8]) for start in range(0, 32, 8)]

    assert orders(0) == orders(0)
    assert len(set(orders(0))) == 4
    assert orders(0) != orders(1)


def test_one_window_is_read_once() -> None:
    stores = in_shards(numbered(), (7, 7, 6))
    rows = PairedRows(stores)
    rows.moments()
    first, second = next(rows.windows(0, 0)), next(rows.windows(0, 1))
    assert first is second
    assert stores["a"].read_ones == [0, 1, 2]
    assert [len(a) for a, _ in rows.shards()] == [7, 7, 6]


def test_shards_come_in_order_where_they_do_not_fit() -> None:
    rows = PairedRows(in_shards(numbered(), (7, 7, 6)), budget_bytes=1)
    assert torch.cat([a for a, _ in rows.shards()])[:, 0].tolist() == list(range(20))


def test_rows_of_a_model_in_training_lose_their_graph() -> None:
    rows = PairedRows({"a": torch.ones(3, 2, requires_grad=True) * 2})
    assert not rows.whole()[0].requires_grad


# --- Pairing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [(20,), (7, 7, 6)])
def test_pairing_permutes_the_rows_of_one_model(cuts: Sequence[int]) -> None:
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    rows = PairedRows(in_shards(numbered(), cuts), pairing={"b": order})
    ((a, b),) = rows.windows(0, 0)
    assert a[:, 0].tolist() == list(range(20))
    assert (b[:, 0] - 1000).tolist() == order.tolist()


def test_pairing_leaves_the_moments() -> None:
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    for one, other in zip(
        PairedRows(numbered()).moments(), PairedRows(numbered(), pairing={"b": order}).moments(), strict=True
    ):
        torch.testing.assert_close(one.mean, other.mean, rtol=1e-14, atol=0)
        torch.testing.assert_close(one.variance, other.variance, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("pairing", "message"),
    [
        ({"bb": torch.arange(20)}, "pairing names 'bb', of which there are no activations"),
        ({"b": torch.arange(19)}, "the pairing of 'b' is no permutation of its 20 rows"),
        ({"b": torch.zeros(20, dtype=torch.int64)}, "the pairing of 'b' is no permutation"),
        ({"b": torch.arange(1, 21)}, "the pairing of 'b' is no permutation"),
    ],
)
def test_a_pairing_that_is_none_is_refused(pairing: dict[str, Tensor], message: str) -> None:
    """A null model that is not shuffled, or that has lost rows, would be believed."""
    with pytest.raises(DataError, match=message):
        PairedRows(numbered(), pairing=pairing)


def test_a_pairing_needs_all_rows_in_memory() -> None:
    with pytest.raises(DataError, match="fit into memory; take fewer images"):
        PairedRows(in_shards(numbered(), (10, 10)), budget_bytes=1, pairing={"b": torch.arange(20)})


# --- What is refused --------------------------------------------------------------------------------------------------


def test_no_models_are_refused() -> None:
    with pytest.raises(DataError, match="at least one model"):
        PairedRows({})


def test_different_numbers_of_rows_are_refused() -> None:
    with pytest.raises(DataError, match="'a' has 20 rows and 'b' 19: they must be activations of the same images"):
        PairedRows({"a": torch.zeros(20, 3), "b": torch.zeros(19, 2)})


def test_shards_that_are_cut_differently_are_refused() -> None:
    one, other = Shards(torch.zeros(20, 3), (10, 10)), Shards(torch.zeros(20, 2), (12, 8))
    with pytest.raises(DataError, match="the shards of 'a' and 'b' are cut differently; extract them together"):
        PairedRows({"a": one, "b": other})


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_rows_are_refused(n: int) -> None:
    with pytest.raises(DataError, match="'a' has fewer than 2 rows; take more images"):
        PairedRows({"a": torch.zeros(n, 3)})


def test_no_shards_are_refused() -> None:
    class Empty:
        width = 3
        shard_rows: tuple[int, ...] = ()

        def read(self, shard: int) -> Tensor:
            raise AssertionError(shard)

    with pytest.raises(DataError, match="fewer than 2 rows"):
        PairedRows({"a": Empty()})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("budget", [1, 10**9])
def test_what_is_not_finite_is_named(value: float, budget: int) -> None:
    """Row 16 is the third of the last shard."""
    tensors = numbered()
    tensors["b"][16, 1] = value
    rows = PairedRows(in_shards(tensors, (7, 7, 6)), budget_bytes=budget)
    with pytest.raises(DataError, match=r"activations of 'b' are not finite \(row 2 of shard 2\); extract them again"):
        rows.moments()
