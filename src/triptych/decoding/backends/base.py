"""What the engine asks of a model: prompts read once, rows that append one token at a time, copies between rows.

A *prefix* is a prompt's cache, read once and shared by every row that continues it. A *slot* is a place for one row's
own tokens. A backend owns both; the engine only names them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from triptych.errors import ModelError
from triptych.models import LanguageModel

Slots = npt.NDArray[np.int64]


ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers whose state is keys and values, one of each a token."""


def require_cache(lm: LanguageModel) -> None:
    """Raises `ModelError` for a model that remembers something other than keys and values."""
    config = lm.base.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if not hasattr(config, "num_attention_heads") or kinds - ATTENTION:
        raise without_cache(lm.spec)


def without_cache(spec: str) -> ModelError:
    return ModelError(
        f"model '{spec}' keeps no key/value cache that can be shared between rows; choose a transformer that has "
        "attention in all its layers"
    )


class Prefix(NamedTuple):
    """A prompt that has been read."""

    handle: int
    length: int
    logits: Tensor
    """[v], of the prompt's last position, in the model's dtype."""
    hidden: Tensor | None
    """[m, h], last hidden states of all its positions; only where the backend was asked to keep them."""


class StepOutput(NamedTuple):
    """Result of one decoding step."""

    logits: Tensor
    """[n, v], in the model's dtype."""
    hidden: Tensor
    """[n, h], what the output head saw."""


class Backend(ABC):
    """A model with `slots` rows of at most `max_new_tokens` own tokens each."""

    slots: int
    vocabulary: int
    path: str
    """`fused` or `generic`: which implementation this is, for the records."""

    @abstractmethod
    def room_for(self, tokens: int) -> bool:
        """Whether a prompt of so many tokens fits beside those being continued."""

    @abstractmethod
    def prefill(self, prompts: Sequence[Sequence[int]], *, keep_hidden: bool) -> list[Prefix]:
        """Reads prompts together; their caches stay until `release`."""

    @abstractmethod
    def release(self, prefix: Prefix) -> None:
        """Forgets a prompt's cache; no slot continues it any more."""

    @abstractmethod
    def admit(self, prefix: Prefix, slot: int) -> None:
        """Makes an empty slot continue `prefix`."""

    @abstractmethod
    def step(self, slots: Slots, tokens: npt.NDArray[np.int64]) -> StepOutput:
        """Appends tokens[i] to slots[i] and returns what comes after it."""

    @abstractmethod
    def copy(self, source: Slots, target: Slots, start: npt.NDArray[np.int64]) -> None:
        """Makes target[i] equal to source[i]; they already agree before position start[i]. No source is a target."""
