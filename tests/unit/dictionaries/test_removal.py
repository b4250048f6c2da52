"""What a latent explains is what the error rises by when it is taken out of the code."""

import numpy as np
import torch

from triptych.dictionaries.coder import CoderConfig, UniversalSAE, initialise
from triptych.dictionaries.codes import read_rows
from triptych.dictionaries.rows import PairedRows
from triptych.dictionaries.sparsifiers import TopK


def test_removal_is_the_rise_of_the_squared_error_when_a_latent_is_left_out() -> None:
    stream = torch.Generator().manual_seed(0)
    rows = {"a": torch.randn(60, 6, generator=stream), "b": torch.randn(60, 4, generator=stream)}
    sae = UniversalSAE(CoderConfig(latents=10, sparsifier=TopK(k=3), normalisation="none"), {"a": 6, "b": 4})
    initialise(sae, list(rows.values()), 0)
    reading = read_rows(sae, PairedRows(rows))
    with torch.no_grad():
        for i, source in enumerate(rows):
            codes = sae.encode(source, rows[source])
            for j, (target, wanted) in enumerate(rows.items()):
                whole = (wanted - sae.decode(target, codes)).double().square().sum()
                for latent in range(10):
                    without = codes.clone()
                    without[:, latent] = 0
                    rise = (wanted - sae.decode(target, without)).double().square().sum() - whole
                    np.testing.assert_allclose(reading.removal[i, j, latent], float(rise), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(reading.explained, np.stack([reading.removal[0, 0], reading.removal[1, 1]]))


def test_removal_by_hand() -> None:
    """a = 2, z = 1, D = 1.5: the error is 0.25, without the latent 4."""
    sae = UniversalSAE(CoderConfig(latents=1, sparsifier=TopK(k=1), normalisation="none"), {"a": 1})
    with torch.no_grad():
        sae.coder("a").encoder_weight.fill_(0.5)
        sae.coder("a").decoder_weight.fill_(1.5)
    reading = read_rows(sae, PairedRows({"a": torch.tensor([[2.0], [2.0]])}))
    np.testing.assert_allclose(reading.explained, [[2 * 3.75]])
