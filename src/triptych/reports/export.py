"""A report in other forms: Markdown or PDF, figures as PDF, tables as LaTeX or Markdown.

Whatever is asked for, the page and its own files are written with it: all other forms are made from them. Not here: how
each form is written (`markdown`, `latex`, `printing`).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from triptych.reports.figures.svg import to_pdf
from triptych.reports.latex import latex_table
from triptych.reports.markdown import markdown, markdown_table, tables_of
from triptych.reports.page import Report, read_report, write_report
from triptych.reports.printing import find_browser, print_pdf
from triptych.reports.tables import Table
from triptych.runs import atomic_write_bytes

Format = Literal["html", "md", "pdf"]
FigureFormat = Literal["svg", "png", "pdf"]
TableFormat = Literal["csv", "latex", "md"]


class Exported(NamedTuple):
    """What an export wrote."""

    report: Path
    files: tuple[Path, ...]
    """Beyond the page and its own files."""


def export(
    run_dir: Path,
    report_format: Format = "html",
    *,
    figures: FigureFormat | None = None,
    tables: TableFormat | None = None,
    out: Path | None = None,
) -> Exported:
    """Write the report of a run, below `out` or into the run directory itself.

    The page always comes with its figures as SVG and PNG and its tables as CSV. Raises as `build_report`, and
    MissingInputError where a PDF is wanted and no browser is installed.
    """
    # Before the work: a missing browser should be told at once.
    browser = find_browser() if report_format == "pdf" else None
    folder = run_dir if out is None else out
    report = read_report(run_dir)
    page = write_report(report, folder)
    written = [*_figures(report, folder, figures), *_tables(page, folder, tables)]
    if report_format == "md":
        written.append(_write(folder / "report.md", markdown(page.read_text("utf-8")).encode()))
    if browser is not None:
        written.append(_write(folder / "report.pdf", print_pdf(page, browser)))
    return Exported(page if report_format == "html" else written[-1], tuple(written))


def _figures(report: Report, folder: Path, wanted: FigureFormat | None) -> Iterator[Path]:
    if wanted == "pdf":
        for section in report.sections:
            for figure in section.figures:
                if figure.drawn is not None:
                    yield _write(folder / f"figures/{figure.name}.pdf", to_pdf(figure.drawn))


def _tables(page: Path, folder: Path, wanted: TableFormat | None) -> Iterator[Path]:
    """Of the tables as the page shows them; the CSV files have the full numbers."""
    if wanted in _WRITERS:
        suffix, write = _WRITERS[wanted]
        for table in tables_of(page.read_text("utf-8")):
            yield _write(folder / f"tables/{table.name}.{suffix}", write(table).encode())


class _Writer(NamedTuple):
    suffix: str
    write: Callable[[Table], str]


_WRITERS: dict[TableFormat, _Writer] = {
    "latex": _Writer("tex", latex_table),
    "md": _Writer("md", lambda table: markdown_table(table) + "\n"),
}


def _write(path: Path, content: bytes) -> Path:
    atomic_write_bytes(path, content)
    return path
