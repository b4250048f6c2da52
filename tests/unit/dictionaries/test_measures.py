"""Figures of a dictionary from codes written by hand."""

import math

import numpy as np
import pytest
from scipy import sparse

from triptych.data.images import Factor
from triptych.dictionaries.codes import Reading
from triptych.dictionaries.measures import (
    Facts,
    SelfR2,
    agreement_records,
    agreements,
    feature_table,
    labels_of,
    metrics_of,
    over_seeds,
    records_of,
    seeds_estimate,
    tax_records,
)
from triptych.dictionaries.records import DictionaryRecord
from triptych.dictionaries.universality import classify, co_firing, confirmed, correlation, firing_entropy
from triptych.stats import bare

N = 400
RED = np.arange(N) % 4 < 2
"""Two of four images, so that both halves of the images have both values."""


def facts() -> Facts:
    """Latent 0 fires for both models where an image is red, 1 for the first on others, 2 never; errors are a quarter of the spread."""
    first, second = np.zeros((N, 3)), np.zeros((N, 3))
    first[RED, 0], second[RED, 0], first[~RED, 1] = 2.0, 1.0, 1.0
    codes = tuple(sparse.csr_matrix(one) for one in (first, second))
    spread = np.ones((2, N))
    # What latents explain: 0 as much in both, 1 of the first alone, 2 nothing. Across models nothing is looked at.
    removal = np.zeros((2, 2, 3))
    removal[0, 0], removal[1, 1] = [50, 50, 0], [80, 0, 0]
    reading = Reading(codes, np.full((2, 2, N), 0.25), spread, 2 * spread, removal)
    counts, r = co_firing(codes), correlation(codes)
    entropy, is_confirmed = firing_entropy(counts.fires), confirmed(counts, r)
    kinds = classify(reading.explained, is_confirmed)
    return Facts(("a", "b"), reading, np.arange(N), counts, counts, entropy, r, is_confirmed, kinds, np.ones((2, 3)))


def colour() -> dict[str, Factor]:
    return {"colour": Factor(("blue", "red"), RED.astype(np.int32))}


def test_metrics_by_hand() -> None:
    metrics = metrics_of(facts(), loss=0.5)
    assert metrics["r2"]["a"]["b"] == 0.75
    assert metrics["r2_global"]["a"]["b"] == 0.875
    # Shares of latent 0: ½ and 1, so p = 1/3, 2/3 and entropy 0.918.
    counted = {name: metrics[name] for name in ("universal", "partial", "specific", "dead", "confirmed")}
    assert counted == {"universal": 1, "partial": 0, "specific": 1, "dead": 1, "confirmed": 1}
    beside = {name: metrics[name] for name in ("universal_by_variance", "universal_by_counts", "specific_by_counts")}
    assert beside == {"universal_by_variance": 1, "universal_by_counts": 1, "specific_by_counts": 1}
    # 200 common firings; 200 and 200 by either.
    assert metrics["co_firing_proportion"] == 0.5
    assert metrics["l0"] == {"a": 1.0, "b": 0.5}


def test_features_by_hand() -> None:
    rows = feature_table(facts()).to_pylist()
    assert rows[0]["firing_entropy"] == pytest.approx(1.0)
    assert rows[0]["co_fires"] == 200
    assert rows[0]["co_fire_chance"] == 100.0
    assert rows[0]["confirmed"]
    assert (rows[1]["firing_entropy"], rows[1]["cofire_a"], rows[1]["cofire_b"]) == (0.0, 0.0, None)
    assert [row["kind"] for row in rows] == ["universal", "specific", "dead"]
    assert [row["specific_to"] for row in rows] == [None, "a", None]
    assert [row["dead"] for row in rows] == [False, False, True]
    assert [row["explained_a"] for row in rows] == [0.5, 0.5, 0.0]
    assert rows[2]["firing_entropy"] is None


def test_labels_are_those_that_a_latent_ranks() -> None:
    found = agreements(facts(), colour(), np.arange(N))
    assert labels_of(facts(), found) == [("colour = red", 1.0), ("colour = blue", 1.0), None]
    records = {one.metric: one.estimate.mean for one in agreement_records("universal", 0, facts(), found)}
    # The universal latent knows red and, turned round, ranks blue last: (1 + 0) / 2. So does the specific one.
    assert records == {"auroc_universal": 0.5, "auroc_specific": 0.5}


def test_the_tax_is_of_the_model_itself() -> None:
    alone = {"a": SelfR2(0.9, None), "b": SelfR2(0.8, 0.7)}
    found = {(one.metric, one.source): one.estimate.mean for one in tax_records(0, facts(), alone)}
    assert found == pytest.approx(
        {
            ("alignment_tax", "a"): 0.15,
            ("r2_independent", "a"): 0.9,
            ("alignment_tax", "b"): 0.05,
            ("r2_independent", "b"): 0.8,
            ("alignment_tax_equal_updates", "b"): -0.05,
            ("r2_independent_equal_updates", "b"): 0.7,
        }
    )


def test_seeds_by_hand() -> None:
    """1, 2, 3: mean 2, deviation 1, t(2, 0.975) = 4.3027 over the root of 3."""
    estimate = seeds_estimate([1.0, 2.0, 3.0])
    assert [estimate.mean, estimate.high] == pytest.approx([2.0, 2 + 4.302653 / math.sqrt(3)])
    assert seeds_estimate([1.0]).low is None
    assert seeds_estimate([1.0, 1.0]).method == "no interval: all 2 seeds alike"


def test_what_one_seed_lacks_is_no_mean_over_seeds() -> None:
    def record(seed: int, value: float | None) -> DictionaryRecord:
        return DictionaryRecord(role="universal", metric="dead", seed=seed, estimate=bare(value, 1, "one seed"))

    assert [one.estimate.mean for one in over_seeds([record(0, 1.0), record(1, 3.0)])] == [2.0]
    assert [*over_seeds([record(0, 1.0)])] == []
    assert [*over_seeds([record(0, 1.0), record(1, None)])] == []


def test_records_have_intervals_over_images_where_they_are_sums_over_images() -> None:
    records = [*records_of("universal", 0, facts(), metrics_of(facts(), 0.5))]
    (share,) = [one.estimate for one in records if one.metric == "co_firing_proportion"]
    assert share.mean == 0.5
    assert share.low is not None
    assert share.n_clusters == N
    (count,) = [one.estimate for one in records if one.metric == "universal"]
    assert (count.mean, count.low, count.method) == (1.0, None, "no interval: one seed")
