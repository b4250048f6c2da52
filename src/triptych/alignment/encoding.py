"""From texts to token ids: pairs and prompts as a model reads them, and what does not fit.

An answer ends with EOS, so that a model learns to stop. What is longer than `max_length` loses the end of its answers,
EOS included (as TRL's `keep_start` does); a prompt that leaves no room for an answer is left out and counted.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from triptych.alignment.packing import Group
from triptych.data.pair_checks import PairLengths
from triptych.data.pairs import PreferencePair
from triptych.data.templates import encode_prompt, render_prompt
from triptych.errors import DataError
from triptych.records import Prompt

Template = Literal["auto", "chat", "alpaca", "paper"]


class EncodedPair(NamedTuple):
    """A pair as token ids."""

    id: str
    group: Group
    """The prompt with two completions: chosen, rejected."""
    is_truncated: bool


class EncodedPairs(NamedTuple):
    """What became of the pairs of a data set."""

    pairs: list[EncodedPair]
    n_without_room: int
    """Left out: their prompts alone fill `max_length`."""
    lengths: list[PairLengths]
    """Of all pairs, before anything is cut."""


def resolve_template(template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """`auto` is the model's own chat template where it has one, else Alpaca's."""
    if template != "auto":
        return template
    return "chat" if tokenizer.chat_template else "alpaca"


def pair_prompt(pair: PreferencePair, template: Template, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that a model reads before the answer of a pair."""
    name = resolve_template(template, tokenizer)
    if name == "chat" and pair.messages:
        messages: Any = [message.model_dump() for message in pair.messages]
        rendered: Any = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return str(rendered)
    text = pair.prompt if pair.is_finished else None
    return render_prompt(Prompt(id=pair.id, instruction=pair.prompt, prompt=text), name, tokenizer)


def encode_answer(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """An answer with its EOS."""
    eos: Any = tokenizer.eos_token_id
    ids: Any = tokenizer(text, add_special_tokens=False)["input_ids"]
    return (*ids, eos)


def encode_text(prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Group | None:
    """A rendered prompt with one answer, cut to `max_length`; None where the prompt leaves no room."""
    ids = tuple(encode_prompt(prompt, tokenizer))
    room = max_length - len(ids)
    return Group(ids, (encode_answer(answer, tokenizer)[:room],)) if room > 0 else None


def encode_pairs(
    pairs: Sequence[PreferencePair], template: Template, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> EncodedPairs:
    """Pairs in their order.

    Raises `DataError` where no pair is left.
    """
    encoded: list[EncodedPair] = []
    lengths: list[PairLengths] = []
    for pair in pairs:
        prompt = tuple(encode_prompt(pair_prompt(pair, template, tokenizer), tokenizer))
        chosen, rejected = (encode_answer(text, tokenizer) for text in (pair.chosen, pair.rejected))
        lengths.append(PairLengths(prompt=len(prompt), chosen=len(chosen), rejected=len(rejected)))
        room = max_length - len(prompt)
        if room > 0:
            cut = room < max(len(chosen), len(rejected))
            encoded.append(EncodedPair(pair.id, Group(prompt, (chosen[:room], rejected[:room])), cut))
    if pairs and not encoded:
        raise DataError(
            f"none of {len(pairs)} pairs leaves room for an answer within max_length = {max_length} tokens; raise it"
        )
    return EncodedPairs(encoded, len(pairs) - len(encoded), lengths)
