"""What the interpretation panel is to do: its configuration."""

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from triptych.config import Config
from triptych.dictionaries.backbones import BackboneConfig
from triptych.dictionaries.matrices import MatrixConfig
from triptych.dictionaries.settings import UniversalConfig
from triptych.dictionaries.visualisation import MaximisationConfig
from triptych.models.sites import Pooling

Baseline = Literal["other_update", "independent", "independent_equal_updates", "sparc"]
Null = Literal["shuffled", "same"]
RESERVED = ("shuffled", "same", "all")
MATRIX_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Of the models of matrices: names stand in columns, files and folders."""
OF_IMAGES = ("images", "test_images", "on_corrupt", "backbones", "models", "grid", "dtype", "activations")
"""Keys that say nothing where activations are given as matrices."""


class SiteConfig(Config):
    """A vision model, and where it is read."""

    source: str
    """A hub id or a folder."""
    site: str | None = None
    """A module's dotted path (`encoder.stages.2`); None: the model's output."""
    pooling: Pooling = "auto"


class PicturesConfig(Config):
    """Pictures of some latents of the shared dictionary."""

    universal: int = Field(default=6, ge=0)
    """Latents."""
    specific: int = Field(default=3, ge=0)
    """Latents of each model."""
    top: int = Field(default=6, ge=1)
    """Images of each model on which the latent fires most."""
    maximisation: MaximisationConfig | None = MaximisationConfig()


class MatricesConfig(Config):
    """Activations as matrices in files: row n of each is of the same thing, whichever model it went through."""

    train: dict[str, MatrixConfig]
    """Name → matrix."""
    test: dict[str, MatrixConfig] = Field(default_factory=dict)
    """The same names on held-out rows; empty: `test_share` of the rows are held out."""
    labels: MatrixConfig | None = None
    """A label a row of `train`, for the agreement of latents with labels on the rows held out of it."""
    test_labels: MatrixConfig | None = None
    """A label a row of `test`."""

    @model_validator(mode="after")
    def _possible(self) -> "MatricesConfig":
        for name in self.train:
            if MATRIX_NAME.fullmatch(name) is None or name in RESERVED:
                raise ValueError(
                    f"name '{name}' cannot be used: letters, digits, '-' and '_' can, but for {', '.join(RESERVED)}"
                )
        if len({name.casefold() for name in self.train}) < len(self.train):
            raise ValueError("two names differ in capitals alone, which folders may not tell apart; rename one")
        if self.test and set(self.test) != set(self.train):
            raise ValueError(
                f"held-out activations are of {', '.join(self.test)} and those to train on of {', '.join(self.train)}; "
                "name the same models in both"
            )
        if self.test_labels is not None and not self.test:
            raise ValueError("test_labels are of held-out activations, and there are none; give labels instead")
        if self.labels is not None and self.test and self.test_labels is None:
            raise ValueError("latents are compared with labels of held-out rows alone; give test_labels")
        return self


class DictionariesConfig(Config):
    """One dictionary that several vision models share, what it is compared with, and what is shown of it."""

    matrices: MatricesConfig | None = None
    """Activations of one's own, in the place of images and models."""
    images: str = "starter"
    """`starter`, a hub data set, a Parquet file, or a folder of class folders."""
    test_images: str | None = None
    """The held-out images, where they lie elsewhere."""
    limit: int | None = Field(default=None, ge=2)
    """Training images or rows, drawn at random."""
    test_limit: int | None = Field(default=None, ge=2)
    test_share: float = Field(default=0.2, gt=0, lt=1)
    """Of the images or rows, where nothing says which are held out."""
    on_corrupt: Literal["stop", "skip"] = "stop"
    backbones: BackboneConfig | None = None
    """Two small models, trained on the images' labels on the spot; in the place of `models`, or beside them."""
    models: dict[str, SiteConfig] = Field(default_factory=dict)
    """Name → model."""
    grid: int | None = Field(default=None, ge=1)
    """Rows and columns to which spatial sites are resampled, the same for all models."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the models' forward passes."""
    activations: str | None = None
    """A folder for activations that several runs share; None: in the run directory."""
    universal: UniversalConfig = UniversalConfig()
    seeds: int = Field(default=3, ge=1)
    """Universal and independent dictionaries of each kind; nulls and other comparisons have one."""
    baselines: tuple[Baseline, ...] = ("independent", "independent_equal_updates", "other_update", "sparc")
    nulls: tuple[Null, ...] = ("shuffled", "same")
    firing_threshold: float = Field(default=0.0, ge=0)
    """Codes above it count as firing; 0 as TopK has it, 0.1 in the official code."""
    pictures: PicturesConfig | None = PicturesConfig()

    @field_validator("models")
    @classmethod
    def _sensible_names(cls, models: dict[str, SiteConfig]) -> dict[str, SiteConfig]:
        for name in models:
            if not name.strip() or not name.isprintable() or set(name) & set("/\\:") or name in (".", "..", *RESERVED):
                raise ValueError(f"model name '{name}' cannot be used: letters, digits, '-' and '_' can")
        return models

    @model_validator(mode="after")
    def _enough_models(self) -> "DictionariesConfig":
        if self.matrices is not None:
            fields = type(self).model_fields
            if also := [
                key for key in OF_IMAGES if getattr(self, key) != fields[key].get_default(call_default_factory=True)
            ]:
                raise ValueError(f"activations are given as matrices, and {also[0]} as well; leave out one of them")
            if len(self.names) < 2:
                raise ValueError(
                    f"a shared dictionary needs at least two models, and only {', '.join(self.names) or 'none'} has "
                    "activations; give those of another on the same rows"
                )
            return self
        if self.backbones is not None and set(self.models) & {"resnet", "vit"}:
            raise ValueError("models called 'resnet' or 'vit' clash with the trained backbones; choose other names")
        if len(self.names) < 2:
            raise ValueError("a shared dictionary needs at least two models; name them in models, or set backbones")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Of all models, in order."""
        if self.matrices is not None:
            return tuple(self.matrices.train)
        return (*(("resnet", "vit") if self.backbones is not None else ()), *self.models)
