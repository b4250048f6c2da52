"""The alignment panel: from a configuration to `alignment/{reward,dpo,grpo}/` in a run directory.

    align.reward   alignment/reward/   adapter_config.json, adapter_model.safetensors, reward_config.json
    align.dpo      alignment/dpo/      adapter_config.json, adapter_model.safetensors
    align.grpo     alignment/grpo/     the same

each with trainer_state.json and README.md, a model card. Each is a stage that is done once. Not here: what a run
is made of (`setup`), what a step computes (`dpo`, `reward_model`, `grpo`), the loop around it (`loop`).
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from triptych.alignment.adapters import save_adapter
from triptych.alignment.cards import model_card
from triptych.alignment.loop import Trained, train
from triptych.alignment.setup import SETUPS, Panel, Setup
from triptych.alignment.state import STATE, Figure, Method, TrainerState
from triptych.checkpoints import Checkpoints
from triptych.config import config_hash
from triptych.files import atomic_write_json, atomic_write_text
from triptych.memory import peak_memory, release
from triptych.models.sources import REWARD_CONFIG

logger = logging.getLogger(__name__)


def train_reward(panel: Panel) -> bool:
    """Trains the reward model where that is configured and not done; whether it did."""
    return panel.config.reward is not None and _run_stage(panel, "reward")


def train_policies(panel: Panel) -> bool:
    """Trains DPO and GRPO where they are configured and not done; whether there was anything to do."""
    did_dpo = panel.config.dpo is not None and _run_stage(panel, "dpo")
    did_grpo = panel.config.grpo is not None and _run_stage(panel, "grpo")
    return did_dpo or did_grpo


def _run_stage(panel: Panel, method: Method) -> bool:
    stage = f"align.{method}"
    if panel.run.is_done(stage):
        return False
    release()
    with panel.run.stage(stage):
        run = ENGINES[panel.config.engine](panel, method)
        figures = run.setup.figures()
        if panel.workers.is_main:
            _write(panel, run, figures)
    return True


class _Run(NamedTuple):
    """A run that has come to its end."""

    setup: Setup
    trained: Trained
    path: str


def _native(panel: Panel, method: Method) -> _Run:
    setup = SETUPS[method](panel)
    identity = f"{config_hash(setup.config)}:{setup.fingerprint}:{setup.data_key}:{panel.seed}"
    checkpoints = Checkpoints(panel.folder(method), hashlib.sha256(identity.encode()).hexdigest()[:16])
    trained = train(
        setup.task,
        setup.parameters,
        setup.config,
        checkpoints,
        panel.run,
        panel.workers,
        show_progress=panel.show_progress,
    )
    return _Run(setup, trained, setup.path)


def _by_trl(panel: Panel, method: Method) -> _Run:
    from triptych.alignment.trl_engine import require_trl, train_by_trl

    require_trl(panel, method)
    setup = SETUPS[method](panel)
    return _Run(setup, train_by_trl(panel, setup), "trl")


ENGINES: dict[str, Callable[[Panel, Method], _Run]] = {"native": _native, "trl": _by_trl}


def _write(panel: Panel, run: _Run, figures: Sequence[Figure]) -> None:
    """Weights, card and state, in this order: a folder with a state is complete. Its checkpoints are dropped then."""
    setup, folder = run.setup, panel.folder(run.setup.method)
    if setup.reading is not None:
        atomic_write_json(folder / REWARD_CONFIG, setup.reading)
    if setup.config.lora is not None:
        save_adapter(setup.model, folder)
    else:
        from triptych.alignment.merge import save_model

        save_model(setup.model, setup.tokenizer, folder)
    state = _state(run, figures)
    atomic_write_text(folder / "README.md", model_card(state, setup.config))
    atomic_write_json(folder / STATE, state)
    Checkpoints(folder, "").discard()
    for one in state.warnings:
        (logger.info if one.level == "note" else logger.warning)("%s: %s", state.method, one.sentence)


def _state(run: _Run, figures: Sequence[Figure]) -> TrainerState:
    setup, trained = run.setup, run.trained
    return TrainerState(
        method=setup.method,
        model=setup.base,
        fingerprint=setup.fingerprint,
        config_hash=config_hash(setup.config),
        step=trained.step,
        total_steps=trained.total_steps,
        outcome=trained.outcome,
        n_train=len(setup.train),
        n_validation=len(setup.held_out),
        n_trainable=sum(parameter.numel() for parameter in setup.parameters.values()),
        seconds=trained.seconds,
        tokens=trained.tokens,
        peak_bytes=peak_memory(),
        path=run.path,
        figures=tuple(figures),
        warnings=(*setup.warnings, *trained.warnings),
    )
