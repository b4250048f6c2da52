"""How much one completion repeats itself, on token ids.

Not a stop rule: the decoder's own stopping works step by step; these read a finished completion. Pass plain
integers (`ids.tolist()`): the elements of a torch tensor hash by identity, so no two of them would ever be equal.
"""

import math
from collections import Counter
from collections.abc import Sequence

from triptych.metrics.diversity import ngrams


def repeated_ngram_fraction(tokens: Sequence[int], n: int = 3) -> float:
    """The share of n-grams that occurred before in the same sequence.

        seq-rep-n = 1 - |unique n-grams| / |n-grams|

    Unit: a fraction, 0 (nothing repeats) to below 1. NaN where the sequence is shorter than n.

    Source: Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training", the metric seq-rep-n.
    Departures: n is 3 by default, the block of our repetition stop rule, where the paper reports n = 4; the paper
    averages over continuations of one fixed length, this is the figure of one sequence of any length, and a long
    sequence repeats more than a short one.
    """
    grams = ngrams(tokens, n)
    return 1.0 - len(set(grams)) / len(grams) if grams else math.nan


seq_rep_n = repeated_ngram_fraction
"""The name that Welleck et al. 2020 give to `repeated_ngram_fraction`."""


def max_ngram_count(tokens: Sequence[int], n: int = 3) -> int:
    """How often the most frequent n-gram occurs, overlapping occurrences included; 0 where there is no n-gram.

        max over n-grams g of |{i : tokens[i : i + n] = g}|

    Unit: occurrences. A completion trips the repetition stop rule once this exceeds the rule's threshold.

    Source: our stop rule (decoding semantics: a block of 3 tokens, a threshold of 4); no paper.
    """
    return max(Counter(ngrams(tokens, n)).values(), default=0)
