"""The generic path: any causal language model of transformers that keeps a key/value cache, on any device.

Rows of different lengths share one cache by being aligned at their ends: each step appends one column for all, a mask
hides what lies before a row's beginning, and position ids count from there.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import DynamicCache

from triptych.decoding.backends.base import Backend, Prefix, Slots, StepOutput, without_cache
from triptych.models import LanguageModel

_PREFILL_TOKENS = 4096


class _Layers:
    """Keys and values of some rows in every layer: [rows, heads, t, D] each."""

    def __init__(self, keys: list[Tensor], values: list[Tensor]) -> None:
        self.keys = keys
        self.values = values


class GenericBackend(Backend):
    """A model driven through its own forward pass."""

    path = "generic"

    def __init__(self, lm: LanguageModel, *, slots: int, max_new_tokens: int, prefix_tokens: int) -> None:
        self.slots = slots
        self.vocabulary = lm.vocab_size
        self._model = lm.model
        self._spec = lm.spec
        self._device = lm.device
        self._room = prefix_tokens
        self._prefixes: dict[int, _Layers] = {}
        self._next_handle = 0
        self._lengths = np.zeros(slots, np.int64)
        # Where each slot's cache is: a row of the current batch, or (until its first step) a prefix.
        self._row: dict[int, int] = {}
        self._fresh: dict[int, int] = {}
        self._batch = _Layers([], [])
        self._order: list[int] = []

    def room_for(self, tokens: int) -> bool:
        return tokens <= self._room

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], *, keep_hidden: bool) -> list[Prefix]:
        prefixes: list[Prefix | None] = [None] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        while order:
            longest = len(prompts[order[-1]])
            batch = order[-max(1, _PREFILL_TOKENS // longest) :]
            del order[-len(batch) :]
            for i, prefix in zip(batch, self._prefill([prompts[i] for i in batch], keep_hidden), strict=True):
                prefixes[i] = prefix
        return [prefix for prefix in prefixes if prefix is not None]

    def release(self, prefix: Prefix) -> None:
        del self._prefixes[prefix.handle]
        self._room += prefix.length

    def admit(self, prefix: Prefix, slot: int) -> None:
        self._row.pop(slot, None)
        self._fresh[slot] = prefix.handle
        self._lengths[slot] = prefix.length

    @torch.inference_mode()
    def step(self, slots: Slots, tokens: npt.NDArray[np.int64]) -> StepOutput:
        self._arrange([int(slot) for slot in slots])
        lengths = torch.from_numpy(self._lengths[slots]).to(self._device)
        width = self._batch.keys[0].shape[2]
        columns = torch.arange(width + 1, device=self._device)
        output = self._model(
            input_ids=torch.from_numpy(tokens)[:, None].to(self._device),
            attention_mask=(columns >= width - lengths[:, None]).long(),
            position_ids=lengths[:, None],
            past_key_values=_cache(self._batch),
            use_cache=True,
            output_hidden_states=True,
        )
        self._batch = self._layers(output.past_key_values)
        self._lengths[slots] += 1
        return StepOutput(output.logits[:, -1], output.hidden_states[-1][:, -1])

    def copy(self, source: Slots, target: Slots, start: npt.NDArray[np.int64]) -> None:
        for a, b in zip(source.tolist(), target.tolist(), strict=True):
            self._fresh.pop(b, None)
            self._row[b] = self._row[a]
            self._lengths[b] = self._lengths[a]

    def _arrange(self, slots: list[int]) -> None:
        """Makes the batch hold exactly `slots`, in their order, and no column that all of them hide."""
        old = [self._row.get(slot) for slot in slots]
        if old == list(range(len(self._order))) and len(old) == len(self._order) and not self._fresh:
            return
        width = int(self._lengths[slots].max())
        kept = [i for i, slot in enumerate(slots) if slot not in self._fresh]
        sources = torch.tensor([self._row[slots[i]] for i in kept], dtype=torch.int64, device=self._device)
        new = {i: self._prefixes[self._fresh[slot]] for i, slot in enumerate(slots) if slot in self._fresh}
        layers = len(next(iter(self._prefixes.values())).keys) if new else len(self._batch.keys)
        kinds = ([], []) if not kept else (self._batch.keys, self._batch.values)
        keys, values = (
            [
                _gathered(
                    kinds[kind][layer] if kept else None,
                    sources,
                    kept,
                    {i: (one.keys, one.values)[kind][layer] for i, one in new.items()},
                    (len(slots), width),
                )
                for layer in range(layers)
            ]
            for kind in (0, 1)
        )
        self._batch = _Layers(keys, values)
        self._order = slots
        self._row = {slot: i for i, slot in enumerate(slots)}
        self._fresh = {slot: handle for slot, handle in self._fresh.items() if slot not in self._row}

    def _prefill(self, prompts: Sequence[Sequence[int]], keep_hidden: bool) -> list[Prefix]:
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self._device)
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True)
        mask = torch.arange(ids.shape[1], device=self._device) < lengths[:, None]
        output = self._model(
            input_ids=ids.to(self._device),
            attention_mask=mask.long(),
            # The model's own cache would drop what lies behind a sliding window; the mask hides it just as well.
            past_key_values=DynamicCache(),
            use_cache=True,
            output_hidden_states=True,
        )
        layers = self._layers(output.past_key_values)
        prefixes = []
        for i, prompt in enumerate(prompts):
            m = len(prompt)
            handle, self._next_handle = self._next_handle, self._next_handle + 1
            self._prefixes[handle] = _Layers(
                [k[i, :, :m].clone() for k in layers.keys], [v[i, :, :m].clone() for v in layers.values]
            )
            self._room -= m
            hidden = output.hidden_states[-1][i, :m].clone() if keep_hidden else None
            prefixes.append(Prefix(handle, m, output.logits[i, m - 1].clone(), hidden))
        return prefixes

    def _layers(self, cache: object) -> _Layers:
        layers = getattr(cache, "layers", None)
        if not layers or not all(isinstance(getattr(layer, "keys", None), Tensor) for layer in layers):
            raise without_cache(self._spec)
        return _Layers([layer.keys for layer in layers], [layer.values for layer in layers])


def _cache(layers: _Layers) -> DynamicCache:
    cache = DynamicCache()
    for i, (k, v) in enumerate(zip(layers.keys, layers.values, strict=True)):
        cache.update(k, v, i)
    return cache


def _gathered(
    batch: Tensor | None, sources: Tensor, kept: list[int], new: dict[int, Tensor], shape: tuple[int, int]
) -> Tensor:
    """Rows of `batch` and prefixes [heads, m, D], aligned at their ends: [rows, heads, width, D]."""
    like = batch if batch is not None else next(iter(new.values()))
    rows, width = shape
    out = like.new_zeros(rows, like.shape[-3], width, like.shape[-1])
    if batch is not None:
        held = batch[sources, :, max(0, batch.shape[2] - width) :]
        out[torch.tensor(kept, device=out.device), :, width - held.shape[2] :] = held
    for i, prefix in new.items():
        out[i, :, width - prefix.shape[1] :] = prefix
    return out
