"""From hidden states to log-probabilities of given tokens, chunk by chunk: the logits of a batch never exist at once.

For a frozen head the gradient needs no second pass over the vocabulary. With z = W·h / τ and y = log softmax(z)[a],

    ∂y/∂h = (W[a] - softmax(z)·W) / τ,

a vector of the hidden size, is computed beside y while the logits are at hand, and the backward pass only multiplies it
by ∂loss/∂y, which is one number a token. 8 pairs of 512 positions would have 1.6 GB of fp32 logits; a chunk has 25 MB.

Not here: the body of the model (`backends`), losses.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from triptych.alignment.backends import kernels
from triptych.simd import as_array

CHUNK = 256
"""Tokens whose logits exist at the same time: 50 MB of fp32 for a vocabulary of 49,152."""


class TokenLogprobs(NamedTuple):
    """What a model says of t given tokens, each after its context; nats, float32."""

    logprobs: Float[Tensor, " t"]
    """Log-softmax over the whole vocabulary at the temperature asked for."""
    entropies: Float[Tensor, " t"]
    """Of the predictions; without gradient."""
    states: Float[Tensor, "t h"]
    """What the head read, without gradient."""


class TokenComparison(NamedTuple):
    """Two models on the same t tokens; nats, float32, without gradient."""

    logprobs: Float[Tensor, " t"]
    reference: Float[Tensor, " t"]
    kl: Float[Tensor, " t"]
    """Σ_v π(v) (log π(v) - log π_ref(v)), over the whole vocabulary: exact for each token's context."""


def frozen_head(
    hidden: Float[Tensor, "t h"], weight: Float[Tensor, "v h"], targets: Int[Tensor, " t"], temperature: float
) -> TokenLogprobs:
    """Log-probabilities under a linear head without gradient of its own; hidden states in the dtype of `weight`."""
    if not len(targets):
        return _nothing(hidden)
    logprobs, entropies = _FrozenHead.apply(hidden, weight, targets, temperature)  # type: ignore[no-untyped-call]
    return TokenLogprobs(logprobs, entropies, hidden.detach())


def any_head(
    hidden: Float[Tensor, "t h"],
    logits_of: Callable[[Tensor], Tensor],
    targets: Int[Tensor, " t"],
    temperature: float,
) -> TokenLogprobs:
    """The same through any differentiable head; logits are computed again in the backward pass."""

    def read(states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logp = torch.log_softmax(logits_of(states).float() / temperature, dim=-1)
        entropy = torch.special.entr(logp.detach().exp()).sum(-1)
        return logp.gather(-1, tokens[:, None])[:, 0], entropy

    parts = [
        checkpoint(read, states, tokens, use_reentrant=False)
        for states, tokens in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
    ]
    if not parts:
        return _nothing(hidden)
    logprobs, entropies = (torch.cat(column) for column in zip(*parts, strict=True))
    return TokenLogprobs(logprobs, entropies, hidden.detach())


def compare_heads(
    hidden: Float[Tensor, "t h"],
    reference: Float[Tensor, "t h"],
    logits_of: Callable[[Tensor], Tensor],
    reference_logits_of: Callable[[Tensor], Tensor],
    targets: Int[Tensor, " t"],
) -> TokenComparison:
    """Log-probabilities and exact token KL of a policy against a reference."""
    out = TokenComparison(*(torch.empty(len(targets), device=hidden.device) for _ in range(3)))
    for start in range(0, len(targets), CHUNK):
        part = slice(start, start + CHUNK)
        logits, others = logits_of(hidden[part]), reference_logits_of(reference[part])
        _compare(logits, others, targets[part], TokenComparison(*(column[part] for column in out)))
    return out


def _nothing(hidden: Tensor) -> TokenLogprobs:
    """Of no token: empty, and still part of the graph, so that a loss of nothing has a backward pass."""
    none = hidden.sum(-1, dtype=torch.float32)
    return TokenLogprobs(none, none.detach(), hidden.detach())


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        logprobs, entropies = (torch.empty(len(targets), device=hidden.device) for _ in range(2))
        jacobian = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            tokens = targets[part]
            logits = F.linear(hidden[part], weight)
            probabilities = _read(logits, tokens, temperature, logprobs[part], entropies[part])
            if jacobian is not None:
                jacobian[part] = (weight[tokens] - probabilities @ weight) / temperature
        ctx.mark_non_differentiable(entropies)
        ctx.jacobian = jacobian
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, d_logprobs: Tensor, d_entropies: Tensor) -> tuple[Tensor | None, ...]:
        jacobian = ctx.jacobian
        ctx.jacobian = None
        return d_logprobs[:, None].to(jacobian.dtype) * jacobian, None, None, None


def _read(logits: Tensor, targets: Tensor, temperature: float, logprobs: Tensor, entropies: Tensor) -> Tensor:
    """Fills log-probabilities and entropies; the probabilities, in the dtype of the logits."""
    if logits.device.type == "cpu" and logits.dtype in (torch.float32, torch.bfloat16):
        kernels.read_logits(*map(as_array, (logits, targets)), 1.0 / temperature, *map(as_array, (logprobs, entropies)))
        return logits
    logp = torch.log_softmax(logits.float() / temperature, dim=-1)
    logprobs.copy_(logp.gather(-1, targets[:, None])[:, 0])
    probabilities = logp.exp()
    entropies.copy_(-(probabilities * logp).sum(-1))
    return probabilities.to(logits.dtype)


def _compare(logits: Tensor, others: Tensor, targets: Tensor, out: TokenComparison) -> None:
    """Fills the three columns."""
    if logits.device.type == "cpu" and logits.dtype in (torch.float32, torch.bfloat16):
        kernels.compare_logits(*map(as_array, (logits, others, targets, *out)))
        return
    logp, logq = (torch.log_softmax(one.float(), dim=-1) for one in (logits, others))
    for column, values in ((out.logprobs, logp), (out.reference, logq)):
        column.copy_(values.gather(-1, targets[:, None])[:, 0])
    out.kl.copy_((logp.exp() * (logp - logq)).sum(-1))
