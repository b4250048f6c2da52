"""Guards the starter prompts and their split: what makes them fit to measure with."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import combinations, product
from pathlib import Path
from statistics import fmean

import pytest

from triptych import data
from triptych.data import load_prompts
from triptych.data.pairs import load_pairs
from triptych.data.prompts import question_of
from triptych.records import Prompt

STARTER = Path(data.__file__).parent / "starter"
PROMPTS = load_prompts("starter")
SPLIT: dict[str, list[str]] = json.loads((STARTER / "split.json").read_text(encoding="utf-8"))
BY_ID = {prompt.id: prompt for prompt in PROMPTS}
TRAIN, HELD_OUT = ([BY_ID[prompt_id] for prompt_id in SPLIT[side]] for side in ("train", "held_out"))
CHECKS = {"format": str, "max_words": int, "n_items": int, "must_include": list}


def text(prompt: Prompt) -> str:
    return f"{prompt.instruction}\n{prompt.input}".strip()


def words(value: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", value.lower())


def test_there_are_enough_of_each_category() -> None:
    counts = Counter(prompt.category for prompt in PROMPTS)
    assert set(counts) == {"factual", "explanation", "other"}
    assert counts == {"factual": 164, "explanation": 164, "other": 164}


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


FUNCTION_WORDS = frozenset(
    words(
        "a an and are as at be by can could do does for from give had has have how i if in into is it its many me much my"
        " name of on one or our s t that the their there this to was we were what when which who whose will with would you"
        " called please tell"
    )
)


def same_fact(left: Prompt, right: Prompt) -> bool:
    """Whether they share an accepted answer and at least half of the content words of the shorter one."""
    if not {answer.casefold() for answer in left.answers} & {answer.casefold() for answer in right.answers}:
        return False
    contents = [set(words(text(prompt))) - FUNCTION_WORDS for prompt in (left, right)]
    return len(contents[0] & contents[1]) >= 0.5 * min(map(len, contents))


def asked_again(train: Iterable[Prompt], held_out: Iterable[Prompt]) -> list[tuple[str, str]]:
    return [(left.id, right.id) for left, right in product(train, held_out) if same_fact(left, right)]


def test_no_fact_is_asked_for_twice() -> None:
    assert asked_again(TRAIN, HELD_OUT) == []
    assert [(left.id, right.id) for left, right in combinations(PROMPTS, 2) if same_fact(left, right)] == []


@pytest.mark.parametrize(
    ("instruction", "answer", "old"),
    [
        ("Which city is the capital of Mongolia?", "Ulaanbaatar", "factual-001"),
        ("How many sides has a hexagon?", "six", "factual-003"),
        ("Who painted the Mona Lisa?", "Leonardo", "factual-014"),
        ("How many legs do spiders have? My son wants to know.", "8", "factual-009"),
    ],
)
def test_a_fact_in_other_words_is_noticed(instruction: str, answer: str, old: str) -> None:
    planted = Prompt(id="planted", instruction=instruction, answers=(answer,))
    assert asked_again(TRAIN, [planted]) == [(old, "planted")]
    # The same answer to another question is no leak.
    assert asked_again(TRAIN, [planted.model_copy(update={"instruction": "Read this aloud, friend."})]) == []


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


def test_pairs_ask_the_questions_of_prompts() -> None:
    asked = {prompt.id: question_of(prompt.instruction, prompt.input) for prompt in PROMPTS}
    for pair in load_pairs("starter"):
        assert pair.prompt == asked[pair.id]


# --- the split --------------------------------------------------------------------------------------------------------


def test_the_split_names_every_prompt_once_in_the_order_of_the_file() -> None:
    lines = (STARTER / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    assert list(SPLIT) == ["train", "held_out"]
    assert [*SPLIT["train"], *SPLIT["held_out"]] == [json.loads(line)["id"] for line in lines]


def test_both_sides_are_balanced() -> None:
    assert Counter(prompt.category for prompt in TRAIN) == {"factual": 84, "explanation": 84, "other": 84}
    assert Counter(prompt.category for prompt in HELD_OUT) == {"factual": 80, "explanation": 80, "other": 80}


def test_both_sides_are_alike() -> None:
    # Standard errors of these differences: 0.038, 0.034 and 10 characters.
    assert share(TRAIN, lambda prompt: bool(prompt.input)) == pytest.approx(
        share(HELD_OUT, lambda prompt: bool(prompt.input)), abs=0.05
    )
    assert share(TRAIN, lambda prompt: bool(prompt.checks)) == pytest.approx(
        share(HELD_OUT, lambda prompt: bool(prompt.checks)), abs=0.05
    )
    sizes = [[len(text(prompt)) for prompt in side] for side in (TRAIN, HELD_OUT)]
    assert fmean(sizes[0]) == pytest.approx(fmean(sizes[1]), abs=15)


def share(prompts: list[Prompt], has: Callable[[Prompt], bool]) -> float:
    return sum(map(has, prompts)) / len(prompts)


def test_words_hardly_overlap_across_the_sides() -> None:
    near = [
        (left.id, right.id)
        for left, right in product(TRAIN, HELD_OUT)
        if len(set(words(text(left))) & set(words(text(right))))
        > 0.5 * len(set(words(text(left))) | set(words(text(right))))
    ]
    assert near == []
