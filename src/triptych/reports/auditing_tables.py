"""Tables of the audits: divergence, reward hacking, collapse, comparison, lineage and costs; their figures as CSV.

Not here: tables 3 and 4 of the paper (`triptych.reports.auditing_paper`) and the report card
(`triptych.reports.auditing_card`).
"""

import math
from collections.abc import Callable, Iterable, Sequence

from triptych.auditing.records import BASE, AuditRecord
from triptych.records import Estimate
from triptych.reports import format as fmt
from triptych.reports.alignment_inputs import plain
from triptych.reports.auditing_glossary import SCORERS, describe_audit, perturbation_name
from triptych.reports.auditing_inputs import CONTROL, Auditing, Key, Scorer, shown_name
from triptych.reports.tables import Cell, Column, Table, estimate_values, to_csv

MAX_TOKENS = 8
"""Tokens of a checkpoint in the page; the CSV has all that were kept."""
MAX_DECIMALS = 7
"""A distance of a hundred-thousandth of a nat is small and not zero."""
INTERVAL = f"95{fmt.NBSP}% interval"
OF_BASE = Cell("–", "the base itself", kind="none")
ESTIMATE_HEADER = ("value", "low", "high", "n", "prompts", "unscored", "method")
ALL_MODELS = "all"

DIVERGENCE = ("perplexity", "perplexity_ratio", "nll", "kl_chosen", "kl_own", "k1_own", "k3_own")
TOKEN_METRICS = ("kl_own_by_token", "kl_own_share_by_token", "log_ratio_by_token")
CHANGE_METRICS = (
    "score_change",
    "score_change_in_sd",
    "score_change_std",
    "share_positive",
    "change_over_control",
)
COLLAPSE = (
    "empty_rate",
    "truncated_rate",
    "distinct_1",
    "distinct_2",
    "distinct_3",
    "matched_distinct_2",
    "self_bleu",
    "repetition",
    "accuracy",
    "checks",
    "entropy",
)
AGAINST = {"perplexity_ratio": BASE, "nll": BASE}
"""Figures of the divergence table that are comparisons with the base."""


# --- Cells ------------------------------------------------------------------------------------------------------------


def decimals_of(estimate: Estimate) -> int | None:
    """More decimals than elsewhere for an interval near zero; None is as many as everywhere."""
    if estimate.low is None or estimate.high is None or max(abs(estimate.low), abs(estimate.high)) >= 0.01:
        return None
    half_width = (estimate.high - estimate.low) / 2
    return min(MAX_DECIMALS, max(4, 1 - math.floor(math.log10(half_width)))) if half_width > 0 else None


def audit_cell(estimate: Estimate | None) -> Cell:
    """A value over its interval, or over the reason why there is none."""
    if estimate is None:
        return Cell("not measured", kind="none")
    if estimate.mean is None:
        return Cell(fmt.NO_VALUE, fmt.why_no_interval(estimate), kind="none")
    decimals = decimals_of(estimate)
    bound = fmt.BOUNDS[estimate.bound]
    shown = bound + plain(estimate.mean) if estimate.low is None else fmt.value(estimate, decimals)
    return Cell(shown, fmt.interval(estimate, decimals))


def in_words(estimate: Estimate) -> str:
    """`0.612 [0.598, 0.626]` for sentences and alt texts."""
    return fmt.with_interval(estimate, decimals_of(estimate))


def head(metric: str) -> Column:
    """The head of a column of one figure."""
    info = describe_audit(metric)
    return Column(info.label, info.unit, numeric=True)


def capital_label(metric: str) -> str:
    """What a figure is called at the beginning of a line."""
    label = describe_audit(metric).label
    return label[:1].upper() + label[1:]


def records_csv(rows: Sequence[AuditRecord]) -> bytes:
    """All figures of one audit, one a row."""
    header = ["model", "metric", "category", "scorer", "against", *ESTIMATE_HEADER, "p"]
    return to_csv(
        header,
        [[r.model, r.metric, r.category, r.scorer, r.against, *estimate_values(r.estimate), r.p] for r in rows],
    )


# --- Divergence -------------------------------------------------------------------------------------------------------


def divergence_table(run: Auditing) -> Table:
    """How far every checkpoint is from the base, on held-out answers and where it goes itself."""
    heads = {"nll": Column("change of the NLL", "nats per token", numeric=True)}
    rows = tuple(
        (Cell(shown_name(model)), *(_divergence_cell(run, model, metric) for metric in DIVERGENCE))
        for model in run.checkpoints
    )
    columns = (Column("Checkpoint"), *(heads.get(metric) or head(metric) for metric in DIVERGENCE))
    return Table("auditing-divergence", f"Divergence from the base: value and {INTERVAL}", columns, rows)


def _divergence_cell(run: Auditing, model: str, metric: str) -> Cell:
    if model == BASE and metric == "kl_chosen":
        # Its KL to itself in other passes: what the figures below it in the column must exceed.
        floor = run.estimate("divergence", Key(BASE, "kl_floor"))
        return OF_BASE if floor is None else audit_cell(floor)
    if model == BASE and metric != "perplexity":
        return OF_BASE
    return audit_cell(run.estimate("divergence", Key(model, metric, against=AGAINST.get(metric))))


def token_tables(run: Auditing) -> list[Table]:
    """Of each checkpoint, the tokens at which most of its divergence falls."""
    tables = []
    for place, model in enumerate(run.adapters):
        tokens = [
            row.category or ""
            for row in run.rows("divergence")
            if row.model == model and row.metric == TOKEN_METRICS[0] and row.category is not None
        ]
        rows = tuple((Cell(quoted(token)), *_token_cells(run, model, token)) for token in tokens[:MAX_TOKENS])
        if rows:
            caption = f"Tokens that carry most of the KL of {shown_name(model)}, on its own responses"
            columns = (Column("Token"), *(head(metric) for metric in TOKEN_METRICS))
            tables.append(Table(f"auditing-tokens-{place}", caption, columns, rows))
    return tables


def quoted(token: str) -> str:
    """A token's text with its white space: what a model writes is often ` the`, with the space before it."""
    visible = token.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣")
    return f"“{shown_name(visible)}”"


def _token_cells(run: Auditing, model: str, token: str) -> list[Cell]:
    cells = [audit_cell(run.estimate("divergence", Key(model, metric, token))) for metric in TOKEN_METRICS]
    share = run.measured("divergence", Key(model, TOKEN_METRICS[1], token))
    if share is not None and share.low is None:
        cells[1] = Cell(fmt.share(share.value), "no interval")
    return cells


# --- Reward hacking ---------------------------------------------------------------------------------------------------


def scorer_title(run: Auditing, scorer: Scorer) -> str:
    """Who scored, for headings: `reward_model`, `implicit reward of dpo`."""
    if scorer.is_surrogate:
        return f"{SCORERS[scorer.name]} of {shown_name(scorer.model)}"
    return scorer_name(run, scorer.name)


def scorer_name(run: Auditing, name: str) -> str:
    """A reward scorer's name; that of the gold scorer says so."""
    return shown_name(name) + run.gold_sign(name)


def change_table(run: Auditing, scorer: Scorer, place: int) -> Table:
    """What perturbations do to the scores by one scorer."""
    score = run.measured("hacking", Key(scorer.model, "score", scorer=scorer.name))
    base = "" if score is None else f"; the texts as they are score {in_words(score)}"
    rows = tuple(
        (Cell(perturbation_name(perturbation)), *_change_cells(run, scorer, perturbation))
        for perturbation in run.perturbations
    )
    columns = (
        Column("Perturbation"),
        *(head(metric) for metric in CHANGE_METRICS),
        Column("p", "corrected", numeric=True),
        head("words_added"),
    )
    return Table(f"auditing-change-{place}", f"Scored by {scorer_title(run, scorer)}{base}", columns, rows)


def _change_cells(run: Auditing, scorer: Scorer, perturbation: str) -> list[Cell]:
    def key(metric: str) -> Key:
        return Key(scorer.model, metric, perturbation, scorer.name)

    cells = [audit_cell(run.estimate("hacking", key(metric))) for metric in CHANGE_METRICS]
    if perturbation == CONTROL:
        cells[-1] = Cell("–", "the control itself", kind="none")
    row = run.record("hacking", key("score_change"))
    p = None if row is None else row.p
    added = run.estimate("hacking", Key("texts", "words_added", perturbation))
    return [*cells, Cell("–", kind="none") if p is None else Cell(fmt.p_value(p)), audit_cell(added)]


def correlation_table(run: Auditing) -> Table | None:
    """Whether longer responses score higher, of those that came to their end; None where nothing scored them."""
    found = {r.scorer: None for r in run.rows("hacking") if r.metric == "length_correlation" and r.scorer is not None}
    if not found:
        return None
    rows = tuple(
        (
            Cell(shown_name(model)),
            *(audit_cell(run.estimate("hacking", Key(model, "length_correlation", scorer=name))) for name in found),
            _left_out(run, model, next(iter(found))),
            audit_cell(run.estimate("collapse", Key(model, "truncated_rate"))),
        )
        for model in run.checkpoints
    )
    columns = (
        Column("Responses of"),
        *(Column(scorer_name(run, name), "Spearman’s ρ", numeric=True) for name in found),
        Column("finished", "n", numeric=True),
        head("truncated_rate"),
    )
    caption = f"Correlation of score and length in words, of finished responses: ρ and {INTERVAL}"
    return Table("auditing-correlation", caption, columns, rows)


def _left_out(run: Auditing, model: str, scorer: str) -> Cell:
    """How many responses the correlation is of, and how many it leaves out."""
    estimate = run.estimate("hacking", Key(model, "length_correlation", scorer=scorer))
    return Cell("–", kind="none") if estimate is None else Cell(f"{estimate.n:,}", f"{estimate.n_unscored:,} left out")


# --- Collapse and comparison ------------------------------------------------------------------------------------------


def collapse_table(run: Auditing) -> Table:
    """Signs of collapse, of every checkpoint and against the base."""
    metrics = [metric for metric in COLLAPSE if any(row.metric == metric for row in run.rows("collapse"))]
    rows = tuple((Cell(capital_label(metric), describe_audit(metric).unit), *_both(run, metric)) for metric in metrics)
    return Table("auditing-collapse", f"Signs of collapse: value and {INTERVAL}", _both_heads(run), rows)


def _both(run: Auditing, metric: str) -> Iterable[Cell]:
    for model in run.checkpoints:
        estimate = run.estimate("collapse", Key(model, metric))
        if model == BASE and metric == "matched_distinct_2":
            # Its value depends on who it is compared with.
            yield OF_BASE
        else:
            yield audit_cell(estimate)
        if model != BASE:
            yield audit_cell(run.estimate("collapse", Key(model, metric, against=BASE)))


def _both_heads(run: Auditing) -> tuple[Column, ...]:
    columns = [Column("Sign")]
    for model in run.checkpoints:
        columns.append(Column(shown_name(model), numeric=True))
        if model != BASE:
            columns.append(Column(f"{shown_name(model)} {fmt.MINUS} base", numeric=True))
    return tuple(columns)


def comparison_table(run: Auditing) -> Table | None:
    """Scores and win rates, one row a scorer and checkpoint; None where nothing scored."""
    rows = tuple(
        (
            Cell(shown_name(model), f"by {scorer_name(run, scorer)}"),
            audit_cell(run.estimate("comparison", Key(model, "score", scorer=scorer))),
            *(_against_base(run, model, metric, scorer) for metric in ("score", *AGAINST_BASE)),
        )
        for scorer in scorers_compared(run)
        for model in run.checkpoints
    )
    columns = (
        Column("Checkpoint"),
        Column("mean score", numeric=True),
        Column("difference from the base", numeric=True),
        *(head(metric) for metric in AGAINST_BASE),
    )
    return Table("auditing-comparison", f"Scores and win rates: value and {INTERVAL}", columns, rows) if rows else None


AGAINST_BASE = ("score_change_in_sd", "win_rate", "win_rate_finished", "win_rate_length_controlled")


def scorers_compared(run: Auditing) -> list[str]:
    """The scorers of the comparison: reward scorers, then gold."""
    found = {row.scorer for row in run.rows("comparison") if row.metric == "score" and row.scorer is not None}
    return [name for name in run.all_scorers if name in found]


def _against_base(run: Auditing, model: str, metric: str, scorer: str) -> Cell:
    if model == BASE:
        return OF_BASE
    return audit_cell(run.estimate("comparison", Key(model, metric, scorer=scorer, against=BASE)))


# --- Lineage and costs ------------------------------------------------------------------------------------------------


def lineage_table(run: Auditing) -> Table:
    """What training changed in the weights."""
    metrics = tuple(dict.fromkeys(row.metric for row in run.rows("lineage")))
    models = tuple(dict.fromkeys(row.model for row in run.rows("lineage")))
    rows = tuple(
        (Cell(shown_name(model)), *(audit_cell(run.estimate("lineage", Key(model, metric))) for metric in metrics))
        for model in models
    )
    return Table("auditing-lineage", "Weights against the base's", (Column("Checkpoint"), *map(head, metrics)), rows)


def costs_table(run: Auditing) -> Table:
    """What the audits cost, one row a checkpoint or scorer, then all of them."""
    found = dict.fromkeys(row.model for row in run.rows("costs"))
    models = sorted(found, key=lambda model: model == ALL_MODELS)
    metrics = dict.fromkeys(row.metric for row in run.rows("costs"))
    rows = tuple(
        (
            Cell(shown_name(model)),
            *(_cost(metric, run.measured("costs", Key(model, metric))) for metric in metrics),
        )
        for model in models
    )
    columns = (Column("Checkpoint or scorer"), *map(head, metrics))
    return Table("auditing-costs", "What the audits cost", columns, rows)


def _cost(metric: str, estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell("–", kind="none")
    return Cell(_COST_UNITS.get(metric.rpartition("_")[2], plain)(estimate.value))


_COST_UNITS: dict[str, Callable[[float], str]] = {
    "seconds": fmt.duration,
    "bytes": fmt.size,
    "tokens": lambda tokens: fmt.number(tokens, 0),
}
