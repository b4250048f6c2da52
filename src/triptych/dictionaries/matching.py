"""Which latents of one dictionary are those of another: one-to-one, by the cosine of their decoder rows."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from triptych.dictionaries.codes import FloatArray

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
