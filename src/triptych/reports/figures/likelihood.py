"""Figures 1 to 4: how likely the model finds what each strategy wrote."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from triptych.reports.arms import Arm, families, name_arms, name_families
from triptych.reports.figures import style
from triptych.reports.figures.spec import (
    BOX_KEY,
    FigureSpec,
    arms_of,
    count_sentence,
    having,
    interval_sentence,
    no_arm,
    spoken,
    sweeps,
)
from triptych.reports.format import number, plural, with_interval
from triptych.reports.inputs import Decoding, FloatArray

LOGPROB_AXIS = "mean log-probability (nats per token)"
EQUAL_ODDS = math.log(2)
"""Nats: beyond, a beam is more than twice as probable as another."""
MAX_POINTS = 600
"""Beyond, single completions are no longer drawn: the box says it, and the file stays small."""


def figure_01(run: Decoding) -> Figure:
    """Box plot of the greedy completions' mean log-probabilities."""
    return _box_plot(run, "greedy")


def figure_02(run: Decoding) -> Figure:
    """The same for beam search, on the axis of figure 1."""
    return _box_plot(run, "beam")


def figure_03(run: Decoding) -> Figure:
    """Histogram of the best beams' cumulative log-probabilities, and of their lead over the next-best."""
    scores, gaps, names = _scores(run), _gaps(run), name_arms(run.arms)
    edges = _edges(np.concatenate(list(scores.values())))
    with style.applied():
        rows = len(scores) + len(gaps)
        figure, all_axes = style.new_figure(0.8 + 2.1 * rows, rows=rows)
        for axes, arm in zip(all_axes, scores, strict=False):
            _histogram(axes, scores[arm], edges, style.look_of(arm).colour)
            axes.set_title(names[arm])
            axes.set_xlabel("cumulative log-probability of the best beam (nats)")
        for axes, arm in zip(all_axes[len(scores) :], gaps, strict=True):
            _histogram(axes, gaps[arm], _edges(np.concatenate(list(gaps.values()))), style.look_of(arm).colour)
            axes.axvline(EQUAL_ODDS, color=style.INK, linewidth=1.0, linestyle=":")
            axes.set_title(f"{names[arm]}: lead")
            axes.set_xlabel("cumulative log-probability, best less next-best beam (nats)")
            axes.set_xlim(left=0.0)
    return figure


def figure_04(run: Decoding) -> Figure:
    """Mean log-probability against temperature, under the model and under the distribution sampled from."""
    panels = _figure_04_panels(run)
    with style.applied():
        figure, all_axes = style.new_figure(3.3, columns=len(panels), sharey=True)
        for axes, (metric, title) in zip(all_axes, panels, strict=True):
            _sweep_lines(axes, run, metric)
            axes.set_title(title)
            axes.grid(axis="y")
        all_axes[0].set_ylabel("mean log-probability (nats per token)")
        style.legend_above(figure, all_axes[0], columns=3)
    return figure


def _box_plot(run: Decoding, strategy: str) -> Figure:
    boxes, names = _logprobs(run, strategy), name_arms(run.arms)
    with style.applied():
        figure, (axes,) = style.new_figure(0.75 + 1.2 * len(boxes))
        for row, (arm, values) in enumerate(boxes.items()):
            _box_row(axes, -float(row), values, style.look_of(arm).colour)
            label = f"mean {_mean_text(run, arm)}, n = {len(values):,}"
            axes.annotate(label, (0.5, -row + 0.36), xycoords=("axes fraction", "data"), ha="center")
        axes.set_yticks([-float(row) + 0.1 for row in range(len(boxes))], [names[arm] for arm in boxes])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set(xlim=_shared_limits(run), ylim=(-len(boxes) + 0.5, 0.6), xlabel=LOGPROB_AXIS)
    return figure


def _box_row(axes: Axes, y: float, values: FloatArray, colour: str) -> None:
    box = style.draw_box(axes, y + 0.1, values, colour, height=0.4)
    if len(values) <= MAX_POINTS:
        offsets = style.swarm(len(values), height=0.2)
        axes.plot(
            values,
            y - 0.33 + offsets,
            ".",
            color=colour,
            markersize=_dot_size(len(values)),
            alpha=0.6,
            markeredgewidth=0,
        )
    else:
        outside = values[(values < box.low) | (values > box.high)]
        axes.plot(outside, np.full(len(outside), y + 0.1), ".", color=colour, markersize=3, markeredgewidth=0)


def _dot_size(count: int) -> float:
    """Points; few dots may be large, many must not hide one another."""
    return 7.0 if count <= 30 else 4.5 if count <= 100 else 3.0


def _histogram(axes: Axes, scores: FloatArray, edges: FloatArray, colour: str) -> None:
    axes.hist(scores, bins=list(edges), color=colour, alpha=0.75, rwidth=0.94)
    median = float(np.median(scores))
    axes.axvline(median, color=style.INK, linewidth=1.2, linestyle="--")
    axes.set_ylabel("completions")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")
    style.note(axes, f"dashed: median {number(median, 1)},  n = {len(scores):,}")


def _sweep_lines(axes: Axes, run: Decoding, metric: str) -> None:
    arms = sweeps(run)
    names, looks = name_families(run.arms), style.looks(families(arms))
    temperatures = sorted({arm.temperature for arm in arms if arm.temperature is not None})
    for index, family in enumerate(looks):
        points = run.sweep([arm for arm in arms if arm.family == family], metric, "arm")
        shift = 0.012 * (index - (len(looks) - 1) / 2)  # so that intervals at one temperature do not hide each other
        style.plot_estimates(
            axes,
            [temperature + shift for temperature, _ in points],
            [estimate for _, estimate in points],
            looks[family],
            names[family],
        )
    style.temperature_ticks(axes, temperatures)


def _logprobs(run: Decoding, *strategies: str) -> dict[Arm, FloatArray]:
    return having(arms_of(run, *strategies), lambda arm: run.rows[arm].mean_logprobs)


def _scores(run: Decoding) -> dict[Arm, FloatArray]:
    return having(arms_of(run, "beam"), lambda arm: run.rows[arm].scores)


def _gaps(run: Decoding) -> dict[Arm, FloatArray]:
    """Nats by which the best beam leads the next-best that ended as it did, one value a prompt that has one."""
    leads = {arm: [lead.gap for lead in run.beam_leads.get(arm, ()) if lead is not None] for arm in _scores(run)}
    return {arm: np.array(gaps) for arm, gaps in leads.items() if gaps}


def _edges(scores: FloatArray) -> FloatArray:
    """Freedman and Diaconis' bins, but never fewer than 12 nor more than 40."""
    count = len(np.histogram_bin_edges(scores, bins="fd")) - 1
    return np.histogram_bin_edges(scores, bins=min(40, max(12, count)))


def _shared_limits(run: Decoding) -> tuple[float, float]:
    """One axis for figures 1 and 2: the paper compares their spread."""
    values = np.concatenate(list(_logprobs(run, "greedy", "beam").values()))
    margin = 0.05 * max(float(np.ptp(values)), 0.1)
    return float(values.min()) - margin, float(values.max()) + margin


def _mean_text(run: Decoding, arm: Arm) -> str:
    estimate = run.measure(arm, "mean_logprob", "arm")
    if estimate is not None and estimate.low is not None:
        return with_interval(estimate)
    return number(float(np.nanmean(run.rows[arm].mean_logprobs)), 3)


def _figure_04_panels(run: Decoding) -> list[tuple[str, str]]:
    panels = [("mean_logprob", "of the model itself")]
    if any(run.measured(arm, "sampler_mean_logprob", "arm") for arm in sweeps(run)):
        panels.append(("sampler_mean_logprob", "as sampled from"))
    return panels


def _box_absent(run: Decoding, strategy: str) -> str | None:
    if _logprobs(run, strategy):
        return None
    return no_arm(run, strategy) or f"no {strategy} completion holds a token"


def _box_caption(run: Decoding, strategy: str) -> str:
    arms = list(_logprobs(run, strategy))
    estimates = [run.measure(arm, "mean_logprob", "arm") for arm in arms]
    bracket = next((f" In brackets: {e.method}." for e in estimates if e is not None and e.low is not None), "")
    return (
        "Mean log-probability of each completion under the model itself (nats per token, temperature 1). "
        f"{BOX_KEY} Each dot below is one completion. The axis is the same in figures 1 and 2. "
        f"{count_sentence(run, arms)}{bracket}"
    )


def _box_alt(run: Decoding, strategy: str) -> str:
    names = name_arms(run.arms)
    sentences = []
    for arm, values in _logprobs(run, strategy).items():
        box = style.box_of(values)
        sentences.append(
            f"{names[arm]}: mean {_mean_text(run, arm)}, median {number(box.median, 3)}, middle half from "
            f"{number(box.q1, 3)} to {number(box.q3, 3)}, whiskers from {number(box.low, 3)} to {number(box.high, 3)} "
            f"nats per token, {plural(len(values), 'completion')}."
        )
    return "Horizontal box plot of mean log-probability per completion. " + " ".join(sentences)


def _figure_03_absent(run: Decoding) -> str | None:
    return None if _scores(run) else no_arm(run, "beam") or "no beam has a score"


def _figure_03_caption(run: Decoding) -> str:
    gaps = _gaps(run)
    without = sum(lead is None for arm in gaps for lead in run.beam_leads[arm])
    missing = f"; {plural(without, 'prompt')} had no such pair" if without else ""
    lead = (
        " Below: by how much the best beam leads the next-best one of the same prompt; beyond the dotted line it is "
        "more than twice as probable. Complete beams are compared with complete ones, cut ones with cut ones"
        f"{missing}."
        if gaps
        else ""
    )
    return (
        "Sum of the log-probabilities of all tokens of the best beam (nats), one value a completion. Dashed: median. "
        "Longer completions have lower sums, whatever their quality. The paper labels the vertical axis “number of "
        f"beams”; each count here is one prompt's best beam.{lead} {count_sentence(run, list(_scores(run)))}"
    )


def _figure_03_alt(run: Decoding) -> str:
    names = name_arms(run.arms)
    sentences = []
    for arm, scores in _scores(run).items():
        low, median, high = (float(q) for q in np.percentile(scores, [5, 50, 95]))
        sentences.append(
            f"{names[arm]}: median {number(median, 1)} nats; nine in ten values lie between {number(low, 1)} and "
            f"{number(high, 1)}."
        )
    for arm, gaps in _gaps(run).items():
        low, median, high = (float(q) for q in np.percentile(gaps, [5, 50, 95]))
        sentences.append(
            f"{names[arm]}, lead of the best beam over the next: median {number(median, 2)} nats; nine in ten values "
            f"lie between {number(low, 2)} and {number(high, 2)}."
        )
    return "Histogram of cumulative beam log-probability. " + " ".join(sentences)


def _figure_04_caption(run: Decoding) -> str:
    arms, panels = sweeps(run), _figure_04_panels(run)
    estimates = [run.measure(arm, metric, "arm") for arm in arms for metric, _ in panels]
    second = (
        " Right: log-probability of the same tokens under the distribution they were drawn from, after temperature and "
        "truncation; the paper's text fits either reading."
        if len(panels) > 1
        else ""
    )
    return (
        "Mean log-probability under the model itself, temperature 1, against the temperature of sampling."
        f"{second} {count_sentence(run, arms)} {interval_sentence(estimates)}"
    )


def _figure_04_alt(run: Decoding) -> str:
    names = name_families(run.arms)
    sentences = []
    for metric, title in _figure_04_panels(run):
        for family in families(sweeps(run)):
            points = run.sweep([arm for arm in run.arms if arm.family == family], metric, "arm")
            if points:
                sentences.append(f"{names[family]}, log-probability {title}: {spoken(points)}.")
    return "Line plot of mean log-probability against temperature. " + " ".join(sentences)


def _figure_04_absent(run: Decoding) -> str | None:
    if any(run.measured(arm, "mean_logprob", "arm") for arm in sweeps(run)):
        return None
    return "this run has no arm with a temperature"


SPECS = (
    FigureSpec(
        "figure_01",
        "Figure 1. Mean log-probability of each completion, greedy search",
        lambda run: _box_absent(run, "greedy"),
        figure_01,
        lambda run: _box_caption(run, "greedy"),
        lambda run: _box_alt(run, "greedy"),
    ),
    FigureSpec(
        "figure_02",
        "Figure 2. Mean log-probability of each completion, beam search",
        lambda run: _box_absent(run, "beam"),
        figure_02,
        lambda run: _box_caption(run, "beam"),
        lambda run: _box_alt(run, "beam"),
    ),
    FigureSpec(
        "figure_03",
        "Figure 3. Cumulative log-probability of the best beam, and its lead",
        _figure_03_absent,
        figure_03,
        _figure_03_caption,
        _figure_03_alt,
    ),
    FigureSpec(
        "figure_04",
        "Figure 4. Mean log-probability against temperature",
        _figure_04_absent,
        figure_04,
        _figure_04_caption,
        _figure_04_alt,
    ),
)
