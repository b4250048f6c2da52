"""The text of single tokens, written beside the completions so that a report can show them without the model.

A piece is `raw_bytes.decode("utf-8", "surrogateescape")`: a byte that is no whole character stands as one code point
U+DC80 … U+DCFF. Not here: joining pieces to characters (the report's affair).
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def token_pieces(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> dict[int, str]:
    """Id → piece for every id that the tokenizer knows, by id."""
    names = {index: tokenizer.convert_ids_to_tokens(index) for index in sorted(set(ids))}
    added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    kinds = frozenset(_decoder_kinds(tokenizer))
    return {index: added.get(index) or piece_of(name, kinds) for index, name in names.items() if isinstance(name, str)}


def piece_of(name: str, kinds: frozenset[str]) -> str:
    """The piece behind a token's name, for a tokenizer with decoders of these kinds."""
    if "ByteLevel" in kinds and all(char in _BYTE_OF for char in name):
        return bytes(_BYTE_OF[char] for char in name).decode("utf-8", "surrogateescape")
    if "ByteFallback" in kinds and (match := _BYTE_TOKEN.fullmatch(name)):
        return bytes([int(match[1], 16)]).decode("utf-8", "surrogateescape")
    return name.replace("▁", " ") if kinds & {"Metaspace", "Replace"} else name


def _stand_ins() -> dict[str, int]:
    """The printable character that byte-level tokenizers write for each byte (GPT-2's table), to the byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _stand_ins()


def _decoder_kinds(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        yield from _kinds_in(json.loads(backend.to_str()).get("decoder"))


def _kinds_in(decoder: Any) -> Iterator[str]:
    if isinstance(decoder, dict):
        yield str(decoder.get("type"))
        for inner in decoder.get("decoders", []):
            yield from _kinds_in(inner)
