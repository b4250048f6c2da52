"""Latents of two models that fire together are brought to one place, and nothing else moves."""

import numpy as np
import torch
from scipy import sparse

from triptych.dictionaries.matching import match, match_codes


def codes(n: int, latents: int, seed: int = 0) -> sparse.csr_matrix:
    stream = np.random.default_rng(seed)
    return sparse.csr_matrix(stream.random((n, latents)) * (stream.random((n, latents)) < 0.1))


def test_an_order_is_found_again() -> None:
    first = codes(500, 30)
    order = np.random.default_rng(1).permutation(30)
    # Latent k of the first is latent order[k] of the second.
    second = first[:, np.argsort(order)]
    np.testing.assert_array_equal(match_codes([first], second), order)


def test_what_fires_apart_stays_in_its_place_where_there_is_no_other() -> None:
    assert match_codes([codes(2000, 30)], codes(2000, 30, seed=2)).tolist() == [*range(30)]


def test_what_fires_apart_in_one_place_gets_a_place_each() -> None:
    """Latent 0 is common, 1 is something else in each model, 2 and 3 are idle: the second's 1 and 2 change places."""
    common, first, second = codes(2000, 1), codes(2000, 1, seed=2), codes(2000, 1, seed=3)
    idle = sparse.csr_matrix((2000, 2))
    both = [sparse.csr_matrix(sparse.hstack([common, own, idle])) for own in (first, second)]
    assert match_codes([both[0]], both[1]).tolist() == [0, 2, 1, 3]


def test_few_rows_say_too_little_to_move_anything() -> None:
    first = codes(20, 30)
    assert match_codes([first], first[:, ::-1]).tolist() == [*range(30)]


def test_a_model_is_matched_with_any_of_those_before_it() -> None:
    """Latents 0 and 1 of the third are 1 of the first and 0 of the second."""
    first, second = codes(500, 4), codes(500, 4, seed=2)
    third = sparse.csr_matrix(sparse.hstack([first[:, 1], second[:, 0], codes(500, 2, seed=3)]))
    assert match_codes([first, second], third).tolist()[:2] == [1, 0]


def test_a_place_that_is_taken_goes_to_the_best_and_the_rest_is_a_permutation() -> None:
    """Both latents of the second resemble latent 0 of the first, the second one more."""
    first = codes(1000, 3)
    weak = first[:, 0] + 2 * codes(1000, 1, seed=4)
    second = sparse.csr_matrix(sparse.hstack([weak, first[:, 0], sparse.csr_matrix((1000, 1))]))
    order = match_codes([first], second)
    assert order[0] == 1
    assert sorted(order.tolist()) == [0, 1, 2]


def test_decoders_are_matched_by_their_cosines() -> None:
    rows = torch.eye(3)
    found = match(rows, 2 * rows[[2, 0, 1]])
    assert found.second.tolist() == [1, 2, 0]
    np.testing.assert_allclose(found.cosines, 1.0)
