"""The run as a whole: what it is, which panels it has, and what it found.

Not here: how findings are worded (`triptych.reports`, one module a panel).
"""

import logging
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import APIRouter
from pydantic import BaseModel

from triptych.dictionaries.records import MEASURES
from triptych.errors import TriptychError
from triptych.explorer.fresh import Fresh
from triptych.explorer.text import name_of
from triptych.reports.alignment_findings import findings as alignment_findings
from triptych.reports.alignment_inputs import METHODS, read_alignment
from triptych.reports.auditing_findings import findings as auditing_findings
from triptych.reports.auditing_inputs import CARD, read_auditing
from triptych.reports.dictionaries_findings import findings as dictionaries_findings
from triptych.reports.dictionaries_inputs import read_dictionaries
from triptych.reports.findings import findings as decoding_findings
from triptych.reports.inputs import GENERATIONS, read_decoding
from triptych.reports.page import PAGE
from triptych.reports.safe_text import neutralise
from triptych.runs import MANIFEST, read_manifest

logger = logging.getLogger(__name__)


class Panels(BaseModel):
    """Which panels the run has."""

    decoding: bool
    alignment: bool
    auditing: bool
    dictionaries: bool


class SectionFindings(BaseModel):
    """What one panel found, in sentences."""

    id: str
    title: str
    findings: list[str]


class RunOverview(BaseModel):
    """A run."""

    run_id: str
    created: str
    command: str
    recipe: str | None
    seed: int
    device: str
    panels: Panels
    sections: list[SectionFindings]
    has_report: bool


class _Panel(NamedTuple):
    id: str
    title: str
    files: tuple[str, ...]
    """It is there where one of them is."""
    find: Callable[[Path], Sequence[str]]


def _found(read: Callable[[Path], Any], find: Callable[[Any], Sequence[str]]) -> Callable[[Path], Sequence[str]]:
    def findings(run_dir: Path) -> Sequence[str]:
        run = read(run_dir)
        return () if run is None else find(run)

    return findings


# The report's sections have the same sentences and draw every figure on the way, which takes seconds.
PANELS = (
    _Panel("decoding", "Decoding", (GENERATIONS,), _found(read_decoding, decoding_findings)),
    _Panel(
        "alignment",
        "Alignment",
        tuple(f"alignment/{method}/trainer_state.json" for method in METHODS),
        _found(read_alignment, alignment_findings),
    ),
    _Panel("auditing", "Audits", (CARD,), _found(read_auditing, auditing_findings)),
    _Panel("dictionaries", "Universal dictionaries", (MEASURES,), _found(read_dictionaries, dictionaries_findings)),
)


def overview_router(run_dir: Path) -> APIRouter:
    """The address of the run itself."""
    router = APIRouter(prefix="/api", tags=["run"])
    files = [MANIFEST, PAGE, *(file for panel in PANELS for file in panel.files)]
    source = Fresh([run_dir / file for file in files], lambda: overview(run_dir))

    @router.get("/run")
    def run() -> RunOverview:
        return source.get()

    return router


def overview(run_dir: Path) -> RunOverview:
    """A run as its files have it. Raises MissingInputError where the folder is none."""
    manifest = read_manifest(run_dir)
    present = [panel for panel in PANELS if any((run_dir / file).is_file() for file in panel.files)]
    return RunOverview(
        run_id=name_of(manifest.run_id),
        created=name_of(manifest.created),
        command=neutralise(shlex.join(manifest.command)),
        recipe=recipe_of(manifest.command),
        seed=manifest.seed,
        device=name_of(manifest.device),
        panels=Panels(**{panel.id: panel in present for panel in PANELS}),
        sections=[SectionFindings(id=p.id, title=p.title, findings=_findings(p, run_dir)) for p in present],
        has_report=(run_dir / PAGE).is_file(),
    )


def recipe_of(command: Sequence[str]) -> str | None:
    """The recipe that a command line names; None where it is no study."""
    if "study" not in command[:2]:
        return None
    for place, argument in enumerate(command):
        if argument.startswith("--recipe="):
            return name_of(argument.partition("=")[2])
        if argument == "--recipe" and place + 1 < len(command):
            return name_of(command[place + 1])
    return "starter"


def _findings(panel: _Panel, run_dir: Path) -> list[str]:
    """Its sentences; one panel that cannot be read, such as one that is being written, does not hide the others."""
    try:
        return [neutralise(sentence) for sentence in panel.find(run_dir)]
    except TriptychError as error:
        return [neutralise(f"Not readable: {error}")]
