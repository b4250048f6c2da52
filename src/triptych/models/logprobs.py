"""Log-probabilities of given tokens: in fp32, at temperature 1, over the whole vocabulary. Unit: nats.

The forward pass here knows nothing of caches, arms or packing: it is what the decoding engine is checked against.

Not here: sampling (`triptych.decoding`), losses (`triptych.alignment`).
"""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from triptych.errors import DataError
from triptych.models.language import LanguageModel

CHUNK_LOGITS = 2**24
"""Logits turned to fp32 at a time: 64 MiB."""


def token_logprobs(logits: Float[Tensor, "b t v"], ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """The log-probability of each token under the logits of its own position.

        log p(y) = z[y] - log Σ_v exp z[v]

    Row by row of the vocabulary in fp32, whatever the logits' dtype, a chunk of positions at a time: the fp32 copy
    never exceeds 64 MiB while no gradient is asked for. The caller shifts: `logits[:, i]` must predict `ids[:, i]`.
    """
    if ids.numel() == 0:
        return torch.empty(ids.shape, dtype=torch.float32, device=logits.device)
    rows, chosen = logits.flatten(0, 1), ids.flatten()
    step = max(1, CHUNK_LOGITS // logits.shape[-1])
    parts = [_row_logprobs(rows[i : i + step], chosen[i : i + step]) for i in range(0, len(chosen), step)]
    return torch.cat(parts).view(ids.shape)


def length_mask(lengths: Int[Tensor, " b"], width: int) -> Bool[Tensor, "b {width}"]:
    """True at the first `lengths[i]` positions of row i. Never `ids != pad`: pad and EOS may share an id."""
    return torch.arange(width, device=lengths.device) < lengths.unsqueeze(1)


def masked_sum(values: Float[Tensor, "b t"], lengths: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """The sum of the first `lengths[i]` values of row i; what lies beyond may be anything, NaN included."""
    return values.where(length_mask(lengths, values.shape[1]), 0.0).sum(dim=1)


def masked_mean(values: Float[Tensor, "b t"], lengths: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """The mean of the first `lengths[i]` values of row i; NaN where there is none."""
    return masked_sum(values, lengths) / lengths


class PaddedBatch(NamedTuple):
    """Sequences of different lengths side by side, filled up at the right."""

    ids: Int[Tensor, "b t"]
    lengths: Int[Tensor, " b"]
    """The number of real tokens in each row."""


def pad_right(sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu") -> PaddedBatch:
    """Sequences as one tensor, filled up at the right with `pad_id`."""
    width = max((len(sequence) for sequence in sequences), default=0)
    rows = [[*sequence, *([pad_id] * (width - len(sequence)))] for sequence in sequences]
    ids = torch.tensor(rows, dtype=torch.long, device=device).view(len(rows), width)
    return PaddedBatch(ids, torch.tensor([len(sequence) for sequence in sequences], dtype=torch.long, device=device))


@torch.inference_mode()
def sequence_logprobs(
    lm: LanguageModel,
    prompt_ids_B_T: Sequence[Sequence[int]],
    completion_ids_B_T: Sequence[Sequence[int]],
    *,
    batch_size: int = 8,
) -> list[list[float]]:
    """The log-probability of every completion token given its prompt and the tokens before it.

        log p(y_i | x, y_<i)  at T = 1, nats, fp32

    One plain forward pass: right-padded rows with an attention mask and positions from their lengths, in batches of
    similar length. Logits are asked for at positions that predict a completion token of some row, and at no others.
    The result has the order and the lengths of `completion_ids_B_T`; an empty completion gives an empty list.

    Raises `DataError` for a prompt without tokens: nothing predicts the first token of its completion.
    """
    if len(prompt_ids_B_T) != len(completion_ids_B_T):
        raise DataError(f"{len(prompt_ids_B_T)} prompts for {len(completion_ids_B_T)} completions: give one for each")
    if empty := [index for index, prompt in enumerate(prompt_ids_B_T) if not prompt]:
        raise DataError(
            f"prompt {empty[0]} has no tokens, so nothing predicts its completion; begin it with a BOS token"
        )
    _require_batch(batch_size)
    results: list[list[float]] = [[] for _ in completion_ids_B_T]
    scored = [row for row, completion in enumerate(completion_ids_B_T) if completion]
    scored.sort(key=lambda row: len(prompt_ids_B_T[row]) + len(completion_ids_B_T[row]))
    for start in range(0, len(scored), batch_size):
        rows = scored[start : start + batch_size]
        prompts, completions = [prompt_ids_B_T[row] for row in rows], [completion_ids_B_T[row] for row in rows]
        for row, values in zip(rows, _batch_logprobs(lm, prompts, completions), strict=True):
            results[row] = values
    return results


def _batch_logprobs(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> list[list[float]]:
    sequences = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    ids, lengths = pad_right(sequences, lm.pad_id, lm.device)
    # The last token predicts nothing that is asked for.
    first, last = min(len(prompt) for prompt in prompts) - 1, ids.shape[1] - 1
    mask = length_mask(lengths, ids.shape[1])
    logits = _logits_between(lm, ids, mask, first, last)
    values = token_logprobs(logits, ids[:, first + 1 :]).tolist()
    spans = [
        (len(prompt) - 1 - first, len(completion)) for prompt, completion in zip(prompts, completions, strict=True)
    ]
    return [row[begin : begin + count] for row, (begin, count) in zip(values, spans, strict=True)]


def _logits_between(
    lm: LanguageModel, ids: Int[Tensor, "b t"], mask: Bool[Tensor, "b t"], first: int, last: int
) -> Float[Tensor, "b kept v"]:
    """The logits at positions first … last - 1, through the model's own head (some scale or cap what it gives)."""
    options: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long(), "use_cache": False}
    accepted = inspect.signature(lm.base.forward).parameters
    if "position_ids" in accepted:
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        options["position_ids"] = positions
    if "logits_to_keep" in accepted:
        kept = torch.arange(first, last, device=ids.device)
        logits: Tensor = lm.model(**options, logits_to_keep=kept).logits
        return logits
    every: Tensor = lm.model(**options).logits
    return every[:, first:last]


def _row_logprobs(logits: Float[Tensor, "n v"], ids: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    exact = logits.float()
    return exact.gather(1, ids.unsqueeze(1)).squeeze(1) - exact.logsumexp(dim=1)


def _require_batch(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
