"""Truncations: which of the most probable tokens may be sampled. Plain functions from a head to what is kept of it.

Temperature comes first, as in the paper and in transformers: `head.logp` is already the log-softmax of logits / T.
Each function takes the head and its parameters as float32 or int64 tensors of one value a row, so that rows with
different parameters share a call. Where the decision needs tokens beyond the head, `total` is NaN for that row and the
caller asks again with a longer head; at `head.complete` every row is decided.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from triptych.decoding.head import Head, Kept


def ancestral(head: Head) -> Kept:
    """Everything is kept: mass 1."""
    ones = torch.ones_like(head.logp)
    return Kept(ones.bool(), ones[:, 0].double())


def top_k(head: Head, k: Int[Tensor, " n"]) -> Kept:
    """The k first: exactly k tokens, ties broken by the order of the head (transformers keeps all ties)."""
    m = head.logp.shape[1]
    mask = torch.arange(m, device=head.logp.device) < k[:, None]
    return _kept(head, mask, decided=k <= m)


def top_p(head: Head, p: Float[Tensor, " n"]) -> Kept:
    """The smallest prefix whose mass exceeds p, the crossing token included (Holtzman et al. 2020, eq. 2)."""
    mass = _mass(head)
    before = mass.cumsum(-1) - mass
    mask = before <= p[:, None].double()
    everything = p >= 1.0
    kept = _kept(head, mask | everything[:, None], decided=~mask.all(-1) | (before[:, -1] + mass[:, -1] > p.double()))
    return kept._replace(total=torch.where(everything, 1.0, kept.total))


def min_p(head: Head, p: Float[Tensor, " n"]) -> Kept:
    """Tokens of at least p times the largest probability (Nguyen et al. 2024, eq. 3)."""
    mask = head.logp >= head.logp[:, :1] + p.log()[:, None]
    return _kept(head, mask, decided=~mask[:, -1])


def typical(head: Head, mass: Float[Tensor, " n"]) -> Kept:
    """Tokens in order of |surprisal - entropy| until their mass reaches `mass` (Meister et al. 2023, eq. 11).

    Ties with the last token kept are kept. The set is a window of surprisals around the entropy, so a head decides
    once the window ends above its last token.
    """
    distance = (-head.logp - head.entropy[:, None]).abs()
    ordered, order = distance.sort(dim=-1, stable=True)
    cumulative = _mass(head).gather(-1, order).cumsum(-1)
    reached = cumulative >= mass[:, None].double()
    last = torch.where(reached.any(-1), reached.int().argmax(-1), reached.shape[-1] - 1)
    radius = ordered.gather(-1, last[:, None])
    # Whatever lies beyond the head has a larger surprisal than its last token.
    closed = head.entropy + radius[:, 0] < -head.logp[:, -1]
    return _kept(head, distance <= radius, decided=reached.any(-1) & closed)


def eta(head: Head, epsilon: Float[Tensor, " n"]) -> Kept:
    """Tokens above η = min(ε, sqrt(ε)·exp(-entropy)); the most probable is always kept (Hewitt et al. 2022, eq. 4)."""
    threshold = torch.minimum(epsilon.log(), epsilon.log() / 2 - head.entropy)
    mask = head.logp > threshold[:, None]
    mask[:, 0] = True
    return _kept(head, mask, decided=~mask[:, -1])


def top_nsigma(head: Head, n: Float[Tensor, " n"]) -> Kept:
    """Logits within n standard deviations of the largest (Tang et al. 2024, eq. 5), whatever the temperature."""
    mask = head.logits >= head.logits[:, :1] - (n * head.deviation)[:, None]
    return _kept(head, mask, decided=~mask[:, -1])


TRUNCATIONS: dict[str, Callable[..., Kept]] = {
    "ancestral": ancestral,
    "top_k": top_k,
    "top_p": top_p,
    "min_p": min_p,
    "typical": typical,
    "eta": eta,
    "top_nsigma": top_nsigma,
}


def _mass(head: Head) -> Float[Tensor, "n m"]:
    # bf16 and even fp32 cumulative sums saturate on large vocabularies.
    return head.logp.double().exp()


def _kept(head: Head, mask: Tensor, decided: Tensor) -> Kept:
    total = (_mass(head) * mask).sum(-1)
    return Kept(mask, total if head.complete else torch.where(decided, total, torch.nan))
