"""`triptych study`."""

from pathlib import Path
from typing import Annotated

import typer

from triptych.commands.options import GLOBALS, command_line
from triptych.commands.outcome import Outcome, run_outcome


def study(
    recipe: Annotated[
        str, typer.Option(help="starter, smoke, paper, or a FILE.yaml (such as the config.yaml of a run).")
    ] = "starter",
    out: Annotated[
        Path | None, typer.Option(help="The run directory. By default runs/RECIPE.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Change a key of the recipe; may be given again."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard what the run directory holds.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be made, how long it takes and what it needs; fetch nothing."),
    ] = False,
) -> Outcome:
    """All panels in order, then the report.

    Run again with the same --out, finished stages are kept and an interrupted one goes on.

    \b
    Examples:
      triptych study
      triptych study --recipe smoke --out /tmp/smoke
      triptych study --recipe paper --set decoding.limit=50 --set seed=1 --out runs/paper-50
      triptych study --recipe runs/starter/config.yaml --out runs/again
      triptych study --recipe paper --dry-run
    """
    from triptych.study import default_out, load_recipe, run_study

    config = load_recipe(recipe, overrides or [])
    if dry_run:
        from triptych.dry_run import plan_lines, plan_study

        plan = plan_study(config, recipe, default_out(recipe) if out is None else out)
        return Outcome(tuple(plan_lines(plan)), plan.model_dump(mode="json"), problems=plan.problems)
    done = run_study(
        config,
        default_out(recipe) if out is None else out,
        command=command_line(),
        fresh=fresh,
        show_progress=not GLOBALS.get().quiet,
    )
    return run_outcome(done.run_dir, done.report, did_work=done.did_work)
