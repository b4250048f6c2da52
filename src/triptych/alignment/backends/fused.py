"""The fused training path for the Llama family on CPU: forward and backward of a layer written out by hand.

Against the module graph of transformers under autograd: no padding, prompts once, query/key/value and gate/up products
merged, packed weights, no gradient for frozen weights, kernels of our own between the products, and attention as plain
matrix products over exactly the keys that each segment sees. The base is frozen in its dtype (bf16 or fp32), the
residual stream and LoRA weights are fp32. Anything it does not know goes to the generic path.

The LoRA of every projection of a layer is known; dropout draws one mask for all projections that read the same input
(PEFT draws one each), from a generator that the caller passes.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from triptych.alignment.backends import kernels
from triptych.alignment.packing import Packed, Segment, row_bounds
from triptych.decoding.kernels import add_rms_norm, decode_attention, gated_silu
from triptych.models.llama import (
    Linear,
    Lora,
    add_low_rank,
    attend_to_prompt,
    has_plain_adapters,
    head_dim,
    is_plain_llama,
    packed_linear,
    read_loras,
    rotary_table,
    steady,
)
from triptych.simd import as_array

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

BLOCK_TOKENS = 512
"""Keys at most of segments that attend in one product: more is computed than is seen, but a dozen small operations a
segment and layer are saved."""


class Projection(NamedTuple):
    """Frozen linear modules that read one input, as one product, with their LoRA."""

    weight: Tensor
    apply: Linear
    loras: tuple[Lora, ...]


class Layer(NamedTuple):
    """One decoder layer; norms are [H]."""

    norm_1: Tensor
    qkv: Projection
    output: Projection
    norm_2: Tensor
    gate_up: Projection
    down: Projection

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [
            p for part in (self.qkv, self.output, self.gate_up, self.down) for lora in part.loras for p in lora[1:3]
        ]


class Shape(NamedTuple):
    """What does not change from layer to layer."""

    kv_heads: int
    group: int
    width: int
    epsilon: float


class Block(NamedTuple):
    """Queries and keys multiplied as one; query t sees the first shared[t] keys, and from first[t] to itself."""

    segment: Segment
    shared: Tensor
    first: Tensor


class Context(NamedTuple):
    """What all layers of one pass read."""

    shape: Shape
    blocks: tuple[Block, ...]
    cos: Tensor
    sin: Tensor
    nothing: Tensor
    """[T, H] zeros in the dtype of the products."""
    cache: "Cache | None"
    """None: attention block by block."""
    use_lora: bool
    checkpoint: bool


class Cache(NamedTuple):
    """Keys and values of one layer as decoding has them, and which tokens are whose; shared by the layers of a pass."""

    prompts: tuple[Segment, ...]
    rows: Tensor
    """[n]: the tokens of completions, one completion after the other."""
    first: npt.NDArray[np.int64]
    """[N + 1]: rows first[j] … first[j + 1] are of completion j."""
    slots: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    prefix_start: npt.NDArray[np.int64]
    prefix_length: npt.NDArray[np.int64]
    """[n] each: a row's completion, the tokens before it in there, and where its prompt lies."""
    keys: npt.NDArray[Any]
    values: npt.NDArray[Any]
    """[N, H_kv, longest, D]"""
    prompt_keys: npt.NDArray[Any]
    prompt_values: npt.NDArray[Any]
    """[H_kv, T, D]"""


def supports(base: nn.Module, trainable: Sequence[str]) -> bool:
    """Whether this path can train `base`: a plain Llama on CPU, fp32 or bf16, LoRA on its projections alone."""
    config: Any = getattr(base, "config", None)
    weight = next(base.parameters())
    plain = is_plain_llama(config) and weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
    # The body alone: a reward model's head is trained whole, and read by its own module.
    plain = plain and has_plain_adapters(getattr(base, "base_model", base))
    return plain and all(".lora_" in name and any(f".{p}." in name for p in PROJECTIONS) for name in trainable)


class FusedTrunk:
    """The body of a Llama, embedding to last layer; the final norm and the head are not part of it.

    `as_written`: by the very arithmetic that the decoding engine writes with, so that hidden states have its bits: its
    attention, and products of its heights. It costs a little more than attention block by block.
    """

    def __init__(self, llama: Any, *, dropout: float, checkpoint: bool, as_written: bool) -> None:
        config = llama.config
        self._model = llama
        heads, kv = config.num_attention_heads, config.num_key_value_heads
        self._shape = Shape(kv, heads // kv, head_dim(config), config.rms_norm_eps)
        self._layers = [_read_layer(layer) for layer in llama.layers]
        self._dropout = dropout
        self._checkpoint = checkpoint
        self._as_written = as_written
        self._cos, self._sin = rotary_table(llama, getattr(config, "max_position_embeddings", None))
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))

    def hidden(self, packed: Packed, *, use_lora: bool, generator: torch.Generator | None) -> Tensor:
        """The residual stream after the last layer, [T, H] float32; gradients reach the LoRA weights.

        `generator` is of the dropout masks; None is evaluation.
        """
        with torch.no_grad():
            embedded = self._model.embed_tokens.weight[packed.ids]
        x = embedded.float()
        context = Context(
            self._shape,
            blocks_of(packed),
            self._cos[packed.positions],
            self._sin[packed.positions],
            torch.zeros_like(embedded),
            _cache_of(packed, self._shape, embedded.dtype) if self._as_written else None,
            use_lora,
            self._checkpoint,
        )
        for layer in self._layers:
            masks = _dropout_masks(layer, len(x), self._dropout, generator) if use_lora else None
            parameters = layer.parameters if use_lora else ()
            x = _LayerFunction.apply(x, context, layer, masks, *parameters)  # type: ignore[no-untyped-call]
        return torch.as_tensor(x)


def blocks_of(packed: Packed) -> tuple[Block, ...]:
    """Segments of a row one after the other, as many in a block as see at most `BLOCK_TOKENS` keys together."""
    blocks: list[Block] = []
    for start, stop in row_bounds(packed):
        own: list[Segment] = []
        for segment in (one for one in packed.segments if start <= one.start < stop):
            if own and own[0].prefix_length + segment.start + segment.length - own[0].start > BLOCK_TOKENS:
                blocks.append(_block(own))
                own = []
            own.append(segment)
        blocks.append(_block(own))
    return tuple(blocks)


def _block(segments: Sequence[Segment]) -> Block:
    """Consecutive segments of a row as one; the first is the prompt, or all of them are behind it."""
    start, _, prefix, behind = segments[0]
    lengths = torch.tensor([segment.length for segment in segments])
    shared = torch.tensor([segment.prefix_length for segment in segments])
    first = torch.tensor([behind + segment.start - start for segment in segments])
    whole = Segment(start, int(lengths.sum()), prefix, behind)
    return Block(whole, shared.repeat_interleave(lengths), first.repeat_interleave(lengths))


def _cache_of(packed: Packed, shape: Shape, dtype: torch.dtype) -> Cache:
    own = [segment for segment in packed.segments if segment.prefix_length]
    lengths = np.array([segment.length for segment in own], np.int64)

    def each(values: Iterable[int]) -> npt.NDArray[np.int64]:
        return np.repeat(np.array([*values], np.int64), lengths)

    slots, first = each(range(len(own))), np.concatenate(([0], lengths.cumsum()))
    before = np.arange(len(slots)) - first[slots]
    kind = np.uint16 if dtype == torch.bfloat16 else np.float32
    kept = (len(own), shape.kv_heads, max(lengths, default=0), shape.width)
    read = (shape.kv_heads, packed.n_tokens, shape.width)
    return Cache(
        prompts=tuple(segment for segment in packed.segments if not segment.prefix_length),
        rows=torch.from_numpy(each(segment.start for segment in own) + before),
        first=first,
        slots=slots,
        lengths=before,
        prefix_start=each(segment.prefix_start for segment in own),
        prefix_length=each(segment.prefix_length for segment in own),
        keys=np.empty(kept, kind),
        values=np.empty(kept, kind),
        prompt_keys=np.empty(read, kind),
        prompt_values=np.empty(read, kind),
    )


def _dropout_masks(layer: Layer, rows: int, rate: float, generator: torch.Generator | None) -> list[Tensor | None]:
    """Scaled keep masks [rows, in] of the inputs of the four products; None where there is nothing to drop."""
    parts = (layer.qkv, layer.output, layer.gate_up, layer.down)
    if generator is None or rate == 0.0:
        return [None] * len(parts)
    return [
        torch.empty(rows, part.weight.shape[1], dtype=part.weight.dtype)
        .bernoulli_(1.0 - rate, generator=generator)
        .div_(1.0 - rate)
        if part.loras
        else None
        for part in parts
    ]


class _Saved(NamedTuple):
    """What the backward pass of a layer reads again."""

    x: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    log_sums: list[Tensor]
    attended: Tensor
    middle: Tensor
    gate_up: Tensor


class _LayerFunction(torch.autograd.Function):
    """x → x + attention(norm(x)) → + mlp(norm(·)), with its gradient for x and for every A and B."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, context: Context, layer: Layer, masks: list[Tensor | None] | None, *parameters: Tensor
    ) -> Tensor:
        y, saved = _forward(x, context, layer, masks)
        ctx.context, ctx.layer, ctx.masks = context, layer, masks
        ctx.saved = None
        if any(ctx.needs_input_grad):
            # Nothing of it is an input or output of autograd but x, which no later layer changes in place.
            ctx.saved = saved.x if context.checkpoint else saved
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, d_y: Tensor) -> tuple[Tensor | None, ...]:
        state: Any = ctx
        saved = state.saved
        if isinstance(saved, Tensor):
            _, saved = _forward(saved, state.context, state.layer, state.masks)
        d_x, d_parameters = _backward(d_y, saved, state)
        state.saved = None
        return d_x, None, None, None, *d_parameters


def _forward(x: Tensor, context: Context, layer: Layer, masks: list[Tensor | None] | None) -> tuple[Tensor, _Saved]:
    shape, rows = context.shape, len(x)
    dtype = layer.qkv.weight.dtype
    mask = masks or [None] * 4
    normed = _norm(x, layer.norm_1, context)
    qkv = _project(layer.qkv, normed, mask[0], context)
    q = torch.empty(shape.kv_heads, rows, shape.group, shape.width, dtype=dtype)
    k, v = (torch.empty(shape.kv_heads, rows, shape.width, dtype=dtype) for _ in range(2))
    kernels.split_and_rotate(*map(as_array, (qkv, context.cos, context.sin, q, k, v)))
    if context.cache is None:
        attended, log_sums = _attend(q, k, v, context)
        flat = _rows_first(attended)
    else:
        flat = _attend_as_written(qkv, context, context.cache)
        attended, log_sums = _heads_first(flat, shape), []
    middle = x + _project(layer.output, flat, mask[1], context)
    normed = _norm(middle, layer.norm_2, context)
    gate_up = _project(layer.gate_up, normed, mask[2], context)
    y = middle + _project(layer.down, _gated(gate_up), mask[3], context)
    return y, _Saved(x, q, k, v, log_sums, attended, middle, gate_up)


def _backward(d_y: Tensor, saved: _Saved, state: Any) -> tuple[Tensor | None, list[Tensor]]:
    context, layer, masks = state.context, state.layer, state.masks or [None] * 4
    shape, use = context.shape, context.use_lora
    dtype = layer.qkv.weight.dtype
    gated = _gated(saved.gate_up) if use and layer.down.loras else None
    d_gated, of_down = _project_backward(layer.down, d_y.to(dtype), gated, masks[3], use)
    d_gate_up = torch.empty_like(saved.gate_up)
    kernels.gated_silu_backward(*map(as_array, (saved.gate_up, d_gated, d_gate_up)))
    normed = _norm(saved.middle, layer.norm_2, context) if use and layer.gate_up.loras else None
    d_normed, of_gate_up = _project_backward(layer.gate_up, d_gate_up, normed, masks[2], use)
    d_middle = d_y.clone()
    _norm_backward(saved.middle, layer.norm_2, shape.epsilon, d_normed, d_middle)
    attended = _rows_first(saved.attended) if use and layer.output.loras else None
    d_attended, of_output = _project_backward(layer.output, d_middle.to(dtype), attended, masks[1], use)
    d_qkv = _attend_backward(_heads_first(d_attended, shape), saved, context)
    normed = _norm(saved.x, layer.norm_1, context) if use and layer.qkv.loras else None
    needs_x = bool(state.needs_input_grad[0])
    d_normed, of_qkv = _project_backward(layer.qkv, d_qkv, normed, masks[0], use, needs_input=needs_x)
    if needs_x:
        _norm_backward(saved.x, layer.norm_1, shape.epsilon, d_normed, d_middle)
    return d_middle if needs_x else None, [*of_qkv, *of_output, *of_gate_up, *of_down]


def _project(part: Projection, x: Tensor, mask: Tensor | None, context: Context) -> Tensor:
    loras = part.loras if context.use_lora else ()

    def apply(rows: Tensor) -> Tensor:
        out = part.apply(rows)
        if mask is None:
            add_low_rank(out, loras, rows)
        return out

    out = apply(x) if context.cache is None else steady(apply)(x)
    if mask is not None:
        add_low_rank(out, loras, x * mask)
    return out


def _project_backward(
    part: Projection, d_out: Tensor, x: Tensor | None, mask: Tensor | None, use_lora: bool, *, needs_input: bool = True
) -> tuple[Tensor, list[Tensor]]:
    """The gradients of the input (unless not needed) and of each A and B; x is the input, for LoRA alone."""
    d_x = d_out @ part.weight if needs_input else d_out
    d_parameters: list[Tensor] = []
    if x is None or not use_lora:
        return d_x, d_parameters
    for lora in part.loras:
        d_own = d_out[:, lora.start : lora.stop]
        dropped = x if mask is None else x * mask
        a, b = lora.a.to(x.dtype), lora.b.to(x.dtype)
        d_low = (d_own @ b).mul_(lora.scale)
        d_parameters += [
            (d_low.T @ dropped).to(lora.a.dtype),
            (d_own.T @ (dropped @ a.T)).mul_(lora.scale).to(lora.b.dtype),
        ]
        if needs_input:
            d_dropped = d_low @ a
            d_x += d_dropped if mask is None else d_dropped * mask
    return d_x, d_parameters


def _attend(q: Tensor, k: Tensor, v: Tensor, context: Context) -> tuple[Tensor, list[Tensor]]:
    """Attention block by block: [H_kv, T, group, D], and log Σ exp of the scores of each block."""
    out = torch.empty_like(q)
    log_sums = []
    for block in context.blocks:
        segment = block.segment
        keys, values = _seen(k, segment), _seen(v, segment)
        scores = torch.bmm(_queries(q, segment), keys.transpose(1, 2))
        log_sum = torch.empty(scores.shape[:2])
        _softmax(scores, block, context.shape, log_sum)
        _queries(out, segment).copy_(torch.bmm(scores, values))
        log_sums.append(log_sum)
    return out, log_sums


def _attend_as_written(qkv: Tensor, context: Context, cache: Cache) -> Tensor:
    """Attention as the decoding engine computes it, [T, H·D]: prompts at once, completions token after token."""
    shape = context.shape
    out = torch.empty(len(qkv), shape.kv_heads * shape.group * shape.width, dtype=qkv.dtype)
    for start, m, _, _ in cache.prompts:
        rows = slice(start, start + m)
        keys, values, out[rows] = attend_to_prompt(qkv[rows], context.cos[rows], context.sin[rows], shape.kv_heads)
        cache.prompt_keys[:, rows], cache.prompt_values[:, rows] = as_array(keys), as_array(values)
    if len(cache.rows):
        own = torch.empty(len(cache.rows), out.shape[1], dtype=out.dtype)
        decode_attention(
            *map(as_array, (qkv[cache.rows], context.cos[cache.rows], context.sin[cache.rows])),
            cache.keys,
            cache.values,
            cache.first,
            cache.slots,
            cache.lengths,
            cache.prompt_keys,
            cache.prompt_values,
            cache.prefix_start,
            cache.prefix_length,
            (0,) * shape.group,
            as_array(own),
        )
        out[cache.rows] = own
    return out


def _log_sums(scores: Tensor, block: Block, shape: Shape) -> Tensor:
    """What the forward pass of `_attend` keeps, where another one was taken."""
    log_sum = torch.empty(scores.shape[:2])
    _softmax(scores.clone(), block, shape, log_sum)
    return log_sum


def _softmax(scores: Tensor, block: Block, shape: Shape, log_sum: Tensor) -> None:
    arrays = map(as_array, (block.shared, block.first, log_sum))
    kernels.causal_softmax(as_array(scores), shape.width**-0.5, shape.group, *arrays)


def _attend_backward(d_out: Tensor, saved: _Saved, context: Context) -> Tensor:
    """The gradient of the merged query/key/value product, [T, (H + 2·H_kv)·D], given that of its result."""
    shape = context.shape
    d_q = torch.empty_like(saved.q)
    d_k, d_v = (torch.zeros(saved.k.shape) for _ in range(2))
    for i, block in enumerate(context.blocks):
        segment, shared, first = block
        keys, values = _seen(saved.k, segment), _seen(saved.v, segment)
        own, d_own = _queries(saved.q, segment), _queries(d_out, segment)
        weights = torch.bmm(own, keys.transpose(1, 2))
        log_sum = saved.log_sums[i] if saved.log_sums else _log_sums(weights, block, shape)
        d_scores = torch.bmm(d_own, values.transpose(1, 2))
        kernels.causal_softmax_backward(
            as_array(weights),
            as_array(d_scores),
            shape.width**-0.5,
            shape.group,
            as_array(shared),
            as_array(first),
            as_array(log_sum),
            as_array(_queries(saved.attended, segment)),
            as_array(d_own),
        )
        _queries(d_q, segment).copy_(torch.bmm(d_scores, keys))
        _add_seen(d_k, segment, torch.bmm(d_scores.transpose(1, 2), own))
        _add_seen(d_v, segment, torch.bmm(weights.transpose(1, 2), d_own))
    d_qkv = torch.empty(saved.q.shape[1], (shape.group + 2) * shape.kv_heads * shape.width, dtype=saved.q.dtype)
    kernels.split_and_rotate_backward(*map(as_array, (d_q, d_k, d_v, context.cos, context.sin, d_qkv)))
    return d_qkv


def _queries(q: Tensor, segment: Segment) -> Tensor:
    """The queries of a segment as [H_kv, m·group, D], a view."""
    kv, rows, group, width = q.shape
    return q.view(kv, rows * group, width)[:, segment.start * group : (segment.start + segment.length) * group]


def _seen(k: Tensor, segment: Segment) -> Tensor:
    """The keys (or values) that a segment sees: its prefix, then its own."""
    own = k[:, segment.start : segment.start + segment.length]
    if not segment.prefix_length:
        return own
    return torch.cat((k[:, segment.prefix_start : segment.prefix_start + segment.prefix_length], own), 1)


def _add_seen(d_k: Tensor, segment: Segment, d: Tensor) -> None:
    m = segment.prefix_length
    d_k[:, segment.start : segment.start + segment.length] += d[:, m:]
    if m:
        d_k[:, segment.prefix_start : segment.prefix_start + m] += d[:, :m]


def _rows_first(x: Tensor) -> Tensor:
    """[H_kv, T, group, D] → [T, H·D]."""
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def _heads_first(x: Tensor, shape: Shape) -> Tensor:
    """[T, H·D] → [H_kv, T, group, D]."""
    return x.view(len(x), shape.kv_heads, shape.group, shape.width).transpose(0, 1).contiguous()


def _norm(x: Tensor, weight: Tensor, context: Context) -> Tensor:
    """By decoding's kernel, which adds an update to x first: here nothing, so that x stays what it is."""
    out = torch.empty_like(context.nothing)
    add_rms_norm(*map(as_array, (x.detach(), context.nothing, weight)), context.shape.epsilon, as_array(out))
    return out


def _norm_backward(x: Tensor, weight: Tensor, epsilon: float, d_out: Tensor, d_x: Tensor) -> None:
    kernels.rms_norm_backward(as_array(x), as_array(weight), epsilon, as_array(d_out), as_array(d_x))


def _gated(gate_up: Tensor) -> Tensor:
    out = torch.empty(len(gate_up), gate_up.shape[1] // 2, dtype=gate_up.dtype)
    gated_silu(as_array(gate_up), as_array(out))
    return out


# --- Reading a model: the modules of transformers and PEFT are not typed; nothing else looks inside. ---


def _read_layer(layer: Any) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return Layer(
        norm_1=layer.input_layernorm.weight.detach(),
        qkv=_read_projection(attention, "q_proj", "k_proj", "v_proj"),
        output=_read_projection(attention, "o_proj"),
        norm_2=layer.post_attention_layernorm.weight.detach(),
        gate_up=_read_projection(mlp, "gate_proj", "up_proj"),
        down=_read_projection(mlp, "down_proj"),
    )


def _read_projection(owner: Any, *names: str) -> Projection:
    modules = [getattr(owner, name) for name in names]
    bases = [module.get_base_layer() if hasattr(module, "get_base_layer") else module for module in modules]
    weights = [module.weight.detach() for module in bases]
    starts = [sum(map(len, weights[:i])) for i in range(len(weights))]
    loras = [lora for module, at in zip(modules, starts, strict=True) for lora in read_loras(module, at) or ()]
    merged = torch.cat(weights) if len(weights) > 1 else weights[0]
    for module, rows in zip(bases, merged.split([len(weight) for weight in weights]), strict=True):
        # The same numbers, once in memory: the modules become views of the merged product.
        module.weight.data = rows
    return Projection(merged, packed_linear(*[module.weight for module in bases]), tuple(loras))
