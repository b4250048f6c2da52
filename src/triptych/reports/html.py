"""The template engine, set up once: everything is escaped, and what no reader can see is spelled out."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from triptych.reports.figures import Rendered
from triptych.reports.safe_text import neutralise
from triptych.reports.tables import Table


def render(template: str, **context: Any) -> Markup:
    """A template of this package, filled; an undefined name is an error, not an empty text."""
    return Markup(_environment().get_template(template).render(**context))  # noqa: S704 - autoescaped


def render_tables(tables: Sequence[Table], intro: str = "", file: str | None = None) -> Markup:
    """Tables below a sentence, above a link to their full numbers."""
    return render("tables.html.j2", tables=tables, intro=intro, file=file)


def render_figures(figures: Sequence[Rendered]) -> Markup:
    """Figures with captions, and why others could not be drawn."""
    return render("figures.html.j2", figures=figures)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("triptych.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_spell_out,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _spell_out(value: object) -> object:
    """Every text that a template prints passes here; markup was made safe where it was made."""
    return neutralise(value) if isinstance(value, str) and not isinstance(value, Markup) else value
