"""Which latents are universal, and how far chance would have taken them.

    p_k^i = |F_k^i| / Σ_j |F_k^j|,      FE_k = −(1 / log M) Σ_i p_k^i log p_k^i
    C_k = rows on which every model fires latent k,      CFP_k^i = |C_k| / |F_k^i|
    proportion = Σ_k |C_k| / Σ_k |∪_i F_k^i|

F_k^i are the rows on which model i fires k: z > τ, τ = 0 for TopK codes (0.1 in the official code).
Source: Thasarathan et al. 2025, equations 7 and 8; the paper, section 2.3.

Entropy compares counts alone: two models that fire a latent equally often on images that have nothing to do with each
other give it an entropy of 1. So a latent counts as *confirmed* only where the models fire it together more often than
independent firing at their own rates would (hypergeometric for two models, binomial for more), with the false
discovery rate over all latents held at 1 % (Benjamini and Hochberg 1995). No published code does that.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.stats
import torch
from scipy import sparse
from torch import Tensor

from triptych.dictionaries.records import SPECIFIC, UNIVERSAL

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Codes: TypeAlias = Tensor | npt.NDArray[np.floating] | sparse.csr_matrix
"""[rows, latents], of one model."""

FALSE_DISCOVERIES = 0.01


class CoFiring(NamedTuple):
    """How often models fire latents, alone and together."""

    n_rows: int
    fires: IntArray
    """[models, latents]: |F_k^i|."""
    together: IntArray
    """[latents]: |C_k|."""
    either: IntArray
    """[latents]: |∪_i F_k^i|."""

    @property
    def per_model(self) -> FloatArray:
        """[models, latents]: CFP_k^i; NaN where the model never fires the latent."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.fires > 0, self.together / self.fires, np.nan)

    @property
    def proportion(self) -> float:
        """The paper's single figure; NaN where nothing fires."""
        total = int(self.either.sum())
        return int(self.together.sum()) / total if total else math.nan

    @property
    def dead(self) -> BoolArray:
        """[latents]: fired by no model."""
        dead: BoolArray = self.either == 0
        return dead

    @property
    def chance(self) -> FloatArray:
        """[latents]: expected |C_k| if models fired independently, N Π_i |F_k^i| / N."""
        expected: FloatArray = self.n_rows * np.prod(self.fires / self.n_rows, axis=0)
        return expected

    @property
    def chance_proportion(self) -> float:
        """The proportion that independent firing at the same rates would give; NaN where nothing fires."""
        rates = self.fires / self.n_rows
        either = self.n_rows * (1 - np.prod(1 - rates, axis=0)).sum()
        return float(self.chance.sum() / either) if either > 0 else math.nan


def co_firing(codes: Sequence[Codes], threshold: float = 0.0) -> CoFiring:
    """Counts over rows of the same images in every model's codes [rows, latents]; to fire is to exceed `threshold`."""
    fired = [_fired(one, threshold) for one in codes]
    if len({one.shape for one in fired}) != 1:
        raise ValueError(f"codes must be of the same rows and latents, got {[one.shape for one in fired]}")
    together, either = fired[0], fired[0]
    for one in fired[1:]:
        together, either = together.multiply(one), either.maximum(one)
    return CoFiring(fired[0].shape[0], np.stack([_count(one) for one in fired]), _count(together), _count(either))


def firing_entropy(fires: npt.ArrayLike | Tensor) -> FloatArray:
    """FE_k in 0 … 1 from counts [models, latents]; NaN for latents that no model fires, and for a single model.

    Departure: the official code gives dead latents 0 and so counts them as specific.
    """
    counts = np.asarray(fires.cpu() if isinstance(fires, Tensor) else fires, dtype=np.float64)
    total, n_models = counts.sum(0), len(counts)
    if n_models < 2:
        return np.full(counts.shape[1], np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = counts / total
        terms = np.where(shares > 0, shares * np.log(shares), 0.0)
    # Not −0 where one model alone fires.
    entropy: FloatArray = np.where(total > 0, np.abs(terms.sum(0)) / math.log(n_models), np.nan)
    return entropy


def chance_pvalues(counts: CoFiring) -> FloatArray:
    """[latents]: one-sided probability of so many common firings, were they independent; NaN for dead latents.

    Two models: hypergeometric, exact given both counts. More: binomial, with the product of all rates as probability.
    """
    n, fires, together = counts.n_rows, counts.fires, counts.together
    if len(fires) == 2:
        pvalues = scipy.stats.hypergeom.sf(together - 1, n, fires[0], fires[1])
    else:
        pvalues = scipy.stats.binom.sf(together - 1, n, np.prod(fires / n, axis=0))
    found: FloatArray = np.where(counts.dead, np.nan, pvalues)
    return found


def confirmed(counts: CoFiring, rate: float = FALSE_DISCOVERIES) -> BoolArray:
    """[latents]: fired together more often than by chance, false discovery rate `rate` over all live latents."""
    pvalues = chance_pvalues(counts)
    live = ~np.isnan(pvalues)
    found = np.zeros(len(pvalues), dtype=bool)
    if live.any():
        found[live] = scipy.stats.false_discovery_control(np.clip(pvalues[live], 0, 1)) <= rate
    return found


def energy(codes: Codes, dictionary: npt.NDArray[np.floating] | Tensor) -> FloatArray:
    """[latents]: ‖E[z_k] D_k‖² = E[z_k]² ‖D_k‖², D [latents, width]; in the square of the activations' unit."""
    rows = np.asarray(dictionary.detach().cpu() if isinstance(dictionary, Tensor) else dictionary, dtype=np.float64)
    means = np.asarray(_sparse(codes).mean(axis=0, dtype=np.float64)).ravel()
    found: FloatArray = means**2 * (rows**2).sum(1)
    return found


class Classes(NamedTuple):
    """Numbers of latents."""

    universal: int
    universal_confirmed: int
    mid: int
    specific: int
    dead: int


def classes(entropy: FloatArray, is_confirmed: BoolArray) -> Classes:
    """Counts by the paper's limits; dead latents (NaN) belong to none of the others."""
    dead = np.isnan(entropy)
    universal, specific = entropy > UNIVERSAL, entropy < SPECIFIC
    counted = (universal, universal & is_confirmed, ~(dead | universal | specific), specific, dead)
    return Classes(*(int(one.sum()) for one in counted))


def _sparse(codes: Any) -> sparse.csr_matrix:
    if sparse.issparse(codes):
        return codes.tocsr()
    dense = codes.detach().cpu().numpy() if isinstance(codes, torch.Tensor) else np.asarray(codes)
    return sparse.csr_matrix(dense)


def _fired(codes: Codes, threshold: float) -> sparse.csr_matrix:
    """1 where the code exceeds a threshold of at least 0."""
    if threshold < 0:
        raise ValueError(f"threshold must be at least 0, got {threshold}: what does not fire is 0")
    return (_sparse(codes) > threshold).astype(np.int8)


def _count(fired: sparse.csr_matrix) -> IntArray:
    return np.asarray(fired.sum(axis=0, dtype=np.int64)).ravel()
