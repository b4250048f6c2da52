"""Pure functions on text and numbers: no file, no device, no tensor."""

from triptych.metrics.diversity import (
    DistinctAtLength,
    Jackknife,
    NgramTable,
    count_word_types,
    distinct_n,
    distinct_n_at,
    distinct_n_jackknife,
    distinct_n_without_each,
    expectation_adjusted_distinct,
    expectation_adjusted_jackknife,
    ngrams,
    self_bleu,
    within_prompt_distinct,
    words,
)
from triptych.metrics.matched import matched_distinct_n, matched_distinct_without_each
from triptych.metrics.repetition import max_ngram_count, repeated_ngram_fraction, seq_rep_n

__all__ = [
    "DistinctAtLength",
    "Jackknife",
    "NgramTable",
    "count_word_types",
    "distinct_n",
    "distinct_n_at",
    "distinct_n_jackknife",
    "distinct_n_without_each",
    "expectation_adjusted_distinct",
    "expectation_adjusted_jackknife",
    "matched_distinct_n",
    "matched_distinct_without_each",
    "max_ngram_count",
    "ngrams",
    "repeated_ngram_fraction",
    "self_bleu",
    "seq_rep_n",
    "within_prompt_distinct",
    "words",
]
