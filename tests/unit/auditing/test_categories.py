import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.auditing.categories import (
    CATEGORIES,
    MAX_SENTENCES,
    MAX_WORDS,
    RULES,
    Category,
    agreement,
    classify,
    is_new_to_the_rules,
)
from triptych.data import load_prompts
from triptych.records import Prompt

PROPERTY = settings(deadline=None, max_examples=200)


@pytest.mark.parametrize(
    ("instruction", "further", "category"),
    [
        ("Which river flows through Vienna?", "", "factual"),
        ("How many moons does Mars have?", "", "factual"),
        ("What is the boiling point of water?", "", "factual"),
        ("Could you tell me who painted Guernica?", "", "factual"),
        ("Name the largest desert.", "", "factual"),
        ("Highest mountain of Japan, please.", "", "factual"),
        ("What is 7 times 8?", "", "factual"),
        ("What is a young goat called?", "", "factual"),
        ("How do you say bread in Italian?", "", "factual"),
        ("Convert the weight to pounds.", "3 kilograms", "factual"),
        ("Why is the sea salty?", "", "explanation"),
        ("How does a kettle work?", "", "explanation"),
        ("What is osmosis?", "", "explanation"),
        ("What is the difference between a crow and a raven?", "", "explanation"),
        ("Walk me through long division.", "", "explanation"),
        ("Please explain, in one sentence, how bread rises.", "", "explanation"),
        ("What are the benefits of sleep?", "", "explanation"),
        ("Imagine I am five. Explain gravity.", "", "explanation"),
        ("Write a poem about why the sea is salty.", "", "other"),
        ("For my blog, write a paragraph on bread.", "", "other"),
        ("Can you please help me come up with a name for my boat?", "", "other"),
        ("A haiku about rain, please.", "", "other"),
        ("List three uses of vinegar.", "", "other"),
        ("Name three primary colours.", "", "other"),
        ("Give me a synonym-free text.", "", "other"),
        ("You are a pirate. Greet me.", "", "other"),
        ("Convert the names to a JSON array.", "Ann, Bob", "other"),
        ("Is this sentence polite?", "Go away.", "other"),
        ("What are the main points?", "The shop opens at nine.", "other"),
        # One that only hands over a question is that question.
        ("Answer the following question.", "Why do cats purr?", "explanation"),
        ("Answer this question.", "Who wrote Emma?", "factual"),
        ("Answer this question.", "", "other"),
        # No cue at all.
        ("", "", "other"),
        ("Fine weather today.", "", "other"),
        ("Vienna, then?", "", "factual"),
    ],
)
def test_examples(instruction: str, further: str, category: Category) -> None:
    assert classify(instruction, further) == category


def test_case_and_kind_of_quotes_do_not_matter() -> None:
    assert classify("WHAT’S THE DIFFERENCE BETWEEN A CROW AND A RAVEN?") == "explanation"


def test_the_middle_of_a_long_instruction_is_not_read() -> None:
    passage = "Explain why it rains. " * MAX_SENTENCES
    asked = "Read the passage. It is short. {}One thing is left. Which river is meant?"
    assert classify(asked.format("")) == "factual"
    assert classify(asked.format(passage)) == "factual"


def test_the_middle_of_a_long_sentence_is_not_read() -> None:
    around = "and so on " * MAX_WORDS
    assert classify(f"Tom said {around} and he asked why {around} which river is meant?") == "factual"
    assert classify(f"Explain {around}") == "explanation"


@pytest.mark.parametrize(
    "phrase", ["give the ", "what does ", "what is ", "how is ", "convert to ", "please ", "- a\n"]
)
def test_long_instructions_take_no_long_time(phrase: str) -> None:
    # Nested repetitions would take minutes.
    assert classify(phrase * 20_000) in CATEGORIES


@PROPERTY
@given(st.text(), st.text())
def test_any_text_has_a_category(instruction: str, further: str) -> None:
    assert classify(instruction, further) in CATEGORIES


@PROPERTY
@given(
    st.lists(st.sampled_from(["write", "why", "the", "name", "how", "?", ".", "\n", "story", "is", "a"])).map(" ".join)
)
def test_white_space_around_does_not_matter(instruction: str) -> None:
    assert classify(f" \n{instruction}\t ") == classify(instruction)


def test_every_rule_has_a_name_and_patterns() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.patterns and rule.category in CATEGORIES for rule in RULES)


# --- agreement --------------------------------------------------------------------------------------------------------


def test_agreement_by_hand() -> None:
    # Labels f f e e o o, found f e e e o f: 4 of 6 agree. Shares: labels 2, 2, 2; found 2 f, 3 e, 1 o.
    # e = (2·2 + 2·3 + 2·1) / 36 = 1/3; κ = (2/3 - 1/3) / (1 - 1/3) = 1/2.
    labels: list[Category] = ["factual", "factual", "explanation", "explanation", "other", "other"]
    found: list[Category] = ["factual", "explanation", "explanation", "explanation", "other", "factual"]
    result = agreement(labels, found)
    assert result.accuracy == pytest.approx(4 / 6)
    assert result.kappa == pytest.approx(1 / 2)
    assert result.recall == {"factual": 0.5, "explanation": 1.0, "other": 0.5}


def test_perfect_and_opposite_labels() -> None:
    assert agreement(["factual", "other"], ["factual", "other"]).kappa == 1.0
    # p = 0, e = (1·1 + 1·1) / 4 = 1/2: κ = -1.
    assert agreement(["factual", "other"], ["other", "factual"]).kappa == -1.0


def test_kappa_is_undefined_where_chance_must_agree() -> None:
    result = agreement(["other"] * 3, ["other"] * 3)
    assert (result.accuracy, result.recall["other"]) == (1.0, 1.0)
    assert math.isnan(result.kappa)
    assert math.isnan(result.recall["factual"])


def test_no_prompts_have_no_agreement() -> None:
    result = agreement([], [])
    assert all(math.isnan(value) for value in (result.accuracy, result.kappa, *result.recall.values()))


def test_labels_must_pair_up() -> None:
    with pytest.raises(ValueError, match="2 labels, 1 found"):
        agreement(["other", "other"], ["other"])


# --- the starter prompts ----------------------------------------------------------------------------------------------


def made_on(prompt: Prompt) -> bool:
    return not is_new_to_the_rules(prompt) and number(prompt) % 2 == 1


def looked_at(prompt: Prompt) -> bool:
    """Four of these 126 were, while the rules were made."""
    return not is_new_to_the_rules(prompt) and number(prompt) % 2 == 0


def number(prompt: Prompt) -> int:
    return int(prompt.id.rpartition("-")[2])


@pytest.mark.parametrize(
    ("picked", "count", "at_least"),
    [
        (made_on, 126, 0.98),  # 1.00 says nothing.
        (looked_at, 126, 0.90),  # Measured 0.93, κ 0.89.
        (is_new_to_the_rules, 240, 0.78),  # Measured 0.81, κ 0.72; 0.76 to 0.86 by Wilson's interval.
    ],
)
def test_agreement_with_the_labels_of_the_starter_prompts(
    picked: Callable[[Prompt], bool], count: int, at_least: float
) -> None:
    prompts = list(filter(picked, load_prompts("starter")))
    labels: list[Category] = [prompt.category for prompt in prompts if prompt.category]
    result = agreement(labels, [classify(prompt.instruction, prompt.input) for prompt in prompts])
    assert len(prompts) == count
    assert result.accuracy >= at_least
    assert result.kappa >= 1.5 * at_least - 0.5  # what that accuracy is worth with three equal categories
    assert min(result.recall.values()) >= at_least - 0.06
