import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.data import Message, PairLengths, PairReport, PreferencePair, check_pairs, load_pairs
from triptych.data.pair_checks import CUES, CueFigure, describe, request_of

PROPERTY = settings(deadline=None, max_examples=40)


def pair(prompt: str, chosen: str, rejected: str, **fields: Any) -> PreferencePair:
    return PreferencePair(id=f"p{prompt}", prompt=prompt, chosen=chosen, rejected=rejected, is_finished=True, **fields)


def figure(report: PairReport, cue: str) -> CueFigure:
    (found,) = [figure for figure in report.cues if figure.cue == cue]
    return found


def clean(n: int) -> list[PreferencePair]:
    """Pairs of which every second has the answer with all the cues as the chosen one."""
    full, bare = "Question 1: sorry, `grey` stones\n- What else", "blue stones"
    return [pair(f"Question {number}", *((full, bare) if number % 2 else (bare, full))) for number in range(1, n + 1)]


# --- cues -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cue", "answer", "expected"),
    [
        ("characters", "ab c", 4),
        ("words", "ab c\nd", 3),
        ("lines", "ab\n\n  \nc\n", 2),
        ("list_items", "Sure:\n- a\n  1. b\n* c", 3),
        ("digits", "1 a 23", 3),
        ("capitals", "A bC", 2),
        # 'is' and 'sky', of 'why', 'is', 'the' and 'sky'.
        ("prompt_overlap", "Sky, sky. It is sky!", 2 / 4),
        ("prompt_start", "Why indeed", 1),
        ("prompt_start", "But why", 0),
        ("refusal", "I’m sorry, but no", 1),
        ("refusal", "I can't do that", 1),
        ("refusal", "My apologies.", 1),
        ("refusal", "As an AI, I think", 1),
        ("refusal", "You can do that", 0),
        ("refusal", "a sorrowful apologist", 0),
        ("markdown", "Use `x`", 1),
        ("markdown", "```\nx\n```", 1),
        ("markdown", "## Sky", 1),
        ("markdown", "the **sky**", 1),
        ("markdown", "[a](b)", 1),
        ("markdown", "| a | b |", 1),
        ("markdown", "2 * 3 * 4 #sky [1] | x", 0),
    ],
)
def test_amounts(cue: str, answer: str, expected: float) -> None:
    assert CUES[cue].amount(answer, "Why is the sky?") == pytest.approx(expected)


@pytest.mark.parametrize("cue", sorted(CUES))
def test_amounts_of_nothing(cue: str) -> None:
    assert CUES[cue].amount("", "") == 0


def test_an_accuracy_by_hand() -> None:
    # Longer in 2, shorter in 1, as long in 1: (2 + 1/2) / 4. The signs 1, 1, -1, 0 leave three prompts with a
    # difference: |sum| >= 1 for each of their 8 sign patterns, so p is 1 before and after the correction.
    pairs = [pair("a", "xx", "x"), pair("b", "xx", "x"), pair("c", "x", "xx"), pair("d", "xx", "yy")]
    found = figure(check_pairs(pairs, seed=0), "characters")
    assert (found.accuracy.mean, found.n_ties, found.p, found.suspicious) == (2.5 / 4, 1, 1.0, False)
    assert (found.accuracy.n, found.accuracy.n_clusters) == (4, 4)


def test_p_values_by_hand() -> None:
    # Ten prompts, always longer: two of 2^10 patterns are as extreme; Holm's factor is the number of cues for the
    # smallest. Only characters differ, so all others have p = 1.
    report = check_pairs([pair(str(n), "xx", "x") for n in range(10)], seed=0)
    assert figure(report, "characters").p == pytest.approx(len(CUES) * 2 / 2**10)
    assert {found.p for found in report.cues if found.cue != "characters"} == {1.0}


def test_pairs_of_one_prompt_count_as_one() -> None:
    # Thirty pairs of three prompts: no evidence, however clear (2 of 2^3 patterns).
    report = check_pairs([pair(str(n % 3), "x x", "x") for n in range(30)], seed=0)
    assert figure(report, "words").accuracy.n_clusters == 3
    assert not any(found.suspicious for found in report.cues)


# cue → (the answer with more of it, the one with less); no other cue tells them apart in the prompts 'tell aaa moss'.
PLANTED = {
    "characters": ("greyish stones rest here", "grey stones rest here"),
    "words": ("a b c d", "a bcd e"),
    "lines": ("grey stones\nrest here", "grey stones rest here"),
    "list_items": ("- grey\n- blue", "< grey\n< blue"),
    "digits": ("grey 22", "grey xx"),
    "capitals": ("Grey stones", "grey stones"),
    "prompt_overlap": ("grey moss", "grey mist"),
    "prompt_start": ("tell mist", "mist tell"),
    "refusal": ("sorry grey stones", "sorts grey stones"),
    "markdown": ("`grey` stones", "'grey' stones"),
}


@pytest.mark.parametrize("is_more_chosen", [True, False])
@pytest.mark.parametrize("cue", sorted(CUES))
def test_each_cue_fires_where_it_is_planted_and_no_other_does(cue: str, is_more_chosen: bool) -> None:
    more, less = PLANTED[cue]
    chosen, rejected = (more, less) if is_more_chosen else (less, more)
    # In 40 of 50 pairs: 80 %, or 20 %.
    pairs = [pair(f"tell {'a' * n} moss", *((chosen, rejected) if n < 40 else (rejected, chosen))) for n in range(50)]
    report = check_pairs(pairs, seed=0)
    found = figure(report, cue)
    assert found.accuracy.mean == pytest.approx(0.8 if is_more_chosen else 0.2)
    assert found.suspicious
    assert [other.cue for other in report.cues if other.suspicious] == [cue]
    (sentence,) = describe(report)
    assert sentence.startswith(f"{CUES[cue].more if is_more_chosen else CUES[cue].less} is the chosen one in 80 % [")


def test_clean_pairs_raise_no_suspicion() -> None:
    report = check_pairs(clean(100), seed=0)
    assert [found.accuracy.mean for found in report.cues] == [0.5] * len(CUES)
    assert describe(report) == []


def test_a_small_effect_is_none_however_significant() -> None:
    # 59 % of 1000 pairs: p is 1/2000, but the margin is 0.1.
    pairs = [pair(str(n), *(("x x", "x") if n < 590 else ("x", "x x"))) for n in range(1000)]
    found = figure(check_pairs(pairs, seed=0), "words")
    assert found.p < 0.05
    assert not found.suspicious
    pairs = [pair(str(n), *(("x x", "x") if n < 600 else ("x", "x x"))) for n in range(1000)]
    assert figure(check_pairs(pairs, seed=0), "words").suspicious


def test_the_seed_decides() -> None:
    pairs = [pair(str(n), "x " * (1 + n % 3), "x " * (1 + n % 5)) for n in range(60)]
    assert check_pairs(pairs, seed=1) == check_pairs(pairs, seed=1)
    assert check_pairs(pairs, seed=1) != check_pairs(pairs, seed=2)


def test_the_request_is_the_last_message_of_the_user() -> None:
    told = [("system", "Be brief."), ("user", "Hi?"), ("assistant", "Hello."), ("user", "Why?")]
    messages = tuple(Message(role=role, content=content) for role, content in told)
    conversation = PreferencePair(id="a", prompt="all of it", chosen="a", rejected="b", messages=messages)
    assert request_of(conversation) == "Why?"
    assert request_of(pair("Hi?", "a", "b")) == "Hi?"


# --- counts -----------------------------------------------------------------------------------------------------------


def test_counts() -> None:
    pairs = [
        pair("a", "x", "y"),
        pair("a", "x", "y"),  # a duplicate
        pair("a ", "y", "x"),  # the other way round
        pair("a", "z", "y"),  # the prompt alone
        pair("b", "", "y"),
        pair("b", "", ""),
        pair("c", "x", "x "),
        pair("d", "x", "x"),
    ]
    report = check_pairs(pairs, seed=0)
    assert (report.n, report.n_prompts) == (8, 4)
    assert (report.n_duplicate_pairs, report.n_reversed_pairs, report.n_duplicate_prompts) == (1, 1, 4)
    assert (report.n_empty, report.n_identical) == (2, 2)
    # The two that have an empty side have no ratio.
    assert report.length_ratio.n_unscored == 2
    assert describe(report) == [
        "2 of 8 pairs have a blank answer: remove them",
        "2 of 8 pairs have two equal answers, from which nothing can be learnt: remove them",
        "1 of 8 pairs are there before, word for word: remove them",
        "1 of 8 pairs are there before the other way round: remove one of the two",
        "2 of 8 pairs share their prompt with one before: split and resample by prompt",
    ]


def test_pairs_over_the_context() -> None:
    pairs = [pair(name, "x", "y") for name in "abc"]
    lengths = [PairLengths(prompt=6, chosen=4, rejected=1)] + [PairLengths(prompt=6, chosen=1, rejected=5)] * 2
    report = check_pairs(pairs, seed=0, lengths=lengths, context=10)
    assert (report.context, report.n_over_context, report.first_over_context) == (10, 2, "pb")
    assert describe(report) == [
        "2 of 3 pairs are longer than the context of 10 tokens (first: pb): raise it, or shorten or remove them"
    ]
    fits = check_pairs(pairs, seed=0, lengths=lengths, context=11)
    assert (fits.n_over_context, fits.first_over_context) == (0, None)
    assert check_pairs(pairs, seed=0, lengths=lengths).n_over_context is None
    assert check_pairs(pairs, seed=0, context=10).context is None


def test_lengths_of_other_pairs() -> None:
    with pytest.raises(ValueError, match="lengths must name one entry a pair: 0 lengths, 1 pairs"):
        check_pairs([pair("a", "x", "y")], seed=0, lengths=[], context=10)


def test_the_length_ratio_by_hand() -> None:
    # Ratios 4 and 1: the geometric mean is 2. Logs ln 4 and 0 have mean ln 2 and standard error ln 2; t(0.975; 1) is
    # 12.7062 (any table of Student's t).
    ratio = check_pairs([pair("a", "xxxx", "x"), pair("b", "x", "y")], seed=0).length_ratio
    assert ratio.mean == pytest.approx(2)
    assert ratio.low == pytest.approx(2 ** (1 - 12.7062), rel=1e-4)
    assert ratio.high == pytest.approx(2 ** (1 + 12.7062), rel=1e-4)
    assert ratio.method.startswith("geometric mean, 95% cluster-robust Student's t")


# --- in words ---------------------------------------------------------------------------------------------------------


def reported(words: Sequence[float], *, n_ties: int = 0) -> str:
    """The sentence about a figure of the longer answer."""
    mean, low, high = words
    report = check_pairs([pair(str(n), "a b c d", "a bcd e") for n in range(200)], seed=0)
    found = figure(report, "words")
    accuracy = found.accuracy.model_copy(update={"mean": mean, "low": low, "high": high})
    changed = found.model_copy(update={"accuracy": accuracy, "n_ties": n_ties, "suspicious": True})
    (sentence,) = describe(report.model_copy(update={"cues": (changed,)}))
    return sentence


def test_the_sentence() -> None:
    assert reported((0.63, 0.58, 0.68)) == (
        "the longer answer is the chosen one in 63 % [58, 68] of 200 pairs: a model that only counts words would look "
        "aligned; compare with length-normalised DPO or report length-controlled win rates"
    )


def test_the_sentence_the_other_way_round() -> None:
    assert reported((0.158, 0.11, 0.209), n_ties=7).startswith(
        "the shorter answer is the chosen one in 84 % [79, 89] of 200 pairs (7 tied, counted half): a model"
    )


def test_strong_cues_come_first_and_characters_not_beside_words() -> None:
    pairs = [pair(str(n), "x x", "y") if n < 35 else pair(str(n), "y", "x x") for n in range(50)]
    pairs = [p.model_copy(update={"chosen": f"{p.chosen} 7"}) for p in pairs]
    sentences = describe(check_pairs(pairs, seed=0))
    assert [sentence.split(" is the chosen")[0] for sentence in sentences] == [
        "the answer with more digits",
        "the longer answer",
    ]


# --- properties -------------------------------------------------------------------------------------------------------


@PROPERTY
@given(st.lists(st.tuples(*[st.text("aA1 \n-*.`", max_size=6)] * 3), max_size=12), st.integers(0, 2**31))
def test_any_pairs_get_a_report(texts: list[tuple[str, str, str]], seed: int) -> None:
    pairs = [pair(*text) for text in texts]
    lengths = [PairLengths(prompt=len(p.prompt), chosen=len(p.chosen), rejected=len(p.rejected)) for p in pairs]
    report = check_pairs(pairs, seed=seed, lengths=lengths, context=8)
    assert PairReport.model_validate_json(report.model_dump_json()) == report
    assert all(isinstance(sentence, str) for sentence in describe(report))
    for found in report.cues:
        if found.accuracy.low is not None and found.accuracy.high is not None:
            assert 0 <= found.accuracy.low <= found.accuracy.value <= found.accuracy.high <= 1


@PROPERTY
@given(st.lists(st.tuples(*[st.text("aA1 \n-", min_size=1, max_size=6)] * 2), min_size=1, max_size=12))
def test_swapped_answers_mirror_the_figures(texts: list[tuple[str, str]]) -> None:
    there, back = (
        check_pairs([pair(str(n), *answers[::way]) for n, answers in enumerate(texts)], seed=0) for way in (1, -1)
    )
    for one, opposite in zip(there.cues, back.cues, strict=True):
        assert one.accuracy.value == pytest.approx(1 - opposite.accuracy.value)
        assert one.p == pytest.approx(opposite.p)
    assert math.log(there.length_ratio.value) == pytest.approx(-math.log(back.length_ratio.value))


def test_real_orca_pairs() -> None:
    path = Path(__file__).parents[4] / "shared" / "data" / "orca_dpo_pairs_sample.jsonl"
    if not path.exists():
        pytest.skip("the Orca sample is not beside the checkout (../shared/data)")
    report = check_pairs(load_pairs(path), seed=0)
    # Counted apart from this code: chosen has more words than rejected in 31 of 200 rows, as many in one.
    assert figure(report, "words").accuracy.mean == pytest.approx(31.5 / 200)
    assert figure(report, "words").suspicious
