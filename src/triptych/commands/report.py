"""`triptych report`."""

from pathlib import Path
from typing import Annotated

import typer

from triptych.commands.outcome import Outcome


def report(
    run_dir: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.", show_default=False)],
) -> Outcome:
    """Rebuild the report of a run from its files; nothing is measured again.

    \b
    Example:
      triptych report runs/starter
    """
    from triptych.reports import build_report

    page = build_report(run_dir)
    return Outcome((str(page),), {"run": str(run_dir), "report": str(page)})
