"""What the run cost, stage by stage: time, its share, speed and memory.

Not here: what single panels count of themselves, which stands in their own parts.
"""

from collections.abc import Mapping

from triptych.reports import format as fmt
from triptych.reports.tables import Cell, Column, Table, Value, to_csv
from triptych.runs import Manifest, StageRecord

NOT_MEASURED = Cell("not measured", kind="none")
NOTHING = Cell("–", kind="none")
INTRO = (
    "Time is that of the wall clock, added up over attempts where a stage was interrupted. Memory is the largest "
    "resident size of the process that was seen during a stage, looked at every 0.2 s; models of earlier stages that "
    "were not given back count, too. Speed is what the run itself recorded of the work in the stage."
)


def costs_table(manifest: Manifest, rates: Mapping[str, str]) -> Table:
    """One row a stage, then the whole."""
    total = sum(stage.seconds for stage in manifest.stages.values())
    rows = [_row(name, stage, total, rates.get(name)) for name, stage in manifest.stages.items()]
    peaks = [stage.peak_memory_bytes for stage in manifest.stages.values() if stage.peak_memory_bytes]
    whole = (
        Cell("all stages"),
        Cell(fmt.duration(total)),
        Cell(fmt.share(1.0) if total else "–"),
        NOTHING,
        Cell(fmt.size(max(peaks))) if peaks else NOT_MEASURED,
    )
    columns = (
        Column("Stage"),
        Column("Time", numeric=True),
        Column("Share", numeric=True),
        Column("Speed", numeric=True),
        Column("Peak memory", numeric=True),
    )
    return Table("costs", "What the run cost, stage by stage", columns, (*rows, whole))


def costs_csv(manifest: Manifest, rates: Mapping[str, str]) -> bytes:
    """`costs.csv`: one row a stage."""
    rows: list[list[Value]] = [
        [name, stage.status, stage.seconds, rates.get(name), stage.peak_memory_bytes]
        for name, stage in manifest.stages.items()
    ]
    return to_csv(["stage", "status", "seconds", "speed", "peak_memory_bytes"], rows)


def _row(name: str, stage: StageRecord, total: float, rate: str | None) -> tuple[Cell, ...]:
    return (
        Cell(name, _status(stage)),
        Cell(fmt.duration(stage.seconds)),
        Cell(fmt.share(stage.seconds / total) if total else "–"),
        NOTHING if rate is None else Cell(rate),
        NOT_MEASURED if not stage.peak_memory_bytes else Cell(fmt.size(stage.peak_memory_bytes)),
    )


def _status(stage: StageRecord) -> str:
    """What is to be said of a stage that is not simply done."""
    if stage.status == "running":
        return "running while this page was written"
    return "" if stage.status == "done" else ": ".join(part for part in (stage.status, stage.error) if part)
