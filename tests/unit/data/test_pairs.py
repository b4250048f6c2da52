import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triptych.data import Message, PreferencePair, load_pairs
from triptych.data.pairs import as_text, parse_pairs
from triptych.data.starter_sets import starter_sides
from triptych.data.tables import Row
from triptych.errors import ConfigError, DataError, MissingInputError

PROPERTY = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows(*fields: dict[str, Any]) -> list[Row]:
    return [Row(f"row {number}", row) for number, row in enumerate(fields, start=1)]


def write_lines(path: Path, *fields: dict[str, Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in fields), encoding="utf-8")
    return path


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"question {number}", "chosen": "good", "rejected": "bad"} for number in range(1, count + 1)]


def made(prompts: Sequence[str]) -> list[PreferencePair]:
    """One pair a prompt given, called after its place."""
    return [
        PreferencePair(id=str(number), prompt=prompt, chosen="good", rejected="bad", is_finished=True)
        for number, prompt in enumerate(prompts)
    ]


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str | None) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def parsed(row: dict[str, Any]) -> PreferencePair:
    (pair,) = parse_pairs(rows(row), "x")
    return pair


def turns(pair: PreferencePair) -> list[dict[str, str]]:
    return [message.model_dump() for message in pair.messages]


# --- formats ----------------------------------------------------------------------------------------------------------


def test_a_finished_prompt_stays_as_it_is() -> None:
    row = {
        "id": "a",
        "prompt": "Q: Hi?\nA:\n",
        "chosen": " Hello.",
        "rejected": "No.\n",
        "flaw": "rude",
        "question": None,
    }
    assert parse_pairs(rows(row), "x") == [
        PreferencePair(id="a", prompt="Q: Hi?\nA:\n", chosen=" Hello.", rejected="No.\n", is_finished=True)
    ]


@pytest.mark.parametrize(
    ("columns", "prompt", "messages"),
    [
        ({"system": "Be brief.", "question": "Hi?"}, "Be brief.\n\nHi?", [system("Be brief."), user("Hi?")]),
        ({"system": "", "question": "Hi?"}, "Hi?", [user("Hi?")]),
        ({"system": None, "question": "Hi?"}, "Hi?", [user("Hi?")]),
        ({"question": "Hi?"}, "Hi?", [user("Hi?")]),
        # A prompt with a system column beside it is a question, in rows without a system message, too.
        ({"system": "Be brief.", "prompt": "Hi?"}, "Be brief.\n\nHi?", [system("Be brief."), user("Hi?")]),
        ({"system": None, "prompt": "Hi?"}, "Hi?", [user("Hi?")]),
        ({"instruction": "Sort.", "input": "b a"}, "Sort.\n\nb a", [user("Sort.\n\nb a")]),
        ({"instruction": "Sort.", "input": " "}, "Sort.", [user("Sort.")]),
        ({"prompt": " ", "question": "Hi?", "input": "ignored"}, "Hi?", [user("Hi?")]),
        ({"prompt": [user("Hi?")]}, "Hi?", [user("Hi?")]),
        ({"prompt": [system(""), user("Hi?")]}, "Hi?", [user("Hi?")]),
        (
            {"prompt": [user("Hi?"), assistant("Hello."), user("Why?")]},
            "user: Hi?\n\nassistant: Hello.\n\nuser: Why?",
            [user("Hi?"), assistant("Hello."), user("Why?")],
        ),
    ],
)
def test_columns_before_text_answers(columns: dict[str, Any], prompt: str, messages: list[dict[str, str]]) -> None:
    pair = parsed({**columns, "chosen": "good", "rejected": "bad"})
    assert (pair.prompt, turns(pair), pair.is_finished) == (prompt, messages, False)
    assert (pair.chosen, pair.rejected) == ("good", "bad")


@pytest.mark.parametrize(
    ("columns", "before", "messages"),
    [
        # The lists hold the whole conversation …
        ({}, [user("Hi?")], [user("Hi?")]),
        ({}, [system("Be brief."), user("Hi?")], [system("Be brief."), user("Hi?")]),
        # … and a column repeats the question, all of them as one text, or the messages themselves …
        ({"prompt": "Hi?"}, [user("Hi?")], [user("Hi?")]),
        ({"prompt": "Hi? "}, [system("Be brief."), user("Hi?")], [system("Be brief."), user("Hi?")]),
        (
            {"prompt": "Human: Hi? Bot: Yes. Human: Why?"},
            [user("Hi?"), assistant("Yes."), user("Why?")],
            [user("Hi?"), assistant("Yes."), user("Why?")],
        ),
        ({"prompt": [user("Hi?")]}, [user("Hi?")], [user("Hi?")]),
        ({"system": "Be brief.", "question": "Hi?"}, [user("Hi?")], [system("Be brief."), user("Hi?")]),
        # … or they hold the answer alone.
        ({"prompt": "Hi?"}, [], [user("Hi?")]),
        ({"prompt": [system("Be brief."), user("Hi?")]}, [], [system("Be brief."), user("Hi?")]),
        ({"system": "Be brief.", "question": "Hi?"}, [], [system("Be brief."), user("Hi?")]),
        # A system message may stand apart.
        ({"prompt": [system("Be brief.")]}, [user("Hi?")], [system("Be brief."), user("Hi?")]),
        ({"system": "Be brief."}, [user("Hi?")], [system("Be brief."), user("Hi?")]),
    ],
)
def test_lists_of_messages(
    columns: dict[str, Any], before: list[dict[str, Any]], messages: list[dict[str, str]]
) -> None:
    pair = parsed({**columns, "chosen": [*before, assistant("good")], "rejected": [*before, assistant("bad")]})
    assert turns(pair) == messages
    assert (pair.chosen, pair.rejected, pair.is_finished) == ("good", "bad", False)
    assert pair.prompt == as_text(pair.messages)


def test_other_keys_of_messages_are_ignored() -> None:
    chosen, rejected = (
        [{**user("Hi?"), "name": None}, {**assistant(text), "score": score}] for text, score in [("a", 1), ("b", 0)]
    )
    assert parsed({"chosen": chosen, "rejected": rejected}).chosen == "a"


def test_missing_ids_are_row_numbers() -> None:
    first, second, third = numbered(3)
    ids = [pair.id for pair in parse_pairs(rows(first, {**second, "id": 7}, {**third, "id": ""}), "x")]
    assert ids == ["row-000001", "7", "row-000003"]


# --- what is refused --------------------------------------------------------------------------------------------------

GOOD = {"prompt": "q", "chosen": "good", "rejected": "bad"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "q", "score": 1}, r"no 'chosen' \(its keys: text, score\); name the column so"),
        ({}, r"no 'chosen' \(its keys: none\)"),
        ({"prompt": "q", "chosen": "a"}, r"no 'rejected' \(its keys: prompt, chosen\)"),
        (
            {"text": "q", "chosen": "a", "rejected": "b"},
            r"none of 'prompt', 'question', 'instruction' \(its keys: text, chosen, rejected\); name the column so",
        ),
        ({"system": "s", "chosen": "a", "rejected": "b"}, "none of 'prompt', 'question', 'instruction'"),
        ({**GOOD, "prompt": " \n"}, "'prompt' is blank; fill it in or remove the row"),
        ({**GOOD, "prompt": None, "question": ""}, "'question' is blank"),
        ({**GOOD, "prompt": []}, "'prompt' is blank"),
        ({**GOOD, "prompt": 3}, "'prompt' is a int, not a text"),
        ({**GOOD, "prompt": {"role": "user"}}, "'prompt' is a dict, not a text"),
        ({**GOOD, "system": ["s"]}, "'system' is a list, not a text"),
        ({**GOOD, "chosen": 1.5}, "'chosen' is a float, not a text"),
        ({**GOOD, "rejected": True}, "'rejected' is a bool, not a text"),
        (
            {**GOOD, "chosen": [assistant("a")]},
            "'chosen' is a list and 'rejected' is a str; make both texts, or both lists",
        ),
        ({**GOOD, "id": 1.5}, "'id' is a float, not a text"),
        ({**GOOD, "prompt": "q \ud800"}, "'prompt' holds half a character"),
        ({**GOOD, "rejected": "\udfff"}, "'rejected' holds half a character"),
        ({**GOOD, "chosen": "", "rejected": "b"}, "'chosen' is blank; mend or remove the row, or skip"),
        ({**GOOD, "rejected": " \n"}, "'rejected' is blank"),
        ({**GOOD, "rejected": None}, "'rejected' is blank"),
        ({**GOOD, "chosen": "bad\n"}, "'chosen' and 'rejected' are the same; mend or remove the row"),
        # Lists of messages.
        (
            {"chosen": [user("a"), assistant("x")], "rejected": [user("b"), assistant("y")]},
            r"chosen and rejected share no prompt \(first differ at message 0\)",
        ),
        (
            {"prompt": "a", "chosen": [user("a"), assistant("x")], "rejected": [user("b"), assistant("y")]},
            r"chosen and rejected share no prompt \(first differ at message 0\)",
        ),
        (
            {"chosen": [assistant("x")], "rejected": [assistant("y")]},
            r"chosen and rejected share no prompt \(first differ at message 0\)",
        ),
        (
            {"chosen": [user("a")], "rejected": [user("a"), assistant("y")]},
            r"chosen and rejected share no prompt \(one holds nothing but the answer\)",
        ),
        (
            {"chosen": [user("a"), assistant("x"), user("b"), assistant("z")], "rejected": [user("a"), assistant("y")]},
            "'chosen' has 3 messages after the prompt, where one answer is expected",
        ),
        ({"prompt": "q", "chosen": [assistant("a")], "rejected": []}, "'rejected' has 0 messages after the prompt"),
        (
            {"chosen": [user("a"), assistant("x")], "rejected": [user("a"), user("y")]},
            "'rejected' ends with a message of 'user', not of 'assistant'",
        ),
        (
            {"prompt": "c", "chosen": [user("a"), assistant("x")], "rejected": [user("a"), assistant("y")]},
            "'prompt' is not in the messages that chosen and rejected share",
        ),
        (
            {"chosen": [system("a"), assistant("x")], "rejected": [system("a"), assistant("y")]},
            "the prompt is a system message alone; add the question",
        ),
        (
            {
                "chosen": [user("a"), assistant(" "), assistant("x")],
                "rejected": [user("a"), assistant(" "), assistant("y")],
            },
            "message 1 of the prompt is blank",
        ),
        ({"prompt": [user("")], "chosen": "a", "rejected": "b"}, "message 0 of the prompt is blank"),
        ({"chosen": [user("a"), assistant(None)], "rejected": [user("a"), assistant("y")]}, "'chosen' is blank"),
        (
            {"chosen": [user("a"), assistant("x")], "rejected": [user("a"), assistant("x")]},
            "'chosen' and 'rejected' are the same",
        ),
        (
            {"chosen": ["a"], "rejected": ["b"]},
            "message 0 of 'chosen' is a str, not an object with 'role' and 'content'",
        ),
        (
            {"chosen": [{"from": "human", "value": "a"}], "rejected": []},
            r"message 0 of 'chosen' lacks 'role' or 'content' \(its keys: from, value\)",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "text"}]}], "chosen": "a", "rejected": "b"},
            "'content' of message 0 of 'prompt' is a list, not a text",
        ),
    ],
)
def test_rows_that_are_no_pairs(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"^x, row 2: {message}"):
        parse_pairs(rows(GOOD, row), "x")


def test_an_id_given_twice() -> None:
    with pytest.raises(DataError, match="x, row 3: id 'a' is already that of row 1"):
        parse_pairs(rows(*({**GOOD, "id": name} for name in "aba")), "x")


def test_bad_pairs_can_be_skipped_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = numbered(2)
    path = write_lines(tmp_path / "x.jsonl", first, {**GOOD, "chosen": " "}, second, {**GOOD, "chosen": "bad"})
    with caplog.at_level(logging.WARNING, logger="triptych"):
        pairs_kept = load_pairs(path, on_bad="skip")
    # Those that are left keep the numbers of their rows.
    assert [pair.id for pair in pairs_kept] == ["row-000001", "row-000003"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: 2 of 4 pairs are skipped (first: line 2: 'chosen' is blank)"
    ]


def test_skipping_is_for_bad_pairs_not_for_rows_that_are_none() -> None:
    with pytest.raises(DataError, match="x, row 2: no 'rejected'"):
        parse_pairs(rows(GOOD, {"prompt": "q", "chosen": "a"}), "x", on_bad="skip")


def test_nothing_left_after_skipping() -> None:
    with pytest.raises(DataError, match=r"x: none of 2 pairs can be used \(first: row 1: 'rejected' is blank\)"):
        parse_pairs(rows(*({**GOOD, "rejected": text} for text in ("", "good"))), "x", on_bad="skip")


def test_an_unknown_way_to_treat_bad_pairs() -> None:
    with pytest.raises(ConfigError, match="on_bad = 'skp' is unknown; did you mean 'skip'"):
        parse_pairs(rows(GOOD), "x", on_bad="skp")


# --- sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_format_gives_the_same_pairs(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pairs{suffix}"
    table = [
        {"id": "a", "system": "Be brief.", "question": "Hi?", "chosen": "Hi, you", "rejected": "No."},
        {"id": "b", "system": "", "question": "Why?", "chosen": "So.", "rejected": "No."},
    ]
    if suffix == ".jsonl":
        write_lines(path, *table)
    elif suffix == ".json":
        path.write_text(json.dumps(table), encoding="utf-8")
    elif suffix == ".csv":
        text = 'id,system,question,chosen,rejected\na,Be brief.,Hi?,"Hi, you",No.\nb,,Why?,So.,No.\n'
        path.write_text(text, encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(table), path)
    brief, hi, why = Message(role="system", content="Be brief."), user("Hi?"), user("Why?")
    assert load_pairs(path) == [
        PreferencePair(
            id="a", prompt="Be brief.\n\nHi?", chosen="Hi, you", rejected="No.", messages=(brief, Message(**hi))
        ),
        PreferencePair(id="b", prompt="Why?", chosen="So.", rejected="No.", messages=(Message(**why),)),
    ]


def test_messages_in_parquet(tmp_path: Path) -> None:
    row = {"chosen": [user("Hi?"), assistant("Hello.")], "rejected": [user("Hi?"), assistant("No.")]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    (pair,) = load_pairs(tmp_path / "x.parquet")
    assert (pair.prompt, pair.chosen, pair.rejected) == ("Hi?", "Hello.", "No.")


def test_the_error_names_the_file_and_the_line(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", GOOD, {"prompt": "q", "chosen": "a"})
    with pytest.raises(DataError, match=r"x.jsonl, line 2: no 'rejected'"):
        load_pairs(str(path))


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(MissingInputError, match=r"data file 'no-such-file.jsonl' does not exist"):
        load_pairs("no-such-file.jsonl")


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one(limit: int) -> None:
    with pytest.raises(ConfigError, match=f"limit is {limit}; it must be at least 1"):
        load_pairs("starter", limit=limit)


def test_a_limit_takes_the_first(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", *numbered(5))
    assert load_pairs(path, limit=2) == load_pairs(path)[:2]
    assert len(load_pairs(path, limit=99)) == 5


def test_shuffling_follows_the_seed_alone(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", *numbered(20))
    plain, first, again, other = (
        load_pairs(path),
        load_pairs(path, shuffle=True, seed=1),
        load_pairs(path, shuffle=True, seed=1),
        load_pairs(path, shuffle=True, seed=2),
    )
    assert first == again
    assert len({tuple(pair.id for pair in order) for order in (plain, first, other)}) == 3
    # The same pairs, each under the id of its own row.
    assert sorted(first, key=lambda pair: pair.id) == plain


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_limit_keeps_the_starter_categories_and_sides_balanced(shuffle: bool) -> None:
    starter = load_pairs("starter", limit=12, shuffle=shuffle, seed=3)
    sides = starter_sides()
    counted = Counter((pair.id.partition("-")[0], sides[pair.id]) for pair in starter)
    assert counted == {(c, s): 2 for c in ("factual", "explanation", "other") for s in ("train", "held_out")}


def test_the_starter_pairs_load() -> None:
    starter = load_pairs("starter")
    assert {pair.id.partition("-")[0] for pair in starter} == {"factual", "explanation", "other"}


def test_a_hub_data_set_whose_train_split_is_of_preferences(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # With the library itself, on a folder with the splits of HuggingFaceH4/orca_dpo_pairs: its message is relied on.
    folder, read = tmp_path / "source", datasets.load_dataset
    (folder / "data").mkdir(parents=True)
    for split in ("train_prefs", "test_prefs"):
        row = {"question": f"{split}?", "chosen": "good", "rejected": "bad"}
        pq.write_table(pa.Table.from_pylist([row]), folder / "data" / f"{split}-00000-of-00001.parquet")
    monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: SimpleNamespace())
    monkeypatch.setattr(
        datasets, "load_dataset", lambda _, split: read(str(folder), split=split, cache_dir=str(tmp_path / "cache"))
    )
    assert [pair.prompt for pair in load_pairs("org/name")] == ["train_prefs?"]


def test_real_orca_pairs() -> None:
    path = Path(__file__).parents[4] / "shared" / "data" / "orca_dpo_pairs_sample.jsonl"
    if not path.exists():
        pytest.skip("the Orca sample is not beside the checkout (../shared/data)")
    loaded = load_pairs(path, limit=50, shuffle=True, seed=3)
    assert len({pair.id for pair in loaded}) == 50
    assert {pair.messages[-1].role for pair in loaded} == {"user"}


# --- properties of the parser -----------------------------------------------------------------------------------------

CONTENT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda text: text.strip())


@PROPERTY
@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), CONTENT), min_size=1, max_size=4), CONTENT, CONTENT)
def test_messages_round_trip(tmp_path: Path, told: list[tuple[str, str]], chosen: str, rejected: str) -> None:
    before = [{"role": role, "content": content} for role, content in told]
    row = {"chosen": [*before, assistant(chosen)], "rejected": [*before, assistant(rejected)]}
    if chosen.strip() == rejected.strip():
        with pytest.raises(DataError, match="are the same"):
            parsed(row)
        return
    path = write_lines(tmp_path / "x.jsonl", row, {**row, "prompt": before})
    for pair in load_pairs(path):
        assert (turns(pair), pair.chosen, pair.rejected) == (before, chosen, rejected)


@PROPERTY
@given(CONTENT, CONTENT, CONTENT)
def test_texts_round_trip(prompt: str, chosen: str, rejected: str) -> None:
    row = {"prompt": prompt, "chosen": chosen, "rejected": f"{rejected.strip()} - {chosen.strip()}"}
    pair = parsed(row)
    assert pair.model_dump(include=set(row)) == row
    assert PreferencePair.model_validate_json(pair.model_dump_json()) == pair


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["role", "content", "a"]), inner, max_size=2)
        | st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text(max_size=1)}
            ),
            max_size=3,
        )
    ),
    max_leaves=4,
)
COLUMNS = ["id", "system", "prompt", "question", "instruction", "input", "chosen", "rejected"]


@PROPERTY
@given(
    st.lists(
        st.builds(
            lambda answers, others: {**others, **answers},
            st.fixed_dictionaries({}, optional={"chosen": VALUES, "rejected": VALUES}),
            st.dictionaries(st.sampled_from(COLUMNS), VALUES),
        ),
        max_size=3,
    ),
    st.sampled_from(["error", "skip"]),
)
def test_no_rows_give_anything_but_pairs_or_a_data_error(
    tmp_path: Path, table: list[dict[str, Any]], on_bad: Any
) -> None:
    path = write_lines(tmp_path / "x.jsonl", *table)
    try:
        loaded = load_pairs(path, on_bad=on_bad)
    except DataError:
        return
    assert len({pair.id for pair in loaded}) == len(loaded) <= len(table)
    for pair in loaded:
        assert pair.prompt.strip()
        assert pair.is_finished == (pair.messages == ())
