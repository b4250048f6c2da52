"""What the page of concepts is asked and answers: the shapes of its JSON.

Not here: where the values come from (`concepts`).
"""

from typing import Literal

from pydantic import BaseModel, Field

from triptych.explorer import paging
from triptych.explorer.concept_latents import ClassName, SortKey

# --- What is asked ----------------------------------------------------------------------------------------------------


class LatentQuery(paging.PageQuery):
    """Which latents, in which order."""

    cls: ClassName | None = None
    confirmed: bool | None = None
    q: str | None = Field(default=None, max_length=paging.MAX_QUERY)
    factor: str | None = Field(default=None, max_length=2000)
    value: str | None = Field(default=None, max_length=2000)
    min_auroc: float | None = Field(default=None, ge=0, le=1)
    pictured: bool | None = None
    sort: SortKey = "latent"


# --- What is answered -------------------------------------------------------------------------------------------------


class Sentence(BaseModel):
    """One finding and what it is about."""

    label: str
    text: str


class EntropyHistogram(BaseModel):
    """Live latents by firing entropy."""

    edges: list[float]
    counts: list[int]
    confirmed_counts: list[int]


class FactorValues(BaseModel):
    """A labelled property of images, and its values that some latent ranks."""

    name: str
    values: list[str]


class Overview(BaseModel):
    """The shared dictionary as a whole."""

    models: list[str]
    n: int
    classes: dict[ClassName, int]
    confirmed: int
    """Universal latents that fire together more often than by chance."""
    summary: list[Sentence]
    entropy_histogram: EntropyHistogram
    null_histogram: dict[str, list[int]] | None
    factors: list[FactorValues]
    unit: Literal["image", "row"]
    """What a held-out row is."""
    pictured: list[int]
    thresholds: dict[str, float]


class Scatter(BaseModel):
    """Live latents, a list a column."""

    latent: list[int]
    entropy: list[float | None]
    fires: dict[str, list[int]]
    energy: dict[str, list[float | None]]
    co_fires: list[int]
    class_: list[int] = Field(serialization_alias="class")
    """The place in universal, mid, specific, dead."""


class LatentRow(BaseModel):
    """A latent in a list."""

    latent: int
    cls: ClassName
    specific_to: str | None
    """The model that a specific latent is of."""
    confirmed: bool
    """Fires together more often than by chance, whatever its class."""
    entropy: float | None
    co_fires: int
    fires: dict[str, int]
    label: str | None
    label_auroc: float | None
    thumbnails: dict[str, list[str]]


class LatentPage(paging.Page):
    """A page of latents."""

    rows: list[LatentRow]


class AgreementRow(BaseModel):
    """How well a latent ranks images of a value above all others."""

    factor: str
    value: str
    auroc: float
    model: str | None


class ShownImage(BaseModel):
    """An image or row on which the latent fires, or an image that drives it."""

    url: str | None
    """None of a row that is no image."""
    activation: float | None
    image_id: str | None


class ModelImages(BaseModel):
    """What one model shows of a latent."""

    top: list[ShownImage]
    heat: list[ShownImage]
    maximised: list[ShownImage]


class LatentDetail(BaseModel):
    """Everything about one latent."""

    latent: int
    cls: ClassName
    specific_to: str | None
    confirmed: bool
    entropy: float | None
    fires: dict[str, int]
    co_fires: int
    co_fire_chance: float | None
    cofire: dict[str, float | None]
    energy: dict[str, float | None]
    label: str | None
    label_auroc: float | None
    agreement: list[AgreementRow]
    unit: Literal["image", "row"]
    """What a held-out row is."""
    images: dict[str, ModelImages]
    previous: int | None
    next: int | None
