"""Drawing a token a row: truncate the head, then invert the cumulative distribution at the row's own uniform."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from triptych.decoding import transforms
from triptych.decoding.head import HeadSource
from triptych.decoding.strategies import Sampler

FIRST_HEAD = 64
_GROWTH = 8


class Drawn(NamedTuple):
    """One token a row, with its log-probability under the model (T = 1) and under the distribution drawn from."""

    tokens: Int[Tensor, " n"]
    logprobs: Float[Tensor, " n"]
    sampler_logprobs: Float[Tensor, " n"]


def draw(
    source: HeadSource,
    rows: Int[Tensor, " n"],
    strategies: list[Sampler],
    uniforms: Float[Tensor, " n"],
) -> Drawn:
    """Samples one token for each of `rows`, all of one kind of strategy but each with its own parameters.

    Exact for any head length: the token is the first whose cumulative kept mass, in descending order of probability,
    exceeds u times the mass kept; a row for which the head cannot tell is given a longer one.
    """
    truncate = transforms.TRUNCATIONS[strategies[0].name]
    columns = parameter_columns(strategies, uniforms.device)
    tokens = torch.zeros(len(rows), dtype=torch.int64, device=uniforms.device)
    logprobs = torch.zeros(len(rows), device=uniforms.device)
    sampler_logprobs = torch.zeros_like(logprobs)
    open_ = torch.arange(len(rows), device=uniforms.device)
    m = FIRST_HEAD
    while len(open_):
        head = source.take(rows[open_], m)
        kept = truncate(head, *(column[open_] for column in columns))
        cumulative = (head.logp.double().exp() * kept.mask).cumsum(-1)
        target = uniforms[open_] * kept.total
        found = target < cumulative[:, -1]  # never true of NaN
        if head.complete:
            # The largest double below 1 times the total may round up to it.
            found = torch.ones_like(found)
            target = torch.minimum(target, cumulative[:, -1].nextafter(torch.zeros_like(target)))
        index = torch.searchsorted(cumulative, target[:, None], right=True).clamp_(max=cumulative.shape[1] - 1)
        done = open_[found]
        tokens[done] = head.ids.gather(-1, index)[found, 0]
        logprobs[done] = (head.logits.gather(-1, index)[:, 0] - head.log_normaliser)[found]
        sampler_logprobs[done] = (head.logp.gather(-1, index)[:, 0] - kept.total.log().float())[found]
        open_ = open_[~found]
        m *= _GROWTH
    return Drawn(tokens, logprobs, sampler_logprobs)


def parameter_columns(strategies: list[Sampler], device: torch.device) -> list[Tensor]:
    """The parameters of strategies of one kind as a truncation takes them: a tensor each, one value a row."""
    names = [name for name in type(strategies[0]).model_fields if name != "temperature"]
    return [torch.tensor([getattr(s, name) for s in strategies], device=device) for name in names]
