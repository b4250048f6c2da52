"""`triptych bench usae`: dictionaries trained by this project and by `overcomplete`, and activations extracted by this
project and by a plain loop of transformers, on the same work in one run.

Contenders take turns, each in a process of its own, with all cores of the CPU. Not here: what they do
(`usae_contenders`, `usae_peer`), their data (`usae_data`), extraction (`extraction`).
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from triptych.bench.extraction import ExtractionRecord, measure
from triptych.bench.side_by_side import require_writable
from triptych.bench.usae_contenders import (
    CONTENDERS,
    OURS,
    OURS_FLOAT32,
    OURS_TWO,
    PEER,
    PEER_FASTEST,
    PLAIN_TWO,
    TWO,
    Figures,
    UsaeWork,
)
from triptych.bench.usae_data import lay_out, random_models
from triptych.bench.usae_peer import PACKAGE, require_overcomplete
from triptych.data.images import load_images
from triptych.environment import device_description, package_versions
from triptych.errors import WorkError
from triptych.files import atomic_write_json
from triptych.progress import Meter, progress

TARGETS = {"out_of_the_box": 3.0, "equal_precision": 1.3, "extraction": 3.0, "cosine": 0.999}
"""Samples/s over the peer's, both as they come (at equal or better R²) and both in fp32 (against the faster setting of
the peer); images/s over the plain loop's, with features whose mean cosine with its features is at least the last."""

EQUAL_R2 = 1e-3
"""A difference in R² that counts as none."""

MODULE = "triptych.bench.usae_contenders"
ALL = "all"
"""The extraction of all models together."""

Run = Callable[[str, Path], Figures]
"""(contender, folder of the work) → its figures."""

Extract = Callable[[UsaeWork], Sequence[ExtractionRecord]]


def run(
    out: Path, work: UsaeWork, *, show_progress: bool, contender: Run | None = None, extraction: Extract | None = None
) -> dict[str, Any]:
    """Measures every contender and extraction, writes the figures to `out` and prints the ratios.

    `contender` takes the place of fresh processes and `extraction` that of the models, in tests. Raises `ConfigError`
    where `overcomplete` is not installed, what reading activations and models raises, and `WorkError` where a process
    fails.
    """
    require_overcomplete()
    require_writable(out)
    rounds, extracted = measure_all(work, contender or in_a_process, extraction or extract, show_progress=show_progress)
    report = {**report_of(work, rounds, extracted), "machine": device_description(), "versions": versions()}
    atomic_write_json(out, report)
    print_report(report)
    return report


def measure_all(
    work: UsaeWork, contender: Run, extraction: Extract, *, show_progress: bool
) -> tuple[dict[str, list[Figures]], Sequence[ExtractionRecord]]:
    """Every contender in every round, and then extraction."""
    names = [name for name, one in CONTENDERS.items() if work.two_models or one.data != TWO]
    rounds: dict[str, list[Figures]] = {name: [] for name in names}
    total = work.rounds * len(names) + bool(work.n_images)
    with (
        tempfile.TemporaryDirectory(prefix="triptych-bench-") as place,
        progress(total, "processes", "bench usae: activations", enabled=show_progress) as meter,
    ):
        lay_out(work, Path(place))
        for _ in range(work.rounds):
            for name in names:
                _say(meter, name)
                rounds[name].append(contender(name, Path(place)))
                meter.advance()
        if not work.n_images:
            return rounds, ()
        _say(meter, "extraction")
        extracted = extraction(work)
        meter.advance()
    return rounds, extracted


def _say(meter: Meter, what: str) -> None:
    meter.update(description=f"bench usae: {what}")


def in_a_process(name: str, folder: Path) -> Figures:
    """Runs a contender in a fresh process. Raises `WorkError` where it does not come to its end."""
    command = [sys.executable, "-m", MODULE, name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return Figures.model_validate_json(done.stdout.strip().splitlines()[-1])
    lines = done.stderr.strip().splitlines()
    reason = lines[-1].removeprefix("error: ") if lines else "it was killed, perhaps for want of memory"
    raise WorkError(f"benchmark contender '{name}' failed: {reason}")


def extract(work: UsaeWork) -> Sequence[ExtractionRecord]:
    """Activations by this project and by the plain loop, in this process."""
    images = load_images(work.images, limit=work.n_images, seed=work.seed).train
    with tempfile.TemporaryDirectory(prefix="triptych-bench-") as place:
        models = work.models or random_models(Path(place))
        return measure(models, images, min(work.n_images, len(images)))


def versions() -> dict[str, str]:
    """Those that figures depend on, the peer's with them."""
    try:
        return {**package_versions(), PACKAGE: version(PACKAGE)}
    except PackageNotFoundError:
        return package_versions()


# --- Figures ----------------------------------------------------------------------------------------------------------


def report_of(
    work: UsaeWork, rounds: Mapping[str, Sequence[Figures]], extracted: Sequence[ExtractionRecord]
) -> dict[str, Any]:
    """The figures of all contenders, the ratios, each the more the better for us, and which aims are reached."""
    contenders = {name: figures_of(runs) for name, runs in rounds.items()}
    extraction = {one.model: one.model_dump(mode="json", exclude={"model"}) for one in extracted}
    ratios = ratios_of(contenders, extraction)
    return {
        "work": work.model_dump(mode="json"),
        "contenders": contenders,
        "extraction": extraction,
        "ratios": ratios,
        "targets": TARGETS,
        "reached": reached(ratios),
    }


def figures_of(runs: Sequence[Figures]) -> dict[str, Any]:
    """Of one contender: medians over the epochs and rounds, its highest peak of memory."""
    seconds = [one for figures in runs for one in figures.epoch_seconds]
    return {
        "samples_per_second": runs[0].rows / median(seconds),
        "epoch_seconds": [list(figures.epoch_seconds) for figures in runs],
        "warm_up_seconds": [figures.warm_up_seconds for figures in runs],
        "r2": median(figures.r2 for figures in runs),
        "r2_held_out": median(figures.r2_held_out for figures in runs),
        "dead": median(figures.dead for figures in runs),
        "peak_memory_bytes": max(figures.peak_memory_bytes for figures in runs),
        "start_memory_bytes": max(figures.start_memory_bytes for figures in runs),
    }


def ratios_of(
    contenders: Mapping[str, Mapping[str, Any]], extraction: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Speed, R² and memory of pairs of contenders that belong together; extraction where it was measured."""

    def beside(ours: str, theirs: str) -> dict[str, Any]:
        mine, peer = contenders[ours], contenders[theirs]
        return {
            "ours": ours,
            "peer": theirs,
            "speed": mine["samples_per_second"] / peer["samples_per_second"],
            "r2_difference": mine["r2"] - peer["r2"],
            "r2_held_out_difference": mine["r2_held_out"] - peer["r2_held_out"],
            "memory": peer["peak_memory_bytes"] / mine["peak_memory_bytes"],
        }

    in_float32 = [beside(OURS_FLOAT32, peer) for peer in (PEER, PEER_FASTEST)]
    ratios: dict[str, Any] = {
        "out_of_the_box": beside(OURS, PEER),
        "equal_precision": min(in_float32, key=lambda one: float(one["speed"])),
        "equal_precision_by_peer": {one["peer"]: one for one in in_float32},
    }
    if OURS_TWO in contenders:
        ratios["two_models"] = beside(OURS_TWO, PLAIN_TWO)
    if ALL in extraction:
        ratios["extraction"], ratios["cosine"] = extraction[ALL]["ratio"], extraction[ALL]["mean_cosine"]
    return ratios


def reached(ratios: Mapping[str, Any]) -> dict[str, bool]:
    """Which aims are reached; speed alone is no success where R² is worse."""
    found = {
        what: ratios[what]["speed"] >= TARGETS[what] and ratios[what]["r2_difference"] >= -EQUAL_R2
        for what in ("out_of_the_box", "equal_precision")
    }
    return found | {what: ratios[what] >= TARGETS[what] for what in ("extraction", "cosine") if what in ratios}


# --- Saying it --------------------------------------------------------------------------------------------------------


def print_report(report: Mapping[str, Any]) -> None:
    """Both tables and the ratios."""
    console = Console(width=110)
    console.print(_training_table(report))
    if report["extraction"]:
        console.print(_extraction_table(report))
    for line in _lines(report):
        console.print(line, highlight=False)


def _training_table(report: Mapping[str, Any]) -> Table:
    work = report["work"]
    table = Table(
        title=f"One dictionary of {work['latents']} latents, k = {work['k']}, batches of {work['batch_size']}, "
        f"{work['epochs']} epochs (one more, not measured, warms up)"
    )
    for column in ("", "samples/s", "R²", "R² held out", "dead", "peak memory"):
        table.add_column(column, justify="left" if not column else "right")
    for name, figures in report["contenders"].items():
        table.add_row(
            name,
            f"{figures['samples_per_second']:,.0f}",
            f"{figures['r2']:.4f}",
            f"{figures['r2_held_out']:.4f}",
            f"{figures['dead']:.0f}",
            f"{figures['peak_memory_bytes'] / 2**30:.2f} GiB",
        )
    return table


def _extraction_table(report: Mapping[str, Any]) -> Table:
    table = Table(title="Extraction, images/s")
    for column in ("", "triptych", "plain loop", "speed", "mean cosine", "lowest"):
        table.add_column(column, justify="left" if not column else "right")
    for name, one in report["extraction"].items():
        speeds = (f"{one['ours']:.1f}", f"{one['peer']:.1f}", f"{one['ratio']:.1f}x")
        table.add_row(name, *speeds, f"{one['mean_cosine']:.5f}", f"{one['min_cosine']:.5f}")
    return table


def _lines(report: Mapping[str, Any]) -> tuple[str, ...]:
    ratios, are_reached = report["ratios"], report["reached"]
    lines = [
        f"{_beside(ratios[what])} ({label}; aim {TARGETS[what]:g} at equal R²: {_said(are_reached[what])})"
        for what, label in (("out_of_the_box", "both as they come"), ("equal_precision", "both in fp32"))
    ]
    if "two_models" in ratios:
        lines.append(f"{_beside(ratios['two_models'])} (for information)")
    if "extraction" in ratios:
        lines.append(
            f"{ratios['extraction']:.1f}x the images/s of the plain loop (aim {TARGETS['extraction']:g}: "
            f"{_said(are_reached['extraction'])}), mean cosine {ratios['cosine']:.5f} "
            f"(aim {TARGETS['cosine']:g}: {_said(are_reached['cosine'])})"
        )
    return tuple(lines)


def _beside(ratio: Mapping[str, Any]) -> str:
    return (
        f"{ratio['ours']}: {ratio['speed']:.1f}x the samples/s of {ratio['peer']}, R² {ratio['r2_difference']:+.4f}, "
        f"{ratio['memory']:.1f} times our peak memory is its"
    )


def _said(is_reached: bool) -> str:
    return "reached" if is_reached else "missed"
