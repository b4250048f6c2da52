"""The same recipes by TRL's trainers, for whoever wants to see both: same data, tokens, order, first weights and files.

TRL is given token ids and takes our order of pairs and prompts; what trains is its own: its padding, losses, loop and
(GRPO) generation. Its weights are then measured by the native code. Every key of a recipe is passed on or refused by
name, but for two that say how the native engine computes: `share_prefix` is for its evaluations alone, and
`checkpoint_every` has no effect, as TRL keeps no checkpoints here and a killed stage starts over.

Where TRL differs and cannot be told otherwise (1.16): GRPO's importance ratios are taken against a second forward pass
instead of the log-probabilities that were drawn from, and completions masked out stay in the denominators.

Not here: the losses that both have (`tests/golden` holds them against each other). Long, because all that the project
knows of TRL is in this one file.
"""

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from triptych.alignment.dpo import DpoConfig, DpoTask, PairOrder, reference_logprobs
from triptych.alignment.encoding import EncodedPair
from triptych.alignment.figures import dpo_figures, grpo_figures, reward_figures
from triptych.alignment.grpo import GrpoConfig, GrpoTask
from triptych.alignment.loop import Task, Trained, TrainingConfig, Weights
from triptych.alignment.losses import Dpo, Hinge, LengthNormalisedDpo
from triptych.alignment.policy_losses import PolicyLoss
from triptych.alignment.reward_functions import NamedReward
from triptych.alignment.reward_model import RewardConfig, RewardTask, new_scorer, reading_of
from triptych.alignment.rewards import load_rewards
from triptych.alignment.rollouts import Rollout, RolloutGroup, score_rollouts
from triptych.alignment.state import STATE, Method, Warned
from triptych.alignment.study import (
    Panel,
    finish,
    load_pair_data,
    load_prompt_data,
    new_policy,
    new_state,
    require_batch,
    save_weights,
)
from triptych.data.templates import encode_prompt
from triptych.errors import ConfigError, WorkError
from triptych.files import atomic_write_json
from triptych.models import LanguageModel
from triptych.models.classifiers import load_classifier
from triptych.models.loading import load_tokenizer, quiet_transformers, resolve_device, resolve_dtype
from triptych.models.sources import REWARD_CONFIG, resolve_source
from triptych.progress import Meter, progress
from triptych.records import Prompt

Measured = dict[str, float | None]

PAIR_NAMES = {
    "accuracy": "rewards/accuracies",
    "margin": "rewards/margins",
    "reward_chosen": "rewards/chosen",
    "reward_rejected": "rewards/rejected",
    "logp_chosen": "logps/chosen",
    "logp_rejected": "logps/rejected",
}
REWARD_NAMES = {"accuracy": "accuracy", "margin": "margin"}
ROLLOUT_NAMES = {"entropy": "entropy", "kl": "kl", "clip_fraction": "clip_ratio/region_mean"}
COMMON_NAMES = {"loss": "loss", "grad_norm": "grad_norm", "learning_rate": "learning_rate"}
"""Ours → TRL's, of figures that both define alike."""


def run_by_trl(panel: Panel, name: str) -> None:
    """Trains `reward`, `dpo` or `grpo` by TRL and writes what the native engine writes.

    Raises `ConfigError` where TRL is not installed or has no counterpart to a key of the recipe.
    """
    if find_spec("trl") is None:
        raise ConfigError("engine 'trl' is not installed: pip install 'triptych[trl]'")
    if panel.workers.count > 1:
        raise ConfigError("engine 'trl' runs in one process here; start it without torchrun, or use engine 'native'")
    RUNS[name](panel)


def _reward(panel: Panel) -> None:
    config = panel.config.reward or RewardConfig()
    settings = reward_settings(config)
    spec = config.model or panel.model
    scorer, tokenizer, fingerprint = new_scorer(spec, config, dtype=panel.dtype, device=panel.device, seed=panel.seed)
    data = load_pair_data(panel, tokenizer, config.max_length)
    require_batch(data.train, config.batch_size)
    task = RewardTask(scorer, config, data.train, data.validation, panel.workers, seed=panel.seed)
    order = PairOrder(len(data.train), config.batch_size, config.epochs, config.max_steps, panel.seed)
    rows = [
        {"chosen_ids": [*prompt, *chosen], "rejected_ids": [*prompt, *rejected]}
        for prompt, (chosen, rejected) in (pair.group for pair in data.train)
    ]

    def build(trl: Any, options: dict[str, Any]) -> Any:
        source = resolve_source(spec)
        device = resolve_device(panel.device)
        base = load_classifier(
            source, dtype=_dtype(panel, config), device=device, seed=panel.seed, quantisation=config.quantisation
        )
        return _subclass(trl.RewardTrainer, EpochOrder(order, len(data.train)))(
            model=_trainable(base, config),
            args=trl.RewardConfig(**options, **settings, max_length=None),
            train_dataset=_dataset(rows),
            processing_class=_with_other_pad(load_tokenizer(source)),
            peft_config=_peft_settings(scorer.model, config),
        )

    sizes = pass_sizes(config, config.batch_size, _longest(data.train), len(data.train))
    engine = Engine(panel, "reward", task, scorer.parameters, config, COMMON_NAMES | REWARD_NAMES)
    trained = engine.train(build, sizes)
    figures = reward_figures(task, data.validation, data.clusters, panel.workers, seed=panel.seed)
    reading = reading_of(panel.config.template, tokenizer, config.max_length, panel.seed)
    atomic_write_json(panel.folder("reward") / REWARD_CONFIG, reading)
    save_weights(panel, "reward", scorer.model, tokenizer, config)
    state = new_state(panel, "reward", config, trained, spec, fingerprint, scorer.parameters, "trl")
    finish(panel, state, config, figures, data.warnings, (len(data.train), len(data.validation)))


def _dpo(panel: Panel) -> None:
    config = panel.config.dpo or DpoConfig()
    settings = dpo_settings(config)
    policy = new_policy(panel, config)
    tokenizer = policy.lm.tokenizer
    data = load_pair_data(panel, tokenizer, config.max_length)
    require_batch(data.train, config.batch_size)
    references = reference_logprobs(
        policy, data.train, config, workers=panel.workers, show_progress=panel.show_progress, seed=panel.seed
    )
    task = DpoTask(policy, config, data.train, data.validation, references, panel.workers, seed=panel.seed)
    order = PairOrder(len(data.train), config.batch_size, config.epochs, config.max_steps, panel.seed)
    rows = [
        {"prompt_ids": [*prompt], "chosen_ids": [*chosen], "rejected_ids": [*rejected]}
        for prompt, (chosen, rejected) in (pair.group for pair in data.train)
    ]

    def build(trl: Any, options: dict[str, Any]) -> Any:
        lm = _load(panel, config)
        return _subclass(trl.DPOTrainer, EpochOrder(order, len(data.train)))(
            model=_trainable(lm.base, config),
            ref_model=_load(panel, config).base if config.lora is None else None,
            args=trl.DPOConfig(**options, **settings, disable_dropout=False, max_length=config.max_length),
            train_dataset=_dataset(rows),
            processing_class=lm.tokenizer,
            peft_config=_peft_settings(policy.model, config),
        )

    sizes = pass_sizes(config, config.batch_size, _longest(data.train), len(data.train))
    # TRL's rewards are not length-normalised where its loss is.
    names = {} if config.loss.name == "length_normalised_dpo" else PAIR_NAMES
    trained = Engine(panel, "dpo", task, policy.parameters, config, COMMON_NAMES | names).train(build, sizes)
    figures = dpo_figures(task, data.clusters, panel.workers, seed=panel.seed)
    save_weights(panel, "dpo", policy.model, tokenizer, config)
    state = new_state(panel, "dpo", config, trained, panel.model, policy.lm.fingerprint, policy.parameters, "trl")
    finish(panel, state, config, figures, data.warnings, (len(data.train), len(data.validation)))


def _grpo(panel: Panel) -> None:
    config = panel.config.grpo or GrpoConfig()
    settings = grpo_settings(config)
    policy = new_policy(panel, config)
    train, held_out = load_prompt_data(panel, config, policy.lm.tokenizer)
    data = load_pair_data(panel, policy.lm.tokenizer, config.max_length) if panel.config.pairs is not None else None
    own = panel.folder("reward") if (panel.folder("reward") / STATE).exists() else None
    rewards = load_rewards(config.rewards, own=own, device=panel.device)
    gold = load_rewards((config.gold,), own=own, device=panel.device)[0] if config.gold is not None else None
    pairs = data.validation if data is not None else ()
    task = GrpoTask(policy, config, train, held_out, pairs, rewards, gold, panel.workers, seed=panel.seed)
    rounds = range(math.ceil(config.steps / config.iterations))
    rows = [{"prompt": str(train[row].prompt), "row": row} for i in rounds for row in task.prompt_rows(i)]
    judge = RolloutRewards(task, train, rewards, policy.lm, config.group_size)

    def build(trl: Any, options: dict[str, Any]) -> Any:
        lm = _load(panel, config)
        generation: Any = lm.base.generation_config
        generation.eos_token_id = sorted(lm.eos_ids)
        return _subclass(trl.GRPOTrainer)(
            model=_trainable(lm.base, config),
            reward_funcs=judge,
            args=trl.GRPOConfig(**options, **settings),
            train_dataset=_dataset(rows),
            processing_class=lm.tokenizer,
            peft_config=_peft_settings(policy.model, config),
        )

    sizes = _rollout_sizes(config, [len(encode_prompt(str(p.prompt), policy.lm.tokenizer)) for p in train])
    # Of whole completions there, of tokens here.
    names = {name: key for name, key in ROLLOUT_NAMES.items() if config.loss.name != "gspo" or name != "clip_fraction"}
    engine = Engine(panel, "grpo", task, policy.parameters, config, COMMON_NAMES | names, judge.latest)
    trained = engine.train(build, sizes)
    figures = grpo_figures(task, held_out, panel.run.path, seed=panel.seed)
    save_weights(panel, "grpo", policy.model, policy.lm.tokenizer, config)
    state = new_state(panel, "grpo", config, trained, panel.model, policy.lm.fingerprint, policy.parameters, "trl")
    finish(panel, state, config, figures, (), (len(train), len(held_out)))


RUNS: dict[str, Callable[[Panel], None]] = {"reward": _reward, "dpo": _dpo, "grpo": _grpo}


# --- A recipe in TRL's words ------------------------------------------------------------------------------------------


def reward_settings(config: RewardConfig) -> dict[str, Any]:
    """What only `trl.RewardConfig` has; raises `ConfigError` for what TRL has no counterpart to."""
    _require_known(config, "reward")
    return {"center_rewards_coefficient": config.centring or None, "disable_dropout": False}


def dpo_settings(config: DpoConfig) -> dict[str, Any]:
    """What only `trl.DPOConfig` has; raises `ConfigError` for what TRL has no counterpart to."""
    _require_known(config, "dpo")
    if config.loss.name not in PREFERENCE_LOSSES:
        raise _no_counterpart(f"dpo.loss '{config.loss.name}'", f"it has {', '.join(PREFERENCE_LOSSES)}")
    return PREFERENCE_LOSSES[config.loss.name](config.loss)


def _sigmoid(loss: Dpo) -> dict[str, Any]:
    """DPO; cDPO as the weighted sum of two losses that TRL has.

    With L± = -log σ(±βh), TRL's `robust` is ((1 - ε) L₊ - ε L₋) / (1 - 2ε), so that

        (1 - ε) L₊ + ε L₋ = (2 - 2ε) L₊ - (1 - 2ε) robust
    """
    smoothing = loss.label_smoothing
    if smoothing == 0.0:
        return {"loss_type": ["sigmoid"], "beta": loss.beta}
    weights = [2.0 - 2.0 * smoothing, 2.0 * smoothing - 1.0]
    return {
        "loss_type": ["sigmoid", "robust"],
        "loss_weights": weights,
        "label_smoothing": smoothing,
        "beta": loss.beta,
    }


def _hinge(loss: Hinge) -> dict[str, Any]:
    return {"loss_type": ["hinge"], "beta": loss.beta}


def _sigmoid_norm(loss: LengthNormalisedDpo) -> dict[str, Any]:
    if loss.label_smoothing:
        raise _no_counterpart("dpo.loss.label_smoothing with length_normalised_dpo", "set it to 0")
    return {"loss_type": ["sigmoid_norm"], "beta": loss.beta}


PREFERENCE_LOSSES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "dpo": _sigmoid,
    "hinge": _hinge,
    "length_normalised_dpo": _sigmoid_norm,
}
"""TRL's `ipo` divides log-probabilities by lengths first, which is another loss; it has no SimPO here."""

POLICY_LOSSES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo"},
    "dapo": {"loss_type": "dapo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
}

SCALES = {"group_normalised": "group", "centred": "none"}


def grpo_settings(config: GrpoConfig) -> dict[str, Any]:
    """What only `trl.GRPOConfig` has; raises `ConfigError` for what TRL has no counterpart to."""
    _require_known(config, "grpo")
    loss: PolicyLoss = config.loss
    if config.advantage not in SCALES:
        raise _no_counterpart(f"grpo.advantage '{config.advantage}'", f"choose one of {', '.join(SCALES)}")
    if config.lora is None and loss.needs_reference:
        raise _no_counterpart("grpo.lora = null with grpo.loss.beta > 0", "it takes no reference; set either")
    if config.watch.action == "rollback":
        raise _no_counterpart("grpo.watch.action 'rollback'", "choose warn or stop")
    return POLICY_LOSSES[loss.name] | {
        "beta": loss.beta,
        "epsilon": loss.clip_low,
        "epsilon_high": loss.clip_high,
        "delta": loss.delta,
        # The penalty as GRPO's paper has it; TRL's default multiplies it with the importance ratio.
        "use_bias_correction_kl": False,
        "scale_rewards": SCALES[config.advantage],
        "num_generations": config.group_size,
        "num_iterations": config.iterations,
        "max_completion_length": config.max_new_tokens,
        "temperature": config.temperature,
        "mask_truncated_completions": config.mask_truncated,
        # The rows are in our order already.
        "shuffle_dataset": False,
    }


def _require_known(config: TrainingConfig, name: str) -> None:
    if config.path is not None:
        raise _no_counterpart(f"{name}.path '{config.path}'", "leave it out")
    if config.lora is None and config.optimiser.weight_decay:
        raise _no_counterpart(
            f"{name}.optimiser.weight_decay with lora = null", "it leaves norms and biases out of it; set it to 0"
        )


def _no_counterpart(what: str, remedy: str) -> ConfigError:
    return ConfigError(f"engine 'trl' has no counterpart to {what}: {remedy}, or use engine 'native'")


class PassSizes(NamedTuple):
    """An optimizer step as TRL takes it: so many rows a pass, so many passes."""

    rows: int
    passes: int


def pass_sizes(config: TrainingConfig, batch: int, longest: int, n: int) -> PassSizes:
    """A whole batch where it fits into `micro_batch_tokens`; else a common divisor of it and of an epoch's rest.

    TRL takes means of means, which are means only where all passes have as many rows.
    """
    fitting = min(max(1, config.micro_batch_tokens // longest), config.micro_batch_size or batch)
    common = math.gcd(batch, n)
    rows = max((d for d in range(1, fitting + 1) if common % d == 0), default=1) if batch > fitting else batch
    return PassSizes(rows, batch // rows)


def _rollout_sizes(config: GrpoConfig, prompts: Sequence[int]) -> PassSizes:
    batch = config.prompts_per_step * config.group_size
    per_group = None if config.micro_batch_size is None else config.micro_batch_size * config.group_size
    limited = config.model_copy(update={"micro_batch_size": per_group})
    return pass_sizes(limited, batch, max(prompts) + config.max_new_tokens, batch)


def _longest(pairs: Sequence[EncodedPair]) -> int:
    """Tokens of the longest pair as two rows."""
    return max(2 * (len(p.group.prompt) + max(map(len, p.group.completions))) for p in pairs)


def common_settings(panel: Panel, config: TrainingConfig, steps: int, sizes: PassSizes, folder: Path) -> dict[str, Any]:
    """What all of TRL's configs have of transformers' `TrainingArguments`."""
    options = config.optimiser
    warm = math.ceil(options.warmup * steps)
    schedule = "constant_with_warmup" if options.schedule == "constant" and warm else options.schedule
    return {
        "output_dir": str(folder),
        "seed": panel.seed,
        "data_seed": panel.seed,
        "max_steps": steps,
        "per_device_train_batch_size": sizes.rows,
        "gradient_accumulation_steps": sizes.passes,
        "optim": "adamw_torch",
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": schedule,
        "warmup_steps": warm,
        "adam_beta1": options.betas[0],
        "adam_beta2": options.betas[1],
        "adam_epsilon": options.epsilon,
        "weight_decay": options.weight_decay,
        "max_grad_norm": options.clip or 0.0,
        "gradient_checkpointing": config.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "bf16": _dtype(panel, config) == torch.bfloat16,
        "use_cpu": resolve_device(panel.device).type == "cpu",
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "push_to_hub": False,
        "disable_tqdm": True,
    }


def _dtype(panel: Panel, config: TrainingConfig) -> torch.dtype:
    device = resolve_device(panel.device)
    if device.type == "cuda" and torch.cuda.device_count() > 1:
        raise ConfigError("engine 'trl' takes the only GPU it sees; name one in CUDA_VISIBLE_DEVICES")
    chosen = torch.float32 if config.lora is None else resolve_dtype(panel.dtype, device)
    if chosen == torch.float16:
        raise _no_counterpart("dtype 'float16' without loss scaling", "choose float32 or bfloat16")
    return chosen


# --- TRL's trainer on our tokens, in our order ------------------------------------------------------------------------


class EpochOrder(Sampler[int]):
    """Rows in the order of the native engine, epoch by epoch; an epoch's rest makes a smaller batch."""

    def __init__(self, order: PairOrder, n: int) -> None:
        self._order, self._n, self._epoch = order, n, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by transformers' loop before each."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        first = self._epoch * self._order.per_epoch
        for step in range(first, first + self._order.per_epoch):
            yield from self._order.batch(step)

    def __len__(self) -> int:
        return self._n


class _Given:
    """What is put before a trainer of TRL: its data are tokens already, and their order is given."""

    triptych_order: EpochOrder | None
    processing_class: PreTrainedTokenizerBase

    def _prepare_dataset(self, dataset: Any, *arguments: Any) -> Any:
        return dataset

    def _send_telemetry(self) -> None:
        """Nothing: no hub is spoken to."""

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [encode_prompt(prompt, self.processing_class) for prompt in prompts], None, {}


class _Ordered(_Given):
    def _get_train_sampler(self, dataset: Any = None) -> EpochOrder | None:
        return self.triptych_order


def _subclass(trainer: type, order: EpochOrder | None = None) -> Any:
    """A trainer of TRL that reads what it is given; without an `order`, in its own way through the rows."""
    ahead = _Given if order is None else _Ordered
    return type(f"Given{trainer.__name__}", (ahead, trainer), {"triptych_order": order})


def _dataset(rows: Sequence[Mapping[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list([*rows])


def _load(panel: Panel, config: TrainingConfig) -> LanguageModel:
    """Another copy of the base, for TRL to change."""
    dtype = "float32" if config.lora is None else panel.dtype
    return panel.load_model(dtype=dtype, quantisation=config.quantisation)


def _trainable(base: Any, config: TrainingConfig) -> Any:
    return base if config.lora is not None else base.requires_grad_(True)


def _peft_settings(model: Any, config: TrainingConfig) -> Any:
    """The native model's own, so that both have the same modules."""
    return copy.deepcopy(model.peft_config["default"]) if config.lora is not None else None


def _with_other_pad(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """With a pad token that ends no answer: transformers' classifiers score the last token that is none.

    Raises `ConfigError` where the tokenizer has only one special token.
    """
    if tokenizer.pad_token is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return tokenizer
    others = [token for token in tokenizer.all_special_tokens if token != tokenizer.eos_token]
    if not others:
        raise _no_counterpart("a reward model whose tokenizer has no pad token but its EOS", "add one to the tokenizer")
    tokenizer.pad_token = others[0]
    return tokenizer


# --- Its loop, watched ------------------------------------------------------------------------------------------------


class Engine(NamedTuple):
    """One run: what is trained by TRL and measured natively."""

    panel: Panel
    method: Method
    task: Task
    parameters: dict[str, nn.Parameter]
    """Of the native model; TRL's has the same by the same names."""
    config: TrainingConfig
    names: Mapping[str, str]
    """Ours → TRL's, of what its log has."""
    beside: Callable[[], Measured] = dict
    """What was measured beside TRL, of the latest step."""

    def train(self, build: Callable[[Any, dict[str, Any]], Any], sizes: PassSizes) -> Trained:
        """Takes all steps and leaves the weights in the native model."""
        panel, steps = self.panel, self.task.total_steps
        mine = Weights(self.parameters)
        panel.run.metric(f"{self.method}.eval", 0, **self.task.evaluate())
        with TemporaryDirectory() as folder, _quietly():
            options = common_settings(panel, self.config, steps, sizes, Path(folder))
            trainer = build(import_module("trl"), options)
            theirs = self._theirs(trainer)
            theirs.write(mine.read())
            for printing in (PrinterCallback, ProgressCallback):
                trainer.remove_callback(printing)

            def evaluate(step: int) -> None:
                mine.write(theirs.read())
                panel.run.metric(f"{self.method}.eval", step, **self.task.evaluate())

            with progress(steps, "steps", f"{self.method} by TRL", enabled=panel.show_progress) as meter:
                record = Recorder(self, evaluate, meter)
                trainer.add_callback(record)
                trainer.train()
            evaluate(record.step)
        return Trained(record.step, record.outcome, tuple(record.warnings), steps, record.seconds, int(record.tokens))

    def _theirs(self, trainer: Any) -> Weights:
        named = dict(trainer.model.named_parameters())
        found = {name for name, parameter in named.items() if parameter.requires_grad}
        if found != set(self.parameters):
            odd = sorted(found ^ set(self.parameters))[0]
            raise WorkError(
                f"engine 'trl' trains other weights than the native engine, such as {odd}; use the native one"
            )
        for name in found:
            # PEFT keeps a saved module, and TRL the LoRA of an 8-bit base, in the dtype of the base.
            named[name].data = named[name].data.float()
        return Weights({name: named[name] for name in self.parameters})


class Recorder(TrainerCallback):
    """Writes metric lines in our names, looks for collapse, and evaluates natively now and then."""

    def __init__(self, engine: Engine, evaluate: Callable[[int], None], meter: Meter) -> None:
        self._engine, self._evaluate, self._meter = engine, evaluate, meter
        self._clock = self._began = time.monotonic()
        self.step, self.tokens, self.seconds = 0, 0.0, 0.0
        self.outcome: Any = "finished"
        self.warnings: list[Warned] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs is None or "loss" not in logs:
            return
        engine, step = self._engine, int(state.global_step)
        measured = self._measured(logs)
        engine.panel.run.metric(engine.method, step, **measured)
        if not all(math.isfinite(measured[name] or 0.0) for name in ("loss", "grad_norm")):
            raise WorkError(
                f"loss and gradient of step {step} are {measured['loss']} and {measured['grad_norm']}; lower the "
                "learning rate or look at the data of the step"
            )
        self.step = step
        self._meter.advance()
        decision = engine.task.judge(step, measured)
        for one in decision.warnings:
            self.warnings.append(one)
            engine.panel.run.log("warning", panel=engine.method, step=one.step, level=one.level, sentence=one.sentence)
        if decision.action != "go_on":
            self.outcome = "stopped"
            control.should_training_stop = True
        every = engine.config.eval_every
        if every is not None and step % every == 0 and step < engine.task.total_steps:
            self._evaluate(step)

    def _measured(self, logs: Mapping[str, Any]) -> Measured:
        now = time.monotonic()
        tokens = float(logs.get("num_tokens") or 0.0)
        known = {name: logs[key] for name, key in self._engine.names.items() if logs.get(key) is not None}
        measured: Measured = {name: float(value) for name, value in known.items()}
        measured |= self._engine.beside()
        measured |= {"tokens": tokens - self.tokens, "seconds": now - self._clock}
        self._clock, self.tokens, self.seconds = now, tokens, now - self._began
        return measured


class RolloutRewards:
    """All rewards of a recipe as one function for TRL, which also measures what it is shown."""

    __name__ = "reward"

    def __init__(
        self,
        task: GrpoTask,
        prompts: Sequence[Prompt],
        rewards: Sequence[NamedReward],
        lm: LanguageModel,
        group_size: int,
    ) -> None:
        self._task, self._prompts, self._rewards, self._size = task, prompts, rewards, group_size
        self._eos_ids = lm.eos_ids
        self._latest: Measured = {}

    def __call__(
        self, *, completions: list[str], completion_ids: list[list[int]], row: list[int], **columns: Any
    ) -> list[float | None]:
        """The weighted sums, None where no reward scored; `row` is the prompt of each completion."""
        rollouts = [self._rollout(*one) for one in zip(completions, completion_ids, strict=True)]
        groups = [
            RolloutGroup(self._prompts[row[at]], tuple(rollouts[at : at + self._size]), ())
            for at in range(0, len(rollouts), self._size)
        ]
        scored = score_rollouts(groups, self._rewards)
        rewards_P_G = torch.tensor([[math.nan if r is None else r for r in one] for one in scored.total])
        self._latest = self._task.measure(groups, scored, rewards_P_G)
        return [reward for one in scored.total for reward in one]

    def latest(self) -> Measured:
        """Of the rollouts of the latest step, as the native engine measures them."""
        return dict(self._latest)

    def _rollout(self, text: str, ids: list[int]) -> Rollout:
        ended = ids[-1] in self._eos_ids
        return Rollout(text, tuple(ids), (), not ended, len(ids) - ended)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keeps TRL's advice off the terminal, and torch's global generator, which it sets, as it was."""
    logger = logging.getLogger("trl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        logger.setLevel(level)
