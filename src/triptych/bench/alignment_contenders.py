"""The contenders of the alignment benchmarks. Each runs in a process of its own, on the CPU:

    python -m triptych.bench.alignment_contenders METHOD NAME FOLDER

FOLDER holds the work. Stdout gets one JSON object a step, and a last one with the memory used. The same LoRA, learning
rate and data for all; else each as it comes: this project as `triptych align` runs it, with the reference's
log-probabilities computed anew in every step rather than read from the cache; TRL with its defaults, but for the one
setting in its name.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.alignment.adapters import LoraConfig, load_adapter_state, save_adapter
from triptych.alignment.dpo import DpoConfig, DpoTask, completion_sums, micro_batches_of
from triptych.alignment.encoding import EncodedPair
from triptych.alignment.grpo import GrpoConfig, GrpoTask
from triptych.alignment.losses import Dpo
from triptych.alignment.optimisation import Optimiser, OptimiserConfig
from triptych.alignment.packing import Group
from triptych.alignment.policy import Policy
from triptych.alignment.policy_losses import Grpo
from triptych.alignment.reward_functions import NamedReward
from triptych.bench.alignment_work import (
    ALPHA,
    FIRST_ADAPTER,
    LEARNING_RATE,
    RANK,
    TARGETS,
    LaidOut,
    PairIds,
    Step,
    read_pairs,
    read_prompts,
)
from triptych.errors import TriptychError
from triptych.memory import peak_memory
from triptych.metrics import words
from triptych.models import LanguageModel, load_language_model
from triptych.models.loading import resolve_dtype
from triptych.models.sources import ADAPTER_WEIGHTS
from triptych.workers import Workers

CPU = torch.device("cpu")
OPTIMISER = OptimiserConfig(learning_rate=LEARNING_RATE, schedule="constant")
LORA = LoraConfig(rank=RANK, alpha=ALPHA, targets=TARGETS)

WANTED_WORDS = 30

Report = Callable[[Step], None]
Contender = Callable[[Path, Report], None]
"""(folder of the work, called after each step)"""


def near_thirty_words(prompts: list[str], completions: list[str], **columns: object) -> list[float | None]:
    """Minus how many words a completion is away from 30: costs nothing, and differs within a group."""
    return [-float(abs(len(words(completion)) - WANTED_WORDS)) for completion in completions]


# --- This project -----------------------------------------------------------------------------------------------------


def triptych_dpo(folder: Path, report: Report) -> None:
    """The native engine; a step's time holds the reference's log-probabilities of its pairs."""
    laid_out = read_pairs(folder)
    work = laid_out.work
    policy = _policy(load_language_model(laid_out.folder, dtype=work.dtype, device=CPU), work.seed, folder)
    config = DpoConfig(
        lora=LORA, optimiser=OPTIMISER, loss=Dpo(beta=work.beta), batch_size=work.batch_size, max_length=work.max_length
    )

    def accumulate(step: int) -> tuple[float, int]:
        pairs = [_encoded(pair) for pair in laid_out.batches[step]]
        task = DpoTask(policy, config, pairs, [], _references(policy, pairs, config), Workers("cpu"), seed=work.seed)
        measured = task.accumulate(0)
        return float(measured["loss"] or 0.0), sum(pair.n_tokens for pair in laid_out.batches[step])

    _take_steps(policy, len(laid_out.batches), accumulate, report)


def triptych_grpo(folder: Path, report: Report) -> None:
    """The native engine: rollouts, rewards, reference and update."""
    laid_out = read_prompts(folder)
    work = laid_out.work
    # No token ends a text, so that every completion is as long as it may be.
    endless = replace(load_language_model(laid_out.folder, dtype=work.dtype, device=CPU), eos_ids=frozenset())
    policy = _policy(endless, work.seed, folder)
    config = GrpoConfig(
        lora=LORA,
        optimiser=OPTIMISER,
        loss=Grpo(beta=work.beta),
        prompts_per_step=work.prompts_per_step,
        group_size=work.group_size,
        max_new_tokens=work.max_new_tokens,
        temperature=work.temperature,
    )
    reward = NamedReward("near_thirty_words", near_thirty_words)

    def accumulate(step: int) -> tuple[float, int]:
        prompts = laid_out.batches[step]
        task = GrpoTask(policy, config, prompts, [], [], [reward], None, Workers("cpu"), seed=work.seed)
        measured = task.accumulate(step)
        # No end is counted, as there is none.
        completions = len(prompts) * work.group_size
        return float(measured["loss"] or 0.0), round(completions * float(measured["length_mean"] or 0.0))

    _take_steps(policy, len(laid_out.batches), accumulate, report)


def _policy(lm: LanguageModel, seed: int, folder: Path) -> Policy:
    policy = Policy(lm, lora=LORA, seed=seed)
    save_adapter(policy.model, folder / FIRST_ADAPTER)
    return policy


def _encoded(pair: PairIds) -> EncodedPair:
    return EncodedPair(pair.id, Group(pair.prompt, (pair.chosen, pair.rejected)), is_truncated=False)


def _references(policy: Policy, pairs: Sequence[EncodedPair], config: DpoConfig) -> dict[str, tuple[float, float]]:
    """As `triptych.alignment.dpo.reference_logprobs`, without its cache: a warm one would flatter us."""
    found: dict[str, tuple[float, float]] = {}
    lanes = policy.trunk.lanes

    def read(part: Sequence[EncodedPair]) -> Tensor:
        packed = policy.pack([pair.group for pair in part])
        return completion_sums(policy.reference_logprobs(packed), packed)

    parts = micro_batches_of(pairs, config, CPU, lanes)
    for part, sums in zip(parts, lanes.map(read, parts), strict=True):
        found |= {pair.id: (float(row[0]), float(row[1])) for pair, row in zip(part, sums, strict=True)}
    return found


def _take_steps(policy: Policy, n: int, accumulate: Callable[[int], tuple[float, int]], report: Report) -> None:
    """What `triptych.alignment.loop.train` does in a step."""
    optimiser = Optimiser(policy.parameters, OPTIMISER)
    for step in range(n):
        started = time.perf_counter()
        loss, tokens = accumulate(step)
        optimiser.step(step, n)
        report(Step(time.perf_counter() - started, loss, tokens))


# --- TRL --------------------------------------------------------------------------------------------------------------


def trl_dpo(folder: Path, report: Report, settings: Mapping[str, Any]) -> None:
    """`DPOTrainer` on our token ids."""
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    laid_out = read_pairs(folder)
    work = laid_out.work
    pairs = [pair for batch in laid_out.batches for pair in batch]
    arguments = DPOConfig(
        **_common_arguments(laid_out, folder),
        **settings,
        per_device_train_batch_size=work.batch_size,
        max_length=work.max_length,
        beta=work.beta,
        train_sampling_strategy="sequential",
    )
    stand_in = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    trainer = DPOTrainer(
        model=str(laid_out.folder),
        args=arguments,
        train_dataset=Dataset.from_list(stand_in * len(pairs)),
        peft_config=_peft_config(),
    )
    # It has tokenised a stand-in: templates and cuts are ours, or the contenders would read different texts.
    rows = [
        {"prompt_ids": [*pair.prompt], "chosen_ids": [*pair.chosen], "rejected_ids": [*pair.rejected]} for pair in pairs
    ]
    trainer.train_dataset = Dataset.from_list(rows)
    tokens = iter([sum(pair.n_tokens for pair in batch) for batch in laid_out.batches])
    _train(trainer, folder, report, lambda: next(tokens))


def trl_grpo(folder: Path, report: Report, settings: Mapping[str, Any]) -> None:
    """`GRPOTrainer`, writing by `transformers.generate`."""
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    laid_out = read_prompts(folder)
    work = laid_out.work
    written: list[int] = []

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        written.append(sum(map(len, columns["completion_ids"])))
        return near_thirty_words(prompts, completions)

    arguments = GRPOConfig(
        **_common_arguments(laid_out, folder),
        **settings,
        per_device_train_batch_size=work.prompts_per_step * work.group_size,
        num_generations=work.group_size,
        max_completion_length=work.max_new_tokens,
        temperature=work.temperature,
        beta=work.beta,
        shuffle_dataset=False,
        use_vllm=False,
        generation_kwargs={"min_new_tokens": work.max_new_tokens},
    )
    trainer = GRPOTrainer(
        model=str(laid_out.folder),
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": one.prompt} for batch in laid_out.batches for one in batch]),
        peft_config=_peft_config(),
    )
    _train(trainer, folder, report, lambda: written[-1])


def _common_arguments(laid_out: LaidOut, folder: Path) -> dict[str, Any]:
    """What is the same for all contenders; nothing else of TRL's is touched."""
    return {
        "output_dir": str(folder / "trl"),
        "max_steps": len(laid_out.batches),
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "bf16": resolve_dtype(laid_out.work.dtype, CPU) == torch.bfloat16,
        "use_cpu": True,
        "seed": laid_out.work.seed,
        "save_strategy": "no",
        "report_to": "none",
        # Of the loss alone, after the clock of the step has stopped.
        "logging_steps": 1,
        "disable_tqdm": True,
    }


def _peft_config() -> Any:
    from peft import LoraConfig as PeftLoraConfig

    return PeftLoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=[*TARGETS], task_type="CAUSAL_LM")


def _train(trainer: Any, folder: Path, report: Report, tokens: Callable[[], int]) -> None:
    """Trains from the weights that all begin with; a step is from its batch to its optimizer step."""
    from safetensors.torch import load_file
    from transformers import PrinterCallback, TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.started = self.seconds = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds = time.perf_counter() - self.started

        def on_log(self, *_: Any, logs: Mapping[str, float] | None = None, **__: Any) -> None:
            if logs is not None and "loss" in logs:
                report(Step(self.seconds, float(logs["loss"]), tokens()))

    load_adapter_state(trainer.model, load_file(folder / FIRST_ADAPTER / ADAPTER_WEIGHTS))
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Clock())
    trainer.train()


# --- One of them ------------------------------------------------------------------------------------------------------

NO_CHECKPOINTING: Mapping[str, Any] = {"gradient_checkpointing": False}

CONTENDERS: dict[str, dict[str, Contender]] = {
    "dpo": {
        "triptych": triptych_dpo,
        "TRL": partial(trl_dpo, settings={}),
        "TRL without checkpointing": partial(trl_dpo, settings=NO_CHECKPOINTING),
    },
    "grpo": {
        "triptych": triptych_grpo,
        "TRL": partial(trl_grpo, settings={}),
        "TRL without checkpointing": partial(trl_grpo, settings=NO_CHECKPOINTING),
    },
}


def main(method: str, name: str, folder: Path) -> int:
    """Runs one contender; the exit code."""
    stdout = sys.stdout

    def tell(**fields: Any) -> None:
        stdout.write(json.dumps(fields) + "\n")
        stdout.flush()

    start = peak_memory()
    # Libraries print what they like; stdout is for figures.
    with redirect_stdout(sys.stderr):
        try:
            CONTENDERS[method][name](folder, lambda step: tell(step=step._asdict()))
        except TriptychError as error:
            tell(error=str(error))
            return 1
    tell(start_memory_bytes=start, peak_memory_bytes=peak_memory())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
