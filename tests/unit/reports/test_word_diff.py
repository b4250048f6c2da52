import time

from hypothesis import given
from hypothesis import strategies as st

from triptych.reports.word_diff import Stretch, common_words, stretches

words = st.lists(st.sampled_from("abc"), max_size=8)


def longest(before: list[str], after: list[str]) -> int:
    """The length of a longest common subsequence, by its definition over all subsequences of `after`."""
    best = 0
    for chosen in range(1 << len(after)):
        picked = [word for place, word in enumerate(after) if chosen >> place & 1]
        rest = iter(before)
        if len(picked) > best and all(word in rest for word in picked):
            best = len(picked)
    return best


@given(words, words)
def test_the_common_words_are_a_longest_common_subsequence(before: list[str], after: list[str]) -> None:
    found = sorted(common_words(before, after))
    rest = iter(before)
    assert all(after[place] in rest for place in found)
    assert len(found) == longest(before, after)


def test_of_a_repetition_the_first_is_kept() -> None:
    assert common_words(["a", "b"], ["a", "b", "a", "b"]) == {0, 1}


def test_white_space_stands_before_the_words() -> None:
    found = list(stretches("a c", "a\n b  c", 100))
    assert found == [Stretch("", "a", False), Stretch("\n ", "b", True), Stretch("  ", "c", False)]


def test_a_model_stuck_in_a_loop_is_compared_at_once() -> None:
    # Texts of period two, one of them shifted: difflib took 350 s for these.
    started = time.perf_counter()
    (same,) = stretches("a b " * 2000, "b a b " * 1500, 4000)
    assert not same.is_changed
    assert time.perf_counter() - started < 5
