"""The alignment section: training of reward model, DPO and GRPO; curves, final figures, warnings, settings, costs."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from triptych.alignment.state import Warned
from triptych.reports import alignment_tables as tables
from triptych.reports import format as fmt
from triptych.reports.alignment_findings import (
    LEVELS,
    SIGNS,
    capital,
    details,
    findings,
    has_intervals,
    headline,
    sentence_of,
)
from triptych.reports.alignment_inputs import Alignment, TrainingRun, read_alignment
from triptych.reports.digests import alignment_digest
from triptych.reports.figures import TRAINING_FIGURES, render
from triptych.reports.figures.training import shown
from triptych.reports.glossary import TRAINING
from triptych.reports.html import render as fill
from triptych.reports.html import render_figures, render_tables
from triptych.reports.sections import Part, Section
from triptych.reports.settings import Setting

MAX_WARNINGS = 12
"""Shown at once; the rest of a run's stand in a fold."""

RESULTS, PAPER, SETTINGS = (f"tables/alignment_{name}.csv" for name in ("results", "paper", "settings"))
PAPER_INTRO = (
    "The paper prints one number for each, without an interval, and does not say whether the end of text counts. A "
    "perplexity depends on the model and the text as well: compare how it changes, not how high it is."
)


class WarningView(NamedTuple):
    """One warning, ready for the page."""

    level: str
    sign: str
    where: str
    sentence: str


class WarningGroup(NamedTuple):
    """The warnings of one run."""

    title: str
    first: tuple[WarningView, ...]
    rest: tuple[WarningView, ...]


def alignment_section(run_dir: Path) -> Section | None:
    """The section, or None where the run directory has no training run."""
    run = read_alignment(run_dir)
    if run is None:
        return None
    drawn = [render(spec, run) for spec in TRAINING_FIGURES if spec.method in run.runs]
    parts = (
        _brief_part(run),
        _warnings_part(run),
        *_results_part(run),
        *_paper_part(run),
        Part("curves", "Training curves", render_figures(drawn)),
        *_measures_part(run),
        _settings_part(run),
        Part("costs", "Training costs", render_tables([tables.costs_table(run)])),
    )
    return Section(
        "alignment",
        "Alignment",
        findings(run),
        parts,
        tuple(drawn),
        _table_files(run),
        alignment_digest(run),
        settings=_named_settings(run),
        rates={f"align.{method}": rate for method, of in run.runs.items() if (rate := tables.speed(of.state))},
    )


def _named_settings(run: Alignment) -> tuple[Setting, ...]:
    """The settings of all runs, each with the run it is of."""
    return tuple(
        setting._replace(name=f"{tables.TITLES[method]}: {setting.name}")
        for method, of in run.runs.items()
        for setting in tables.settings(of, run.manifest.config)
    )


def _brief_part(run: Alignment) -> Part:
    paragraphs = [" ".join([*headline(of), *details(of)]) for of in run.runs.values()]
    body = fill("alignment_brief.html.j2", paragraphs=paragraphs, has_intervals=has_intervals(run))
    return Part("brief", "Training in brief", body)


def _warnings_part(run: Alignment) -> Part:
    groups = [_group(of) for of in run.runs.values() if of.state.warnings]
    without = [tables.TITLES[method] for method, of in run.runs.items() if not of.state.warnings]
    body = fill("alignment_warnings.html.j2", groups=groups, without=fmt.joined(without))
    return Part("warnings", "Warnings", body)


def _group(run: TrainingRun) -> WarningGroup:
    """The gravest first where there are more than can be shown at once, else in the order of steps."""
    views = tuple(_view(warned) for warned in run.state.warnings)
    if len(views) > MAX_WARNINGS:
        views = tuple(sorted(views, key=lambda view: list(LEVELS).index(view.level)))
    title = f"{tables.TITLES[run.method]}: {_counted(run.state.warnings)}"
    return WarningGroup(capital(title), views[:MAX_WARNINGS], views[MAX_WARNINGS:])


def _view(warned: Warned) -> WarningView:
    where = "before training" if warned.step is None else f"step {warned.step:,}"
    return WarningView(warned.level, SIGNS[warned.level], f"{where}, {warned.signal}", capital(sentence_of(warned)))


def _counted(warnings: tuple[Warned, ...]) -> str:
    counts = {level: sum(warned.level == level for warned in warnings) for level in LEVELS}
    return fmt.joined([fmt.plural(count, LEVELS[level]) for level, count in counts.items() if count])


def _results_part(run: Alignment) -> Iterator[Part]:
    listed = [tables.results_table(of) for of in run.runs.values() if of.state.figures]
    if listed:
        yield Part("results", "Training results", render_tables(listed, file=RESULTS))


def _paper_part(run: Alignment) -> Iterator[Part]:
    if (table := tables.paper_table(run)) is not None:
        yield Part("paper", "Training beside the paper", render_tables([table], PAPER_INTRO, PAPER))


def _measures_part(run: Alignment) -> Iterator[Part]:
    groups = [(capital(tables.TITLES[method]), _definitions(of)) for method, of in run.runs.items()]
    if any(definitions for _, definitions in groups):
        yield Part("measures", "What the curves show", fill("alignment_measures.html.j2", groups=groups))


def _definitions(of: TrainingRun) -> list[tuple[str, str]]:
    """Label and definition of every value in the figures of a run."""
    specs = [spec for spec in TRAINING_FIGURES if spec.method == of.method]
    names = {trace.name for spec in specs for panel in shown(of, spec) for trace in panel.traces}
    return [(info.axis, info.definition) for name, info in TRAINING[of.method].items() if name in names]


def _settings_part(run: Alignment) -> Part:
    listed = [table for of in run.runs.values() for table in tables.settings_tables(of, run.manifest.config)]
    return Part("settings", "Training settings", render_tables(listed, file=SETTINGS))


def _table_files(run: Alignment) -> dict[str, bytes]:
    files = {SETTINGS: tables.settings_csv(run)}
    if any(of.state.figures for of in run.runs.values()):
        files[RESULTS] = tables.results_csv(run)
    if tables.paper_table(run) is not None:
        files[PAPER] = tables.paper_csv(run)
    return files
