"""CPU kernels of the fused training path, compiled by Numba: what lies between its matrix products.

What decoding computes too is computed by its kernels (`triptych.decoding.kernels`). Activations are float32 or bfloat16
(`triptych.simd`), the residual stream and its gradient are float32, all arithmetic is float32 and rounded once. Why not
torch operators: on two cores, eager ones take as long again as the matrix products between them.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-call"

from typing import Any, no_type_check

import numpy as np
from numba import prange

from triptych.compiled import kernel
from triptych.simd import F32, FAST, exp, load, store


@kernel(parallel=True, fastmath=FAST, nogil=True)
@no_type_check
def rms_norm_backward(x: Any, weight: Any, epsilon: float, d_out: Any, d_x: Any) -> None:
    """d_x += the gradient at x of out = x / sqrt(mean(x²) + epsilon) · weight, given that of out.

    x and d_x are float32: the residual stream and its gradient.
    """
    width = x.shape[1]
    for r in prange(x.shape[0]):
        row, d_normed, d_row = x[r], d_out[r], d_x[r]
        squares, dot = F32(0.0), F32(0.0)
        for i in range(width):
            squares += row[i] * row[i]
            dot += load(d_normed[i]) * load(weight[i]) * row[i]
        scale = F32(1.0) / np.sqrt(squares / F32(width) + F32(epsilon))
        shrink = dot * scale * scale / F32(width)
        for i in range(width):
            d_row[i] += scale * (load(d_normed[i]) * load(weight[i]) - row[i] * shrink)


@kernel(parallel=True, fastmath=FAST, nogil=True)
@no_type_check
def gated_silu_backward(gate_up: Any, d_out: Any, d_gate_up: Any) -> None:
    """The gradient of `gated_silu` at gate_up, given that of its result."""
    width = d_out.shape[1]
    for r in prange(gate_up.shape[0]):
        gate, up, d_row = gate_up[r, :width], gate_up[r, width:], d_out[r]
        d_gate, d_up = d_gate_up[r, :width], d_gate_up[r, width:]
        for i in range(width):
            x, d = load(gate[i]), load(d_row[i])
            e = exp(-abs(x))
            sigmoid = (F32(1.0) if x >= F32(0.0) else e) / (F32(1.0) + e)
            d_up[i] = store(d_up[i], d * x * sigmoid)
            d_gate[i] = store(d_gate[i], d * load(up[i]) * sigmoid * (F32(1.0) + x * (F32(1.0) - sigmoid)))


@kernel(parallel=True, fastmath=FAST, nogil=True)
@no_type_check
def split_and_rotate(qkv: Any, cos: Any, sin: Any, q: Any, k: Any, v: Any) -> None:
    """Rotary embedding of queries and keys, and all three in the order that attention reads.

    qkv [T, (H + 2·H_kv)·D]; cos, sin [T, D]; q [H_kv, T, group, D], k and v [H_kv, T, D]. Halves are rotated, as
    transformers does.
    """
    kv_heads, _, group, width = q.shape
    half = width // 2
    for t in prange(qkv.shape[0]):
        row, c, s = qkv[t], cos[t], sin[t]
        for h in range(kv_heads):
            for g in range(group):
                at = (h * group + g) * width
                to = q[h, t, g]
                for i in range(half):
                    low, high = load(row[at + i]), load(row[at + half + i])
                    to[i] = store(to[i], low * c[i] - high * s[i])
                    to[half + i] = store(to[half + i], high * c[half + i] + low * s[half + i])
            at = (kv_heads * group + h) * width
            key = k[h, t]
            for i in range(half):
                low, high = load(row[at + i]), load(row[at + half + i])
                key[i] = store(key[i], low * c[i] - high * s[i])
                key[half + i] = store(key[half + i], high * c[half + i] + low * s[half + i])
            at = (kv_heads * (group + 1) + h) * width
            value = v[h, t]
            for i in range(width):
                value[i] = row[at + i]


@kernel(parallel=True, fastmath=FAST, nogil=True)
@no_type_check
def split_and_rotate_backward(d_q: Any, d_k: Any, d_v: Any, cos: Any, sin: Any, d_qkv: Any) -> None:
    """The gradient of `split_and_rotate`: the transposed rotation. d_q as q, d_k and d_v float32 as k and v."""
    kv_heads, _, group, width = d_q.shape
    half = width // 2
    for t in prange(d_qkv.shape[0]):
        row, c, s = d_qkv[t], cos[t], sin[t]
        for h in range(kv_heads):
            for g in range(group):
                at = (h * group + g) * width
                d = d_q[h, t, g]
                for i in range(half):
                    low, high = load(d[i]), load(d[half + i])
                    row[at + i] = store(row[at + i], low * c[i] + high * s[half + i])
                    row[at + half + i] = store(row[at + half + i], high * c[half + i] - low * s[i])
            at = (kv_heads * group + h) * width
            d_key = d_k[h, t]
            for i in range(half):
                low, high = d_key[i], d_key[half + i]
                row[at + i] = store(row[at + i], low * c[i] + high * s[half + i])
                row[at + half + i] = store(row[at + half + i], high * c[half + i] - low * s[i])
            at = (kv_heads * (group + 1) + h) * width
            d_value = d_v[h, t]
            for i in range(width):
                row[at + i] = store(row[at + i], d_value[i])


@kernel(parallel=True, fastmath=FAST, nogil=True)
@no_type_check
def causal_softmax(scores: Any, scale: float, group: int, shared: Any, first: Any, log_sums: Any) -> None:
    """Softmax in place over the keys that each query may see; log_sums = log Σ exp(scale · scores).

    scores [H_kv, m·group, n]: row r is of query t = r // group, which sees the first shared[t] keys and, from first[t]
    on, all but the last m - 1 - t; shared, first [m].
    """
    heads, rows, keys = scores.shape
    unseen = rows // group
    for at in prange(heads * rows):
        h, r = at // rows, at % rows
        row = scores[h, r]
        n, n_shared, start = keys - unseen + r // group + 1, shared[r // group], first[r // group]
        top = F32(-np.inf)
        for i in range(n_shared):
            top = max(top, load(row[i]))
        for i in range(start, n):
            top = max(top, load(row[i]))
        total = F32(0.0)
        for i in range(n_shared):
            total += exp((load(row[i]) - top) * F32(scale))
        for i in range(start, n):
            total += exp((load(row[i]) - top) * F32(scale))
        inverse = F32(1.0) / total
        for i in range(n_shared):
            row[i] = store(row[i], exp((load(row[i]) - top) * F32(scale)) * inverse)
        for i in range(n_shared, start):
            row[i] = store(row[i], F32(0.0))
        for i in range(start, n):
            row[i] = store(row[i], exp((load(row[i]) - top) * F32(scale)) * inverse)
        for i in range(n, keys):
            row[i] = store(row[i], F32(0.0))
        log_sums[h, r] = top * F32(scale) + np.log(total)


@kernel(parallel=True, fastmath=FAST, nogil=True)
@no_type_check
def causal_softmax_backward(
    scores: Any, d_weights: Any, scale: float, group: int, shared: Any, first: Any, log_sums: Any, out: Any, d_out: Any
) -> None:
    """In place: scores become the weights they had, d_weights the gradient of the scores.

    Given the raw scores again, `log_sums` of the forward pass, and what attention returned with its gradient, [H_kv,
    m·group, D] each: Σ_j w_j · d_w_j equals out · d_out (Dao et al. 2022, appendix B.2).
    """
    heads, rows, keys = scores.shape
    unseen = rows // group
    for at in prange(heads * rows):
        h, r = at // rows, at % rows
        row, d_row, y, d_y = scores[h, r], d_weights[h, r], out[h, r], d_out[h, r]
        n, n_shared, start = keys - unseen + r // group + 1, shared[r // group], first[r // group]
        dot = F32(0.0)
        for i in range(y.shape[0]):
            dot += load(y[i]) * load(d_y[i])
        log_sum = log_sums[h, r]
        for side in range(2):
            low, high = (0, n_shared) if side == 0 else (start, n)
            for i in range(low, high):
                # Rounding may lift a score above the sum by a hair; exp is made for x <= 0.
                weight = exp(min(load(row[i]) * F32(scale) - log_sum, F32(0.0)))
                d = (load(d_row[i]) - dot) * weight * F32(scale)
                row[i] = store(row[i], weight)
                d_row[i] = store(d_row[i], d)
        for i in range(n_shared, start):
            row[i] = store(row[i], F32(0.0))
            d_row[i] = store(d_row[i], F32(0.0))
        for i in range(n, keys):
            row[i] = store(row[i], F32(0.0))
            d_row[i] = store(d_row[i], F32(0.0))


@kernel(parallel=True, fastmath=FAST, nogil=True)
@no_type_check
def read_logits(logits: Any, targets: Any, inverse_temperature: float, logprobs: Any, entropies: Any) -> None:
    """Per row of logits [n, V]: log-softmax at its target, entropy (nats); in place, logits become probabilities."""
    for r in prange(logits.shape[0]):
        row = logits[r]
        top = F32(-np.inf)
        for i in range(row.shape[0]):
            top = max(top, load(row[i]))
        inverse = F32(inverse_temperature)
        target = load(row[targets[r]])
        total, weighted = F32(0.0), F32(0.0)
        for i in range(row.shape[0]):
            shifted = (load(row[i]) - top) * inverse
            e = exp(shifted)
            total += e
            weighted += e * shifted
        log_total = np.log(total)
        logprobs[r] = (target - top) * inverse - log_total
        entropies[r] = log_total - weighted / total
        scale = F32(1.0) / total
        for i in range(row.shape[0]):
            row[i] = store(row[i], exp((load(row[i]) - top) * inverse) * scale)


@kernel(parallel=True, fastmath=FAST, nogil=True)
@no_type_check
def compare_logits(logits: Any, others: Any, targets: Any, logprobs: Any, other_logprobs: Any, kl: Any) -> None:
    """Per row of two batches of logits [n, V]: both log-softmax at the target, and the KL of the first to the other."""
    for r in prange(logits.shape[0]):
        row, other = logits[r], others[r]
        top, other_top = F32(-np.inf), F32(-np.inf)
        for i in range(row.shape[0]):
            top = max(top, load(row[i]))
            other_top = max(other_top, load(other[i]))
        total, other_total, weighted = F32(0.0), F32(0.0), F32(0.0)
        for i in range(row.shape[0]):
            shifted, other_shifted = load(row[i]) - top, load(other[i]) - other_top
            e = exp(shifted)
            total += e
            other_total += exp(other_shifted)
            weighted += e * (shifted - other_shifted)
        log_total, other_log_total = np.log(total), np.log(other_total)
        logprobs[r] = load(row[targets[r]]) - top - log_total
        other_logprobs[r] = load(other[targets[r]]) - other_top - other_log_total
        kl[r] = weighted / total - log_total + other_log_total
