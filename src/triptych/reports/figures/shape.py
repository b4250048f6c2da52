"""Why completions stop and how long they are: what every other figure of the panel has to be read with."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from triptych.reports.arms import Arm, name_arms
from triptych.reports.figures import style
from triptych.reports.figures.spec import BOX_KEY, FigureSpec, count_sentence
from triptych.reports.format import number, share
from triptych.reports.inputs import Decoding

REASONS = ("eos", "length", "repeat", "marker")
REASON_NAMES = {"eos": "end of text", "length": "token limit", "repeat": "repetition", "marker": "prompt marker"}
REASON_LOOKS = {
    "eos": (style.BLUE, None),
    "length": (style.ORANGE, None),
    "repeat": (style.RED, "///"),
    "marker": (style.GREY, None),
}
MIN_LABELLED_SHARE = 0.09
"""Narrower parts of a bar hold no number; the table of all arms has it."""


def figure_stops(run: Decoding) -> Figure:
    """Stop reasons of every arm, stacked to 100 %."""
    names, shares = name_arms(run.arms), _shares(run)
    with style.applied():
        figure, (axes,) = style.new_figure(0.95 + 0.24 * len(names))
        for reason in REASONS:
            _stack(axes, shares, reason)
        _rows(axes, list(names.values()))
        axes.set(xlim=(0, 100), xlabel="completions (%)")
        style.legend_above(figure, axes, columns=2)
    return figure


def figure_length(run: Decoding) -> Figure:
    """Box plots of generated tokens, one an arm."""
    names = name_arms(run.arms)
    limit = max(int(run.rows[arm].n_tokens.max()) for arm in run.arms)
    with style.applied():
        figure, (axes,) = style.new_figure(0.75 + 0.24 * len(names))
        for row, arm in enumerate(run.arms):
            style.draw_box(axes, row, run.rows[arm].n_tokens.astype(np.float64), style.look_of(arm).colour)
        _rows(axes, list(names.values()))
        axes.set(xlim=(0, 1.03 * limit), xlabel="generated tokens")
        axes.grid(axis="x")
    return figure


def _stack(axes: Axes, shares: Mapping[Arm, Mapping[str, float]], reason: str) -> None:
    colour, hatch = REASON_LOOKS[reason]
    before = REASONS[: REASONS.index(reason)]
    label: str | None = REASON_NAMES[reason]
    for row, parts in enumerate(shares.values()):
        left, width = 100 * sum(parts[other] for other in before), 100 * parts[reason]
        # A hair's breadth is left between the parts, so that they stay apart without their colours.
        axes.barh(
            row,
            max(0.0, width - 0.5),
            left=left,
            height=0.72,
            facecolor=colour,
            edgecolor=(style.text_on(colour), 0.35),
            linewidth=0,
            hatch=hatch,
            label=label,
        )
        if parts[reason] >= MIN_LABELLED_SHARE:
            text = axes.annotate(f"{width:.0f}", (left + width / 2, row), ha="center", va="center")
            text.set(color=style.text_on(colour), fontsize=style.SMALL)
        label = None


def _rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _shares(run: Decoding) -> dict[Arm, dict[str, float]]:
    shares = {}
    for arm, rows in run.rows.items():
        found = Counter(rows.stop_reasons)
        shares[arm] = {reason: found[reason] / len(rows.stop_reasons) for reason in REASONS}
    return shares


def _stops_caption(run: Decoding) -> str:
    return (
        "Why completions ended, in per cent of an arm's completions; parts under "
        f"{100 * MIN_LABELLED_SHARE:.0f} % carry no number. Intervals stand in the table of all arms. "
        f"{count_sentence(run, run.arms)}"
    )


def _stops_alt(run: Decoding) -> str:
    names = name_arms(run.arms)
    values = []
    for arm, parts in _shares(run).items():
        listed = ", ".join(f"{REASON_NAMES[reason]} {share(part)}" for reason, part in parts.items() if part)
        values.append(f"{names[arm]}: {listed}")
    return f"Stacked bars of stop reasons. {'; '.join(values)}."


def _length_caption(run: Decoding) -> str:
    return (
        f"Generated tokens of each completion. {BOX_KEY} Completions at the right edge were cut by the token limit, so "
        f"their length says nothing about how long they wanted to be. {count_sentence(run, run.arms)}"
    )


def _length_alt(run: Decoding) -> str:
    names = name_arms(run.arms)
    values = []
    for arm, rows in run.rows.items():
        median, mean = float(np.median(rows.n_tokens)), float(rows.n_tokens.mean())
        values.append(f"{names[arm]}: median {number(median, 0)}, mean {number(mean, 1)}")
    return f"Horizontal box plots of generated tokens. {'; '.join(values)}."


OWN_SPECS = (
    FigureSpec(
        "figure_stops",
        "Why completions stop",
        lambda run: None,
        figure_stops,
        _stops_caption,
        _stops_alt,
    ),
    FigureSpec(
        "figure_length",
        "How long completions are",
        lambda run: None,
        figure_length,
        _length_caption,
        _length_alt,
    ),
)
