import json
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.data import answer_score, check_answer, load_prompts
from triptych.data.answer_checks import CHECKS, FORMATS, list_items, outermost_list
from triptych.errors import DataError
from triptych.records import Prompt

PROPERTY = settings(deadline=None, max_examples=200)


def asking(*answers: str, **checks: Any) -> Prompt:
    return Prompt(id="p", instruction="q", answers=answers, checks=checks)


def passes(answer: str, **checks: Any) -> bool:
    (passed,) = check_answer(asking(**checks), answer).values()
    return passed


# --- accepted answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "accepted", "is_in"),
    [
        ("The capital is ULAANBAATAR.", "Ulaanbaatar", True),
        ("(Seine)", "Seine", True),
        ("Seines", "Seine", False),
        ("carbon\n  dioxide", "carbon dioxide", True),
        ("The gas is CO₂.", "CO2", True),
        ("forty‑three", "forty-three", True),  # U+2011, the hyphen that does not break
        ("Ampère's ampere", "ampere", True),
        ("gold is Au, from aurum", "Au", True),
        ("aurum", "Au", False),
        # Numbers are whole numbers.
        ("It has 8 legs.", "8", True),
        ("8", "8", True),
        ("Eight (8).", "8", True),
        ("8.0 legs, 8%", "8", True),
        ("€30.00", "30", True),
        ("100°C", "100", True),
        ("18", "8", False),
        ("80", "8", False),
        ("8.5", "8", False),
        ("0.8", "8", False),
        ("-8", "8", False),
        ("it is -8", "8", False),
        ("1939-1945", "1945", True),
        ("8,000", "8", False),
        ("8, or so", "8", True),
        ("3,500 metres", "3,500", True),
        ("13,500 metres", "3,500", False),
        ("1,3500", "3500", False),
        ("H8", "8", False),
        # What has a meaning in regular expressions has none here.
        ("a+b", "a+b", True),
        ("aab", "a+b", False),
    ],
)
def test_accepted_answers(answer: str, accepted: str, is_in: bool) -> None:
    assert check_answer(asking(accepted), answer) == {"answers": is_in}


def test_any_accepted_answer_will_do() -> None:
    assert check_answer(asking("6", "six"), "There are six sides.") == {"answers": True}


@pytest.mark.parametrize("answers", [(), ("", " ")])
def test_no_accepted_answers_are_no_check(answers: tuple[str, ...]) -> None:
    assert check_answer(asking(*answers), "anything") == {}
    assert answer_score(asking(*answers), "anything") is None


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "limit", "keeps"),
    [
        ("one two three", 3, True),
        ("one two three four", 3, False),
        ("- one - two\n* three", 3, True),
        ("well-known", 1, True),
    ],
)
def test_max_words(answer: str, limit: int, keeps: bool) -> None:
    assert passes(answer, max_words=limit) == keeps


@pytest.mark.parametrize(
    ("answer", "terms", "are_in"),
    [
        ("See you on thursday!", ["Thursday"], True),
        ("Thursdays", ["Thursday"], False),
        ("Thursday's meeting", ["Thursday"], True),
        ("a lamp by the river", ["lamp", "river", "stone"], False),
        ("a lamp, a stone, a river", ["lamp", "river", "stone"], True),
        # Terms that are more than letters count within words, too.
        ("<h1>Owls</h1>", ["h1"], True),
        ("def bigger_of(a, b):", ["bigger_of"], True),
        ("my_bigger_of_two", ["bigger_of"], True),
        ("manage", ["age"], False),
        ('{"age": 3}', ["age"], True),
        ("don’t stop", ["don't"], True),
    ],
)
def test_must_include(answer: str, terms: list[str], are_in: bool) -> None:
    assert passes(answer, must_include=terms) == are_in


# --- lists ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("- a", None),
        ("* a", None),
        ("• a", None),
        ("\t+  a", None),
        ("1. a", 1),
        ("12) a", 12),
        ("(3) a", 3),
        ("4: a", 4),
        ("5.Five", 5),
        ("**1. Heat**: the sun", 1),
        ("**1.** a", 1),
        ("## 2. a", 2),
        ("Step 3: a", 3),
        ("**Step 3:** a", 3),
    ],
)
def test_lines_that_are_items(line: str, number: int | None) -> None:
    assert [item.number for item in list_items(f"Here:\n{line}\nend")] == [number]


@pytest.mark.parametrize(
    "line",
    [
        "-a",
        "-",
        "1.",
        "---",
        "**bold** text",
        "1.5 litres",
        "12:30 lunch",
        "1945. A year",
        "a - b",
        "2 eggs",
        "Stepping 1.",
    ],
)
def test_lines_that_are_none(line: str) -> None:
    assert list_items(line) == []


def test_the_outermost_list() -> None:
    text = "Plan:\n1. a\n   - a1\n   - a2\n 2. b\n- b1\n3. c"
    # Line 4 is indented by one blank, which is a slip; line 5 is no numbered item.
    assert [(item.number, item.line) for item in outermost_list(text)] == [(1, 1), (2, 4), (3, 6)]


@pytest.mark.parametrize(
    ("answer", "fits"),
    [
        ({"bullets": True, "numbered": False}, "- a\n- b"),
        ({"bullets": True, "numbered": False}, "Sure:\n\n* a\n\n* b\n\nDone."),
        ({"bullets": True, "numbered": False}, "- a\n  1. a1\n- b"),
        ({"bullets": False, "numbered": True}, "1. a\n2. b"),
        ({"bullets": False, "numbered": True}, "1. a\n\n   More.\n\n2. b\n   - b1"),
        ({"bullets": False, "numbered": False}, "1. a\n1. b"),
        ({"bullets": False, "numbered": False}, "2. a\n3. b"),
        ({"bullets": False, "numbered": False}, "First a, then b."),
    ],
)
def test_list_formats(answer: dict[str, bool], fits: str) -> None:
    assert {name: passes(fits, format=name) for name in answer} == answer


@pytest.mark.parametrize(
    ("answer", "count"),
    [
        ("- a\n- b\n- c", 3),
        ("Sure:\n1. a\n   - a1\n2. b\n3. c\nEnjoy.", 3),
        ('["bat", "owl", "bee"]', 3),
        ('```json\n{"a": 1, "b": 2}\n```', 2),
        ("a, b and c", 0),
    ],
)
def test_number_of_items(answer: str, count: int) -> None:
    assert [n for n in range(1, 5) if passes(answer, n_items=n)] == [n for n in [count] if n]


# --- sentences and JSON -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "is_one"),
    [
        ("Ice floats because it is lighter than water.", True),
        ("Ice floats because it is lighter than water", True),
        ("Why does\nice float?", True),
        ('"Ice floats," she said.', True),
        ("Dr. Smith met J. R. Tolkien in the U.S. Army, e.g. Vienna, at 3.5 km.", True),
        ("Wait… what is that?", True),
        ("- Ice floats.", True),
        ("Great! 😀", True),
        ("Ice floats. Water does not.", False),
        ('He said "ice floats." She nodded.', False),
        ("Why? Because.", False),
        ("**Ice floats.** 3 reasons follow.", False),
        ("Answer:\n\nIce floats.", False),
        ("- Ice floats\n- Wood floats", False),
        ("😀", False),
    ],
)
def test_one_sentence(answer: str, is_one: bool) -> None:
    assert passes(answer, format="one_sentence") == is_one


@pytest.mark.parametrize(
    ("answer", "is_json"),
    [
        ('{"name": "Ann", "age": 3}', True),
        ('  ["a", "b"]\n', True),
        ("[]", True),
        ('```json\n{"a": 1}\n```', True),
        ("```\n[1]\n```", True),
        ('Here it is: {"a": 1}', False),
        ('{"a": 1} Enjoy!', False),
        ("{'a': 1}", False),
        ('{"a": NaN}', False),
        ('"text"', False),
        ("3", False),
        ("null", False),
        ("[" * 100_000, False),
    ],
)
def test_json(answer: str, is_json: bool) -> None:
    assert passes(answer, format="json") == is_json


# --- several checks ---------------------------------------------------------------------------------------------------


def test_every_check_of_a_prompt_is_reported() -> None:
    prompt = asking("owl", max_words=4, format="bullets", n_items=2, must_include=["owl"])
    assert check_answer(prompt, "- an owl\n- a bat\n- a bee") == {
        "answers": True,
        "max_words": False,
        "format": True,
        "n_items": False,
        "must_include": True,
    }
    assert answer_score(prompt, "- an owl\n- a bat\n- a bee") == pytest.approx(3 / 5)


@pytest.mark.parametrize("answer", ["", " \n"])
def test_a_blank_answer_passes_nothing(answer: str) -> None:
    prompt = asking("owl", max_words=4, format="json", n_items=2, must_include=["owl"])
    assert check_answer(prompt, answer) == dict.fromkeys(CHECKS, False)
    assert answer_score(prompt, answer) == 0.0


def test_empty_lists_want_nothing() -> None:
    assert check_answer(asking(must_include=[]), "anything") == {}


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ({"max_word": 3}, "check 'max_word' is unknown; did you mean 'max_words'"),
        ({"answers": ["a"]}, "check 'answers' is unknown"),
        ({"max_words": "ten"}, "check 'max_words' is 'ten': Input should be a valid integer"),
        ({"max_words": True}, "check 'max_words' is True"),
        ({"max_words": 0}, "check 'max_words' is 0: Input should be greater than 0"),
        ({"n_items": 2.5}, "check 'n_items' is 2.5"),
        ({"format": "bullet"}, "check 'format' is 'bullet', which is unknown; did you mean 'bullets'"),
        ({"format": 1}, "check 'format' is 1: Input should be a valid string"),
        ({"must_include": "Thursday"}, "check 'must_include' is 'Thursday': Input should be a valid list"),
        ({"must_include": [" "]}, "check 'must_include' is"),
        ({"must_include": [3]}, "check 'must_include' is"),
    ],
)
@pytest.mark.parametrize("answer", ["something", ""])
def test_checks_that_make_no_sense(checks: dict[str, Any], message: str, answer: str) -> None:
    with pytest.raises(DataError, match=f"^prompt 'p': {message}"):
        check_answer(asking(**checks), answer)


# --- the starter prompts ----------------------------------------------------------------------------------------------

STARTER = {prompt.id: prompt for prompt in load_prompts("starter")}


def test_the_starter_prompts_can_all_be_checked() -> None:
    checked = [prompt for prompt in STARTER.values() if answer_score(prompt, "Some answer.") is not None]
    assert len(checked) == sum(bool(prompt.answers or prompt.checks) for prompt in STARTER.values()) > 100


def test_accepted_answers_of_the_starter_prompts_pass_in_a_sentence() -> None:
    for prompt in STARTER.values():
        for accepted in prompt.answers:
            assert answer_score(prompt, f"I think it is {accepted}.") == 1.0, (prompt.id, accepted)


@pytest.mark.parametrize(
    ("id_", "good", "bad"),
    [
        ("other-004", "1. Two Loaves\n2. Sister Crumb\n3. Rise", "Two Loaves, Sister Crumb, Rise"),
        ("other-010", '{"name": "Ann", "age": 3, "city": "Oslo"}', 'Sure: {"name": "Ann"}'),
        ("other-042", '["owl", "bat", "bee"]', '["owl", "bat"]'),
        ("other-053", "Positive.", "It is positive."),
        ("factual-085", "It is Ottawa.", "It is Toronto."),
        ("factual-095", "13 x 13 = 169.", "13 x 13 = 1,690."),
        ("factual-105", "That makes 135 minutes.", "That makes 215 minutes."),
        ("factual-114", "Twelve, every one of them!", "Only February, so 1."),
        ("factual-126", "Methane is CH₄.", "Methane is CH3."),
        ("factual-131", "3,042", "3,420"),
        ("factual-134", "You pay 10€ in total.", "You pay 14€ in total."),
        ("factual-141", "About 300,000 km per second.", "About 300 km per second."),
        ("factual-155", "Press Ctrl + C.", "Press Ctrl + V."),
        ("factual-160", "It is ¾.", "It is 7/5."),
        ("other-105", "- cone\n- bone\n- phone\n- loan\n- alone", "- cone\n- bone\n- phone"),
        ("other-121", '["flute", "oboe", "harp", "drum"]', '["flute", "oboe"]'),
        ("explanation-095", "It lets wanted traffic in and keeps the rest out.", "word " * 41),
        ("explanation-096", "They hold you back in a crash.", "They hold you. That saves lives."),
        ("explanation-011", "Ice floats because it is less dense than water.", "Ice is light. So it floats."),
    ],
)
def test_starter_answers(id_: str, good: str, bad: str) -> None:
    score = answer_score(STARTER[id_], bad)
    assert answer_score(STARTER[id_], good) == 1.0
    assert score is not None
    assert score < 1.0


# --- properties -------------------------------------------------------------------------------------------------------


@PROPERTY
@given(
    st.text(max_size=60) | st.text("-*1. \n\tab`#(){}[]\"'.!?", max_size=60),
    st.lists(st.text(max_size=4), max_size=2),
    st.fixed_dictionaries(
        {},
        optional={
            "max_words": st.integers(1, 9),
            "format": st.sampled_from(sorted(FORMATS)),
            "n_items": st.integers(1, 9),
            "must_include": st.lists(st.text(min_size=1, max_size=4).filter(lambda text: text.strip()), max_size=2),
        },
    ),
)
def test_any_text_gets_a_verdict(answer: str, answers: list[str], checks: dict[str, Any]) -> None:
    prompt = asking(*answers, **checks)
    verdict, score = check_answer(prompt, answer), answer_score(prompt, answer)
    assert set(verdict) <= {"answers", *checks}
    assert score == (None if not verdict else sum(verdict.values()) / len(verdict))
    if not answer.strip():
        assert not any(verdict.values())


@PROPERTY
@given(
    st.lists(st.text("abc ", min_size=1).filter(str.strip), min_size=1, max_size=6),
    st.sampled_from(["bullets", "numbered"]),
)
def test_written_lists_are_read(items: list[str], kind: Literal["bullets", "numbered"]) -> None:
    marks = ["-"] * len(items) if kind == "bullets" else [f"{number}." for number in range(1, len(items) + 1)]
    text = "\n".join(f"{mark} {item}" for mark, item in zip(marks, items, strict=True))
    assert answer_score(asking(format=kind, n_items=len(items)), f"Here you are:\n{text}") == 1.0


@PROPERTY
@given(st.lists(st.text()) | st.dictionaries(st.text(), st.integers()))
def test_written_json_is_read(value: Any) -> None:
    assert passes(json.dumps(value), format="json")
