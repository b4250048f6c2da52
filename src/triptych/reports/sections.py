"""What a report consists of: sections, each made from a run folder, or none where the run has not the panel.

To add a panel: a module with a function `Path -> Section | None`, and its name in `SECTIONS` of
`triptych.reports.page`.
"""

from collections.abc import Mapping
from typing import NamedTuple

from markupsafe import Markup


class Part(NamedTuple):
    """A titled part of a section."""

    id: str
    """Unique in the page: where links lead."""
    title: str
    body: Markup


class Section(NamedTuple):
    """One panel's share of the report."""

    id: str
    title: str
    findings: tuple[str, ...]
    """Plain sentences for the summary on top of the page, made of the run's numbers."""
    parts: tuple[Part, ...]
    files: Mapping[str, bytes]
    """Path in the run directory → content: figures, tables, further pages. The caller writes them."""
