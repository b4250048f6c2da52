"""One look for all figures: sizes, colours, marks, and the drawing of an estimate with its interval.

Figures are drawn at phone width (4.2 inches, so that 9-point text is 10 pixels high in a 340-pixel column) and on no
background. Ink is a colour of its own that `triptych.reports.figures.svg` turns into `currentColor`; every other colour
has a contrast of at least 3 against both a white and a near-black page, and never carries a meaning alone: markers,
line styles or hatches repeat it. Not here: what the figures show.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from triptych.records import Estimate
from triptych.reports.arms import Arm, Family, temperature_text
from triptych.reports.inputs import FloatArray

WIDTH = 4.2
"""Inches."""
INK = "#010203"
"""Text and axes: stands for `currentColor`, and is dark enough to print as black."""
FONT = "DejaVu Sans"
"""Comes with matplotlib, so layouts do not depend on the machine."""
SMALL = 8
QUIET = 0.16
"""Opacity of grid lines."""

GREY, RED, BLUE, ORANGE, GREEN = "#77818d", "#c04550", "#1f74cf", "#d37220", "#138a6a"
OCHRE, PURPLE, TEAL, PINK = "#8a6a10", "#8a4fc4", "#1488a0", "#c2428f"
ORDER_COLOURS = {1: BLUE, 2: OCHRE, 3: RED}
ORDER_MARKERS = {1: "o", 2: "s", 3: "^"}
ORDER_LINES = {1: "-", 2: "--", 3: "-."}
LINES = ("-", "--", "-.", ":")

STYLE = {
    "font.family": [FONT],
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": INK,
    "grid.alpha": QUIET,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 2.2,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "svg.hashsalt": "triptych",
    "figure.dpi": 100,
}


class Look(NamedTuple):
    """How a family of arms is drawn in every figure."""

    colour: str
    marker: str
    line: str


STRATEGY_LOOKS = {
    "greedy": Look(GREY, "D", "-"),
    "beam": Look(RED, "P", "-"),
    "diverse_beam": Look(RED, "X", "-"),
    "contrastive": Look(GREY, "*", "-"),
    "top_k": Look(BLUE, "s", "-"),
    "top_p": Look(ORANGE, "o", "-"),
    "min_p": Look(GREEN, "^", "-"),
    "typical": Look(PURPLE, "v", "-"),
    "eta": Look(TEAL, "<", "-"),
    "top_nsigma": Look(PINK, ">", "-"),
    "ancestral": Look(OCHRE, "p", "-"),
}
UNKNOWN_LOOK = Look(OCHRE, "h", "-")


class Box(NamedTuple):
    """Tukey's five numbers of a sample."""

    low: float
    """Lowest value within 1.5 interquartile ranges of the box."""
    q1: float
    median: float
    q3: float
    high: float


def applied() -> AbstractContextManager[None]:
    """The style, for the time of drawing or saving one figure; global settings are restored after it."""
    return mpl.rc_context(STYLE)  # type: ignore[arg-type]


def new_figure(height: float, rows: int = 1, columns: int = 1, **layout: object) -> tuple[Figure, list[Axes]]:
    """A figure of the common width and its axes, row by row."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **layout)  # type: ignore[call-overload]
    return figure, list(axes.flat)


def looks(families: Sequence[Family]) -> dict[Family, Look]:
    """Colour and marker by strategy, line style by the parameters within it."""
    seen: Counter[str] = Counter()
    result = {}
    for family in families:
        line = LINES[seen[family.strategy] % len(LINES)]
        result[family] = STRATEGY_LOOKS.get(family.strategy, UNKNOWN_LOOK)._replace(line=line)
        seen[family.strategy] += 1
    return result


def look_of(arm: Arm) -> Look:
    """Colour and marker of a single arm."""
    return looks([arm.family])[arm.family]


def errors(estimates: Sequence[Estimate]) -> FloatArray:
    """Distances from the mean to both ends, shape [2, n]; NaN where there is no interval, which draws none."""
    below = [np.nan if e.low is None else max(0.0, e.value - e.low) for e in estimates]
    above = [np.nan if e.high is None else max(0.0, e.high - e.value) for e in estimates]
    return np.array([below, above])


def plot_estimates(
    axes: Axes, x: Sequence[float], estimates: Sequence[Estimate], look: Look, label: str | None = None
) -> None:
    """A line through estimates with their 95 % intervals."""
    axes.errorbar(
        x,
        [estimate.value for estimate in estimates],
        yerr=errors(estimates),
        color=look.colour,
        marker=look.marker,
        linestyle=look.line,
        capsize=2.5,
        elinewidth=1.1,
        label=label,
    )


def box_of(values: FloatArray) -> Box:
    """Quartiles and whiskers of a sample that has at least one value."""
    q1, median, q3 = (float(quantile) for quantile in np.percentile(values, [25, 50, 75]))
    reach = 1.5 * (q3 - q1)
    inside = values[(values >= q1 - reach) & (values <= q3 + reach)]
    return Box(float(inside.min()), q1, median, q3, float(inside.max()))


def draw_box(axes: Axes, y: float, values: FloatArray, colour: str, height: float = 0.5) -> Box:
    """A horizontal box plot at height `y`: box, median, whiskers and a diamond at the mean."""
    box = box_of(values)
    axes.barh(y, box.q3 - box.q1, left=box.q1, height=height, facecolor=colour, alpha=0.35, edgecolor="none")
    axes.barh(y, box.q3 - box.q1, left=box.q1, height=height, facecolor="none", edgecolor=colour, linewidth=1.2)
    axes.hlines([y, y], [box.low, box.q3], [box.q1, box.high], colors=colour, linewidth=1.2)
    axes.vlines([box.low, box.high], y - height / 4, y + height / 4, colors=colour, linewidth=1.2)
    axes.vlines(box.median, y - height / 2, y + height / 2, colors=INK, linewidth=1.4)
    axes.plot(values.mean(), y, marker="D", markersize=4.5, color=INK, linestyle="none")
    return box


def swarm(count: int, height: float) -> FloatArray:
    """Offsets that spread points evenly without chance: the golden-ratio sequence, centred on 0."""
    golden = (np.sqrt(5) - 1) / 2
    return np.asarray((np.arange(1, count + 1) * golden % 1 - 0.5) * height, dtype=np.float64)


def text_on(colour: str) -> str:
    """Black or white, whichever is the more legible on a filled colour."""
    red, green, blue = (_linear(int(colour[place : place + 2], 16) / 255) for place in (1, 3, 5))
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "black" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"  # where both contrasts are equal


def _linear(channel: float) -> float:
    """sRGB to linear light (WCAG 2.2, relative luminance)."""
    return channel / 12.92 if channel <= 0.04045 else float(((channel + 0.055) / 1.055) ** 2.4)


def note(axes: Axes, text: str) -> None:
    """A small line above the plot, at the right: n and what else the eye needs."""
    axes.set_title(text, loc="right", fontsize=SMALL, fontweight="normal")


def legend_above(figure: Figure, axes: Axes, columns: int, title: str | None = None) -> None:
    """One legend for the whole figure, over it."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, title=title, columnspacing=1.4)


def log_scale(axes: Axes) -> None:
    """A logarithmic vertical axis with ticks at 1 and 3 of every decade, written as plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def temperature_ticks(axes: Axes, temperatures: Sequence[float]) -> None:
    """Ticks at the temperatures of the run, and nowhere else."""
    axes.set_xticks(list(temperatures), [temperature_text(temperature) for temperature in temperatures])
    axes.set_xlabel("temperature")
