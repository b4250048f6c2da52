"""Preference pairs: from the starter set, a file or a hub data set to `PreferencePair` records, and their split.

Rows carry `chosen` and `rejected`, and before them `prompt`, or `question`, or `instruction` (with `input`), with
`system` or without. Prompt and answers may be texts or lists of messages. `id` is optional, other columns are ignored.

Not here: turning a pair into what a model reads, and whether the pairs are fit to train on (`pair_checks`).
"""

import logging
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from triptych.data.prompts import question_of
from triptych.data.rows import checked_text, dealt, keys_of, require_unique_ids, row_id
from triptych.data.tables import Row, read_file, read_table
from triptych.errors import ConfigError, DataError, suggestion
from triptych.records import Record
from triptych.seeding import generator

logger = logging.getLogger(__name__)

STARTER = "starter"
STARTER_FILE = Path(__file__).parent / "starter" / "pairs.jsonl"

OnBad = Literal["error", "skip"]


class Message(Record):
    """One turn of a conversation."""

    role: str
    """`system`, `user`, `assistant`, or whatever else the data has."""
    content: str


class PreferencePair(Record):
    """Two answers to one prompt, one of them preferred."""

    id: str
    prompt: str
    """One text: system and question apart by a blank line, several turns as paragraphs `role: text`."""
    chosen: str
    rejected: str
    messages: tuple[Message, ...] = ()
    """The conversation up to the answer; empty for a finished text."""
    is_finished: bool = False
    """The row had a plain `prompt` column (and no `system` beside it): a finished text."""


class PairSplit(NamedTuple):
    """Pairs to train on and pairs to validate with; no prompt is on both sides."""

    train: list[PreferencePair]
    validation: list[PreferencePair]


def load_pairs(
    source: str | Path, *, limit: int | None = None, seed: int = 0, shuffle: bool = False, on_bad: OnBad = "error"
) -> list[PreferencePair]:
    """The pairs of `starter`, a .jsonl, .json, .csv or .parquet file, or (its train split) a hub data set.

    With `shuffle` in an order that depends on `seed` alone, else in that of the source; the first `limit` of them,
    where that is given. The starter set is dealt out category by category, so that a limit keeps them balanced. A row
    without an id is called after its number, whatever the order: `row-000017`. Pairs from which nothing can be learnt
    (a blank answer, two equal answers) are errors or, with `on_bad="skip"`, left out with one warning for all.

    Raises `MissingInputError`, `DataError` (naming the row) or `ConfigError` (a limit below 1, an unknown `on_bad`).
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; it must be at least 1 (leave it out for all pairs)")
    is_starter = str(source) == STARTER
    name = "the starter pairs" if is_starter else str(source)
    rows = read_file(STARTER_FILE) if is_starter else read_table(str(source))
    pairs = parse_pairs(rows, name, on_bad=on_bad)
    if shuffle:
        pairs = [pairs[index] for index in generator(seed, "pairs").permutation(len(pairs))]
    if is_starter:
        # The category is what an id begins with: `factual-003` is factual.
        pairs = dealt([_as_question(pair) for pair in pairs], lambda pair: pair.id.partition("-")[0])
    return pairs[:limit]


def _as_question(pair: PreferencePair) -> PreferencePair:
    """Prompts of the starter set are what a user asks, to be put into a template."""
    return pair.model_copy(update={"messages": (Message(role="user", content=pair.prompt),), "is_finished": False})


def parse_pairs(rows: Sequence[Row], source: str, *, on_bad: str = "error") -> list[PreferencePair]:
    """The pairs in the rows of a table; `DataError` for the first row that is none, or for an id given twice.

    With `on_bad="skip"` pairs with a `defect` are left out; `DataError` where no other is left.
    """
    if on_bad not in get_args(OnBad):
        raise ConfigError(f"on_bad = '{on_bad}' is unknown{suggestion(on_bad, get_args(OnBad))}")
    pairs = [_pair(row, f"{source}, {row.place}", number) for number, row in enumerate(rows, start=1)]
    require_unique_ids(rows, [pair.id for pair in pairs], source)
    bad = [(row.place, what) for row, pair in zip(rows, pairs, strict=True) if (what := defect(pair)) is not None]
    if not bad:
        return pairs
    place, what = bad[0]
    if on_bad == "error":
        raise DataError(f"{source}, {place}: {what}; mend or remove the row, or skip such rows with on_bad='skip'")
    if len(bad) == len(pairs):
        raise DataError(f"{source}: none of {len(pairs)} pairs can be used (first: {place}: {what})")
    logger.warning("%s: %d of %d pairs are skipped (first: %s: %s)", source, len(bad), len(pairs), place, what)
    return [pair for pair in pairs if defect(pair) is None]


def defect(pair: PreferencePair) -> str | None:
    """Why nothing can be learnt from a pair; None where something can."""
    blank = [key for key, text in (("chosen", pair.chosen), ("rejected", pair.rejected)) if not text.strip()]
    if blank:
        return f"'{blank[0]}' is blank"
    return "'chosen' and 'rejected' are the same" if pair.chosen.strip() == pair.rejected.strip() else None


def prompt_key(pair: PreferencePair) -> str:
    """The same for pairs of the same prompt; white space makes no difference."""
    return " ".join(pair.prompt.split())


def split_pairs(pairs: Sequence[PreferencePair], *, validation: float, seed: int) -> PairSplit:
    """The pairs in two parts, whole prompts at a time; each part in the order given.

    Prompts are drawn in an order that depends on `seed` and the prompts alone, not on the order of the rows; each is
    taken that brings the number of validation pairs nearer to `validation` times all, so it ends within half the size
    of the largest prompt. `validation` is a share, at least 0 (no validation pairs) and below 1.

    Raises `ConfigError` for a share that is out of range or leaves a side empty, `DataError` where there are no pairs.
    """
    if not 0.0 <= validation < 1.0:
        raise ConfigError(f"validation = {validation} is out of range; it must be at least 0 and below 1")
    if not pairs:
        raise DataError("there are no pairs to split; give at least one")
    size_of: dict[str, int] = {}
    for key in map(prompt_key, pairs):
        size_of[key] = size_of.get(key, 0) + 1
    held_out = _held_out(size_of, validation * len(pairs), seed)
    train = [pair for pair in pairs if prompt_key(pair) not in held_out]
    if not train or (validation > 0.0 and not held_out):
        raise ConfigError(
            f"validation = {validation} of {len(pairs)} pairs ({len(size_of)} different prompts) leaves "
            f"{'validation' if train else 'training'} empty, as a prompt is never on both sides; "
            "choose another share, 0 for no validation, or add pairs"
        )
    return PairSplit(train, [pair for pair in pairs if prompt_key(pair) in held_out])


def _held_out(size_of: Mapping[str, int], target: float, seed: int) -> set[str]:
    """Prompts with about `target` pairs in all."""
    keys, taken, count = sorted(size_of), set(), 0
    for index in generator(seed, "pair split").permutation(len(keys)):
        key = keys[index]
        if abs(count + size_of[key] - target) < abs(count - target):
            taken.add(key)
            count += size_of[key]
    return taken


# --- from a row to a pair ---------------------------------------------------------------------------------------------

_QUESTIONS = ("prompt", "question", "instruction")
"""Columns that hold the question, the first that is not blank."""


class _Given(NamedTuple):
    """What comes before the answers, as the columns other than these have it."""

    messages: tuple[Message, ...]
    column: str | None
    """The column that the question stands in; None where there is none, or it is blank."""
    is_finished: bool
    """It is a plain `prompt` with no `system` beside it."""


class _Answers(NamedTuple):
    chosen: str
    rejected: str
    shared: tuple[Message, ...] | None
    """The messages with which both lists begin; None where the answers are plain texts."""


def _pair(row: Row, where: str, number: int) -> PreferencePair:
    fields = row.fields
    for key in ("chosen", "rejected"):
        if key not in fields:
            raise DataError(f"{where}: no '{key}' (its keys: {keys_of(fields)}); name the column so")
    given = _given(fields, where)
    answers = _answers(fields, where, has_question=given.column is not None)
    messages = _conversation(given, answers.shared, where)
    is_finished = given.is_finished and answers.shared is None
    return PreferencePair(
        id=row_id(row, where, number),
        prompt=as_text(messages),
        chosen=answers.chosen,
        rejected=answers.rejected,
        messages=() if is_finished else messages,
        is_finished=is_finished,
    )


def as_text(messages: Sequence[Message]) -> str:
    """A question, after its system message where it has one, plainly; more turns as paragraphs `role: text`."""
    if [message.role for message in messages] in (["user"], ["system", "user"]):
        return "\n\n".join(message.content for message in messages)
    return "\n\n".join(f"{message.role}: {message.content}" for message in messages)


def _given(fields: Mapping[str, Any], where: str) -> _Given:
    system = _text(fields, "system", where)
    head = (Message(role="system", content=system),) if system.strip() else ()
    if isinstance(fields.get("prompt"), list | tuple):
        turns = _messages(fields["prompt"], "prompt", where)
        return _Given((*head, *turns), "prompt" if turns else None, is_finished=False)
    texts = {key: _text(fields, key, where) for key in _QUESTIONS}
    column = next((key for key, text in texts.items() if text.strip()), None)
    if column is None:
        return _Given(head, None, is_finished=False)
    further = _text(fields, "input", where) if column == "instruction" else ""
    question = Message(role="user", content=question_of(texts[column], further))
    return _Given((*head, question), column, is_finished=column == "prompt" and "system" not in fields)


def _answers(fields: Mapping[str, Any], where: str, *, has_question: bool) -> _Answers:
    """The two answers; out of two lists of messages that are alike up to the last, or hold no more than that."""
    sides = {key: fields[key] for key in ("chosen", "rejected")}
    are_lists = [isinstance(side, list | tuple) for side in sides.values()]
    if not any(are_lists):
        if not has_question:
            raise DataError(f"{where}: {_no_question(fields)}")
        return _Answers(_text(fields, "chosen", where), _text(fields, "rejected", where), None)
    if not all(are_lists):
        kinds = " and ".join(f"'{key}' is a {type(side).__name__}" for key, side in sides.items())
        raise DataError(f"{where}: {kinds}; make both texts, or both lists of messages")
    chosen, rejected = (_messages(side, key, where) for key, side in sides.items())
    shared = _shared(chosen, rejected)
    if not shared and not (has_question and min(len(chosen), len(rejected)) <= 1):
        differ = "first differ at message 0" if chosen[:1] != rejected[:1] else "one holds nothing but the answer"
        raise DataError(f"{where}: chosen and rejected share no prompt ({differ}); begin both with it")
    after = len(shared)
    return _Answers(_answer(chosen[after:], "chosen", where), _answer(rejected[after:], "rejected", where), shared)


def _shared(chosen: Sequence[Message], rejected: Sequence[Message]) -> tuple[Message, ...]:
    """The messages with which both begin; the last of each is its answer, even where they are the same."""
    both = zip(chosen[:-1], rejected[:-1], strict=False)
    return tuple(left for left, _ in takewhile(lambda turns: turns[0] == turns[1], both))


def _answer(rest: Sequence[Message], key: str, where: str) -> str:
    """The text of what follows the prompt: one message of the assistant."""
    if len(rest) != 1:
        problem = f"has {len(rest)} messages after the prompt, where one answer is expected"
        raise DataError(f"{where}: '{key}' {problem}; make the conversations alike up to the answer")
    if rest[0].role != "assistant":
        raise DataError(f"{where}: '{key}' ends with a message of '{rest[0].role}', not of 'assistant'; name it so")
    return rest[0].content


def _conversation(given: _Given, shared: tuple[Message, ...] | None, where: str) -> tuple[Message, ...]:
    """The messages before the answer. Lists that hold the whole conversation repeat what the other columns have."""
    messages = given.messages
    if shared:
        missing = tuple(message for message in messages if not _is_repeated(message, shared))
        if any(message.role != "system" for message in missing):
            raise DataError(f"{where}: '{given.column}' is not in the messages that chosen and rejected share; mend it")
        messages = (*missing, *shared)
    told = tuple(message for message in messages if message.content.strip() or message.role != "system")
    if all(message.role == "system" for message in told):
        raise DataError(f"{where}: the prompt is a system message alone; add the question")
    blank = [number for number, message in enumerate(told) if not message.content.strip()]
    if blank:
        raise DataError(f"{where}: message {blank[0]} of the prompt is blank; fill it in or remove the row")
    return told


def _is_repeated(message: Message, shared: Sequence[Message]) -> bool:
    """Whether the shared messages hold this one; a question may also be all of them, written as one text."""
    content, turns = message.content.strip(), [other.content.strip() for other in shared]
    if message.role == "user":
        return content in turns or all(turn in content for turn in turns)
    return any(other.role == message.role and turn == content for other, turn in zip(shared, turns, strict=True))


def _no_question(fields: Mapping[str, Any]) -> str:
    named = [key for key in _QUESTIONS if fields.get(key) is not None]
    if named:
        return f"'{named[0]}' is blank; fill it in or remove the row"
    names = ", ".join(f"'{key}'" for key in _QUESTIONS)
    return f"none of {names} (its keys: {keys_of(fields)}); name the column so"


def _messages(turns: Sequence[Any], key: str, where: str) -> list[Message]:
    return [_message(turn, f"message {number} of '{key}'", where) for number, turn in enumerate(turns)]


def _message(turn: Any, what: str, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where}: {what} is a {type(turn).__name__}, not an object with 'role' and 'content'")
    if not {"role", "content"} <= set(turn):
        raise DataError(f"{where}: {what} lacks 'role' or 'content' (its keys: {keys_of(turn)}); name them so")
    role, content = (checked_text(turn[part], f"'{part}' of {what}", where) for part in ("role", "content"))
    return Message(role=role, content=content)


def _text(fields: Mapping[str, Any], key: str, where: str) -> str:
    """The text of a column; an empty one where the row has none."""
    return checked_text(fields.get(key), f"'{key}'", where)
