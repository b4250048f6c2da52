"""The universal coder: an encoder and a decoder a model, one sparse code for all of them.

    z = sparsify(W_i ã_i + b_i),     â_j = σ_j ⊙ (D_jᵀ z + c_j) + μ_j,     ã_i = (a_i − μ_i) / σ_i

Sources: Thasarathan et al. 2025 (arXiv 2502.03714), equations 3 to 6; the paper's section 2.3. One model alone is an
ordinary sparse autoencoder. Not here: training (`training`), what is measured of it (`universality`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, final

import torch
from jaxtyping import Float
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from triptych.config import Config
from triptych.dictionaries.sparsifiers import AFTERWARDS, SPARSIFIERS, BatchTopK, Codes, Matryoshka, Sparsifier, TopK
from triptych.errors import ConfigError, DataError, MissingInputError, suggestion
from triptych.files import atomic_path, atomic_write_json
from triptych.seeding import stream_key

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
SCALED_ON = 1024
"""Rows from which the length of encoders is found."""

Activations = Float[Tensor, "n d"]


class CoderConfig(Config):
    """What a dictionary is made of."""

    latents: int = Field(default=2048, ge=1)
    sparsifier: Sparsifier = TopK()
    encoder: Literal["linear", "batch_norm"] = "linear"
    """`batch_norm` normalises pre-activations over the batch, as the official code does."""
    decoder_norm: Literal["unit", "free"] = "free"
    """Whether every row of every decoder has length 1; a free one can fade where a latent explains nothing."""
    normalisation: Literal["feature", "scalar", "none"] = "feature"
    """μ and σ of every feature (the paper), one of both for a model (the official code), or neither."""
    init: Literal["samples", "own_samples", "random"] = "samples"
    """Decoder rows to begin with: the same training images in all models, other images in each, or random directions.
    Encoders begin as the transpose of the decoders."""

    @model_validator(mode="after")
    def _possible(self) -> "CoderConfig":
        if self.sparsifier.k > self.latents:
            raise ValueError(f"sparsifier.k is {self.sparsifier.k} and latents {self.latents}: k cannot exceed latents")
        return self


@final
class Coder(nn.Module):
    """Encoder and decoder of one model. Rows of both weights are latents: [latents, width]."""

    mean: Tensor
    scale: Tensor
    threshold: Tensor

    def __init__(self, config: CoderConfig, width: int) -> None:
        super().__init__()
        latents = config.latents
        self.config = config
        self.width = width
        self.encoder_weight = nn.Parameter(torch.zeros(latents, width))
        self.encoder_bias = nn.Parameter(torch.zeros(latents))
        self.decoder_weight = nn.Parameter(torch.zeros(latents, width))
        self.decoder_bias = nn.Parameter(torch.zeros(width))
        self.norm = nn.BatchNorm1d(latents) if config.encoder == "batch_norm" else nn.Identity()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        if config.sparsifier.name == "jump_relu":
            self.threshold = nn.Parameter(torch.full((latents,), config.sparsifier.threshold))
        else:
            self.register_buffer("threshold", torch.zeros(latents))

    def normalise(self, activations: Activations) -> Activations:
        """Raw → what encoder and loss see."""
        return (activations - self.mean) / self.scale

    def denormalise(self, normalised: Activations) -> Activations:
        """The inverse of `normalise`."""
        return normalised * self.scale + self.mean

    def pre_codes(self, normalised: Activations) -> Codes:
        """Pre-activations of normalised activations."""
        pre: Tensor = self.norm(functional.linear(normalised, self.encoder_weight, self.encoder_bias))
        return pre

    def sparsify(self, pre: Codes) -> Codes:
        """Codes of pre-activations: the training rule in training mode, else one that sees each row alone."""
        rules = SPARSIFIERS if self.training else AFTERWARDS
        return rules[self.config.sparsifier.name](pre, self.config.sparsifier.k, self.threshold)

    def reconstruct(self, codes: Codes) -> Activations:
        """Normalised activations from codes."""
        return codes @ self.decoder_weight + self.decoder_bias


@final
class UniversalSAE(nn.Module):
    """One sparse dictionary over several models.

    Methods take and give raw activations of a named model; what is normalised stays inside.
    """

    def __init__(self, config: CoderConfig, widths: Mapping[str, int]) -> None:
        super().__init__()
        if not widths:
            raise ConfigError("a dictionary needs at least one model; name it with the width of its activations")
        self.config = config
        self.names = tuple(widths)
        self.widths = tuple(widths.values())
        self.coders = nn.ModuleList(Coder(config, width) for width in self.widths)
        self.eval()

    @property
    def latents(self) -> int:
        """m, the size of the shared code."""
        return self.config.latents

    def coder(self, model: str) -> Coder:
        """The part of one model; `ConfigError` for a model that the dictionary does not know."""
        if model not in self.names:
            raise ConfigError(f"the dictionary has no model '{model}'{suggestion(model, self.names)}")
        coder = self.coders[self.names.index(model)]
        assert isinstance(coder, Coder)  # noqa: S101 - for the type checker: ModuleList forgets
        return coder

    def pre_codes(self, model: str, activations: Activations) -> Codes:
        """Pre-activations [rows, latents] of raw activations [rows, width]; differentiable."""
        coder = self.coder(model)
        if activations.shape[1] != coder.width:
            raise DataError(
                f"activations of '{model}' are {activations.shape[1]} wide and the dictionary was made for "
                f"{coder.width}; use the model, site and pooling it was trained on"
            )
        return coder.pre_codes(coder.normalise(activations))

    def encode(self, model: str, activations: Activations) -> Codes:
        """Sparse codes [rows, latents], zeros included."""
        return self.coder(model).sparsify(self.pre_codes(model, activations))

    def decode(self, model: str, codes: Codes) -> Activations:
        """The activations of `model` that a code (of whichever model) stands for, in raw units."""
        coder = self.coder(model)
        return coder.denormalise(coder.reconstruct(codes))

    def forward(self, source: str, target: str, activations: Activations) -> Float[Tensor, "n _"]:
        """Activations of `source` to those of `target` through the shared code."""
        return self.decode(target, self.encode(source, activations))

    def save(self, folder: Path) -> None:
        """`config.json` and `model.safetensors`, the weights first: a folder with a config is whole."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        with atomic_path(folder / WEIGHTS) as temporary:
            save_file(tensors, temporary)
        described = {"models": dict(zip(self.names, self.widths, strict=True)), **self.config.model_dump(mode="json")}
        atomic_write_json(folder / CONFIG, {"kind": "triptych.UniversalSAE", **described})

    @classmethod
    def load(cls, folder: Path) -> "UniversalSAE":
        """The dictionary that `save` wrote, in evaluation mode.

        Raises `MissingInputError` where there is none, `DataError` where its files are damaged or do not fit together.
        """
        path = folder / CONFIG
        if not path.is_file():
            raise MissingInputError(f"{folder} holds no dictionary: it has no {CONFIG}")
        try:
            saved = _Saved.model_validate_json(path.read_bytes(), strict=True)
            coder = cls(CoderConfig(**{name: getattr(saved, name) for name in CoderConfig.model_fields}), saved.models)
            coder.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, ConfigError, ValidationError, SafetensorError, RuntimeError) as error:
            raise DataError(f"{folder} holds a damaged dictionary ({_reason(error)}); train it again") from error
        return coder


class _Saved(CoderConfig):
    kind: Literal["triptych.UniversalSAE"]
    models: dict[str, int]


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{CONFIG}, at {'.'.join(map(str, first['loc'])) or 'the start'}: {first['msg']}"
    # The first line of what torch says of weights that do not fit is a heading.
    lines = str(error).splitlines()
    return lines[min(1, len(lines) - 1)].strip()


# --- Before training --------------------------------------------------------------------------------------------------


def initialise(sae: UniversalSAE, samples: Sequence[Float[Tensor, "n _"]], seed: int) -> None:
    """Decoder rows of length 1, encoders the multiple of their transpose that reconstructs the samples best.

    `samples` are normalised activations of the same rows in every model, at least as many as latents where they are
    what the dictionary begins with: latent f begins as row f in all models, so that it begins to mean one thing.
    Random directions and `own_samples` are drawn for each model by itself.
    """
    for place, (coder, own) in enumerate(zip(sae.coders, samples, strict=True)):
        assert isinstance(coder, Coder)  # noqa: S101
        directions = _directions(coder, own, seed, place)
        with torch.no_grad():
            coder.decoder_weight.copy_(functional.normalize(directions, dim=1))
            coder.encoder_weight.copy_(coder.decoder_weight)
            coder.encoder_bias.zero_()
            coder.decoder_bias.zero_()
    if sae.config.encoder == "linear":  # Else the norm divides the scale out again.
        _scale_encoders(sae, [own[:SCALED_ON] for own in samples])


@torch.no_grad()
def _scale_encoders(sae: UniversalSAE, samples: Sequence[Float[Tensor, "n _"]]) -> None:
    """γ_i = Σ_j ⟨ã_j, â_j⟩ / Σ_j ‖â_j‖² for source i, terms divided by widths as in the loss.

    Several latents share in every row: with encoders as long as decoders, their sum would begin far beyond it. Codes
    grow with the encoder (but for thresholds), so one division finds the best length.
    """
    coders = [sae.coder(name) for name in sae.names]
    if len(samples[0]) == 0:
        return
    for coder, own in zip(coders, samples, strict=True):
        codes = coder.sparsify(coder.pre_codes(own))
        pairs = [(rows, other.reconstruct(codes)) for other, rows in zip(coders, samples, strict=True)]
        along = sum(float((rows * guess).mean()) for rows, guess in pairs)
        length = sum(float(guess.square().mean()) for _, guess in pairs)
        if along > 0 and length > 0:
            coder.encoder_weight.mul_(along / length)


def _directions(coder: Coder, own: Activations, seed: int, place: int) -> Tensor:
    stream = torch.Generator().manual_seed(stream_key(seed, "dictionary", place) >> 1)
    random = torch.randn(coder.config.latents, coder.width, generator=stream)
    if coder.config.init == "random":
        return random
    rows = torch.arange(len(own))
    if coder.config.init == "own_samples":
        rows = torch.randperm(len(own), generator=stream)
    chosen = own[rows[: coder.config.latents].to(own.device)].float().cpu()
    # Fewer rows than latents, or rows of zeros: those begin at random.
    few = random.clone()
    few[: len(chosen)] = torch.where(chosen.norm(dim=1, keepdim=True) > 0, chosen, random[: len(chosen)])
    # A little noise, so that images that stand twice do not make twins for ever.
    return functional.normalize(few, dim=1) + 0.1 * functional.normalize(random, dim=1)


# --- After training ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def calibrate(coder: Coder, normalised: Activations) -> None:
    """Sets the threshold of a BatchTopK coder so that k latents fire on a mean row of these; others stay as they are.

    Departure: Bussmann et al. (2024, section 3) average the smallest value that each batch kept, which lags behind
    weights that still move and knows nothing of a model that was never the source.
    """
    if isinstance(coder.config.sparsifier, BatchTopK | Matryoshka):
        values = coder.pre_codes(normalised).clamp_min(0).flatten()
        kept = min(coder.config.sparsifier.k * len(normalised), values.numel() - 1)
        # The largest value that must not fire.
        coder.threshold.fill_(values.topk(kept + 1).values[-1])
