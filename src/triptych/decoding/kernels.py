"""CPU kernels of the decoding engine, compiled by Numba: attention over ragged caches, and the head of the vocabulary.

Why not torch operators: at 256 rows of SmolLM2-135M, one decoding step spends 70 ms in matrix products, and torch's
attention over the ragged caches would add 60-110 ms, its sort over the vocabulary 40 ms more. These kernels read every
cached byte once, shared prompt prefixes from the cache they stay in, and take about 25 and 8 ms.

Arrays hold float32 or bfloat16 (`triptych.simd`). Only what Python calls is cached on disk: a helper loaded from the
cache could not be inlined, and the sums of a kernel compiled around it would round differently from those of one
compiled whole. This file is *not* a place for decoding policy.
"""


# mypy: disable-error-code="untyped-decorator,no-untyped-call"

from typing import Any, no_type_check

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from triptych.compiled import kernel
from triptych.simd import F32, FAST, exp, load, store

_I32 = ir.IntType(32)

HISTOGRAM_BINS = 4096
BLOCK = 128


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


@njit(fastmath=FAST)
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
            a = b = c = e = F32(0.0)
            for d in range(K.shape[1]):
                x = query[d]
                a += x * load(k0[d])
                b += x * load(k1[d])
                c += x * load(k2[d])
                e += x * load(k3[d])
            s[g, t], s[g, t + 1], s[g, t + 2], s[g, t + 3] = a, b, c, e
    for t in range(whole, n):
        key = K[t]
        for g in range(len(heads)):
            query = q[g]
            a = F32(0.0)
            for d in range(K.shape[1]):
                a += query[d] * load(key[d])
            s[g, t] = a


@njit(fastmath=FAST)
@no_type_check
def _mix(o: Any, s: Any, V: Any, n: int, heads: Any, ahead: Any) -> None:
    """o[g] += s[g, :n] · V[:n], four rows of V at a time."""
    whole = n - n % 4
    for t in range(0, whole, 4):
        for i in range(t, t + 4):
            _prefetch(ahead[i])
        v0, v1, v2, v3 = V[t], V[t + 1], V[t + 2], V[t + 3]
        for d in range(V.shape[1]):
            a, b, c, e = load(v0[d]), load(v1[d]), load(v2[d]), load(v3[d])
            for g in range(len(heads)):
                o[g, d] += s[g, t] * a + s[g, t + 1] * b + s[g, t + 2] * c + s[g, t + 3] * e
    for t in range(whole, n):
        v0 = V[t]
        for d in range(V.shape[1]):
            a = load(v0[d])
            for g in range(len(heads)):
                o[g, d] += s[g, t] * a


@njit(fastmath=FAST)
@no_type_check
def _largest(row: Any, top: Any) -> Any:
    for t in range(row.shape[0]):
        top = max(top, row[t])
    return top


@njit(fastmath=FAST)
@no_type_check
def _exponentials(row: Any, top: Any) -> Any:
    """row = exp(row - top), in place; returns their sum."""
    total = F32(0.0)
    for t in range(row.shape[0]):
        e = exp(row[t] - top)
        row[t] = e
        total += e
    return total


@kernel(parallel=True, fastmath=FAST, nogil=True)
@no_type_check
def decode_attention(
    qkv: Any,
    cos: Any,
    sin: Any,
    K: Any,
    V: Any,
    first: Any,
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

    Decoding has one row a slot; reading has all the tokens of a completion, one after the other. It is the same machine
    code: two kernels would round differently, and in bf16 one such difference is as many as there are roundings.

    Args:
        qkv: [rows, (H + 2·H_kv)·D], the merged projection.
        cos, sin: [rows, D] float32, rotary factors at the row's position (halves rotated, as in Llama).
        K, V: caches of one layer, [slots, H_kv, T, D].
        first: [slots in use + 1]; rows first[j] … first[j + 1] are of one slot, in the order of their tokens.
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
    scale = F32(1.0) / np.sqrt(F32(head_dim))
    for j in prange(len(first) - 1):
        for r in range(first[j], first[j + 1]):
            n, slot = lengths[r], slots[r]
            m, start = prefix_length[r], prefix_start[r]
            # Two contiguous score arrays rather than slices of one: strided rows would keep loops from becoming SIMD.
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
                    x, y = load(low[d]), load(high[d])
                    key[d] = store(key[d], x * cos_low[d] - y * sin_low[d])
                    key[d + half] = store(key[d], y * cos_high[d] + x * sin_high[d])
                at += key_width
                V[slot, h, n, :] = row[at : at + head_dim]
                for g in range(group):
                    at = (h * group + g) * head_dim
                    query, low, high = q[g], row[at : at + half], row[at + half : at + head_dim]
                    for d in range(half):
                        x, y = load(low[d]), load(high[d])
                        query[d] = (x * cos_low[d] - y * sin_low[d]) * scale
                        query[d + half] = (y * cos_high[d] + x * sin_high[d]) * scale
                    o[g, :] = F32(0.0)
                # The next keys to be read: of the next head, or of the next row's first.
                later = K[slot, h + 1] if h + 1 < kv_heads else K[slots[min(r + 1, len(slots) - 1)], 0]
                shared_keys, shared_values = prefix_K[h, start : start + m], prefix_V[h, start : start + m]
                _scores(shared_scores, q, shared_keys, m, heads, shared_values)
                _scores(own_scores, q, K[slot, h], n + 1, heads, V[slot, h])
                for g in range(group):
                    top = _largest(own_scores[g], _largest(shared_scores[g], own_scores[g, 0]))
                    weight[g] = F32(1.0) / (_exponentials(shared_scores[g], top) + _exponentials(own_scores[g], top))
                _mix(o, shared_scores, shared_values, m, heads, shared_values)
                _mix(o, own_scores, V[slot, h], n + 1, heads, later)
                for g in range(group):
                    at = (h * group + g) * head_dim
                    for d in range(head_dim):
                        out[r, at + d] = store(out[r, at + d], o[g, d] * weight[g])


@kernel(parallel=True, fastmath=FAST, nogil=True)
@no_type_check
def add_rms_norm(x: Any, update: Any, weight: Any, epsilon: float, out: Any) -> None:
    """x += update, in place; out = x / sqrt(mean(x²) + epsilon) · weight. All [rows, H]; `weight` [H]."""
    width = x.shape[1]
    for r in prange(x.shape[0]):
        row, more, normed = x[r], update[r], out[r]
        squares = F32(0.0)
        for i in range(width):
            row[i] = store(row[i], load(row[i]) + load(more[i]))
            value = load(row[i])
            squares += value * value
        scale = F32(1.0) / np.sqrt(squares / F32(width) + F32(epsilon))
        for i in range(width):
            normed[i] = store(normed[i], load(row[i]) * scale * load(weight[i]))


@kernel(parallel=True, fastmath=FAST, nogil=True)
@no_type_check
def gated_silu(gate_up: Any, out: Any) -> None:
    """out = silu(gate) · up for `gate_up` = [rows, 2·I] = [gate | up], rounded once at the end."""
    width = out.shape[1]
    for r in prange(gate_up.shape[0]):
        gate, up, row = gate_up[r, :width], gate_up[r, width:], out[r]
        for i in range(width):
            x = load(gate[i])
            e = exp(-abs(x))
            sigmoid = (F32(1.0) if x >= F32(0.0) else e) / (F32(1.0) + e)
            row[i] = store(row[i], x * sigmoid * load(up[i]))


@kernel(parallel=True, nogil=True)
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


@njit(fastmath=FAST)
@no_type_check
def _block_maxima(row: Any, maxima: Any) -> Any:
    top = F32(-np.inf)
    for i in range(maxima.shape[0]):
        best = F32(-np.inf)
        for j in range(i * BLOCK, min((i + 1) * BLOCK, row.shape[0])):
            best = max(best, load(row[j]))
        maxima[i] = best
        top = max(top, best)
    return top


@njit(fastmath=FAST)
@no_type_check
def _moments(row: Any, top: Any, inverse_temperature: Any) -> Any:
    """Sums of e^x, e^(x/T), (x/T)·e^(x/T), and over finite x of 1, x and x²; x = logit - largest."""
    z = zt = xt = count = s1 = s2 = F32(0.0)
    for j in range(row.shape[0]):
        x = load(row[j]) - top
        scaled = max(x * inverse_temperature, F32(-80.0))
        e = exp(scaled)
        z += exp(x)
        zt += e
        xt += scaled * e
        finite = x > F32(-np.inf)
        y = x if finite else F32(0.0)
        count += F32(1.0) if finite else F32(0.0)
        s1 += y
        s2 += y * y
    return z, zt, xt, count, s1, s2


@kernel(parallel=True, nogil=True)
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
                value = load(row[j])
                if value >= threshold:
                    keys[count] = _sort_key(value, j)
                    count += 1
    return keys[:count]


@njit
@no_type_check
def _gather_by_histogram(row: Any, top: Any, m: int) -> Any:
    """The same for large m: a histogram of distances from the largest logit finds the cut in one pass."""
    counts = np.zeros(HISTOGRAM_BINS, np.int64)
    scale = F32(HISTOGRAM_BINS / 64.0)
    last = HISTOGRAM_BINS - 1
    for j in range(row.shape[0]):
        counts[int(min((top - load(row[j])) * scale, F32(last)))] += 1
    seen, cut = 0, last
    for b in range(HISTOGRAM_BINS):
        seen += counts[b]
        if seen >= m:
            cut = b
            break
    keys = np.empty(seen, np.int64)
    count = 0
    for j in range(row.shape[0]):
        value = load(row[j])
        if int(min((top - value) * scale, F32(last))) <= cut:
            keys[count] = _sort_key(value, j)
            count += 1
    return keys[:count]


@kernel(parallel=True, nogil=True)
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
            values[i, j] = load(row[token])
