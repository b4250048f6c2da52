"""Entropy, co-firing, chance and energy: by hand, and against plain numpy on dense codes."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from triptych.dictionaries.universality import (
    CoFiring,
    chance_pvalues,
    classes,
    co_firing,
    confirmed,
    energy,
    firing_entropy,
)

# Five rows, four latents. Latent 0: a fires on rows 0 1 2 3, b on 0 1; 1: a on 4, b on none; 2: a on 0, b on 4; 3: dead.
A = np.array([[1, 0, 2, 0], [1, 0, 0, 0], [3, 0, 0, 0], [1, 0, 0, 0], [0, 5, 0, 0]], dtype=np.float32)
B = np.array([[2, 0, 0, 0], [0.05, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]], dtype=np.float32)


def test_counts_by_hand() -> None:
    counts = co_firing([A, B])
    np.testing.assert_array_equal(counts.fires, [[4, 1, 1, 0], [2, 0, 1, 0]])
    np.testing.assert_array_equal(counts.together, [2, 0, 0, 0])
    np.testing.assert_array_equal(counts.either, [4, 1, 2, 0])
    np.testing.assert_allclose(counts.per_model, [[0.5, 0, 0, np.nan], [1, np.nan, 0, np.nan]])
    # (2 + 0 + 0 + 0) / (4 + 1 + 2 + 0)
    assert counts.proportion == pytest.approx(2 / 7)
    np.testing.assert_array_equal(counts.dead, [False, False, False, True])
    # 5 · 4/5 · 2/5 = 1.6; 5 · 1/5 · 0; 5 · 1/5 · 1/5 = 0.2
    np.testing.assert_allclose(counts.chance, [1.6, 0, 0.2, 0])


def test_a_threshold_counts_what_exceeds_it() -> None:
    counts = co_firing([A, B], threshold=0.1)
    np.testing.assert_array_equal(counts.fires[1], [1, 0, 1, 0])
    np.testing.assert_array_equal(counts.together, [1, 0, 0, 0])
    with pytest.raises(ValueError, match="at least 0"):
        co_firing([A, B], threshold=-0.1)


def test_entropy_by_hand() -> None:
    # Shares 4/6 and 2/6: −(2/3 ln 2/3 + 1/3 ln 1/3) / ln 2 = 0.9183; one model alone: 0; halves: 1; dead: none.
    entropy = firing_entropy([[4, 1, 1, 0], [2, 0, 1, 0]])
    np.testing.assert_allclose(entropy, [0.9182958, 0.0, 1.0, np.nan], atol=1e-7)


def test_entropy_of_three_models() -> None:
    # Shares ½, ½, 0: ln 2 / ln 3.
    np.testing.assert_allclose(firing_entropy(torch.tensor([[2, 1], [2, 1], [0, 1]])), [math.log(2) / math.log(3), 1.0])


def test_one_model_has_no_entropy() -> None:
    assert np.isnan(firing_entropy([[3, 0]])).all()


def test_classes_leave_dead_latents_out() -> None:
    entropy = np.array([1.0, 0.95, 0.5, 0.05, 0.0, np.nan])
    counted = classes(entropy, np.array([True, False, True, False, False, False]))
    assert counted == (2, 1, 1, 2, 1)


def test_chance_of_two_models_is_hypergeometric() -> None:
    # 4 rows; a fires on 2, b on 2, both on both: one of (4 choose 2) = 6 ways.
    counts = CoFiring(4, np.array([[2], [2]]), np.array([2]), np.array([2]))
    np.testing.assert_allclose(chance_pvalues(counts), [1 / 6])


def test_chance_of_three_models_is_binomial() -> None:
    counts = CoFiring(10, np.array([[5], [4], [2]]), np.array([1]), np.array([6]))
    rate = 0.5 * 0.4 * 0.2
    np.testing.assert_allclose(chance_pvalues(counts), [1 - (1 - rate) ** 10])


def test_independent_firing_is_not_confirmed_and_common_firing_is() -> None:
    stream = np.random.default_rng(0)
    a = stream.random((2000, 400)) < 0.05
    b = stream.random((2000, 400)) < 0.05
    b[:, :100] = a[:, :100] & (stream.random((2000, 100)) < 0.5)
    found = confirmed(co_firing([a.astype(np.float32), b.astype(np.float32)]))
    assert found[:100].all()
    # Of 400 tests, 1 % of what is confirmed may be false: about one.
    assert found[100:].sum() <= 4


def test_proportion_expected_by_chance_is_met_by_independent_firing() -> None:
    stream = np.random.default_rng(1)
    codes = [(stream.random((4000, 300)) < rate).astype(np.float32) for rate in (0.1, 0.2)]
    counts = co_firing(codes)
    # |C| / |∪| = 0.02 / (1 − 0.9 · 0.8)
    assert counts.chance_proportion == pytest.approx(0.02 / 0.28, rel=0.02)
    assert counts.proportion == pytest.approx(counts.chance_proportion, rel=0.03)


def test_energy_by_hand() -> None:
    # Means of codes: 6/5, 1, 2/5, 0; squared lengths of rows: 25, 4, 1, 9.
    dictionary = np.array([[3.0, 4], [0, 2], [1, 0], [0, 3]])
    np.testing.assert_allclose(energy(A, dictionary), [1.2**2 * 25, 4.0, 0.4**2, 0.0], rtol=1e-6)


def test_energy_is_that_of_the_mean_reconstruction() -> None:
    stream = np.random.default_rng(2)
    codes, dictionary = stream.random((50, 6)) * (stream.random((50, 6)) < 0.4), stream.normal(size=(6, 3))
    naive = [np.sum((codes[:, k].mean() * dictionary[k]) ** 2) for k in range(6)]
    np.testing.assert_allclose(energy(codes, torch.from_numpy(dictionary)), naive)


@given(st.integers(2, 4), st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_any_layout_of_codes_gives_what_plain_numpy_does(models: int, rows: int, latents: int, seed: int) -> None:
    stream = np.random.default_rng(seed)
    dense = [(stream.random((rows, latents)) * (stream.random((rows, latents)) < 0.4)) for _ in range(models)]
    fired = np.stack([one > 0 for one in dense])
    for codes in (dense, [torch.from_numpy(one) for one in dense], [sparse.csr_matrix(one) for one in dense]):
        counts = co_firing(codes)
        np.testing.assert_array_equal(counts.fires, fired.sum(1))
        np.testing.assert_array_equal(counts.together, fired.all(0).sum(0))
        np.testing.assert_array_equal(counts.either, fired.any(0).sum(0))
    shares = fired.sum(1) / np.maximum(fired.sum((0, 1)), 1)
    naive = scipy.stats.entropy(shares, base=models, axis=0) if fired.any() else np.full(latents, np.nan)
    entropy = firing_entropy(counts.fires)
    live = ~counts.dead
    np.testing.assert_allclose(entropy[live], np.asarray(naive)[live], atol=1e-12)
    assert np.isnan(entropy[~live]).all()
    assert ((entropy[live] >= 0) & (entropy[live] <= 1 + 1e-12)).all()
