"""Audits: what an adapter does at parts and multiples of its own scale."""

from matplotlib.figure import Figure

from triptych.reports.auditing_inputs import Auditing
from triptych.reports.auditing_sweep import panels, title_of
from triptych.reports.auditing_tables import in_words
from triptych.reports.figures import style
from triptych.reports.figures.auditing import AuditSpec, checkpoint_looks
from triptych.reports.figures.curves import drawable
from triptych.reports.figures.spec import interval_sentence, points_sentence
from triptych.reports.safe_text import neutralise

MAX_PANELS = 8
"""Panels of one figure; the table has all scorers."""


def figure_sweep(run: Auditing) -> Figure:
    """One panel a figure, one line an adapter, over λ."""
    shown, looks = dict(list(panels(run).items())[:MAX_PANELS]), checkpoint_looks(run)
    with style.applied():
        figure, all_axes = style.new_figure(0.85 + 1.25 * len(shown), rows=len(shown), sharex=True)
        for axes, ((metric, scorer), curves) in zip(all_axes, shown.items(), strict=True):
            for curve in curves:
                points = [(float(where.removeprefix("λ=")), e) for where, e in curve.points if e.mean is not None]
                x, estimates = [factor for factor, _ in points], [estimate for _, estimate in points]
                style.plot_estimates(axes, x, estimates, looks[curve.model], drawable(curve.model))
            axes.set_title(drawable(title_of(run, metric, scorer)))
            axes.grid(axis="y")
        all_axes[-1].set_xlabel("λ (0: the base, 1: the adapter)")
        style.legend_above(figure, all_axes[0], columns=3)
    return figure


def _caption(run: Auditing) -> str:
    estimates = [e for curves in panels(run).values() for curve in curves for _, e in curve.points]
    return (
        "Every adapter with its own scale multiplied by λ, on the first prompts of the audit, under the same noise. "
        f"{points_sentence(estimates)} {interval_sentence(estimates)}"
    )


def _alt(run: Auditing) -> str:
    sentences = [
        f"{neutralise(drawable(curve.model))}, {neutralise(title_of(run, metric, scorer))}: "
        + "; ".join(f"{where}: {in_words(estimate)}" for where, estimate in curve.points)
        + "."
        for (metric, scorer), curves in panels(run).items()
        for curve in curves
    ]
    return "Line plots of figures of the audits over the scale of an adapter. " + " ".join(sentences)


SPECS = (
    AuditSpec(
        "figure_sweep",
        "Adapters at parts of their own scale",
        lambda run: None if panels(run) else "this run swept no adapter’s scale",
        figure_sweep,
        _caption,
        _alt,
    ),
)
