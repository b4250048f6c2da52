"""The report: one HTML page from the sections that a run has, and the files that go with it.

The page needs no script, fetches nothing and holds its style and figures itself. The same run directory gives the same
bytes. Not here: what stands in a section (one module a panel).
"""

import shlex
from collections.abc import Callable
from pathlib import Path

from markupsafe import Markup

from triptych.config import dump_yaml
from triptych.errors import MissingInputError
from triptych.reports import format as fmt
from triptych.reports.alignment import alignment_section
from triptych.reports.auditing import auditing_section
from triptych.reports.decoding import decoding_section
from triptych.reports.dictionaries import dictionaries_section
from triptych.reports.html import render as fill
from triptych.reports.reported import reported
from triptych.reports.sections import Section
from triptych.reports.tables import Cell, Column, Table
from triptych.runs import Manifest, atomic_write_bytes, read_manifest

SECTIONS: tuple[Callable[[Path], Section | None], ...] = (
    decoding_section,
    alignment_section,
    auditing_section,
    dictionaries_section,
)
"""One function a panel, in the order of the page."""

PAGE = "report.html"


def build_report(run_dir: Path) -> Path:
    """Write figures, tables and the page of a run directory; the path of the page.

    Raises MissingInputError where the folder is no run directory or a panel's file is missing, DataError where a file
    cannot be read as what it should be. Every file is replaced as a whole or not at all.
    """
    manifest = read_manifest(run_dir)
    sections = [section for make in SECTIONS if (section := make(run_dir)) is not None]
    if not sections:
        raise MissingInputError(
            f"{run_dir} holds no finished panel (no decoding, no alignment, no audits, no dictionaries); run "
            f"`triptych study --out {run_dir}` first"
        )
    for section in sections:
        for name, content in section.files.items():
            atomic_write_bytes(run_dir / name, content)
    page = run_dir / PAGE
    # Last, so that whoever sees the page finds what it links to.
    atomic_write_bytes(page, render_page(manifest, sections).encode())
    return page


def render_page(manifest: Manifest, sections: list[Section]) -> Markup:
    """The page as HTML."""
    return fill(
        "report.html.j2",
        title="Triptych report",
        run_id=manifest.run_id,
        citation=str(reported().citation),
        sections=sections,
        provenance=[_run_table(manifest), _stage_table(manifest)],
        packages=_package_table(manifest),
        config=dump_yaml(manifest.config),
    )


def _run_table(manifest: Manifest) -> Table:
    git = manifest.git
    commit = "not in a checkout" if git is None else git.commit + (" with local changes" if git.dirty else "")
    facts = {
        "run": manifest.run_id,
        "started": manifest.created,
        "command": shlex.join(manifest.command),
        "configuration hash": manifest.config_hash,
        "seed": str(manifest.seed),
        "commit": commit,
        "Python": manifest.python,
        "device": manifest.device,
    }
    rows = tuple((Cell(name), Cell(text)) for name, text in facts.items())
    return Table("run", "The run", (Column("What"), Column("Value")), rows)


def _stage_table(manifest: Manifest) -> Table:
    rows = tuple(
        (Cell(name), Cell(_status(stage.status), stage.error or ""), Cell(fmt.duration(stage.seconds)))
        for name, stage in manifest.stages.items()
    )
    return Table("stages", "Stages", (Column("Stage"), Column("Status"), Column("Time", numeric=True)), rows)


def _status(status: str) -> str:
    return "running while this page was written" if status == "running" else status


def _package_table(manifest: Manifest) -> Table:
    rows = tuple((Cell(name), Cell(version)) for name, version in manifest.packages.items())
    return Table("packages", "Packages", (Column("Package"), Column("Version")), rows)
