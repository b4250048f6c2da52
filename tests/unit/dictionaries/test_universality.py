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
    by_counts,
    chance_pvalues,
    classify,
    co_firing,
    confirmed,
    correlation,
    energy,
    firing_entropy,
    significant,
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


def test_counts_by_the_papers_limits_leave_dead_latents_out() -> None:
    assert by_counts(np.array([1.0, 0.95, 0.5, 0.05, 0.0, np.nan])) == (2, 2)


def test_kinds_by_hand() -> None:
    # Of a's 100 latent 0 explains 0.5, of b's 200 it explains 0.3: p = 5/8, 3/8, entropy 0.9544.
    # Latent 1 is a's alone, 2 b's alone, 3 hurts both and 4 never matters; 5 is explained 1 : 3, entropy 0.8113.
    a = [50.0, 40.0, 0.0, -3.0, 0.0, 10.0]
    b = [60.0, 0.0, 80.0, -9.0, 0.0, 60.0]
    kinds = classify(np.array([a, b]), np.array([True, True, False, True, False, True]))
    assert kinds.kind.tolist() == ["universal", "specific", "specific", "dead", "dead", "partial"]
    assert kinds.specific_to.tolist() == [-1, 0, 1, -1, -1, -1]
    np.testing.assert_allclose(kinds.entropy, [0.954434, 0, 0, np.nan, np.nan, 0.811278], atol=1e-6)
    np.testing.assert_allclose(kinds.shares[:, 0], [0.5, 0.3])
    assert kinds.count("specific") == 2


def test_what_is_not_confirmed_is_not_universal() -> None:
    kinds = classify(np.full((2, 3), 1.0), np.array([True, False, True]))
    assert kinds.kind.tolist() == ["universal", "partial", "universal"]


def test_kinds_do_not_depend_on_how_well_a_model_is_explained() -> None:
    explained = np.random.default_rng(0).random((2, 50)) ** 4
    both = np.zeros(50, dtype=bool)
    np.testing.assert_array_equal(
        classify(explained, both).kind, classify(explained * np.array([[7.0], [0.1]]), both).kind
    )


def test_a_latent_that_fires_but_explains_nothing_is_dead() -> None:
    # An average latent has 1/200: a hundredth of that is the limit.
    explained = np.ones((2, 200))
    explained[:, 0], explained[:, 1] = 0.009, [0.009, 0.011]
    assert classify(explained, np.zeros(200, dtype=bool)).kind[:2].tolist() == ["dead", "partial"]


def test_all_live_latents_of_a_single_model_are_its_own() -> None:
    kinds = classify(np.array([[1.0, 0.0]]), np.zeros(2, dtype=bool))
    assert (kinds.kind.tolist(), kinds.specific_to.tolist()) == (["specific", "dead"], [0, -1])


def test_correlation_by_hand_and_against_numpy() -> None:
    # A: 1 1 3 1 0, mean 1.2, deviation √0.96; B: 2 0.05 0 0 0. Of latent 2: 2 0 0 0 0 and 0 0 0 0 1, −¼.
    expected = np.corrcoef(A[:, 0], B[:, 0])[0, 1]
    np.testing.assert_allclose(correlation([A, B]), [expected, 0.0, -0.25, 0.0], atol=1e-6)


def test_correlation_of_three_models_is_the_lowest_pair() -> None:
    stream = np.random.default_rng(3)
    a, b, c = (stream.random((50, 4)) for _ in range(3))
    pairs = [[np.corrcoef(x[:, k], y[:, k])[0, 1] for k in range(4)] for x, y in ((a, b), (a, c), (b, c))]
    np.testing.assert_allclose(correlation([a, b, c]), np.min(pairs, axis=0), atol=1e-12)


def test_chance_of_two_models_is_hypergeometric() -> None:
    # 4 rows; a fires on 2, b on 2, both on both: one of (4 choose 2) = 6 ways.
    counts = CoFiring(4, np.array([[2], [2]]), np.array([2]), np.array([2]))
    np.testing.assert_allclose(chance_pvalues(counts), [1 / 6])


def test_chance_of_three_models_is_binomial() -> None:
    counts = CoFiring(10, np.array([[5], [4], [2]]), np.array([1]), np.array([6]))
    rate = 0.5 * 0.4 * 0.2
    np.testing.assert_allclose(chance_pvalues(counts), [1 - (1 - rate) ** 10])


def test_independent_firing_is_not_significant_and_common_firing_is() -> None:
    stream = np.random.default_rng(0)
    a = stream.random((2000, 400)) < 0.05
    b = stream.random((2000, 400)) < 0.05
    b[:, :100] = a[:, :100] & (stream.random((2000, 100)) < 0.5)
    found = significant(co_firing([a.astype(np.float32), b.astype(np.float32)]))
    assert found[:100].all()
    # Of 400 tests, 1 % of what is significant may be false: about one.
    assert found[100:].sum() <= 4


def test_a_dependence_that_many_rows_make_significant_is_not_confirmed_without_an_effect() -> None:
    """Latent 0 fires in b on a tenth more of the rows on which a fires it; latent 1 is the same in both."""
    stream = np.random.default_rng(1)
    a = (stream.random((40_000, 2)) < 0.3).astype(np.float32)
    b = (stream.random((40_000, 2)) < 0.3 + 0.1 * a).astype(np.float32)
    b[:, 1] = a[:, 1]
    counts = co_firing([a, b])
    assert significant(counts).all()
    assert confirmed(counts, correlation([a, b])).tolist() == [False, True]


def test_a_large_correlation_of_few_rows_is_not_confirmed() -> None:
    a, b = np.zeros((50, 1)), np.zeros((50, 1))
    a[:3], b[2:5] = 1, 1  # One row of three in common: r = 0.29; by chance 17 % of the time.
    counts = co_firing([a, b])
    assert not confirmed(counts, np.array([0.9]))[0]


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
