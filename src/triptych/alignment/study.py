"""The alignment panel: from a configuration to `alignment/{reward,dpo,grpo}/` in a run directory.

    align.reward   alignment/reward/   adapter_config.json, adapter_model.safetensors, reward_config.json
    align.dpo      alignment/dpo/      adapter_config.json, adapter_model.safetensors
    align.grpo     alignment/grpo/     the same

each with trainer_state.json and README.md, a model card. Each is a stage that is done once. Not here: what a step
computes (`dpo`, `reward_model`, `grpo`), the loop around it (`loop`), what is measured at the end (`figures`).
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from triptych.alignment.adapters import save_adapter
from triptych.alignment.cards import model_card
from triptych.alignment.checkpoints import Checkpoints
from triptych.alignment.dpo import DpoConfig, DpoTask, reference_logprobs
from triptych.alignment.encoding import EncodedPair, EncodedPairs, encode_pairs, pair_prompt, resolve_template
from triptych.alignment.figures import dpo_figures, grpo_figures, reward_figures
from triptych.alignment.grpo import GrpoConfig, GrpoTask
from triptych.alignment.loop import Trained, TrainingConfig, train
from triptych.alignment.plan import AlignmentConfig
from triptych.alignment.policy import Policy
from triptych.alignment.reward_model import (
    RewardConfig,
    RewardTask,
    new_scorer,
    reading_of,
)
from triptych.alignment.rewards import load_rewards
from triptych.alignment.state import STATE, Figure, Method, TrainerState, Warned
from triptych.config import canonical_json, config_hash
from triptych.data.pair_checks import check_pairs, describe
from triptych.data.pairs import PairSplit, PreferencePair, load_pairs, prompt_key, split_pairs
from triptych.data.prompts import load_prompts
from triptych.data.templates import render_prompt
from triptych.errors import ConfigError, DataError
from triptych.files import atomic_write_json, atomic_write_text
from triptych.memory import peak_memory
from triptych.models import LanguageModel
from triptych.models.sources import REWARD_CONFIG
from triptych.records import Prompt
from triptych.seeding import generator
from triptych.workers import Journal, Workers

FOLDER = "alignment"

logger = logging.getLogger(__name__)


class Panel(NamedTuple):
    """What all stages of the panel share."""

    config: AlignmentConfig
    load_model: Callable[..., LanguageModel]
    """(dtype) → the base, fresh: training changes it."""
    model: str
    dtype: str
    device: str
    seed: int
    run: Journal
    workers: Workers
    show_progress: bool

    def folder(self, method: Method) -> Path:
        return self.run.path / FOLDER / method


class PairData(NamedTuple):
    """Preference pairs, ready for one model."""

    train: list[EncodedPair]
    validation: list[EncodedPair]
    clusters: dict[str, str]
    """The prompt of each pair, by id: what intervals resample."""
    warnings: tuple[Warned, ...]
    key: str
    """Of the tokens of all pairs."""


def train_reward(panel: Panel) -> bool:
    """Trains the reward model where that is configured and not done; whether it did."""
    config = panel.config.reward
    if config is None or panel.run.is_done("align.reward"):
        return False
    with panel.run.stage("align.reward"):
        if panel.config.engine == "trl":
            _run_by_trl(panel, "reward")
        else:
            _reward(panel, config)
    return True


def train_policies(panel: Panel) -> bool:
    """Trains DPO and GRPO where they are configured and not done; whether there was anything to do."""
    did_work = False
    for name, is_wanted, run in (
        ("dpo", panel.config.dpo is not None, _dpo),
        ("grpo", panel.config.grpo is not None, _grpo),
    ):
        if not is_wanted or panel.run.is_done(f"align.{name}"):
            continue
        with panel.run.stage(f"align.{name}"):
            if panel.config.engine == "trl":
                _run_by_trl(panel, name)
            else:
                run(panel)
        did_work = True
    return did_work


def _run_by_trl(panel: Panel, name: str) -> None:
    from triptych.alignment.trl_engine import run_by_trl

    run_by_trl(panel, name)


def _reward(panel: Panel, config: RewardConfig) -> None:
    spec = config.model or panel.model
    scorer, tokenizer, fingerprint = new_scorer(spec, config, dtype=panel.dtype, device=panel.device, seed=panel.seed)
    data = load_pair_data(panel, tokenizer, config.max_length)
    require_batch(data.train, config.batch_size)
    task = RewardTask(scorer, config, data.train, data.validation, panel.workers, seed=panel.seed)
    trained = _train(panel, "reward", task, scorer.parameters, config, fingerprint, data.key)
    figures = reward_figures(task, data.validation, data.clusters, panel.workers, seed=panel.seed)
    if panel.workers.is_main:
        reading = reading_of(panel.config.template, tokenizer, config.max_length, panel.seed)
        atomic_write_json(panel.folder("reward") / REWARD_CONFIG, reading)
        save_weights(panel, "reward", scorer.model, tokenizer, config)
    state = new_state(panel, "reward", config, trained, spec, fingerprint, scorer.parameters, scorer.trunk.path)
    finish(panel, state, config, figures, data.warnings, (len(data.train), len(data.validation)))


def _dpo(panel: Panel) -> None:
    config = panel.config.dpo or DpoConfig()
    policy = new_policy(panel, config)
    tokenizer = policy.lm.tokenizer
    data = load_pair_data(panel, tokenizer, config.max_length)
    require_batch(data.train, config.batch_size)
    references = reference_logprobs(
        policy, data.train, config, workers=panel.workers, show_progress=panel.show_progress, seed=panel.seed
    )
    task = DpoTask(policy, config, data.train, data.validation, references, panel.workers, seed=panel.seed)
    trained = _train(panel, "dpo", task, policy.parameters, config, policy.lm.fingerprint, data.key)
    figures = dpo_figures(task, data.clusters, panel.workers, seed=panel.seed)
    if panel.workers.is_main:
        save_weights(panel, "dpo", policy.model, tokenizer, config)
    state = new_state(
        panel, "dpo", config, trained, panel.model, policy.lm.fingerprint, policy.parameters, policy.trunk.path
    )
    finish(panel, state, config, figures, data.warnings, (len(data.train), len(data.validation)))


def _grpo(panel: Panel) -> None:
    config = panel.config.grpo or GrpoConfig()
    policy = new_policy(panel, config)
    tokenizer = policy.lm.tokenizer
    train_prompts, held_out = load_prompt_data(panel, config, tokenizer)
    data = load_pair_data(panel, tokenizer, config.max_length) if panel.config.pairs is not None else None
    own = panel.folder("reward") if (panel.folder("reward") / STATE).exists() else None
    rewards = load_rewards(config.rewards, own=own, device=panel.device)
    gold = load_rewards((config.gold,), own=own, device=panel.device)[0] if config.gold is not None else None
    task = GrpoTask(
        policy,
        config,
        train_prompts,
        held_out,
        data.validation if data is not None else (),
        rewards,
        gold,
        panel.workers,
        seed=panel.seed,
    )
    key = hashlib.sha256(canonical_json([[p.id, p.prompt] for p in train_prompts]).encode()).hexdigest()[:16]
    trained = _train(panel, "grpo", task, policy.parameters, config, policy.lm.fingerprint, key)
    figures = grpo_figures(task, held_out, panel.run.path, seed=panel.seed)
    if panel.workers.is_main:
        save_weights(panel, "grpo", policy.model, tokenizer, config)
    state = new_state(
        panel, "grpo", config, trained, panel.model, policy.lm.fingerprint, policy.parameters, policy.trunk.path
    )
    finish(panel, state, config, figures, (), (len(train_prompts), len(held_out)))


def new_policy(panel: Panel, config: TrainingConfig) -> Policy:
    """A fresh base with what is trained on it."""

    def load() -> LanguageModel:
        dtype = "float32" if config.lora is None else panel.dtype
        return panel.load_model(dtype=dtype, quantisation=config.quantisation)

    return Policy(
        load(),
        lora=config.lora,
        seed=panel.seed,
        checkpointing=config.gradient_checkpointing,
        share_prefix=config.share_prefix,
        path=config.path,
        load_reference=load,
    )


def load_pair_data(panel: Panel, tokenizer: Any, max_length: int) -> PairData:
    """The pairs of the panel, checked, split and encoded; what the check found is logged once.

    Raises `DataError` where nothing is left to train on.
    """
    pairs, split = _split(panel)
    train_side, held_out = (encode_pairs(side, panel.config.template, tokenizer, max_length) for side in split)
    warnings = _check(pairs, [train_side, held_out], max_length, panel)
    digest = hashlib.sha256(repr([(p.id, p.group) for p in (*train_side.pairs, *held_out.pairs)]).encode())
    clusters = {pair.id: prompt_key(pair) for pair in pairs}
    return PairData(train_side.pairs, held_out.pairs, clusters, warnings, digest.hexdigest()[:16])


def _check(
    pairs: Sequence[PreferencePair], sides: Sequence[EncodedPairs], max_length: int, panel: Panel
) -> tuple[Warned, ...]:
    lengths = [one for side in sides for one in side.lengths]
    # Sides are in another order than the pairs, and only totals are asked for.
    report = check_pairs(pairs, seed=panel.seed, lengths=lengths, context=max_length)
    sentences = describe(report)
    if left_out := sum(side.n_without_room for side in sides):
        sentences.append(f"{left_out} of {len(pairs)} pairs are left out: their prompts fill max_length = {max_length}")
    if cut := sum(pair.is_truncated for side in sides for pair in side.pairs):
        sentences.append(f"{cut} of {len(pairs)} pairs have an answer cut at max_length = {max_length}")
    panel.run.log("pair_check", report=report.model_dump(mode="json"))
    return tuple(Warned(step=None, level="note", signal="pairs", sentence=sentence) for sentence in sentences)


def load_prompt_data(panel: Panel, config: GrpoConfig, tokenizer: Any) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to train on and held-out ones, rendered; drawn by the seed.

    Raises `DataError` where there are fewer than a step takes.
    """
    kept, held_out = (
        _pair_prompts(panel, tokenizer) if config.prompts == "pairs" else _prompts(panel, config, tokenizer)
    )
    if len(kept) < config.prompts_per_step:
        raise DataError(
            f"{config.prompts} leaves {len(kept)} prompts to train on, fewer than prompts_per_step = "
            f"{config.prompts_per_step}; give more prompts or lower it"
        )
    return kept, held_out


def _prompts(panel: Panel, config: GrpoConfig, tokenizer: Any) -> tuple[list[Prompt], list[Prompt]]:
    prompts = load_prompts(config.prompts, seed=panel.seed)
    if config.only_checked:
        prompts = [prompt for prompt in prompts if prompt.answers or prompt.checks]
    name = resolve_template(panel.config.template, tokenizer)
    rendered = [prompt.model_copy(update={"prompt": render_prompt(prompt, name, tokenizer)}) for prompt in prompts]
    order = generator(panel.seed, "prompt split").permutation(len(rendered))
    n_held_out = round(panel.config.validation * len(rendered))
    return [rendered[i] for i in order[n_held_out:]], [rendered[i] for i in order[:n_held_out]]


def _pair_prompts(panel: Panel, tokenizer: Any) -> tuple[list[Prompt], list[Prompt]]:
    """One of each prompt of the pairs, on the side that its pairs are on."""
    split = _split(panel)[1]
    train, held_out = ({prompt_key(pair): pair for pair in side}.values() for side in split)
    return [_as_prompt(p, panel, tokenizer) for p in train], [_as_prompt(p, panel, tokenizer) for p in held_out]


def _as_prompt(pair: PreferencePair, panel: Panel, tokenizer: Any) -> Prompt:
    text = pair_prompt(pair, panel.config.template, tokenizer)
    return Prompt(id=pair.id, instruction=pair.prompt, prompt=text)


def _split(panel: Panel) -> tuple[list[PreferencePair], PairSplit]:
    """All pairs of the panel, and their two sides."""
    config = panel.config
    if config.pairs is None:
        raise ConfigError("pairs are missing; name a file, a hub data set or starter")
    pairs = load_pairs(config.pairs, limit=config.limit, seed=panel.seed, shuffle=config.shuffle, on_bad=config.on_bad)
    return pairs, split_pairs(pairs, validation=config.validation, seed=panel.seed)


def require_batch(pairs: Sequence[EncodedPair], batch_size: int) -> None:
    if len(pairs) < batch_size:
        raise DataError(
            f"{len(pairs)} pairs to train on are fewer than a batch of {batch_size}; give more or lower batch_size"
        )


def _train(
    panel: Panel, method: Method, task: Any, parameters: Any, config: TrainingConfig, fingerprint: str, data_key: str
) -> Trained:
    key = hashlib.sha256(f"{config_hash(config)}:{fingerprint}:{data_key}:{panel.seed}".encode()).hexdigest()[:16]
    checkpoints = Checkpoints(panel.folder(method), key)
    return train(task, parameters, config, checkpoints, panel.run, panel.workers, show_progress=panel.show_progress)


def save_weights(panel: Panel, method: Method, model: Any, tokenizer: Any, config: TrainingConfig) -> None:
    folder = panel.folder(method)
    if config.lora is not None:
        save_adapter(model, folder)
        return
    from triptych.alignment.merge import save_model

    save_model(model, tokenizer, folder)


def new_state(
    panel: Panel,
    method: Method,
    config: TrainingConfig,
    trained: Trained,
    model: str,
    fingerprint: str,
    parameters: dict[str, torch.nn.Parameter],
    path: str,
) -> TrainerState:
    return TrainerState(
        method=method,
        model=model,
        fingerprint=fingerprint,
        config_hash=config_hash(config),
        step=trained.step,
        total_steps=trained.total_steps,
        outcome=trained.outcome,
        n_train=0,
        n_validation=0,
        n_trainable=sum(parameter.numel() for parameter in parameters.values()),
        seconds=trained.seconds,
        tokens=trained.tokens,
        peak_bytes=peak_memory(),
        path=path,
        warnings=trained.warnings,
    )


def finish(
    panel: Panel,
    state: TrainerState,
    config: TrainingConfig,
    figures: Sequence[Figure],
    warnings: Sequence[Warned],
    sizes: tuple[int, int],
) -> None:
    """Writes card and state, in this order: a folder with a state is complete. Checkpoints are not needed any more."""
    if not panel.workers.is_main:
        return
    whole = state.model_copy(
        update={
            "figures": tuple(figures),
            "warnings": (*warnings, *state.warnings),
            "n_train": sizes[0],
            "n_validation": sizes[1],
        }
    )
    folder = panel.folder(state.method)
    atomic_write_text(folder / "README.md", model_card(whole, config))
    atomic_write_json(folder / STATE, whole)
    Checkpoints(folder, "").discard()
    for one in whole.warnings:
        (logger.info if one.level == "note" else logger.warning)("%s: %s", state.method, one.sentence)
