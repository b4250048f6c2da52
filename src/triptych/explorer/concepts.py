"""The page of concepts: the latents of the shared dictionary, what they fire on, and how universal they are.

Endpoints below `/api/concepts`. Latents are asked for by number, images by a name or number that the run's own files
list. Not here: what is known of latents (`concept_latents`) and where images lie (`concept_images`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, final

import numpy as np
import pyarrow as pa
from fastapi import APIRouter, HTTPException, Query, Response

from triptych.dictionaries.records import FOLDER, MATRICES, MEASURES, SPECIFIC, THUMBNAILS, TOPS, TRAINED, UNIVERSAL
from triptych.errors import DataError, InputError, MissingInputError
from triptych.explorer import paging
from triptych.explorer.concept_answers import (
    AgreementRow,
    EntropyHistogram,
    FactorValues,
    LatentDetail,
    LatentPage,
    LatentQuery,
    LatentRow,
    ModelImages,
    Overview,
    Scatter,
    Sentence,
    ShownImage,
)
from triptych.explorer.concept_images import BASE, OWN, ConceptImages, Encoded, Shot
from triptych.explorer.concept_latents import (
    AGREEMENT,
    CLASSES,
    ConceptLatents,
    Wanted,
    read_latents,
    shown_names,
)
from triptych.explorer.fresh import Fresh
from triptych.explorer.text import finite, name_of
from triptych.reports.dictionaries_findings import findings
from triptych.reports.dictionaries_inputs import FEATURES, IMAGES, Dictionaries, read_dictionaries
from triptych.reports.figures.dictionaries import BINS, EDGES
from triptych.reports.inputs import FloatArray
from triptych.reports.safe_text import neutralise

Value = TypeVar("Value")
IN_LISTS, MAX_AGREEMENTS = 3, 20
"""Thumbnails of each model, and agreements of one latent."""
TOPICS = {
    ("One dictionary", "A dictionary"): "What it explains",
    ("Sharing costs", "What sharing"): "What sharing costs",
    ("By what they explain",): "What is universal",
    ("Trained on", "Of a model", "No null"): "What chance would give",
    ("From one model",): "What the update does",
    ("Brackets",): "Intervals",
}
"""How the sentences of `findings` begin, and what they are about."""
IMAGE: dict[str, Any] = {"content": {"image/png": {}, "image/jpeg": {}}}
NoQuery = Annotated[paging.Query, Query()]
"""Of an endpoint without parameters: whichever is given is refused."""


# --- From files to answers --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Concepts:
    """Everything that the page shows, in memory but for images."""

    run: Dictionaries
    known: ConceptLatents
    images: ConceptImages
    names: Mapping[str, str]
    """Model → as it is shown."""

    @cached_property
    def overview(self) -> Overview:
        latents, classes = self.known.latents, self.known.classes
        counts = np.bincount(classes, minlength=len(CLASSES)).tolist()
        live = ~latents.dead
        shuffled = self.run.null_entropies.get("shuffled")
        return Overview(
            models=list(self.names.values()),
            n=len(latents.numbers),
            classes=dict(zip(CLASSES, counts, strict=True)),
            confirmed=int((latents.confirmed & (classes == CLASSES.index("universal"))).sum()),
            summary=[_sentence(text) for text in findings(self.run)],
            entropy_histogram=EntropyHistogram(
                edges=np.round(EDGES, 6).tolist(),
                counts=_histogram(latents.entropies[live]),
                confirmed_counts=_histogram(latents.entropies[live & latents.confirmed]),
            ),
            null_histogram=None if shuffled is None else {"shuffled": _histogram(shuffled)},
            factors=[FactorValues(name=name, values=values) for name, values in self.known.factors.items()],
            unit=self.run.unit,
            pictured=[latent for latent in self.images.pictured if latent in self.known.places],
            thresholds={"universal": UNIVERSAL, "specific": SPECIFIC},
        )

    @cached_property
    def scatter(self) -> bytes:
        """As JSON: thousands of points are encoded once."""
        latents, live = self.known.latents, self.known.classes != CLASSES.index("dead")
        found = Scatter(
            latent=latents.numbers[live].tolist(),
            entropy=_rounded(latents.entropies[live]),
            fires={self.names[model]: fires[live].tolist() for model, fires in latents.fires.items()},
            energy={self.names[model]: _short(energy[live]) for model, energy in latents.energies.items()},
            co_fires=latents.co_fires[live].tolist(),
            class_=self.known.classes[live].tolist(),
        )
        return found.model_dump_json(by_alias=True).encode()

    def page(self, asked: LatentQuery) -> LatentPage:
        wanted = Wanted(
            **asked.model_dump(include=set(Wanted._fields) - {"descending"}), descending=asked.order == "desc"
        )
        places = self.known.matching(wanted)
        start = asked.page * asked.size
        return LatentPage(
            total=len(places),
            page=asked.page,
            size=asked.size,
            pages=paging.n_pages(len(places), asked.size),
            rows=[self._row(place) for place in places[start : start + asked.size].tolist()],
        )

    def _row(self, place: int) -> LatentRow:
        number = int(self.known.latents.numbers[place])
        urls = {
            name: [shot.url for shot in self._few(number, model) if shot.url is not None]
            for model, name in self.names.items()
        }
        return LatentRow(**self._common(place), thumbnails=urls)

    def _few(self, number: int, model: str) -> list[Shot]:
        """Small images where there are any."""
        return self.images.thumbnails(number, model, IN_LISTS) or self.images.shots(number, model).top[:IN_LISTS]

    def detail(self, place: int) -> LatentDetail:
        latents = self.known.latents
        number = int(latents.numbers[place])
        previous, following = self.known.neighbours(place)
        best = self.known.agreements.get(number, ())[:MAX_AGREEMENTS]
        return LatentDetail(
            **self._common(place),
            co_fire_chance=_number(latents.chances[place]),
            cofire=self._by_model({model: _number(shares[place]) for model, shares in latents.cofires.items()}),
            energy=self._by_model({model: _number(energy[place]) for model, energy in latents.energies.items()}),
            agreement=[
                AgreementRow(factor=one.factor, value=one.value, auroc=one.auroc, model=self._name(one.model))
                for one in best
            ],
            unit=self.run.unit,
            images={name: self._images(number, model) for model, name in self.names.items()},
            previous=previous,
            next=following,
        )

    def _common(self, place: int) -> dict[str, Any]:
        """What a list and a latent's own page say alike."""
        latents = self.known.latents
        label = latents.labels[place]
        return {
            "latent": int(latents.numbers[place]),
            "cls": self.known.class_at(place),
            "specific_to": self._name(latents.owner(place)),
            "confirmed": bool(latents.confirmed[place]),
            "entropy": _number(latents.entropies[place]),
            "co_fires": int(latents.co_fires[place]),
            "fires": self._by_model({model: int(fires[place]) for model, fires in latents.fires.items()}),
            "label": None if label is None else name_of(label),
            "label_auroc": _number(latents.label_aurocs[place]),
        }

    def _by_model(self, values: Mapping[str, Value]) -> dict[str, Value]:
        return {self.names[model]: value for model, value in values.items()}

    def _name(self, model: str | None) -> str | None:
        return None if model is None else self.names.get(model, name_of(model))

    def _images(self, number: int, model: str) -> ModelImages:
        top, heat, maximised = ([_image(shot) for shot in shots] for shots in self.images.shots(number, model))
        return ModelImages(top=top, heat=heat, maximised=maximised)


def _image(shot: Shot) -> ShownImage:
    name = None if shot.image_id is None else name_of(shot.image_id)
    return ShownImage(url=shot.url, activation=finite(shot.activation), image_id=name)


def _sentence(text: str) -> Sentence:
    label = next((topic for starts, topic in TOPICS.items() if text.startswith(starts)), "Finding")
    return Sentence(label=label, text=neutralise(text))


def _number(value: float) -> float | None:
    return finite(float(value))


def _histogram(entropies: FloatArray) -> list[int]:
    """Counts in the bins of the report's figure; rounding may leave an entropy a hair outside 0 … 1."""
    known = entropies[~np.isnan(entropies)]
    counts: list[int] = np.histogram(np.clip(known, 0.0, 1.0), BINS, (0.0, 1.0))[0].tolist()
    return counts


def _rounded(values: FloatArray) -> list[float | None]:
    return [finite(value) for value in np.round(values, 3).tolist()]


def _short(values: FloatArray) -> list[float | None]:
    """Four digits of each: energies are of any size."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values.tolist()]


def read_concepts(run_dir: Path) -> Concepts | None:
    """What the page shows of a run; None where it has no dictionaries. Raises DataError for files that are damaged."""
    try:
        run = read_dictionaries(run_dir)
        if run is None:
            return None
        models = tuple(run.latents.fires) if run.latents is not None else run.models
        images = ConceptImages(run_dir, run.pictures, models, has_images=run.unit == "image")
        return Concepts(run, read_latents(run, images.pictured), images, shown_names(models))
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise DataError(f"{run_dir / FOLDER} cannot be read ({error}); run the panel again") from error


# --- The web ----------------------------------------------------------------------------------------------------------


def concepts_router(run_dir: Path) -> APIRouter:
    """All endpoints of the page. Files are read when they are first asked for, and again when they have changed.

    What is unknown or damaged is a MissingInputError or DataError, for the application to answer.
    """
    files = [f"{OWN}/{name}" for name in (FEATURES, TOPS, THUMBNAILS)]
    parts = (MEASURES, TRAINED, MATRICES, AGREEMENT, f"{IMAGES}/index.json", *files)
    pages = _Pages(Fresh([run_dir / part for part in parts], lambda: read_concepts(run_dir)))
    router = APIRouter(prefix=BASE, tags=["concepts"])
    routes: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "": (pages.overview, {}),
        "/scatter": (pages.scatter, {"model": Scatter}),
        "/latents": (pages.latents, {}),
        "/latents/{latent}": (pages.latent, {}),
        "/images/{name}": (pages.picture, IMAGE),
        "/thumbnails/{row}": (pages.thumbnail, IMAGE),
    }
    for path, (endpoint, answer) in routes.items():
        responses: dict[int | str, dict[str, Any]] = {200: answer} if answer else {}
        router.add_api_route(path, endpoint, methods=["GET"], responses=responses)
    return router


@final
class _Pages:
    """The endpoints."""

    def __init__(self, held: Fresh[Concepts | None]) -> None:
        self._held = held

    def overview(self, _: NoQuery) -> Overview:
        """The shared dictionary as a whole."""
        return self._concepts().overview

    def scatter(self, _: NoQuery) -> Response:
        """All live latents, a list a column."""
        return Response(self._concepts().scatter, media_type="application/json")

    def latents(self, asked: Annotated[LatentQuery, Query()]) -> LatentPage:
        """A page of latents."""
        concepts = self._concepts()
        _check_factor(concepts.known.factors, asked)
        return concepts.page(asked)

    def latent(self, latent: int, _: NoQuery) -> LatentDetail:
        """One latent."""
        concepts = self._concepts()
        place = concepts.known.places.get(latent)
        return _unknown("latent", str(latent)) if place is None else concepts.detail(place)

    def picture(self, name: str, _: NoQuery) -> Response:
        """A picture that the run's index lists."""
        found = self._concepts().images.picture(name)
        return _unknown("picture", name) if found is None else _response(found)

    def thumbnail(self, row: int, _: NoQuery) -> Response:
        """An image of the held-out ones, made small."""
        found = self._concepts().images.thumbnail(row)
        return _unknown("thumbnail", str(row)) if found is None else _response(found)

    def _concepts(self) -> Concepts:
        found = self._held.get()
        if found is None:
            raise MissingInputError(
                "this run has no dictionaries; run `triptych interpret vision` with the same --out to train them"
            )
        return found


def _check_factor(factors: Mapping[str, Sequence[str]], asked: LatentQuery) -> None:
    if asked.factor is None:
        if asked.value is not None:
            raise HTTPException(422, "a value is one of a factor: give factor as well")
        return
    if asked.factor not in factors:
        _unknown("factor", asked.factor)
    if asked.value is not None and asked.value not in factors[asked.factor]:
        _unknown(f"value of the factor {name_of(asked.factor)}:", asked.value)


def _unknown(what: str, name: str) -> NoReturn:
    raise MissingInputError(f"no {what} '{name_of(name)}' in this run")


def _response(found: Encoded) -> Response:
    return Response(found.data, media_type=found.media_type)
