"""Training a dictionary: from paired activations to a `UniversalSAE`, resumable.

    trained = train_universal_sae({"resnet": a, "vit": b}, UniversalConfig(epochs=30), seed=0)

Not here: what a step computes (`backends`), where rows come from (`rows`, `store`).
"""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn import functional

from triptych.config import config_hash
from triptych.dictionaries.backends.base import Backend
from triptych.dictionaries.backends.fused import Fused
from triptych.dictionaries.backends.generic import Generic
from triptych.dictionaries.coder import Coder, UniversalSAE, calibrate, initialise
from triptych.dictionaries.codes import to_sparse
from triptych.dictionaries.matching import match_codes
from triptych.dictionaries.rows import Moments, PairedRows, Rows, Shards
from triptych.dictionaries.settings import UniversalConfig
from triptych.dictionaries.sparsifiers import JumpRelu
from triptych.errors import DataError, WorkError
from triptych.files import atomic_path
from triptych.models.loading import resolve_device, resolve_dtype
from triptych.progress import Meter, progress
from triptych.seeding import generator

SECONDS_BETWEEN_SAVES = 20.0
SAMPLED_ROWS = 16384
"""Rows that a dictionary begins with and in which dead latents begin again, at most."""
REVIVE_UNTIL = 0.8
"""Share of the epochs after which latents are neither begun again nor matched, so that the last ones can settle."""
MATCHED_ROWS = 4096
"""Rows on which latents of models are matched, at most."""


KNOWN_BY = 256
"""Rows that tell whether a saved state is of the same activations."""


REVIVED_LENGTH = 0.7
"""Of an encoder row that begins again, in mean lengths of the living. Of 100 planted dead latents among 512 with k = 8,
a fifth brought none back, a half 79 in the next epoch, 0.7 all but one and the lowest loss."""


class Epoch(NamedTuple):
    """What training says of itself, once an epoch."""

    epoch: int
    step: int
    loss: float
    """Σ over models of the mean squared (or absolute) error of normalised activations, a mean over the epoch."""
    dead: int
    """Latents that did not fire in this epoch for any source."""


class Trained(NamedTuple):
    """A trained dictionary."""

    sae: UniversalSAE
    history: tuple[Epoch, ...]
    seconds: float
    """Of training itself, over all attempts."""
    backend: str
    """`kernels` or `autograd`."""
    n_rows: int


def train_universal_sae(
    activations: Mapping[str, Shards | Tensor],
    config: UniversalConfig | None = None,
    *,
    seed: int = 0,
    device: str = "auto",
    state: Path | None = None,
    pairing: Mapping[str, Int[Tensor, " n"]] | None = None,
    budget_gib: float = 6.0,
    show_progress: bool = False,
    description: str = "training",
) -> Trained:
    """A dictionary over the models' activations [rows, width], row n of each on the same image.

    `activations` are tensors or `ActivationStore`s. With `state` a killed call goes on from its last saved epoch and
    ends with the same weights. `pairing` permutes the rows of a model (the shuffled null). On a CPU, what
    `config.is_plain` names is computed by kernels (`backends.fused`), everything else by autograd.

    Raises `DataError` where the models' rows do not correspond or are not finite, `WorkError` where the loss becomes
    NaN. Source: Thasarathan et al. 2025, algorithm 1. Departures: `update="all"` by default, decoders and encoders
    begin in the same images, dead latents are begun again, latents of models are matched.
    """
    config = config or UniversalConfig()
    rows = PairedRows(activations, budget_bytes=int(budget_gib * 2**30), pairing=pairing)
    run = _Run(rows, config, seed, device, state)
    total = (config.epochs - run.n_epochs) * rows.n_rows
    with progress(total, "rows", description, enabled=show_progress) as meter:
        while run.n_epochs < config.epochs:
            run.epoch(meter)
    run.finish()
    return Trained(run.sae, tuple(run.history), run.seconds, run.backend_name, rows.n_rows)


class _Run:
    """A training run between two epochs."""

    def __init__(self, rows: PairedRows, config: UniversalConfig, seed: int, device: str, state: Path | None) -> None:
        self.rows, self.config, self.seed, self.state = rows, config, seed, state
        self.device = resolve_device(device)
        self.sae = UniversalSAE(config.coder, rows.widths)
        self.history: list[Epoch] = []
        self.seconds = 0.0
        is_fused = config.is_plain and self.device.type == "cpu"
        self.backend_name = "kernels" if is_fused else "autograd"
        self.dtype = _precision(config, self.device, is_fused=is_fused)
        self._key = _key(rows, config, seed, self.backend_name)
        saved = _read_state(state, self._key)
        if saved is None:
            _set_scales(self.sae, rows)
            initialise(self.sae, _sample(self.sae, rows, seed, 0), seed)
        else:
            self.sae.load_state_dict(saved.weights)
        self.sae.to(self.device)
        self._coders: list[Coder] = [self.sae.coder(name) for name in self.sae.names]
        make = Fused if is_fused else Generic
        self.backend: Backend = make(self.sae, config, self.dtype)
        if saved is not None:
            self.backend.restore(saved.moments)
            self.history, self.seconds = list(saved.history), saved.seconds
        self._saved_at = time.monotonic()
        self._window: tuple[list[Rows], list[Rows]] | None = None

    @property
    def n_epochs(self) -> int:
        return len(self.history)

    @property
    def n_steps(self) -> int:
        return self.history[-1].step if self.history else 0

    def epoch(self, meter: Meter) -> None:
        """One pass over all rows, then revival and, if it is time, a saved state."""
        started = time.monotonic()
        epoch, step = self.n_epochs, self.n_steps
        total_steps = self.config.epochs * self._steps_of_epoch()
        losses, sizes = [], []
        for batch in self._batches(epoch):
            rate = learning_rate(self.config, step, total_steps)
            losses.append(self.backend.step(batch, self._sources(step), rate))
            sizes.append(len(batch[0]))
            step += 1
            meter.advance(len(batch[0]))
        loss = float(torch.stack(losses).double() @ torch.tensor(sizes, dtype=torch.float64, device=losses[0].device))
        loss /= sum(sizes)
        if not math.isfinite(loss):
            raise WorkError(
                f"the loss became {loss} in epoch {epoch + 1}; lower learning_rate or use precision float32"
            )
        idle = ~self.backend.fired()
        self.history.append(Epoch(epoch + 1, step, loss, int(idle.sum())))
        meter.update(description=f"{meter.description.partition(', loss')[0]}, loss {loss:.3f}")
        if self.config.revival == "resample" and epoch + 1 < REVIVE_UNTIL * self.config.epochs and bool(idle.any()):
            self._revive(idle, epoch + 1)
        if self.config.is_matched and len(self._coders) > 1 and epoch + 1 < REVIVE_UNTIL * self.config.epochs:
            self._match(epoch + 1)
        self.seconds += time.monotonic() - started
        is_last = self.n_epochs == self.config.epochs
        if self.state is not None and (is_last or time.monotonic() - self._saved_at > SECONDS_BETWEEN_SAVES):
            _write_state(self.state, self._key, self)
            self._saved_at = time.monotonic()

    def finish(self) -> None:
        """Ready for use: thresholds are found, and rows are coded one by one."""
        self.sae.eval()
        for coder, rows in zip(self._coders, _sample(self.sae, self.rows, self.seed, self.n_epochs), strict=True):
            calibrate(coder, rows)

    def _steps_of_epoch(self) -> int:
        """About, where there are several windows: shards are in another order in every epoch."""
        per_window = self.rows.n_rows / self.rows.n_windows
        return round(self.rows.n_windows * _n_batches(round(per_window), self.config.batch_size))

    def _sources(self, step: int) -> list[int]:
        n = len(self._coders)
        if self.config.sources == "every" or n == 1:
            return list(range(n))
        return [int(generator(self.seed, "source", step).integers(n))]

    def _batches(self, epoch: int) -> Iterator[list[Rows]]:
        for number, raw in enumerate(self.rows.windows(self.seed, epoch)):
            normalised = self._normalised(raw)
            n, size = len(raw[0]), self.config.batch_size
            order = torch.from_numpy(generator(self.seed, "order", epoch, number).permutation(n)).to(self.device)
            if n == 1:
                continue  # A last shard of one row, alone in its window.
            last = _n_batches(n, size) - 1
            for place in range(last + 1):
                chosen = order[place * size : (place + 1) * size if place < last else n]
                yield [rows[chosen] for rows in normalised]

    def _normalised(self, raw: list[Rows]) -> list[Rows]:
        """Kept from epoch to epoch where the window is the same."""
        if self._window is None or self._window[0] is not raw:
            pairs = zip(self._coders, raw, strict=True)
            self._window = (raw, [coder.normalise(rows.float().to(self.device)) for coder, rows in pairs])
        return self._window[1]

    @torch.no_grad()
    def _match(self, epoch: int) -> None:
        """Latents of a model are put in another order, so that latent k fires where it fires in the models before it.

        Nothing else brings together what two models find apart: where A fires f and B fires g for one concept, the
        decoders of f and g learn it in both models, every reconstruction is right, and each latent looks specific.
        A private concept of A and one of B that share a latent go to one each, where there is a latent to spare. The
        order of a model's latents is free: its own reconstruction stays as it is, and what it remembers moves along.
        """
        self.sae.eval()
        codes: list[csr_matrix] = []
        for place, rows in enumerate(_sample(self.sae, self.rows, self.seed, epoch, MATCHED_ROWS)):
            coder = self._coders[place]
            calibrate(coder, rows)
            own = to_sparse(coder.sparsify(coder.pre_codes(rows)) * coder.decoder_weight.norm(dim=1))
            order = match_codes(codes, own) if codes else np.arange(self.sae.latents)
            if not np.array_equal(order, np.arange(self.sae.latents)):
                self.backend.reorder(place, torch.from_numpy(order).to(self.device))
            codes.append(own[:, order])
        self.sae.train()
        self.backend.reload()

    @torch.no_grad()
    def _revive(self, idle: Tensor, epoch: int) -> None:
        """Dead latents begin again as the errors of images that are explained worst, the same image in every model.

        Images are drawn with probability ∝ their squared loss; a new encoder row has 0.7 of the mean length of the
        living ones (Bricken et al. 2023, "Neuron resampling"). Departures: one image for all models, so that what is
        born is shared; and 0.7 of that length instead of a fifth, which TopK hardly ever picks.
        """
        self.sae.eval()
        samples = _sample(self.sae, self.rows, self.seed, epoch)
        for coder, rows in zip(self._coders, samples, strict=True):
            calibrate(coder, rows)
        errors = [
            rows - coder.reconstruct(coder.sparsify(coder.pre_codes(rows)))
            for coder, rows in zip(self._coders, samples, strict=True)
        ]
        self.sae.train()
        loss = torch.stack([error.square().mean(1) for error in errors]).sum(0).double()
        if not bool(loss.any()):
            return  # Nothing is left to explain.
        dead = idle.nonzero().flatten()[: len(loss)]
        chances = (loss**2 / (loss**2).sum()).cpu().numpy()
        stream = generator(self.seed, "revive", epoch)
        possible = int((chances > 0).sum())
        dead = dead[:possible]
        chosen = torch.from_numpy(stream.choice(len(chances), size=len(dead), replace=False, p=chances / chances.sum()))
        mask = torch.zeros_like(idle)
        mask[dead] = True
        for coder, error in zip(self._coders, errors, strict=True):
            direction = functional.normalize(error[chosen.to(self.device)], dim=1)
            living = coder.encoder_weight[~idle].norm(dim=1).mean() if bool((~idle).any()) else torch.tensor(1.0)
            coder.decoder_weight[dead] = direction
            coder.encoder_weight[dead] = REVIVED_LENGTH * living * direction
            coder.encoder_bias[dead] = 0.0
            if isinstance(coder.norm, nn.BatchNorm1d):
                coder.norm.weight[dead], coder.norm.bias[dead] = 1.0, 0.0
            if isinstance(self.config.coder.sparsifier, JumpRelu):
                coder.threshold[dead] = self.config.coder.sparsifier.threshold
        self.backend.forget(mask)
        self.backend.reload()


def _precision(config: UniversalConfig, device: torch.device, *, is_fused: bool) -> torch.dtype:
    """Of products. For the kernels `auto` is float32: they have one dense product, and rounding it gains nothing."""
    return torch.float32 if is_fused and config.precision == "auto" else resolve_dtype(config.precision, device)


def _n_batches(n: int, size: int) -> int:
    """Of n rows: a single last row joins the batch before it (batch_norm has nothing to normalise one row by)."""
    return max(1, math.ceil((n - 1) / size))


def learning_rate(config: UniversalConfig, step: int, total: int) -> float:
    """Of step `step` (from 0) of `total`: a linear rise, then a constant or a cosine down to the final rate."""
    rising = config.warm_up * total
    if step < rising:
        return config.learning_rate * (step + 1) / math.ceil(rising)
    if config.final_learning_rate is None:
        return config.learning_rate
    share = min(1.0, (step - rising) / max(1.0, total - rising))
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * (1 + math.cos(math.pi * share)) / 2


def normalisation(moments: Moments, kind: str) -> tuple[Tensor, Tensor]:
    """μ and σ [width] of a model: by feature, one for all features, or 0 and 1; σ = 1 where nothing varies."""
    mean, variance = moments
    if kind == "none":
        return torch.zeros_like(mean).float(), torch.ones_like(mean).float()
    if kind == "scalar":
        # Over all entries: the variance within features and that of their means.
        total = variance.mean() + mean.var(unbiased=False)
        mean, variance = mean.mean().expand_as(mean), total.expand_as(mean)
    scale = torch.where(variance > 1e-12 * (mean.square() + 1e-30), variance.sqrt(), torch.ones_like(variance))
    return mean.float().contiguous(), scale.float().contiguous()


def _set_scales(sae: UniversalSAE, rows: PairedRows) -> None:
    for name, moments in zip(sae.names, rows.moments(), strict=True):
        mean, scale = normalisation(moments, sae.config.normalisation)
        sae.coder(name).mean.copy_(mean)
        sae.coder(name).scale.copy_(scale)


def _sample(sae: UniversalSAE, rows: PairedRows, seed: int, epoch: int, at_most: int = SAMPLED_ROWS) -> list[Rows]:
    """Normalised rows of all models, the same random ones; from one window where there are several."""
    raw = next(iter(rows.windows(seed, epoch)))
    size = min(len(raw[0]), max(at_most, sae.latents))
    chosen = torch.from_numpy(generator(seed, "sample", epoch).permutation(len(raw[0]))[:size])
    found = []
    for name, one in zip(sae.names, raw, strict=True):
        coder = sae.coder(name)
        device = coder.mean.device
        found.append(coder.normalise(one[chosen].float().to(device)))
    return found


# --- What survives a kill ---------------------------------------------------------------------------------------------


class _State(NamedTuple):
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    history: tuple[Epoch, ...]
    seconds: float


def _key(rows: PairedRows, config: UniversalConfig, seed: int, backend: str) -> str:
    """Of the same work: settings, backend, and rows as they are paired, known by the first shard's first ones."""
    digest = hashlib.blake2b(digest_size=16)
    for one in next(rows.shards()):
        digest.update(one[:KNOWN_BY].float().cpu().contiguous().numpy().tobytes())
    known = {"n": rows.n_rows, "widths": rows.widths, "first": digest.hexdigest()}
    return config_hash({"config": config, "seed": seed, "backend": backend, "rows": known})


def _write_state(path: Path, key: str, run: _Run) -> None:
    tensors = {f"weights.{name}": tensor for name, tensor in run.sae.state_dict().items()}
    tensors |= {f"moments.{name}": tensor for name, tensor in run.backend.moments().items()}
    described = {"key": key, "history": json.dumps(run.history), "seconds": str(run.seconds)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        save_file({name: t.detach().cpu().clone() for name, t in tensors.items()}, temporary, metadata=described)


def _read_state(path: Path | None, key: str) -> _State | None:
    """The state of a killed run of the same work, else None."""
    if path is None or not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as opened:
            described = opened.metadata() or {}
            if described.get("key") != key:
                return None
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    except SafetensorError as error:
        raise DataError(f"{path} is no state of a dictionary in training ({error}); remove it to begin anew") from error
    history = tuple(Epoch(*one) for one in json.loads(described["history"]))
    return _State(_under(tensors, "weights."), _under(tensors, "moments."), history, float(described["seconds"]))


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
