"""The report card: every check with its level, its figure, its thresholds and the responses that show it.

A level is always a sign and a word, never a colour alone. Checks that are within their thresholds are listed too: a
card that is silent about what was tested says nothing. Not here: the judging, which `triptych.auditing` does.
"""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from triptych.auditing.records import Evidence, Finding, Kind, Level, NullFigure, NullSpread
from triptych.reports import format as fmt
from triptych.reports.alignment_findings import SIGNS as WARNING_SIGNS
from triptych.reports.auditing_glossary import SCORERS, describe_audit, perturbation_name
from triptych.reports.auditing_inputs import AUDITS, Auditing, at_level, shown_name
from triptych.reports.auditing_responses import Responses, place_of, shown_note
from triptych.reports.auditing_tables import ESTIMATE_HEADER, INTERVAL, audit_cell
from triptych.reports.safe_text import clip, markup
from triptych.reports.tables import Cell, Column, Table, estimate_values, to_csv

SIGNS: dict[Level, str] = {
    "severe": WARNING_SIGNS["severe"],
    "warn": WARNING_SIGNS["warn"],
    "undecided": "– not enough evidence",
    "ok": "✓ within",
}
WORDS: dict[Level, str] = {"severe": "severe finding", "warn": "warning", "undecided": "undecided check"}
"""What the findings of a level are called; checks within their thresholds are no findings."""
P_VALUES = ("p_warn", "p_warn_adjusted", "p_severe", "p_severe_adjusted")
NULL_HEADER = tuple(NullSpread.model_fields)
MAX_SENTENCE = 400
MAX_EVIDENCE = 6
"""Links of one finding; more are counted."""


class Group(NamedTuple):
    """The checks of one model."""

    title: str
    findings: Table | None
    """None where nothing is beyond a threshold."""
    undecided: Table | None
    n_undecided: int
    within: Table | None
    n_within: int


def card_groups(run: Auditing, responses: Responses) -> list[Group]:
    """The card, model by model; the model with the gravest finding first."""
    models = dict.fromkeys(finding.model for finding in run.card)
    return [_group(run, model, place, responses) for place, model in enumerate(models)]


def counted(findings: Sequence[Finding]) -> str:
    """`1 severe finding, 2 warnings and 1 note`; empty where there is none."""
    counts = {level: len(at_level(findings, level)) for level in WORDS}
    return fmt.joined([fmt.plural(n, WORDS[level]) for level, n in counts.items() if n])


def sentence_of(finding: Finding) -> str:
    """A finding in words, not too long."""
    clipped = clip(finding.sentence, MAX_SENTENCE)
    return fmt.with_true_minus(clipped.text) + ("…" if clipped.left_out else "")


def card_csv(run: Auditing) -> bytes:
    """`audit_card.csv`: every check, one a row."""
    header = ["level", "model", "audit", "rule", "metric", "category", "scorer", "against", *ESTIMATE_HEADER]
    rows = [
        [
            *(f.level, f.model, f.audit, f.rule, f.metric, f.category, f.scorer, f.against),
            *estimate_values(f.estimate),
            *(f.p, f.warn, f.severe, f.sentence, f.reason),
            *(f.p_warn, f.p_warn_adjusted, f.p_severe, f.p_severe_adjusted),
            " ".join(dict.fromkeys(evidence.prompt_id for evidence in f.evidence)),
            *([None] * len(NULL_HEADER) if f.nulls is None else f.nulls.model_dump().values()),
            f.no_nulls,
        ]
        for f in run.card
    ]
    beside = [f"nulls_{name}" for name in NULL_HEADER]
    return to_csv(
        [*header, "p", "warn", "severe", "sentence", "reason", *P_VALUES, "evidence", *beside, "no_nulls"], rows
    )


def nulls_csv(figures: Sequence[NullFigure]) -> bytes:
    """`audit_nulls.csv`: the figures of every null adapter, one a row."""
    header = ["model", "null", "rule", "metric", "category", "scorer", "against", *ESTIMATE_HEADER]
    rows = [
        [f.model, f.null, f.rule, f.metric, f.category, f.scorer, f.against, *estimate_values(f.estimate)]
        for f in figures
    ]
    return to_csv(header, rows)


def _group(run: Auditing, model: str, place: int, responses: Responses) -> Group:
    own = [finding for finding in run.card if finding.model == model]
    beyond, undecided, within = at_level(own, "severe", "warn"), at_level(own, "undecided"), at_level(own, "ok")
    name = shown_name(model)
    return Group(
        f"{name}: {counted(own) or 'nothing beyond a threshold'}",
        _table(f"auditing-card-{place}", f"Findings about {name}, the gravest first", beyond, responses),
        _table(f"auditing-card-{place}-undecided", f"Checks of {name} without enough evidence", undecided, responses),
        len(undecided),
        _table(f"auditing-card-{place}-within", f"Checks of {name} within their thresholds", within, responses),
        len(within),
    )


def _table(name: str, caption: str, findings: list[Finding], responses: Responses) -> Table | None:
    if not findings:
        return None
    has_nulls = any(finding.nulls is not None or finding.no_nulls is not None for finding in findings)
    columns = (
        Column("Finding"),
        Column("Measured", INTERVAL),
        Column("Thresholds", "warning / severe"),
        *([Column("Random changes", "of the same size")] if has_nulls else []),
        Column("Evidence"),
    )
    rows = tuple(_row(finding, responses, has_nulls=has_nulls) for finding in findings)
    return Table(name, caption, columns, rows, stacked=True)


def _row(finding: Finding, responses: Responses, *, has_nulls: bool) -> tuple[Cell, ...]:
    sentence = Markup('<span class="level {}">{}</span> <bdi>{}</bdi>').format(
        finding.level, SIGNS[finding.level], markup(sentence_of(finding))
    )
    measured = audit_cell(finding.estimate)
    if finding.reason:
        measured = measured._replace(note=f"{measured.note}; {fmt.with_true_minus(finding.reason)}")
    return (
        Cell(sentence, _about(finding), kind="finding"),
        measured,
        Cell(f"{_threshold(finding.warn)} / {_threshold(finding.severe)}"),
        *([_null_cell(finding)] if has_nulls else []),
        Cell(_evidence(finding, responses)),
    )


def _null_cell(finding: Finding) -> Cell:
    """How many random changes the figure is beyond, and by how many of their standard deviations."""
    nulls = finding.nulls
    if nulls is None:
        return Cell("–", finding.no_nulls or "", kind="none")
    z = "no spread" if nulls.z is None else f"z = {fmt.number(nulls.z, 1)}"
    return Cell(f"beyond {nulls.beyond} of {nulls.n}", f"percentile {nulls.percentile:.0f}, {z}")


def _about(finding: Finding) -> str:
    """What was measured: audit, figure, part and scorer."""
    scorer = "" if finding.scorer is None else SCORERS.get(finding.scorer) or shown_name(finding.scorer)
    parts = [
        AUDITS.get(finding.audit, shown_name(finding.audit)),
        describe_audit(shown_name(finding.metric)).axis,
        "" if finding.category is None else perturbation_name(shown_name(finding.category)),
        f"by {scorer}" if scorer else "",
    ]
    return ", ".join(part for part in parts if part)


def _threshold(value: float) -> str:
    return f"{value:g}".replace("-", fmt.MINUS)


def _evidence(finding: Finding, responses: Responses) -> Markup:
    """Links to the responses themselves; of those that the page has not, the names alone."""
    if not finding.evidence:
        return Markup("–")
    shown = []
    for evidence in finding.evidence[:MAX_EVIDENCE]:
        place = place_of(evidence)
        text = ", ".join(part for part in (shown_name(place.prompt_id), _form(evidence)) if part)
        note = f": {shown_note(evidence.note)}" if evidence.note else ""
        said = Markup("<bdi>{}</bdi>").format(markup(text + note))
        link = responses.link(evidence)
        shown.append(said if link is None else Markup('<a href="{}">{}</a>').format(link, said))
    more = len(finding.evidence) - MAX_EVIDENCE
    lines = [*shown, *([f"and {more:,} more"] if more > 0 else [])]
    return Markup().join(Markup('<span class="proof">{}</span>').format(line) for line in lines)


def _form(evidence: Evidence) -> str:
    if evidence.perturbation is not None:
        return perturbation_name(shown_name(evidence.perturbation))
    return _FORMS[evidence.kind]


_FORMS: dict[Kind, str] = {"plain": "", "limited": "limited", "greedy": "most likely"}
