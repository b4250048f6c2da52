"""Guards the starter prompts: what makes them fit to measure with."""

import re
from collections import Counter
from itertools import combinations

import pytest

from triptych.data import load_prompts
from triptych.data.pairs import load_pairs
from triptych.data.prompts import question_of
from triptych.records import Prompt

PROMPTS = load_prompts("starter")
CHECKS = {"format": str, "max_words": int, "n_items": int, "must_include": list}


def text(prompt: Prompt) -> str:
    return f"{prompt.instruction}\n{prompt.input}".strip()


def words(value: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", value.lower())


def test_there_are_enough_of_each_category() -> None:
    counts = Counter(prompt.category for prompt in PROMPTS)
    assert set(counts) == {"factual", "explanation", "other"}
    assert len(PROMPTS) >= 240
    assert min(counts.values()) >= 80


def test_ids_and_texts_are_unique() -> None:
    assert len({prompt.id for prompt in PROMPTS}) == len(PROMPTS)
    assert len({text(prompt).lower() for prompt in PROMPTS}) == len(PROMPTS)


@pytest.mark.parametrize("limit", [3, 30, 99])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_limit_keeps_the_categories_balanced(limit: int, shuffle: bool) -> None:
    counts = Counter(prompt.category for prompt in load_prompts("starter", limit=limit, shuffle=shuffle, seed=1))
    assert set(counts.values()) == {limit // 3}


def test_factual_prompts_have_answers_that_they_do_not_give_away() -> None:
    for prompt in PROMPTS:
        assert bool(prompt.answers) == (prompt.category == "factual"), prompt.id
        for answer in prompt.answers:
            assert answer.strip() == answer != "", prompt.id
            given_away = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text(prompt), re.IGNORECASE)
            assert not given_away, f"{prompt.id}: {answer}"


def test_no_two_are_near_duplicates() -> None:
    word_sets = [(prompt.id, set(words(text(prompt)))) for prompt in PROMPTS]
    near = [
        (first, second)
        for (first, left), (second, right) in combinations(word_sets, 2)
        if len(left & right) > 0.6 * len(left | right)
    ]
    assert near == []


def test_beginnings_vary() -> None:
    beginnings = Counter(tuple(words(prompt.instruction)[:3]) for prompt in PROMPTS)
    assert {beginning: count for beginning, count in beginnings.items() if count > 3} == {}


def test_texts_are_clean() -> None:
    for prompt in PROMPTS:
        for part in (prompt.instruction, prompt.input):
            assert part == part.strip(), prompt.id
            assert "\t" not in part, prompt.id
            assert "###" not in part, prompt.id
        assert prompt.prompt is None


def test_checks_are_known_and_well_formed() -> None:
    for prompt in PROMPTS:
        for name, value in prompt.checks.items():
            assert isinstance(value, CHECKS[name]), prompt.id
        assert prompt.checks.get("format", "json") in {"json", "bullets", "numbered", "one_sentence"}, prompt.id


def test_prompts_and_pairs_ask_the_same_questions() -> None:
    asked = {prompt.id: question_of(prompt.instruction, prompt.input) for prompt in PROMPTS}
    assert {pair.id: pair.prompt for pair in load_pairs("starter")} == asked
