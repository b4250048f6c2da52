"""Universal dictionaries: figure 11 (firing entropy) and R² from model to model; what all their figures share.

Not here: what single latents do (`triptych.reports.figures.features`) and their pictures (`….latents`).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, StepPatch

from triptych.dictionaries.records import MAIN, SPECIFIC, UNIVERSAL
from triptych.records import Estimate
from triptych.reports.dictionaries_glossary import role_name
from triptych.reports.dictionaries_inputs import (
    NULLS,
    Class,
    Dictionaries,
    Key,
    Latents,
    class_of,
)
from triptych.reports.dictionaries_paper import Way, paper_r2, ways
from triptych.reports.figures import style
from triptych.reports.figures.curves import drawable
from triptych.reports.figures.style import Look
from triptych.reports.format import NBSP, joined, number, plural
from triptych.reports.inputs import FloatArray
from triptych.reports.safe_text import neutralise

BINS = 20
"""Of width 0.05, so that both thresholds are edges."""
EDGES = np.linspace(0.0, 1.0, BINS + 1)
CLASS_LOOKS: dict[Class, Look] = {
    "universal": Look(style.BLUE, "o", "-"),
    "mid": Look(style.GREY, "s", "-"),
    "specific": Look(style.ORANGE, "^", "-"),
}
CLASS_NAMES: dict[Class, str] = {
    "universal": f"universal (> {UNIVERSAL:g})",
    "mid": "in between",
    "specific": f"specific (< {SPECIFIC:g})",
}
HATCHES: dict[Class, str] = {"universal": "", "mid": "", "specific": "////"}
NULL_LOOKS = {"shuffled": Look(style.INK, "", "-"), "same": Look(style.PURPLE, "", "--")}
HEADROOM = 1.15
LIGHT, DARK = np.array([0xE8, 0xF1, 0xFB]), np.array([0x0B, 0x3D, 0x78])
"""R² of 0 and of 1."""


class DictionarySpec(NamedTuple):
    """One figure of universal dictionaries; `FigureSpec` is that of the decoding panel."""

    name: str
    """Stem of its files."""
    title: str
    absent: Callable[[Dictionaries], str | None]
    """Why this run has no such figure; None where it has."""
    draw: Callable[[Dictionaries], Figure]
    caption: Callable[[Dictionaries], str]
    """What is shown: n, units, and what the interval is."""
    alt: Callable[[Dictionaries], str]
    """The figure in words, with its numbers, for those who do not see it."""


def bars_sentence(estimates: Iterable[Estimate | None]) -> str:
    """What the error bars are, or that there are none."""
    methods = sorted({e.method.removeprefix("95% ") for e in estimates if e is not None and e.low is not None})
    if not methods:
        return "No error bars: this run gives no interval."
    return f"Error bars: 95{NBSP}% intervals ({neutralise('; '.join(methods))})."


def seeds_sentence(run: Dictionaries) -> str:
    """Over how many trainings the shared dictionary's measures are."""
    return f"Means over {len(run.seeds):,} seeds." if len(run.seeds) > 1 else "Of one seed."


def features_of(run: Dictionaries) -> Latents:
    """The latents of a run that has them."""
    if run.latents is None:
        raise ValueError("this run has no features.parquet")
    return run.latents


def without_latents(run: Dictionaries) -> str | None:
    """Why there is no latent to draw."""
    if run.latents is None:
        return "this run has no dictionaries/universal/features.parquet"
    return None if run.latents.n_live else "every latent of the shared dictionary is dead"


def said(name: str) -> str:
    """A name that users gave, for captions and alt texts."""
    return neutralise(drawable(name))


# --- Figure 11 --------------------------------------------------------------------------------------------------------


def figure_11(run: Dictionaries) -> Figure:
    """Histogram of the firing entropy of live latents; the nulls as outlines."""
    latents = features_of(run)
    with style.applied():
        figure, (axes,) = style.new_figure(3.4)
        bars = [_bars(axes, latents, name) for name in CLASS_LOOKS]
        outlines = [_outline(axes, run, role) for role in run.null_entropies]
        _limit(axes, run)
        for threshold in (SPECIFIC, UNIVERSAL):
            axes.axvline(threshold, color=style.INK, linewidth=0.8, linestyle=":", zorder=1)
        axes.set(xlim=(-0.01, 1.01), xlabel="normalised firing entropy", ylabel="live latents")
        axes.grid(axis="y")
        style.note(axes, f"n = {latents.n_live:,}")
        figure.legend(handles=[*bars, *outlines], loc="outside upper left", ncols=2, columnspacing=1.4)
    return figure


def _bars(axes: Axes, latents: Latents, name: Class) -> BarContainer:
    return axes.bar(
        EDGES[:-1],
        _histogram(latents.entropies[latents.of_entropy(name)]),
        width=1 / BINS,
        align="edge",
        facecolor=CLASS_LOOKS[name].colour,
        edgecolor=style.INK,
        linewidth=0.4,
        hatch=HATCHES[name],
        label=CLASS_NAMES[name],
    )


def _outline(axes: Axes, run: Dictionaries, role: str) -> StepPatch:
    look, counts, name = NULL_LOOKS[role], _histogram(run.null_entropies[role]), role_name(role, unit=run.unit)
    return axes.stairs(counts, EDGES, color=look.colour, linestyle=look.line, linewidth=1.4, label=name)


def _histogram(entropies: FloatArray) -> FloatArray:
    """Counts by bin; rounding may leave an entropy a hair outside 0 … 1."""
    return np.histogram(np.clip(entropies, 0.0, 1.0), BINS, (0.0, 1.0))[0].astype(np.float64)


def _limit(axes: Axes, run: Dictionaries) -> None:
    """The null of a model and itself is one high bar: it is cut off and its height told, lest all else lies flat."""
    heights = {role: _histogram(entropies).max() for role, entropies in run.null_entropies.items()}
    top = HEADROOM * max(1.0, _histogram(_live(run)).max(), heights.get("shuffled", 0.0))
    axes.set_ylim(0, top)
    if heights.get("same", 0.0) > top:
        text = f"a model and itself: {heights['same']:,.0f} ↑"
        axes.annotate(text, (0.84, 0.98), xycoords="axes fraction", ha="right", va="top", fontsize=style.SMALL)


def _live(run: Dictionaries) -> FloatArray:
    latents = features_of(run)
    return latents.entropies[~latents.dead]


def _entropy_caption(run: Dictionaries) -> str:
    latents = features_of(run)
    absent = [role_name(role, unit=run.unit) for role in NULLS if role not in run.null_entropies]
    nulls = f" This run has no features of the {joined(absent, last='or')}." if absent else ""
    outlines = " Outlines: live latents of the nulls." if run.null_entropies else ""
    return (
        f"Live latents of the shared dictionary by firing entropy, in bins of {1 / BINS:g}. n = "
        f"{plural(latents.n_live, 'live latent')}; {plural(latents.n_dead, 'dead latent')} without an entropy "
        f"{'is' if latents.n_dead == 1 else 'are'} left out. Dotted: the paper’s thresholds. An entropy near 1 says "
        f"that models fire a latent equally often, not that they fire it on the same {run.unit}s.{outlines}{nulls}"
    )


def _entropy_alt(run: Dictionaries) -> str:
    latents = features_of(run)
    shares = [
        f"{np.count_nonzero(latents.of_entropy(name)):,} {CLASS_NAMES[name]}"
        for name in ("universal", "mid", "specific")
    ]
    nulls = [
        f" {role_name(role, unit=run.unit)}: {np.count_nonzero(class_of(entropies, 'universal')):,} of "
        f"{entropies.size:,} live latents above {UNIVERSAL:g}."
        for role, entropies in run.null_entropies.items()
    ]
    counts = _histogram(_live(run))
    fullest = int(counts.argmax())
    return (
        f"Histogram of the firing entropy of {latents.n_live:,} live latents: {joined(shares)}. The fullest bin, "
        f"{fullest / BINS:.2f} to {(fullest + 1) / BINS:.2f}, holds {counts[fullest]:,.0f}; {latents.n_dead:,} dead "
        f"latents are left out.{''.join(nulls)}"
    )


# --- R² ---------------------------------------------------------------------------------------------------------------

Matrix = dict[Way, float]


def figure_r2(run: Dictionaries) -> Figure:
    """R² from every source to every target: one panel a dictionary, numbers printed."""
    panels = _matrices(run)
    columns = 2 if len(panels) > 1 else 1
    rows = -(-len(panels) // columns)
    names = shortened(run.models)
    with style.applied():
        figure, all_axes = style.new_figure(0.35 + rows * 2.05, rows=rows, columns=columns)
        for axes, (title, matrix) in zip(all_axes, panels.items(), strict=False):
            _draw_matrix(axes, run, matrix)
            axes.set_title(title)
            axes.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) < 8 else 30)
            axes.set_yticks(range(len(names)), names)
            axes.tick_params(length=0)
        for axes in all_axes[len(panels) :]:
            axes.set_axis_off()
        figure.supxlabel("target: whose activations are reconstructed", fontsize=9)
        figure.supylabel("source: whose code is read", fontsize=9)
    return figure


def shortened(names: Sequence[str], length: int = 10) -> list[str]:
    """Names that leave room for what they name; long ones are cut, and numbered where they then look alike."""
    cut = [name if len(name) <= length else f"{name[: length - 1]}…" for name in map(drawable, names)]
    return cut if len(set(cut)) == len(cut) else [f"{place}: {name}" for place, name in enumerate(cut, start=1)]


def _draw_matrix(axes: Axes, run: Dictionaries, matrix: Matrix) -> None:
    n = len(run.models)
    for row, source in enumerate(run.models):
        for column, target in enumerate(run.models):
            value = matrix.get(Way(source, target))
            colour = "none" if value is None else _shade(value)
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor="none"))
            text, ink = ("–", style.INK) if value is None else (number(value, 3), style.text_on(colour))
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=9 if n < 4 else style.SMALL)
    axes.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5), aspect="equal")
    axes.spines[["left", "bottom"]].set_visible(False)


def _shade(value: float) -> str:
    """From light at 0 and below to dark at 1."""
    mixed = LIGHT + (DARK - LIGHT) * min(1.0, max(0.0, value))
    return "#" + "".join(f"{round(channel):02x}" for channel in mixed)


def _matrices(run: Dictionaries) -> dict[str, Matrix]:
    """By title of the panel: the shared dictionaries, the independent ones, the paper's."""
    panels = {_title(update, role): _shared(run, role) for role, update in run.updates()}
    panels["independent"] = {
        Way(model, model): found.value
        for model in run.models
        if (found := run.independent_r2(model)) is not None and found.mean is not None
    }
    panels["paper"] = paper_r2(run)
    return {title: matrix for title, matrix in panels.items() if matrix}


def _title(update: str, role: str) -> str:
    return f"update = {update}" if update else ("shared" if role == MAIN else "shared, other update")


def _shared(run: Dictionaries, role: str) -> Matrix:
    found = {way: run.estimate(Key(role, "r2", *way)) for way in ways(run)}
    return {
        way: estimate.value for way, estimate in found.items() if estimate is not None and estimate.mean is not None
    }


def _r2_caption(run: Dictionaries) -> str:
    independent = (
        " Independent dictionaries (equal steps) have one model each, and so a diagonal alone."
        if "independent" in _matrices(run)
        else " This run has no independent dictionaries."
    )
    paper = " Paper: as printed; it does not say which mean its R² takes." if paper_r2(run) else ""
    return (
        f"R² on held-out {run.unit}s with a mean for each feature, from the code of the source model to the "
        f"activations of the target model; the darker, the nearer to 1.{independent}{paper} {seeds_sentence(run)} "
        "Intervals stand in table 5."
    )


def _r2_alt(run: Dictionaries) -> str:
    sentences = []
    for title, matrix in _matrices(run).items():
        values = [f"{said(way.source)} to {said(way.target)} {number(value, 3)}" for way, value in matrix.items()]
        sentences.append(f"{title}: {'; '.join(values)}.")
    return "Heat maps of R² by source and target model. " + " ".join(sentences)


def _r2_absent(run: Dictionaries) -> str | None:
    return None if any(_shared(run, role) for role, _ in run.updates()) else "no R² of a shared dictionary was measured"


R2_SPECS: Sequence[DictionarySpec] = (
    DictionarySpec("figure_r2", "R² from model to model", _r2_absent, figure_r2, _r2_caption, _r2_alt),
)
ENTROPY_SPECS: Sequence[DictionarySpec] = (
    DictionarySpec(
        "figure_11",
        "Figure 11. Distribution of the firing entropy",
        without_latents,
        figure_11,
        _entropy_caption,
        _entropy_alt,
    ),
)
