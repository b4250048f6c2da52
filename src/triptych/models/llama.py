"""What the fused CPU paths, of decoding and of training, have in common about the Llama family.

Not here: running a model (`triptych.decoding.backends`, `triptych.alignment.backends`).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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


def packed_linear(*weights: Tensor) -> Linear:
    """x → x · Wᵀ for the stacked weights, packed once into the matrix library's own layout where it has one."""
    weight = (torch.cat(weights) if len(weights) > 1 else weights[0]).detach()
    if weight.dtype != torch.bfloat16 or not _packs():
        return lambda x: F.linear(x, weight)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)

    def apply(x: Tensor) -> Tensor:
        # A single row would take another kernel, which rounds differently: a row must not depend on its neighbours.
        rows = x if len(x) > 1 else x.repeat(2, 1)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], "")
        return out[: len(x)]

    return apply


def _packs() -> bool:
    """Whether this torch offers the packed products that its compiler emits; 25 % faster than plain ones in bf16."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
