"""Training an image backbone to name factors: pixels in memory, augmentation on tensors, the loop, and what it learnt.

Not here: which backbones there are (`backbone_models`), what is written of them (`backbones`).

A step is a function of the seed, the family and the epoch alone, so a killed and resumed run ends with the weights of
an undisturbed one on the same machine with as many threads.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from triptych.checkpoints import Checkpoint, Checkpoints
from triptych.data.images import ImageSet
from triptych.errors import DataError, WorkError
from triptych.models.loading import resolve_dtype
from triptych.progress import Meter, progress
from triptych.records import Estimate
from triptych.seeding import stream_key
from triptych.stats import clustered_bootstrap

MAX_BYTES = 2 << 30
"""Of decoded images, training and held-out ones together."""

EVALUATION_BATCH = 256


# --- images in memory -------------------------------------------------------------------------------------------------


class Pixels(NamedTuple):
    """Decoded images with what is known of them."""

    images: UInt8[Tensor, "n s s 3"]
    labels: Int[Tensor, "n q"]
    """The value of each factor; -1 where it is not given."""


def decode(sets: Sequence[ImageSet], size: int, *, show_progress: bool) -> list[Pixels]:
    """Every image of the sets at `size` × `size`, resized as `ViTImageProcessor` does (bilinear, without cropping).

    Raises DataError where they do not fit into `MAX_BYTES`, or (by the set) where an image cannot be decoded.
    """
    n_images = sum(len(images) for images in sets)
    if (n_bytes := n_images * size * size * 3) > MAX_BYTES:
        raise DataError(
            f"images {sets[0].source}: {n_images:,} images at {size} × {size} take {n_bytes / 2**30:.1f} GiB of "
            f"memory, and backbones may use {MAX_BYTES / 2**30:g}; set a limit on the number of images, or a smaller "
            "image_size"
        )
    with progress(n_images, "images", "decoding", enabled=show_progress) as meter:
        return [_decode(images, size, meter) for images in sets]


def _decode(images: ImageSet, size: int, meter: Meter) -> Pixels:
    pixels = np.empty((len(images), size, size, 3), dtype=np.uint8)
    for index in range(len(images)):
        pixels[index] = _resized(images.read(index), size)
        meter.advance()
    labels = np.stack([factor.of for factor in images.factors.values()], axis=1)
    return Pixels(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)))


def _resized(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "s s 3"]:
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


class Normalisation(NamedTuple):
    """Mean and standard deviation of each channel, of values in 0 … 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: UInt8[Tensor, "b s s 3"]) -> Float[Tensor, "b 3 s s"]:
        """Normalised, fp32; the channels stay innermost in memory, which convolutions on a CPU like."""
        mean, std = (torch.tensor(values, device=images.device) * 255 for values in self)
        return images.float().sub_(mean).div_(std).permute(0, 3, 1, 2)


def normalisation_of(images: UInt8[Tensor, "n s s 3"]) -> Normalisation:
    """Of these images; a channel that never changes has the deviation of one step, so that nothing is divided by 0."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(3):
        share = torch.bincount(images[..., channel].flatten(), minlength=256).double() / images[..., channel].numel()
        mean = float((share * levels).sum())
        means.append(mean)
        stds.append(max(math.sqrt(float((share * (levels - mean) ** 2).sum())), 1 / 255))
    return Normalisation(tuple(means), tuple(stds))


# --- what a step sees -------------------------------------------------------------------------------------------------


class Draws(NamedTuple):
    """Order and augmentation of one epoch: row i is the i-th image that is seen."""

    rows: Int[Tensor, " n"]
    shifts: Int[Tensor, "n 2"]
    """Down and to the right, in pixels."""
    flips: Bool[Tensor, " n"]


def draws(n: int, *, shift: int, flip: bool, seed: int, family: str, epoch: int) -> Draws:
    """Those of an epoch, from the stream of its own name."""
    stream = torch.Generator().manual_seed(stream_key(seed, "backbone", family, "epoch", epoch) >> 1)
    rows = torch.randperm(n, generator=stream)
    shifts = torch.randint(-shift, shift + 1, (n, 2), generator=stream)
    flips = torch.rand(n, generator=stream) < (0.5 if flip else 0.0)
    return Draws(rows, shifts, flips)


def augmented(images: UInt8[Tensor, "n s s 3"], some: Draws) -> UInt8[Tensor, "b s s 3"]:
    """The images of `some` rows, each shifted (edge pixels repeat themselves) and, where drawn, mirrored."""
    size = images.shape[1]
    place = torch.arange(size, device=images.device)
    down = (place - some.shifts[:, :1]).clamp_(0, size - 1)
    across = torch.where(some.flips[:, None], size - 1 - place, place)
    across = (across - some.shifts[:, 1:]).clamp_(0, size - 1)
    return images[some.rows[:, None, None], down[:, :, None], across[:, None, :]]


# --- the model in training --------------------------------------------------------------------------------------------


class Namer(nn.Module):
    """A backbone with one linear head per factor on its pooled feature; the heads lie side by side in one layer."""

    def __init__(
        self, backbone: nn.Module, pooled: Callable[[nn.Module, Tensor], Tensor], width: int, values: Sequence[int]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooled = pooled
        self.values = tuple(values)
        # Without torch's own drawing, which would move the global generator.
        self.heads = nn.utils.skip_init(nn.Linear, width, sum(self.values))
        nn.init.zeros_(self.heads.weight)
        nn.init.zeros_(self.heads.bias)

    def forward(self, pixels: Float[Tensor, "b 3 s s"]) -> list[Tensor]:
        """Logits [b, values] of each factor."""
        return list(self.heads(self.pooled(self.backbone, pixels)).split(self.values, dim=1))


def naming_loss(logits: Sequence[Tensor], labels: Int[Tensor, "b q"], smoothing: float) -> Float[Tensor, ""]:
    """Σ over factors of the mean cross-entropy (nats) over the images that have a value."""
    total = labels.new_zeros((), dtype=torch.float32)
    for factor, one in enumerate(logits):
        wanted = labels[:, factor]
        summed = F.cross_entropy(one.float(), wanted, reduction="sum", ignore_index=-1, label_smoothing=smoothing)
        total = total + summed / (wanted >= 0).sum().clamp(min=1)
    return total


class Plan(NamedTuple):
    """How one backbone is trained."""

    name: str
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup: float
    """Share of the steps."""
    label_smoothing: float
    shift: int
    flip: bool
    seed: int
    max_seconds: float | None
    """Epochs are planned to fit into it."""


class Fitted(NamedTuple):
    """How training ended."""

    epochs: int
    seconds: float


def fit(
    namer: Namer,
    data: Pixels,
    normalise: Normalisation,
    plan: Plan,
    checkpoints: Checkpoints,
    *,
    show_progress: bool,
) -> Fitted:
    """Trains in place, from the newest checkpoint; one is written after every epoch.

    Raises `WorkError` where the loss is no longer finite; the epochs before are kept.
    """
    name, n = plan.name, len(data.images)
    optimiser = _Optimiser(namer, plan)
    done, spent, planned = _restore(namer, optimiser, checkpoints, plan)
    steps = max(1, n // plan.batch_size)
    with progress((planned - done) * steps, "steps", f"training {name}", enabled=show_progress) as meter:
        while done < planned:
            began = time.monotonic()
            order = draws(n, shift=plan.shift, flip=plan.flip, seed=plan.seed, family=name, epoch=done)
            first = done * steps
            loss = _epoch(namer, data, normalise, plan, order, optimiser, first, planned * steps, meter)
            done, spent = done + 1, spent + time.monotonic() - began
            if not math.isfinite(loss):
                raise WorkError(
                    f"backbone {name}: the loss of epoch {done} is {loss}; lower its learning_rate "
                    f"(now {plan.learning_rate:g}), the epochs before are kept"
                )
            planned = _epochs_that_fit(plan, done, spent)
            left = (planned - done) * steps
            meter.update(total=meter.completed + left, description=f"training {name}, loss {loss:.3f}")
            checkpoints.save(_checkpoint(namer, optimiser, done, spent, planned))
    return Fitted(done, spent)


def _epochs_that_fit(plan: Plan, done: int, spent: float) -> int:
    """How many there will be in all: by the mean time of those that are done."""
    if plan.max_seconds is None:
        return plan.epochs
    left = max(0.0, plan.max_seconds - spent)
    return min(plan.epochs, done + int(left / (spent / done)))


def _epoch(
    namer: Namer,
    data: Pixels,
    normalise: Normalisation,
    plan: Plan,
    order: Draws,
    optimiser: "_Optimiser",
    first: int,
    total: int,
    meter: Meter,
) -> float:
    """Mean loss over the epoch's steps, of which `first` is the number of the first among `total`."""
    device = data.images.device
    order = Draws(*(drawn.to(device) for drawn in order))
    losses = torch.zeros((), device=device)
    n, size = len(data.images), min(plan.batch_size, len(data.images))
    namer.train()
    # The rest, less than a batch, is left out: another one every epoch.
    starts = range(0, n - size + 1, size)
    with deterministic():
        for step, start in enumerate(starts, start=first):
            some = Draws(*(drawn[start : start + size] for drawn in order))
            with autocast(device):
                logits = namer(normalise(augmented(data.images, some)))
            loss = naming_loss(logits, data.labels[some.rows], plan.label_smoothing)
            loss.backward()
            optimiser.step(rate(plan, step, total))
            losses += loss.detach()
            meter.advance()
    return float(losses) / len(starts)


def rate(plan: Plan, step: int, total: int) -> float:
    """Learning rate of step 0 … total - 1: rises linearly over the warm-up, then falls as half a cosine to 0."""
    warm = math.ceil(plan.warmup * total)
    if step < warm:
        return plan.learning_rate * (step + 1) / warm
    return plan.learning_rate * 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


class _Optimiser:
    """AdamW over a namer: fused, clipped, and no decay for what is no matrix (norms, biases, position tables)."""

    def __init__(self, namer: Namer, plan: Plan) -> None:
        self._named = dict(namer.named_parameters())
        decayed = [one for name, one in self._named.items() if _is_matrix(name, one)]
        others = [one for name, one in self._named.items() if not _is_matrix(name, one)]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": plan.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        fused = all(one.device.type in ("cpu", "cuda") for one in self._named.values())
        self._adamw = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.99), fused=fused)

    def step(self, learning_rate: float) -> None:
        nn.utils.clip_grad_norm_(self._named.values(), 1.0)
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self._adamw.zero_grad()

    def state(self) -> dict[str, Tensor]:
        return {
            f"{name}:{key}": value
            for name, parameter in self._named.items()
            for key, value in self._adamw.state[parameter].items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for key, value in state.items():
            name, _, kind = key.rpartition(":")
            parameter = self._named[name]
            # The fused step walks through memory: moments must lie as their parameter does (channels last).
            like = torch.empty_like(parameter if value.ndim else value, dtype=value.dtype, device=parameter.device)
            self._adamw.state[parameter][kind] = like.copy_(value)


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and not name.endswith(("position_embeddings", "cls_token"))


def _restore(namer: Namer, optimiser: _Optimiser, checkpoints: Checkpoints, plan: Plan) -> tuple[int, float, int]:
    """Epochs done, seconds spent and epochs planned by the newest checkpoint; of a beginning where there is none."""
    kept = checkpoints.latest()
    if kept is None:
        return 0, 0.0, plan.epochs
    namer.load_state_dict(kept.weights)
    optimiser.restore(kept.optimizer)
    return kept.step, kept.extra["seconds"], kept.extra["planned"]


def _checkpoint(namer: Namer, optimiser: _Optimiser, done: int, spent: float, planned: int) -> Checkpoint:
    extra = {"seconds": spent, "planned": planned}
    return Checkpoint(done, namer.state_dict(), optimiser.state(), extra)


@contextmanager
def deterministic() -> Iterator[None]:
    """cuDNN's convolutions by algorithms that add in a fixed order, inside the block."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield


def autocast(device: torch.device) -> torch.autocast:
    """bf16 where the hardware computes it, else nothing; the parameters stay fp32."""
    dtype = resolve_dtype("auto", device)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


# --- what it has learnt -----------------------------------------------------------------------------------------------


@torch.no_grad()
def named_values(namer: Namer, data: Pixels, normalise: Normalisation) -> Int[Tensor, "n q"]:
    """The most probable value of every factor for every image."""
    namer.eval()
    parts = []
    for images in data.images.split(EVALUATION_BATCH):
        with autocast(images.device):
            logits = namer(normalise(images))
        parts.append(torch.stack([one.argmax(dim=1) for one in logits], dim=1))
    return torch.cat(parts)


def accuracy(named: Int[Tensor, " n"], labels: Int[Tensor, " n"], ids: Sequence[str], *, seed: int) -> Estimate:
    """Share of the images whose value was named rightly, those that have none left unscored; Wilson's interval."""
    right = (named == labels).tolist()
    scores = [float(one) if known else None for one, known in zip(right, (labels >= 0).tolist(), strict=True)]
    return clustered_bootstrap(scores, ids, seed=seed, is_share=True)


def chance(train: Int[Tensor, " n"], test: Int[Tensor, " m"]) -> float:
    """Accuracy on `test` of always naming the value that is commonest in `train`; both have a labelled image."""
    commonest = torch.bincount(train[train >= 0]).argmax()
    return float((test[test >= 0] == commonest).double().mean())
