"""`triptych bench`: this project and its peers on the same work, in one run."""

from pathlib import Path
from typing import Annotated

import typer

from triptych.commands.outcome import Outcome

bench = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="This project and its peers on the same work.")


@bench.command("decode")
def bench_decode(
    out: Annotated[Path, typer.Option(help="The JSON file to write.")],
) -> Outcome:
    """Decoding throughput beside that of peers, measured in one run; prints the ratios.

    \b
    Example:
      triptych bench decode --out runs/bench/decode.json
    """
    from triptych.bench.decode import run

    return Outcome(figures=run(out), lines=(str(out),))
