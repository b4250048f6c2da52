"""`triptych bench decode`: the paper's grid by this engine and by its peers, one after the other on one machine."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from triptych.bench.workload import Workload
from triptych.environment import device_description, package_versions
from triptych.errors import WorkError
from triptych.files import atomic_write_json

TARGETS = {"transformers.generate": 4.0, "openvino-genai": 2.0, "one-prompt loop": 40.0}
"""Useful tokens a second, ours over theirs, that this project wants to reach."""


def run(out: Path, workload: Workload | None = None) -> dict[str, Any]:
    """Measures every contender in a process of its own; writes the figures to `out` and prints the ratios.

    OpenVINO GenAI is left out, and said to be, where it is not installed (`pip install triptych[bench]`).
    """
    workload = workload or Workload()
    console = Console(stderr=True)
    results = {}
    for name in ("triptych", *TARGETS):
        if name == "openvino-genai" and find_spec("openvino_genai") is None:
            console.print("openvino-genai is not installed (pip install 'triptych\\[bench]'): left out")
            continue
        console.print(f"running {name} ...")
        results[name] = _measure(name, workload)
    report = {
        "workload": workload.model_dump(),
        "device": device_description(),
        "versions": package_versions(),
        "results": results,
        "ratios": {
            name: results["triptych"]["tokens_per_second"] / results[name]["tokens_per_second"] for name in results
        },
        "targets": TARGETS,
    }
    atomic_write_json(out, report)
    _print(report)
    return report


def _measure(name: str, workload: Workload) -> dict[str, Any]:
    command = [sys.executable, "-m", "triptych.bench.contenders", name, workload.model_dump_json()]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise WorkError(f"benchmark contender '{name}' failed: {last}")
    result: dict[str, Any] = json.loads(finished.stdout.strip().splitlines()[-1])
    return {**result, "tokens_per_second": result["tokens"] / result["seconds"]}


def _print(report: dict[str, Any]) -> None:
    table = Table(title="Useful tokens a second over the paper's grid")
    for column in ("", "tokens/s", "ratio", "target", "peak memory", "completions", "seconds"):
        table.add_column(column, justify="left" if not column else "right")
    for name, result in report["results"].items():
        target = report["targets"].get(name)
        table.add_row(
            name,
            f"{result['tokens_per_second']:,.0f}",
            f"{report['ratios'][name]:.1f}x",
            f"{target:.0f}x" if target else "",
            f"{result['peak_memory_bytes'] / 2**30:.2f} GiB",
            f"{result['completions']:,}",
            f"{result['seconds']:.1f}",
        )
    console = Console(width=100)
    console.print(table)
    ours = report["results"]["triptych"]
    bound = ours["detail"]["matrix_product_seconds"] / ours["seconds"]
    console.print(f"matrix products alone would take {bound:.0%} of triptych's time")
