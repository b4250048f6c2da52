"""Which latents are universal: by how often models fire them (the paper), and by what they explain (ours).

    p_k^i = |F_k^i| / Σ_j |F_k^j|,      FE_k = −(1 / log M) Σ_i p_k^i log p_k^i
    C_k = rows on which every model fires latent k,      CFP_k^i = |C_k| / |F_k^i|
    proportion = Σ_k |C_k| / Σ_k |∪_i F_k^i|

F_k^i are the rows on which model i fires k: z > τ, τ = 0 for TopK codes (0.1 in the official code).
Source: Thasarathan et al. 2025, equations 7 and 8; the paper, section 2.3.

Entropy of counts has two faults. TopK must fill k places, so that a latent fires at any small value: of planted private
concepts it calls a few per cent specific. And two models that fire a latent equally often on images that have nothing
to do with each other give it an entropy of 1. `classify` therefore weighs a latent by what it explains, and `confirmed`
asks for evidence that it is the same thing in all models.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import scipy.stats
import torch
from scipy import sparse
from torch import Tensor

from triptych.dictionaries.records import SPECIFIC, UNIVERSAL, Kind

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Codes: TypeAlias = Tensor | npt.NDArray[np.floating] | sparse.csr_matrix
"""[rows, latents], of one model."""

KINDS: tuple[Kind, ...] = get_args(Kind)

FALSE_DISCOVERIES = 0.01
MIN_CORRELATION = 0.3
"""Of codes, from which a latent is confirmed: Cohen's medium effect. Of planted private concepts none reaches 0.2, of
planted common ones 95 % exceed 0.85."""
NEGLIGIBLE = 0.01
"""Share of what an average latent explains, below which a latent counts as dead."""


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


def significant(counts: CoFiring, rate: float = FALSE_DISCOVERIES) -> BoolArray:
    """[latents]: fired together more often than by chance, false discovery rate `rate` over all live latents."""
    pvalues = chance_pvalues(counts)
    live = ~np.isnan(pvalues)
    found = np.zeros(len(pvalues), dtype=bool)
    if live.any():
        found[live] = scipy.stats.false_discovery_control(np.clip(pvalues[live], 0, 1)) <= rate
    return found


def correlation(codes: Sequence[Codes]) -> FloatArray:
    """[latents]: Pearson's correlation of a latent's values in two models' codes of the same rows, zeros included.

    Of more models the lowest of all pairs; 0 where a model's values never vary. The effect size of `confirmed`: small
    values that fill TopK's places hardly move it, and it is 0 in expectation where rows do not correspond. Source:
    Gurnee et al. 2024 (arXiv 2401.12181), who correlate neurons of models.
    """
    columns = [_sparse(one).tocsc().astype(np.float64) for one in codes]
    moments = [column_moments(one) for one in columns]
    lowest = np.full(columns[0].shape[1], np.inf)
    for place, other in itertools.combinations(range(len(columns)), 2):
        (mean, deviation), (other_mean, other_deviation) = moments[place], moments[other]
        product = np.asarray(columns[place].multiply(columns[other]).mean(axis=0)).ravel()
        scale = deviation * other_deviation
        pair = np.divide(product - mean * other_mean, scale, out=np.zeros_like(scale), where=scale > 0)
        lowest = np.minimum(lowest, pair)
    return np.where(np.isfinite(lowest), lowest, 0.0)


def column_moments(codes: sparse.spmatrix) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of every column, zeros included; 0 for what is constant up to rounding."""
    mean = np.asarray(codes.mean(axis=0, dtype=np.float64)).ravel()
    variance = np.asarray(codes.multiply(codes).mean(axis=0, dtype=np.float64)).ravel() - mean**2
    return mean, np.sqrt(np.where(variance > 1e-12 * mean**2, variance, 0.0))


def confirmed(counts: CoFiring, correlations: FloatArray) -> BoolArray:
    """[latents]: fired together more often than by chance *and* with codes that correlate by `MIN_CORRELATION`.

    Significance alone would not do: with thousands of rows any dependence has it.
    """
    found: BoolArray = significant(counts) & (correlations >= MIN_CORRELATION)
    return found


class Kinds(NamedTuple):
    """What every latent is."""

    kind: npt.NDArray[np.str_]
    """[latents]: a `Kind`."""
    specific_to: IntArray
    """[latents]: the place of the model, −1 for what is not specific."""
    shares: FloatArray
    """[models, latents]: of all that the model's latents explain."""
    entropy: FloatArray
    """[latents]: of these shares, 0 … 1; NaN where dead or of a single model."""

    def count(self, kind: Kind) -> int:
        """How many latents are of a kind."""
        return int((self.kind == kind).sum())


def classify(explained: FloatArray, is_confirmed: BoolArray) -> Kinds:
    """The kind of every latent, from what it explains in each model [models, latents] (`Reading.explained`).

        e_k^i = max(0, Σ_n 2 z_n ⟨a_n − â_n, D_k^i⟩ + z_n² ‖D_k^i‖²)      z, â: of model i's own code
        s_k^i = e_k^i / Σ_l e_l^i,      p_k^i = s_k^i / Σ_j s_k^j,      H_k = −(1 / log M) Σ_i p_k^i log p_k^i

    e is by how much the squared error of model i rises when latent k alone is taken out of its code, s the share of all
    that the model's latents explain (models are explained unequally well), H the entropy over models.

    - `dead`: explains less than 1 % of what an average latent does, in every model, whether or not it fires
    - `universal`: H > 0.9, and confirmed (`confirmed`): a latent is shared where it is the same thing in all models
    - `specific`: H < 0.1; to the model with the largest share. Of a single model all live latents are
    - `partial`: everything else

    Departures from Thasarathan et al. 2025 and the paper: what is explained in the place of counts, the same limits of
    entropy; confirmation; dead latents are apart (the official code calls them specific).
    """
    explained = np.maximum(explained, 0.0)
    total = explained.sum(axis=1, keepdims=True)
    shares = np.divide(explained, total, out=np.zeros_like(explained), where=total > 0)
    dead = shares.max(axis=0) * shares.shape[1] < NEGLIGIBLE
    entropy = np.where(dead, np.nan, firing_entropy(shares))
    specific = ~dead & ((entropy < SPECIFIC) | (len(shares) == 1))
    universal = (entropy > UNIVERSAL) & is_confirmed
    kind = np.select([dead, universal, specific], ["dead", "universal", "specific"], "partial")
    owner = np.where(specific, shares.argmax(axis=0), -1).astype(np.int64)
    return Kinds(kind, owner, shares, entropy)


def energy(codes: Codes, dictionary: npt.NDArray[np.floating] | Tensor) -> FloatArray:
    """[latents]: ‖E[z_k] D_k‖² = E[z_k]² ‖D_k‖², D [latents, width]; in the square of the activations' unit."""
    rows = np.asarray(dictionary.detach().cpu() if isinstance(dictionary, Tensor) else dictionary, dtype=np.float64)
    means = np.asarray(_sparse(codes).mean(axis=0, dtype=np.float64)).ravel()
    found: FloatArray = means**2 * (rows**2).sum(1)
    return found


class ByCounts(NamedTuple):
    """Numbers of latents by the paper's definition, which compares how often models fire."""

    universal: int
    specific: int


def by_counts(entropy: FloatArray) -> ByCounts:
    """Counts by the paper's limits, from entropies of firing; latents that no model fires (NaN) are of neither kind."""
    return ByCounts(int((entropy > UNIVERSAL).sum()), int((entropy < SPECIFIC).sum()))


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
