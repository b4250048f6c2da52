"""Figures 9 and 10: what perturbations of a text do to its score, on average and text by text.

Scores of different scorers have different units, so every scorer has a panel with an axis of its own. The neutral
control stands apart below the others: what it gains, a perturbation gains by length alone.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from triptych.auditing.records import AuditRecord
from triptych.reports.auditing_glossary import SCORERS, perturbation_name
from triptych.reports.auditing_inputs import CONTROL, LOGPROB, Auditing, Key, Scorer
from triptych.reports.auditing_tables import in_words
from triptych.reports.figures import style
from triptych.reports.figures.auditing import MAX_SCORERS, AuditSpec, category_rows
from triptych.reports.figures.curves import drawable
from triptych.reports.figures.spec import BOX_KEY, interval_sentence, points_sentence
from triptych.reports.format import number, p_value, plural, share
from triptych.reports.inputs import FloatArray
from triptych.reports.safe_text import neutralise

SIGNIFICANT = 0.05
MAX_ON_LINE = 14
"""A longer name of a checkpoint gets a line of its own in the title of its panel."""
GAP = 0.6
"""Rows between the control and the others."""
ROW, PANEL, MARGINS = 0.2, 0.62, 0.35
"""Inches: a row, what stands around a panel, and what stands around all."""
MARKERS = {True: "D", False: "o"}
"""By whether the change is significant; open where it is not."""
UNITS = {"implicit_reward": "change (nats)", "mean_logprob": "change (nats per token)"}


def figure_09(run: Auditing) -> Figure:
    """Mean change of the score by perturbation, one panel a scorer."""
    panels = _panels(run)
    with style.applied():
        figure, all_axes = _stack(run, panels)
        for axes, scorer in zip(all_axes, panels, strict=True):
            for row, record in _changes(run, scorer):
                _draw_change(axes, row, record, _colour(scorer))
            _finish(axes, run, scorer)
        figure.legend(handles=_key(), loc="outside upper left", ncols=2, columnspacing=1.4)
    return figure


def figure_10(run: Auditing) -> Figure:
    """Change of the score of every text by perturbation, one panel a scorer."""
    panels = _text_panels(run)
    with style.applied():
        figure, all_axes = _stack(run, panels)
        for axes, scorer in zip(all_axes, panels, strict=True):
            for row, values in _texts(run, scorer):
                box = style.draw_box(axes, row, values, _colour(scorer), height=0.55)
                outside = values[(values < box.low) | (values > box.high)]
                axes.plot(outside, np.full(len(outside), row), ".", color=_colour(scorer), markersize=3)
            _finish(axes, run, scorer)
    return figure


def _stack(run: Auditing, panels: Sequence[Scorer]) -> tuple[Figure, list[Axes]]:
    height = MARGINS + len(panels) * (PANEL + ROW * (len(run.perturbations) + GAP))
    return style.new_figure(height, rows=len(panels))


def _draw_change(axes: Axes, row: float, record: AuditRecord, colour: str) -> None:
    is_significant = record.p is not None and record.p < SIGNIFICANT
    axes.errorbar(
        record.estimate.value,
        row,
        xerr=style.errors([record.estimate]),
        color=colour,
        marker=MARKERS[is_significant],
        markerfacecolor=colour if is_significant else "none",
        capsize=2.5,
        elinewidth=1.1,
    )


def _finish(axes: Axes, run: Auditing, scorer: Scorer) -> None:
    rows = _rows(run)
    names = {perturbation: perturbation_name(perturbation) for perturbation in rows}
    category_rows(axes, ["" for _ in rows])
    axes.set_yticks(list(rows.values()), [drawable(name) for name in names.values()])
    axes.set_ylim(max(rows.values()) + 0.55, -0.55)
    axes.use_sticky_edges = False  # boxes would end at the frame
    axes.margins(x=0.05)
    axes.axvline(0, color=style.INK, linewidth=0.8, zorder=1)
    if CONTROL in rows and len(rows) > 1:
        axes.axhline(rows[CONTROL] - (1 + GAP) / 2, color=style.INK, linewidth=0.6, linestyle=":")
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.set_title(_title(run, scorer))
    axes.set_xlabel(UNITS.get(scorer.name, "change of the score"))
    axes.grid(axis="x")


def _key() -> list[Line2D]:
    labels = {True: f"p < {SIGNIFICANT:g}, corrected", False: "not significant"}
    return [
        Line2D(
            [],
            [],
            color=style.INK,
            linestyle="none",
            marker=MARKERS[is_it],
            markerfacecolor=style.INK if is_it else "none",
            label=label,
        )
        for is_it, label in labels.items()
    ]


def _rows(run: Auditing) -> dict[str, float]:
    """Where every perturbation is drawn; the control a little apart from the others."""
    return {
        perturbation: place + (GAP if perturbation == CONTROL and place else 0.0)
        for place, perturbation in enumerate(run.perturbations)
    }


def _candidates(run: Auditing) -> list[Scorer]:
    """Reward scorers and implicit rewards; mean log-probabilities only where there is nothing else."""
    scorers = [scorer for scorer in run.text_scorers if scorer.name != LOGPROB]
    return scorers or list(run.text_scorers)


def _panels(run: Auditing) -> list[Scorer]:
    return [scorer for scorer in _candidates(run) if _changes(run, scorer)][:MAX_SCORERS]


def _text_panels(run: Auditing) -> list[Scorer]:
    return [scorer for scorer in _candidates(run) if _texts(run, scorer)][:MAX_SCORERS]


def _changes(run: Auditing, scorer: Scorer) -> list[tuple[float, AuditRecord]]:
    found = (
        (row, run.record("hacking", Key(scorer.model, "score_change", perturbation, scorer.name)))
        for perturbation, row in _rows(run).items()
    )
    return [(row, record) for row, record in found if record is not None and record.estimate.mean is not None]


def _texts(run: Auditing, scorer: Scorer) -> list[tuple[float, FloatArray]]:
    found = ((row, run.changes.get((scorer.column, perturbation))) for perturbation, row in _rows(run).items())
    return [(row, values) for row, values in found if values is not None and values.size]


def _colour(scorer: Scorer) -> str:
    return style.PURPLE if scorer.is_surrogate else style.BLUE


def _title(run: Auditing, scorer: Scorer) -> str:
    if scorer.is_surrogate:
        name = drawable(scorer.model)
        return f"{SCORERS[scorer.name]} of" + ("\n" if len(name) > MAX_ON_LINE else " ") + name
    return drawable(scorer.name) + run.gold_sign(scorer.name)


# --- In words ---------------------------------------------------------------------------------------------------------


def _left_out(run: Auditing, shown: Sequence[Scorer]) -> str:
    more = len(_candidates(run)) - len(shown)
    return f" {plural(more, 'further scorer')} in the tables alone." if more > 0 else ""


def _figure_09_caption(run: Auditing) -> str:
    panels = _panels(run)
    estimates = [record.estimate for scorer in panels for _, record in _changes(run, scorer)]
    return (
        "Mean change of the score when a response of the base to a plain prompt is perturbed. Scorers have units of "
        "their own: compare within a panel. Below the dotted line: the neutral control, which adds as many words and "
        f"no claim. Filled diamonds: p < {SIGNIFICANT:g} by a sign-flip test, corrected over the perturbations of a "
        f"scorer (Holm); open circles: not. {points_sentence(estimates)} {interval_sentence(estimates)}"
        f"{_left_out(run, panels)}"
    )


def _figure_09_alt(run: Auditing) -> str:
    sentences = []
    for scorer in _panels(run):
        values = [_spoken(record) for _, record in _changes(run, scorer)]
        sentences.append(f"{_said(run, scorer)}: {'; '.join(values)}.")
    return "Mean change of the score by perturbation, with intervals. " + " ".join(sentences)


def _said(run: Auditing, scorer: Scorer) -> str:
    return neutralise(_title(run, scorer).replace("\n", " "))


def _spoken(record: AuditRecord) -> str:
    p = "" if record.p is None else f" (p {'' if record.p < 0.001 else '= '}{p_value(record.p)})"
    return f"{neutralise(drawable(perturbation_name(record.category or '')))} {in_words(record.estimate)}{p}"


def _figure_10_caption(run: Auditing) -> str:
    panels = _text_panels(run)
    sizes = sorted({values.size for scorer in panels for _, values in _texts(run, scorer)})
    n = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    return (
        f"Change of the score of every single text. {BOX_KEY} Dots: values beyond the whiskers. Below the dotted line: "
        f"the neutral control. n = {n} texts a box, one a prompt.{_left_out(run, panels)}"
    )


def _figure_10_alt(run: Auditing) -> str:
    names = {row: neutralise(drawable(perturbation_name(name))) for name, row in _rows(run).items()}
    sentences = []
    for scorer in _text_panels(run):
        values = [
            f"{names[row]} median {number(float(np.median(of)), 2)}, {share(float((of > 0).mean()))} rise"
            for row, of in _texts(run, scorer)
        ]
        sentences.append(f"{_said(run, scorer)}: {'; '.join(values)}.")
    return "Box plots of the change of the score by perturbation, text by text. " + " ".join(sentences)


SPECS = (
    AuditSpec(
        "figure_09",
        "Figure 9. Change of the mean score by perturbation",
        lambda run: None if _panels(run) else "no scorer scored perturbed texts",
        figure_09,
        _figure_09_caption,
        _figure_09_alt,
    ),
    AuditSpec(
        "figure_10",
        "Figure 10. Change of the score of each text by perturbation",
        lambda run: None if _text_panels(run) else "this run kept no scores of perturbed texts",
        figure_10,
        _figure_10_caption,
        _figure_10_alt,
    ),
)
