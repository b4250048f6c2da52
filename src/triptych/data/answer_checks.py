"""Verifiable checks of answers: is the accepted answer in it, and does it keep the form that the prompt asks for.

To add one: a function `(answer, wanted) → bool`, one entry in `CHECKS`, and in `_WANTED` the type of `wanted`.

They look at the text alone, and for English: an accepted answer counts wherever it stands, also in "it is not Paris".
Not here: rewards and judges, which give degrees, and what is trivially different about two answers (`pair_checks`).
"""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, NamedTuple

from pydantic import Field, StrictInt, StrictStr, TypeAdapter, ValidationError

from triptych.errors import DataError, suggestion
from triptych.records import Prompt


class ListItem(NamedTuple):
    """A line of a text that begins with a bullet or a number."""

    indent: int
    """Columns before the mark, tabs to the next multiple of 8."""
    number: int | None
    """None for a bullet."""
    line: int
    """The number of the line in the text, from 0."""


def check_answer(prompt: Prompt, answer: str) -> dict[str, bool]:
    """Whether an answer passes, for every check that applies: `answers` where some are listed, then those in `checks`.

    A blank answer passes none. Raises `DataError` naming prompt and key for an unknown check, or one that makes no
    sense (`max_words: "ten"`).
    """
    wanted = _wanted(prompt)
    return {name: bool(answer.strip()) and CHECKS[name](answer, value) for name, value in wanted.items()}


def answer_score(prompt: Prompt, answer: str) -> float | None:
    """The share of checks that an answer passes, 0 … 1; None where none applies: unscored is not zero."""
    passed = check_answer(prompt, answer).values()
    return sum(passed) / len(passed) if passed else None


# --- the checks -------------------------------------------------------------------------------------------------------


def gives_an_answer(answer: str, accepted: Sequence[str]) -> bool:
    """Whether one of the accepted answers stands in it as whole words, case, width and kind of hyphen aside.

    A number must be the whole number: 8 is not in 18, 8.5, 8,000 or -8, but in 8.0 and 8%.
    """
    text = _normalised(answer)
    return any(re.search(_as_pattern(item), text) for item in map(_normalised, accepted) if item)


def keeps_to_words(answer: str, limit: int) -> bool:
    """Whether it has at most so many words."""
    return len(_words(answer)) <= limit


def has_format(answer: str, name: str) -> bool:
    """Whether it has the format of that name in `FORMATS`."""
    return FORMATS[name](answer)


def has_items(answer: str, count: int) -> bool:
    """Whether it has exactly so many items: of a JSON array or object, else of the outermost list."""
    value = _json_value(answer)
    return count == (len(outermost_list(answer)) if value is None else len(value))


def includes_all(answer: str, terms: Sequence[str]) -> bool:
    """Whether every term stands in it, case aside; as a whole word where it is made of letters alone."""
    text = _normalised(answer)
    return all(_includes(text, _normalised(term)) for term in terms)


def is_bulleted(answer: str) -> bool:
    """Whether its outermost list has bullets; other text may stand around it."""
    items = outermost_list(answer)
    return bool(items) and items[0].number is None


def is_numbered(answer: str) -> bool:
    """Whether its outermost list is numbered 1, 2, 3 …; other text may stand around it."""
    numbers = [item.number for item in outermost_list(answer)]
    return bool(numbers) and numbers == list(range(1, len(numbers) + 1))


def is_one_sentence(answer: str) -> bool:
    """Whether it is one sentence in one paragraph; the full stop may be missing."""
    return len(sentences(answer)) == 1


def is_json(answer: str) -> bool:
    """Whether it is a JSON array or object and nothing else, with or without a code fence around it."""
    return _json_value(answer) is not None


FORMATS: dict[str, Callable[[str], bool]] = {
    "bullets": is_bulleted,
    "numbered": is_numbered,
    "one_sentence": is_one_sentence,
    "json": is_json,
}

CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "answers": gives_an_answer,
    "max_words": keeps_to_words,
    "format": has_format,
    "n_items": has_items,
    "must_include": includes_all,
}


# --- what a prompt wants ----------------------------------------------------------------------------------------------

_Count = Annotated[StrictInt, Field(gt=0)]
_Term = Annotated[StrictStr, Field(pattern=r"\S")]

_WANTED: dict[str, TypeAdapter[Any]] = {
    "max_words": TypeAdapter(_Count),
    "format": TypeAdapter(StrictStr),
    "n_items": TypeAdapter(_Count),
    "must_include": TypeAdapter(list[_Term]),
}


def _wanted(prompt: Prompt) -> dict[str, Any]:
    """Check → what it wants; empty lists want nothing."""
    wanted: dict[str, Any] = {"answers": [item for item in prompt.answers if item.strip()]}
    for name, value in prompt.checks.items():
        if name not in _WANTED:
            raise DataError(f"prompt '{prompt.id}': check '{name}' is unknown{suggestion(name, _WANTED)}")
        wanted[name] = _validated(value, name, f"prompt '{prompt.id}': check '{name}'")
    return {name: value for name, value in wanted.items() if value != []}


def _validated(value: Any, name: str, where: str) -> Any:
    try:
        valid = _WANTED[name].validate_python(value)
    except ValidationError as error:
        raise DataError(f"{where} is {value!r}: {error.errors()[0]['msg']}") from None
    if name == "format" and valid not in FORMATS:
        raise DataError(f"{where} is '{valid}', which is unknown{suggestion(valid, FORMATS)}")
    return valid


# --- words and numbers ------------------------------------------------------------------------------------------------

_HYPHENS = str.maketrans(dict.fromkeys("‐‑‒–—−", "-") | dict.fromkeys("‘’ʼ", "'"))


def _normalised(text: str) -> str:
    """In lower case, with one kind of hyphen, apostrophe and blank; CO₂ is co2."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().translate(_HYPHENS).split())


def _as_pattern(item: str) -> str:
    """A regular expression of an accepted answer as whole words, or a whole number."""
    before = r"(?<!\d[.,])(?<!\W-)(?<!^-)" if item[0].isdecimal() else ""
    after = r"(?!,\d)(?!\.\d*[1-9])" if item[-1].isdecimal() else ""
    return rf"{before}(?<!\w){re.escape(item)}(?!\w){after}"


def _includes(text: str, term: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(term)}(?!\w)", text) is not None if term.isalpha() else term in text


def _words(text: str) -> list[str]:
    """What stands between white space and holds a letter or a digit, so no bullets and dashes."""
    return [token for token in text.split() if any(char.isalnum() for char in token)]


# --- lists ------------------------------------------------------------------------------------------------------------

_BULLET = re.compile(r"[-*+•‣◦▪●·–][ \t]+\S")
_NUMBER = re.compile(r"(?:#{1,6} +)?(?:\*\*|__)?\(?(?:step +)?(\d{1,3})[.):](?:\*\*|__)?(?:[ \t]+\S|[^\W\d])", re.I)


def list_items(text: str) -> list[ListItem]:
    """The lines that begin with a bullet or a number (`1.`, `1)`, `(1)`, `**1.**`, `Step 1:`), at any depth."""
    items = []
    for index, line in enumerate(text.split("\n")):
        rest = line.lstrip()
        indent = len(line.expandtabs()) - len(line.expandtabs().lstrip())
        if _BULLET.match(rest):
            items.append(ListItem(indent, None, index))
        elif found := _NUMBER.match(rest):
            items.append(ListItem(indent, int(found.group(1)), index))
    return items


def outermost_list(text: str) -> list[ListItem]:
    """The items that are indented least (a blank more or less is a slip) and marked as the first of them."""
    items = list_items(text)
    least = min((item.indent for item in items), default=0)
    outer = [item for item in items if item.indent - least < 2]
    return [item for item in outer if (item.number is None) == (outer[0].number is None)]


# --- sentences --------------------------------------------------------------------------------------------------------

_ABBREVIATIONS = {"mr.", "mrs.", "ms.", "dr.", "prof.", "st.", "vs.", "cf.", "approx."}
_OPENING, _CLOSING = "\"'“‘([*_", "\"'”’)]*_"
_BLANKS = re.compile(r"\s*")


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with the white space after it: joined they are the text. None where no words are.

    A paragraph and an item of a list end a sentence, with or without a full stop; a line does not.
    """
    starts, offset = [], 0
    for paragraph in _paragraphs(text):
        starts += [offset + start for start in _sentence_starts(paragraph)]
        offset += len(paragraph)
    return [text[start:end] for start, end in pairwise([0, *starts[1:], len(text)])] if starts else []


def _paragraphs(text: str) -> list[str]:
    """Parts of a text between blank lines; every item of a list is one, too."""
    starts = {item.line for item in list_items(text)}
    paragraphs = [""]
    for index, line in enumerate(text.split("\n")):
        if index in starts or not line.strip():
            paragraphs.append("")
        paragraphs[-1] += f"{line}\n"
    return paragraphs


def _sentence_starts(paragraph: str) -> list[int]:
    """Where the first sentence begins and, after the full stop of each but the last, the next."""
    tokens = [found for found in re.finditer(r"\S+", paragraph) if _words(found.group())]
    text_start = _after_number(paragraph)
    ends = [
        one.end()
        for one, following in pairwise(tokens)
        if one.start() >= text_start and _ends_sentence(one.group(), following.group())
    ]
    blanks = [_BLANKS.match(paragraph, end) for end in [0, *ends]]
    return [found.end() for found in blanks if found] if tokens else []


def _after_number(paragraph: str) -> int:
    """The index behind the number of a numbered item, whose full stop ends nothing; 0 for any other paragraph."""
    rest = paragraph.lstrip()
    found = _NUMBER.match(rest)
    return len(paragraph) - len(rest) + found.end(1) if found else 0


def _ends_sentence(token: str, following: str) -> bool:
    """By its full stop, unless that is one of an abbreviation, or the next word goes on in lower case."""
    bare = token.rstrip(_CLOSING).lstrip(_OPENING)
    if not bare.endswith((".", "!", "?", "…")) or following.lstrip(_OPENING)[:1].islower():
        return False
    # Initials (J. R.) and what is written like them (e.g., U.S.).
    return bare.lower() not in _ABBREVIATIONS and not re.fullmatch(r"(?:[A-Za-z]\.)+", bare)


# --- JSON -------------------------------------------------------------------------------------------------------------

_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL | re.IGNORECASE)


def _json_value(text: str) -> list[Any] | Mapping[str, Any] | None:
    """The array or object that a text is; None for anything else, also for a number or a string alone."""
    fenced = _FENCED.fullmatch(text.strip())
    try:
        value = json.loads(fenced.group(1) if fenced else text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list | dict) else None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
