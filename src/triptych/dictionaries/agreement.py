"""What latents are about, as far as labels tell: how well a latent ranks the images of a value above all others.

    AUROC_kv = P(z_k of an image of value v > z_k of another image) + ½ P(they are equal)

From ranks (Mann and Whitney 1947), ties at zero included, for all latents and values at once.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.stats
from scipy import sparse

from triptych.dictionaries.codes import FloatArray

IntArray = npt.NDArray[np.int64]


def by_image(codes: sparse.csr_matrix, images: IntArray) -> sparse.csr_matrix:
    """[images, latents]: the largest code of any row of an image. `images` [rows] counts them 0, 1, … in order."""
    n_images = int(images.max()) + 1
    if n_images == codes.shape[0]:
        return codes
    entries = codes.tocoo()
    order = np.lexsort((entries.data, entries.col, images[entries.row]))
    rows, columns, data = images[entries.row][order], entries.col[order], entries.data[order]
    # The last of equal places is the largest.
    last = np.append((rows[1:] != rows[:-1]) | (columns[1:] != columns[:-1]), True)
    return sparse.csr_matrix((data[last], (rows[last], columns[last])), shape=(n_images, codes.shape[1]))


def auroc(codes: sparse.csr_matrix, values: IntArray, n_values: int) -> FloatArray:
    """[latents, values] from codes [images, latents] ≥ 0 and the index of every image's value; −1 leaves one out.

    NaN for a value that no image, or every image, has. A latent that never fires has 0.5.
    """
    known = values >= 0
    labels, kept = values[known], codes[known].tocsc()
    counts = np.bincount(labels, minlength=n_values).astype(np.float64)
    n = len(labels)
    found = np.full((codes.shape[1], n_values), np.nan)
    for latent in range(codes.shape[1]):
        begin, end = kept.indptr[latent], kept.indptr[latent + 1]
        data, rows = kept.data[begin:end], kept.indices[begin:end]
        positive = data > 0
        data, rows = data[positive], rows[positive]
        n_zero = n - len(data)
        # Zeros share the mean of the lowest ranks.
        ranks = scipy.stats.rankdata(data) + n_zero
        fired = np.bincount(labels[rows], minlength=n_values)
        sums = np.bincount(labels[rows], weights=ranks, minlength=n_values) + (counts - fired) * (n_zero + 1) / 2
        others = n - counts
        with np.errstate(divide="ignore", invalid="ignore"):
            found[latent] = (sums - counts * (counts + 1) / 2) / (counts * others)
    found[:, (counts == 0) | (counts == n)] = np.nan
    return found


class Best(NamedTuple):
    """The latent that ranks a value best."""

    latent: int
    auroc: float


def best_latents(aurocs: FloatArray, among: npt.NDArray[np.bool_]) -> list[Best | None]:
    """Value by value the best of some latents; None where there is none or the value has no AUROC."""
    candidates = np.flatnonzero(among)
    found: list[Best | None] = []
    for column in aurocs.T:
        if len(candidates) == 0 or np.isnan(column).all():
            found.append(None)
            continue
        place = candidates[int(np.argmax(column[candidates]))]
        found.append(Best(int(place), float(column[place])))
    return found
