"""Token pieces: the text of single tokens, and their joining to whole characters.

A report must be rebuildable from the run directory alone, without the model; so the panel writes
`decoding/pieces.json`, `{token id: piece}` for every id that occurs in the run. A byte-level token can hold part of a
character: its piece is `raw_bytes.decode("utf-8", "surrogateescape")`, which keeps whole characters as they are and
every stray byte as one code point U+DC80 … U+DCFF (in JSON: `\\udc80`). Here the bytes are put together again.
"""

import codecs
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """Neighbouring tokens that together make whole characters: usually one token."""

    text: str
    logprobs: tuple[float, ...]
    """Nats, one a token."""
    known: bool
    """False where the run recorded no piece for the token."""


def piece_bytes(piece: str) -> bytes:
    """The bytes of a piece; a surrogate that stands for no byte becomes U+FFFD, as any decoder would show it."""
    try:
        return piece.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return piece.encode("utf-8", "replace")


def join_spans(token_ids: Sequence[int], logprobs: Sequence[float], pieces: Mapping[int, str]) -> list[Span]:
    """Tokens as spans of whole characters, in order.

    A token whose bytes end inside a character is joined with the next ones until the character is whole; bytes that
    never become one are shown as U+FFFD.
    """
    spans: list[Span] = []
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = ""
    group: list[float] = []
    for token_id, logprob in zip(token_ids, logprobs, strict=True):
        piece = pieces.get(token_id)
        if piece is None:
            spans += _flush(decoder, text, group)
            spans.append(Span(f"⟨{token_id}⟩", (logprob,), known=False))
            text, group = "", []
            continue
        text += decoder.decode(piece_bytes(piece))
        group.append(logprob)
        if not decoder.getstate()[0]:  # no byte is waiting for the rest of its character
            spans.append(Span(text, tuple(group), known=True))
            text, group = "", []
    return spans + _flush(decoder, text, group)


def _flush(decoder: codecs.IncrementalDecoder, text: str, group: Sequence[float]) -> list[Span]:
    """What is left of an unfinished character, and the decoder ready for the next."""
    rest = text + decoder.decode(b"", final=True)
    decoder.reset()
    return [Span(rest, tuple(group), known=True)] if group else []
