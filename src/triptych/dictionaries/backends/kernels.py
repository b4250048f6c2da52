"""CPU kernels of a training step with TopK codes, compiled by Numba: what lies around its one dense matrix product.

Of a step's floating-point operations only the encoder's product must be dense. Everything behind it touches k of m
latents a row, which dense products cannot use: at m = 2048, k = 32 they would do 64 times the work. Gradients are never
written to memory: a latent's gradient row is summed in cache and AdamW applied to it there, in one pass over weights
and moments, which is what such a step waits for.

Everything is float32; `rounded` takes a bfloat16 copy (its bits in uint16) for the next product. Rows of weights are
rows of latents, [latents, width]. A code is two arrays [rows, k], `index` (-1 where fewer than k are positive) and
`value`.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-call"

from typing import Any, no_type_check

import numpy as np
from numba import njit, prange

from triptych.compiled import kernel
from triptych.simd import F32, FAST, store


@kernel(parallel=True, fastmath=FAST, nogil=True)
@no_type_check
def top_k(pre: Any, index: Any, value: Any) -> None:
    """The k largest positive entries of every row of pre [rows, latents], in the order of latents.

    Groups of entries first: the k-th largest of 2k maxima is a bound that few entries reach, and only those are sorted.
    Of equal values at the limit the first ones are taken.
    """
    k, latents = index.shape[1], pre.shape[1]
    groups = min(2 * k, latents)
    whole = latents - latents % groups
    for r in prange(pre.shape[0]):
        row = pre[r]
        most = np.zeros(groups, dtype=np.float32)
        for start in range(0, whole, groups):
            for g in range(groups):
                most[g] = max(most[g], row[start + g])
        for i in range(whole, latents):
            most[i - whole] = max(most[i - whole], row[i])
        bound = np.sort(most)[groups - k] if groups >= k else F32(0.0)
        found = np.empty(latents, dtype=np.int32)
        n = 0
        for i in range(latents):
            found[n] = i
            n += (row[i] >= bound) & (row[i] > F32(0.0))
        limit, ties = F32(0.0), n
        if n > k:
            candidates = np.empty(n, dtype=np.float32)
            for i in range(n):
                candidates[i] = row[found[i]]
            ordered = np.sort(candidates)
            limit = ordered[n - k]
            ties = k
            for i in range(n - k, n):
                ties -= ordered[i] > limit
        kept = 0
        for i in range(n):
            x = row[found[i]]
            is_tie = x == limit
            if x > limit or (is_tie and ties > 0):
                ties -= is_tie
                index[r, kept], value[r, kept] = found[i], x
                kept += 1
        for i in range(kept, k):
            index[r, i], value[r, i] = -1, F32(0.0)


@kernel(parallel=True, fastmath=FAST, nogil=True)
@no_type_check
def exact_values(x: Any, weight: Any, bias: Any, index: Any, value: Any) -> None:
    """value = max(0, x · weight[index] + bias[index]) in float32, where the product that chose `index` was rounded."""
    k, width = index.shape[1], x.shape[1]
    for r in prange(index.shape[0]):
        row = x[r]
        for i in range(k):
            latent = index[r, i]
            if latent < 0:
                continue
            direction = weight[latent]
            total = F32(0.0)
            for d in range(width):
                total += row[d] * direction[d]
            value[r, i] = max(F32(0.0), total + bias[latent])


@kernel(parallel=True, fastmath=FAST, nogil=True)
@no_type_check
def reconstruct(index: Any, value: Any, weight: Any, bias: Any, x: Any, scale: float, error: Any, d_value: Any) -> Any:
    """error = Σ_i value_i · weight[index_i] + bias − x; d_value += scale · error · weight[index_i]; Σ error² by row.

    `scale` is 2 / (rows · width), so that d_value is the gradient of the mean squared error.
    """
    rows, k = index.shape
    width = x.shape[1]
    squares = np.empty(rows, dtype=np.float64)
    whole = k - k % 4
    for r in prange(rows):
        e, target = error[r], x[r]
        for d in range(width):
            e[d] = bias[d] - target[d]
        for i in range(0, whole, 4):
            a, b, c, f = value[r, i], value[r, i + 1], value[r, i + 2], value[r, i + 3]
            # A missing latent has value 0: its row does not matter, but must exist.
            wa, wb = weight[max(index[r, i], 0)], weight[max(index[r, i + 1], 0)]
            wc, wf = weight[max(index[r, i + 2], 0)], weight[max(index[r, i + 3], 0)]
            for d in range(width):
                e[d] += a * wa[d] + b * wb[d] + c * wc[d] + f * wf[d]
        for i in range(whole, k):
            a, wa = value[r, i], weight[max(index[r, i], 0)]
            for d in range(width):
                e[d] += a * wa[d]
        total = F32(0.0)
        for d in range(width):
            total += e[d] * e[d]
        squares[r] = total
        for i in range(k):
            if value[r, i] > F32(0.0):
                wa = weight[index[r, i]]
                dot = F32(0.0)
                for d in range(width):
                    dot += e[d] * wa[d]
                d_value[r, i] += F32(scale) * dot
    return squares


@kernel(nogil=True)
@no_type_check
def by_latent(index: Any, value: Any, starts: Any, places: Any) -> None:
    """Positive entries of a code sorted by latent: those of latent l are places[starts[l]:starts[l + 1]], flat."""
    k = index.shape[1]
    starts[:] = 0
    for r in range(index.shape[0]):
        for i in range(k):
            if value[r, i] > F32(0.0):
                starts[index[r, i] + 1] += 1
    for latent in range(1, starts.shape[0]):
        starts[latent] += starts[latent - 1]
    at = starts[:-1].copy()
    for r in range(index.shape[0]):
        for i in range(k):
            if value[r, i] > F32(0.0):
                latent = index[r, i]
                places[at[latent]] = r * k + i
                at[latent] += 1


@njit(fastmath=FAST)
@no_type_check
def _gradient(g: Any, factors: Any, scale: Any, rows: Any, k: int, places: Any, begin: int, end: int) -> None:
    """g = scale · Σ factors[place] · rows[place // k], over the places of one latent, four at a time."""
    width = g.shape[0]
    for d in range(width):
        g[d] = F32(0.0)
    whole = end - (end - begin) % 4
    for at in range(begin, whole, 4):
        p, q, s, t = places[at], places[at + 1], places[at + 2], places[at + 3]
        a, b, c, f = scale * factors[p], scale * factors[q], scale * factors[s], scale * factors[t]
        ra, rb, rc, rf = rows[p // k], rows[q // k], rows[s // k], rows[t // k]
        for d in range(width):
            g[d] += a * ra[d] + b * rb[d] + c * rc[d] + f * rf[d]
    for at in range(whole, end):
        a, ra = scale * factors[places[at]], rows[places[at] // k]
        for d in range(width):
            g[d] += a * ra[d]


@kernel(parallel=True, fastmath=FAST, nogil=True)
@no_type_check
def step_weights(
    weight: Any,
    first: Any,
    second: Any,
    rounded: Any,
    factors: Any,
    scale: float,
    rows: Any,
    starts: Any,
    places: Any,
    adam: Any,
    unit: bool,
    keep_rounded: bool,
) -> None:
    """One AdamW step of weight [latents, width], whose gradient is scale · Σ_place factors[place] · rows[place // k].

    adam: rate, decay, beta1, beta2, epsilon, 1 − beta1^t, 1 − beta2^t. `unit` keeps rows on the sphere: what of the
    gradient points along a row is left out, and the row is normalised afterwards (Bricken et al. 2023).
    """
    latents, width = weight.shape
    k = factors.shape[1]
    flat = factors.reshape(-1)
    rate, decay, beta1, beta2, epsilon = F32(adam[0]), F32(adam[1]), F32(adam[2]), F32(adam[3]), F32(adam[4])
    step_size, root = F32(adam[0] / adam[5]), F32(1.0 / np.sqrt(adam[6]))
    for latent in prange(latents):
        w, m, v = weight[latent], first[latent], second[latent]
        g = np.empty(width, dtype=np.float32)
        _gradient(g, flat, F32(scale), rows, k, places, starts[latent], starts[latent + 1])
        if unit:
            along = F32(0.0)
            for d in range(width):
                along += g[d] * w[d]
            for d in range(width):
                g[d] -= along * w[d]
        squares = F32(0.0)
        for d in range(width):
            a = beta1 * m[d] + (F32(1.0) - beta1) * g[d]
            b = beta2 * v[d] + (F32(1.0) - beta2) * g[d] * g[d]
            m[d], v[d] = a, b
            x = w[d] * (F32(1.0) - rate * decay) - step_size * a / (np.sqrt(b) * root + epsilon)
            w[d] = x
            squares += x * x
        if unit:
            norm = F32(1.0) / max(np.sqrt(squares), F32(1e-12))
            for d in range(width):
                w[d] *= norm
        if keep_rounded:
            to = rounded[latent]
            for d in range(width):
                to[d] = store(to[d], w[d])


@kernel(fastmath=FAST, nogil=True)
@no_type_check
def sum_by_latent(factors: Any, starts: Any, places: Any, total: Any) -> None:
    """total[l] = Σ of factors over the places of latent l."""
    flat = factors.reshape(-1)
    for latent in range(total.shape[0]):
        found = F32(0.0)
        for at in range(starts[latent], starts[latent + 1]):
            found += flat[places[at]]
        total[latent] = found
