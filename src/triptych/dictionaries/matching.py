"""Which latents are the same ones, one-to-one: in two dictionaries by their decoders, in two models by their codes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from triptych.dictionaries.codes import FloatArray
from triptych.dictionaries.universality import NEGLIGIBLE, IntArray, column_moments, correlation

MATCHED = 0.7
"""Cosine above which two latents count as one."""


class Matching(NamedTuple):
    """Pairs of latents, each at most once."""

    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    cosines: FloatArray


def match(first: Tensor, second: Tensor) -> Matching:
    """The one-to-one matching of rows [latents, width] with the largest sum of cosines (Hungarian method)."""
    cosines = (functional.normalize(first.double(), dim=1) @ functional.normalize(second.double(), dim=1).T).numpy()
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    return Matching(rows, columns, cosines[rows, columns])


MIN_MATCH = 0.2
"""Correlation from which two latents may be matched; of few rows it must be five standard errors of none, 5 / √n."""
IN_PLACE = 0.05
"""By how much a better match must correlate more for a latent to move: else noise keeps moving it."""


def match_codes(before: Sequence[sparse.csr_matrix], codes: sparse.csr_matrix) -> IntArray:
    """The order of a model's latents in which latent k correlates with latent k of the models before it.

    All codes are [rows, latents] of the same rows, times the length of their decoder rows. Pairs are matched greedily,
    the highest correlation (with any of the models before) first; what no pair claims stays where it is if it can. A
    latent that shares its place with another one, to which it has nothing to say, moves to a place that nobody uses, as
    long as there are any. Returns a permutation [latents].
    """
    n = codes.shape[1]
    pairs = [_correlations(other, codes) for other in before]
    rows, columns, values = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    ranked = np.argsort(-(values + IN_PLACE * (rows == columns)), kind="stable")
    order, is_taken = np.full(n, -1, dtype=np.int64), np.zeros(n, dtype=bool)
    for row, column in zip(rows[ranked].tolist(), columns[ranked].tolist(), strict=True):
        if order[row] < 0 and not is_taken[column]:
            order[row], is_taken[column] = column, True
    is_matched = order >= 0
    stays = ~is_matched & ~is_taken
    order[stays] = np.flatnonzero(stays)
    order[order < 0] = np.flatnonzero(~is_taken & ~stays)
    if 5 / math.sqrt(codes.shape[0]) > MIN_MATCH:
        return order  # Too few rows to tell that two latents have nothing in common.
    is_used, is_live = np.any([_is_used(other) for other in before], axis=0), _is_used(codes)[order]
    is_apart = np.all([correlation([other, codes[:, order]]) < MIN_MATCH / 2 for other in before], axis=0)
    crowded = np.flatnonzero(~is_matched & is_used & is_live & is_apart)
    free = np.flatnonzero(~is_matched & ~is_used & ~is_live)
    moved = min(len(crowded), len(free))
    crowded, free = crowded[:moved], free[:moved]
    order[crowded], order[free] = order[free], order[crowded]
    return order


def _is_used(codes: sparse.csr_matrix) -> npt.NDArray[np.bool_]:
    """Which latents have at least a hundredth of the variance of an average one."""
    variances = column_moments(codes)[1] ** 2
    used: npt.NDArray[np.bool_] = variances > NEGLIGIBLE * variances.mean()
    return used


def _correlations(first: sparse.csr_matrix, second: sparse.csr_matrix) -> tuple[IntArray, IntArray, FloatArray]:
    """Latents of both and their correlation, where it is large enough; sparse, as most never fire together."""
    n = first.shape[0]
    (mean, deviation), (other_mean, other_deviation) = column_moments(first), column_moments(second)
    product = (first.astype(np.float64).T @ second.astype(np.float64) / n).tocoo()
    rows, columns = product.row.astype(np.int64), product.col.astype(np.int64)
    scale = deviation[rows] * other_deviation[columns]
    covariance = product.data - mean[rows] * other_mean[columns]
    values = np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 0)
    kept = values >= max(MIN_MATCH, 5 / math.sqrt(n))
    return rows[kept], columns[kept], values[kept]
