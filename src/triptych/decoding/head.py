"""The head of the vocabulary: each row's most probable tokens in order, with what is needed of the rest in numbers.

A full sort of 256 x 49,152 logits a step costs as much as the model. Truncations almost always decide within the first
few dozen tokens, so they are given only those, and say which rows they could not decide; those get a longer head.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from triptych.decoding import kernels
from triptych.simd import as_array

# Below it float32 has no reciprocal; at it there is no token but the most probable.
_COLDEST = 1e-30


class Head(NamedTuple):
    """The `m` most probable tokens of `n` rows, in descending order, ties by ascending token id."""

    ids: Int[Tensor, "n m"]
    logits: Float[Tensor, "n m"]
    """The model's own logits, float32, before temperature."""
    logp: Float[Tensor, "n m"]
    """Log-softmax at the row's temperature over the *whole* vocabulary (nats)."""
    entropy: Float[Tensor, " n"]
    """Of the whole distribution at the row's temperature (nats)."""
    deviation: Float[Tensor, " n"]
    """Sample standard deviation of those of the model's own logits that are finite."""
    log_normaliser: Float[Tensor, " n"]
    """log Σ exp(logits) at T = 1: `logits - log_normaliser` are the raw log-probabilities."""
    complete: bool
    """Whether the head is the whole vocabulary."""


class HeadSource(NamedTuple):
    """Heads of one batch of logits on demand: `take(rows, m)` gives those of some rows, `m` tokens long."""

    take: Callable[[Int[Tensor, " n"], int], Head]
    device: torch.device


def read_heads(logits: Float[Tensor, "n v"], temperature: Float[Tensor, " n"]) -> HeadSource:
    """Prepares the heads of `logits` at each row's `temperature`; by the kernels on CPU, by a stable sort elsewhere."""
    return _read_by_kernels(logits, temperature) if logits.device.type == "cpu" else read_by_sort(logits, temperature)


def read_by_sort(logits: Float[Tensor, "n v"], temperature: Float[Tensor, " n"]) -> HeadSource:
    """Plain torch on any device: float32 logits, one stable sort. The reference that the kernels are tested against."""
    raw = logits.float()
    scaled = raw / temperature.clamp(min=_COLDEST)[:, None]
    logp = torch.log_softmax(scaled, dim=-1)
    entropy = torch.special.entr(logp.exp()).sum(-1)
    deviation = _deviation(raw)
    log_normaliser = raw.logsumexp(-1)
    values, ids = raw.sort(dim=-1, descending=True, stable=True)
    logp = logp.gather(-1, ids)
    vocabulary = logits.shape[-1]

    def take(rows: Int[Tensor, " n"], m: int) -> Head:
        m = min(m, vocabulary)
        return Head(
            ids=ids[rows, :m],
            logits=values[rows, :m],
            logp=logp[rows, :m],
            entropy=entropy[rows],
            deviation=deviation[rows],
            log_normaliser=log_normaliser[rows],
            complete=m == vocabulary,
        )

    return HeadSource(take, logits.device)


def _read_by_kernels(logits: Float[Tensor, "n v"], temperature: Float[Tensor, " n"]) -> HeadSource:
    n, vocabulary = logits.shape
    array = as_array(logits if logits.dtype in (torch.float32, torch.bfloat16) else logits.float())
    inverse = temperature.float().clamp(min=_COLDEST).reciprocal()
    maxima = np.empty((n, -(-vocabulary // kernels.BLOCK)), np.float32)
    statistics = np.empty((n, 5), np.float32)
    kernels.row_statistics(array, inverse.numpy(), maxima, statistics)
    _, log_normaliser, log_normaliser_t, entropy, deviation = torch.from_numpy(statistics).unbind(1)

    def take(rows: Int[Tensor, " n"], m: int) -> Head:
        m = min(m, vocabulary)
        ids = torch.empty((len(rows), m), dtype=torch.int64)
        values = torch.empty((len(rows), m), dtype=torch.float32)
        kernels.top_candidates(array, rows.numpy(), maxima, m, ids.numpy(), values.numpy())
        return Head(
            ids=ids,
            logits=values,
            logp=values * inverse[rows, None] - log_normaliser_t[rows, None],
            entropy=entropy[rows],
            deviation=deviation[rows],
            log_normaliser=log_normaliser[rows],
            complete=m == vocabulary,
        )

    return HeadSource(take, logits.device)


def _deviation(logits: Float[Tensor, "n v"]) -> Float[Tensor, " n"]:
    """Over the finite ones of a row: a masked token is -inf."""
    finite = logits.isfinite()
    count = finite.sum(-1)
    mean = logits.where(finite, 0.0).sum(-1) / count
    squares = (logits - mean[:, None]).square().where(finite, 0.0).sum(-1)
    return (squares / (count - 1).clamp(min=1)).sqrt()


class Kept(NamedTuple):
    """What a truncation keeps of a head."""

    mask: Bool[Tensor, "n m"]
    total: Float[Tensor, " n"]
    """Probability mass kept over the *whole* vocabulary, float64; NaN where the head is too short to know it."""
