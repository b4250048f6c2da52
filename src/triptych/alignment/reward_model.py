"""Reward models: Bradley–Terry on any transformers backbone, training and use.

A decoder reads the very tokens that a policy does (template, answer, EOS), an encoder two texts as its tokenizer joins
them. What is scored at use is built by the function that built it in training; `reward_config.json` beside the adapter
says how. Not here: from tokens to scores (`scorers`).
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from triptych.alignment.adapters import with_lora
from triptych.alignment.dpo import PairOrder, dropout_generator, micro_batches_of
from triptych.alignment.encoding import READERS, EncodedPair, Kind, Template, resolve_template
from triptych.alignment.loop import Stateless, TrainingConfig
from triptych.alignment.losses import bradley_terry
from triptych.alignment.optimisation import OptimiserConfig, accumulate
from triptych.alignment.packing import Group, micro_batches, pass_tokens, split
from triptych.alignment.scorers import Scorer, kind_of, make_scorer
from triptych.config import parse_config
from triptych.data.templates import render_prompt
from triptych.errors import ConfigError, ModelError
from triptych.models.classifiers import head_names, load_classifier
from triptych.models.hub import first_line
from triptych.models.loading import LOAD_ERRORS, load_tokenizer, quiet_transformers, resolve_device, resolve_dtype
from triptych.models.reward import flags, max_tokens_of
from triptych.models.sources import (
    ADAPTER_CONFIG,
    REWARD_CONFIG,
    ModelSource,
    fingerprint,
    read_json,
    require_adapter,
    require_own_base,
    resolve_source,
)
from triptych.records import Prompt, Record
from triptych.workers import Workers

PASS_TOKENS = 1024
"""Of a pass in use, prompts included, at most."""


class RewardConfig(TrainingConfig):
    """Training of a reward model."""

    optimiser: OptimiserConfig = OptimiserConfig(learning_rate=1e-4)
    model: str | None = None
    """The backbone: `starter`, a folder or a hub id; None takes the study's model."""
    centring: float = Field(default=0.01, ge=0.0)
    """Weight of (r_chosen + r_rejected)², which keeps scores around 0 (Eisenstein et al. 2023)."""
    batch_size: int = Field(default=8, ge=1)
    epochs: int = Field(default=1, ge=1)
    max_steps: int | None = Field(default=None, ge=1)


class RewardReading(Record):
    """How a trained reward model reads a text: `reward_config.json`."""

    kind: Kind
    template: str
    max_length: int
    seed: int
    """Of the parts of the head that are not saved; all of them are, so that it only names the run."""


class RewardTask(Stateless):
    """Reward modelling as the training loop sees it."""

    name = "reward"

    def __init__(
        self,
        scorer: Scorer,
        config: RewardConfig,
        train: Sequence[EncodedPair],
        validation: Sequence[EncodedPair],
        workers: Workers,
        *,
        seed: int,
    ) -> None:
        self._scorer, self._config, self._workers, self._seed = scorer, config, workers, seed
        self._train, self._validation = train, validation
        self._order = PairOrder(len(train), config.batch_size, config.epochs, config.max_steps, seed)
        self.total_steps = self._order.steps

    def accumulate(self, step: int) -> dict[str, float | None]:
        batch = self._order.batch(step)
        return self._run([self._train[row] for row in self._workers.share(batch)], len(batch), step)

    def evaluate(self) -> dict[str, float | None]:
        if not self._validation:
            return {}
        rows = self._workers.share(range(len(self._validation)))
        with torch.no_grad():
            measured = self._run([self._validation[row] for row in rows], len(self._validation), None)
        measured.pop("tokens")
        return measured

    def margins(self, pairs: Sequence[EncodedPair]) -> list[float]:
        """r_chosen - r_rejected of each pair."""
        with torch.no_grad():
            parts = micro_batches_of(pairs, self._config, self._scorer.device, self._scorer.lanes)
            scores = [*self._scorer.lanes.map(lambda part: self._scorer.scores([p.group for p in part]), parts)]
        return [float(chosen - rejected) for part in scores for chosen, rejected in part.view(-1, 2)]

    def _run(self, pairs: Sequence[EncodedPair], n: int, step: int | None) -> dict[str, float | None]:
        """Losses of some pairs, with gradients for a step (None: evaluation); means over the n pairs of all workers."""

        def read(part: Sequence[EncodedPair]) -> tuple[Tensor, Tensor]:
            dropout = None
            if step is not None:
                dropout = dropout_generator(self._config, self._seed, step, part[0].id)
            scores = self._scorer.scores([pair.group for pair in part], dropout).view(-1, 2)
            out = bradley_terry(scores[:, 0], scores[:, 1], centring=self._config.centring)
            margin = out.rewards_chosen - out.rewards_rejected
            columns = (out.losses.detach(), (margin > 0).float(), margin)
            tokens = float(sum(pair.group.n_tokens for pair in part))
            own = torch.tensor([*(float(column.sum()) for column in columns), tokens], dtype=torch.float64)
            return out.losses.sum() / n, own

        lanes = self._scorer.lanes
        parts = micro_batches_of(pairs, self._config, self._scorer.device, lanes)
        found: Iterable[Tensor] = (
            accumulate(read, parts, self._scorer.parameters.values(), lanes)
            if step is not None
            else (own for _, own in lanes.map(read, parts))
        )
        sums = sum(found, torch.zeros(4, dtype=torch.float64))
        self._workers.sum([sums])
        loss, right, margin_sum, tokens = sums.tolist()
        return {"loss": loss / n, "accuracy": right / n, "margin": margin_sum / n, "tokens": tokens}


class NewScorer(NamedTuple):
    """A backbone that is about to become a reward model."""

    scorer: Scorer
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    """Of the backbone."""
    reading: RewardReading


def new_scorer(
    spec: str, config: RewardConfig, *, template: Template = "auto", dtype: str, device: str, seed: int
) -> NewScorer:
    """A backbone with LoRA (or all its weights to be trained) and a new head, and how it reads.

    Raises `ModelError` for a backbone that cannot carry a head of one output over prompt and answer.
    """
    source = resolve_source(spec)
    chosen = resolve_device(device)
    number = torch.float32 if config.lora is None else resolve_dtype(dtype, chosen)
    base = load_classifier(source, dtype=number, device=chosen, seed=seed, quantisation=config.quantisation)
    tokenizer = load_tokenizer(source)
    kind = kind_of(base, tokenizer, spec)
    if kind == "encoder":
        if config.quantisation is not None:
            raise ConfigError(f"model {spec} is an encoder, which trains in fp32 here; leave out quantisation")
        # Only now is it known to be one; what bf16 has rounded stays rounded.
        base = load_classifier(source, dtype=torch.float32, device=chosen, seed=seed)
    if config.lora is None:
        model: nn.Module = base.requires_grad_(True)
    else:
        heads = head_names(base)
        model = with_lora(base, config.lora, task="SEQ_CLS", spec=spec, seed=seed, heads=heads)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    scorer = make_scorer(
        model,
        base,
        tokenizer,
        kind,
        lora=config.lora,
        checkpointing=config.gradient_checkpointing,
        share_prefix=config.share_prefix,
        path=config.path,
    )
    reading = RewardReading(
        kind=kind,
        template=resolve_template(template, tokenizer, kind),
        max_length=min(config.max_length, max_tokens_of(base, tokenizer)) if kind == "encoder" else config.max_length,
        seed=seed,
    )
    return NewScorer(scorer, tokenizer, fingerprint(source), reading)


class TrainedRewardModel:
    """A reward model of this project in use: scores of (prompt, answer) pairs, prompts shared between their answers."""

    def __init__(
        self, scorer: Scorer, tokenizer: PreTrainedTokenizerBase, reading: RewardReading, spec: str, key: str
    ) -> None:
        self._scorer, self._tokenizer, self._reading = scorer, tokenizer, reading
        self.spec = spec
        self.fingerprint = key

    @torch.no_grad()
    def score(
        self, pairs: Sequence[tuple[str, str]], batch_size: int = 16, *, truncated: Sequence[bool] | None = None
    ) -> list[float | None]:
        """The score of each (prompt, answer), in order; None where the prompt leaves no room for an answer.

        A decoder has learnt on finished answers, which end with EOS; a truncated one (`truncated`, one flag a pair;
        None: all are finished) is scored at the last token that was written, and not at all where that is nothing.
        """
        cut = flags(truncated, pairs)
        some = [row for row in range(len(pairs)) if pairs[row][1].strip() or not cut[row]]
        order = sorted(some, key=lambda row: pairs[row][0])
        values: list[float | None] = [None] * len(pairs)
        grouped = [list(rows) for _, rows in groupby(order, key=lambda row: pairs[row][0])]
        read = [(rows, self._group(pairs, rows, cut)) for rows in grouped]
        rows = [row for rows, group in read if group is not None for row in rows]
        whole, lanes = [group for _, group in read if group is not None], self._scorer.lanes
        most = pass_tokens([group.n_tokens for group in whole], PASS_TOKENS, lanes.count)
        groups = [part for group in whole for part in split(group, most)]
        parts = micro_batches([group.n_tokens for group in groups], max_tokens=most)
        scored = lanes.map(lambda part: self._scorer.scores([groups[i] for i in part]).tolist(), parts)
        for row, score in zip(rows, (score for scores in scored for score in scores), strict=True):
            values[row] = score
        return values

    def _group(self, pairs: Sequence[tuple[str, str]], rows: Sequence[int], cut: Sequence[bool]) -> Group | None:
        prompt = Prompt(id="scored", instruction=pairs[rows[0]][0])
        rendered = render_prompt(prompt, self._reading.template, self._tokenizer)
        answers = [pairs[row][1] for row in rows]
        read = READERS[self._reading.kind](rendered, answers, self._tokenizer, [cut[row] for row in rows])
        return read.cut(self._reading.max_length)


def load_trained_reward_model(
    folder: Path, *, dtype: str | torch.dtype = "auto", device: str | torch.device = "auto"
) -> TrainedRewardModel:
    """A reward model from the folder that training wrote.

    Raises `ModelError` where the folder is not one, or its adapter does not fit its base.
    """
    if not (folder / REWARD_CONFIG).is_file():
        raise ModelError(f"{folder} is an adapter but no reward model of this project: it has no {REWARD_CONFIG}")
    reading = parse_config(RewardReading, read_json(folder / REWARD_CONFIG), where=str(folder / REWARD_CONFIG))
    chosen = resolve_device(device)
    number = torch.float32 if reading.kind == "encoder" else resolve_dtype(dtype, chosen)
    if not (folder / ADAPTER_CONFIG).is_file():
        source = resolve_source(str(folder))
        whole = load_classifier(source, dtype=number, device=chosen, seed=reading.seed)
        return _in_use(whole, whole, source, reading, folder, fingerprint(source))
    require_adapter(folder)
    source = resolve_source(str(read_json(folder / ADAPTER_CONFIG)["base_model_name_or_path"]))
    require_own_base(folder, source)
    base = load_classifier(source, dtype=number, device=chosen, seed=reading.seed)
    return _in_use(_with_adapter(base, folder, source), base, source, reading, folder, fingerprint(source, folder))


def _with_adapter(base: Any, folder: Path, source: ModelSource) -> nn.Module:
    with quiet_transformers():
        import peft

        try:
            model: nn.Module = peft.PeftModel.from_pretrained(base, str(folder), is_trainable=False)
        except LOAD_ERRORS as error:
            raise ModelError(f"adapter {folder} does not fit its base {source.spec}: {first_line(error)}") from error
    for name, parameter in model.named_parameters():
        # Trained in fp32: scores of answers to one prompt differ by less than bf16 resolves.
        if ".modules_to_save." in name:
            parameter.data = parameter.data.float()
    return model


def _in_use(
    model: nn.Module, base: Any, source: ModelSource, reading: RewardReading, folder: Path, key: str
) -> TrainedRewardModel:
    model.eval().requires_grad_(False)
    tokenizer = load_tokenizer(source)
    return TrainedRewardModel(make_scorer(model, base, tokenizer, reading.kind), tokenizer, reading, str(folder), key)
