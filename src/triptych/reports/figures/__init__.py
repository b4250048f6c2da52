"""Figures of a run, numbered as in the paper, and ours beside them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from markupsafe import Markup
from matplotlib.figure import Figure

from triptych.reports.figures import (
    auditing,
    definitions,
    dictionaries,
    distinct,
    features,
    hacking,
    latents,
    likelihood,
    shape,
    sweep,
    tradeoff,
    training,
)
from triptych.reports.figures.auditing import AuditSpec, figure_08, figure_kl_position, figure_overoptimisation
from triptych.reports.figures.dictionaries import DictionarySpec
from triptych.reports.figures.distinct import figure_05, figure_06, figure_diversity_matched
from triptych.reports.figures.hacking import figure_09, figure_10
from triptych.reports.figures.likelihood import figure_01, figure_02, figure_03, figure_04
from triptych.reports.figures.shape import figure_length, figure_stops
from triptych.reports.figures.spec import FigureSpec
from triptych.reports.figures.svg import inline, to_png, to_svg
from triptych.reports.figures.tradeoff import figure_07, figure_frontier
from triptych.reports.figures.training import TrainingSpec

PAPER_FIGURES: tuple[FigureSpec, ...] = (*likelihood.SPECS, *distinct.SPECS, *tradeoff.SPECS)
OWN_FIGURES: tuple[FigureSpec, ...] = (*tradeoff.OWN_SPECS, *distinct.OWN_SPECS, *shape.OWN_SPECS)
TRAINING_FIGURES: tuple[TrainingSpec, ...] = training.SPECS
AUDIT_FIGURES: dict[str, tuple[AuditSpec, ...]] = {
    "divergence": auditing.DIVERGENCE_SPECS,
    "verbosity": auditing.VERBOSITY_SPECS,
    "hacking": hacking.SPECS,
    "comparison": auditing.COMPARISON_SPECS,
    "sweep": sweep.SPECS,
}
"""By the part of the page they stand in."""
DICTIONARY_FIGURES: dict[str, Sequence[DictionarySpec]] = {
    "r2": dictionaries.R2_SPECS,
    "latents": (*definitions.SPECS, *dictionaries.ENTROPY_SPECS, *features.ENERGY_SPECS),
    "pictures": latents.SPECS,
    "factors": features.FACTOR_SPECS,
}
"""By the part of the page they stand in."""


RunT = TypeVar("RunT", contravariant=True)


@runtime_checkable
class Drawable(Protocol[RunT]):
    """What all specs of figures have, whatever the run they are of; `FigureSpec` says what each is."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def absent(self) -> Callable[[RunT], str | None]: ...
    @property
    def draw(self) -> Callable[[RunT], Figure]: ...
    @property
    def caption(self) -> Callable[[RunT], str]: ...
    @property
    def alt(self) -> Callable[[RunT], str]: ...


class Rendered(NamedTuple):
    """A drawn figure with its words, or why it could not be drawn."""

    name: str
    title: str
    caption: str
    """Or, where `absent`, empty."""
    alt: str
    svg: str
    """A file of its own; empty where `absent`."""
    png: bytes
    absent: str | None
    drawn: Figure | None = None
    """For further formats; None where `absent`."""

    @property
    def inline_svg(self) -> Markup:
        """The SVG for a page."""
        return Markup(inline(self.svg, self.alt))  # noqa: S704 - serialised, and so escaped, by ElementTree


def files_of(drawn: Sequence[Rendered]) -> dict[str, bytes]:
    """What a run directory always gets of the figures that could be drawn."""
    files = {}
    for figure in drawn:
        if figure.absent is None:
            files[f"figures/{figure.name}.svg"] = figure.svg.encode()
            files[f"figures/{figure.name}.png"] = figure.png
    return files


def render(spec: Drawable[RunT], run: RunT) -> Rendered:
    """Draw one figure of a run."""
    if (absent := spec.absent(run)) is not None:
        return Rendered(spec.name, spec.title, "", "", "", b"", absent)
    figure, alt = spec.draw(run), spec.alt(run)
    svg = to_svg(figure, spec.name, spec.title, alt)
    # Placing takes as long as drawing, and every format has the same places.
    figure.set_layout_engine("none")
    return Rendered(spec.name, spec.title, spec.caption(run), alt, svg, to_png(figure), None, figure)


__all__ = [
    "AUDIT_FIGURES",
    "DICTIONARY_FIGURES",
    "OWN_FIGURES",
    "PAPER_FIGURES",
    "TRAINING_FIGURES",
    "AuditSpec",
    "DictionarySpec",
    "FigureSpec",
    "Rendered",
    "TrainingSpec",
    "figure_01",
    "figure_02",
    "figure_03",
    "figure_04",
    "figure_05",
    "figure_06",
    "figure_07",
    "figure_08",
    "figure_09",
    "figure_10",
    "figure_diversity_matched",
    "figure_frontier",
    "figure_kl_position",
    "figure_length",
    "figure_overoptimisation",
    "figure_stops",
    "render",
]
