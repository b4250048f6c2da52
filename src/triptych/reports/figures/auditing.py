"""Audits: KL by position in the answer, figure 8 (lengths by category of prompt), and scores against the distance.

Every checkpoint has one look in all of them, by its place in the run; the base is grey. Not here: figures 9 and 10
(`triptych.reports.figures.hacking`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from triptych.auditing.records import BASE
from triptych.records import Estimate
from triptych.reports.auditing_inputs import CATEGORIES, Auditing, Key, Lengths
from triptych.reports.auditing_tables import in_words, scorers_compared
from triptych.reports.figures import style
from triptych.reports.figures.curves import LOG_FROM, drawable
from triptych.reports.figures.spec import BOX_KEY, interval_sentence, points_sentence
from triptych.reports.figures.style import Look
from triptych.reports.format import BOUNDS, joined, number, plural
from triptych.reports.inputs import FloatArray
from triptych.reports.safe_text import neutralise

BASE_LOOK = Look(style.GREY, "D", "-")
LOOKS = (
    Look(style.BLUE, "o", "-"),
    Look(style.ORANGE, "s", "--"),
    Look(style.PURPLE, "^", "-."),
    Look(style.TEAL, "v", ":"),
    Look(style.PINK, "P", "-"),
    Look(style.GREEN, "X", "--"),
)
POSITION_PANELS = (
    ("kl_own_by_position", "on own responses"),
    ("kl_chosen_by_position", "on held-out chosen answers"),
)
MAX_SCORERS = 8
"""Panels of one figure; the tables have all scorers."""


class AuditSpec(NamedTuple):
    """One figure of the audits; `FigureSpec` is that of the decoding panel."""

    name: str
    """Stem of its files."""
    title: str
    absent: Callable[[Auditing], str | None]
    """Why this run has no such figure; None where it has."""
    draw: Callable[[Auditing], Figure]
    caption: Callable[[Auditing], str]
    """What is shown: n, units, and what the interval is."""
    alt: Callable[[Auditing], str]
    """The figure in words, with its numbers, for those who do not see it."""


def checkpoint_looks(run: Auditing) -> dict[str, Look]:
    """Colour, marker and line of every checkpoint, by its place in the run."""
    others = {model: LOOKS[place % len(LOOKS)] for place, model in enumerate(run.adapters)}
    return {model: others.get(model, BASE_LOOK) for model in run.checkpoints}


# --- KL by position ---------------------------------------------------------------------------------------------------


def figure_kl_position(run: Auditing) -> Figure:
    """Exact KL from the base at ranges of positions, one line a checkpoint."""
    panels, looks = _position_panels(run), checkpoint_looks(run)
    with style.applied():
        figure, all_axes = style.new_figure(0.85 + 1.75 * len(panels), rows=len(panels), sharex=True)
        for axes, (metric, title) in zip(all_axes, panels, strict=True):
            _position_lines(axes, run, metric, looks)
            axes.set_title(title)
        ranges = _ranges(run)
        all_axes[-1].set_xticks(range(len(ranges)), ranges, rotation=40 if len(ranges) > 6 else 0)
        all_axes[-1].set_xlabel("position in the answer (tokens)")
        figure.supylabel("KL from the base (nats per token)", fontsize=9)
        style.legend_above(figure, all_axes[0], columns=3)
    return figure


def _position_lines(axes: Axes, run: Auditing, metric: str, looks: dict[str, Look]) -> None:
    ranges = _ranges(run)
    for place, model in enumerate(run.adapters):
        points = _positions(run, model, metric)
        shift = 0.1 * (place - (len(run.adapters) - 1) / 2)  # so that intervals at one range do not hide each other
        x = [ranges.index(name) + shift for name, _ in points]
        style.plot_estimates(axes, x, [estimate for _, estimate in points], looks[model], drawable(model))
    if _spans_decades(_position_estimates(run)):
        style.log_scale(axes)
    else:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.grid(axis="y")


def _spans_decades(estimates: Sequence[Estimate]) -> bool:
    """Whether checkpoints differ so much that on a plain axis the nearer would lie on its floor."""
    values = [estimate.value for estimate in estimates]
    ends = [value if e.low is None else e.low for value, e in zip(values, estimates, strict=True)]
    return min(ends) > 0 and max(values) >= LOG_FROM * min(values)


def _position_panels(run: Auditing) -> list[tuple[str, str]]:
    return [
        (metric, title)
        for metric, title in POSITION_PANELS
        if any(_positions(run, model, metric) for model in run.adapters)
    ]


def _ranges(run: Auditing) -> list[str]:
    """Ranges of positions in order: of both panels, by where they begin."""
    metrics = [metric for metric, _ in POSITION_PANELS]
    found = dict.fromkeys(row.category or "" for row in run.rows("divergence") if row.metric in metrics)
    return sorted(found, key=lambda name: int(digits) if (digits := name.partition("–")[0]).isdecimal() else 0)


def _positions(run: Auditing, model: str, metric: str) -> list[tuple[str, Estimate]]:
    found = ((name, run.measured("divergence", Key(model, metric, name))) for name in _ranges(run))
    return [(name, estimate) for name, estimate in found if estimate is not None]


def _position_estimates(run: Auditing) -> list[Estimate]:
    return [e for metric, _ in POSITION_PANELS for model in run.adapters for _, e in _positions(run, model, metric)]


def _position_caption(run: Auditing) -> str:
    estimates = _position_estimates(run)
    return (
        "Exact KL from the base over the whole vocabulary, averaged over the tokens at a range of positions in the "
        "answer; position 0 is the first token. Few answers reach the last positions. "
        f"{points_sentence(estimates)} {interval_sentence(estimates)}"
    )


def _position_alt(run: Auditing) -> str:
    sentences = [
        f"{neutralise(drawable(model))}, {title}: {'; '.join(f'{name}: {in_words(e)}' for name, e in points)}."
        for metric, title in POSITION_PANELS
        for model in run.adapters
        if (points := _positions(run, model, metric))
    ]
    return "Line plots of the KL from the base by position in the answer. " + " ".join(sentences)


# --- Figure 8 ---------------------------------------------------------------------------------------------------------


def figure_08(run: Auditing) -> Figure:
    """Box plots of response lengths: one panel a category of prompts, one box a checkpoint."""
    panels, looks = _length_panels(run), checkpoint_looks(run)
    limit = max(1.0, *(float(values.max()) for boxes in panels.values() for values in boxes.values()))
    with style.applied():
        height = 0.65 + len(panels) * (0.3 + 0.27 * len(run.checkpoints))
        figure, all_axes = style.new_figure(height, rows=len(panels), sharex=True)
        for axes, (category, boxes) in zip(all_axes, panels.items(), strict=True):
            for row, (model, values) in enumerate(boxes.items()):
                style.draw_box(axes, row, values, looks[model].colour)
            category_rows(axes, [drawable(model) for model in boxes])
            axes.set_title(category)
            style.note(axes, f"n = {_sizes(boxes)}")
            axes.grid(axis="x")
        all_axes[-1].set(xlim=(-0.02 * limit, 1.03 * limit), xlabel="tokens of a response")
    return figure


def category_rows(axes: Axes, names: Sequence[str]) -> None:
    """One row a name, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _length_panels(run: Auditing) -> dict[str, dict[str, FloatArray]]:
    """Tokens by category and checkpoint; what has none is left out."""
    panels: dict[str, dict[str, FloatArray]] = {}
    for category in CATEGORIES:
        found = {model: _plain(run, model, category) for model in run.checkpoints}
        if boxes := {model: values for model, values in found.items() if values.size}:
            panels[category] = boxes
    return panels


def _plain(run: Auditing, model: str, category: str) -> FloatArray:
    lengths: Lengths | None = run.lengths.get((model, "plain"))
    return np.empty(0, dtype=np.float64) if lengths is None else lengths.of(category)


def _sizes(boxes: dict[str, FloatArray]) -> str:
    """`84`, or `82 to 84` where checkpoints differ."""
    sizes = sorted({values.size for values in boxes.values()})
    return f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"


def _lengths_caption(run: Auditing) -> str:
    panels = _length_panels(run)
    n = "; ".join(f"{_sizes(boxes)} {category}" for category, boxes in panels.items())
    absent = [category for category in CATEGORIES if category not in panels]
    without = f" This run has no {joined(absent, last='or')} prompt." if absent else ""
    return (
        f"Tokens of each response to a plain prompt, the end-of-sequence token not counted. {BOX_KEY} Responses at the "
        f"right edge may have been cut by the token limit. n = {n} (responses of each checkpoint).{without} Intervals "
        "stand in the tables."
    )


def _lengths_alt(run: Auditing) -> str:
    sentences = []
    for category, boxes in _length_panels(run).items():
        values = [
            f"{neutralise(drawable(model))} median {_bound(run, model, 'tokens_median', category)}"
            f"{number(float(np.median(of)), 0)}, mean {_bound(run, model, 'tokens_mean', category)}"
            f"{number(of.mean(), 1)}"
            for model, of in boxes.items()
        ]
        sentences.append(f"{category}: {'; '.join(values)}.")
    return "Grouped box plots of response lengths in tokens by category of prompt. " + " ".join(sentences)


def _bound(run: Auditing, model: str, metric: str, category: str) -> str:
    """The sign before a figure of lengths that the token limit cut."""
    estimate = run.estimate("verbosity", Key(model, metric, category))
    return "" if estimate is None else BOUNDS[estimate.bound]


# --- Scores against the distance --------------------------------------------------------------------------------------


def figure_overoptimisation(run: Auditing) -> Figure:
    """Scores against √KL: one panel a scorer, one point a checkpoint.

    Source: Gao et al. 2023, "Scaling laws for reward model overoptimization", whose KL is that of whole completions;
    here it is per token.
    """
    panels, looks = _drift_panels(run), checkpoint_looks(run)
    with style.applied():
        figure, all_axes = style.new_figure(0.75 + 1.45 * len(panels), rows=len(panels), sharex=True)
        for axes, (scorer, points) in zip(all_axes, panels.items(), strict=True):
            for model, (distance, score) in points.items():
                _point(axes, distance, score, looks[model], drawable(model))
            if (base := points.get(BASE)) is not None:
                axes.axhline(base[1].value, color=style.INK, linewidth=0.8, linestyle=":", zorder=1)
            axes.set_title(drawable(scorer) + run.gold_sign(scorer))
            axes.margins(x=0.08, y=0.2)
            axes.grid()
        all_axes[-1].set_xlabel("√KL from the base (KL in nats per token)")
        figure.supylabel("mean score", fontsize=9)
        style.legend_above(figure, all_axes[0], columns=3)
    return figure


def _point(axes: Axes, distance: Estimate, score: Estimate, look: Look, label: str) -> None:
    axes.errorbar(
        distance.value,
        score.value,
        xerr=style.errors([distance]),
        yerr=style.errors([score]),
        color=look.colour,
        marker=look.marker,
        markersize=6,
        linestyle="none",
        capsize=2.5,
        elinewidth=1.1,
        label=label,
    )


_AT_BASE = Estimate(mean=0.0, low=None, high=None, n=0, n_clusters=0, method="no interval: by definition")


def _drift_panels(run: Auditing) -> dict[str, dict[str, tuple[Estimate, Estimate]]]:
    """Distance and score by scorer and checkpoint; scorers with a single point show nothing and are left out."""
    panels = {}
    for scorer in scorers_compared(run)[:MAX_SCORERS]:
        points = dict(_drift_points(run, scorer))
        if len(points) > 1:
            panels[scorer] = points
    return panels


def _drift_points(run: Auditing, scorer: str) -> Iterator[tuple[str, tuple[Estimate, Estimate]]]:
    for model in run.checkpoints:
        distance = _AT_BASE if model == BASE else run.measured("comparison", Key(model, "sqrt_kl"))
        score = run.measured("comparison", Key(model, "score", scorer=scorer))
        if distance is not None and score is not None:
            yield model, (distance, score)


def _drift_caption(run: Auditing) -> str:
    panels = _drift_panels(run)
    scores = [score for points in panels.values() for _, score in points.values()]
    distances = [distance for points in panels.values() for distance, _ in points.values()]
    is_gold = run.gold in panels
    gold = (
        "The gold scorer is one that no training saw: where it falls while another rises, the policy has learnt the "
        "other’s faults."
        if is_gold
        else "This run has no gold scorer: a score that rises may be the scorer’s fault as well as the policy’s merit."
    )
    return (
        "Mean score of a checkpoint’s own responses to plain prompts against the square root of its KL from the base, "
        "after Gao et al. (2023), who take the KL over whole completions and not per token. Dotted: the base. "
        f"{gold} {points_sentence(scores)} {interval_sentence([*scores, *distances])}"
    )


def _drift_alt(run: Auditing) -> str:
    sentences = []
    for scorer, points in _drift_panels(run).items():
        values = [
            f"{neutralise(drawable(model))} {in_words(score)} at {number(distance.value, 3)}"
            for model, (distance, score) in points.items()
        ]
        sentences.append(f"{neutralise(drawable(scorer))}: {'; '.join(values)}.")
    return f"Mean scores against √KL, {plural(len(sentences), 'panel')}. " + " ".join(sentences)


def _drift_absent(run: Auditing) -> str | None:
    return None if _drift_panels(run) else "no scorer scored a second checkpoint whose distance was measured"


DIVERGENCE_SPECS = (
    AuditSpec(
        "figure_kl_position",
        "KL from the base by position in the answer",
        lambda run: None if _position_panels(run) else "no checkpoint’s KL was measured by position",
        figure_kl_position,
        _position_caption,
        _position_alt,
    ),
)
VERBOSITY_SPECS = (
    AuditSpec(
        "figure_08",
        "Figure 8. Response lengths by category of prompt",
        lambda run: None if _length_panels(run) else "this run kept no responses to plain prompts",
        figure_08,
        _lengths_caption,
        _lengths_alt,
    ),
)
COMPARISON_SPECS = (
    AuditSpec(
        "figure_overoptimisation",
        "Scores against the distance from the base",
        _drift_absent,
        figure_overoptimisation,
        _drift_caption,
        _drift_alt,
    ),
)
