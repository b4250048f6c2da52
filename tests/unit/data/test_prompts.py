import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triptych.data import load_prompts
from triptych.data.prompts import parse_prompts
from triptych.data.tables import Row
from triptych.errors import ConfigError, DataError, MissingInputError
from triptych.records import Prompt


def rows(*fields: dict[str, Any]) -> list[Row]:
    return [Row(f"row {number}", row) for number, row in enumerate(fields, start=1)]


def write_lines(path: Path, *fields: dict[str, Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in fields), encoding="utf-8")
    return path


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"instruction": f"question {number}"} for number in range(1, count + 1)]


def test_a_full_row() -> None:
    full = {
        "id": "a",
        "instruction": "Sort.",
        "input": "c b a",
        "category": "other",
        "answers": ["a b c"],
        "checks": {"max_words": 3},
        "output": "ignored",
        "prompt": None,
    }
    assert parse_prompts(rows(full), "x") == [
        Prompt(
            id="a",
            instruction="Sort.",
            input="c b a",
            category="other",
            answers=("a b c",),
            checks={"max_words": 3},
        )
    ]


def test_missing_ids_are_row_numbers() -> None:
    prompts = parse_prompts(rows({"instruction": "a"}, {"instruction": "b", "id": 7}, {"instruction": "c"}), "x")
    assert [prompt.id for prompt in prompts] == ["row-000001", "7", "row-000003"]


def test_a_finished_prompt() -> None:
    (prompt,) = parse_prompts(rows({"prompt": "Once upon a time"}), "x")
    assert (prompt.prompt, prompt.instruction, prompt.input) == ("Once upon a time", "Once upon a time", "")


def test_a_blank_prompt_is_none_where_there_is_an_instruction() -> None:
    (prompt,) = parse_prompts(rows({"prompt": " ", "instruction": "Say hi."}), "x")
    assert (prompt.prompt, prompt.instruction) == (None, "Say hi.")


def test_categories_of_other_data_sets_are_not_ours() -> None:
    prompts = parse_prompts(rows({"instruction": "a", "category": "closed_qa"}, {"instruction": "b"}), "x")
    assert [prompt.category for prompt in prompts] == [None, None]


@pytest.mark.parametrize(
    ("answers", "parsed"), [(None, ()), ("one", ("one",)), (["a", "b"], ("a", "b")), ('["a", "b"]', ("a", "b"))]
)
def test_answers(answers: object, parsed: tuple[str, ...]) -> None:
    assert parse_prompts(rows({"instruction": "a", "answers": answers}), "x")[0].answers == parsed


@pytest.mark.parametrize("checks", ['{"max_words": 3}', {"max_words": 3, "format": None}])
def test_checks(checks: object) -> None:
    assert parse_prompts(rows({"instruction": "a", "checks": checks}), "x")[0].checks == {"max_words": 3}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"output": "x", "text": "y"}, r"neither 'instruction' nor 'prompt' \(its keys: output, text\)"),
        ({}, r"neither 'instruction' nor 'prompt' \(its keys: none\)"),
        ({"instruction": None}, r"\(its keys: instruction\)"),
        ({"instruction": " \n"}, "'instruction' is blank"),
        ({"prompt": ""}, "'prompt' is blank"),
        ({"instruction": 3}, "'instruction' is a int, not a text"),
        ({"instruction": ["a"]}, "'instruction' is a list, not a text"),
        ({"prompt": [{"role": "user"}]}, "'prompt' is a list, not a text"),
        ({"instruction": "a", "input": {}}, "'input' is a dict, not a text"),
        ({"instruction": "a", "id": 1.5}, "'id' is a float, not a text"),
        ({"instruction": "a", "answers": [1]}, "an item of 'answers' is a int, not a text"),
        ({"instruction": "a", "answers": "[1"}, "'answers' is not JSON"),
        ({"instruction": "a", "checks": "max 3"}, "'checks' is not JSON"),
        ({"instruction": "a", "checks": [1]}, "'checks' is a list, not an object"),
        ({"instruction": "a \ud800"}, "'instruction' holds half a character"),
    ],
)
def test_rows_that_are_no_prompts(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"^x, row 2: .*{message}"):
        parse_prompts(rows({"instruction": "fine"}, row), "x")


def test_an_id_given_twice() -> None:
    with pytest.raises(DataError, match="x, row 3: id 'a' is already that of row 1"):
        parse_prompts(rows(*({"instruction": "q", "id": name} for name in "aba")), "x")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_format_gives_the_same_prompts(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"prompts{suffix}"
    table = [{"id": "a", "instruction": "Sort.", "input": "b a"}, {"id": "b", "instruction": "Hi, you", "input": ""}]
    if suffix == ".jsonl":
        write_lines(path, *table)
    elif suffix == ".json":
        path.write_text(json.dumps(table), encoding="utf-8")
    elif suffix == ".csv":
        path.write_text('id,instruction,input\na,Sort.,b a\nb,"Hi, you",\n', encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(table), path)
    assert load_prompts(path) == [
        Prompt(id="a", instruction="Sort.", input="b a"),
        Prompt(id="b", instruction="Hi, you"),
    ]


def test_the_error_names_the_file_and_the_line(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", {"instruction": "a"}, {"text": "b"})
    with pytest.raises(DataError, match=r"x.jsonl, line 2: neither 'instruction' nor 'prompt'"):
        load_prompts(str(path))


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(MissingInputError, match=r"data file 'no-such-file.jsonl' does not exist"):
        load_prompts("no-such-file.jsonl")


def test_a_limit_takes_the_first(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", *numbered(5))
    assert load_prompts(path, limit=2) == load_prompts(path)[:2]
    assert len(load_prompts(path, limit=99)) == 5


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one(limit: int) -> None:
    with pytest.raises(ConfigError, match=f"limit is {limit}; it must be at least 1"):
        load_prompts("starter", limit=limit)


def test_shuffling_follows_the_seed_alone(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", *numbered(20))
    plain, first, again, other = (
        load_prompts(path),
        load_prompts(path, shuffle=True, seed=1),
        load_prompts(path, shuffle=True, seed=1),
        load_prompts(path, shuffle=True, seed=2),
    )
    assert first == again
    assert len({tuple(prompt.id for prompt in order) for order in (plain, first, other)}) == 3
    # The same prompts, each under the id of its own row.
    assert sorted(first, key=lambda prompt: prompt.id) == plain
    assert load_prompts(path, seed=5) == plain


def test_a_shuffled_limit_is_a_sample_not_the_beginning(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", *numbered(100))
    assert load_prompts(path, shuffle=True, limit=10) != load_prompts(path, limit=10)


def test_real_alpaca_rows() -> None:
    path = Path(__file__).parents[4] / "shared" / "data" / "alpaca_cleaned_sample.jsonl"
    if not path.exists():
        pytest.skip("the Alpaca sample is not beside the checkout (../shared/data)")
    prompts = load_prompts(path, limit=200, shuffle=True, seed=3)
    assert len({prompt.id for prompt in prompts}) == 200
    assert any(prompt.input for prompt in prompts)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["id", "instruction", "input", "prompt", "category", "answers", "checks"]),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
                max_leaves=4,
            ),
        ),
        max_size=4,
    )
)
def test_no_rows_give_anything_but_prompts_or_a_data_error(tmp_path: Path, table: list[dict[str, Any]]) -> None:
    path = write_lines(tmp_path / "x.jsonl", *table)
    try:
        prompts = load_prompts(path)
    except DataError:
        return
    assert len({prompt.id for prompt in prompts}) == len(table)
