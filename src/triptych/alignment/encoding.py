"""From texts to token ids: pairs and prompts as a model reads them, and what does not fit.

A decoder continues a prompt, and an answer ends with EOS, so that it learns to stop. What is longer than `max_length`
loses the end of its answers, EOS included (as TRL's `keep_start` does); a prompt that leaves no room for an answer is
left out and counted. An encoder reads prompt and answer as its tokenizer joins two texts, whatever is cut off between.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from triptych.alignment.packing import Group
from triptych.data.pair_checks import PairLengths
from triptych.data.pairs import PreferencePair
from triptych.data.templates import encode_prompt, render_prompt
from triptych.errors import DataError
from triptych.records import Prompt

Template = Literal["auto", "chat", "alpaca", "paper", "plain"]
Kind = Literal["decoder", "encoder"]
"""Of a model that reads pairs: whether it continues a prompt, or looks at prompt and answer as a whole."""


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


def resolve_template(template: str, tokenizer: PreTrainedTokenizerBase, kind: Kind = "decoder") -> str:
    """`auto` is the model's own chat template where it has one, else Alpaca's; for an encoder, the plain text."""
    if template != "auto":
        return template
    if kind == "encoder":
        return "plain"
    return "chat" if tokenizer.chat_template else "alpaca"


def pair_prompt(
    pair: PreferencePair, template: Template, tokenizer: PreTrainedTokenizerBase, kind: Kind = "decoder"
) -> str:
    """The text that a model reads before the answer of a pair."""
    name = resolve_template(template, tokenizer, kind)
    if name == "chat" and pair.messages:
        messages: Any = [message.model_dump() for message in pair.messages]
        rendered: Any = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return str(rendered)
    text = pair.prompt if pair.is_finished else None
    return render_prompt(Prompt(id=pair.id, instruction=pair.prompt, prompt=text), name, tokenizer)


def encode_answer(text: str, tokenizer: PreTrainedTokenizerBase, *, is_truncated: bool = False) -> tuple[int, ...]:
    """An answer with its EOS; one that broke off has none."""
    eos: Any = tokenizer.eos_token_id
    ids: Any = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tuple(ids) if is_truncated else (*ids, eos)


class Read(NamedTuple):
    """A prompt and answers to it as token ids, before anything is cut."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    tail: tuple[int, ...] = ()
    """What closes every answer, and is never cut off."""

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return len(self.prompt) + max(map(len, self.answers)) + len(self.tail)

    def cut(self, max_length: int) -> Group | None:
        """With rows of at most `max_length` tokens; None where the prompt leaves no room for an answer."""
        room = max_length - len(self.prompt) - len(self.tail)
        return Group(self.prompt, tuple((*one[:room], *self.tail) for one in self.answers)) if room > 0 else None


def continued(
    prompt: str, answers: Sequence[str], tokenizer: PreTrainedTokenizerBase, truncated: Sequence[bool] | None = None
) -> Read:
    """As a decoder reads a rendered prompt and answers that go on from it; EOS follows those that are finished."""
    cut = [False] * len(answers) if truncated is None else truncated
    encoded = (encode_answer(one, tokenizer, is_truncated=is_cut) for one, is_cut in zip(answers, cut, strict=True))
    return Read(tuple(encode_prompt(prompt, tokenizer)), tuple(encoded))


def joined(
    prompt: str, answers: Sequence[str], tokenizer: PreTrainedTokenizerBase, truncated: Sequence[bool] | None = None
) -> Read:
    """As an encoder reads two texts: the tokenizer's own frame around them, split where the answer begins and ends.

    The frame closes finished and truncated answers alike: it says where a text ends, not that it is finished.
    """
    head: tuple[int, ...] = ()
    tail: tuple[int, ...] = ()
    found: list[tuple[int, ...]] = []
    for answer in answers:
        # A tokenizer takes an empty second text for none: some other one shows the frame.
        both: Any = tokenizer(prompt, answer or "a")
        ids, of = both["input_ids"], both.sequence_ids(0)
        own = [at for at, which in enumerate(of) if which == 1]
        start, stop = (own[0], own[-1] + 1) if own else (len(ids) - 1, len(ids) - 1)
        head, tail = tuple(ids[:start]), tuple(ids[stop:])
        found.append(tuple(ids[start:stop]) if answer else ())
    return Read(head, tuple(found), tail)


READERS: dict[Kind, Callable[..., Read]] = {
    "decoder": continued,
    "encoder": joined,
}


def encode_pairs(
    pairs: Sequence[PreferencePair],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    kind: Kind = "decoder",
) -> EncodedPairs:
    """Pairs in their order.

    Raises `DataError` where no pair is left.
    """
    encoded: list[EncodedPair] = []
    lengths: list[PairLengths] = []
    for pair in pairs:
        prompt = pair_prompt(pair, template, tokenizer, kind)
        read = READERS[kind](prompt, (pair.chosen, pair.rejected), tokenizer)
        chosen, rejected = (len(answer) + len(read.tail) for answer in read.answers)
        lengths.append(PairLengths(prompt=len(read.prompt), chosen=chosen, rejected=rejected))
        group = read.cut(max_length)
        if group is not None:
            encoded.append(EncodedPair(pair.id, group, read.longest > max_length))
    if pairs and not encoded:
        raise DataError(
            f"none of {len(pairs)} pairs leaves room for an answer within max_length = {max_length} tokens; raise it"
        )
    return EncodedPairs(encoded, len(pairs) - len(encoded), lengths)
