"""The same recipes by TRL's trainers, for whoever wants to see both: same data, tokens, order, first weights and files.

TRL is given token ids and takes our order of pairs and prompts; what trains is its own: its padding, losses, loop and
(GRPO) generation. Its weights are then measured by the native code. Every key of a recipe is passed on or refused by
name, but for two that say how the native engine computes: `share_prefix` is for its evaluations alone, and
`checkpoint_every` has no effect, as TRL keeps no checkpoints here and a killed stage starts over.

Where TRL differs and cannot be told otherwise (1.16): GRPO's importance ratios are taken against a second forward pass
instead of the log-probabilities that were drawn from, and completions masked out stay in the denominators.

Not here: how a recipe reads in TRL's words (`trl_settings`), the losses that both have (`tests/golden` holds them
against each other).
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
from typing import Any, NamedTuple, cast

import torch
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from triptych.alignment.dpo import DpoConfig, PairOrder
from triptych.alignment.grpo import GrpoConfig, GrpoTask
from triptych.alignment.loop import Trained, TrainingConfig, Weights
from triptych.alignment.reward_model import RewardConfig
from triptych.alignment.rollouts import Rollout, RolloutGroup, score_rollouts
from triptych.alignment.setup import Panel, Setup, load_base
from triptych.alignment.state import Method, Warned
from triptych.alignment.trl_settings import (
    PassSizes,
    common_settings,
    dpo_settings,
    grpo_settings,
    longest_pair,
    no_counterpart,
    pass_sizes,
    reward_settings,
    rollout_sizes,
    training_dtype,
)
from triptych.data.templates import encode_prompt
from triptych.errors import ConfigError, WorkError
from triptych.models.classifiers import load_classifier
from triptych.models.loading import load_tokenizer, quiet_transformers, resolve_device
from triptych.models.sources import resolve_source
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


SETTINGS: dict[Method, Callable[[Any], dict[str, Any]]] = {
    "reward": reward_settings,
    "dpo": dpo_settings,
    "grpo": grpo_settings,
}


def require_trl(panel: Panel, method: Method) -> None:
    """Raises `ConfigError` where TRL is not installed or has no counterpart to a key of the recipe."""
    if find_spec("trl") is None:
        raise ConfigError("engine 'trl' is not installed: pip install 'triptych[trl]'")
    if panel.workers.count > 1:
        raise ConfigError("engine 'trl' runs in one process here; start it without torchrun, or use engine 'native'")
    config = getattr(panel.config, method)
    SETTINGS[method](config)
    training_dtype(panel, config)


def train_by_trl(panel: Panel, setup: Setup) -> Trained:
    """Takes all steps of a run by TRL; the trained weights are left in the native model."""
    return Engine(panel, setup, PLANS[setup.method](panel, setup)).train()


class Plan(NamedTuple):
    """How TRL is to take the steps of a run."""

    build: Callable[[Any, dict[str, Any]], Any]
    """(the package, what all of its configs have in common) → a trainer."""
    sizes: PassSizes
    names: Mapping[str, str]
    """Ours → TRL's, of what its log has."""
    beside: Callable[[], Measured] = dict
    """What was measured beside TRL, of the latest step."""


def _reward(panel: Panel, setup: Setup) -> Plan:
    config = cast(RewardConfig, setup.config)
    if setup.reading is not None and setup.reading.kind == "encoder":
        raise no_counterpart(f"the encoder {setup.base} as a reward model", "choose a decoder")
    order = _order(config, setup, panel.seed)
    rows = [
        {"chosen_ids": [*prompt, *chosen], "rejected_ids": [*prompt, *rejected]}
        for prompt, (chosen, rejected) in (pair.group for pair in setup.train)
    ]

    def build(trl: Any, options: dict[str, Any]) -> Any:
        source = resolve_source(setup.base)
        base = load_classifier(
            source,
            dtype=training_dtype(panel, config),
            device=resolve_device(panel.device),
            seed=panel.seed,
            quantisation=config.quantisation,
        )
        return _subclass(trl.RewardTrainer, order)(
            model=_trainable(base, config),
            args=trl.RewardConfig(**options, **reward_settings(config), max_length=None),
            train_dataset=_dataset(rows),
            processing_class=_with_other_pad(load_tokenizer(source)),
            peft_config=_peft_settings(setup),
        )

    return Plan(build, _pair_sizes(config, panel, setup), COMMON_NAMES | REWARD_NAMES)


def _dpo(panel: Panel, setup: Setup) -> Plan:
    config = cast(DpoConfig, setup.config)
    order = _order(config, setup, panel.seed)
    rows = [
        {"prompt_ids": [*prompt], "chosen_ids": [*chosen], "rejected_ids": [*rejected]}
        for prompt, (chosen, rejected) in (pair.group for pair in setup.train)
    ]

    def build(trl: Any, options: dict[str, Any]) -> Any:
        lm = load_base(panel, config)
        return _subclass(trl.DPOTrainer, order)(
            model=_trainable(lm.base, config),
            ref_model=load_base(panel, config).base if config.lora is None else None,
            args=trl.DPOConfig(**options, **dpo_settings(config), disable_dropout=False, max_length=config.max_length),
            train_dataset=_dataset(rows),
            processing_class=lm.tokenizer,
            peft_config=_peft_settings(setup),
        )

    # TRL's rewards are not length-normalised where its loss is.
    names = {} if config.loss.name == "length_normalised_dpo" else PAIR_NAMES
    return Plan(build, _pair_sizes(config, panel, setup), COMMON_NAMES | names)


def _grpo(panel: Panel, setup: Setup) -> Plan:
    config, task = cast(GrpoConfig, setup.config), cast(GrpoTask, setup.task)
    rounds = range(math.ceil(config.steps / config.iterations))
    rows = [{"prompt": str(setup.train[row].prompt), "row": row} for i in rounds for row in task.prompt_rows(i)]

    def build(trl: Any, options: dict[str, Any]) -> Any:
        lm = load_base(panel, config)
        generation: Any = lm.base.generation_config
        generation.eos_token_id = sorted(lm.eos_ids)
        return _subclass(trl.GRPOTrainer)(
            model=_trainable(lm.base, config),
            reward_funcs=judge,
            args=trl.GRPOConfig(**options, **grpo_settings(config)),
            train_dataset=_dataset(rows),
            processing_class=lm.tokenizer,
            peft_config=_peft_settings(setup),
        )

    judge = RolloutRewards(task, setup.train, task.policy.lm.eos_ids, config.group_size)
    lengths = [len(encode_prompt(str(prompt.prompt), setup.tokenizer)) for prompt in setup.train]
    # Of whole completions there, of tokens here.
    names = {name: key for name, key in ROLLOUT_NAMES.items() if config.loss.name != "gspo" or name != "clip_fraction"}
    return Plan(build, rollout_sizes(config, resolve_device(panel.device), lengths), COMMON_NAMES | names, judge.latest)


PLANS: dict[Method, Callable[[Panel, Setup], Plan]] = {"reward": _reward, "dpo": _dpo, "grpo": _grpo}


def _order(config: RewardConfig | DpoConfig, setup: Setup, seed: int) -> "EpochOrder":
    n = len(setup.train)
    return EpochOrder(PairOrder(n, config.batch_size, config.epochs, config.max_steps, seed), n)


def _pair_sizes(config: RewardConfig | DpoConfig, panel: Panel, setup: Setup) -> PassSizes:
    device = resolve_device(panel.device)
    return pass_sizes(config, device, config.batch_size, longest_pair(setup.train), len(setup.train))


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


def _trainable(base: Any, config: TrainingConfig) -> Any:
    return base if config.lora is not None else base.requires_grad_(True)


def _peft_settings(setup: Setup) -> Any:
    """The native model's own, so that both have the same modules."""
    return copy.deepcopy(setup.model.peft_config["default"]) if setup.config.lora is not None else None


def _with_other_pad(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """With a pad token that ends no answer: transformers' classifiers score the last token that is none.

    Raises `ConfigError` where the tokenizer has only one special token.
    """
    if tokenizer.pad_token is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return tokenizer
    others = [token for token in tokenizer.all_special_tokens if token != tokenizer.eos_token]
    if not others:
        raise no_counterpart("a reward model whose tokenizer has no pad token but its EOS", "add one to the tokenizer")
    tokenizer.pad_token = others[0]
    return tokenizer


# --- Its loop, watched ------------------------------------------------------------------------------------------------


class Engine(NamedTuple):
    """One run: trained by TRL, measured natively."""

    panel: Panel
    setup: Setup
    plan: Plan

    def train(self) -> Trained:
        """Takes all steps and leaves the weights in the native model."""
        panel, task, steps = self.panel, self.setup.task, self.setup.task.total_steps
        mine = Weights(self.setup.parameters)
        panel.run.metric(f"{self.setup.method}.eval", 0, **task.evaluate())
        with TemporaryDirectory() as folder, _quietly():
            options = common_settings(panel, self.setup.config, steps, self.plan.sizes, Path(folder))
            trainer = self.plan.build(import_module("trl"), options)
            theirs = self._theirs(trainer)
            theirs.write(mine.read())
            for printing in (PrinterCallback, ProgressCallback):
                trainer.remove_callback(printing)

            def evaluate(step: int) -> None:
                mine.write(theirs.read())
                panel.run.metric(f"{self.setup.method}.eval", step, **task.evaluate())

            with progress(steps, "steps", f"{self.setup.method} by TRL", enabled=panel.show_progress) as meter:
                record = Recorder(self, evaluate, meter)
                trainer.add_callback(record)
                trainer.train()
            evaluate(record.step)
        return Trained(record.step, record.outcome, tuple(record.warnings), steps, record.seconds, int(record.tokens))

    def _theirs(self, trainer: Any) -> Weights:
        named = dict(trainer.model.named_parameters())
        found = {name for name, parameter in named.items() if parameter.requires_grad}
        parameters = self.setup.parameters
        if found != set(parameters):
            odd = sorted(found ^ set(parameters))[0]
            raise WorkError(
                f"engine 'trl' trains other weights than the native engine, such as {odd}; use the native one"
            )
        for name in found:
            # PEFT keeps a saved module, and TRL the LoRA of an 8-bit base, in the dtype of the base.
            named[name].data = named[name].data.float()
        return Weights({name: named[name] for name in parameters})


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
        run, setup, step = self._engine.panel.run, self._engine.setup, int(state.global_step)
        measured = self._measured(logs)
        run.metric(setup.method, step, **measured)
        if not all(math.isfinite(measured[name] or 0.0) for name in ("loss", "grad_norm")):
            raise WorkError(
                f"loss and gradient of step {step} are {measured['loss']} and {measured['grad_norm']}; lower the "
                "learning rate or look at the data of the step"
            )
        self.step = step
        self._meter.advance()
        decision = setup.task.judge(step, measured)
        for one in decision.warnings:
            self.warnings.append(one)
            run.log("warning", panel=setup.method, step=one.step, level=one.level, sentence=one.sentence)
        if decision.action != "go_on":
            self.outcome = "stopped"
            control.should_training_stop = True
        every = setup.config.eval_every
        if every is not None and step % every == 0 and step < setup.task.total_steps:
            self._evaluate(step)

    def _measured(self, logs: Mapping[str, Any]) -> Measured:
        now = time.monotonic()
        tokens = float(logs.get("num_tokens") or 0.0)
        known = {name: logs[key] for name, key in self._engine.plan.names.items() if logs.get(key) is not None}
        measured: Measured = {name: float(value) for name, value in known.items()}
        measured |= self._engine.plan.beside()
        measured |= {"tokens": tokens - self.tokens, "seconds": now - self._clock}
        self._clock, self.tokens, self.seconds = now, tokens, now - self._began
        return measured


class RolloutRewards:
    """All rewards of a recipe as one function for TRL, which also measures what it is shown."""

    __name__ = "reward"

    def __init__(self, task: GrpoTask, prompts: Sequence[Prompt], eos_ids: frozenset[int], group_size: int) -> None:
        self._task, self._prompts, self._eos_ids, self._size = task, prompts, eos_ids, group_size
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
        scored = score_rollouts(groups, self._task.rewards)
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
