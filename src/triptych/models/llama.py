"""What the fused CPU paths, of decoding and of training, have in common about the Llama family.

What both compute is computed by the same code, so that the policy that writes is the one that is read, to the last bit
of its hidden states. Running a model is in `triptych.decoding.backends` and `triptych.alignment.backends`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Linear = Callable[[Tensor], Tensor]

MAX_POSITIONS = 1 << 17
_LOWEST, _HIGHEST = 64, 240
"""Rows of one matrix product. For fewer and for more the matrix library takes kernels that round differently (LOG.md,
2026-11-27): what a row gets must not depend on how many others there are."""

ROPE_TYPES = {"default", "linear", "llama3", "yarn"}  # the frequencies of these do not depend on the input's length


def is_plain_llama(config: Any) -> bool:
    """Whether a configuration is of the family that the fused paths know: no biases, SiLU, fixed rotary frequencies."""
    return (
        config.model_type == "llama"
        # Weights in 8 bit are not what these paths multiply with.
        and getattr(config, "quantization_config", None) is None
        and config.hidden_act == "silu"
        and not config.attention_bias
        and not config.mlp_bias
        and (config.rope_parameters or {}).get("rope_type", "default") in ROPE_TYPES
        and head_dim(config) % 4 == 0
    )


def head_dim(config: Any) -> int:
    """Width of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


class PackedLinear:
    """x → x · Wᵀ, with W packed once into the matrix library's own layout."""

    def __init__(self, weight: Tensor) -> None:
        # Kept also because the next tensor at its address would be taken for it.
        self._weight = weight
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight)

    def __call__(self, x: Tensor) -> Tensor:
        # A single row would take another kernel, which rounds differently: a row must not depend on its neighbours.
        rows = x if len(x) > 1 else x.repeat(2, 1)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, None, "none", [], "")
        return out[: len(x)]


_SHARED: WeakValueDictionary[tuple[int, int, torch.Size], PackedLinear] = WeakValueDictionary()
"""Products of frozen weights that are in use, by address, version and shape: training and its rollouts share them."""


def packed_linear(*weights: Tensor) -> Linear:
    """x → x · Wᵀ for the stacked weights, packed once into the matrix library's own layout where it has one.

    While such a product of frozen parameters is in use, another call for the same ones gets the same.
    """
    stacked = _stacked(weights)
    if stacked.dtype != torch.bfloat16 or not _packs():
        return lambda x: F.linear(x, stacked)
    if not all(isinstance(weight, nn.Parameter) and not weight.requires_grad for weight in weights):
        return PackedLinear(stacked)
    key = (stacked.data_ptr(), sum(weight._version for weight in weights), stacked.shape)
    found = _SHARED.get(key)
    if found is None:
        found = _SHARED[key] = PackedLinear(stacked)
    return found


def _stacked(weights: Sequence[Tensor]) -> Tensor:
    """The rows of all; without a copy where they lie one behind the other already."""
    first = weights[0].detach()
    if len(weights) == 1:
        return first
    ends = [weight.data_ptr() + weight.nbytes for weight in weights]
    if all(w.is_contiguous() for w in weights) and ends[:-1] == [weight.data_ptr() for weight in weights[1:]]:
        rows = sum(len(weight) for weight in weights)
        if first.storage_offset() * first.element_size() + rows * first[0].nbytes <= first.untyped_storage().nbytes():
            return first.as_strided((rows, first.shape[1]), first.stride())
    return torch.cat([weight.detach() for weight in weights])


def _packs() -> bool:
    """Whether this torch offers the packed products that its compiler emits; 25 % faster than plain ones in bf16."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Lora(NamedTuple):
    """A low-rank update x · Aᵀ · Bᵀ · scale of columns start … stop of a merged product."""

    name: str
    a: nn.Parameter
    b: nn.Parameter
    scale: float
    start: int
    stop: int


def add_low_rank(out: Tensor, loras: Sequence[Lora], x: Tensor) -> None:
    """Adds to a product [n, out], in place, what LoRA adds to it; x [n, in] is what the product read.

    In the dtype of x, factor by factor: decoding and training add the very same numbers. Merged into the weights, an
    update would be rounded to their steps, and a small one lost in them.
    """
    for lora in loras:
        low = F.linear(x, lora.a.detach().to(x.dtype))
        out[:, lora.start : lora.stop].add_(F.linear(low, lora.b.detach().to(x.dtype)), alpha=lora.scale)


def read_loras(module: Any, start: int = 0) -> list[Lora] | None:
    """The active plain LoRA of a linear module whose columns begin at `start`; None where an adapter is more than that.

    A module that no adapter is on, or whose adapters are off or merged, has none: [].
    """
    if not hasattr(module, "get_base_layer") or module.merged or module.disable_adapters:
        return []
    base = module.get_base_layer()
    if not hasattr(module, "lora_A") or not isinstance(base, nn.Linear):
        return None
    found: list[Lora] = []
    stop = start + base.weight.shape[0]
    for name in module.active_adapters:
        if name not in module.lora_A:
            continue
        a, b = module.lora_A[name], module.lora_B[name]
        if name in module.lora_variant or type(a) is not nn.Linear or type(b) is not nn.Linear or b.bias is not None:
            return None
        found.append(Lora(name, a.weight, b.weight, float(module.scaling[name]), start, stop))
    return found


def has_plain_adapters(model: nn.Module) -> bool:
    """Whether every adapter on a model is plain LoRA, which alone the fused paths know: not DoRA, not IA³."""
    modules = [*model.modules()]
    return not any(hasattr(module, "modules_to_save") for module in modules) and all(
        read_loras(module) is not None for module in modules
    )


def base_weight(module: Any) -> Tensor:
    """The frozen matrix of a linear module, whatever adapters are on it."""
    return torch.as_tensor((module.get_base_layer() if hasattr(module, "get_base_layer") else module).weight)


def steady(linear: Linear) -> Linear:
    """The same product at heights between `_LOWEST` and `_HIGHEST` alone, where every row gets the same bits."""

    def apply(x: Tensor) -> Tensor:
        rows = len(x)
        if rows < _LOWEST:
            padded = x.new_zeros(_LOWEST, x.shape[1])
            padded[:rows] = x
            return linear(padded)[:rows]
        parts = x.tensor_split(-(-rows // _HIGHEST))
        return torch.cat([linear(part) for part in parts]) if len(parts) > 1 else linear(x)

    return apply


@torch.no_grad()
def rotary_table(llama: Any, length: int | None) -> tuple[Tensor, Tensor]:
    """cos and sin of every position, [positions, D] float32; from one table, so that they are the same everywhere."""
    positions = torch.arange(length or MAX_POSITIONS)[None]
    cos, sin = llama.rotary_emb(torch.empty(0), positions)
    return cos[0].float(), sin[0].float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in float32: x [t, heads, D] with halves rotated, cos and sin [t, 1, D]."""
    x = x.float()
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


class PromptHeads(NamedTuple):
    """A prompt of m tokens in attention."""

    keys: Tensor
    """[H_kv, m, D], rotated."""
    values: Tensor
    """[H_kv, m, D]"""
    attended: Tensor
    """[m, H·D]"""


def attend_to_prompt(qkv: Tensor, cos: Tensor, sin: Tensor, kv_heads: int) -> PromptHeads:
    """Causal attention of one prompt to itself: qkv [m, (H + 2·H_kv)·D], the merged product; cos and sin [m, D]."""
    m, width = len(qkv), cos.shape[1]
    parts = qkv.view(m, -1, width)
    heads = parts.shape[1] - 2 * kv_heads
    rotated = rotate(parts[:, : heads + kv_heads], cos[:, None], sin[:, None]).to(qkv.dtype)
    q, k, v = (part.transpose(0, 1) for part in (rotated[:, :heads], rotated[:, heads:], parts[:, heads + kv_heads :]))
    out = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, enable_gqa=True)
    return PromptHeads(k, v, out[0].transpose(0, 1).reshape(m, -1))
