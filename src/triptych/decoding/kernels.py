"""CPU kernels of the decoding engine, compiled by Numba: attention over ragged caches, and the head of the vocabulary.

Why not torch operators: at 256 rows of SmolLM2-135M, one decoding step spends 70 ms in matrix products, and torch's
attention over the ragged caches would add 60-110 ms, its sort over the vocabulary 40 ms more. These kernels read every
cached byte once, shared prompt prefixes from the cache they stay in, and take about 25 and 8 ms.

Arrays hold float32, or bfloat16 as its bit pattern in uint16 (NumPy has no bfloat16). Kernels are generic in that:
`_load` and `_store` convert, all arithmetic is float32.
Only what Python calls is cached on disk: a helper loaded from the cache could not be inlined, and the sums of a kernel
compiled around it would round differently from those of one compiled whole. This file is *not* a place for decoding
policy.
"""


# mypy: disable-error-code="untyped-decorator,no-untyped-call"

from typing import Any, no_type_check

import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

_F = np.float32
# Everything but the assumptions that there are no infinities or NaNs: masked logits are -inf.
_FAST = {"reassoc", "contract", "arcp", "nsz"}
_I16, _I32, _F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()

HISTOGRAM_BINS = 4096
BLOCK = 128


@intrinsic
@no_type_check
def _load(typing_context: Any, value: Any) -> Any:
    """float32 of a float32, or of a bfloat16 held in uint16."""
    if value == types.float32:
        return types.float32(types.float32), lambda context, builder, signature, args: args[0]

    def widen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = builder.shl(builder.zext(args[0], _I32), ir.Constant(_I32, 16))
        return builder.bitcast(wide, _F32)

    return types.float32(types.uint16), widen


@intrinsic
@no_type_check
def _store(typing_context: Any, like: Any, value: Any) -> Any:
    """`value` in the type of `like`: unchanged, or rounded to bfloat16 (to nearest, ties to even)."""
    if like == types.float32:
        return types.float32(types.float32, types.float32), lambda context, builder, signature, args: args[1]

    def narrow(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[1], _I32)
        odd = builder.and_(builder.lshr(bits, ir.Constant(_I32, 16)), ir.Constant(_I32, 1))
        rounded = builder.add(bits, builder.add(odd, ir.Constant(_I32, 0x7FFF)))
        return builder.trunc(builder.lshr(rounded, ir.Constant(_I32, 16)), _I16)

    return types.uint16(types.uint16, types.float32), narrow


@intrinsic
@no_type_check
def _power_of_two(typing_context: Any, exponent: Any) -> Any:
    """2 ** exponent for a whole float32 in [-126, 127], by writing the exponent bits."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole = builder.add(builder.fptosi(args[0], _I32), ir.Constant(_I32, 127))
        return builder.bitcast(builder.shl(whole, ir.Constant(_I32, 23)), _F32)

    return types.float32(types.float32), build


@intrinsic
@no_type_check
def _prefetch(typing_context: Any, row: Any) -> Any:
    """Asks for the first two cache lines of a one-dimensional array; a hint without any other effect."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        byte = builder.bitcast(data, ir.PointerType(ir.IntType(8)))
        hint = ir.FunctionType(ir.VoidType(), [byte.type, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, hint, "llvm.prefetch.p0")
        for line in (0, 64):
            where = builder.gep(byte, [ir.Constant(_I32, line)])
            builder.call(function, [where, ir.Constant(_I32, 0), ir.Constant(_I32, 3), ir.Constant(_I32, 1)])
        return context.get_dummy_value()

    return types.void(row), build


@njit(fastmath=_FAST)
@no_type_check
def _exp(x: Any) -> Any:
    """e ** x for x <= 0, relative error below 3e-7, as straight-line code that the compiler turns into SIMD."""
    t = max(x, _F(-87.0)) * _F(1.4426950408889634)
    whole = np.floor(t + _F(0.5))
    r = (t - whole) * _F(0.6931471805599453)
    series = _F(1 / 24) + r * (_F(1 / 120) + r * _F(1 / 720))
    series = _F(1.0) + r * (_F(1.0) + r * (_F(0.5) + r * (_F(1 / 6) + r * series)))
    return series * _power_of_two(whole)


@njit(fastmath=_FAST)
@no_type_check
def _scores(s: Any, q: Any, K: Any, n: int, heads: Any, ahead: Any) -> None:
    """s[g, t] = q[g] · K[t] for t < n, four t at a time. `len(heads)` is the compile-time number of query heads.

    `ahead` is what is read next; asking for its rows now hides the wait for memory, which the hardware does not see
    coming because every row of the batch begins elsewhere.
    """
    whole = n - n % 4
    for t in range(0, whole, 4):
        for i in range(t, t + 4):
            _prefetch(ahead[i])
        k0, k1, k2, k3 = K[t], K[t + 1], K[t + 2], K[t + 3]
        for g in range(len(heads)):
            query = q[g]
            a = b = c = e = _F(0.0)
            for d in range(K.shape[1]):
                x = query[d]
                a += x * _load(k0[d])
                b += x * _load(k1[d])
                c += x * _load(k2[d])
                e += x * _load(k3[d])
            s[g, t], s[g, t + 1], s[g, t + 2], s[g, t + 3] = a, b, c, e
    for t in range(whole, n):
        key = K[t]
        for g in range(len(heads)):
            query = q[g]
            a = _F(0.0)
            for d in range(K.shape[1]):
                a += query[d] * _load(key[d])
            s[g, t] = a


@njit(fastmath=_FAST)
@no_type_check
def _mix(o: Any, s: Any, V: Any, n: int, heads: Any, ahead: Any) -> None:
    """o[g] += s[g, :n] · V[:n], four rows of V at a time."""
    whole = n - n % 4
    for t in range(0, whole, 4):
        for i in range(t, t + 4):
            _prefetch(ahead[i])
        v0, v1, v2, v3 = V[t], V[t + 1], V[t + 2], V[t + 3]
        for d in range(V.shape[1]):
            a, b, c, e = _load(v0[d]), _load(v1[d]), _load(v2[d]), _load(v3[d])
            for g in range(len(heads)):
                o[g, d] += s[g, t] * a + s[g, t + 1] * b + s[g, t + 2] * c + s[g, t + 3] * e
    for t in range(whole, n):
        v0 = V[t]
        for d in range(V.shape[1]):
            a = _load(v0[d])
            for g in range(len(heads)):
                o[g, d] += s[g, t] * a


@njit(fastmath=_FAST)
@no_type_check
def _largest(row: Any, top: Any) -> Any:
    for t in range(row.shape[0]):
        top = max(top, row[t])
    return top


@njit(fastmath=_FAST)
@no_type_check
def _exponentials(row: Any, top: Any) -> Any:
    """row = exp(row - top), in place; returns their sum."""
    total = _F(0.0)
    for t in range(row.shape[0]):
        e = _exp(row[t] - top)
        row[t] = e
        total += e
    return total


@njit(parallel=True, fastmath=_FAST, nogil=True, cache=True)
@no_type_check
def decode_attention(
    qkv: Any,
    cos: Any,
    sin: Any,
    K: Any,
    V: Any,
    slots: Any,
    lengths: Any,
    prefix_K: Any,
    prefix_V: Any,
    prefix_start: Any,
    prefix_length: Any,
    heads: Any,
    out: Any,
) -> None:
    """Rotary embedding, cache append and attention of one new token a row, over its prompt and its own cache.

    Args:
        qkv: [rows, (H + 2·H_kv)·D], the merged projection.
        cos, sin: [rows, D] float32, rotary factors at the row's position (halves rotated, as in Llama).
        K, V: caches of one layer, [slots, H_kv, T, D].
        slots, lengths: [rows], where the row's cache lies and how many tokens it holds; the new one is appended.
        prefix_K, prefix_V: [H_kv, tokens, D], arenas of prompt caches; the row's prompt is the `prefix_length` tokens
            from `prefix_start` on.
        heads: a tuple of H / H_kv zeros; its length is a compile-time constant so that the loops over it unroll.
        out: [rows, H·D], in the type of `qkv`.
    """
    kv_heads, head_dim = K.shape[1], K.shape[3]
    half = head_dim // 2
    group = len(heads)
    query_width = kv_heads * group * head_dim
    key_width = kv_heads * head_dim
    scale = _F(1.0) / np.sqrt(_F(head_dim))
    for r in prange(qkv.shape[0]):
        n, slot = lengths[r], slots[r]
        m, start = prefix_length[r], prefix_start[r]
        # Two contiguous score arrays rather than slices of one: strided rows would keep the loops from becoming SIMD.
        shared_scores = np.empty((group, m), np.float32)
        own_scores = np.empty((group, n + 1), np.float32)
        q = np.empty((group, head_dim), np.float32)
        o = np.empty((group, head_dim), np.float32)
        weight = np.empty(group, np.float32)
        row = qkv[r]
        cos_low, cos_high, sin_low, sin_high = cos[r, :half], cos[r, half:], sin[r, :half], sin[r, half:]
        for h in range(kv_heads):
            at = query_width + h * head_dim
            key, low, high = K[slot, h, n], row[at : at + half], row[at + half : at + head_dim]
            for d in range(half):
                x, y = _load(low[d]), _load(high[d])
                key[d] = _store(key[d], x * cos_low[d] - y * sin_low[d])
                key[d + half] = _store(key[d], y * cos_high[d] + x * sin_high[d])
            at += key_width
            V[slot, h, n, :] = row[at : at + head_dim]
            for g in range(group):
                at = (h * group + g) * head_dim
                query, low, high = q[g], row[at : at + half], row[at + half : at + head_dim]
                for d in range(half):
                    x, y = _load(low[d]), _load(high[d])
                    query[d] = (x * cos_low[d] - y * sin_low[d]) * scale
                    query[d + half] = (y * cos_high[d] + x * sin_high[d]) * scale
                o[g, :] = _F(0.0)
            # The next keys to be read: of the next head, or of the next row's first.
            later = K[slot, h + 1] if h + 1 < kv_heads else K[slots[min(r + 1, len(slots) - 1)], 0]
            shared_keys, shared_values = prefix_K[h, start : start + m], prefix_V[h, start : start + m]
            _scores(shared_scores, q, shared_keys, m, heads, shared_values)
            _scores(own_scores, q, K[slot, h], n + 1, heads, V[slot, h])
            for g in range(group):
                top = _largest(own_scores[g], _largest(shared_scores[g], own_scores[g, 0]))
                weight[g] = _F(1.0) / (_exponentials(shared_scores[g], top) + _exponentials(own_scores[g], top))
            _mix(o, shared_scores, shared_values, m, heads, shared_values)
            _mix(o, own_scores, V[slot, h], n + 1, heads, later)
            for g in range(group):
                at = (h * group + g) * head_dim
                for d in range(head_dim):
                    out[r, at + d] = _store(out[r, at + d], o[g, d] * weight[g])


@njit(parallel=True, fastmath=_FAST, nogil=True, cache=True)
@no_type_check
def add_rms_norm(x: Any, update: Any, weight: Any, epsilon: float, out: Any) -> None:
    """x += update, in place; out = x / sqrt(mean(x²) + epsilon) · weight. All [rows, H]; `weight` [H]."""
    width = x.shape[1]
    for r in prange(x.shape[0]):
        row, more, normed = x[r], update[r], out[r]
        squares = _F(0.0)
        for i in range(width):
            row[i] = _store(row[i], _load(row[i]) + _load(more[i]))
            value = _load(row[i])
            squares += value * value
        scale = _F(1.0) / np.sqrt(squares / _F(width) + _F(epsilon))
        for i in range(width):
            normed[i] = _store(normed[i], _load(row[i]) * scale * _load(weight[i]))


@njit(parallel=True, fastmath=_FAST, nogil=True, cache=True)
@no_type_check
def gated_silu(gate_up: Any, out: Any) -> None:
    """out = silu(gate) · up for `gate_up` = [rows, 2·I] = [gate | up], rounded once at the end."""
    width = out.shape[1]
    for r in prange(gate_up.shape[0]):
        gate, up, row = gate_up[r, :width], gate_up[r, width:], out[r]
        for i in range(width):
            x = _load(gate[i])
            e = _exp(-abs(x))
            sigmoid = (_F(1.0) if x >= _F(0.0) else e) / (_F(1.0) + e)
            row[i] = _store(row[i], x * sigmoid * _load(up[i]))


@njit(parallel=True, nogil=True, cache=True)
@no_type_check
def copy_slots(K: Any, V: Any, source: Any, target: Any, start: Any, stop: Any) -> None:
    """Copies cache positions start[i]..stop[i] of slot source[i] to slot target[i], in every layer.

    `K` and `V` are [layers, slots, H_kv, T, D]; no slot is both a source and a target.
    """
    for layer in prange(K.shape[0]):
        for i in range(len(source)):
            a, b = start[i], stop[i]
            K[layer, target[i], :, a:b] = K[layer, source[i], :, a:b]
            V[layer, target[i], :, a:b] = V[layer, source[i], :, a:b]


@njit(fastmath=_FAST)
@no_type_check
def _block_maxima(row: Any, maxima: Any) -> Any:
    top = _F(-np.inf)
    for i in range(maxima.shape[0]):
        best = _F(-np.inf)
        for j in range(i * BLOCK, min((i + 1) * BLOCK, row.shape[0])):
            best = max(best, _load(row[j]))
        maxima[i] = best
        top = max(top, best)
    return top


@njit(fastmath=_FAST)
@no_type_check
def _moments(row: Any, top: Any, inverse_temperature: Any) -> Any:
    """Sums of e^x, e^(x/T), (x/T)·e^(x/T), and over finite x of 1, x and x²; x = logit - largest."""
    z = zt = xt = count = s1 = s2 = _F(0.0)
    for j in range(row.shape[0]):
        x = _load(row[j]) - top
        scaled = max(x * inverse_temperature, _F(-80.0))
        e = _exp(scaled)
        z += _exp(x)
        zt += e
        xt += scaled * e
        finite = x > _F(-np.inf)
        y = x if finite else _F(0.0)
        count += _F(1.0) if finite else _F(0.0)
        s1 += y
        s2 += y * y
    return z, zt, xt, count, s1, s2


@njit(parallel=True, nogil=True, cache=True)
@no_type_check
def row_statistics(logits: Any, inverse_temperature: Any, maxima: Any, out: Any) -> None:
    """Per row of `logits` [rows, V]: largest logit, log Z at T = 1, log Z and entropy at T (nats), deviation.

    `maxima` [rows, ceil(V / 128)] receives the largest logit of every block, for [`top_candidates`]. `out` is
    [rows, 5] float32 in the order above; log Z at T is of logits / T. The deviation is the sample standard deviation
    of the raw logits that are finite (n - 1), as in Tang et al. 2024.
    """
    for r in prange(logits.shape[0]):
        row = logits[r]
        top = _block_maxima(row, maxima[r])
        inverse = inverse_temperature[r]
        z, zt, xt, count, s1, s2 = _moments(row, top, inverse)
        log_zt = np.log(zt)
        out[r, 0] = top
        out[r, 1] = top + np.log(z)
        out[r, 2] = top * inverse + log_zt
        out[r, 3] = log_zt - xt / zt
        size = np.float64(count)
        mean = np.float64(s1) / size
        out[r, 4] = np.sqrt(max((np.float64(s2) - size * mean * mean) / max(size - 1.0, 1.0), 0.0))


@njit
@no_type_check
def _sort_key(value: Any, index: Any) -> Any:
    """An int64 that sorts by descending float32 value, then ascending index."""
    bits = np.int64(np.float32(value).view(np.int32))
    ordered = bits if bits >= 0 else np.int64(-2147483648) - bits
    return (-ordered << np.int64(32)) + np.int64(index)


@njit
@no_type_check
def _gather_by_blocks(row: Any, maxima: Any, m: int) -> Any:
    """Keys of every token that can be among the m largest: those not below the m-th largest block maximum."""
    threshold = -np.sort(-maxima)[m - 1]
    count = 0
    for i in range(maxima.shape[0]):
        if maxima[i] >= threshold:
            count += BLOCK
    keys = np.empty(count, np.int64)
    count = 0
    for i in range(maxima.shape[0]):
        if maxima[i] >= threshold:
            for j in range(i * BLOCK, min((i + 1) * BLOCK, row.shape[0])):
                value = _load(row[j])
                if value >= threshold:
                    keys[count] = _sort_key(value, j)
                    count += 1
    return keys[:count]


@njit
@no_type_check
def _gather_by_histogram(row: Any, top: Any, m: int) -> Any:
    """The same for large m: a histogram of distances from the largest logit finds the cut in one pass."""
    counts = np.zeros(HISTOGRAM_BINS, np.int64)
    scale = _F(HISTOGRAM_BINS / 64.0)
    last = HISTOGRAM_BINS - 1
    for j in range(row.shape[0]):
        counts[int(min((top - _load(row[j])) * scale, _F(last)))] += 1
    seen, cut = 0, last
    for b in range(HISTOGRAM_BINS):
        seen += counts[b]
        if seen >= m:
            cut = b
            break
    keys = np.empty(seen, np.int64)
    count = 0
    for j in range(row.shape[0]):
        value = _load(row[j])
        if int(min((top - value) * scale, _F(last))) <= cut:
            keys[count] = _sort_key(value, j)
            count += 1
    return keys[:count]


@njit(parallel=True, nogil=True, cache=True)
@no_type_check
def top_candidates(logits: Any, rows: Any, maxima: Any, m: int, ids: Any, values: Any) -> None:
    """The `m` largest logits of each of `rows`, descending, ties to the lower id; `ids`, `values` [len(rows), m]."""
    for i in prange(rows.shape[0]):
        row, largest = logits[rows[i]], maxima[rows[i]]
        keys = (
            _gather_by_blocks(row, largest, m)
            if 2 * m <= largest.shape[0]
            else _gather_by_histogram(row, largest.max(), m)
        )
        keys.sort()
        for j in range(m):
            token = keys[j] & np.int64(0xFFFFFFFF)
            ids[i, j] = token
            values[i, j] = _load(row[token])


def as_array(tensor: Tensor) -> npt.NDArray[Any]:
    """A NumPy view of a CPU tensor: float32 as it is, bfloat16 as its bits in uint16."""
    bits = tensor.dtype == torch.bfloat16
    array: npt.NDArray[Any] = tensor.view(torch.int16).numpy().view(np.uint16) if bits else tensor.numpy()
    return array
