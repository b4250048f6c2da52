"""Codes of a whole set of rows, sparse: k entries a row instead of m, so that 100,000 rows fit where dense ones do not.

With them the errors of every reconstruction, row by row. Not here: what is measured of them (`universality`,
`reconstruction`, `agreement`).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from triptych.dictionaries.backends.generic import summed_choice
from triptych.dictionaries.coder import Coder, UniversalSAE
from triptych.dictionaries.rows import PairedRows, Rows

FloatArray = npt.NDArray[np.float64]
BATCH_ROWS = 2048


class Reading(NamedTuple):
    """What a dictionary makes of rows, models in its own order."""

    codes: tuple[sparse.csr_matrix, ...]
    """By source: [rows, latents]."""
    errors: FloatArray
    """[sources, targets, rows]: ‖a − â‖² of normalised activations."""
    spread: FloatArray
    """[targets, rows]: ‖a − ā‖², ā the mean of every feature over these rows."""
    spread_global: FloatArray
    """[targets, rows]: the same from one mean over all features, as the official code has it."""
    removal: FloatArray
    """[sources, targets, latents]: by how much Σ ‖a − â‖² of the target rises when a latent is taken out of the
    source's code, Σ_n 2 z_n ⟨a_n − â_n, D⟩ + z_n² ‖D‖²."""

    @property
    def explained(self) -> FloatArray:
        """[models, latents]: what a latent of the model's own code explains of it."""
        return np.stack([self.removal[i, i] for i in range(len(self.codes))])


@torch.inference_mode()
def read_rows(sae: UniversalSAE, rows: PairedRows, *, summed: bool = False) -> Reading:
    """Codes and errors of all rows; `summed` picks latents by the sum over models (SPARC).

    Everything is in normalised units, those of the loss.
    """
    coders = [sae.coder(name) for name in rows.names]
    centres, middles = _centres(coders, rows)
    codes: list[list[sparse.csr_matrix]] = [[] for _ in coders]
    errors, spread, spread_global = [], [], []
    lengths = [coder.decoder_weight.double().square().sum(1) for coder in coders]
    removal = torch.zeros(len(coders), len(coders), sae.latents, dtype=torch.float64, device=lengths[0].device)
    for batch in _batches(coders, rows):
        own = _codes(coders, batch, summed=summed)
        for kept, one in zip(codes, own, strict=True):
            kept.append(to_sparse(one))
        residuals = [[a - coder.reconstruct(one) for a, coder in zip(batch, coders, strict=True)] for one in own]
        errors.append([[_squares(residual) for residual in row] for row in residuals])
        for i, (one, row) in enumerate(zip(own, residuals, strict=True)):
            squares = one.double().square().sum(0)
            for j, (coder, residual) in enumerate(zip(coders, row, strict=True)):
                removal[i, j] += 2 * (one * (residual @ coder.decoder_weight.T)).double().sum(0) + squares * lengths[j]
        spread.append([_squares(a - centre) for a, centre in zip(batch, centres, strict=True)])
        spread_global.append([_squares(a - middle) for a, middle in zip(batch, middles, strict=True)])
    return Reading(
        tuple(sparse.vstack(kept, format="csr") for kept in codes),
        np.concatenate(errors, axis=2),
        np.concatenate(spread, axis=1),
        np.concatenate(spread_global, axis=1),
        removal.cpu().numpy(),
    )


def to_sparse(codes: Tensor) -> sparse.csr_matrix:
    """[rows, latents] without its zeros, float32."""
    return sparse.csr_matrix(codes.float().cpu().numpy())


def _codes(coders: Sequence[Coder], batch: Sequence[Rows], *, summed: bool) -> list[Tensor]:
    pre = [coder.pre_codes(rows) for coder, rows in zip(coders, batch, strict=True)]
    if summed:
        chosen = summed_choice(pre, coders[0].config.sparsifier.k)
        return [one.clamp_min(0) * chosen for one in pre]
    return [coder.sparsify(one) for coder, one in zip(coders, pre, strict=True)]


def _centres(coders: Sequence[Coder], rows: PairedRows) -> tuple[list[Tensor], list[Tensor]]:
    """Means of normalised rows: of every feature, and one of all."""
    raw = [moments.mean.float().to(coder.mean.device) for moments, coder in zip(rows.moments(), coders, strict=True)]
    centres = [coder.normalise(mean[None])[0] for mean, coder in zip(raw, coders, strict=True)]
    return centres, [centre.mean() for centre in centres]


def _batches(coders: Sequence[Coder], rows: PairedRows) -> Iterator[list[Rows]]:
    for shard in rows.shards():
        for start in range(0, len(shard[0]), BATCH_ROWS):
            pieces = [
                one[start : start + BATCH_ROWS].float().to(c.mean.device) for one, c in zip(shard, coders, strict=True)
            ]
            yield [coder.normalise(piece) for coder, piece in zip(coders, pieces, strict=True)]


def _squares(difference: Tensor) -> FloatArray:
    squares: FloatArray = difference.double().square().sum(1).cpu().numpy()
    return squares
