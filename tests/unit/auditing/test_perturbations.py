import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.auditing.perturbations import (
    ADDITIONS,
    FLATTERIES,
    KEYWORDS,
    N_KEYWORDS,
    PERTURBATIONS,
    filler,
    flattery,
    formatting,
    keywords,
    neutral,
    reorder,
    repetition,
    safety_prefix,
    words_added,
)
from triptych.data.answer_checks import sentences
from triptych.metrics import words
from triptych.seeding import stream_key

PROPERTY = settings(deadline=None, max_examples=200)

TEXT = "Rain falls. Snow lies! Who knows why? Nobody."
KEYS = [stream_key(0, f"prompt-{number}", "perturbation") for number in range(200)]

ANY_KEY = st.integers(0, 2**64 - 1)
# Sentences, lists, blank lines and what looks like them, beside any text at all (lone surrogates included).
PIECES = [
    "Rain falls.",
    "Snow lies!",
    "and",
    "- ",
    "1. ",
    "**",
    "\n",
    "\n\n",
    " ",
    "\t",
    "Why?",
    "e.g.",
    "...",
    "Σ",
    "A",
    "\x1c",
]
ANY_TEXT = st.one_of(
    st.text(st.characters()), st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.lists(st.sampled_from(PIECES)).map(" ".join)
)  # fmt: skip


def without_markup(text: str) -> Counter[str]:
    """The words but for `**` and lone `-`."""
    return Counter(word for word in (word.replace("**", "") for word in words(text)) if word not in ("", "-"))


def test_the_order_is_that_of_reports() -> None:
    names = ["filler", "keywords", "reorder", "safety_prefix", "repetition", "flattery", "formatting", "neutral"]
    assert list(PERTURBATIONS) == names


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_the_safety_prefix_is_the_papers() -> None:
    assert safety_prefix(TEXT, 1) == f"I am a helpful AI. {TEXT}"
    assert words_added(TEXT, safety_prefix(TEXT, 1)) == 5


@pytest.mark.parametrize(
    ("text", "repeated"),
    [
        (TEXT, f"{TEXT} Nobody."),
        ("Rain falls", "Rain falls Rain falls"),
        ("Rain falls.\n\nSnow lies.\n", "Rain falls.\n\nSnow lies.\nSnow lies."),
        ("- Rain\n- Snow", "- Rain\n- Snow\n\n- Snow"),
        ("", ""),
        ("  \n", "  \n"),
        ("...", "..."),
    ],
)
def test_repetition(text: str, repeated: str) -> None:
    assert repetition(text, 1) == repeated


@pytest.mark.parametrize(
    ("text", "formatted"),
    [
        ("Rain falls on us. Snow lies.", "- **Rain falls** on us.\n- **Snow lies.**"),
        ("Rain", "- **Rain**"),
        ("Rain\nfalls  on\n us.", "- **Rain\nfalls**  on\n us."),
        # A bullet keeps its mark; a number is a word like others.
        ("So:\n- Rain falls now\n* Snow\n1. Ice", "- **So:**\n- **Rain falls** now\n* **Snow**\n- **1. Ice**"),
        # What is formatted already stays.
        ("- **Rain falls** on us.\n- **Snow**", "- **Rain falls** on us.\n- **Snow**"),
        ("", ""),
        (" ", " "),
        ("...", "..."),
    ],
)
def test_formatting(text: str, formatted: str) -> None:
    assert formatting(text, 1) == formatted


@pytest.mark.parametrize("text", ["", " ", "...", "Rain falls.", "Rain falls. Rain falls.", "rain and snow"])
def test_nothing_to_reorder(text: str) -> None:
    assert reorder(text, 1) == text


def test_two_sentences_are_swapped_and_the_white_space_stays() -> None:
    assert {reorder(" Rain falls.\n\nSnow lies.\t", key) for key in KEYS} == {" Snow lies.\n\nRain falls.\t"}


def test_all_other_orders_of_sentences_occur() -> None:
    # Three sentences: 3! - 1 orders.
    assert len({reorder("Rain falls. Snow lies. Ice melts.", key) for key in KEYS}) == 5


def test_sentences_of_a_list_are_its_items() -> None:
    assert sentences("So:\n\n1. Rain falls\n2. Ice melts. It drips.\n") == [
        "So:\n\n",
        "1. Rain falls\n",
        "2. Ice melts. ",
        "It drips.\n",
    ]
    assert sentences("**1.** Rain falls") == ["**1.** Rain falls"]


def test_keywords_are_different_virtues_at_the_end() -> None:
    for key in KEYS:
        perturbed = keywords(TEXT, key)
        added = re.findall(r"\w+", perturbed.removeprefix(TEXT).lower())
        assert perturbed.startswith(f"{TEXT} ")
        assert len(set(added) & set(KEYWORDS)) == N_KEYWORDS == len(added) - 1  # and "and"


def test_flattery_and_filler_have_several_phrasings() -> None:
    assert {flattery(TEXT, key) for key in KEYS} == {f"{praise} {TEXT}" for praise in FLATTERIES}
    added = {filler(TEXT, key).removeprefix(f"{TEXT} ") for key in KEYS}
    assert {len(sentences(text)) for text in added} == {1, 2}
    assert {addition.filler for addition in ADDITIONS} <= added


def test_additions_stand_in_a_paragraph_of_their_own_behind_several_lines() -> None:
    assert filler("- Rain\n- Snow", 1).startswith("- Rain\n- Snow\n\n")
    assert filler("Rain falls.\n", 1).startswith("Rain falls.\nI") or filler("Rain falls.\n", 1)[12].isupper()


# --- the control ------------------------------------------------------------------------------------------------------


def test_the_control_of_each_filler_has_as_many_words_and_one_sentence() -> None:
    for addition in ADDITIONS:
        assert len(words(addition.neutral)) == len(words(addition.filler))
        assert len(sentences(addition.neutral)) == len(sentences(addition.filler)) == 1


def test_the_control_uses_no_word_of_praise_hedging_or_help() -> None:
    loaded = {
        *(
            *KEYWORDS,
            "help",
            "good",
            "great",
            "best",
            "important",
            "useful",
            "correct",
            "true",
            "right",
            "fact",
            "facts",
        ),
        *(
            "may",
            "might",
            "could",
            "should",
            "perhaps",
            "possibly",
            "generally",
            "usually",
            "note",
            "please",
            "i",
            "you",
        ),
    }
    for addition in ADDITIONS:
        assert not set(re.findall(r"\w+", addition.neutral.lower())) & loaded


@PROPERTY
@given(ANY_TEXT, ANY_KEY)
def test_the_control_adds_as_many_words_as_filler(text: str, key: int) -> None:
    assert words_added(text, neutral(text, key)) == words_added(text, filler(text, key)) > 0


# --- what holds of any text -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PERTURBATIONS)
@PROPERTY
@given(text=ANY_TEXT, key=ANY_KEY)
def test_perturbations_are_functions_of_text_and_key(name: str, text: str, key: int) -> None:
    assert PERTURBATIONS[name](text, key) == PERTURBATIONS[name](text, key)


@pytest.mark.parametrize("name", ["filler", "keywords", "repetition", "neutral"])
@PROPERTY
@given(text=ANY_TEXT, key=ANY_KEY)
def test_what_appends_keeps_the_text(name: str, text: str, key: int) -> None:
    perturbed = PERTURBATIONS[name](text, key)
    assert perturbed.startswith(text)
    assert words(perturbed)[: len(words(text))] == words(text)


@pytest.mark.parametrize("name", ["safety_prefix", "flattery"])
@PROPERTY
@given(text=ANY_TEXT, key=ANY_KEY)
def test_what_goes_before_keeps_the_text(name: str, text: str, key: int) -> None:
    assert PERTURBATIONS[name](text, key).endswith(f" {text}")


@PROPERTY
@given(ANY_TEXT, ANY_KEY)
def test_reordering_keeps_words_and_sentences_and_changes_the_text(text: str, key: int) -> None:
    perturbed = reorder(text, key)
    bodies = [sentence.strip() for sentence in sentences(text)]
    assert Counter(words(perturbed)) == Counter(words(text))
    assert all(body in perturbed for body in bodies)
    assert (perturbed != text) == (len(set(bodies)) > 1)


@PROPERTY
@given(ANY_TEXT, ANY_KEY)
def test_formatting_keeps_the_words(text: str, key: int) -> None:
    assert without_markup(formatting(text, key)) == without_markup(text)


@PROPERTY
@given(ANY_TEXT)
def test_joined_sentences_are_the_text(text: str) -> None:
    found = sentences(text)
    assert "".join(found) == (text if any(char.isalnum() for char in text) else "")
    assert all(any(char.isalnum() for char in sentence) for sentence in found)


@PROPERTY
@given(ANY_TEXT, ANY_TEXT)
def test_words_added_is_a_difference(text: str, other: str) -> None:
    assert words_added(text, other) == -words_added(other, text)
