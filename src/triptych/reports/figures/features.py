"""What single latents of a universal dictionary do: co-firing against energy, and agreement with labels.

Classes of latents look as in figure 11 (`triptych.reports.figures.dictionaries`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from triptych.dictionaries.records import MAIN
from triptych.records import Estimate
from triptych.reports.auditing_tables import in_words
from triptych.reports.dictionaries_inputs import Class, Dictionaries, Key, Latents, class_of
from triptych.reports.figures import style
from triptych.reports.figures.auditing import category_rows
from triptych.reports.figures.curves import drawable
from triptych.reports.figures.dictionaries import (
    CLASS_LOOKS,
    CLASS_NAMES,
    DictionarySpec,
    bars_sentence,
    features_of,
    said,
    seeds_sentence,
    shortened,
    without_latents,
)
from triptych.reports.format import NBSP, number, plural, share
from triptych.reports.inputs import FloatArray

RASTER_DPI = 200
"""Of the points, thousands of which would make a page that is slow to open."""


# --- Co-firing and energy ---------------------------------------------------------------------------------------------


class Cloud(NamedTuple):
    """The latents that a model fires, one entry a latent."""

    cofires: FloatArray
    energies: FloatArray
    entropies: FloatArray
    chances: FloatArray
    """Co-fires by chance over the model's firings; NaN where not recorded."""
    n_left_out: int
    """Fired, but of no energy that a logarithmic axis has."""


def figure_energy(run: Dictionaries) -> Figure:
    """Co-firing against energy, one panel a model, one point a latent."""
    clouds = _clouds(run)
    with style.applied():
        figure, all_axes = style.new_figure(0.8 + 2.0 * len(clouds), rows=len(clouds), sharex=True)
        figure.set_dpi(RASTER_DPI)
        for axes, (model, cloud) in zip(all_axes, clouds.items(), strict=True):
            _draw_cloud(axes, cloud)
            _decades(axes)
            axes.set(xlim=(-0.02, 1.02), title=drawable(model))
            axes.grid()
        all_axes[-1].set_xlabel("co-firing |C| / |F|")
        figure.supylabel("energy ‖E[z] D‖²", fontsize=9)
        style.legend_above(figure, all_axes[0], columns=2)
    return figure


def _draw_cloud(axes: Axes, cloud: Cloud) -> None:
    for name, look in CLASS_LOOKS.items():
        own = class_of(cloud.entropies, name)
        axes.plot(
            cloud.cofires[own],
            cloud.energies[own],
            look.marker,
            color=look.colour,
            markersize=3,
            markeredgewidth=0,
            alpha=0.7,
            rasterized=True,
            label=CLASS_NAMES[name],
        )
    if (known := cloud.chances[~np.isnan(cloud.chances)]).size:
        low, middle, high = np.percentile(known, [5, 50, 95])
        axes.axvspan(float(low), float(high), color=style.INK, alpha=style.QUIET, linewidth=0)
        axes.axvline(float(middle), color=style.INK, linewidth=1.1, linestyle="--", label="by chance")


def _decades(axes: Axes) -> None:
    """A logarithmic vertical axis with powers of ten as plain text: matplotlib's own are formulas."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    power = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: "10" + f"{round(np.log10(value))}".translate(power)))


def _clouds(run: Dictionaries) -> dict[str, Cloud]:
    """By model; one that fires nothing is left out."""
    clouds = {model: _cloud(features_of(run), model) for model in features_of(run).fires}
    return {model: cloud for model, cloud in clouds.items() if cloud.energies.size}


def _cloud(latents: Latents, model: str) -> Cloud:
    fires, energies = latents.fires[model], latents.energies[model]
    fired = (fires > 0) & ~latents.dead & ~np.isnan(latents.cofires[model])
    shown = fired & (energies > 0)
    return Cloud(
        cofires=latents.cofires[model][shown],
        energies=energies[shown],
        entropies=latents.entropies[shown],
        chances=latents.chances[shown] / fires[shown],
        n_left_out=int(np.count_nonzero(fired & ~shown)),
    )


def _energy_caption(run: Dictionaries) -> str:
    clouds = _clouds(run)
    n_left_out = sum(cloud.n_left_out for cloud in clouds.values())
    left_out = f" {plural(n_left_out, 'latent')} of no energy left out." if n_left_out else ""
    chance = (
        f" Dashed: the median latent’s co-firing if models fired independently at their own rates; shaded: 5 to 95"
        f"{NBSP}% of latents."
        if features_of(run).has_chances
        else " What chance would give was not recorded."
    )
    n = "; ".join(f"{cloud.energies.size:,} of {said(model)}" for model, cloud in clouds.items())
    return (
        f"Each point is a latent that the model fires on held-out {run.unit}s: the share of its firings in which all "
        f"other models join, and its energy on a logarithmic axis.{chance} n = {n}.{left_out}"
    )


def _energy_alt(run: Dictionaries) -> str:
    sentences = []
    for model, cloud in _clouds(run).items():
        known = cloud.chances[~np.isnan(cloud.chances)]
        chance = f", by chance {number(float(np.median(known)), 3)}" if known.size else ""
        parts = [
            f"{CLASS_NAMES[name]} median co-firing {number(float(np.median(cloud.cofires[own])), 3)}, median energy "
            f"{np.median(cloud.energies[own]):.2g}"
            for name in CLASS_LOOKS
            if (own := class_of(cloud.entropies, name)).any()
        ]
        high = share(float((cloud.cofires > 0.5).mean()))
        sentences.append(f"{said(model)}: {'; '.join(parts)}{chance}; {high} of latents co-fire in more than half.")
    return "Scatter plots of co-firing against energy, one point a latent. " + " ".join(sentences)


def _energy_absent(run: Dictionaries) -> str | None:
    return without_latents(run) or (None if _clouds(run) else "no latent that fires has an energy")


# --- Factors ----------------------------------------------------------------------------------------------------------

AUROC_CLASSES: tuple[Class, ...] = ("universal", "specific")


def figure_factors(run: Dictionaries) -> Figure:
    """AUROC of the best latents by factor, universal ones beside specific ones."""
    factors = _factors(run)
    with style.applied():
        figure, (axes,) = style.new_figure(1.1 + 0.42 * len(factors))
        for place, name in enumerate(AUROC_CLASSES):
            look = CLASS_LOOKS[name]
            points = [(row, e) for row, factor in enumerate(factors) if (e := _auroc(run, name, factor)) is not None]
            axes.errorbar(
                [e.value for _, e in points],
                [row + 0.24 * (place - 0.5) for row, _ in points],
                xerr=style.errors([e for _, e in points]),
                color=look.colour,
                marker=look.marker,
                linestyle="none",
                capsize=2.5,
                elinewidth=1.1,
                label=f"best {name} latents",
            )
        category_rows(axes, shortened(factors, length=16))
        axes.axvline(0.5, color=style.INK, linewidth=0.8, linestyle=":", zorder=1)
        axes.set_xlim(min(0.48, axes.get_xlim()[0]), 1.01)
        axes.set_xlabel("AUROC (mean over values)")
        axes.grid(axis="x")
        style.legend_above(figure, axes, columns=2)
    return figure


def _factors(run: Dictionaries) -> list[str]:
    return [f for f in run.factors if any(_auroc(run, name, f) is not None for name in AUROC_CLASSES)]


def _auroc(run: Dictionaries, name: Class, factor: str) -> Estimate | None:
    found = run.estimate(Key(MAIN, f"auroc_{name}", factor=factor))
    return None if found is None or found.mean is None else found


def _aurocs(run: Dictionaries) -> list[Estimate]:
    found = (_auroc(run, name, factor) for factor in _factors(run) for name in AUROC_CLASSES)
    return [estimate for estimate in found if estimate is not None]


def _factors_caption(run: Dictionaries) -> str:
    return (
        "How well single latents tell the values of a labelled factor: of every value the best latent of the class, "
        "then the mean over values. Dotted: 0.5, what one latent gives by chance; the best of many lies above it even "
        f"so, and the larger class has more to choose from. {seeds_sentence(run)} {bars_sentence(_aurocs(run))}"
    )


def _factors_alt(run: Dictionaries) -> str:
    sentences = []
    for factor in _factors(run):
        values = [f"{name} {in_words(e)}" for name in AUROC_CLASSES if (e := _auroc(run, name, factor)) is not None]
        sentences.append(f"{said(factor)}: {'; '.join(values)}.")
    return "Best AUROC by factor, universal against specific latents. " + " ".join(sentences)


def _factors_absent(run: Dictionaries) -> str | None:
    return None if _factors(run) else f"these {run.unit}s have no labels that latents were compared with"


ENERGY_SPECS: Sequence[DictionarySpec] = (
    DictionarySpec(
        "figure_energy", "Co-firing against energy", _energy_absent, figure_energy, _energy_caption, _energy_alt
    ),
)
FACTOR_SPECS: Sequence[DictionarySpec] = (
    DictionarySpec(
        "figure_factors",
        "Agreement of latents with labels",
        _factors_absent,
        figure_factors,
        _factors_caption,
        _factors_alt,
    ),
)
