"""Distinct-n of two sets of texts at equal amounts of text: on equally many n-grams of each, exactly and without draws.

Not here: Distinct-n of one set (`diversity`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import gammaln

from triptych.metrics.diversity import FloatArray, IntArray, NgramTable


class WithoutEach(NamedTuple):
    """Matched Distinct-n of both sides without one prompt at a time: [prompts] each; NaN where a side is empty."""

    texts: FloatArray
    other: FloatArray


def matched_distinct_n(texts: Sequence[str], other: Sequence[str], n: int, seed: int = 0) -> tuple[float, float]:
    """Distinct-n of `texts` and of `other`, both on as many n-grams as the smaller side has.

        D(m) = 1 / m · Σ_t 1 - C(N - c_t, m) / C(N, m),   m = min(N, N of the other side)

    N n-grams of a side, c_t how often it has the type t: the mean of Distinct-n over all draws of m of its n-grams
    without replacement. The smaller side's is its `distinct_n`; two sides of one size compare as they are. Unit: a
    fraction. Both NaN where a side has no n-gram. N-grams never cross texts.

    Distinct-n falls as text grows, so that who says less looks more varied; expectation-adjusted Distinct (EAD) turns
    that round for n > 1, where the types outnumber its vocabulary. Here the same texts cut to half, or half of them,
    score as the whole does, but for what they have in common at their beginnings and words that come back nearby.

    `seed` is of no effect: the mean over draws is computed, not sampled; it stands here for whoever calls this as one
    calls a sampler.

    Source: rarefaction, Hurlbert 1971 (species for types, individuals for n-grams).
    """
    tables = NgramTable(texts, n), NgramTable(other, n)
    m = min(table.ids.size for table in tables)
    first, second = (_rarefied(np.bincount(table.ids, minlength=1), m) for table in tables)
    return first, second


def matched_distinct_without_each(texts: Sequence[str], other: Sequence[str], n: int) -> WithoutEach:
    """`matched_distinct_n` without the texts of each prompt, which is at the same place on both sides.

    What a jackknife of their difference starts from: m is chosen anew each time. Raises `ValueError` for unequal
    numbers of texts.
    """
    if len(texts) != len(other):
        raise ValueError(f"texts must pair up by prompt: {len(texts)} texts against {len(other)}")
    tables = NgramTable(texts, n), NgramTable(other, n)
    rows = [_without(tables, prompt) for prompt in range(len(texts))]
    first, second = (np.array([row[side] for row in rows], dtype=np.float64) for side in (0, 1))
    return WithoutEach(first, second)


def _without(tables: tuple[NgramTable, NgramTable], text: int) -> tuple[float, float]:
    left = []
    for table in tables:
        gone = table.ids[table.offsets[text] : table.offsets[text + 1]]
        size = max(1, table.n_types)
        left.append(np.bincount(table.ids, minlength=size) - np.bincount(gone, minlength=size))
    m = min(int(counts.sum()) for counts in left)
    first, second = (_rarefied(counts, m) for counts in left)
    return first, second


def _rarefied(counts: IntArray, m: int) -> float:
    """Expected types among m of the n-grams, over m; types that occur equally often are counted together."""
    if m == 0:
        return float("nan")
    how_many = np.bincount(counts)[1:]
    occurs = np.arange(1, len(how_many) + 1)
    n = int(counts.sum())
    # C(n - c, m) / C(n, m) is 0 where m are more than all others: each draw then has the type.
    left = n - occurs - m
    logs = gammaln(n - occurs + 1) + gammaln(n - m + 1) - gammaln(np.maximum(left, 0) + 1) - gammaln(n + 1)
    missed = np.where(left < 0, 0.0, np.exp(logs))
    return float((how_many * (1.0 - missed)).sum()) / m
