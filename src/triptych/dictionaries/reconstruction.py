"""R²: how much of a model's activations a code explains.

    R² = 1 − Σ_n ‖a_n − â_n‖² / Σ_n ‖a_n − ā‖²

Sums run over the whole set, never over means of batches, so that shards of any size give the same figure. ā is the mean
of every feature; the official code takes one mean over all features, which reads higher where features' means differ.
Intervals come from leaving out one image at a time.
"""

import numpy as np

from triptych.dictionaries.agreement import IntArray
from triptych.dictionaries.codes import FloatArray
from triptych.records import Estimate
from triptych.stats import delete_one

MIN_IMAGES = 20
"""For an interval."""


def r_squared(errors: FloatArray, spread: FloatArray) -> float:
    """R² from squares [rows]; NaN where the activations never vary."""
    total = float(spread.sum())
    return 1.0 - float(errors.sum()) / total if total > 0 else float("nan")


def r_squared_estimate(errors: FloatArray, spread: FloatArray, images: IntArray) -> Estimate:
    """R² with the 95 % interval of a delete-an-image jackknife; `images` says which image a row is of."""
    _, place = np.unique(images, return_inverse=True)
    unexplained, total = (np.bincount(place, weights=one).astype(np.float64) for one in (errors, spread))
    return ratio_estimate(unexplained, total, complement=True)


def ratio_estimate(parts: FloatArray, wholes: FloatArray, *, complement: bool = False) -> Estimate:
    """Σ parts / Σ wholes over images, or one less that, with the interval of a delete-an-image jackknife."""
    part, whole = float(parts.sum()), float(wholes.sum())
    n = len(parts)
    if whole <= 0 or n == 0:
        return Estimate(mean=None, low=None, high=None, n=n, n_clusters=n, method="no estimate: nothing varies")
    rest = whole - wholes
    if n < MIN_IMAGES or bool((rest <= 0).any()):
        value = part / whole
        method = f"no interval: fewer than {MIN_IMAGES} images"
        return Estimate(mean=1 - value if complement else value, low=None, high=None, n=n, n_clusters=n, method=method)
    without = (part - parts) / rest
    value = part / whole
    estimate = delete_one(1 - value if complement else value, 1 - without if complement else without, n=n)
    method = estimate.method.replace("a-prompt", "an-image").replace("prompt", "image")
    return estimate.model_copy(update={"method": method})
