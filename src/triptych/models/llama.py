"""What the fused CPU paths, of decoding and of training, have in common about the Llama family.

Not here: running a model (`triptych.decoding.backends`, `triptych.alignment.backends`).
"""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Linear = Callable[[Tensor], Tensor]

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
