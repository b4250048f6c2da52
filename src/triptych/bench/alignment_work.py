"""What every contender of the alignment benchmarks is given, and what it reports, step by step.

The work is laid out once, in a file that all contenders read: token ids or rendered prompts, a batch a step. So all of
them see the same data in the same order. Not here: doing it (`alignment_contenders`), comparing (`side_by_side`).
"""

from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from triptych.config import Config
from triptych.errors import DataError
from triptych.files import atomic_write_json
from triptych.records import Prompt

WORK_FILE = "work.json"

FIRST_ADAPTER = "first_adapter"
"""Folder of the LoRA weights that all contenders begin with; written by the first one, this project."""

WARM_UP_STEPS = 1
"""Taken and not measured: compiling and first allocations are paid once a run, not once a step."""

RANK, ALPHA, TARGETS = 8, 16, ("q_proj", "v_proj")

LEARNING_RATE = 1e-4
"""Constant; high, so that losses move within a few steps and a comparison of them says something."""


class DpoWork(Config):
    """Steps of DPO on preference pairs, in the order of the data."""

    model: str = "starter"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the arithmetic; `auto` is bf16 where the processor has it."""
    pairs: str = "starter"
    limit: int | None = Field(default=None, ge=1)
    """The first so many pairs."""
    steps: int = Field(default=3, ge=1)
    """That are measured."""
    batch_size: int = Field(default=4, ge=1)
    """Pairs of a step."""
    max_length: int = Field(default=512, ge=2)
    beta: float = 0.1
    rounds: int = Field(default=1, ge=1)
    """How often each contender runs; they take turns."""
    seed: int = 0


class GrpoWork(Config):
    """Steps of GRPO: rollouts of equal length, a reward that costs nothing, one update."""

    model: str = "starter"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the arithmetic; `auto` is bf16 where the processor has it."""
    prompts: str = "starter"
    limit: int | None = Field(default=None, ge=1)
    """The first so many prompts."""
    steps: int = Field(default=3, ge=1)
    prompts_per_step: int = Field(default=4, ge=1)
    group_size: int = Field(default=4, ge=2)
    max_new_tokens: int = Field(default=64, ge=1)
    """Of every completion: nobody may stop earlier, so that all do the same work."""
    temperature: float = Field(default=1.0, gt=0.0)
    beta: float = 0.04
    rounds: int = Field(default=1, ge=1)
    seed: int = 0


class PairIds(Config):
    """A preference pair as token ids, cut to the maximal length."""

    id: str
    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        """Of the two texts, each with its prompt; what a contender saves or pads does not count."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)


class PairBatches(Config):
    """The work of DPO with its data; the first batch is that of the warm-up."""

    work: DpoWork
    folder: Path
    """Of the model."""
    batches: tuple[tuple[PairIds, ...], ...]


class PromptBatches(Config):
    """The work of GRPO with its data, prompts rendered; the first batch is that of the warm-up."""

    work: GrpoWork
    folder: Path
    batches: tuple[tuple[Prompt, ...], ...]


LaidOut = PairBatches | PromptBatches


class Step(NamedTuple):
    """One step of one contender."""

    seconds: float
    loss: float
    tokens: int
    """DPO: of both texts of every pair, the same for all contenders; GRPO: of the completions."""


def write_work(laid_out: LaidOut, folder: Path) -> None:
    """For the contenders, who read it from the folder."""
    atomic_write_json(folder / WORK_FILE, laid_out)


def read_pairs(folder: Path) -> PairBatches:
    return PairBatches.model_validate_json((folder / WORK_FILE).read_bytes())


def read_prompts(folder: Path) -> PromptBatches:
    return PromptBatches.model_validate_json((folder / WORK_FILE).read_bytes())


def require_enough(found: int, what: str, source: str, needed: int, remedy: str) -> None:
    """`DataError` where the data is less than the steps take: no contender may see a row twice."""
    if found < needed:
        raise DataError(
            f"{source} gives {found} {what}, and {needed} are needed (one step more than is measured, to warm up); "
            f"{remedy}"
        )
