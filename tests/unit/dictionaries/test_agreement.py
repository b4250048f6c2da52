"""AUROC of latents against labels: by hand, and against the count of pairs; matching of dictionaries."""

import numpy as np
import pytest
import torch
from scipy import sparse

from triptych.dictionaries.agreement import auroc, best_latents, by_image
from triptych.dictionaries.matching import match


def pairs(codes: np.ndarray, values: np.ndarray, value: int) -> float:
    """P(positive > other) + ½ P(equal), pair by pair."""
    ours, others = codes[values == value], codes[(values != value) & (values >= 0)]
    return float(np.mean((ours[:, None] > others) + 0.5 * (ours[:, None] == others)))


def test_by_hand() -> None:
    # Value 1 has codes 3 and 0, value 0 has 1 and 0: pairs 3>1, 3>0, 0<1, 0=0 → (1 + 1 + 0 + ½) / 4.
    codes = sparse.csr_matrix(np.array([[3.0], [0.0], [1.0], [0.0]]))
    np.testing.assert_allclose(auroc(codes, np.array([1, 1, 0, 0]), 2), [[0.375, 0.625]])


def test_against_pairs_with_ties_and_unknown_labels() -> None:
    stream = np.random.default_rng(0)
    codes = np.round(stream.random((60, 5)) * (stream.random((60, 5)) < 0.5), 1)
    values = stream.integers(-1, 3, size=60)
    found = auroc(sparse.csr_matrix(codes), values, 4)
    for latent in range(5):
        for value in range(3):
            assert found[latent, value] == pytest.approx(pairs(codes[:, latent], values, value))
    assert np.isnan(found[:, 3]).all()


def test_a_latent_that_never_fires_knows_nothing() -> None:
    np.testing.assert_array_equal(auroc(sparse.csr_matrix((6, 2)), np.array([0, 1] * 3), 2), 0.5)


def test_an_image_has_the_largest_code_of_its_rows() -> None:
    codes = sparse.csr_matrix(np.array([[1.0, 0], [3, 0], [0, 2], [0, 0.5]]))
    np.testing.assert_array_equal(by_image(codes, np.array([0, 0, 1, 1])).toarray(), [[3, 0], [0, 2]])
    assert by_image(codes, np.arange(4)) is codes


def test_the_best_latent_of_some() -> None:
    aurocs = np.array([[0.9, 0.2], [0.7, np.nan], [0.95, 0.6]])
    first, second = best_latents(aurocs[:, :1], np.array([True, True, False])), best_latents(aurocs, np.zeros(3, bool))
    assert first == [(0, 0.9)]
    assert second == [None, None]


def test_matching_finds_a_permutation_with_noise() -> None:
    stream = torch.Generator().manual_seed(0)
    rows = torch.randn(20, 30, generator=stream)
    order = torch.randperm(20, generator=stream)
    found = match(rows, 3.0 * rows[order] + 0.1 * torch.randn(20, 30, generator=stream))
    np.testing.assert_array_equal(order.numpy()[found.second], found.first)
    assert found.cosines.min() > 0.99


def test_matching_is_one_to_one_where_greed_is_not() -> None:
    """Rows at 0° and 40° against 20° and 180°: both are nearest to 20°, but only one can have it (the sum decides)."""

    def at(*degrees: float) -> torch.Tensor:
        angles = torch.tensor(degrees).deg2rad()
        return torch.stack([angles.cos(), angles.sin()], dim=1)

    found = match(at(0, 40), at(20, 180))
    # cos 20 + cos 140 = 0.17 against cos 180 + cos 20 = −0.06: the first row takes 20°.
    np.testing.assert_array_equal(found.second, [0, 1])
    np.testing.assert_allclose(found.cosines, [np.cos(np.deg2rad(20)), np.cos(np.deg2rad(140))], atol=1e-6)
