"""Figures 5 and 6, and ours beside them: how varied the texts are, and how much of it is length."""

import re
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from triptych.reports.arms import Arm, Family, families, name_arms, name_families, ordered, parameters
from triptych.reports.figures import style
from triptych.reports.figures.spec import FigureSpec, interval_sentence, no_arm, points_sentence, spoken, sweeps
from triptych.reports.format import number, plural, with_interval
from triptych.reports.glossary import Scope, describe
from triptych.reports.inputs import Decoding

ORDERS = (1, 2, 3)
PAPER_TEMPERATURE = 0.8
PAPER_P = 0.9
PAPER_P = 0.9
SCOPE_LOOKS: tuple[tuple[Scope, str, str | None], ...] = (
    ("within", style.GREEN, None),
    ("across", style.PURPLE, "///"),
)
SCOPE_NAMES: dict[Scope, str] = {"within": "within a prompt", "across": "across prompts"}


def figure_05(run: Decoding) -> Figure:
    """Distinct-1, -2 and -3 across prompts against temperature: one panel a strategy."""
    shown, names = _families_05(run), name_families(run.arms)
    rows = -(-len(shown) // 2)
    with style.applied():
        figure, all_axes = style.new_figure(0.7 + 2.6 * rows, rows=rows, columns=min(2, len(shown)), sharey=True)
        for axes, family in zip(all_axes, shown, strict=False):
            _distinct_lines(axes, run, family)
            axes.set_title(names[family])
        for axes in all_axes[len(shown) :]:
            axes.set_visible(False)
        for axes in all_axes[::2]:
            axes.set_ylabel("Distinct-N across prompts")
        style.legend_above(figure, all_axes[0], columns=3)
    return figure


def figure_06(run: Decoding) -> Figure:
    """Distinct-1, -2 and -3 of one top-p arm, within and across prompts."""
    arm = _arm_06(run)
    if arm is None:
        raise ValueError("figure 6 needs a top-p arm with a Distinct-N; ask `absent` before drawing")
    with style.applied():
        figure, (axes,) = style.new_figure(3.2)
        for side, (scope, colour, hatch) in enumerate(SCOPE_LOOKS):
            _bars(axes, run, arm, scope, colour, hatch, 0.4 * side - 0.2)
        axes.set_xticks(range(len(ORDERS)), [f"Distinct-{n}" for n in ORDERS])
        axes.tick_params(axis="x", length=0)
        axes.set(ylim=(0, 1.12), ylabel="unique n-grams / all n-grams")
        axes.grid(axis="y")
        sizes = [e.n_clusters for scope in SCOPE_NAMES if (e := run.measure(arm, "distinct_1", scope)) is not None]
        style.note(axes, f"{name_arms(run.arms)[arm]},  n = {' and '.join(f'{n:,}' for n in sizes)} prompts")
        style.legend_above(figure, axes, columns=2)
    return figure


def figure_diversity_matched(run: Decoding) -> Figure:
    """Distinct beside its two corrections for length, and the length itself, for every arm."""
    metrics = _matched_metrics(run)
    names = name_arms(run.arms)
    rows = -(-len(metrics) // 2)
    with style.applied():
        figure, all_axes = style.new_figure(rows * (0.75 + 0.17 * len(names)), rows=rows, columns=2, sharey=True)
        for axes, metric in zip(all_axes, metrics, strict=False):
            _dots(axes, run, metric)
        for axes in all_axes[len(metrics) :]:
            axes.set_visible(False)
        all_axes[0].set_yticks(range(len(names)), list(names.values()))
        all_axes[0].set_ylim(len(names) - 0.4, -0.6)
    return figure


def _distinct_lines(axes: Axes, run: Decoding, family: Family) -> None:
    arms = [arm for arm in run.arms if arm.family == family]
    for n in ORDERS:
        points = run.sweep(arms, f"distinct_{n}", "across")
        look = style.Look(style.ORDER_COLOURS[n], style.ORDER_MARKERS[n], style.ORDER_LINES[n])
        style.plot_estimates(axes, [t for t, _ in points], [estimate for _, estimate in points], look, f"N = {n}")
    style.temperature_ticks(axes, sorted({arm.temperature for arm in arms if arm.temperature is not None}))
    axes.set_ylim(0, 1.05)
    axes.grid(axis="y")
    prompts = [estimate.n_clusters for _, estimate in run.sweep(arms, "distinct_1", "across")]
    style.note(axes, f"n = {max(prompts):,} prompts" if prompts else "")


def _bars(axes: Axes, run: Decoding, arm: Arm, scope: Scope, colour: str, hatch: str | None, shift: float) -> None:
    for place, n in enumerate(ORDERS):
        estimate = run.measure(arm, f"distinct_{n}", scope)
        if estimate is None or estimate.mean is None:
            continue
        label = SCOPE_NAMES[scope] if place == 0 else None
        bars = axes.bar(place + shift, estimate.mean, 0.36, facecolor=(colour, 0.8), label=label, hatch=hatch)
        bars[0].set(edgecolor=style.INK, linewidth=0)
        axes.errorbar(
            place + shift, estimate.mean, yerr=style.errors([estimate]), color=style.INK, capsize=3, fmt="none"
        )
        top = estimate.mean if estimate.high is None else estimate.high
        axes.annotate(number(estimate.mean, 3), (place + shift, top), (0, 3), textcoords="offset points", ha="center")


def _dots(axes: Axes, run: Decoding, metric: str) -> None:
    for row, arm in enumerate(run.arms):
        estimate = run.measure(arm, metric, "across", "arm")
        if estimate is None or estimate.mean is None:
            axes.plot([], [])
            continue
        look = style.look_of(arm)
        reach = style.errors([estimate])
        axes.errorbar(estimate.mean, row, xerr=reach, color=look.colour, marker=look.marker, capsize=2, markersize=4.5)
    for row, (above, below) in enumerate(pairwise(run.arms)):
        if above.family != below.family:
            axes.axhline(row + 0.5, color=style.INK, alpha=style.QUIET, linewidth=0.6)
    axes.set_title(describe(metric).axis.removesuffix(" words"))  # two panels stand side by side: little room
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _families_05(run: Decoding) -> list[Family]:
    return families(arm for arm in sweeps(run) if run.measured(arm, "distinct_1", "across"))


def _arm_06(run: Decoding) -> Arm | None:
    """The top-p arm nearest the paper's: one measured within prompts, then p = 0.9, then T nearest to 0.8."""
    candidates = [
        arm
        for arm in ordered(run.arms)
        if arm.strategy == "top_p"
        and arm.temperature is not None
        and run.measured(arm, "distinct_1", "within", "across")
    ]
    return min(candidates, key=lambda arm: _distance_to_paper(run, arm), default=None)


def _distance_to_paper(run: Decoding, arm: Arm) -> tuple[bool, bool, float]:
    only_across = not run.measured(arm, "distinct_1", "within")
    return only_across, parameters(arm.family).get("p") != PAPER_P, abs((arm.temperature or 0.0) - PAPER_TEMPERATURE)


def _matched_metrics(run: Decoding) -> list[str]:
    """Distinct-1, EAD-1, the longest fixed length of Distinct-1, and the words of a completion."""
    fixed = [(int(match[1]), match[0]) for _, metric, _ in run.measures if (match := _AT_LENGTH.fullmatch(metric))]
    wanted = ["distinct_1", "ead_1", *[metric for _, metric in sorted(fixed)[-1:]], "words"]
    return [metric for metric in wanted if any(run.measured(arm, metric, "across", "arm") for arm in run.arms)]


_AT_LENGTH = re.compile(r"distinct_1_at_(\d+)")


def _figure_05_caption(run: Decoding) -> str:
    estimates = [run.measure(arm, f"distinct_{n}", "across") for arm in sweeps(run) for n in ORDERS]
    return (
        "Unique over all n-grams of words, pooled over one completion a prompt. The paper's caption says top-k and its "
        "text top-p for this figure, so both are shown. "
        f"{points_sentence(estimates)} {interval_sentence(estimates)}"
    )


def _figure_05_alt(run: Decoding) -> str:
    names = name_families(run.arms)
    sentences = []
    for family in _families_05(run):
        arms = [arm for arm in run.arms if arm.family == family]
        for n in ORDERS:
            if points := run.sweep(arms, f"distinct_{n}", "across"):
                sentences.append(f"{names[family]}, Distinct-{n}: {spoken(points)}.")
    return "Line plots of Distinct-N across prompts against temperature. " + " ".join(sentences)


def _figure_06_caption(run: Decoding) -> str:
    arm = _arm_06(run)
    if arm is None:
        return ""
    aside = "" if arm.temperature == PAPER_TEMPERATURE else " The paper's temperature, 0.8, is not part of this run."
    return (
        f"Unique over all n-grams of words for {name_arms(run.arms)[arm]}.{aside} {_pools_06(run, arm)} The two pools "
        "differ in size, and Distinct falls with the amount of text: a difference between the bars is not by itself "
        f"one in variety. {interval_sentence(run.measure(arm, 'distinct_1', scope) for scope in SCOPE_NAMES)}"
    )


def _pools_06(run: Decoding, arm: Arm) -> str:
    """What each bar is made of, and n."""
    within, across = (run.measure(arm, "distinct_1", scope) for scope in SCOPE_NAMES)
    samples = len(set(run.rows[arm].samples.tolist()))
    sentences = []
    if within is not None:
        pool = f"{samples} completions of each of {plural(within.n_clusters, 'prompt')}"
        sentences.append(f"Within: {pool}, pooled prompt by prompt, then the mean (n = {within.n_clusters:,}).")
    if across is not None:
        pool = f"one completion of each of {plural(across.n_clusters, 'prompt')}"
        sentences.append(f"Across: {pool}, all pooled (n = {across.n_clusters:,}).")
    return " ".join(sentences)


def _figure_06_alt(run: Decoding) -> str:
    arm = _arm_06(run)
    if arm is None:
        return ""
    values = [
        f"Distinct-{n} {SCOPE_NAMES[scope]} {with_interval(estimate)}"
        for n in ORDERS
        for scope in SCOPE_NAMES
        if (estimate := run.measure(arm, f"distinct_{n}", scope)) is not None
    ]
    return f"Grouped bars of Distinct-N within and across prompts for {name_arms(run.arms)[arm]}. {'; '.join(values)}."


def _matched_caption(run: Decoding) -> str:
    estimates = [run.measure(arm, metric, "across", "arm") for arm in run.arms for metric in _matched_metrics(run)]
    return (
        "Distinct-1 beside the same quantity corrected for the amount of text (EAD-1), on equally long beginnings of "
        "the texts, and beside the length of the texts. Where the order of arms changes between the panels, Distinct-1 "
        f"showed length. Pooled over one completion a prompt. {points_sentence(estimates)} "
        f"{interval_sentence(estimates)}"
    )


def _matched_alt(run: Decoding) -> str:
    names = name_arms(run.arms)
    sentences = []
    for metric in _matched_metrics(run):
        values = [
            f"{names[arm]} {number(estimate.mean, describe(metric).decimals)}"
            for arm in run.arms
            if (estimate := run.measure(arm, metric, "across", "arm")) is not None and estimate.mean is not None
        ]
        sentences.append(f"{describe(metric).axis}: {'; '.join(values)}.")
    return "Dot plots of diversity and length for every arm. " + " ".join(sentences)


def _matched_absent(run: Decoding) -> str | None:
    return None if len(_matched_metrics(run)) > 1 else "this run has no diversity measure corrected for length"


SPECS = (
    FigureSpec(
        "figure_05",
        "Figure 5. Distinct-N across prompts against temperature",
        lambda run: None if _families_05(run) else "no arm with a temperature has a Distinct-N across prompts",
        figure_05,
        _figure_05_caption,
        _figure_05_alt,
    ),
    FigureSpec(
        "figure_06",
        "Figure 6. Distinct-N within and across prompts, top-p",
        lambda run: None if _arm_06(run) else no_arm(run, "top_p") or "no top-p arm has a Distinct-N",
        figure_06,
        _figure_06_caption,
        _figure_06_alt,
    ),
)

OWN_SPECS = (
    FigureSpec(
        "figure_diversity_matched",
        "Distinct-1 and its corrections for length",
        _matched_absent,
        figure_diversity_matched,
        _matched_caption,
        _matched_alt,
    ),
)
