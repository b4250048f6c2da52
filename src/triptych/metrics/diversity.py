"""How varied a set of texts is: Distinct-n with its corrections and intervals, and Self-BLEU.

Words are split by whitespace and lower-cased; n-grams never cross texts. A figure that has nothing to count is NaN,
never 0. Not here: embeddings, models, files, and the bootstrap for means over prompts (the package's statistics).
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeVar, final

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit  # type: ignore[import-untyped, unused-ignore]

Item = TypeVar("Item")
Gram = tuple[str, ...]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

METHOD1_EPSILON = 0.1
"""What nltk's `SmoothingFunction().method1` puts in the place of zero matches (Chen and Cherry 2014)."""


class DistinctAtLength(NamedTuple):
    """Distinct-n over equally long beginnings of texts."""

    value: float
    """Fraction; NaN where no text is long enough."""
    n_used: int
    """Texts with at least `length` words."""
    n_short: int
    """Texts left out because they are shorter."""


class Jackknife(NamedTuple):
    """A figure with its delete-a-group jackknife interval."""

    value: float
    """The figure on all groups, not corrected for bias."""
    standard_error: float | None
    """None with fewer than 2 groups."""
    low: float | None
    """Lower end of the 95 % interval, not below 0; None with fewer than 2 groups."""
    high: float | None
    """Upper end of the 95 % interval, not above 1; None with fewer than 2 groups."""
    n_groups: int
    """Groups with at least one n-gram; the interval has n_groups - 1 degrees of freedom."""


def words(text: str) -> list[str]:
    """The words of a text: split at white space, lower-cased; punctuation stays with its word."""
    return text.lower().split()


def count_word_types(texts: Iterable[str]) -> int:
    """Different words of all the texts, at least 1."""
    types: set[str] = set()
    for text in texts:
        types.update(words(text))
    return max(1, len(types))


def ngrams(items: Sequence[Item], n: int) -> list[tuple[Item, ...]]:
    """Every run of n neighbouring items, in order: max(0, len(items) - n + 1) of them."""
    _require_order(n)
    return list(zip(*(items[start:] for start in range(n)), strict=False))


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Unique n-grams over all n-grams, pooled over the texts.

        Distinct-n = |set of n-grams| / |n-grams|

    Unit: a fraction, above 0 and at most 1. NaN where no text has n words.

    Source: Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models", distinct-1
    and distinct-2. Departure: they divide by the number of generated tokens; we divide by the number of n-grams, so
    that 1 is reachable for every n. The two agree for n = 1. It falls as texts grow longer or more numerous: compare
    equal amounts of text, as `matched_distinct_n` and `distinct_n_at` do.
    """
    grams = list(chain.from_iterable(_grams_by_text(texts, n)))
    return len(set(grams)) / len(grams) if grams else math.nan


def expectation_adjusted_distinct(texts: Sequence[str], vocabulary_size: int) -> float:
    """Distinct words over the number expected of as many uniform draws from a vocabulary (EAD, for n = 1).

        EAD = N / (V · (1 - ((V - 1) / V)^C))

    N distinct words, C words in total, V `vocabulary_size`. Unit: a ratio. At least Distinct-1, which it tends to as V
    grows; not bounded by 1, because texts can hold more types than uniform draws are expected to. NaN where no text has
    a word.

    Source: Liu et al. 2022, "Rethinking and Refining the Distinct Metric" (EAD). They advise the largest vocabulary
    among the compared models as V; the caller chooses, and only figures with one V compare. Departure: for n = 1 alone.
    Texts hold far more n-grams than V words, and where those near V the figure follows the length of the text: use
    `matched_distinct_n` there.
    """
    if vocabulary_size < 1:
        raise ValueError(f"vocabulary_size must be at least 1, the number of types to draw from; got {vocabulary_size}")
    found = list(chain.from_iterable(_words_by_text(texts)))
    return len(set(found)) / _expected_types(vocabulary_size, len(found)) if found else math.nan


def distinct_n_at(texts: Sequence[str], n: int, length: int) -> DistinctAtLength:
    """Distinct-n on the first `length` words of every text that has that many.

    Takes the length of the single text out of `distinct_n`: every text that counts gives `length` - n + 1 n-grams.
    Shorter texts are left out rather than padded, and counted in `n_short`: two strategies compare only where both
    keep most of their texts, and equally many (the number of texts still matters).

    Source: ours in this form; cutting to a common length is the usual remedy for type-token ratios.
    """
    _require_order(n)
    if length < n:
        raise ValueError(f"length must be at least n: the first {length} words hold no {n}-gram")
    by_text = _words_by_text(texts)
    long_enough = [text_words[:length] for text_words in by_text if len(text_words) >= length]
    grams = list(chain.from_iterable(ngrams(text_words, n) for text_words in long_enough))
    value = len(set(grams)) / len(grams) if grams else math.nan
    return DistinctAtLength(value, n_used=len(long_enough), n_short=len(by_text) - len(long_enough))


def within_prompt_distinct(groups: Sequence[Sequence[str]], n: int) -> list[float]:
    """One `distinct_n` for each prompt's samples, for a mean over prompts.

    A prompt whose samples hold no n-gram is NaN: unscored, not zero; leave it out of the mean and count it. These
    are independent numbers, one a prompt, so their mean takes the ordinary bootstrap over prompts.
    """
    return [distinct_n(group, n) for group in groups]


@final
class NgramTable:
    """The n-grams of some texts as integer ids, encoded once, so that Distinct-n of any choice of texts is quick.

    A choice of 400 texts of 100 words costs well under a millisecond. Meant for subsamples: in a bootstrap sample,
    drawn with replacement, a repeated text adds n-grams but no types, so that pooled Distinct-n of the samples lies
    below the figure it should surround. For an interval use `distinct_n_jackknife`, which repeats nothing.

    Attributes: `n`, the order; `ids`, int64 [n-grams], text after text, ids 0 … `n_types` - 1; `offsets`, int64
    [texts + 1], text t owning ids[offsets[t] : offsets[t + 1]].
    """

    __slots__ = ("ids", "n", "n_types", "offsets")

    def __init__(self, texts: Sequence[str], n: int) -> None:
        by_text = _grams_by_text(texts, n)
        id_of: dict[Gram, int] = {}
        ids = [id_of.setdefault(gram, len(id_of)) for grams in by_text for gram in grams]
        self.n = n
        self.n_types = len(id_of)
        self.ids: IntArray = np.array(ids, dtype=np.int64)
        self.offsets: IntArray = np.cumsum([0, *map(len, by_text)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def distinct(self, rows: Sequence[int] | npt.NDArray[np.integer[Any]] | None = None) -> float:
        """`distinct_n` of the texts with these row numbers (all of them for None), repeats counted as often as given.

        NaN where the chosen texts hold no n-gram. A row number outside 0 … len(table) - 1 raises an IndexError.
        """
        ids = self.ids if rows is None else self.ids[self._positions(self._checked(rows))]
        if not ids.size:
            return math.nan
        # Marking types is linear where np.unique sorts.
        seen = np.zeros(self.n_types, dtype=np.bool_)
        seen[ids] = True
        return int(np.count_nonzero(seen)) / int(ids.size)

    def _checked(self, rows: Sequence[int] | npt.NDArray[np.integer[Any]]) -> IntArray:
        given = np.asarray(rows)
        # A mask would pass for the row numbers 0 and 1; an empty list arrives as floats and is harmless.
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise TypeError(f"rows must be a flat list of row numbers (np.flatnonzero of a mask), got {given.dtype}")
        if given.size and not 0 <= int(given.min()) <= int(given.max()) < len(self):
            raise IndexError(f"rows must lie in 0 … {len(self) - 1}, got {given.min()} … {given.max()}")
        return given.astype(np.int64)

    def _positions(self, rows: IntArray) -> IntArray:
        """Where the n-grams of these texts lie in `ids`: the ranges offsets[r] … offsets[r + 1], joined."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        shifts = starts - (np.cumsum(lengths) - lengths)
        positions: IntArray = np.repeat(shifts, lengths) + np.arange(int(lengths.sum()), dtype=np.int64)
        return positions


def distinct_n_jackknife(texts: Sequence[str], n: int, groups: Sequence[Hashable] | None = None) -> Jackknife:
    """Pooled Distinct-n with a 95 % interval from the delete-a-group jackknife.

        θ(g) = Distinct-n without group g        se² = (G - 1) / G · Σ_g (θ(g) - mean of θ(·))²
        θ ± t(0.975; G - 1) · se, cut to [0, 1]

    `groups[i]` says which group text i belongs to (its prompt); None makes every text its own group. Unit: a
    fraction. With G < 2 groups the interval is None. Groups without an n-gram say nothing and are not counted in G.

    Why not the bootstrap: it draws texts twice, which adds n-grams but no types, and so shifts pooled Distinct-n
    downwards. The interval is about Distinct-n *of this many texts*, which itself falls with their number. It takes
    linear time: without g, the types that only g holds are gone, and no others.

    Source: Tukey 1958; Efron and Stein 1981 (the jackknife variance errs upwards on average). Departures: the value
    keeps its bias (it is the figure at this size that is reported); Student's t instead of the normal quantile.
    """
    table = NgramTable(texts, n)
    left = _left_without(table, _group_numbers(len(table), groups)).of_groups_that_count()
    return _jackknife(table.distinct(), left.types / left.grams, upper=1.0)


def expectation_adjusted_jackknife(
    texts: Sequence[str], vocabulary_size: int, groups: Sequence[Hashable] | None = None
) -> Jackknife:
    """`expectation_adjusted_distinct` with the interval of `distinct_n_jackknife`, cut at 0 alone: EAD may exceed 1."""
    value = expectation_adjusted_distinct(texts, vocabulary_size)
    table = NgramTable(texts, 1)
    left = _left_without(table, _group_numbers(len(table), groups)).of_groups_that_count()
    without = left.types / np.array([_expected_types(vocabulary_size, int(grams)) for grams in left.grams])
    return _jackknife(value, without, upper=math.inf)


def distinct_n_without_each(texts: Sequence[str], n: int, groups: Sequence[Hashable] | None = None) -> FloatArray:
    """Pooled Distinct-n without each group: [groups], in order of first mention.

    What a jackknife of anything made of several pooled Distinct-n (a difference, a slope) starts from. A group without
    an n-gram changes nothing; NaN where a group holds all n-grams there are.
    """
    table = NgramTable(texts, n)
    left = _left_without(table, _group_numbers(len(table), groups))
    without: FloatArray = np.full(len(left.grams), np.nan)
    np.divide(left.types, left.grams, out=without, where=left.grams > 0)
    return without


def self_bleu(texts: Sequence[str], max_n: int = 4) -> float:
    """The mean BLEU of each text against all the others: high where the texts resemble one another.

        BLEU_i = BP_i · exp(1 / max_n · Σ_n log p_n),   BP_i = min(1, exp(1 - r_i / c_i))

    p_n: n-grams of text i, each counted at most as often as in the one other text that has it most, over all its
    n-grams; c_i its length in words; r_i the closest length among the others, the shorter one of two. Unit: a
    fraction, 0 to 1. NaN with fewer than 2 texts.

    Source: Zhu et al. 2018, "Texygen"; BLEU after Papineni et al. 2002; equal to nltk's `sentence_bleu` with uniform
    weights and smoothing method1: an order without a match counts as 0.1 matches, an order without n-grams as one
    n-gram. A text that shares no word with the others scores 0, and so does an empty one: as in nltk.
    Departures: words by whitespace, lower-cased, where Texygen uses nltk's tokenizer; max_n is 4, its default is 3;
    all texts take part, where it keeps the first 500. Time is linear in the words, not quadratic in the texts.
    """
    _require_order(max_n)
    by_text = _words_by_text(texts)
    if len(by_text) < 2:
        return math.nan
    precisions = [_clipped_precisions([Counter(ngrams(text, n)) for text in by_text]) for n in range(1, max_n + 1)]
    penalties = _brevity_penalties([len(text) for text in by_text])
    scores = [_bleu(orders, penalty) for orders, penalty in zip(zip(*precisions, strict=True), penalties, strict=True)]
    return math.fsum(scores) / len(scores)


class _Precision(NamedTuple):
    matches: int
    total: int


class _TwoLargest(NamedTuple):
    """The largest count of an n-gram over texts, the text that has it, and the largest count over the other texts."""

    first: int
    owner: int
    second: int

    def without(self, text: int) -> int:
        return self.second if text == self.owner else self.first


def _require_order(n: int) -> None:
    if n < 1:
        raise ValueError(f"n must be at least 1 to form n-grams, got {n}")


def _words_by_text(texts: Sequence[str]) -> list[list[str]]:
    # A single string is itself a sequence of strings: its letters would be taken for texts.
    if isinstance(texts, str):
        raise TypeError(f"texts must be a sequence of strings, got the one string {texts[:40]!r}; pass [text]")
    return [words(text) for text in texts]


def _grams_by_text(texts: Sequence[str], n: int) -> list[list[Gram]]:
    _require_order(n)
    return [ngrams(text_words, n) for text_words in _words_by_text(texts)]


def _expected_types(vocabulary_size: int, draws: int) -> float:
    """V · (1 - (1 - 1/V)^C); for a huge V the plain formula cancels to 0 and this one tends to C."""
    if vocabulary_size == 1:
        return 1.0
    return -vocabulary_size * math.expm1(draws * math.log1p(-1.0 / vocabulary_size))


def _group_numbers(n_texts: int, groups: Sequence[Hashable] | None) -> IntArray:
    if groups is None:
        return np.arange(n_texts, dtype=np.int64)
    if len(groups) != n_texts:
        raise ValueError(f"groups must name one group a text: {n_texts} texts, {len(groups)} groups")
    number_of: dict[Hashable, int] = {}
    return np.array([number_of.setdefault(group, len(number_of)) for group in groups], dtype=np.int64)


class _Left(NamedTuple):
    """What is left when one group is taken away."""

    types: IntArray
    """[groups]"""
    grams: IntArray
    """[groups]; 0 where the group holds all n-grams."""
    n_grams: int
    """N-grams with nothing taken away."""

    def of_groups_that_count(self) -> "_Left":
        """Without the groups that have no n-gram; nothing where fewer than 2 have one."""
        counts = self.grams < self.n_grams
        if np.count_nonzero(counts) < 2:
            counts[:] = False
        return self._replace(types=self.types[counts], grams=self.grams[counts])


def _left_without(table: NgramTable, group_of_text: IntArray) -> _Left:
    """Counts without each group; linear: the types that only this group holds are gone, and no others."""
    n_groups = int(group_of_text.max(initial=-1)) + 1
    group_of_gram = np.repeat(group_of_text, np.diff(table.offsets))
    some_owner = np.zeros(table.n_types, dtype=np.int64)
    some_owner[table.ids] = group_of_gram
    shared = np.zeros(table.n_types, dtype=np.bool_)
    shared[table.ids[some_owner[table.ids] != group_of_gram]] = True
    only_in_group = np.bincount(some_owner[~shared], minlength=n_groups)
    grams_of_group = np.bincount(group_of_gram, minlength=n_groups)
    return _Left(table.n_types - only_in_group, table.ids.size - grams_of_group, int(table.ids.size))


def _jackknife(value: float, leave_one_out: FloatArray, upper: float) -> Jackknife:
    n_groups = len(leave_one_out)
    if n_groups < 2:
        return Jackknife(value, standard_error=None, low=None, high=None, n_groups=0 if math.isnan(value) else 1)
    squares = float(np.square(leave_one_out - leave_one_out.mean()).sum())
    standard_error = math.sqrt((n_groups - 1) / n_groups * squares)
    half_width = float(stdtrit(n_groups - 1, 0.975)) * standard_error
    return Jackknife(value, standard_error, max(0.0, value - half_width), min(upper, value + half_width), n_groups)


def _two_largest(counts_by_text: Sequence[Counter[Gram]]) -> dict[Gram, _TwoLargest]:
    largest: dict[Gram, _TwoLargest] = {}
    for text, counts in enumerate(counts_by_text):
        for gram, count in counts.items():
            known = largest.get(gram)
            if known is None:
                largest[gram] = _TwoLargest(count, text, 0)
            elif count > known.first:
                largest[gram] = _TwoLargest(count, text, known.first)
            elif count > known.second:
                largest[gram] = known._replace(second=count)
    return largest


def _clipped_precisions(counts_by_text: Sequence[Counter[Gram]]) -> list[_Precision]:
    largest = _two_largest(counts_by_text)
    return [
        _Precision(
            matches=sum(min(count, largest[gram].without(text)) for gram, count in counts.items()),
            total=max(1, counts.total()),
        )
        for text, counts in enumerate(counts_by_text)
    ]


def _brevity_penalties(lengths: Sequence[int]) -> list[float]:
    """min(1, exp(1 - r/c)) of each text, r the closest length among the other texts; 0 for an empty text."""
    how_many = Counter(lengths)
    ordered = sorted(how_many)

    def closest_other(length: int) -> int:
        if how_many[length] > 1:
            return length
        at = bisect_left(ordered, length)
        return min(ordered[max(0, at - 1) : at] + ordered[at + 1 : at + 2], key=lambda r: (abs(r - length), r))

    return [math.exp(min(0.0, 1.0 - closest_other(length) / length)) if length else 0.0 for length in lengths]


def _bleu(precisions: Sequence[_Precision], penalty: float) -> float:
    if precisions[0].matches == 0:
        return 0.0
    logs = [math.log((precision.matches or METHOD1_EPSILON) / precision.total) for precision in precisions]
    return penalty * math.exp(math.fsum(logs) / len(logs))
