"""The report: one HTML page from the sections that a run has, and the files that go with it.

The page needs no script, fetches nothing and holds its style and figures itself. The same run directory gives the same
bytes. Not here: what stands in a section (one module a panel).
"""

import logging
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from triptych.config import dump_yaml
from triptych.errors import MissingInputError
from triptych.reports import beside, citation, costs
from triptych.reports.abstract import abstract
from triptych.reports.alignment import alignment_section
from triptych.reports.auditing import auditing_section
from triptych.reports.decoding import decoding_section
from triptych.reports.dictionaries import dictionaries_section
from triptych.reports.figures import files_of
from triptych.reports.html import render as fill
from triptych.reports.reported import reported
from triptych.reports.sections import Section
from triptych.reports.summary import FINDINGS, findings_json
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
COSTS, BESIDE = "tables/costs.csv", "tables/beside_settings.csv"
MAX_BYTES = 8_000_000
"""Of the page: what mail and browsers still take without complaint."""
LOG = logging.getLogger(__name__)


class Report(NamedTuple):
    """All that a report is made of."""

    manifest: Manifest
    sections: tuple[Section, ...]

    @property
    def rates(self) -> dict[str, str]:
        """Stage → how fast it worked."""
        return {stage: rate for section in self.sections for stage, rate in section.rates.items()}


def build_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write figures, tables and the page of a run directory; the path of the page.

    All of it is written below `out`, by default into the run directory itself. Raises MissingInputError where the
    folder is no run directory or a panel's file is missing, DataError where a file cannot be read as what it should
    be. Every file is replaced as a whole or not at all.
    """
    return write_report(read_report(run_dir), run_dir if out is None else out)


def read_report(run_dir: Path) -> Report:
    """The sections of a run directory, their figures drawn."""
    manifest = read_manifest(run_dir)
    sections = tuple(section for make in SECTIONS if (section := make(run_dir)) is not None)
    if not sections:
        raise MissingInputError(
            f"{run_dir} holds no finished panel (no decoding, no alignment, no audits, no dictionaries); run "
            f"`triptych study --out {run_dir}` first"
        )
    return Report(manifest, sections)


def write_report(report: Report, out: Path) -> Path:
    """Write all files of a report; the path of the page."""
    for name, content in files(report).items():
        atomic_write_bytes(out / name, content)
    content = render_page(report).encode()
    if len(content) > MAX_BYTES:
        LOG.warning("%s has %.1f MB: some browsers and mail programs will refuse it", out / PAGE, len(content) / 1e6)
    # Last, so that whoever sees the page finds what it links to.
    atomic_write_bytes(out / PAGE, content)
    return out / PAGE


def files(report: Report) -> dict[str, bytes]:
    """Path below the report → content, of all but the page itself."""
    manifest, sections = report
    found = {
        COSTS: costs.costs_csv(manifest, report.rates),
        BESIDE: beside.settings_csv(manifest, sections),
        citation.FILE: citation.bibtex(manifest).encode(),
        FINDINGS: findings_json(sections, abstract(manifest, sections, beside.PANELS)),
    }
    for section in sections:
        found |= {**files_of(section.figures), **section.files}
    return found


def render_page(report: Report) -> Markup:
    """The page as HTML."""
    manifest, sections = report
    return fill(
        "report.html.j2",
        title="Triptych report",
        run_id=manifest.run_id,
        citation=str(reported().citation),
        abstract=abstract(manifest, sections, beside.PANELS),
        sections=sections,
        beside_items=beside.items_table(sections),
        beside_settings=beside.settings_table(manifest, sections),
        beside_same=beside.same_sentence(sections),
        beside_file=BESIDE,
        costs=costs.costs_table(manifest, report.rates),
        costs_intro=costs.INTRO,
        costs_file=COSTS,
        bibtex=citation.bibtex(manifest),
        bibtex_file=citation.FILE,
        provenance=_run_table(manifest),
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


def _package_table(manifest: Manifest) -> Table:
    rows = tuple((Cell(name), Cell(version)) for name, version in manifest.packages.items())
    return Table("packages", "Packages", (Column("Package"), Column("Version")), rows)
