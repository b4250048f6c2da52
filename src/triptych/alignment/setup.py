"""A training run of the panel, set up and not yet driven: models, data and task, for either engine.

Not here: driving it (`loop`, `trl_engine`), what is written at the end (`study`).
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from triptych.alignment.dpo import DpoConfig, DpoTask, reference_logprobs
from triptych.alignment.encoding import EncodedPair, EncodedPairs, Kind, encode_pairs, pair_prompt, resolve_template
from triptych.alignment.figures import dpo_figures, grpo_figures, reward_figures
from triptych.alignment.grpo import GrpoConfig, GrpoTask
from triptych.alignment.loop import Task, TrainingConfig
from triptych.alignment.plan import AlignmentConfig
from triptych.alignment.policy import Policy
from triptych.alignment.reward_model import RewardConfig, RewardReading, RewardTask, new_scorer
from triptych.alignment.rewards import load_rewards
from triptych.alignment.state import STATE, Figure, Method, Warned
from triptych.config import canonical_json
from triptych.data.pair_checks import check_pairs, describe
from triptych.data.pairs import PreferencePair, prompt_key
from triptych.data.prompts import load_prompts
from triptych.data.split import Split
from triptych.data.templates import render_prompt
from triptych.errors import ConfigError, DataError
from triptych.models import LanguageModel
from triptych.records import Prompt
from triptych.seeding import generator
from triptych.workers import Journal, Workers

FOLDER = "alignment"


class Panel(NamedTuple):
    """What all stages of the panel share."""

    config: AlignmentConfig
    load_model: Callable[..., LanguageModel]
    """(dtype) → the base, fresh: training changes it."""
    model: str
    dtype: str
    device: str
    seed: int
    split: Callable[[], Split]
    run: Journal
    workers: Workers
    show_progress: bool

    def folder(self, method: Method) -> Path:
        return self.run.path / FOLDER / method


class Setup(NamedTuple):
    """One training run, ready to be driven."""

    method: Method
    config: TrainingConfig
    task: Task
    model: Any
    """What is trained, as PEFT or transformers has it, to be saved."""
    tokenizer: PreTrainedTokenizerBase
    base: str
    """As the user named it."""
    fingerprint: str
    """Of the base."""
    path: str
    """How the native engine computes: `fused` or `generic`."""
    parameters: dict[str, torch.nn.Parameter]
    train: Sequence[Any]
    """Encoded pairs; of GRPO, rendered prompts."""
    held_out: Sequence[Any]
    data_key: str
    """Of what is trained on."""
    figures: Callable[[], list[Figure]]
    """What is measured at the end."""
    warnings: tuple[Warned, ...] = ()
    """Of the data check."""
    reading: RewardReading | None = None
    """Of a reward model: how it reads prompts."""


def set_up_reward(panel: Panel) -> Setup:
    config = panel.config.reward or RewardConfig()
    spec = config.model or panel.model
    scorer, tokenizer, fingerprint, reading = new_scorer(
        spec,
        config,
        template=panel.config.template,
        dtype=panel.dtype,
        device=panel.device,
        seed=panel.seed,
    )
    data = _pair_data(panel, tokenizer, reading.max_length, reading.kind)
    _require_batch(data.train, config.batch_size)
    task = RewardTask(scorer, config, data.train, data.validation, panel.workers, seed=panel.seed)
    return Setup(
        method="reward",
        config=config,
        task=task,
        model=scorer.model,
        tokenizer=tokenizer,
        base=spec,
        fingerprint=fingerprint,
        path=scorer.path,
        parameters=scorer.parameters,
        train=data.train,
        held_out=data.validation,
        data_key=data.key,
        figures=lambda: reward_figures(task, data.validation, data.clusters, panel.workers, seed=panel.seed),
        warnings=data.warnings,
        reading=reading,
    )


def set_up_dpo(panel: Panel) -> Setup:
    config = panel.config.dpo or DpoConfig()
    policy = _new_policy(panel, config)
    data = _pair_data(panel, policy.lm.tokenizer, config.max_length)
    _require_batch(data.train, config.batch_size)
    references = reference_logprobs(
        policy, data.train, config, workers=panel.workers, show_progress=panel.show_progress, seed=panel.seed
    )
    task = DpoTask(policy, config, data.train, data.validation, references, panel.workers, seed=panel.seed)
    return Setup(
        method="dpo",
        config=config,
        task=task,
        train=data.train,
        held_out=data.validation,
        data_key=data.key,
        figures=lambda: dpo_figures(task, data.clusters, panel.workers, seed=panel.seed),
        warnings=data.warnings,
        **_of_policy(panel, policy),
    )


def set_up_grpo(panel: Panel) -> Setup:
    config = panel.config.grpo or GrpoConfig()
    policy = _new_policy(panel, config)
    tokenizer = policy.lm.tokenizer
    train, held_out = _prompt_data(panel, config, tokenizer)
    pairs = _pair_data(panel, tokenizer, config.max_length).validation if panel.config.pairs is not None else ()
    own = panel.folder("reward") if (panel.folder("reward") / STATE).exists() else None
    rewards = load_rewards(config.rewards, own=own, device=panel.device)
    gold = load_rewards((config.gold,), own=own, device=panel.device)[0] if config.gold is not None else None
    task = GrpoTask(policy, config, train, held_out, pairs, rewards, gold, panel.workers, seed=panel.seed)
    return Setup(
        method="grpo",
        config=config,
        task=task,
        train=train,
        held_out=held_out,
        data_key=_digest(canonical_json([[prompt.id, prompt.prompt] for prompt in train])),
        figures=lambda: grpo_figures(task, max_new_tokens=config.max_new_tokens, seed=panel.seed),
        **_of_policy(panel, policy),
    )


SETUPS: dict[Method, Callable[[Panel], Setup]] = {"reward": set_up_reward, "dpo": set_up_dpo, "grpo": set_up_grpo}


def _of_policy(panel: Panel, policy: Policy) -> dict[str, Any]:
    return {
        "model": policy.model,
        "tokenizer": policy.lm.tokenizer,
        "base": panel.model,
        "fingerprint": policy.lm.fingerprint,
        "path": policy.trunk.path,
        "parameters": policy.parameters,
    }


def load_base(panel: Panel, config: TrainingConfig) -> LanguageModel:
    """A fresh copy of the base; in fp32 where all of it is trained."""
    dtype = "float32" if config.lora is None else panel.dtype
    return panel.load_model(dtype=dtype, quantisation=config.quantisation)


def _new_policy(panel: Panel, config: TrainingConfig) -> Policy:
    """A fresh base with what is trained on it."""

    def load() -> LanguageModel:
        return load_base(panel, config)

    return Policy(
        load(),
        lora=config.lora,
        seed=panel.seed,
        checkpointing=config.gradient_checkpointing,
        share_prefix=config.share_prefix,
        path=config.path,
        load_reference=load,
        as_written=isinstance(config, GrpoConfig),
    )


# --- Data -------------------------------------------------------------------------------------------------------------


class PairData(NamedTuple):
    """Preference pairs, ready for one model."""

    train: list[EncodedPair]
    validation: list[EncodedPair]
    clusters: dict[str, str]
    """The prompt of each pair, by id: what intervals resample."""
    warnings: tuple[Warned, ...]
    key: str
    """Of the tokens of all pairs."""


def _pair_data(panel: Panel, tokenizer: Any, max_length: int, kind: Kind = "decoder") -> PairData:
    """The pairs of the panel, checked, split and encoded; what the check found is logged once.

    Raises `DataError` where nothing is left to train on.
    """
    pairs, split = _load_pairs(panel), panel.split()
    train_side, held_out = (
        encode_pairs(side, panel.config.template, tokenizer, max_length, kind)
        for side in (split.train(pairs), split.held_out(pairs))
    )
    warnings = _check(pairs, [train_side, held_out], max_length, panel)
    key = _digest(repr([(p.id, p.group) for p in (*train_side.pairs, *held_out.pairs)]))
    clusters = {pair.id: prompt_key(pair) for pair in pairs}
    return PairData(train_side.pairs, held_out.pairs, clusters, warnings, key)


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


def _prompt_data(panel: Panel, config: GrpoConfig, tokenizer: Any) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to train on and held-out ones, rendered.

    Raises `DataError` where there are fewer than a step takes.
    """
    prompts = _pair_prompts(panel, tokenizer) if config.prompts == "pairs" else _prompts(panel, config, tokenizer)
    train, held_out = panel.split().train(prompts), panel.split().held_out(prompts)
    # Evaluations take the first of them, which must be a sample.
    held_out = [held_out[i] for i in generator(panel.seed, "evaluation prompts").permutation(len(held_out))]
    if len(train) < config.prompts_per_step:
        raise DataError(
            f"{config.prompts} leaves {len(train)} prompts to train on, fewer than prompts_per_step = "
            f"{config.prompts_per_step}; give more prompts or lower it"
        )
    return train, held_out


def _prompts(panel: Panel, config: GrpoConfig, tokenizer: Any) -> list[Prompt]:
    prompts = load_prompts(config.prompts, seed=panel.seed)
    if config.only_checked:
        prompts = [prompt for prompt in prompts if prompt.answers or prompt.checks]
    name = resolve_template(panel.config.template, tokenizer)
    return [prompt.model_copy(update={"prompt": render_prompt(prompt, name, tokenizer)}) for prompt in prompts]


def _pair_prompts(panel: Panel, tokenizer: Any) -> list[Prompt]:
    """One of each prompt of the pairs."""
    pairs = {prompt_key(pair): pair for pair in _load_pairs(panel)}.values()
    return [_as_prompt(pair, panel, tokenizer) for pair in pairs]


def _as_prompt(pair: PreferencePair, panel: Panel, tokenizer: Any) -> Prompt:
    text = pair_prompt(pair, panel.config.template, tokenizer)
    return Prompt(id=pair.id, instruction=pair.prompt, prompt=text)


def _load_pairs(panel: Panel) -> list[PreferencePair]:
    if panel.config.pair_source is None:
        raise ConfigError("pairs are missing; name a file, a hub data set or starter")
    return panel.config.pair_source.load(panel.seed)


def _require_batch(pairs: Sequence[EncodedPair], batch_size: int) -> None:
    if len(pairs) < batch_size:
        raise DataError(
            f"{len(pairs)} pairs to train on are fewer than a batch of {batch_size}; give more or lower batch_size"
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
