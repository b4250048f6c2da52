import math
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from scipy.special import stdtrit

from triptych.metrics import (
    NgramTable,
    distinct_n,
    distinct_n_at,
    distinct_n_jackknife,
    expectation_adjusted_distinct,
    ngrams,
    self_bleu,
    within_prompt_distinct,
    words,
)

# No deadline: on a busy machine a single slow example is no failure.
PROPERTY = settings(deadline=None, max_examples=50)
# Few words, so that texts share n-grams; the empty text and white space alone are among them.
TEXT = st.lists(st.sampled_from(["a", "B", "c", "dog."]), max_size=8).map(" ".join)
TEXTS = st.lists(TEXT, max_size=7)
ORDERS = st.integers(1, 4)
# "the cat" and "the dog ran": bigrams the-cat | the-dog, dog-ran.
PAIR = ["the cat", "The dog ran"]


def grouped(texts: list[str]) -> st.SearchStrategy[tuple[list[str], list[int]]]:
    return st.tuples(st.just(texts), st.lists(st.integers(0, 3), min_size=len(texts), max_size=len(texts)))


def zipf_texts(n_texts: int, length: int, seed: int, vocabulary: int = 300) -> list[str]:
    weights = 1 / np.arange(1, vocabulary + 1)
    draws = np.random.default_rng(seed).choice(vocabulary, size=(n_texts, length), p=weights / weights.sum())
    return [" ".join(f"w{word}" for word in row) for row in draws]


def nltk_self_bleu(texts: list[str], max_n: int) -> float:
    by_text = [text.lower().split() for text in texts]
    smoothing = SmoothingFunction().method1
    scores = [
        sentence_bleu(by_text[:i] + by_text[i + 1 :], text, (1 / max_n,) * max_n, smoothing_function=smoothing)
        for i, text in enumerate(by_text)
    ]
    return float(sum(scores) / len(scores))


class TestWords:
    def test_white_space_splits_and_case_goes_and_punctuation_stays(self) -> None:
        assert words("  The cat,\tthe\n\nCAT ") == ["the", "cat,", "the", "cat"]

    def test_ngrams_overlap(self) -> None:
        assert ngrams("abcd", 3) == [("a", "b", "c"), ("b", "c", "d")]
        assert ngrams("ab", 3) == []


class TestDistinct:
    def test_by_hand(self) -> None:
        # the cat the dog ran: five unigrams, four unique, "The" being "the".
        assert distinct_n(PAIR, 1) == pytest.approx(4 / 5)
        # Crossing texts there would be a fourth bigram, cat-the; all three are unique.
        assert distinct_n(PAIR, 2) == 1.0
        # a b a b a: bigrams ab ba ab ba. Li et al. would divide the two types by five tokens.
        assert distinct_n(["a b a b a"], 2) == pytest.approx(2 / 4)

    def test_ngrams_never_cross_texts(self) -> None:
        # Joined, "a b" and "a b" hold ab ba ab, 2/3; apart, ab ab.
        assert distinct_n(["a b", "a b"], 2) == pytest.approx(1 / 2)

    @pytest.mark.parametrize("texts", [[], [""], [" \n"], ["one word", "less"]])
    def test_no_ngram_is_nan(self, texts: list[str]) -> None:
        assert math.isnan(distinct_n(texts, 3))

    @PROPERTY
    @given(TEXTS, ORDERS)
    def test_is_a_fraction(self, texts: list[str], n: int) -> None:
        value = distinct_n(texts, n)
        assert math.isnan(value) or 0.0 < value <= 1.0

    @PROPERTY
    @given(TEXTS.flatmap(lambda texts: st.tuples(st.just(texts), st.permutations(texts))), ORDERS)
    def test_order_of_texts_does_not_matter(self, pair: tuple[list[str], list[str]], n: int) -> None:
        assert distinct_n(pair[0], n) == pytest.approx(distinct_n(pair[1], n), nan_ok=True)

    @PROPERTY
    @given(TEXTS, ORDERS)
    def test_a_second_copy_halves_it(self, texts: list[str], n: int) -> None:
        assert distinct_n(texts + texts, n) == pytest.approx(distinct_n(texts, n) / 2, nan_ok=True)

    def test_within_prompt_is_one_figure_a_group(self) -> None:
        # Pooled the two groups hold a b a b, 1/2; within each nothing repeats; the third has nothing to count.
        values = within_prompt_distinct([["a", "b"], ["a b"], [""]], 1)
        assert values[:2] == [1.0, 1.0]
        assert math.isnan(values[2])


class TestRefusals:
    @pytest.mark.parametrize(
        "call",
        [
            lambda: distinct_n(PAIR, 0),
            lambda: distinct_n_at(PAIR, 0, 2),
            lambda: within_prompt_distinct([PAIR], 0),
            lambda: NgramTable(PAIR, 0),
            lambda: distinct_n_jackknife(PAIR, 0),
            lambda: self_bleu(PAIR, 0),
            lambda: distinct_n([], 0),
        ],
    )
    def test_an_order_below_one(self, call: Callable[[], object]) -> None:
        with pytest.raises(ValueError, match="n must be at least 1 to form n-grams, got 0"):
            call()

    def test_one_string_in_place_of_texts(self) -> None:
        with pytest.raises(TypeError, match="got the one string 'the cat'"):
            distinct_n("the cat", 1)

    def test_a_vocabulary_without_words(self) -> None:
        with pytest.raises(ValueError, match=r"vocabulary_size must be at least 1, .*got 0"):
            expectation_adjusted_distinct(PAIR, 0)

    def test_a_length_that_holds_no_ngram(self) -> None:
        with pytest.raises(ValueError, match="the first 2 words hold no 3-gram"):
            distinct_n_at(PAIR, 3, 2)

    def test_groups_of_another_length(self) -> None:
        with pytest.raises(ValueError, match="2 texts, 1 groups"):
            distinct_n_jackknife(PAIR, 1, groups=["p"])


class TestExpectationAdjusted:
    def test_by_hand(self) -> None:
        # a b c a: N = 3, C = 4; V = 10 draws 10 · (1 - 0.9⁴) = 10 · 0.3439 types in expectation.
        assert expectation_adjusted_distinct(["a b c a"], 10) == pytest.approx(3 / 3.439, rel=1e-12)

    def test_a_vocabulary_of_one_expects_one_type(self) -> None:
        assert expectation_adjusted_distinct(["a a a"], 1) == 1.0

    @pytest.mark.parametrize("vocabulary", [10**12, 10**18, 10**30])
    def test_a_huge_vocabulary_tends_to_distinct_n(self, vocabulary: int) -> None:
        # From 10¹⁷ on (V - 1) / V is 1.0 in double precision, and the plain formula divides by zero.
        assert expectation_adjusted_distinct(["a b c a"], vocabulary) == pytest.approx(3 / 4, rel=1e-11)

    def test_no_ngram_is_nan(self) -> None:
        assert math.isnan(expectation_adjusted_distinct(["", " "], 10))

    @PROPERTY
    @given(TEXTS, st.integers(1, 10**20))
    def test_is_at_least_distinct_1(self, texts: list[str], vocabulary: int) -> None:
        # Bernoulli: V (1 - (1 - 1/V)^C) <= C. The tolerance is rounding where both sides agree.
        value, distinct = expectation_adjusted_distinct(texts, vocabulary), distinct_n(texts, 1)
        assert math.isnan(value) == math.isnan(distinct)
        assert math.isnan(value) or value >= distinct * (1 - 1e-12)


class TestDistinctAt:
    def test_by_hand(self) -> None:
        # The first two words of two texts: a b | a c, three unique of four; "a" alone is too short.
        result = distinct_n_at(["a b x x x", "a c", "a"], 1, 2)
        assert result.value == pytest.approx(3 / 4)
        assert (result.n_used, result.n_short) == (2, 1)

    def test_no_text_is_long_enough(self) -> None:
        result = distinct_n_at(PAIR, 1, 4)
        assert math.isnan(result.value)
        assert (result.n_used, result.n_short) == (0, 2)

    @PROPERTY
    @given(TEXTS, ORDERS, st.integers(0, 5))
    def test_equals_distinct_n_of_cut_texts(self, texts: list[str], n: int, more: int) -> None:
        length = n + more
        cut = [" ".join(text.split()[:length]) for text in texts if len(text.split()) >= length]
        result = distinct_n_at(texts, n, length)
        assert result.value == pytest.approx(distinct_n(cut, n), nan_ok=True)
        assert (result.n_used, result.n_used + result.n_short) == (len(cut), len(texts))


class TestNgramTable:
    @PROPERTY
    @given(TEXTS.filter(len), ORDERS, st.data())
    def test_any_multiset_of_rows_equals_distinct_n(self, texts: list[str], n: int, data: st.DataObject) -> None:
        rows = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=12))
        table = NgramTable(texts, n)
        assert table.distinct(rows) == pytest.approx(distinct_n([texts[row] for row in rows], n), nan_ok=True)
        assert table.distinct() == pytest.approx(distinct_n(texts, n), nan_ok=True)
        assert len(table) == len(texts)

    def test_ids_are_the_texts_in_order(self) -> None:
        # the cat | the dog ran, first seen first numbered.
        table = NgramTable(PAIR, 1)
        assert table.ids.tolist() == [0, 1, 0, 2, 3]
        assert table.offsets.tolist() == [0, 2, 5]
        assert table.n_types == 4

    def test_no_texts(self) -> None:
        assert math.isnan(NgramTable([], 1).distinct())
        assert math.isnan(NgramTable([], 1).distinct([]))

    @pytest.mark.parametrize("rows", [[2], [-1]])
    def test_a_row_outside_the_table_is_refused(self, rows: list[int]) -> None:
        with pytest.raises(IndexError, match="rows must lie in 0 … 1"):
            NgramTable(PAIR, 1).distinct(rows)

    def test_a_mask_is_refused(self) -> None:
        with pytest.raises(TypeError, match="flatnonzero|parameter 'rows'"):
            NgramTable(PAIR, 1).distinct(np.array([True, False]))

    def test_400_texts_of_100_words_take_under_2_ms(self) -> None:
        table = NgramTable(zipf_texts(400, 100, seed=0), 2)
        rows = np.random.default_rng(1).integers(0, 400, size=400)
        seconds = []
        for _ in range(20):
            start = time.perf_counter()
            table.distinct(rows)
            seconds.append(time.perf_counter() - start)
        # The fastest of 20, so that a busy machine does not decide (0.1 ms when written).
        assert min(seconds) < 2e-3


class TestJackknife:
    def test_by_hand(self) -> None:
        # Groups a b | a | c: 3 types of 4. Without the first a c, 2/2; without the second a b c, 3/3; without the
        # third a b a, 2/3. Mean 8/9, squares 1/81 + 1/81 + 4/81 = 6/81, se² = 2/3 · 6/81 = 4/81, se = 2/9.
        result = distinct_n_jackknife(["a b", "a", "c"], 1)
        assert result.value == pytest.approx(3 / 4)
        assert result.standard_error == pytest.approx(2 / 9)
        # t(0.975; 2) = 4.302653 (any table of Student's t): 0.75 ± 0.956 leaves [0, 1], and is cut to it.
        assert (result.low, result.high, result.n_groups) == (0.0, 1.0, 3)

    def test_interval_is_students_t_on_groups(self) -> None:
        texts = zipf_texts(40, 30, seed=3)
        result = distinct_n_jackknife(texts, 1, groups=[f"prompt {i % 10}" for i in range(40)])
        assert result.standard_error is not None
        assert result.low is not None
        assert result.high is not None
        # t(0.975; 9) = 2.262157 (any table of Student's t).
        assert result.high - result.value == pytest.approx(2.262157 * result.standard_error, rel=1e-6)
        assert result.value - result.low == pytest.approx(2.262157 * result.standard_error, rel=1e-6)
        assert result.n_groups == 10

    @PROPERTY
    @given(TEXTS.flatmap(grouped), ORDERS)
    def test_equals_brute_force(self, sample: tuple[list[str], list[int]], n: int) -> None:
        texts, groups = sample
        scored = {group for text, group in zip(texts, groups, strict=True) if len(text.split()) >= n}
        result = distinct_n_jackknife(texts, n, groups)
        assert result.n_groups == len(scored)
        assert result.value == pytest.approx(distinct_n(texts, n), nan_ok=True)
        if len(scored) < 2:
            assert result[1:4] == (None, None, None)
            return
        without = [
            distinct_n([text for text, group in zip(texts, groups, strict=True) if group != left_out], n)
            for left_out in scored
        ]
        expected = math.sqrt((len(scored) - 1) * float(np.var(without)))
        assert result.standard_error == pytest.approx(expected, abs=1e-12)
        half_width = float(stdtrit(len(scored) - 1, 0.975)) * expected
        assert result.low == pytest.approx(max(0.0, result.value - half_width), abs=1e-9)
        assert result.high == pytest.approx(min(1.0, result.value + half_width), abs=1e-9)

    @pytest.mark.parametrize(
        ("texts", "n_groups"), [([], 0), (["", " "], 0), (["a b"], 1), (["a b a", ""], 1)], ids=str
    )
    def test_fewer_than_two_groups_have_no_interval(self, texts: list[str], n_groups: int) -> None:
        result = distinct_n_jackknife(texts, 1)
        assert result[1:] == (None, None, None, n_groups)

    def test_a_text_is_its_own_group(self) -> None:
        texts = zipf_texts(6, 9, seed=5)
        assert distinct_n_jackknife(texts, 2) == distinct_n_jackknife(texts, 2, groups=list("uvwxyz"))

    def test_covers_where_the_bootstrap_misses(self) -> None:
        # 100 corpora from one known source: the figure to surround is the mean Distinct-2 of a corpus of this size.
        # 95 of 100 intervals should hold it, and 5 standard deviations of that count (2.2 each) are allowed.
        corpora = [zipf_texts(20, 15, seed=seed) for seed in range(100)]
        results = [distinct_n_jackknife(corpus, 2) for corpus in corpora]
        truth = float(np.mean([result.value for result in results]))
        holding = [r for r in results if r.low is not None and r.high is not None and r.low <= truth <= r.high]
        assert len(holding) >= 84
        # The planted failure: repeated texts put the whole of a percentile bootstrap below the figure itself.
        table, stream = NgramTable(corpora[0], 2), np.random.default_rng(7)
        resampled = [table.distinct(stream.integers(0, 20, size=20)) for _ in range(200)]
        assert np.quantile(resampled, 0.975) < table.distinct()


class TestSelfBleu:
    def test_by_hand(self) -> None:
        # Orders 1 and 2 of "a b c" against "a b d": 2 of 3 unigrams, 1 of 2 bigrams, equal lengths; and the same the
        # other way round: sqrt(2/3 · 1/2).
        assert self_bleu(["a b c", "a b d"], max_n=2) == pytest.approx(math.sqrt(1 / 3))

    def test_brevity_penalty_and_smoothing_by_hand(self) -> None:
        # "a" against "a b": unigrams 1/1, no bigram at all counts as 0.1 of 1, penalty exp(1 - 2/1).
        # "a b" against "a": unigrams 1/2, bigrams 0.1 of 1, no penalty.
        short, long = math.exp(-1) * math.sqrt(0.1), math.sqrt(1 / 2 * 0.1)
        assert self_bleu(["a", "a b"], max_n=2) == pytest.approx((short + long) / 2)

    def test_counts_are_clipped_by_the_best_other_text(self) -> None:
        # a a a | a a | a: the first is clipped to 2 of 3; the second 2 of 2; the third 1 of 1, its closest length 2.
        expected = (2 / 3 + 1 + math.exp(1 - 2)) / 3
        assert self_bleu(["a a a", "a a", "a"], max_n=1) == pytest.approx(expected)

    def test_copies_score_one_and_strangers_zero(self) -> None:
        assert self_bleu(["a b c d e"] * 3) == pytest.approx(1.0)
        assert self_bleu(["a b c d", "e f g h"]) == 0.0

    def test_an_empty_text_scores_zero_as_in_nltk(self) -> None:
        assert self_bleu(["", "a b c d", "a b c d"]) == pytest.approx(2 / 3)

    @pytest.mark.parametrize("texts", [[], ["a b c d"]])
    def test_fewer_than_two_texts_are_nan(self, texts: list[str]) -> None:
        assert math.isnan(self_bleu(texts))

    @PROPERTY
    @given(st.lists(TEXT, min_size=2, max_size=7), ORDERS)
    def test_equals_nltk_on_few_words(self, texts: list[str], max_n: int) -> None:
        assert self_bleu(texts, max_n) == pytest.approx(nltk_self_bleu(texts, max_n), abs=1e-9)

    @pytest.mark.parametrize("max_n", [1, 2, 3, 4, 5])
    def test_equals_nltk_on_random_texts(self, max_n: int) -> None:
        lengths = np.random.default_rng(max_n).integers(0, 40, size=15)
        texts = [
            " ".join(text.split()[:length])
            for text, length in zip(zipf_texts(15, 40, seed=max_n, vocabulary=20), lengths, strict=True)
        ]
        assert self_bleu(texts, max_n) == pytest.approx(nltk_self_bleu(texts, max_n), abs=1e-9)
