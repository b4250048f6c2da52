"""Reward models: Bradley–Terry on any transformers backbone, training and use.

A decoder reads the very tokens that a policy does (template, answer, EOS) and is scored at the last of them, found by
its place and not by a pad id. What is scored at use is built by the function that built it in training;
`reward_config.json` beside the adapter says how.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from triptych.alignment.adapters import LoraConfig, with_lora
from triptych.alignment.dpo import PairOrder, dropout_generator, micro_batches_of
from triptych.alignment.encoding import EncodedPair, Template, encode_answer, resolve_template
from triptych.alignment.loop import GO_ON, Decision, TrainingConfig
from triptych.alignment.losses import bradley_terry
from triptych.alignment.optimisation import OptimiserConfig
from triptych.alignment.packing import Group, micro_batches
from triptych.alignment.packing import pack as pack_groups
from triptych.alignment.policy import Trunk, make_trunk
from triptych.config import parse_config
from triptych.data.templates import encode_prompt, render_prompt
from triptych.errors import ModelError
from triptych.models.classifiers import load_classifier
from triptych.models.hub import first_line
from triptych.models.loading import LOAD_ERRORS, load_tokenizer, quiet_transformers, resolve_device, resolve_dtype
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

    kind: Literal["decoder", "encoder"]
    template: str
    max_length: int
    seed: int
    """Of the parts of the head that are not saved; all of them are, so that it only names the run."""


class Scorer:
    """A backbone with a head of one output: scores of packed groups, with gradients."""

    def __init__(
        self,
        model: nn.Module,
        base: Any,
        *,
        lora: LoraConfig | None,
        checkpointing: bool = False,
        share_prefix: bool = True,
        path: str | None = None,
    ) -> None:
        self.model = model
        self._base = base
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._head = _head_weight(base.score)
        body_names = [name for name in self.parameters if ".modules_to_save." not in name]
        self.trunk: Trunk = make_trunk(
            base, model, body_names, lora=lora, checkpointing=checkpointing, share_prefix=share_prefix, path=path
        )

    def scores(self, groups: Sequence[Group], generator: torch.Generator | None = None) -> Tensor:
        """One a completion, in order, fp32."""
        packed = pack_groups(groups, share_prefix=self.trunk.shares_prefix)
        hidden = self.trunk.run(packed, True, generator)
        states = self.trunk.states(hidden[packed.last.to(hidden.device)])
        return F.linear(states.float(), self._head.float())[:, 0]


def _head_weight(head: Any) -> nn.Parameter:
    """[1, H]; of PEFT's trained copy where there is one."""
    active = head.modules_to_save[head.active_adapters[0]] if hasattr(head, "modules_to_save") else head
    weight: nn.Parameter = active.weight
    return weight


class RewardTask:
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
            parts = [
                self._scorer.scores([p.group for p in part]).view(-1, 2)
                for part in micro_batches_of(pairs, self._config)
            ]
        return [float(chosen - rejected) for part in parts for chosen, rejected in part]

    def judge(self, step: int, measured: Mapping[str, float | None]) -> Decision:
        return GO_ON

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing: a step is a function of the seed and the weights."""

    def can_pause(self, step: int) -> bool:
        return True

    def _run(self, pairs: Sequence[EncodedPair], n: int, step: int | None) -> dict[str, float | None]:
        """Losses of some pairs, with gradients for a step (None: evaluation); means over the n pairs of all workers."""
        sums = torch.zeros(4, dtype=torch.float64)
        for part in micro_batches_of(pairs, self._config):
            dropout = None
            if step is not None:
                dropout = dropout_generator(self._config, self._seed, step, part[0].id)
            scores = self._scorer.scores([pair.group for pair in part], dropout).view(-1, 2)
            out = bradley_terry(scores[:, 0], scores[:, 1], centring=self._config.centring)
            if step is not None:
                (out.losses.sum() / n).backward()
            margin = out.rewards_chosen - out.rewards_rejected
            columns = (out.losses.detach(), (margin > 0).float(), margin)
            tokens = float(sum(pair.group.n_tokens for pair in part))
            sums += torch.tensor([*(float(column.sum()) for column in columns), tokens], dtype=torch.float64)
        self._workers.sum([sums])
        loss, right, margin_sum, tokens = sums.tolist()
        return {"loss": loss / n, "accuracy": right / n, "margin": margin_sum / n, "tokens": tokens}


def new_scorer(
    spec: str, config: RewardConfig, *, dtype: str, device: str, seed: int
) -> tuple[Scorer, PreTrainedTokenizerBase, str]:
    """A backbone with LoRA and a new head, its tokenizer and its fingerprint.

    Raises `ModelError` for a backbone that is no decoder with a `score` head.
    """
    source = resolve_source(spec)
    chosen = resolve_device(device)
    kind = torch.float32 if config.lora is None else resolve_dtype(dtype, chosen)
    base = load_classifier(source, dtype=kind, device=chosen, seed=seed, quantisation=config.quantisation)
    _require_decoder(base, spec)
    if config.lora is None:
        model: nn.Module = base.requires_grad_(True)
    else:
        model = with_lora(base, config.lora, task="SEQ_CLS", spec=spec, seed=seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    scorer = Scorer(
        model,
        base,
        lora=config.lora,
        checkpointing=config.gradient_checkpointing,
        share_prefix=config.share_prefix,
        path=config.path,
    )
    return scorer, load_tokenizer(source), fingerprint(source)


def _require_decoder(base: Any, spec: str) -> None:
    if not isinstance(getattr(base, "score", None), nn.Module):
        raise ModelError(
            f"model {spec} is {type(base).__name__}, which has no `score` head over its last token; choose a decoder "
            "(finished encoder reward models can be used, not trained)"
        )


class TrainedRewardModel:
    """A reward model of this project in use: scores of (prompt, answer) pairs, prompts shared between their answers."""

    def __init__(
        self, scorer: Scorer, tokenizer: PreTrainedTokenizerBase, reading: RewardReading, spec: str, key: str
    ) -> None:
        self._scorer, self._tokenizer, self._reading = scorer, tokenizer, reading
        self.spec = spec
        self.fingerprint = key

    @torch.no_grad()
    def score(self, pairs: Sequence[tuple[str, str]], batch_size: int = 16) -> list[float | None]:
        """The score of each (prompt, answer), in order; None where the prompt leaves no room for an answer."""
        order = sorted(range(len(pairs)), key=lambda row: pairs[row][0])
        values: list[float | None] = [None] * len(pairs)
        grouped = [list(rows) for _, rows in groupby(order, key=lambda row: pairs[row][0])]
        read = [(rows, self._group(pairs, rows)) for rows in grouped]
        fitting = [(rows, group) for rows, group in read if group is not None]
        for part in micro_batches([group.n_tokens for _, group in fitting], max_tokens=4096):
            scores = self._scorer.scores([fitting[i][1] for i in part]).tolist()
            rows = [row for i in part for row in fitting[i][0]]
            for row, score in zip(rows, scores, strict=True):
                values[row] = score
        return values

    def _group(self, pairs: Sequence[tuple[str, str]], rows: Sequence[int]) -> Group | None:
        text = pairs[rows[0]][0]
        rendered = render_prompt(Prompt(id="scored", instruction=text), self._reading.template, self._tokenizer)
        ids = tuple(encode_prompt(rendered, self._tokenizer))
        room = self._reading.max_length - len(ids)
        if room <= 0:
            return None
        return Group(ids, tuple(encode_answer(pairs[row][1], self._tokenizer)[:room] for row in rows))


def reading_of(template: Template, tokenizer: PreTrainedTokenizerBase, max_length: int, seed: int) -> RewardReading:
    return RewardReading(
        kind="decoder", template=resolve_template(template, tokenizer), max_length=max_length, seed=seed
    )


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
    kind = resolve_dtype(dtype, chosen)
    if not (folder / ADAPTER_CONFIG).is_file():
        source = resolve_source(str(folder))
        whole = load_classifier(source, dtype=kind, device=chosen, seed=reading.seed)
        return _in_use(whole, whole, source, reading, folder, fingerprint(source))
    require_adapter(folder)
    source = resolve_source(str(read_json(folder / ADAPTER_CONFIG)["base_model_name_or_path"]))
    require_own_base(folder, source)
    base = load_classifier(source, dtype=kind, device=chosen, seed=reading.seed)
    return _in_use(_with_adapter(base, folder, source), base, source, reading, folder, fingerprint(source, folder))


def _with_adapter(base: Any, folder: Path, source: ModelSource) -> nn.Module:
    import peft

    with quiet_transformers():
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
    return TrainedRewardModel(Scorer(model, base, lora=None), load_tokenizer(source), reading, str(folder), key)
