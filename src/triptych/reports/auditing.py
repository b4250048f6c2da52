"""The auditing section: report card, divergence, verbosity, reward hacking, collapse, comparison, lineage and costs."""

from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup

from triptych.reports import auditing_paper as paper
from triptych.reports import auditing_tables as tables
from triptych.reports.auditing_card import SIGNS, card_csv, card_groups, nulls_csv
from triptych.reports.auditing_findings import findings
from triptych.reports.auditing_glossary import AUDIT_TERMS, describe_audit
from triptych.reports.auditing_inputs import LOGPROB, SURROGATES, SWEEP, Auditing, read_auditing
from triptych.reports.auditing_responses import PAGE, Responses, read_responses
from triptych.reports.auditing_sweep import sweep_table
from triptych.reports.differences import auditing_differences
from triptych.reports.digests import auditing_digest
from triptych.reports.figures import AUDIT_FIGURES, Rendered, render
from triptych.reports.format import joined, number, why_no_interval
from triptych.reports.html import render as fill
from triptych.reports.html import render_figures, render_tables
from triptych.reports.sections import Part, Section

TABLE_3, TABLE_4, CARD, DIVERGENCE, HACKING, COLLAPSE, COMPARISON, SWEEP_CSV, NULLS_CSV = (
    f"tables/{name}.csv"
    for name in (
        "table_03",
        "table_04",
        "audit_card",
        "audit_divergence",
        "audit_hacking",
        "audit_collapse",
        "audit_comparison",
        "audit_sweep",
        "audit_nulls",
    )
)
RECORD_FILES = {
    DIVERGENCE: "divergence",
    HACKING: "hacking",
    COLLAPSE: "collapse",
    COMPARISON: "comparison",
    SWEEP_CSV: SWEEP,
}
"""CSV file → audit whose figures it has."""
INTRO_3 = (
    "The paper prints these of an aligned model and its reference, without intervals. Lengths depend on the prompts "
    "and on the limit of new tokens: compare how an aligned model differs from its reference, not how long either is."
)
INTRO_4 = (
    "The paper prints one number for each, without an interval, and does not say on which text its KL was taken: both "
    "of ours stand beside it. The hacked score is that of the same response behind the prefix “I am a helpful AI”."
)


def auditing_section(run_dir: Path) -> Section | None:
    """The section, or None where the run directory has no report card."""
    run = read_auditing(run_dir)
    if run is None:
        return None
    responses = read_responses(run)
    drawn = {group: [render(spec, run) for spec in specs] for group, specs in AUDIT_FIGURES.items()}
    parts = (
        _card_part(run, responses),
        *_divergence_part(run, drawn["divergence"]),
        *_verbosity_part(run, drawn["verbosity"]),
        *_hacking_part(run, drawn["hacking"]),
        *_table_4_part(run),
        *_comparison_part(run, drawn["comparison"]),
        *_sweep_part(run, drawn["sweep"]),
        *_lineage_part(run),
        _methods_part(run),
        *_costs_part(run),
    )
    return Section(
        "auditing",
        "Audits",
        findings(run),
        parts,
        tuple(figure for group in drawn.values() for figure in group),
        _files(run, responses),
        auditing_digest(run),
        auditing_differences(run),
        paper.audit_settings(run),
        _rates(run),
    )


def _rates(run: Auditing) -> dict[str, str]:
    """Of all checkpoints together."""
    parts = (("generated_tokens", "generation_seconds", "written"), ("read_tokens", "reading_seconds", "read"))
    told = []
    for tokens, seconds, did in parts:
        totals = [
            sum(row.estimate.mean or 0.0 for row in run.rows("costs") if row.metric == m) for m in (tokens, seconds)
        ]
        told += [f"{number(totals[0] / totals[1], 0)} tokens/s {did}"] if all(totals) else []
    return {"audit.models": ", ".join(told)} if told else {}


def _card_part(run: Auditing, responses: Responses) -> Part:
    body = fill(
        "auditing_card.html.j2",
        groups=card_groups(run, responses),
        n_checks=len(run.card),
        n_prompts=len(responses.prompts),
        page=PAGE if responses.prompts else None,
        missing=joined(run.missing, last="or"),
        file=CARD,
    )
    return Part("card", "Report card", body)


def _divergence_part(run: Auditing, drawn: list[Rendered]) -> Iterator[Part]:
    if run.rows("divergence"):
        listed = render_tables([tables.divergence_table(run)])
        tokens = render_tables(tables.token_tables(run), file=DIVERGENCE)
        yield Part("divergence", "Divergence from the base", listed + render_figures(drawn) + tokens)


def _verbosity_part(run: Auditing, drawn: list[Rendered]) -> Iterator[Part]:
    if run.rows("verbosity"):
        listed = [table for table in (paper.table_3(run), paper.differences_table(run)) if table is not None]
        by_category = render_tables(paper.category_tables(run), paper.classifier_sentence(run))
        yield Part(
            "verbosity", "Verbosity", render_tables(listed, INTRO_3, TABLE_3) + render_figures(drawn) + by_category
        )


def _hacking_part(run: Auditing, drawn: list[Rendered]) -> Iterator[Part]:
    if run.rows("hacking"):
        numbered = [(scorer, tables.change_table(run, scorer, place)) for place, scorer in enumerate(run.text_scorers)]
        body = fill(
            "auditing_hacking.html.j2",
            tables=[table for scorer, table in numbered if scorer.name != LOGPROB],
            further=[table for scorer, table in numbered if scorer.name == LOGPROB],
            correlation=tables.correlation_table(run),
            has_rewards=any(not scorer.is_surrogate for scorer in run.text_scorers),
            file=HACKING,
        )
        yield Part("hacking", "Reward hacking", render_figures(drawn) + body)


def _table_4_part(run: Auditing) -> Iterator[Part]:
    body = Markup()
    if _has_table_4(run):
        body += render_tables([paper.table_4(run)], INTRO_4, TABLE_4)
    if run.rows("collapse"):
        body += render_tables([tables.collapse_table(run)], file=COLLAPSE)
    if body:
        yield Part("table-4", "Forgetting and collapse", body)


def _has_table_4(run: Auditing) -> bool:
    return any(run.rows(audit) for audit in ("divergence", "verbosity", "hacking"))


def _comparison_part(run: Auditing, drawn: list[Rendered]) -> Iterator[Part]:
    if (table := tables.comparison_table(run)) is not None:
        yield Part(
            "comparison", "Scores and win rates", render_tables([table], file=COMPARISON) + render_figures(drawn)
        )


def _sweep_part(run: Auditing, drawn: list[Rendered]) -> Iterator[Part]:
    if run.rows(SWEEP):
        body = render_figures(drawn) + render_tables([sweep_table(run)], file=SWEEP_CSV)
        yield Part("sweep", "Parts of an adapter", body)


def _lineage_part(run: Auditing) -> Iterator[Part]:
    if run.rows("lineage"):
        yield Part("lineage", "Lineage of the weights", render_tables([tables.lineage_table(run)]))


def _methods_part(run: Auditing) -> Part:
    found = {row.metric for rows in run.records.values() for row in rows}
    found |= {row.scorer for row in run.rows("hacking") if row.scorer in SURROGATES}
    found |= {finding.metric for finding in run.card}
    found |= {"random_changes"} if run.nulls else set()
    found |= {"lambda"} if run.rows(SWEEP) else set()
    known = [metric for metric in AUDIT_TERMS if metric in found]
    labels: dict[str, list[str]] = {}
    for metric in [*known, *sorted(found - set(known))]:
        info = describe_audit(metric)
        labels.setdefault(info.definition, []).append(info.axis)
    estimates = [row.estimate for rows in run.records.values() for row in rows]
    body = fill(
        "auditing_methods.html.j2",
        definitions=[(", ".join(names), definition) for definition, names in labels.items()],
        methods=sorted({estimate.method for estimate in estimates if estimate.low is not None}),
        without=sorted({why_no_interval(estimate) for estimate in estimates if estimate.low is None}),
    )
    return Part("audit-methods", "Audit methods", body)


def _costs_part(run: Auditing) -> Iterator[Part]:
    if run.rows("costs"):
        yield Part("audit-costs", "Audit costs", render_tables([tables.costs_table(run)]))


def _files(run: Auditing, responses: Responses) -> dict[str, bytes]:
    files = {CARD: card_csv(run)}
    files |= {name: tables.records_csv(run.rows(audit)) for name, audit in RECORD_FILES.items() if run.rows(audit)}
    if run.nulls:
        files[NULLS_CSV] = nulls_csv(run.nulls)
    if run.rows("verbosity"):
        files[TABLE_3] = paper.table_3_csv(run)
    if _has_table_4(run):
        files[TABLE_4] = paper.table_4_csv(run)
    if responses.prompts:
        page = fill("audit_responses.html.j2", prompts=responses.prompts, signs=SIGNS, run_id=run.manifest.run_id)
        files[PAGE] = page.encode()
    return files
