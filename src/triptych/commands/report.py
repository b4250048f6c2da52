"""`triptych report`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from triptych.commands.outcome import Outcome


def report(
    run_dir: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.", show_default=False)],
    report_format: Annotated[
        Literal["html", "md", "pdf"],
        typer.Option("--format", help="md has its images beside it; pdf needs an installed Chromium, Chrome or Edge."),
    ] = "html",
    figures: Annotated[
        Literal["svg", "png", "pdf"] | None,
        typer.Option(help="SVG and PNG (200 dpi) are always written, into figures/.", show_default=False),
    ] = None,
    tables: Annotated[
        Literal["csv", "latex", "md"] | None,
        typer.Option(help="CSV is always written, into tables/; LaTeX needs booktabs.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where all of it goes. By default DIR itself.", show_default=False),
    ] = None,
) -> Outcome:
    """Rebuild the report of a run from its files; nothing is measured again.

    \b
    Examples:
      triptych report runs/starter
      triptych report runs/starter --format pdf
      triptych report runs/starter --format md --out paper/appendix
      triptych report runs/starter --figures pdf --tables latex --out paper
    """
    from triptych.reports.export import export

    done = export(run_dir, report_format, figures=figures, tables=tables, out=out)
    written = {"files": [str(path) for path in done.files]}
    return Outcome((str(done.report),), {"run": str(run_dir), "report": str(done.report), **written})
