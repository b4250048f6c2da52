"""The fused CPU path for the Llama family: stacked and packed weights, one attention kernel a layer, shared prompts.

Against the module graph of transformers this merges the query, key and value projections and the gate and up
projections, adds LoRA beside the products as training does, packs weights into the layout of the matrix library once,
leaves each prompt's cache where the prefill put it (rows read it from there, so that a hundred continuations of a
prompt share its bytes), and never pads: every row attends to exactly its own tokens. It is *not* a general model
runner: anything it does not know goes to the generic path.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from triptych.decoding import kernels
from triptych.decoding.backends.base import Backend, Prefix, Slots, StepOutput
from triptych.models import LanguageModel
from triptych.models.llama import (
    Linear,
    add_low_rank,
    attend_to_prompt,
    base_weight,
    has_plain_adapters,
    head_dim,
    is_plain_llama,
    packed_linear,
    read_loras,
    rotary_table,
    steady,
)
from triptych.simd import as_array

_PREFILL_TOKENS = 4096


class _Layer(NamedTuple):
    input_norm: Tensor
    qkv: Linear
    output: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


def supports(lm: LanguageModel) -> bool:
    """Whether the fused path can run this model: a plain Llama on CPU in fp32 or bf16, alone or with LoRA."""
    is_known = is_plain_llama(lm.base.config) and has_plain_adapters(lm.base)
    return is_known and lm.device.type == "cpu" and lm.dtype in (torch.float32, torch.bfloat16)


class FusedBackend(Backend):
    """Llama on CPU through packed weights and compiled kernels.

    Args:
        lm: a model that `supports` accepts.
        slots: rows that can be decoded at once.
        max_new_tokens: own tokens a row can hold.
        prefix_tokens: prompt tokens, over all prompts, that can be held at once.
    """

    path = "fused"

    def __init__(self, lm: LanguageModel, *, slots: int, max_new_tokens: int, prefix_tokens: int) -> None:
        base = lm.base
        config = base.config
        self.slots = slots
        self._dtype = lm.dtype
        self._kv_heads = config.num_key_value_heads
        self._head_dim = head_dim(config)
        self._group = (0,) * (config.num_attention_heads // self._kv_heads)
        self._eps = config.rms_norm_eps
        self._embedding = base.model.embed_tokens.weight
        self._layers = [_read_layer(layer) for layer in base.model.layers]
        self._norm = base.model.norm.weight
        self.vocabulary = len(base_weight(base.lm_head))
        self._head = _product(base.lm_head)
        self._cos, self._sin = rotary_table(base.model, lm.context_length)
        dtype = np.dtype(np.uint16 if lm.dtype == torch.bfloat16 else np.float32)
        layers, kv, dim = len(self._layers), self._kv_heads, self._head_dim
        # NumPy asks for huge pages where torch's allocator does not: half the time of an attention call. Pages that
        # no row ever reaches are never touched, so they cost no memory.
        self._keys = np.empty((layers, slots, kv, max_new_tokens, dim), dtype)
        self._values = np.empty((layers, slots, kv, max_new_tokens, dim), dtype)
        self._prefix_keys = np.empty((layers, kv, prefix_tokens, dim), dtype)
        self._prefix_values = np.empty((layers, kv, prefix_tokens, dim), dtype)
        self._arena = Arena(prefix_tokens)
        self._starts: dict[int, tuple[int, int]] = {}
        self._next_handle = 0
        self._lengths = np.zeros(slots, np.int64)
        self._prefix_start = np.zeros(slots, np.int64)
        self._prefix_length = np.zeros(slots, np.int64)
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))

    @staticmethod
    def bytes_per_token(lm: LanguageModel) -> int:
        """Cache bytes of one token: keys and values, all layers."""
        config = lm.base.config
        kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return int(2 * config.num_hidden_layers * kv_heads * head_dim(config) * lm.dtype.itemsize)

    def room_for(self, tokens: int) -> bool:
        return self._arena.fits(tokens)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], *, keep_hidden: bool) -> list[Prefix]:
        prefixes: list[Prefix] = []
        batch: list[Sequence[int]] = []
        for i, prompt in enumerate(prompts):
            batch.append(prompt)
            if i + 1 == len(prompts) or sum(map(len, batch)) + len(prompts[i + 1]) > _PREFILL_TOKENS:
                prefixes += self._prefill(batch, keep_hidden)
                batch = []
        return prefixes

    def release(self, prefix: Prefix) -> None:
        self._arena.free(*self._starts.pop(prefix.handle))

    def admit(self, prefix: Prefix, slot: int) -> None:
        self._lengths[slot] = 0
        self._prefix_start[slot], self._prefix_length[slot] = self._starts[prefix.handle]

    @torch.inference_mode()
    def step(self, slots: Slots, tokens: npt.NDArray[np.int64]) -> StepOutput:
        lengths = self._lengths[slots]
        starts, prefix_lengths = self._prefix_start[slots], self._prefix_length[slots]
        positions = torch.from_numpy(prefix_lengths + lengths)
        cos, sin = self._cos[positions].numpy(), self._sin[positions].numpy()
        attended = torch.empty((len(slots), len(self._group) * self._kv_heads * self._head_dim), dtype=self._dtype)
        each = np.arange(len(slots) + 1)

        def attend(layer: int, qkv: Tensor) -> Tensor:
            kernels.decode_attention(
                as_array(qkv),
                cos,
                sin,
                self._keys[layer],
                self._values[layer],
                each,
                slots,
                lengths,
                self._prefix_keys[layer],
                self._prefix_values[layer],
                starts,
                prefix_lengths,
                self._group,
                as_array(attended),
            )
            return attended

        hidden = self._run(torch.from_numpy(tokens), attend)
        self._lengths[slots] += 1
        return StepOutput(self._head(hidden), hidden)

    def copy(self, source: Slots, target: Slots, start: npt.NDArray[np.int64]) -> None:
        if len(source):
            kernels.copy_slots(self._keys, self._values, source, target, start, self._lengths[source])
            self._lengths[target] = self._lengths[source]

    def _run(self, tokens: Tensor, attend: Callable[[int, Tensor], Tensor]) -> Tensor:
        """What the head reads of each token, [n, H]; `attend` takes a layer's number and its qkv.

        The residual stream is float32, as in training.
        """
        x = self._embedding[tokens].float()
        normed = torch.empty(x.shape, dtype=self._dtype)
        self._add_norm(x, torch.zeros_like(normed), self._layers[0].input_norm, normed)
        following = [layer.input_norm for layer in self._layers[1:]] + [self._norm]
        for i, (layer, next_norm) in enumerate(zip(self._layers, following, strict=True)):
            self._add_norm(x, layer.output(attend(i, layer.qkv(normed))), layer.mlp_norm, normed)
            self._add_norm(x, self._gated_mlp(layer, normed), next_norm, normed)
        return normed

    def _add_norm(self, x: Tensor, update: Tensor, weight: Tensor, out: Tensor) -> None:
        arrays = (as_array(tensor) for tensor in (x, update, weight))
        kernels.add_rms_norm(*arrays, self._eps, as_array(out))

    def _gated_mlp(self, layer: _Layer, normed: Tensor) -> Tensor:
        """The feed-forward block of [n, H]."""
        gate_up = layer.gate_up(normed)
        gated = torch.empty((len(gate_up), gate_up.shape[1] // 2), dtype=gate_up.dtype)
        kernels.gated_silu(as_array(gate_up), as_array(gated))
        return layer.down(gated)

    def _prefill(self, prompts: Sequence[Sequence[int]], keep_hidden: bool) -> list[Prefix]:
        """Reads prompts end to end in one [tokens, H] batch, without padding; each attends to itself alone.

        So what is read of a prompt does not depend on the prompts beside it, to the last bit even in bf16: the rows of
        a matrix product do not, and attention runs prompt by prompt.
        """
        lengths = [len(prompt) for prompt in prompts]
        handles = [self._allocate(length) for length in lengths]

        def attend(layer: int, qkv: Tensor) -> Tensor:
            parts = zip(handles, qkv.split(lengths), strict=True)
            return torch.cat([self._attend_to_itself(layer, handle, part) for handle, part in parts])

        states = self._run(torch.tensor([token for prompt in prompts for token in prompt]), attend)
        hidden = states.split(lengths)
        logits = self._head(torch.stack([rows[-1] for rows in hidden]))
        return [
            Prefix(handle, m, logits[i], hidden[i].clone() if keep_hidden else None)
            for i, (handle, m) in enumerate(zip(handles, lengths, strict=True))
        ]

    def _attend_to_itself(self, layer: int, handle: int, qkv: Tensor) -> Tensor:
        """Causal attention of one prompt, [m, H·D]; keeps its keys and values in the arena."""
        start, m = self._starts[handle]
        keys, values, attended = attend_to_prompt(qkv, self._cos[:m], self._sin[:m], self._kv_heads)
        self._prefix_keys[layer, :, start : start + m] = as_array(keys)
        self._prefix_values[layer, :, start : start + m] = as_array(values)
        return attended

    def _allocate(self, length: int) -> int:
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        self._starts[handle] = (self._arena.allocate(length), length)
        return handle


class Arena:
    """First-fit allocation of ranges of `size` tokens; frees merge with their neighbours."""

    def __init__(self, size: int) -> None:
        self._free = [(0, size)]

    def fits(self, length: int) -> bool:
        """Whether one free range is long enough."""
        return any(size >= length for _, size in self._free)

    def allocate(self, length: int) -> int:
        """The start of a range of `length` tokens; call `fits` first."""
        index = next(i for i, (_, size) in enumerate(self._free) if size >= length)
        start, size = self._free[index]
        self._free[index : index + 1] = [(start + length, size - length)] if size > length else []
        return start

    def free(self, start: int, length: int) -> None:
        """Gives a range back."""
        merged: list[tuple[int, int]] = []
        for low, size in sorted([*self._free, (start, length)]):
            if merged and sum(merged[-1]) == low:
                merged[-1] = (merged[-1][0], merged[-1][1] + size)
            else:
                merged.append((low, size))
        self._free = merged


# `Any`: transformers' modules are not typed, and these two functions are all that looks inside them.
def _read_layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        input_norm=layer.input_layernorm.weight,
        qkv=_product(attention.q_proj, attention.k_proj, attention.v_proj),
        output=_product(attention.o_proj),
        mlp_norm=layer.post_attention_layernorm.weight,
        gate_up=_product(mlp.gate_proj, mlp.up_proj),
        down=_product(mlp.down_proj),
    )


def _product(*modules: Any) -> Linear:
    """Linear modules that read one input, as one product, with their LoRA beside it."""
    weights = [base_weight(module) for module in modules]
    starts = [sum(map(len, weights[:i])) for i in range(len(weights))]
    loras = [lora for module, at in zip(modules, starts, strict=True) for lora in read_loras(module, at) or ()]
    product = packed_linear(*weights)

    def apply(x: Tensor) -> Tensor:
        out = product(x)
        add_low_rank(out, loras, x)
        return out

    return steady(apply if loras else product)
