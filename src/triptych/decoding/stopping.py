"""When a completion ends: EOS, repetition, an echoed prompt marker, length; checked in this order after each token."""

from collections import Counter
from collections.abc import Sequence
from copy import copy

from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedTokenizerBase

from triptych.data import MARKERS
from triptych.records import StopReason


class Stopping(BaseModel):
    """The stop rules; the defaults are the paper's (table 1)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    block: int | None = Field(default=3, ge=1)
    """Length in tokens of the n-grams that are counted for repetition; None turns the rule off."""
    threshold: int = Field(default=4, ge=1)
    """An n-gram may occur so often in a completion; once more ends it."""
    markers: tuple[str, ...] = MARKERS
    """An echo of one of these ends the completion and is cut off its text."""


class StopRules:
    """The rules bound to one model: which tokens end a text, and which can complete a marker."""

    def __init__(
        self, stopping: Stopping, tokenizer: PreTrainedTokenizerBase, eos_ids: frozenset[int], max_new_tokens: int
    ) -> None:
        self.stopping = stopping
        self.eos_ids = eos_ids
        self.max_new_tokens = max_new_tokens
        self._tokenizer = tokenizer
        # A token may be no more than a byte.
        self._window = max((len(marker.encode()) for marker in stopping.markers), default=0) + 4
        self._completing = _completing_tokens(tokenizer, stopping.markers)

    def limited(self, max_new_tokens: int) -> "StopRules":
        """The same rules with another limit; what was worked out about the tokenizer is shared."""
        other = copy(self)
        other.max_new_tokens = max_new_tokens
        return other

    def echoes_marker(self, ids: Sequence[int]) -> bool:
        """Whether the text of `ids`, which did not hold a marker before its last token, does now."""
        if ids[-1] not in self._completing:
            return False
        tail = self._tokenizer.decode(list(ids[-self._window :]), skip_special_tokens=False)
        return any(marker in tail for marker in self.stopping.markers)

    def texts(self, ids: Sequence[int]) -> tuple[str, str]:
        """The raw text of a completion without its EOS, and the post-processed one: cut before a marker, stripped."""
        raw = str(self._tokenizer.decode([i for i in ids if i not in self.eos_ids], skip_special_tokens=True))
        return raw, postprocess(raw, self.stopping.markers)


class Monitor:
    """Watches one completion grow."""

    __slots__ = ("_counts", "_rules", "ids")

    def __init__(self, rules: StopRules, ids: list[int] | None = None, counts: Counter[tuple[int, ...]] | None = None):
        self._rules = rules
        self.ids: list[int] = ids if ids is not None else []
        self._counts: Counter[tuple[int, ...]] = counts if counts is not None else Counter()

    def copy(self) -> "Monitor":
        """An independent copy, for a beam that branches."""
        return Monitor(self._rules, self.ids.copy(), self._counts.copy())

    def push(self, token: int) -> StopReason | None:
        """Appends a token; the reason to stop after it, or None."""
        rules, ids = self._rules, self.ids
        ids.append(token)
        if token in rules.eos_ids:
            return "eos"
        block = rules.stopping.block
        if block is not None and len(ids) >= block:
            gram = tuple(ids[-block:])
            count = self._counts[gram] + 1
            self._counts[gram] = count
            if count > rules.stopping.threshold:
                return "repeat"
        if rules.echoes_marker(ids):
            return "marker"
        return "length" if len(ids) >= rules.max_new_tokens else None


def postprocess(text: str, markers: Sequence[str]) -> str:
    """`text` cut before the first marker, without white space at its ends."""
    cut = min((at for marker in markers if (at := text.find(marker)) >= 0), default=len(text))
    return text[:cut].strip()


def _completing_tokens(tokenizer: PreTrainedTokenizerBase, markers: Sequence[str]) -> frozenset[int]:
    """Tokens after which a marker may just have been completed: decoding after every token would cost milliseconds.

    A token qualifies if its text contains a marker or begins with some end of one, or if it holds bytes of a character
    that other tokens complete and a marker has such characters.
    """
    if not markers:
        return frozenset()
    ends = {marker[at:] for marker in markers for at in range(len(marker))}
    by_first: dict[str, list[str]] = {}
    for end in ends:
        by_first.setdefault(end[0], []).append(end)
    split = not all(marker.isascii() for marker in markers)
    found = set()
    for token, piece in enumerate(tokenizer.batch_decode([[i] for i in range(len(tokenizer))])):
        if split and "\N{REPLACEMENT CHARACTER}" in piece:
            found.add(token)
        # Some tokenizers drop a leading space when a token is decoded alone: try the text with and without.
        for text in (piece, " " + piece):
            if any(text.startswith(end) for end in by_first.get(text[:1], ())) or any(m in text for m in markers):
                found.add(token)
    return frozenset(found)
