"""Each kernel against NumPy or torch, which say the same in a plainer and slower way."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from triptych.dictionaries.backends import kernels
from triptych.dictionaries.backends.generic import project
from triptych.dictionaries.settings import ADAM_BETAS, ADAM_EPSILON

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


def draw(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def top_k(pre: Floats, k: int) -> tuple[Ints, Floats]:
    """The kernel's, into arrays of rubbish."""
    index, value = np.full((len(pre), k), 99, np.int32), np.full((len(pre), k), np.nan, np.float32)
    kernels.top_k(pre, index, value)
    return index, value


def plain_top_k(pre: Floats, k: int) -> tuple[Ints, Floats]:
    """A stable sort: of equal ones the first, and those that are kept in the order of latents."""
    index, value = np.full((len(pre), k), -1, np.int32), np.zeros((len(pre), k), np.float32)
    for place, row in enumerate(pre):
        kept = sorted(latent for latent in np.argsort(-row, kind="stable")[:k] if row[latent] > 0)
        index[place, : len(kept)], value[place, : len(kept)] = kept, row[kept]
    return index, value


# --- top_k ------------------------------------------------------------------------------------------------------------


def assert_top_k(pre: Floats, k: int) -> None:
    index, value = top_k(pre, k)
    expected_index, expected_value = plain_top_k(pre, k)
    np.testing.assert_array_equal(index, expected_index)
    np.testing.assert_array_equal(value, expected_value)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32])
@pytest.mark.parametrize("latents", [32, 37, 64, 100])
def test_top_k_of_random_rows(k: int, latents: int) -> None:
    """Groups of 2k (or of all) that divide the latents, and that do not."""
    assert_top_k(draw(25, latents, seed=k * 1000 + latents), k)


@pytest.mark.parametrize("latents", [1, 2, 3, 8, 13])
@pytest.mark.parametrize("shift", [-3.0, 0.0, 3.0])
def test_top_k_of_all_latents_keeps_what_is_positive(latents: int, shift: float) -> None:
    assert_top_k(draw(20, latents) + np.float32(shift), latents)


@pytest.mark.parametrize("k", [1, 4, 8])
def test_top_k_with_fewer_positive_ones(k: int) -> None:
    pre = -np.abs(draw(9, 16))
    for row, positive in enumerate(range(9)):
        pre[row, 16 - positive :] *= -1
    pre[0, :3] = 0.0
    assert_top_k(pre, k)
    index, value = top_k(pre, k)
    assert (index[0] == -1).all()
    assert (value[0] == 0).all()


@pytest.mark.parametrize("k", range(1, 13))
def test_top_k_takes_the_first_of_equal_ones(k: int) -> None:
    """Few values, so that ties stand above, at and below the limit, within and across groups."""
    assert_top_k(np.random.default_rng(k).integers(-1, 4, (60, 12)).astype(np.float32), k)
    assert_top_k(np.ones((3, 12), np.float32), k)


def test_top_k_of_very_large_and_very_small_values() -> None:
    assert_top_k(np.array([[3e38, 1e-45, -3e38, 1e-38, 1.0, 0.0, -0.0, 3e38]], np.float32), 3)
    assert_top_k(np.array([[np.inf, 1.0, -np.inf, 2.0]], np.float32), 2)


def test_top_k_does_not_choose_what_is_no_number() -> None:
    index, value = top_k(np.array([[np.nan, 1.0, np.nan, 3.0, 2.0, -1.0], [np.nan] * 6], np.float32), 2)
    assert np.isfinite(value).all()
    assert index[1].tolist() == [-1, -1]


def test_top_k_of_no_rows() -> None:
    assert top_k(draw(0, 8), 3)[0].shape == (0, 3)


# --- exact_values, reconstruct ----------------------------------------------------------------------------------------


def test_exact_values() -> None:
    x, weight, bias = draw(10, 7), draw(12, 7, seed=1), draw(12, seed=2)
    index = np.random.default_rng(3).integers(-1, 12, (10, 4)).astype(np.int32)
    value = np.full((10, 4), 0.0, np.float32)
    kernels.exact_values(x, weight, bias, index, value)
    pre = np.maximum(0, x.astype(np.float64) @ weight.T + bias)
    expected = np.where(index < 0, 0.0, np.take_along_axis(pre, np.maximum(index, 0), axis=1))
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 8, 9])
def test_reconstruct(k: int) -> None:
    """Against a dense float64 product; missing latents have value 0, and their gradient stays as it was."""
    index, value = plain_top_k(draw(11, 12) - np.float32(0.8), k)
    weight, bias, x = draw(12, 6, seed=1), draw(6, seed=2), draw(11, 6, seed=3)
    error, d_value = np.full((11, 6), np.nan, np.float32), draw(11, k, seed=4)
    before, scale = d_value.copy(), 2.0 / x.size
    squares = kernels.reconstruct(index, value, weight, bias, x, scale, error, d_value)

    codes = np.zeros((11, 12))
    for row in range(11):
        for place in range(k):
            codes[row, index[row, place]] += value[row, place]
    expected = codes @ weight.astype(np.float64) + bias - x
    gradient = scale * expected @ weight.T
    picked = np.where(value > 0, np.take_along_axis(gradient, np.maximum(index, 0), axis=1), 0.0)
    assert (index < 0).any() or k == 1
    np.testing.assert_allclose(error, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(squares, (expected**2).sum(1), rtol=1e-5)
    np.testing.assert_allclose(d_value, before + picked, rtol=1e-5, atol=1e-6)


# --- by_latent, sum_by_latent -----------------------------------------------------------------------------------------


def sorted_code(index: Ints, value: Floats, latents: int) -> tuple[Ints, Ints]:
    starts, places = np.full(latents + 1, 99, np.int32), np.full(index.size, -7, np.int32)
    kernels.by_latent(index, value, starts, places)
    return starts, places


def test_by_latent_by_hand() -> None:
    """Latent 0 fires at place 4, latent 2 at 0 and 3, latent 3 at 1; place 2 is a missing one, 5 has value 0."""
    index = np.array([[2, 3, -1], [2, 0, 1]], np.int32)
    value = np.array([[1.0, 2.0, 0.0], [3.0, 4.0, 0.0]], np.float32)
    starts, places = sorted_code(index, value, 5)
    assert starts.tolist() == [0, 1, 1, 3, 4, 4]
    assert places[:4].tolist() == [4, 0, 3, 1]


def test_by_latent_has_every_positive_entry_once() -> None:
    index, value = plain_top_k(draw(40, 16) - np.float32(0.5), 5)
    starts, places = sorted_code(index, value, 16)
    assert starts[0] == 0
    assert starts[-1] == (value > 0).sum()
    assert sorted(places[: starts[-1]]) == np.flatnonzero(value > 0).tolist()
    for latent in range(16):
        own = places[starts[latent] : starts[latent + 1]]
        assert (index.reshape(-1)[own] == latent).all()
        assert (np.diff(own) > 0).all()


def test_by_latent_of_nothing() -> None:
    starts, _ = sorted_code(np.full((3, 2), -1, np.int32), np.zeros((3, 2), np.float32), 4)
    assert not starts.any()


def test_sum_by_latent() -> None:
    index, value = plain_top_k(draw(40, 16) - np.float32(0.5), 5)
    starts, places = sorted_code(index, value, 16)
    factors, total = draw(40, 5, seed=1), np.full(16, np.nan, np.float32)
    kernels.sum_by_latent(factors, starts, places, total)
    expected = [factors[(index == latent) & (value > 0)].sum(dtype=np.float64) for latent in range(16)]
    np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-6)


# --- step_weights -----------------------------------------------------------------------------------------------------


def adam(steps: int, rate: float, decay: float) -> npt.NDArray[np.float64]:
    beta1, beta2 = ADAM_BETAS
    return np.array([rate, decay, beta1, beta2, ADAM_EPSILON, 1 - beta1**steps, 1 - beta2**steps])


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("width", [1, 5, 16])
def test_step_weights_is_adamw(decay: float, unit: bool, width: int) -> None:
    """Six steps with rates that change, of gradients with latents that never fire and a factor before all of them."""
    latents, k, scale = 12, 3, 0.25
    start = draw(latents, width)
    if unit:
        start /= np.linalg.norm(start, axis=1, keepdims=True)
    weight, first, second = start.copy(), np.zeros_like(start), np.zeros_like(start)
    rounded = np.zeros((latents, width), np.uint16)
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimiser = torch.optim.AdamW([parameter], betas=ADAM_BETAS, eps=ADAM_EPSILON, weight_decay=decay)
    for step in range(1, 7):
        pre = draw(20, latents, seed=step)
        pre[:, :2] = -1.0  # These never fire.
        index, value = plain_top_k(pre, k)
        factors, rows, rate = draw(20, k, seed=50 + step), draw(20, width, seed=90 + step), 0.02 * step
        starts, places = sorted_code(index, value, latents)
        arguments: list[Any] = [weight, first, second, rounded, factors, scale, rows, starts, places]
        kernels.step_weights(*arguments, adam(step, rate, decay), unit, True)

        dense = np.zeros((20, latents))
        for row, place in zip(*np.nonzero(value > 0), strict=True):
            dense[row, index[row, place]] = factors[row, place]
        parameter.grad = torch.from_numpy(scale * dense.T @ rows).float()
        if unit:
            project(parameter)
        optimiser.param_groups[0]["lr"] = rate
        optimiser.step()
        with torch.no_grad():
            if unit:
                parameter.copy_(torch.nn.functional.normalize(parameter, dim=1))
        np.testing.assert_allclose(weight, parameter.detach().numpy(), rtol=2e-4, atol=2e-5)
    state = optimiser.state[parameter]
    np.testing.assert_allclose(first, state["exp_avg"].numpy(), rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(second, state["exp_avg_sq"].numpy(), rtol=2e-3, atol=1e-6)
    assert torch.equal(
        torch.from_numpy(rounded.view(np.int16)).view(torch.bfloat16), torch.from_numpy(weight).bfloat16()
    )
    if unit:
        np.testing.assert_allclose(np.linalg.norm(weight, axis=1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("n", range(10))
def test_the_gradient_of_a_latent_that_fires_n_times(n: int) -> None:
    """Four at a time and what is left. The first moment after one step is a tenth of the gradient."""
    factors, rows = draw(10, 1), draw(10, 6, seed=1)
    index = np.where(np.arange(10) < n, 1, -1).astype(np.int32)[:, None]
    starts, places = sorted_code(index, (index > 0).astype(np.float32), 3)
    weight, first, second = draw(3, 6, seed=2), np.zeros((3, 6), np.float32), np.zeros((3, 6), np.float32)
    before = weight.copy()
    rounded = np.zeros((3, 6), np.uint16)
    arguments: list[Any] = [weight, first, second, rounded, factors, 3.0, rows, starts, places]
    kernels.step_weights(*arguments, adam(1, 0.5, 0.0), False, False)
    np.testing.assert_allclose(first[1], 0.1 * 3.0 * (factors[:n].T @ rows[:n])[0], rtol=1e-4, atol=1e-6)
    assert not first[[0, 2]].any()
    np.testing.assert_array_equal(weight[[0, 2]], before[[0, 2]])
    assert not rounded.any()
