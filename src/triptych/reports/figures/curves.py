"""Curves of a training log as a stack of panels over one axis of optimizer steps.

What a panel shows is data (`Panel`, `Trace`). Lines are training, markers are held-out data, and vertical lines are
alarms, with a triangle in the panel of their signal. Not here: which values stand in which figure, captions and alt
texts (`triptych.reports.figures.training`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from triptych.alignment.state import Warned
from triptych.reports import format as fmt
from triptych.reports.alignment_inputs import Curve, TrainingRun
from triptych.reports.figures import style
from triptych.reports.figures.style import Look
from triptych.reports.inputs import FloatArray
from triptych.reports.safe_text import clip, neutralise, visible

PANEL, DRIFT, LEGEND_ROW, MARGINS = 1.02, 1.3, 0.17, 0.82
"""Inches: a panel over steps, one over distance, a row of a legend, and what stands around all panels."""
MAX_DRAWN = 600
"""Points of a line: beyond, every n-th is drawn, and the caption says so."""
MIN_SMOOTHED = 12
"""Fewer steps are few enough to be read as they are."""
LOG_FROM = 20.0
"""A panel that may be logarithmic is, where its largest value is so many times its smallest."""
MAX_NAME = 24
ROUND = [1, 2, 2.5, 5, 10]
"""Steps between ticks, times a power of ten."""

PLAIN = Look(style.BLUE, "o", "-")
SECOND = Look(style.OCHRE, "s", "--")
THIRD = Look(style.PURPLE, "^", "-.")
FOURTH = Look(style.TEAL, "v", ":")
FURTHER = (Look(style.PINK, "D", "-"), Look(style.GREEN, "P", "--"))
REFERENCE = Look(style.GREY, "x", "--")


class AlarmLook(NamedTuple):
    """How the alarms of one level are drawn and called."""

    colour: str
    line: str
    label: str


ALARM_LOOKS = {
    "warn": AlarmLook(style.ORANGE, "--", "warning"),
    "severe": AlarmLook(style.RED, "-", "severe alarm"),
}
SIGNALS = {"entropy_low": "entropy", "entropy_high": "entropy"}
"""Signals of the collapse watch that are called otherwise than what they observe."""


class Trace(NamedTuple):
    """One value of the log, as it is drawn."""

    name: str
    """In `metrics.jsonl`."""
    label: str
    look: Look


class Mark(NamedTuple):
    """A horizontal line to compare with."""

    value: float
    label: str
    """Stands at the right of the panel."""


class Panel(NamedTuple):
    """A part of a figure: some values of the log over one vertical axis."""

    title: str
    """With the unit."""
    traces: tuple[Trace, ...]
    percent: bool = False
    """The log has shares; they are drawn in per cent."""
    mark: Mark | None = None
    band: tuple[str, str] | None = None
    """Names of the lower and upper end of a band around the first trace."""
    may_be_log: bool = False

    @property
    def scale(self) -> float:
        """From the log to the axis."""
        return 100.0 if self.percent else 1.0

    @property
    def has_legend(self) -> bool:
        """Several lines need names; a single one has the panel's title."""
        return len(self.traces) > 1 or self.band is not None


class Drift(NamedTuple):
    """A held-out score against the distance from the reference; one entry an evaluation, at least two."""

    label: str
    look: Look
    distances: FloatArray
    """√KL."""
    scores: FloatArray
    steps: tuple[int, ...]


# --- Values -----------------------------------------------------------------------------------------------------------


def smooth(values: FloatArray, width: int) -> FloatArray:
    """The mean over `width` (odd, at most as many as there are) values around each, of fewer at both ends."""
    window = np.ones(width)
    counts = np.convolve(np.ones(len(values)), window, mode="same")
    return np.asarray(np.convolve(values, window, mode="same") / counts, dtype=np.float64)


def smoothing_width(n: int) -> int:
    """About a twentieth of the steps, odd and at least 5; 1, which is none, for a few steps."""
    return 1 if n < MIN_SMOOTHED else max(5, n // 20 | 1)


def stride(n: int) -> int:
    """Every how many-th point of a line is drawn."""
    return max(1, -(-n // MAX_DRAWN))


def longest(run: TrainingRun, panels: Sequence[Panel]) -> int:
    """Steps of the longest curve of training."""
    return max((len(run.training(trace.name).steps) for panel in panels for trace in panel.traces), default=0)


def alarms(run: TrainingRun) -> list[Warned]:
    """The first alarm of every signal and level that belongs to a step: more would hide the curves."""
    first: dict[tuple[str, str], Warned] = {}
    at_steps = [warned for warned in run.state.warnings if warned.step is not None and warned.level in ALARM_LOOKS]
    for warned in sorted(at_steps, key=lambda warned: warned.step or 0):
        first.setdefault((warned.signal, warned.level), warned)
    return list(first.values())


def drawable(name: str) -> str:
    """A name that users gave, fit for a legend: in the figure's font, not too long, and not taken for a hidden one."""
    clipped = clip(neutralise(name), MAX_NAME)
    font = get_font(findfont(FontProperties(family=style.FONT)))
    text = "".join(char if font.get_char_index(ord(char)) else visible(char) for char in clipped.text)
    # matplotlib takes a leading underscore for "not in the legend".
    return (fmt.NBSP if text.startswith("_") else "") + text + ("…" if clipped.left_out else "")


# --- Drawing ----------------------------------------------------------------------------------------------------------


def draw_stack(run: TrainingRun, panels: Sequence[Panel], drifts: Sequence[Drift]) -> Figure:
    """The panels over steps, and below them scores over distance."""
    heights = [PANEL + LEGEND_ROW * panel.has_legend for panel in panels] + [DRIFT] * len(drifts)
    key = _key(run, panels)
    height = sum(heights) + MARGINS + LEGEND_ROW * ((len(key) + 1) // 2) + (0.25 if drifts else 0.0)
    with style.applied():
        figure, all_axes = style.new_figure(height, rows=len(heights), gridspec_kw={"height_ratios": heights})
        over_steps, over_distance = all_axes[: len(panels)], all_axes[len(panels) :]
        for axes, panel in zip(over_steps, panels, strict=True):
            _draw_panel(axes, run, panel)
        _share(over_steps, "optimizer step")
        _step_axis(over_steps[0], run)
        for axes, drift in zip(over_distance, drifts, strict=True):
            _draw_drift(axes, drift)
        _share(over_distance, "√KL from the reference (KL in nats per token)")
        figure.legend(handles=key, loc="outside upper left", ncols=2, columnspacing=1.4)
    return figure


def _draw_panel(axes: Axes, run: TrainingRun, panel: Panel) -> None:
    _draw_band(axes, run, panel)
    for trace in panel.traces:
        _draw_training(axes, run.training(trace.name), trace.look, panel.scale)
        _draw_held_out(axes, run, trace, panel.scale)
        _draw_interval(axes, run, trace, panel.scale)
    if panel.mark is not None:
        _draw_mark(axes, panel.mark)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    axes.margins(y=0.1)
    if panel.may_be_log:
        _log_axis(axes, run, panel)
    axes.grid(axis="y")
    _draw_alarms(axes, run, panel)
    if panel.has_legend:
        _legend_with_title(axes, panel)
    else:
        axes.set_title(panel.title)


def _draw_training(axes: Axes, curve: Curve, look: Look, scale: float) -> None:
    if curve.is_empty:
        return
    n = len(curve.steps)
    width, drawn = smoothing_width(n), slice(None, None, stride(n))
    steps, values = curve.steps[drawn], scale * curve.values
    if width > 1:
        axes.plot(steps, values[drawn], color=look.colour, linewidth=0.6, alpha=0.4)
        axes.plot(steps, smooth(values, width)[drawn], color=look.colour, linestyle=look.line, linewidth=1.6)
    else:
        marker = "_" if n == 1 else ""
        axes.plot(steps, values, color=look.colour, linestyle=look.line, linewidth=1.4, marker=marker, markersize=12)


def _draw_held_out(axes: Axes, run: TrainingRun, trace: Trace, scale: float) -> None:
    curve, look = run.evaluated(trace.name), trace.look
    # Where training logs nothing of the kind, the evaluations are the curve.
    line = look.line if run.training(trace.name).is_empty else "none"
    edge: dict[str, Any] = {"markeredgecolor": look.colour if look.marker == "x" else style.INK, "markeredgewidth": 0.7}
    axes.plot(curve.steps, scale * curve.values, look.marker, color=look.colour, linestyle=line, zorder=4, **edge)


def _draw_interval(axes: Axes, run: TrainingRun, trace: Trace, scale: float) -> None:
    """Of the final figure, at the step of the adapter."""
    figure = run.figure(trace.name)
    # The reference's would hide that of the policy, which stands at the same step.
    if figure is None or trace.look == REFERENCE or run.evaluated(trace.name).is_empty:
        return
    mean, reach = [scale * figure.estimate.value], scale * style.errors([figure.estimate])
    axes.errorbar([run.state.step], mean, yerr=reach, color=style.INK, elinewidth=1.1, capsize=2.5, zorder=3)


def _draw_band(axes: Axes, run: TrainingRun, panel: Panel) -> None:
    if panel.band is None:
        return
    low, high = (run.training(name) for name in panel.band)
    steps, colour = np.intersect1d(low.steps, high.steps), panel.traces[0].look.colour
    if not steps.size:
        return
    width, drawn = smoothing_width(len(steps)), slice(None, None, stride(len(steps)))
    bottom, top = (smooth(curve.values[np.isin(curve.steps, steps)], width)[drawn] for curve in (low, high))
    if len(steps) == 1:
        axes.vlines(steps, bottom, top, colors=colour, linewidth=6, alpha=0.25)
    else:
        axes.fill_between(steps[drawn], bottom, top, color=colour, alpha=0.22, linewidth=0)


def _draw_mark(axes: Axes, mark: Mark) -> None:
    axes.axhline(mark.value, color=style.INK, linewidth=0.9, linestyle=":")
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    axes.annotate(mark.label, (1.0, mark.value), (3, 0), ha="left", va="center", fontsize=style.SMALL, **place)


def _draw_alarms(axes: Axes, run: TrainingRun, panel: Panel) -> None:
    names = {trace.name for trace in panel.traces}
    for warned in alarms(run):
        look, step = ALARM_LOOKS[warned.level], warned.step or 0
        axes.axvline(step, color=look.colour, linestyle=look.line, linewidth=0.9, zorder=1.5)
        if SIGNALS.get(warned.signal, warned.signal) in names:
            on_top = axes.get_xaxis_transform()
            axes.plot(step, 0.93, "v", color=look.colour, markersize=6, transform=on_top, zorder=5)
    if run.state.outcome == "rolled_back":
        axes.axvline(run.state.step, color=style.INK, linestyle=":", linewidth=1.1, zorder=1.5)


def _draw_drift(axes: Axes, drift: Drift) -> None:
    look = drift.look
    edge: dict[str, Any] = {"markeredgecolor": style.INK, "markeredgewidth": 0.7}
    axes.plot(drift.distances, drift.scores, look.marker, color=look.colour, linestyle=look.line, linewidth=1.2, **edge)
    axes.set_title(f"{drift.label} against √KL")
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    axes.margins(x=0.08, y=0.4)
    axes.grid()
    for at, neighbour, across in ((0, 1, "left"), (-1, -2, "right")):
        # On the other side of the point than the line that begins or ends there.
        is_above = drift.scores[at] >= drift.scores[neighbour]
        offset, up = ((0, 5), "bottom") if is_above else ((0, -5), "top")
        point, text = (drift.distances[at], drift.scores[at]), f"step {drift.steps[at]:,}"
        place: dict[str, Any] = {"textcoords": "offset points", "ha": across, "va": up}
        axes.annotate(text, point, offset, fontsize=style.SMALL, **place)


def _share(all_axes: Sequence[Axes], label: str) -> None:
    """One horizontal axis for several panels, written below the last."""
    for axes in all_axes[1:]:
        axes.sharex(all_axes[0])
    for axes in all_axes[:-1]:
        axes.tick_params(labelbottom=False)
    for axes in all_axes[-1:]:
        axes.set_xlabel(label)


def _step_axis(axes: Axes, run: TrainingRun) -> None:
    steps = [line["step"] for line in (*run.lines, *run.evaluations)]
    span = max(steps) - min(steps)
    margin = (0.02 if span > 20 else 0.06) * span or 0.5
    axes.set_xlim(min(steps) - margin, max(steps) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=ROUND))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: fmt.number(step, 0)))


def _log_axis(axes: Axes, run: TrainingRun, panel: Panel) -> None:
    curves = [curve for trace in panel.traces for curve in (run.training(trace.name), run.evaluated(trace.name))]
    values = np.concatenate([curve.values for curve in curves])
    if values.min() <= 0 or values.max() < LOG_FROM * values.min():
        return
    style.log_scale(axes)


def _legend_with_title(axes: Axes, panel: Panel) -> None:
    """The names of the lines in a row above the panel, and the panel's title above them."""
    handles: list[Any] = []
    for _, label, look in panel.traces:
        line: dict[str, Any] = {"color": look.colour, "linestyle": look.line, "marker": look.marker}
        handles.append(Line2D([], [], markersize=4.5, label=label, **line))
    if panel.band is not None:
        handles.append(Patch(facecolor=panel.traces[0].look.colour, alpha=0.25, label="10th to 90th percentile"))
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1.02), "borderaxespad": 0, "borderpad": 0.1}
    spacing: dict[str, Any] = {"ncols": 3, "columnspacing": 1.2, "fontsize": style.SMALL, "alignment": "left"}
    legend = axes.legend(handles=handles, title=panel.title, **place, **spacing)
    legend.get_title().set(fontweight="bold", fontsize=9)


def _key(run: TrainingRun, panels: Sequence[Panel]) -> list[Line2D]:
    """What lines, markers and vertical lines mean in every panel."""
    n, names = longest(run, panels), [trace.name for panel in panels for trace in panel.traces]
    width, handles = smoothing_width(n), []
    if width > 1:
        handles.append(Line2D([], [], color=style.INK, linewidth=0.6, alpha=0.5, label="training, each step"))
        handles.append(Line2D([], [], color=style.INK, linewidth=1.6, label=f"mean of {width} steps"))
    elif n:
        handles.append(Line2D([], [], color=style.INK, linewidth=1.4, label="training, each step"))
    if any(not run.evaluated(name).is_empty for name in names):
        handles.append(Line2D([], [], color=style.INK, linestyle="none", marker="o", label="held-out data"))
    levels = {warned.level for warned in alarms(run)}
    for level, look in ALARM_LOOKS.items():
        if level in levels:
            line: dict[str, Any] = {"color": look.colour, "linestyle": look.line, "linewidth": 0.9, "marker": "v"}
            handles.append(Line2D([], [], markersize=5, label=look.label, **line))
    if run.state.outcome == "rolled_back":
        handles.append(Line2D([], [], color=style.INK, linestyle=":", linewidth=1.1, label="rolled back to"))
    return handles
