"""Prompts: from the starter set, a file or a hub data set to `Prompt` records.

Rows carry `instruction` (and `input`), or a finished `prompt`; `id`, `category`, `answers` and `checks` are optional,
other columns are ignored.

Not here: turning a prompt into what a model reads (`templates`), preference pairs.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triptych.data.rows import checked_text, dealt, keys_of, require_unique_ids, row_id
from triptych.data.tables import Row, read_file, read_table
from triptych.errors import ConfigError, DataError
from triptych.records import Prompt
from triptych.seeding import generator

STARTER = "starter"
STARTER_FILE = Path(__file__).parent / "starter" / "prompts.jsonl"
CATEGORIES = ("factual", "explanation", "other")


def load_prompts(source: str | Path, *, limit: int | None = None, seed: int = 0, shuffle: bool = False) -> list[Prompt]:
    """The prompts of `starter`, a .jsonl, .json, .csv or .parquet file, or (its train split) a hub data set.

    With `shuffle` in an order that depends on `seed` alone, else in that of the source; the first `limit` of them,
    where that is given. The starter set is dealt out category by category, so that a limit keeps the three balanced.
    A row without an id is called after its number, whatever the order: `row-000017`.

    Raises `MissingInputError`, `DataError` (naming the row) or `ConfigError` (a limit below 1).
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; it must be at least 1 (leave it out for all prompts)")
    is_starter = str(source) == STARTER
    name = "the starter set" if is_starter else str(source)
    rows = read_file(STARTER_FILE) if is_starter else read_table(str(source))
    prompts = parse_prompts(rows, name)
    if shuffle:
        prompts = [prompts[index] for index in generator(seed, "prompts").permutation(len(prompts))]
    if is_starter:
        prompts = dealt(prompts, lambda prompt: prompt.category)
    return prompts[:limit]


def parse_prompts(rows: Sequence[Row], source: str) -> list[Prompt]:
    """The prompts in the rows of a table; `DataError` for the first row that is none, or for an id given twice."""
    prompts = [_prompt(row, f"{source}, {row.place}", number) for number, row in enumerate(rows, start=1)]
    require_unique_ids(rows, [prompt.id for prompt in prompts], source)
    return prompts


def question_of(instruction: str, further: str) -> str:
    """The question of a prompt without a template around it: instruction and input, a blank line between them.

    The one text that preference pairs, rollouts, audits and the scoring of completions all mean by a prompt; either
    part may be blank.
    """
    return "\n\n".join(part for part in (instruction, further) if part.strip())


def _prompt(row: Row, where: str, number: int) -> Prompt:
    fields = row.fields
    named = {key: text for key in ("instruction", "prompt") if (text := _text(fields, key, where)) is not None}
    if not named:
        raise DataError(
            f"{where}: neither 'instruction' nor 'prompt' (its keys: {keys_of(fields)}); name the column so"
        )
    filled = {key: text for key, text in named.items() if text.strip()}
    if not filled:
        raise DataError(f"{where}: '{next(iter(named))}' is blank; fill it in or remove the row")
    category = fields.get("category")
    return Prompt(
        id=row_id(row, where, number),
        # What is not split into instruction and input is all instruction.
        instruction=filled.get("instruction") or filled["prompt"],
        input=_text(fields, "input", where) or "",
        prompt=filled.get("prompt"),
        # Other data sets have categories of their own; those say nothing about ours.
        category=category if category in CATEGORIES else None,
        answers=_answers(fields.get("answers"), where),
        checks=_checks(fields.get("checks"), where),
    )


def _text(fields: Mapping[str, Any], key: str, where: str) -> str | None:
    value = fields.get(key)
    return None if value is None else checked_text(value, f"'{key}'", where)


def _answers(value: Any, where: str) -> tuple[str, ...]:
    """A list of texts, one text, or (from a .csv file) a list written as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _json_field(value, "answers", where)
    if value is None:
        return ()
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(checked_text(item, "an item of 'answers'", where) for item in items)


def _checks(value: Any, where: str) -> dict[str, Any]:
    """An object, or (from a .csv file) one written as JSON; Parquet fills the fields a row has not with None."""
    if isinstance(value, str):
        value = _json_field(value, "checks", where)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DataError(f"{where}: 'checks' is a {type(value).__name__}, not an object of named checks")
    return {str(name): check for name, check in value.items() if check is not None}


def _json_field(text: str, key: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: '{key}' is not JSON ({error})") from error
