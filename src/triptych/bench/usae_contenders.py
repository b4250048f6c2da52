"""The contenders of `triptych bench usae`. Each runs in a process of its own, on the CPU, with all of its cores:

    python -m triptych.bench.usae_contenders NAME FOLDER

FOLDER holds the work and the activations; stdout gets the contender's `Figures` as JSON. Every contender first trains
a dictionary of the same sizes for one epoch, which is thrown away: kernels are compiled and memory is got by then. Its
figures are those of the training after it, R² and dead latents by one piece of code for all. Not here: the work's data
and what the figures say (`usae`), the peers' loops (`usae_peer`).
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from safetensors.torch import load_file
from torch import Tensor

from triptych.bench.usae_peer import Learned, Rows, Setting, Sizes, train_overcomplete, train_plainly
from triptych.config import Config
from triptych.dictionaries.coder import CoderConfig
from triptych.dictionaries.settings import UniversalConfig
from triptych.dictionaries.sparsifiers import TopK
from triptych.dictionaries.training import train_universal_sae
from triptych.errors import TriptychError
from triptych.memory import peak_memory

WORK_FILE = "work.json"
TRAIN, HELD_OUT = "train", "held_out"
ROWS_AT_ONCE = 2048


class UsaeWork(Config):
    """One dictionary of one model, the same for all contenders."""

    activations: str | None = None
    """An activation store, or a .safetensors file with a tensor `activations`; None for made ones."""
    rows: int = Field(default=20_000, ge=2)
    """To train on; a tenth as many more are held out."""
    latents: int = Field(default=2048, ge=1)
    k: int = Field(default=32, ge=1)
    batch_size: int = Field(default=256, ge=2)
    epochs: int = Field(default=6, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    rounds: int = Field(default=3, ge=1)
    """How often each contender runs; they take turns."""
    two_models: bool = True
    """Whether universal dictionaries over two models are measured, too."""
    images: str = "starter"
    """For extraction."""
    n_images: int = Field(default=64, ge=0)
    """0 leaves extraction out."""
    models: dict[str, str] = Field(default_factory=dict)
    """Name → folder or hub id of what extraction runs; none for a ResNet-18 and a ViT-B/16 with random weights."""
    seed: int = 0

    @model_validator(mode="after")
    def _possible(self) -> "UsaeWork":
        if self.k > self.latents:
            raise ValueError(f"k is {self.k} and latents {self.latents}: k cannot exceed latents")
        return self

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.latents, self.k, self.batch_size, self.epochs, self.learning_rate, self.seed)


class Figures(Config):
    """What one run of one contender came to."""

    epoch_seconds: tuple[float, ...]
    """Of the measured training; its mean for each where an epoch's own is not known."""
    warm_up_seconds: float
    rows: int
    """Of an epoch."""
    r2: float
    """On the rows that were trained on; of two models the mean over source and target."""
    r2_held_out: float
    dead: int
    """Latents that no row fires, neither a trained nor a held-out one."""
    peak_memory_bytes: int
    start_memory_bytes: int
    """Before activations were read."""


Train = Callable[[Mapping[str, Rows], Sizes], Learned]


# --- This project -----------------------------------------------------------------------------------------------------


def train_ours(rows: Mapping[str, Rows], sizes: Sizes, precision: str) -> Learned:
    """`train_universal_sae` with its defaults but for what is the same for all."""
    config = UniversalConfig(
        coder=CoderConfig(latents=sizes.latents, sparsifier=TopK(k=sizes.k)),
        epochs=sizes.epochs,
        batch_size=sizes.batch_size,
        learning_rate=sizes.learning_rate,
        precision=precision,
    )
    trained = train_universal_sae(rows, config, seed=sizes.seed, device="cpu")
    each = trained.seconds / sizes.epochs
    return Learned((each,) * sizes.epochs, trained.sae.encode, trained.sae.decode)


def _overcomplete(rows: Mapping[str, Rows], sizes: Sizes, setting: Setting) -> Learned:
    (only,) = rows.values()
    return train_overcomplete(only, sizes, setting)


# --- The contenders ---------------------------------------------------------------------------------------------------


class Contender(NamedTuple):
    train: Train
    data: str
    """The file of its activations."""


ONE, TWO = "one_model.safetensors", "two_models.safetensors"

OURS, OURS_FLOAT32 = "triptych", "triptych float32"
PEER, PEER_FASTEST = "overcomplete", "overcomplete fastest"
PEER_BATCH_NORM, PEER_BFLOAT16 = "overcomplete BatchNorm", "overcomplete bfloat16"
OURS_TWO, PLAIN_TWO = "triptych, two models", "plain loop, two models"

CONTENDERS: dict[str, Contender] = {
    OURS: Contender(partial(train_ours, precision="auto"), ONE),
    OURS_FLOAT32: Contender(partial(train_ours, precision="float32"), ONE),
    PEER: Contender(partial(_overcomplete, setting=Setting()), ONE),
    PEER_FASTEST: Contender(partial(_overcomplete, setting=Setting(clip_grad=None, monitoring=0, is_fused=True)), ONE),
    PEER_BATCH_NORM: Contender(partial(_overcomplete, setting=Setting(encoder="mlp_bn_1")), ONE),
    PEER_BFLOAT16: Contender(
        partial(_overcomplete, setting=Setting(clip_grad=None, monitoring=0, is_fused=True, is_bfloat16=True)), ONE
    ),
    OURS_TWO: Contender(partial(train_ours, precision="auto"), TWO),
    PLAIN_TWO: Contender(train_plainly, TWO),
}
"""By name; the third and fourth are what we compare with, the two behind them are for information."""


def measure(name: str, folder: Path) -> Figures:
    """Warms up, trains, and looks at what was learnt."""
    start = peak_memory()
    work = UsaeWork.model_validate_json((folder / WORK_FILE).read_bytes())
    contender = CONTENDERS[name]
    stored = load_file(folder / contender.data)
    train, held_out = (_part_of(stored, part) for part in (TRAIN, HELD_OUT))
    warm_up = contender.train(train, work.sizes._replace(epochs=1))
    learned = contender.train(train, work.sizes)
    # The looking is the same for all, and no part of what a contender needs.
    peak = peak_memory()
    r2, fired = look_at(learned, train)
    r2_held_out, fired_held_out = look_at(learned, held_out)
    return Figures(
        epoch_seconds=learned.epoch_seconds,
        warm_up_seconds=sum(warm_up.epoch_seconds),
        rows=len(next(iter(train.values()))),
        r2=r2,
        r2_held_out=r2_held_out,
        dead=int((~(fired | fired_held_out)).sum()),
        peak_memory_bytes=peak,
        start_memory_bytes=start,
    )


def _part_of(stored: Mapping[str, Tensor], part: str) -> dict[str, Rows]:
    return {name.removeprefix(f"{part}."): rows for name, rows in stored.items() if name.startswith(f"{part}.")}


# --- What was learnt --------------------------------------------------------------------------------------------------


@torch.no_grad()
def look_at(learned: Learned, rows: Mapping[str, Rows]) -> tuple[float, Bool[Tensor, " f"]]:
    """R² over all rows, a mean over source and target, and which latents fired for any source.

    R² = 1 − Σ‖a − â‖² / Σ‖a − ā‖² with ā per feature, sums in float64.
    """
    totals = {name: float(_squares(one - one.double().mean(0))) for name, one in rows.items()}
    values, fired = [], torch.zeros(0, dtype=torch.bool)
    for source, one in rows.items():
        errors = dict.fromkeys(rows, 0.0)
        for start in range(0, len(one), ROWS_AT_ONCE):
            span = slice(start, start + ROWS_AT_ONCE)
            codes = learned.encode(source, one[span])
            now = (codes > 0).any(0)
            fired = fired | now if len(fired) else now
            for target, wanted in rows.items():
                errors[target] += float(_squares(wanted[span].double() - learned.decode(target, codes)))
        values += [1 - errors[target] / totals[target] for target in rows]
    return sum(values) / len(values), fired


def _squares(errors: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    return errors.double().square().sum()


def main(name: str, folder: Path) -> int:
    """Runs one contender; the exit code."""
    stdout: Any = sys.stdout
    # Libraries print what they like; stdout is for figures.
    with redirect_stdout(sys.stderr):
        try:
            figures = measure(name, folder)
        except TriptychError as error:
            sys.stderr.write(f"error: {error}\n")
            return 1
    stdout.write(figures.model_dump_json() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
