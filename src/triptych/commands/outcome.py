"""What a command says when it is done."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from triptych.commands.options import GLOBALS
from triptych.commands.summary import summary_lines


class Outcome(NamedTuple):
    """The result of a command."""

    lines: tuple[str, ...]
    """For people: where the results are, or the answer itself."""
    figures: dict[str, Any]
    """For programs (`--json`)."""
    is_failure: bool = False
    """The command did its work, and what it found is to end it with exit code 1."""
    problems: tuple[str, ...] = ()
    """What the user has to mend before the work that was asked about can be done: exit code 2."""


def run_outcome(run_dir: Path, report: Path, *, did_work: bool) -> Outcome:
    """The outcome of a command that filled a run directory: what it found, the path of its report, its main figures.

    The path is the last line; with `--quiet` it is the only one.
    """
    from triptych.reports.summary import read_findings

    stages = _read(run_dir / "manifest.json").get("stages", {})
    card = run_dir / "auditing" / "card.json"
    claims = run_dir / "decoding" / "claims.json"
    verdicts = Counter(claim["verdict"] for claim in json.loads(claims.read_bytes())) if claims.exists() else Counter()
    figures: dict[str, Any] = {
        "run": str(run_dir),
        "report": str(report),
        "did_work": did_work,
        "seconds": {name: stage["seconds"] for name, stage in stages.items()},
        "decoding": {**_read(run_dir / "decoding" / "costs.json"), "claims": dict(verdicts)},
        "alignment": {path.parent.name: _read(path) for path in sorted(run_dir.glob("alignment/*/trainer_state.json"))},
        "auditing": json.loads(card.read_bytes()) if card.exists() else [],
        "findings": read_findings(run_dir),
    }
    shown = () if GLOBALS.get().quiet else summary_lines(figures["findings"], figures["auditing"], figures["seconds"])
    return Outcome((*shown, str(report)), figures)


def _read(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    return loaded
