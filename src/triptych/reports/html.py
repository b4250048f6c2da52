"""The template engine, set up once: everything is escaped, and what no reader can see is spelled out."""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from triptych.reports.safe_text import neutralise


def render(template: str, **context: Any) -> Markup:
    """A template of this package, filled; an undefined name is an error, not an empty text."""
    return Markup(_environment().get_template(template).render(**context))  # noqa: S704 - autoescaped


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
