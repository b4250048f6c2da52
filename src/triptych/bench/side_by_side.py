"""Contenders of an alignment benchmark, one after the other, each in a process of its own; and what their figures say.

Not here: what they do (`alignment_contenders`), what they are given (`dpo`, `grpo`).
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from triptych.bench.alignment_work import WARM_UP_STEPS, LaidOut, Step, write_work
from triptych.environment import device_description, package_versions
from triptych.errors import ConfigError, OutputError, WorkError
from triptych.files import make_folder
from triptych.progress import progress

OURS = "triptych"
PEERS = ("TRL", "TRL without checkpointing")
"""As it comes out of the box, and its faster setting."""

TARGETS = {"speed": 4.0, "memory": 2.0}
"""What we want to reach: our steps a second over the fastest peer's, and the leanest peer's peak memory over ours."""


class Measured(NamedTuple):
    """One run of one contender; the warm-up comes first."""

    steps: tuple[Step, ...]
    peak_memory_bytes: int
    start_memory_bytes: int
    """Before model and peer were loaded."""


Run = Callable[[str, Path, Callable[[], None]], Measured]
"""(contender, folder of the work, called after each step) → its figures."""


def require_peer() -> None:
    """Raises `ConfigError` where TRL is not installed."""
    if find_spec("trl") is None:
        raise ConfigError("this benchmark needs TRL to compare with: pip install 'triptych[bench]'")


def require_writable(out: Path) -> None:
    """Raises `OutputError` where the figures could not be written: better before the work than after it."""
    if out.is_dir():
        raise OutputError(f"{out} is a folder; name the JSON file to write")
    make_folder(out.parent)


def compare(method: str, laid_out: LaidOut, *, show_progress: bool, run: Run | None = None) -> dict[str, Any]:
    """Runs all contenders in turn, as many rounds as the work says; the report, not yet written.

    `method` is `dpo` or `grpo`; `run` takes the place of a fresh process, in tests.
    """
    work = laid_out.work
    names = (OURS, *PEERS)
    rounds: dict[str, list[Measured]] = {name: [] for name in names}
    total = work.rounds * len(names) * len(laid_out.batches)
    with (
        tempfile.TemporaryDirectory(prefix="triptych-bench-") as name,
        progress(total, "steps", f"bench {method}", enabled=show_progress) as meter,
    ):
        folder = Path(name)
        write_work(laid_out, folder)
        for _ in range(work.rounds):
            for name in names:
                meter.update(description=f"bench {method}: {name}")
                measured = (run or process_of(method))(name, folder, meter.advance)
                rounds[name].append(measured)
    return report_of(rounds, work.model_dump(mode="json"))


def process_of(method: str) -> Run:
    """Runs a contender in a fresh process."""

    def run(name: str, folder: Path, on_step: Callable[[], None]) -> Measured:
        command = [sys.executable, "-m", "triptych.bench.alignment_contenders", method, name, str(folder)]
        complaints = folder / "stderr.txt"
        with (
            complaints.open("w", encoding="utf-8") as stderr,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
        ):
            try:
                told = [_told(line, on_step) for line in process.stdout or ()]
            finally:
                process.kill()
        return _measured(name, told, complaints)

    return run


def _told(line: str, on_step: Callable[[], None]) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(line)
    if "step" in told:
        on_step()
    return told


def _measured(name: str, told: Sequence[Mapping[str, Any]], complaints: Path) -> Measured:
    """What a contender told, line by line. Raises `WorkError` where it did not come to its end."""
    last = told[-1] if told else {}
    if "peak_memory_bytes" not in last:
        lines = complaints.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = last.get("error") or (lines[-1] if lines else "it was killed, perhaps for want of memory")
        raise WorkError(f"benchmark contender '{name}' failed: {reason}")
    steps = tuple(Step(**one["step"]) for one in told[:-1])
    return Measured(steps, last["peak_memory_bytes"], last["start_memory_bytes"])


# --- Figures ----------------------------------------------------------------------------------------------------------


def report_of(rounds: Mapping[str, Sequence[Measured]], work: dict[str, Any]) -> dict[str, Any]:
    """The figures of all contenders, this project first, with the ratios."""
    contenders = {name: figures_of(runs) for name, runs in rounds.items()}
    return {
        "work": work,
        "contenders": contenders,
        "ratios": ratios_of(contenders),
        "targets": TARGETS,
        "machine": device_description(),
        "versions": {**package_versions(), **({"trl": version("trl")} if find_spec("trl") else {})},
    }


def figures_of(runs: Sequence[Measured]) -> dict[str, Any]:
    """Of one contender, all its rounds together, warm-up steps left out; losses are those of the first round."""
    measured = [step for one in runs for step in one.steps[WARM_UP_STEPS:]]
    seconds, tokens = sum(step.seconds for step in measured), sum(step.tokens for step in measured)
    return {
        "steps_per_second": len(measured) / seconds,
        "tokens_per_second": tokens / seconds,
        "tokens_per_step": tokens / len(measured),
        "seconds_per_step": [step.seconds for step in measured],
        "warm_up_seconds": [step.seconds for one in runs for step in one.steps[:WARM_UP_STEPS]],
        "peak_memory_bytes": max(one.peak_memory_bytes for one in runs),
        "start_memory_bytes": max(one.start_memory_bytes for one in runs),
        "losses": [step.loss for step in runs[0].steps[WARM_UP_STEPS:]],
    }


def ratios_of(contenders: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Speed against the fastest peer, memory against the leanest, each the more the better for us; and each by peer."""
    ours = contenders[OURS]
    peers = {name: figures for name, figures in contenders.items() if name != OURS}
    by_contender = {
        name: {
            "speed": ours["steps_per_second"] / peer["steps_per_second"],
            "tokens": ours["tokens_per_second"] / peer["tokens_per_second"],
            "memory": peer["peak_memory_bytes"] / ours["peak_memory_bytes"],
        }
        for name, peer in peers.items()
    }
    against = {what: min(peers, key=lambda name: by_contender[name][what]) for what in ("speed", "tokens", "memory")}
    return {
        **{what: by_contender[name][what] for what, name in against.items()},
        "against": against,
        "by_contender": by_contender,
    }


def largest_loss_difference(contenders: Mapping[str, Mapping[str, Any]]) -> float:
    """Between us and any peer, over the measured steps."""
    ours = contenders[OURS]["losses"]
    return max(
        abs(float(mine) - float(theirs))
        for name, figures in contenders.items()
        if name != OURS
        for mine, theirs in zip(ours, figures["losses"], strict=True)
    )


# --- Saying it --------------------------------------------------------------------------------------------------------


def print_report(report: Mapping[str, Any], *, title: str, tokens: str) -> None:
    """The table and the two ratios; `tokens` says which ones are counted."""
    table = Table(title=title)
    for column in ("", "seconds a step", "steps/s", f"{tokens}/s", "peak memory", "speed", "memory"):
        table.add_column(column, justify="left" if not column else "right")
    ratios = report["ratios"]
    for name, figures in report["contenders"].items():
        ratio = ratios["by_contender"].get(name)
        table.add_row(
            name,
            f"{1 / figures['steps_per_second']:.2f}",
            f"{figures['steps_per_second']:.3f}",
            f"{figures['tokens_per_second']:,.0f}",
            f"{figures['peak_memory_bytes'] / 2**30:.2f} GiB",
            f"{ratio['speed']:.1f}x" if ratio else "",
            f"{ratio['memory']:.1f}x" if ratio else "",
        )
    console = Console(width=110)
    console.print(table)
    for what, phrase in (("speed", "{:.1f}x the steps/s of"), ("memory", "{:.1f} times our peak memory is that of")):
        reached = "reached" if ratios[what] >= TARGETS[what] else "missed"
        aim = f"aim {TARGETS[what]:.0f}: {reached}"
        console.print(f"{phrase.format(ratios[what])} {ratios['against'][what]} ({aim})", highlight=False)


def print_losses(report: Mapping[str, Any]) -> None:
    """Losses step by step: contenders that do the same work agree within the rounding of bf16."""
    table = Table(title="Loss of each measured step")
    table.add_column("")
    for number in range(1, len(report["contenders"][OURS]["losses"]) + 1):
        table.add_column(str(number), justify="right")
    for name, figures in report["contenders"].items():
        table.add_row(name, *(f"{loss:.4f}" for loss in figures["losses"]))
    console = Console(width=110)
    console.print(table)
    console.print(f"largest difference from ours: {report['largest_loss_difference']:.1e}", highlight=False)
