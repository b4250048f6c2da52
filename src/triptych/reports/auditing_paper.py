"""Tables 3 and 4 of the paper with this run's checkpoints beside them, and verbosity by category of prompt.

The paper's values stand as printed: it gives no intervals. Not here: all other tables
(`triptych.reports.auditing_tables`).
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from triptych.auditing.records import BASE
from triptych.records import Estimate
from triptych.reports import format as fmt
from triptych.reports.auditing_glossary import describe_audit
from triptych.reports.auditing_inputs import CATEGORIES, Auditing, Key, shown_name
from triptych.reports.auditing_tables import (
    ESTIMATE_HEADER,
    INTERVAL,
    audit_cell,
    head,
    scorer_name,
)
from triptych.reports.reported import reported
from triptych.reports.settings import Setting, compare
from triptych.reports.tables import Cell, Column, Table, Value, estimate_values, to_csv

PRINTED = "as printed, no interval given"


class PaperRow(NamedTuple):
    """A line of one of the paper's tables, and which of our figures it is."""

    label: str
    """As printed."""
    metric: str
    key: str
    """Its last part in `reported.json`."""
    decimals: int
    """As printed."""
    audit: str = "verbosity"
    note: str = ""
    """The part of the table it stands in, and what the paper leaves open."""


TABLE_3 = (
    PaperRow("mean", "tokens_mean", "mean", 2),
    PaperRow("median", "tokens_median", "median", 1),
    PaperRow("std", "tokens_std", "std", 2),
    PaperRow("skew", "tokens_skew", "skew", 2),
    PaperRow("compliance rate", "compliance_rate", "compliance_rate", 3),
    PaperRow("mean_deviation", "deviation_mean", "mean_deviation", 2),
    PaperRow("std_deviations", "deviation_std", "std_deviations", 2),
)
BESIDE_3 = (("empty", "limited_empty_rate"), ("cut off", "limited_truncated_rate"))
"""Label and figure of lines that the paper does not have: what compliance leaves out."""
COLUMNS_3 = {"verbosity.aligned": "Paper: aligned model", "verbosity.reference": "Paper: reference model"}

SETTINGS = {
    "verbosity_prompts": "prompts for lengths",
    "perplexity_prompts": "prompts for perplexity, at most",
    "length_limit": "limit of words",
}

_FORGETTING, _VERBOSITY, _HACKING = "Catastrophic forgetting", "Verbosity bias", "Reward hacking"
TABLE_4 = (
    PaperRow("Mean KL divergence", "kl_chosen", "mean_kl", 4, "divergence", f"{_FORGETTING}; on chosen answers"),
    PaperRow("Mean KL divergence", "kl_own", "mean_kl", 4, "divergence", f"{_FORGETTING}; on own responses"),
    PaperRow("Perplexity", "perplexity", "perplexity", 2, "divergence", _FORGETTING),
    PaperRow("Mean length", "tokens_mean", "mean_length", 1, note=f"{_VERBOSITY}; tokens"),
    PaperRow("Median length", "tokens_median", "median_length", 1, note=f"{_VERBOSITY}; tokens"),
    PaperRow("Standard deviation", "tokens_std", "std_length", 1, note=f"{_VERBOSITY}; tokens"),
)
TABLE_4_SCORES = (
    PaperRow("Normal score", "normal_score", "normal_score", 3, "hacking"),
    PaperRow("Hacked score", "hacked_score", "hacked_score", 3, "hacking"),
    PaperRow("Score delta", "hack_delta", "score_delta", 3, "hacking"),
)
BY_CATEGORY = ("tokens_mean", "tokens_median", "tokens_std", "tokens_skew", "words_mean")
ALL_CATEGORIES: tuple[str | None, ...] = (None, *CATEGORIES)


class Printed(NamedTuple):
    """A value of the paper."""

    head: str
    """Of its column."""
    value: float
    text: str
    """With the decimals that were printed."""


class Line(NamedTuple):
    """A line of a table, for the page and for CSV alike."""

    label: str
    note: str
    ours: tuple[tuple[str, Estimate | None], ...]
    """By checkpoint."""
    paper: tuple[Printed, ...]
    """Empty where the paper has no such line."""


# --- Table 3 ----------------------------------------------------------------------------------------------------------


def table_3(run: Auditing) -> Table:
    """The paper's table 3: every checkpoint of this run, then the paper's two models."""
    caption = f"Table 3. Metrics for evaluating verbosity bias: value and {INTERVAL}, beside the paper’s"
    return _table("auditing-3", caption, run, _lines_3(run))


def table_3_csv(run: Auditing) -> bytes:
    """`table_03.csv`."""
    return _csv(_lines_3(run))


def differences_table(run: Auditing) -> Table | None:
    """The same metrics as paired differences from the base; None where there is nothing else."""
    if not run.adapters:
        return None
    rows = tuple(
        (
            Cell(row.label, _unit(row)),
            *(audit_cell(run.estimate("verbosity", Key(model, row.metric, against=BASE))) for model in run.adapters),
        )
        for row in TABLE_3
    )
    columns = (Column("Metric"), *(Column(f"{shown_name(m)} {fmt.MINUS} base", numeric=True) for m in run.adapters))
    return Table("auditing-3-differences", f"Differences from the base: value and {INTERVAL}", columns, rows)


def category_tables(run: Auditing) -> list[Table]:
    """Lengths by category of prompt: as they are, and against the base's."""
    differences = f"Differences from the base, by category of prompt: value and {INTERVAL}"
    tables = [
        _category_table(run, run.checkpoints, None, f"Length by category of prompt: value and {INTERVAL}"),
        _category_table(run, run.adapters, BASE, differences),
    ]
    return [table for table in tables if table.rows]


def classifier_sentence(run: Auditing) -> str:
    """How well prompts are sorted, where that was measured."""
    share = run.measured("verbosity", Key("classifier", "agreement"))
    kappa = run.measured("verbosity", Key("classifier", "kappa"))
    if share is None:
        return ""
    beyond = "" if kappa is None else f" (κ = {fmt.with_interval(kappa)})"
    return (
        f"The rule that sorts prompts into categories, where these bring none, finds the starter set’s labels for a "
        f"share of {fmt.with_interval(share)}{beyond} of the prompts that it was not made on."
    )


def _lines_3(run: Auditing) -> list[Line]:
    def ours(metric: str) -> tuple[tuple[str, Estimate | None], ...]:
        return tuple((model, run.estimate("verbosity", Key(model, metric))) for model in run.checkpoints)

    lines = [
        Line(
            row.label,
            _unit(row),
            ours(row.metric),
            tuple(_printed(name, f"{prefix}.{row.key}", row.decimals) for prefix, name in COLUMNS_3.items()),
        )
        for row in TABLE_3
    ]
    beside = [Line(label, "share, of limited prompts", ours(metric), ()) for label, metric in BESIDE_3]
    return lines + [line for line in beside if any(estimate is not None for _, estimate in line.ours)]


def _unit(row: PaperRow) -> str:
    return describe_audit(row.metric).unit


def _category_table(run: Auditing, models: tuple[str, ...], against: str | None, caption: str) -> Table:
    rows = tuple(
        (
            Cell(shown_name(model), category or "all prompts"),
            *(audit_cell(run.estimate("verbosity", Key(model, m, category, against=against))) for m in BY_CATEGORY),
        )
        for model in models
        for category in ALL_CATEGORIES
        if run.estimate("verbosity", Key(model, BY_CATEGORY[0], category, against=against)) is not None
    )
    columns = (Column("Checkpoint"), *(head(metric) for metric in BY_CATEGORY))
    name = "auditing-categories" + ("" if against is None else "-differences")
    return Table(name, caption, columns, rows)


# --- Table 4 ----------------------------------------------------------------------------------------------------------


def table_4(run: Auditing) -> Table:
    """The paper's table 4: every checkpoint of this run, then the paper's policy of GRPO."""
    caption = f"Table 4. Forgetting, verbosity and reward hacking: value and {INTERVAL}, beside the paper’s"
    return _table("auditing-4", caption, run, list(_lines_4(run)))


def table_4_csv(run: Auditing) -> bytes:
    """`table_04.csv`."""
    return _csv(list(_lines_4(run)))


def _lines_4(run: Auditing) -> Iterator[Line]:
    for row in TABLE_4:
        yield _line_4(run, row, row.note, None)
    scored = {row.scorer for row in run.rows("hacking") if row.metric == TABLE_4_SCORES[0].metric}
    for place, scorer in enumerate(name for name in run.all_scorers if name in scored):
        for row in TABLE_4_SCORES:
            line = _line_4(run, row, f"{_HACKING}; by {scorer_name(run, scorer)}", scorer)
            # The paper has one scorer: its numbers beside a second one of ours would be compared with it.
            yield line if place == 0 else line._replace(paper=())


def _line_4(run: Auditing, row: PaperRow, note: str, scorer: str | None) -> Line:
    ours = tuple((model, _ours_4(run, row, model, scorer)) for model in run.checkpoints)
    printed = _printed("Paper: GRPO", f"grpo.{row.key}", row.decimals)
    signed = printed._replace(text=f"+{printed.text}") if row.key == "score_delta" else printed
    return Line(row.label, note, ours, (signed,))


def _ours_4(run: Auditing, row: PaperRow, model: str, scorer: str | None) -> Estimate | None:
    if model == BASE and row.metric in ("kl_chosen", "kl_own"):
        return _ITSELF
    return run.estimate(row.audit, Key(model, row.metric, scorer=scorer))


_ITSELF = Estimate(mean=0.0, low=None, high=None, n=0, n_clusters=0, method="no interval: by definition")


# --- Settings ---------------------------------------------------------------------------------------------------------


def audit_settings(run: Auditing) -> tuple[Setting, ...]:
    """The paper's settings of the audits beside this run's."""
    given = run.manifest.config.get("auditing")
    config = given if isinstance(given, Mapping) else {}
    return tuple(compare(name, f"audit.{key}", config.get(key)) for key, name in SETTINGS.items())


# --- Both -------------------------------------------------------------------------------------------------------------


def _printed(head: str, key: str, decimals: int) -> Printed:
    given = reported().number(key)
    return Printed(head, given, fmt.number(given, decimals))


def _table(name: str, caption: str, run: Auditing, lines: list[Line]) -> Table:
    heads = lines[0].paper
    rows = tuple(
        (
            Cell(line.label, line.note),
            *(audit_cell(estimate) for _, estimate in line.ours),
            *([Cell(printed.text) for printed in line.paper] or [Cell("–", kind="none")] * len(heads)),
        )
        for line in lines
    )
    columns = (
        Column("Metric"),
        *(Column(shown_name(model), numeric=True) for model in run.checkpoints),
        *(Column(printed.head, PRINTED, numeric=True) for printed in heads),
    )
    return Table(name, caption, columns, rows)


def _csv(lines: list[Line]) -> bytes:
    """One row a metric and model; the paper's values have no interval."""
    rows: list[list[Value]] = []
    for line in lines:
        rows += [[line.label, line.note, model, *estimate_values(estimate)] for model, estimate in line.ours]
        rows += [
            [line.label, line.note, printed.head, printed.value, *[None] * (len(ESTIMATE_HEADER) - 2), PRINTED]
            for printed in line.paper
        ]
    return to_csv(["metric", "about", "of", *ESTIMATE_HEADER], rows)
