"""How a dictionary is trained: its configuration. Not here: what it is made of (`coder.CoderConfig`)."""

from typing import Literal

from pydantic import Field, model_validator

from triptych.config import Config
from triptych.dictionaries.coder import CoderConfig
from triptych.dictionaries.sparsifiers import TopK


class UniversalConfig(Config):
    """A dictionary and its training.

    By default the paper's sizes and rates, with a rule that tells shared from private concepts where both are planted
    (`design/dictionaries.md`); the paper's own rule is in the recipe `paper`.
    """

    coder: CoderConfig = CoderConfig()
    update: Literal["source", "all"] = "all"
    """Who learns from a step: the encoded model alone (the official code), or every decoder (the plain sum)."""
    sources: Literal["one", "every"] = "one"
    """Which models are encoded in a step: one at random, or each, which costs as many times more."""
    code: Literal["own", "summed"] = "own"
    """Whose pre-activations choose the latents: the source's, or the sum over all models (SPARC); needs `every`."""
    loss: Literal["mse", "l1"] = "mse"
    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=256, ge=2)
    learning_rate: float = Field(default=1e-3, gt=0)
    final_learning_rate: float | None = Field(default=None, gt=0)
    """Where a cosine from `learning_rate` ends; None for a constant rate (the paper)."""
    warm_up: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps over which the rate rises from 0."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW, torch's default: it lets a free decoder row fade where a latent explains nothing."""
    match: bool = True
    """Whether latents of models are matched by their codes after an epoch: else two models that find a concept apart
    keep a latent each for it."""
    revival: Literal["none", "resample", "aux_k"] = "resample"
    """Of latents that have not fired for an epoch: none; begun again in what is explained worst (Bricken et al. 2023);
    or an auxiliary loss that has them predict the error (Gao et al. 2024)."""
    aux_coefficient: float = Field(default=0.1, gt=0)
    aux_k: int = Field(default=256, ge=1)
    """Dead latents that take part in it, at most."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of matrix products; weights, codes and moments are float32 always. `auto` is
    float32 for the kernels on a CPU, and elsewhere bfloat16 where hardware has it."""

    @model_validator(mode="after")
    def _possible(self) -> "UniversalConfig":
        if self.code == "summed" and self.sources != "every":
            raise ValueError("code is 'summed' and sources 'one': a sum needs all models encoded; set sources: every")
        if self.code == "summed" and not isinstance(self.coder.sparsifier, TopK):
            raise ValueError(f"code 'summed' needs the sparsifier top_k, not {self.coder.sparsifier.name}")
        return self

    @property
    def is_matched(self) -> bool:
        """Whether latents are matched; a summed code chooses the same ones in all models anyway."""
        return self.match and self.code == "own"

    @property
    def is_plain(self) -> bool:
        """Whether the kernels for CPUs can do it: TopK codes, squared errors, a linear encoder, no auxiliary loss."""
        is_plain_coder = isinstance(self.coder.sparsifier, TopK) and self.coder.encoder == "linear"
        return is_plain_coder and self.loss == "mse" and self.revival != "aux_k"


ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
