"""The sweep of an adapter's scale as curves and as a table."""

from typing import NamedTuple

from triptych.records import Estimate
from triptych.reports.auditing_glossary import describe_audit
from triptych.reports.auditing_inputs import SWEEP, Auditing, shown_name
from triptych.reports.auditing_tables import INTERVAL, audit_cell, head, scorer_name
from triptych.reports.tables import Cell, Column, Table

METRICS = ("perplexity", "kl_chosen", "kl_own", "tokens_mean", "empty_rate")


class Curve(NamedTuple):
    """One figure of one adapter at every λ."""

    model: str
    metric: str
    scorer: str | None
    points: tuple[tuple[str, Estimate], ...]
    """`λ=0.5` and its estimate, from the smallest."""


def curves(run: Auditing) -> list[Curve]:
    """In the order of `METRICS`, then the scorers; adapters in their order."""
    points: dict[tuple[str, str, str | None], list[tuple[str, Estimate]]] = {}
    for row in run.rows(SWEEP):
        points.setdefault((row.model, row.metric, row.scorer), []).append((row.category or "", row.estimate))
    ranks = {metric: place for place, metric in enumerate(METRICS)}
    ordered = sorted(points.items(), key=lambda item: ranks.get(item[0][1], len(ranks)))
    return [Curve(*key, tuple(of_key)) for key, of_key in ordered]


def panels(run: Auditing) -> dict[tuple[str, str | None], list[Curve]]:
    """Metric and scorer → the curves of all adapters."""
    grouped: dict[tuple[str, str | None], list[Curve]] = {}
    for curve in curves(run):
        grouped.setdefault((curve.metric, curve.scorer), []).append(curve)
    return grouped


def title_of(run: Auditing, metric: str, scorer: str | None) -> str:
    """What a panel or a column shows."""
    return describe_audit(metric).axis if scorer is None else f"score by {scorer_name(run, scorer)}"


def sweep_table(run: Auditing) -> Table:
    """A row an adapter and λ, a column a figure."""
    shown = panels(run)
    estimates = {
        (curve.model, where, metric, scorer): estimate
        for (metric, scorer), own in shown.items()
        for curve in own
        for where, estimate in curve.points
    }
    places = dict.fromkeys((row.model, row.category or "") for row in run.rows(SWEEP))
    columns = (
        Column("Adapter"),
        *(
            head(metric) if scorer is None else Column(title_of(run, metric, scorer), numeric=True)
            for metric, scorer in shown
        ),
    )
    rows = tuple(
        (
            Cell(shown_name(model), where.replace("=", " = ")),
            *(audit_cell(estimates.get((model, where, metric, scorer))) for metric, scorer in shown),
        )
        for model, where in places
    )
    return Table("auditing-sweep", f"Adapters at parts of their own scale: value and {INTERVAL}", columns, rows)
