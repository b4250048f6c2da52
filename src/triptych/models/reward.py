"""Reward models: sequence classifiers with one output that score a (prompt, answer) pair; higher is better.

Any `AutoModelForSequenceClassification` with one label serves: `OpenAssistant/reward-model-deberta-v3-large-v2`, say,
which reads the pair (question, answer) through its tokenizer. Scores are raw logits in fp32: they have no unit and no
common scale, and only scores of one model compare.

Not here: training one (`triptych.alignment`), normalising scores.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from triptych.errors import ModelError
from triptych.models.loading import (
    load_pretrained,
    load_tokenizer,
    quiet_transformers,
    read_config,
    resolve_device,
    resolve_dtype,
)
from triptych.models.sources import ADAPTER_CONFIG, REWARD_CONFIG, TRAINED, ModelSource, fingerprint, resolve_source

Pair = tuple[str, str]
Encoded = Mapping[str, list[int]]

DEFAULT_MAX_TOKENS = 512
"""Where neither the tokenizer nor the configuration says how long an input may be."""


class RewardScores(NamedTuple):
    """The scores of some pairs, in their order."""

    values: list[float | None]
    """Logits; None where the model gave no finite number: unscored is not zero."""
    n_truncated: int
    """Pairs longer than the model reads: the tokenizer cut the longer text of the two first."""


@dataclass(frozen=True, eq=False)
class RewardModel:
    """A sequence classifier with one output and its tokenizer: in evaluation mode, frozen, on one device."""

    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    spec: str
    """What the user asked for: a folder or a hub id."""
    fingerprint: str
    """16 hexadecimal digits that change with configuration or weights; for manifests."""
    max_tokens: int
    """Pairs longer than this are cut by the tokenizer."""
    revision: str | None = None
    """The commit of the hub repository; None for anything local."""

    def score(
        self, pairs: Sequence[Pair], batch_size: int = 16, *, truncated: Sequence[bool] | None = None
    ) -> list[float | None]:
        """The score of each (prompt, answer), in order; None where the model gave no finite number."""
        return score_pairs(self, pairs, batch_size, truncated=truncated).values


@runtime_checkable
class Scores(Protocol):
    """Anything that scores (prompt, answer) pairs; `truncated` says which answers broke off (None: none did)."""

    @property
    def spec(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def score(
        self, pairs: Sequence[Pair], batch_size: int = 16, *, truncated: Sequence[bool] | None = None
    ) -> list[float | None]: ...


def load_reward_model(
    spec: str | Path, *, dtype: str | torch.dtype | None = None, device: str | torch.device = "auto"
) -> Scores:
    """A reward model from a local folder or a hub id; also one that `triptych align reward` trained, or its run.

    fp32 by default: bf16 rounds a score of 3 to steps of 1/64, which is what answers of one prompt differ by.

    Raises `ModelError` where the model is no sequence classifier with exactly one output, or cannot be loaded.
    """
    if (trained := _trained_here(Path(spec).expanduser())) is not None:
        # The one place where models look up to a panel: who scores need not know who trained.
        from triptych.alignment.reward_model import load_trained_reward_model

        # Its residual stream and its head are fp32 whatever the weights are, so that `auto` is fine enough.
        return load_trained_reward_model(trained, dtype=dtype or "auto", device=device)
    chosen_device = resolve_device(device)
    chosen_dtype = resolve_dtype(dtype or "float32", chosen_device)
    source = resolve_source(str(spec))
    _require_one_output(source)
    model = load_pretrained(AutoModelForSequenceClassification, source, chosen_dtype, chosen_device)
    tokenizer = load_tokenizer(source)
    return RewardModel(
        model=model,
        tokenizer=tokenizer,
        spec=source.spec,
        fingerprint=fingerprint(source),
        max_tokens=max_tokens_of(model, tokenizer),
        revision=source.revision,
    )


def _trained_here(folder: Path) -> Path | None:
    """The folder that training wrote: this one, or that of the reward model in a run directory."""
    places = (folder, folder / TRAINED / "reward")
    return next(
        (path for path in places if (path / REWARD_CONFIG).is_file() or (path / ADAPTER_CONFIG).is_file()), None
    )


@torch.inference_mode()
def score_pairs(
    reward: RewardModel, pairs: Sequence[Pair], batch_size: int = 16, *, truncated: Sequence[bool] | None = None
) -> RewardScores:
    """Scores (prompt, answer) pairs in batches of similar length; an empty answer is scored like any other.

    Where the tokenizer puts an EOS behind an answer, a truncated one (`truncated`, one flag a pair; None: all are
    finished) is read without it. A separator that closes a pair, as an encoder's does, is a frame and stays. Neither
    order nor batch size changes a score beyond rounding: padding is masked.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    values: list[float | None] = [None] * len(pairs)
    if not pairs:
        return RewardScores(values, n_truncated=0)
    encoded, n_truncated = _encode(reward, pairs)
    encoded = [
        _without_end(reward, one) if cut else one for one, cut in zip(encoded, flags(truncated, pairs), strict=True)
    ]
    # Decoder-only classifiers find the end of a row by the pad id of their configuration; without one, no padding.
    size = batch_size if reward.model.config.pad_token_id is not None else 1
    for rows in _by_length(encoded, size):
        for row, value in zip(rows, _batch_scores(reward, [encoded[row] for row in rows]), strict=True):
            values[row] = value if math.isfinite(value) else None
    return RewardScores(values, n_truncated)


def _encode(reward: RewardModel, pairs: Sequence[Pair]) -> tuple[list[Encoded], int]:
    with quiet_transformers():
        whole = [dict(reward.tokenizer(prompt, answer)) for prompt, answer in pairs]
        long = [row for row, fields in enumerate(whole) if len(fields["input_ids"]) > reward.max_tokens]
        for row in long:
            whole[row] = dict(reward.tokenizer(*pairs[row], truncation=True, max_length=reward.max_tokens))
    return [*whole], len(long)


def flags(truncated: Sequence[bool] | None, pairs: Sequence[Pair]) -> Sequence[bool]:
    """One flag a pair; `ValueError` where there are more or fewer."""
    if truncated is not None and len(truncated) != len(pairs):
        raise ValueError(f"truncated must have one flag a pair: {len(truncated)} flags, {len(pairs)} pairs")
    return [False] * len(pairs) if truncated is None else truncated


def _without_end(reward: RewardModel, fields: Encoded) -> Encoded:
    eos = reward.tokenizer.eos_token_id
    if eos is None or eos == reward.tokenizer.sep_token_id or fields["input_ids"][-1] != eos:
        return fields
    return {name: ids[:-1] for name, ids in fields.items()}


def _by_length(encoded: Sequence[Encoded], batch_size: int) -> Iterator[list[int]]:
    """Row numbers in batches of similar length, so that little is computed on padding."""
    rows = sorted(range(len(encoded)), key=lambda row: len(encoded[row]["input_ids"]))
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]


def _batch_scores(reward: RewardModel, batch: Sequence[Encoded]) -> list[float]:
    if len(batch) == 1:
        inputs = {name: torch.tensor([ids]) for name, ids in batch[0].items()}
    else:
        fields = {name: [row[name] for row in batch] for name in batch[0]}
        inputs = dict(reward.tokenizer.pad(fields, padding_side="right", return_tensors="pt"))
    logits: torch.Tensor = reward.model(**{name: ids.to(reward.model.device) for name, ids in inputs.items()}).logits
    scores: list[float] = logits[:, 0].float().tolist()
    return scores


def _require_one_output(source: ModelSource) -> None:
    config = read_config(source)
    names = [str(name) for name in config.architectures or ()]
    if names and not any(name.endswith("ForSequenceClassification") for name in names):
        raise ModelError(f"model {source.spec} is a {names[0]}, not a reward model (a ...ForSequenceClassification)")
    if config.num_labels != 1:
        raise ModelError(
            f"model {source.spec} has {config.num_labels} outputs; a reward model has exactly one (num_labels: 1)"
        )


def max_tokens_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The shorter of what the tokenizer and the positions allow; tokenizers say 10^30 where they know no limit."""
    positions = getattr(model.config, "max_position_embeddings", None)
    # RoBERTa and its kin count positions from behind the pad id.
    padded = [m.padding_idx for name, m in model.named_modules() if name.endswith(".position_embeddings")]
    if positions is not None and padded and padded[0] is not None:
        positions -= int(padded[0]) + 1
    stated = [tokenizer.model_max_length, positions]
    limits = [int(limit) for limit in stated if limit is not None and 0 < limit < 10**9]
    return min(limits, default=DEFAULT_MAX_TOKENS)
