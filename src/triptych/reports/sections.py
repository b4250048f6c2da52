"""What a report consists of: sections, each made from a run folder, or none where the run has not the panel.

To add a panel: a module with a function `Path -> Section | None`, and its name in `SECTIONS` of
`triptych.reports.page`. Not here: what stands in them.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from markupsafe import Markup

from triptych.reports.figures import Rendered
from triptych.reports.settings import Setting


class Part(NamedTuple):
    """A titled part of a section."""

    id: str
    """Unique in the page: where links lead."""
    title: str
    body: Markup


class Digest(NamedTuple):
    """A panel's share of the abstract, with the run's numbers."""

    done: str
    """What was done, as a clause: no capital, no full stop."""
    results: tuple[str, ...]
    """Sentences."""
    caution: str
    """What a reader must not conclude: a sentence."""


class Section(NamedTuple):
    """One panel's share of the report."""

    id: str
    title: str
    findings: tuple[str, ...]
    """Plain sentences for the summary on top of the page, made of the run's numbers."""
    parts: tuple[Part, ...]
    figures: tuple[Rendered, ...]
    """All of its parts, the ones that could not be drawn included. The caller writes their files."""
    files: Mapping[str, bytes]
    """Path in the run directory → content: tables, further pages. The caller writes them."""
    digest: Digest
    beside: Mapping[str, str] = MappingProxyType({})
    """Figure or table of the paper, such as `figure_04` or `table_03` → the chief difference in result."""
    settings: tuple[Setting, ...] = ()
    """The paper's settings beside this run's."""
    rates: Mapping[str, str] = MappingProxyType({})
    """Stage of the run → how fast it worked, such as `516 tokens/s`, where the run recorded it."""
