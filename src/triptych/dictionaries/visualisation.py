"""Coordinated activation maximisation: for one latent, one input per model that drives it, all from the same start.

Thasarathan et al. 2025 (arXiv 2502.03714) for the idea; Olah et al., *Feature Visualization* (2017), for the Fourier
parametrisation, opponent colours and jitter; Yosinski et al. 2015 (arXiv 1506.06579) for the Gaussian blur, which is
annealed to nothing here. Every model's own encoder is followed, and models do not see one another: what their inputs
have in common is the start, the shifts, and the latent.

Not here: which latents, and what becomes of the images (`triptych.dictionaries.pictures`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from triptych.config import Config
from triptych.errors import WorkError
from triptych.progress import progress
from triptych.seeding import generator, uniforms

Parametrisation = Literal["fourier", "pixels"]

SIDE = 64
"""Pixels: the side of an image for which `blur_sigma` and `jitter` are meant."""

START = 0.01
"""Amplitude of the waves of the start, in logits, before they decay with their frequency: nearly grey."""

NEGLIGIBLE = 0.1
"""Epsilon of Adam, in root mean squares of a latent's gradient: what matters less than that moves less.

With the usual 1e-8, waves whose gradient is no more than rounding errors move as far as the others.
"""

OPPONENT_COLOURS = ((0.577, 0.408, 0.236), (0.577, 0.0, -0.471), (0.577, -0.408, 0.236))
"""Red, green, blue by light, red-blue and green-purple: orthogonal, and of lengths 1, 0.58 and 0.58.

The principal axes of the colours of natural images are close to these, and light varies most (Ruderman et al. 1998).
"""


class MaximisationConfig(Config):
    """How inputs are optimised. Lengths are in pixels of an image of 64 and grow with larger ones."""

    steps: Annotated[int, Field(ge=1)] = 128
    learning_rate: Annotated[float, Field(gt=0.0)] = 0.03
    """Of Adam on waves; ten times it on pixels, which do not add up as waves do. It falls to a tenth on a cosine."""
    parametrisation: Parametrisation = "fourier"
    """`fourier`: waves whose amplitude decays with their frequency; `pixels`: every pixel by itself."""
    objective: Literal["mean", "max"] = "max"
    """Over the rows of an image, where a site has several: `max` draws one place, and is what top images are ranked by;
    `mean` fills the image."""
    blur_sigma: Annotated[float, Field(ge=0.0)] = 1.0
    """Of the first blur; the last ones are all but none."""
    blur_every: Annotated[int, Field(ge=0)] = 2
    """Steps; 0 for never."""
    jitter: Annotated[int, Field(ge=0)] = 4
    """Pixels by which the image is shifted at most, anew in every step."""
    l2: Annotated[float, Field(ge=0.0)] = 0.05
    """Weight of the mean square of the logits of colours: keeps away from pure black and white."""


@runtime_checkable
class Sees(Protocol):
    """The part of `triptych.models.vision.VisionModel` that is needed."""

    @property
    def image_size(self) -> tuple[int, int]: ...

    def features(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b g d"]: ...


@runtime_checkable
class Encodes(Protocol):
    """The part of `triptych.dictionaries.coder.UniversalSAE` that is needed."""

    def pre_codes(self, model: str, activations: Float[Tensor, "n d"]) -> Float[Tensor, "n f"]: ...


class Driven(NamedTuple):
    """One model's inputs, and how strongly they drive their latents.

    Pre-activations are those of the row that is driven most, whatever the objective: a top image is ranked likewise.
    """

    images: Float[Tensor, "f 3 h w"]
    """In [0, 1]."""
    first: Float[Tensor, " f"]
    """Pre-activation of the start."""
    last: Float[Tensor, " f"]
    """Pre-activation of the images."""


def maximise(
    models: Mapping[str, Sees],
    coder: Encodes,
    latents: Sequence[int],
    config: MaximisationConfig,
    *,
    stream: int,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    show_progress: bool = False,
) -> dict[str, Driven]:
    """For every model an image a latent, in the order of `latents`.

    Args:
        stream: a key of `triptych.seeding`: start and shifts depend on it and the latent, not on who shares the batch.
        batch_size: latents at once.
        device: where the models and the coder are.

    Raises WorkError, naming model and latent, where a model's output stops being a number.
    """
    size = _largest([model.image_size for model in models.values()])
    batches = [tuple(latents[at : at + batch_size]) for at in range(0, len(latents), batch_size)]
    found: dict[str, list[Driven]] = {name: [] for name in models}
    n_steps = len(models) * len(batches) * config.steps
    with progress(n_steps, "steps", "activation maximisation", enabled=show_progress) as bar:
        for batch in batches:
            start = start_logits(batch, size, stream).to(device)
            for name, model in models.items():
                aim = _Aim(name, model, coder, torch.tensor(batch, device=device))
                found[name].append(_driven(aim, resized(start, model.image_size), config, stream, bar.advance))
    return {name: _joined(parts, models[name].image_size) for name, parts in found.items()}


def pre_activations(
    name: str, model: Sees, coder: Encodes, pixels: Float[Tensor, "f 3 h w"], latents: Int[Tensor, " f"]
) -> Float[Tensor, "f g"]:
    """Of latent i on the rows of image i, by the model's own encoder; differentiable in the pixels."""
    features = model.features(pixels)
    n_images, n_rows, width = features.shape
    codes = coder.pre_codes(name, features.reshape(n_images * n_rows, width))
    return codes.view(n_images, n_rows, -1)[torch.arange(n_images, device=latents.device), :, latents]


# --- The optimisation -------------------------------------------------------------------------------------------------


class _Aim(NamedTuple):
    name: str
    model: Sees
    coder: Encodes
    latents: Int[Tensor, " f"]

    def rows(self, pixels: Float[Tensor, "f 3 h w"]) -> Float[Tensor, "f g"]:
        return pre_activations(self.name, self.model, self.coder, pixels, self.latents)

    def measured(self, pixels: Float[Tensor, "f 3 h w"]) -> Float[Tensor, " f"]:
        """The row that is driven most; WorkError where that is no number."""
        with torch.no_grad():
            highest = self.rows(pixels).amax(1).float().cpu()
        if not bool(highest.isfinite().all()):
            latent = int(self.latents[int(highest.isfinite().int().argmin())])
            raise WorkError(
                f"model '{self.name}', latent {latent}: the pre-activation of an optimised image is no finite number: "
                "lower the learning rate of the maximisation, or load the model in float32"
            )
        return highest


def _driven(
    aim: _Aim,
    start: Float[Tensor, "f 3 h w"],
    config: MaximisationConfig,
    stream: int,
    advance: Callable[[], None],
) -> Driven:
    first = aim.measured(torch.sigmoid(start))
    images = torch.sigmoid(_optimised(aim, start, config, stream, advance))
    return Driven(images.cpu(), first, aim.measured(images))


def _optimised(
    aim: _Aim,
    start: Float[Tensor, "f 3 h w"],
    config: MaximisationConfig,
    stream: int,
    advance: Callable[[], None],
) -> Float[Tensor, "f 3 h w"]:
    """The logits of the colours after all steps. Adam acts element by element, so latents do not meet."""
    size = (start.shape[2], start.shape[3])
    canvas, scale = CANVASES[config.parametrisation], max(size) / SIDE
    parameters = canvas.unpaint(start).requires_grad_()
    rate = canvas.pace * config.learning_rate
    optimiser = torch.optim.Adam([parameters], lr=rate, eps=NEGLIGIBLE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps, 0.1 * rate)
    for step in range(config.steps):
        logits = canvas.paint(parameters, size)
        rows = aim.rows(shifted(torch.sigmoid(logits), *shifts(step, config.jitter * scale, stream)))
        driven = rows.mean(1) if config.objective == "mean" else rows.amax(1)
        loss = (config.l2 * logits.square().mean((1, 2, 3)) - driven).sum()
        # Of the input alone: neither the weights of the model nor those of the dictionary get a gradient.
        (gradient,) = torch.autograd.grad(loss, parameters)
        parameters.grad = _to_unit_size(gradient)
        optimiser.step()
        schedule.step()
        if config.blur_every and (step + 1) % config.blur_every == 0:
            sigma = config.blur_sigma * scale * (1.0 - (step + 1) / config.steps)
            with torch.no_grad():
                parameters.copy_(canvas.unpaint(blurred(canvas.paint(parameters, size), sigma)))
        advance()
    return canvas.paint(parameters, size).detach()


def _to_unit_size(gradient: Tensor) -> Tensor:
    """Each latent's to a root mean square of 1, so that what is negligible does not depend on the scale of codes."""
    size = gradient.flatten(1).square().mean(1).sqrt().clamp_min(1e-20)
    return gradient / size.view(-1, *[1] * (gradient.ndim - 1))


def _joined(parts: Sequence[Driven], size: tuple[int, int]) -> Driven:
    if not parts:
        return Driven(torch.empty(0, 3, *size), torch.empty(0), torch.empty(0))
    return Driven(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


# --- Start and shifts -------------------------------------------------------------------------------------------------


def start_logits(latents: Sequence[int], size: tuple[int, int], stream: int) -> Float[Tensor, "f 3 h w"]:
    """Smooth noise, nearly grey, of each latent's own: logits of colours."""
    shape = (3, size[0], size[1] // 2 + 1, 2)
    drawn = [generator(stream, "start", latent).standard_normal(shape, dtype=np.float32) for latent in latents]
    return fourier_paint(START * torch.from_numpy(np.stack(drawn)), size)


def resized(logits: Float[Tensor, "f 3 a b"], size: tuple[int, int]) -> Float[Tensor, "f 3 h w"]:
    """Bilinear, without aliasing; as it is where it has that size."""
    if (logits.shape[2], logits.shape[3]) == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", antialias=True, align_corners=False)


def shifts(step: int, most: float, stream: int) -> tuple[int, int]:
    """Pixels down and right, each between -most and most; of a step and a stream, the same for all latents.

    Models of the same stream are shifted by the same share of `most`.
    """
    drawn = uniforms(np.full(2, stream, dtype=np.uint64), np.array([2 * step, 2 * step + 1], dtype=np.int64))
    down, right = np.rint((2.0 * drawn - 1.0) * most).astype(int)
    return int(down), int(right)


def shifted(images: Float[Tensor, "f 3 h w"], down: int, right: int) -> Float[Tensor, "f 3 h w"]:
    """What leaves at one side comes in at the other."""
    return images.roll((down, right), dims=(2, 3))


def _largest(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return max((size[0] for size in sizes), default=1), max((size[1] for size in sizes), default=1)


# --- Blur -------------------------------------------------------------------------------------------------------------


def gaussian_kernel(sigma: float) -> Float[Tensor, " k"]:
    """Sums to 1; cut off at four standard deviations, as in `scipy.ndimage`."""
    radius = int(4.0 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / max(sigma, 1e-12)).square())
    return (weights / weights.sum()).float()


def blurred(images: Float[Tensor, "f 3 h w"], sigma: float) -> Float[Tensor, "f 3 h w"]:
    """Gaussian blur of each channel; beyond the border is what lies at it."""
    kernel = gaussian_kernel(sigma).to(images)
    radius = len(kernel) // 2
    if radius == 0:
        return images
    planes = images.reshape(-1, 1, images.shape[2], images.shape[3])
    planes = F.conv2d(F.pad(planes, (0, 0, radius, radius), mode="replicate"), kernel.view(1, 1, -1, 1))
    planes = F.conv2d(F.pad(planes, (radius, radius, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    return planes.view_as(images)


# --- Parametrisations: how what is optimised becomes logits of colours, and back -------------------------------------


class Canvas(NamedTuple):
    """Two linear maps, one the other's inverse on images."""

    paint: Callable[[Tensor, tuple[int, int]], Tensor]
    """(parameters, (height, width)) -> logits of colours [f, 3, height, width]."""
    unpaint: Callable[[Tensor], Tensor]
    pace: float = 1.0
    """Times the learning rate."""


def fourier_paint(waves: Float[Tensor, "f 3 h k 2"], size: tuple[int, int]) -> Float[Tensor, "f 3 h w"]:
    """Waves of opponent colours: real and imaginary part, without their decay."""
    decay = _decay(size).to(waves.device)
    planes = torch.fft.irfft2(torch.view_as_complex(waves) * decay, s=size, norm="forward")
    return _recoloured(planes, _colours())


def fourier_unpaint(logits: Float[Tensor, "f 3 h w"]) -> Float[Tensor, "f 3 h k 2"]:
    planes = _recoloured(logits, torch.linalg.inv(_colours()))
    decay = _decay((logits.shape[2], logits.shape[3])).to(logits.device)
    return torch.view_as_real(torch.fft.rfft2(planes, norm="forward") / decay).contiguous()


def _decay(size: tuple[int, int]) -> Float[Tensor, "h k"]:
    """1 / waves across the image, 1 for the constant.

    Amplitudes of natural images fall off like that. By the image and not by the pixel: a step of the optimiser then
    changes images of all sizes alike.
    """
    height, width = size
    down, across = torch.fft.fftfreq(height) * height, torch.fft.rfftfreq(width) * width
    return 1.0 / torch.hypot(down[:, None], across[None, :]).clamp_min(1.0)


def _colours() -> Float[Tensor, "3 3"]:
    return torch.tensor(OPPONENT_COLOURS)


def _recoloured(planes: Float[Tensor, "f 3 h w"], matrix: Float[Tensor, "3 3"]) -> Float[Tensor, "f 3 h w"]:
    return torch.einsum("rc,fchw->frhw", matrix.to(planes.device), planes)


CANVASES: dict[Parametrisation, Canvas] = {
    "fourier": Canvas(fourier_paint, fourier_unpaint),
    "pixels": Canvas(lambda logits, size: logits, lambda logits: logits.clone(), pace=10.0),
}
