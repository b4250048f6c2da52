"""Tables as data: CSV files for programs, and the same numbers as accessible HTML tables for people.

A CSV cell holds the full number and an empty cell means no value; an HTML cell holds the rounded number with its
interval and always a word. Not here: the HTML itself (`templates/macros.html.j2`).
"""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from triptych.records import Estimate, FrontierPoint
from triptych.reports import format as fmt
from triptych.reports.arms import Arm, name_arms
from triptych.reports.glossary import SCOPES, MeasureInfo, Scope, Topic, describe, in_order
from triptych.reports.inputs import Decoding
from triptych.reports.safe_text import neutralise
from triptych.reports.settings import Setting

Value = str | int | float | None

TOPICS: dict[Topic, str] = {
    "likelihood": "Likelihood and reward",
    "diversity": "Diversity",
    "matched diversity": "Diversity at equal amounts of text",
    "length": "Length and stop reasons",
    "repetition": "Repetition",
    "other": "Other measures",
}
VERDICT_SIGNS = {
    "agrees": "✓ agrees",
    "disagrees": "✗ disagrees",
    "undecided": "? undecided",
    "not tested": "– not tested",
}


class Column(NamedTuple):
    """The head of a column."""

    head: str
    note: str = ""
    """A second, smaller line: unit or scope."""
    numeric: bool = False


class Cell(NamedTuple):
    """One cell as people read it."""

    text: str
    note: str = ""
    """A second, smaller line, such as the interval."""
    kind: str = ""
    """A class for the style sheet; what it says is said in the text too."""


class Table(NamedTuple):
    """A table for the page; the first cell of each row is the row's head."""

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    stacked: bool = False
    """On narrow screens every row becomes a card: for tables with sentences in them."""


def to_csv(header: Sequence[str], rows: Iterable[Sequence[Value]]) -> bytes:
    """UTF-8 with a header row; None is an empty cell, and a space is a plain space."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_plain(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return stream.getvalue().encode()


def arms_csv(run: Decoding) -> bytes:
    """`decoding_arms.csv`: one row an arm; for every measure and scope the value, interval, counts and method."""
    keys = _measured(run)
    parts = ("", "_low", "_high", "_n", "_prompts", "_unscored", "_method")
    header = ["arm", "strategy", "params", "temperature", "completions", "prompts"]
    header += [f"{metric}_{scope}{part}" for metric, scope in keys for part in parts]
    names = name_arms(run.arms)
    rows = []
    for arm, completions in run.rows.items():
        row: list[Value] = [names[arm], *arm, len(completions.prompt_ids), completions.n_prompts]
        for metric, scope in keys:
            row += estimate_values(run.measures.get((arm, metric, scope)))
        rows.append(row)
    return to_csv(header, rows)


def arm_tables(run: Decoding) -> list[Table]:
    """All measures of all arms, one table a topic."""
    keys = _measured(run)
    tables = []
    for topic, title in TOPICS.items():
        chosen = [(metric, scope) for metric, scope in keys if describe(metric).topic == topic]
        if chosen:
            tables.append(_arm_table(run, f"decoding-{topic.replace(' ', '-')}", title, chosen))
    return tables


def claims_csv(run: Decoding) -> bytes:
    """`claims.csv`: the paper's sentences with what this run measured."""
    header = ["claim", "where", "quantity", "verdict", "value", "low", "high", "n", "prompts", "unscored", "method"]
    rows = [
        [claim.claim, claim.where, claim.quantity, claim.verdict, *estimate_values(claim.estimate), claim.explanation]
        for claim in run.claims
    ]
    return to_csv([*header, "explanation"], rows)


def claims_table(run: Decoding) -> Table:
    """The paper's sentences with this run's verdicts."""
    rows = tuple(
        (
            Cell(claim.claim, claim.where, kind="sentence"),
            Cell(VERDICT_SIGNS[claim.verdict], kind=f"verdict {claim.verdict.replace(' ', '-')}"),
            Cell(claim.quantity),
            _with_counts(claim.estimate),
            Cell(claim.explanation),
        )
        for claim in run.claims
    )
    columns = (
        Column("The paper says"),
        Column("Verdict"),
        Column("Tested by"),
        Column("This run", f"95{fmt.NBSP}% interval"),
        Column("Why"),
    )
    return Table(
        "decoding-claims", "The paper's claims about decoding, and what this run measured", columns, rows, stacked=True
    )


def settings_csv(rows: Sequence[Setting]) -> bytes:
    """`settings.csv`: the paper's settings beside this run's."""
    answers = {True: "yes", False: "no", None: "not recorded"}
    return to_csv(
        ["setting", "paper", "source", "this_run", "same"],
        [[row.name, row.paper, row.source, row.ours, answers[row.same]] for row in rows],
    )


def settings_table(rows: Sequence[Setting]) -> Table:
    """The paper's settings beside this run's, and whether they agree."""
    answers = {True: Cell("yes", kind="same"), False: Cell("no", kind="different"), None: Cell("not recorded")}
    body = tuple((Cell(row.name), Cell(row.paper, row.source), Cell(row.ours), answers[row.same]) for row in rows)
    columns = (Column("Setting"), Column("Paper"), Column("This run"), Column("Same?"))
    return Table("decoding-settings", "Settings of the decoding panel", columns, body, stacked=True)


def frontier_csv(run: Decoding) -> bytes:
    """`frontier.csv`: every setting tried, with quality, diversity and whether it is on the frontier, and how surely.

    `on_frontier` goes by the means alone; `on_frontier_probability` is empty where there is none.
    """
    parts = ("", "_low", "_high", "_n", "_prompts", "_unscored", "_method")
    header = ["strategy", "params", "temperature", "quality_name", "diversity_name", "on_frontier"]
    header += ["on_frontier_probability", "budget"]
    header += [f"{name}{part}" for name in ("quality", "diversity") for part in parts]
    rows = [
        [
            *arm,
            point.quality_name,
            point.diversity_name,
            "yes" if point.on_frontier else "no",
            point.on_frontier_probability,
            point.budget,
            *estimate_values(point.quality),
            *estimate_values(point.diversity),
        ]
        for arm, point in run.frontier
    ]
    return to_csv(header, rows)


def frontier_table(run: Decoding) -> Table:
    """The settings that may well be on the frontier, from the least to the most varied."""
    names = name_arms(arm for arm, _ in run.frontier)
    possible = [pair for pair in run.frontier if pair[1].on_frontier or _chance(pair[1]) >= WORTH_LISTING]
    chosen = sorted(possible, key=lambda pair: pair[1].diversity.value)
    first = run.frontier[0][1]
    rows = tuple(
        (
            Cell(names[arm]),
            Cell(fmt.probability(point.on_frontier_probability)),
            estimate_cell(point.diversity),
            estimate_cell(point.quality),
            Cell(fmt.plural(point.budget, "setting")),
        )
        for arm, point in chosen
    )
    columns = (
        Column("Setting"),
        Column("On the frontier", "probability", numeric=True),
        Column(first.diversity_name, f"95{fmt.NBSP}% interval", numeric=True),
        Column(first.quality_name, f"95{fmt.NBSP}% interval", numeric=True),
        Column("Tried", "for this strategy", numeric=True),
    )
    on_it = sum(point.on_frontier for _, point in run.frontier)
    caption = f"Settings that may be on the frontier: {on_it} of {len(run.frontier)} tried are on it by their means"
    if len(chosen) > on_it:
        caption += f", {len(chosen) - on_it} more with a probability of {WORTH_LISTING} or above"
    return Table("decoding-frontier", caption, columns, rows)


WORTH_LISTING = 0.1
"""A setting off the frontier by its means is listed if it is on it at least so probably."""


def _chance(point: FrontierPoint) -> float:
    return point.on_frontier_probability or 0.0


def estimate_cell(estimate: Estimate | None, info: MeasureInfo | None = None) -> Cell:
    """A value over its interval."""
    if estimate is None:
        return Cell("not measured", kind="none")
    if estimate.mean is None:
        return Cell(fmt.NO_VALUE, fmt.why_no_interval(estimate), kind="none")
    decimals = None if info is None else info.decimals
    return Cell(fmt.value(estimate, decimals), fmt.interval(estimate, decimals))


def _plain(text: str) -> str:
    return neutralise(text).replace(fmt.NBSP, " ")


def _arm_table(run: Decoding, name: str, title: str, keys: list[tuple[str, Scope]]) -> Table:
    names = name_arms(run.arms)
    columns = [Column("Arm")]
    for metric, scope in keys:
        info = describe(metric)
        columns.append(
            Column(info.label, ", ".join(part for part in (info.unit, _scope_note(scope)) if part), numeric=True)
        )
    rows = tuple(
        (
            Cell(names[arm], _completions(run, arm)),
            *(estimate_cell(run.measures.get((arm, metric, scope)), describe(metric)) for metric, scope in keys),
        )
        for arm in run.arms
    )
    return Table(name, f"{title}: value and 95{fmt.NBSP}% interval of every arm", tuple(columns), rows)


def _completions(run: Decoding, arm: Arm) -> str:
    rows = run.rows[arm]
    return f"n = {len(rows.prompt_ids):,} of {fmt.plural(rows.n_prompts, 'prompt')}"


def _scope_note(scope: Scope) -> str:
    return "" if scope == "arm" else SCOPES[scope].partition(":")[0]


def _with_counts(estimate: Estimate) -> Cell:
    if estimate.mean is None:
        return Cell(fmt.NO_VALUE, fmt.why_no_interval(estimate), kind="none")
    return Cell(fmt.with_interval(estimate), fmt.counts(estimate, "values"))


def _measured(run: Decoding) -> list[tuple[str, Scope]]:
    """Every metric and scope of the run."""
    return in_order((metric, scope) for _, metric, scope in run.measures)


def estimate_values(estimate: Estimate | None) -> list[Value]:
    """Seven cells: value, ends of the interval, numbers of observations, clusters and unscored ones, method."""
    if estimate is None:
        return [None] * 7
    return [
        estimate.mean,
        estimate.low,
        estimate.high,
        estimate.n,
        estimate.n_clusters,
        estimate.n_unscored,
        estimate.method,
    ]
