"""R²: by hand, against numpy, and the same from shards of any size."""

import numpy as np
import pytest
import torch
from torch import Tensor

from triptych.dictionaries.coder import CoderConfig, UniversalSAE, initialise
from triptych.dictionaries.codes import read_rows
from triptych.dictionaries.reconstruction import r_squared, r_squared_estimate, ratio_estimate
from triptych.dictionaries.rows import PairedRows
from triptych.dictionaries.sparsifiers import TopK


class Pieces:
    """A tensor cut into shards."""

    def __init__(self, rows: Tensor, sizes: tuple[int, ...]) -> None:
        self._parts = rows.split(list(sizes))
        self.shard_rows = sizes
        self.width = rows.shape[1]

    def read(self, shard: int) -> Tensor:
        part: Tensor = self._parts[shard]
        return part


@pytest.fixture
def trained() -> tuple[UniversalSAE, dict[str, Tensor]]:
    stream = torch.Generator().manual_seed(0)
    rows = {"a": torch.randn(90, 6, generator=stream) + 3.0, "b": torch.randn(90, 4, generator=stream) * 2.0}
    sae = UniversalSAE(CoderConfig(latents=12, sparsifier=TopK(k=3)), {"a": 6, "b": 4})
    for name, one in rows.items():
        sae.coder(name).mean.copy_(one.mean(0))
        sae.coder(name).scale.copy_(one.std(0))
    initialise(sae, [sae.coder(name).normalise(one) for name, one in rows.items()], seed=0)
    return sae, rows


def test_by_hand() -> None:
    # Errors 1 + 0 + 2 of a spread of 4 + 1 + 5: 1 − 3/10.
    assert r_squared(np.array([1.0, 0.0, 2.0]), np.array([4.0, 1.0, 5.0])) == pytest.approx(0.7)
    assert np.isnan(r_squared(np.zeros(2), np.zeros(2)))


def test_sums_over_the_set_are_not_means_over_batches() -> None:
    """Two batches with R² 0.5 and 0 give 1 − (1 + 1) / (2 + 1) = 1/3, not 1/4."""
    assert r_squared(np.array([1.0, 1.0]), np.array([2.0, 1.0])) == pytest.approx(1 / 3)


@pytest.mark.parametrize("sizes", [(90,), (40, 50), (1, 88, 1), (30, 30, 30)])
def test_shards_of_any_size_give_the_same(
    trained: tuple[UniversalSAE, dict[str, Tensor]], sizes: tuple[int, ...]
) -> None:
    sae, rows = trained
    whole = read_rows(sae, PairedRows(rows))
    cut = read_rows(sae, PairedRows({name: Pieces(one, sizes) for name, one in rows.items()}, budget_bytes=1))
    for i in range(2):
        for j in range(2):
            expected = r_squared(whole.errors[i, j], whole.spread[j])
            assert r_squared(cut.errors[i, j], cut.spread[j]) == pytest.approx(expected, abs=1e-6)


def test_against_plain_numpy(trained: tuple[UniversalSAE, dict[str, Tensor]]) -> None:
    sae, rows = trained
    reading = read_rows(sae, PairedRows(rows))
    for i, source in enumerate(rows):
        for j, target in enumerate(rows):
            with torch.no_grad():
                guess = sae(source, target, rows[source])
                coder = sae.coder(target)
                a, g = coder.normalise(rows[target]).double().numpy(), coder.normalise(guess).double().numpy()
            errors = ((a - g) ** 2).sum()
            per_feature = 1 - errors / ((a - a.mean(0)) ** 2).sum()
            one_mean = 1 - errors / ((a - a.mean()) ** 2).sum()
            assert r_squared(reading.errors[i, j], reading.spread[j]) == pytest.approx(per_feature, abs=1e-5)
            assert r_squared(reading.errors[i, j], reading.spread_global[j]) == pytest.approx(one_mean, abs=1e-5)


def test_one_global_mean_reads_higher_where_features_differ() -> None:
    """Features with means 0 and 10: explaining no more than the means is R² 0, and 1 − 2 / (2 + 50) by one mean."""
    a = np.array([[1.0, 10.0], [-1.0, 10.0]])
    errors = ((a - a.mean(0)) ** 2).sum(1)
    assert r_squared(errors, ((a - a.mean(0)) ** 2).sum(1)) == 0.0
    assert r_squared(errors, ((a - a.mean()) ** 2).sum(1)) == pytest.approx(1 - 2 / 102)


def test_the_interval_is_over_images_and_covers() -> None:
    stream = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        spread = stream.gamma(2.0, size=80)
        errors = 0.3 * spread * stream.gamma(4.0, 0.25, size=80)
        # Rows come in pairs of one image.
        estimate = r_squared_estimate(np.repeat(errors, 2), np.repeat(spread, 2), np.repeat(np.arange(80), 2))
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.n_clusters == 80
        hits += estimate.low <= 0.7 <= estimate.high
    assert 0.90 <= hits / 200 <= 0.99


def test_few_images_have_no_interval_and_nothing_has_no_value() -> None:
    few = ratio_estimate(np.ones(5), np.full(5, 2.0))
    assert few.mean == 0.5
    assert few.low is None
    assert "fewer than 20 images" in few.method
    assert ratio_estimate(np.zeros(30), np.zeros(30)).mean is None
