"""Figure 7 and the frontier: what variety costs in quality.

Where no completion has a reward, figure 7 says so in large letters and shows the log-probability in its place, named as
the substitute it is: likelihood is not quality (Zhang et al. 2021).
"""

from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from triptych.records import Estimate, FrontierPoint
from triptych.reports.arms import Arm, at_temperature, families, name_arms, name_families, setting_labels, strategy_name
from triptych.reports.figures import style
from triptych.reports.figures.spec import FigureSpec, interval_sentence, points_sentence, sweeps
from triptych.reports.format import joined, plural, probability, with_interval
from triptych.reports.inputs import Decoding
from triptych.reports.settings import lookup

CHARACTER_WIDTH, LABEL_HEIGHT = 0.02, 0.045
"""About the size of a label's character, in fractions of the axes."""


def is_scored(run: Decoding) -> bool:
    """Whether the run has a reward for any arm of figure 7."""
    return any(run.measured(arm, "reward") for arm in sweeps(run))


def figure_07(run: Decoding) -> Figure:
    """Distinct-1 across prompts against reward, one line a strategy, one point a temperature."""
    scored = is_scored(run)
    points, names = _points_07(run), name_families(run.arms)
    looks = style.looks(families(points))
    with style.applied():
        figure, (axes,) = style.new_figure(3.7 if scored else 4.3)
        for family, look in looks.items():
            _trail(axes, [points[arm] for arm in points if arm.family == family], look, names[family])
        axes.set_xlabel("Distinct-1 across prompts  (more varied →)")
        axes.set_ylabel(f"mean reward ({_reward_model(run)})" if scored else "mean log-probability (nats per token)")
        axes.margins(0.12)
        place_labels(axes, _labels_07(points))
        axes.grid()
        style.legend_above(figure, axes, columns=3)
        if not scored:
            _unscored_banner(axes)
    return figure


def figure_frontier(run: Decoding) -> Figure:
    """Quality against diversity for every setting tried, with the frontier."""
    points = _settings_by_strategy(run)
    equal = _equal_budget(run)
    with style.applied():
        figure, (axes,) = style.new_figure(4.3 + 0.08 * len(points))
        for strategy, settings in points.items():
            name = strategy_name(strategy)
            _setting_points(axes, settings, name if equal else f"{name} ({plural(settings[0].budget, 'setting')})")
        _frontier_line(axes, run)
        axes.margins(0.1)
        labels = setting_labels(arm for arm, _ in run.frontier)
        on_it = [
            Label(_with_chance(labels[arm], point), point.diversity.value, point.quality.value, below=False)
            for arm, point in _on_frontier(run)
        ]
        place_labels(axes, on_it)
        axes.set_xlabel(f"{_first(run).diversity_name}  (more varied →)")
        axes.set_ylabel(_first(run).quality_name)
        axes.grid()
        style.note(axes, f"{plural(equal, 'setting')} of each strategy" if equal else "")
        style.legend_above(figure, axes, columns=3 if equal else 2)
    return figure


def _trail(axes: Axes, points: list[tuple[Estimate, Estimate]], look: style.Look, label: str) -> None:
    """One strategy's points, joined in the order of temperature."""
    axes.errorbar(
        [diversity.value for diversity, _ in points],
        [quality.value for _, quality in points],
        xerr=style.errors([diversity for diversity, _ in points]),
        yerr=style.errors([quality for _, quality in points]),
        color=look.colour,
        marker=look.marker,
        linestyle=look.line,
        linewidth=1.1,
        elinewidth=0.9,
        capsize=2,
        label=label,
    )


class Label(NamedTuple):
    """A text beside a point."""

    text: str
    x: float
    y: float
    below: bool
    """At the lower left of its point, else at the upper right."""


def _labels_07(points: dict[Arm, tuple[Estimate, Estimate]]) -> list[Label]:
    """Temperatures; those of the first line stand below it, so that the labels of two lines keep apart."""
    lines = families(points)
    return [
        Label(
            "" if arm.temperature is None else at_temperature(arm.temperature),
            diversity.value,
            quality.value,
            below=len(lines) > 1 and arm.family == lines[0],
        )
        for arm, (diversity, quality) in points.items()
    ]


def place_labels(axes: Axes, labels: list[Label]) -> None:
    """Labels in a corner between the error bars: of falling lines the lower left and the upper right are free.

    One that would run into an earlier label is left out: the tables have them all.
    """
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    placed: list[tuple[float, float]] = []
    for label in labels:
        offset, across, up, side = ((-4, -3), "right", "top", -1) if label.below else ((4, 3), "left", "bottom", 1)
        width = CHARACTER_WIDTH * len(label.text)
        x = (label.x - left) / (right - left) + side * width / 2
        y = (label.y - bottom) / (top - bottom) + side * LABEL_HEIGHT / 2
        if all(abs(x - other_x) > width or abs(y - other_y) > LABEL_HEIGHT for other_x, other_y in placed):
            placed.append((x, y))
            text = axes.annotate(label.text, (label.x, label.y), offset, textcoords="offset points")
            text.set(ha=across, va=up, fontsize=style.SMALL)


def _unscored_banner(axes: Axes) -> None:
    axes.set_title(
        "Unscored: no reward model available.\nShown: log-probability, NOT quality.",
        loc="left",
        linespacing=1.4,
        pad=12,
        bbox={"facecolor": "none", "edgecolor": style.RED, "boxstyle": "square,pad=0.5", "linewidth": 1.2},
    )


def _setting_points(axes: Axes, points: list[FrontierPoint], label: str) -> None:
    look = style.STRATEGY_LOOKS.get(points[0].strategy, style.UNKNOWN_LOOK)
    # A filled marker stands in the legend, also where none is drawn.
    axes.errorbar([], [], fmt=look.marker, color=look.colour, label=label)
    for point in points:
        chance = _chance(point)
        axes.errorbar(
            point.diversity.value,
            point.quality.value,
            xerr=style.errors([point.diversity]),
            yerr=style.errors([point.quality]),
            fmt=look.marker,
            color=to_rgba(look.colour, 0.45 + 0.55 * chance),
            markerfacecolor=to_rgba(look.colour, chance),
            markeredgecolor=look.colour,
            elinewidth=0.8 if point.on_frontier else 0.5,
            capsize=0,
            zorder=3 if point.on_frontier else 2,
        )


def _chance(point: FrontierPoint) -> float:
    """That the setting is on the frontier; where the run has no probability, whether it is by its means."""
    return float(point.on_frontier) if point.on_frontier_probability is None else point.on_frontier_probability


def _with_chance(label: str, point: FrontierPoint) -> str:
    return label if point.on_frontier_probability is None else f"{label} ({probability(point.on_frontier_probability)})"


def _frontier_line(axes: Axes, run: Decoding) -> None:
    on_it = [point for _, point in _on_frontier(run)]
    x, y = [point.diversity.value for point in on_it], [point.quality.value for point in on_it]
    # As error bars without bars, so that the legend lists it in the order of drawing: last.
    axes.errorbar(x, y, color=style.INK, linewidth=1.1, linestyle="--", zorder=1, label="frontier")


def _settings_by_strategy(run: Decoding) -> dict[str, list[FrontierPoint]]:
    by_strategy: dict[str, list[FrontierPoint]] = {}
    for arm, point in run.frontier:
        by_strategy.setdefault(arm.strategy, []).append(point)
    return by_strategy


def _equal_budget(run: Decoding) -> int | None:
    """Settings of each strategy, where all were given equally many."""
    budgets = {point.budget for _, point in run.frontier}
    return budgets.pop() if len(budgets) == 1 else None


def _first(run: Decoding) -> FrontierPoint:
    return run.frontier[0][1]


def _on_frontier(run: Decoding) -> list[tuple[Arm, FrontierPoint]]:
    """From the least to the most varied."""
    measured = [
        (arm, point)
        for arm, point in run.frontier
        if point.on_frontier and point.diversity.mean is not None and point.quality.mean is not None
    ]
    return sorted(measured, key=lambda pair: (pair[1].diversity.value, pair[1].quality.value))


def _points_07(run: Decoding) -> dict[Arm, tuple[Estimate, Estimate]]:
    """Diversity and quality of the arms that have both."""
    quality_metric = "reward" if is_scored(run) else "mean_logprob"
    points = {}
    for arm in sweeps(run):
        diversity, quality = run.measure(arm, "distinct_1", "across"), run.measure(arm, quality_metric)
        if diversity is not None and quality is not None and diversity.mean is not None and quality.mean is not None:
            points[arm] = (diversity, quality)
    return points


def _reward_model(run: Decoding) -> str:
    """The reward model's short name, for the axis."""
    return ", ".join(name.rsplit("/", 1)[-1] for name in run.reward_models) or "reward model's score"


def _figure_07_absent(run: Decoding) -> str | None:
    return None if _points_07(run) else "no arm with a temperature has both a Distinct-1 and a quality"


def _figure_07_caption(run: Decoding) -> str:
    points = _points_07(run)
    both = [estimate for pair in points.values() for estimate in pair]
    if is_scored(run):
        unscored = sum(quality.n_unscored for _, quality in points.values())
        scored_by = f"Reward: mean score by {joined(run.reward_models) or 'the reward model of the run'}"
        start = f"{scored_by}, {plural(unscored, 'completion')} without a score."
    else:
        start = (
            "The paper's figure needs a reward model, and none was available in this run: nothing here is a reward. As "
            "a substitute the vertical axis shows the model's own mean log-probability, which says how likely the text "
            f"is to the model and not how good it is. To get the figure, {_how_to_score(run)}."
        )
    labels = "Points are labelled with temperature where there is room."
    return f"{start} {labels} {points_sentence(both)} {interval_sentence(both)}"


def _how_to_score(run: Decoding) -> str:
    wanted = lookup(run.manifest.config, "reward_model")
    if isinstance(wanted, str):
        return f"make {wanted} available and run the same command again: what is finished is kept"
    return "name a reward model (a hub id or a local folder) in the recipe and run the study again"


def _figure_07_alt(run: Decoding) -> str:
    names = name_arms(run.arms)
    quality_name = "reward" if is_scored(run) else "log-probability"
    start = (
        "Distinct-1 across prompts against mean reward."
        if is_scored(run)
        else "Unscored: no reward model was available. As a substitute, Distinct-1 against mean log-probability."
    )
    values = [
        f"{names[arm]}: Distinct-1 {with_interval(diversity)}, {quality_name} {with_interval(quality)}"
        for arm, (diversity, quality) in _points_07(run).items()
    ]
    return f"{start} {'; '.join(values)}."


def _budget_sentence(run: Decoding) -> str:
    if (equal := _equal_budget(run)) is not None:
        return f"Every strategy was tried with {plural(equal, 'setting')}."
    listed = joined([f"{strategy_name(s)} {points[0].budget}" for s, points in _settings_by_strategy(run).items()])
    return f"Settings tried are not equal in number ({listed}): a strategy with more of them has more chances."


def _frontier_caption(run: Decoding) -> str:
    estimates = [estimate for _, point in run.frontier for estimate in (point.quality, point.diversity)]
    first = _first(run)
    return (
        f"Every setting tried: {first.quality_name} against {first.diversity_name}. The dashed line joins those on the "
        "frontier by their means: no other setting has both a higher quality and a higher diversity. "
        f"{_chance_sentence(run)}{_budget_sentence(run)} {points_sentence(estimates)} {interval_sentence(estimates)} "
        "Labels that would overlap are left out; the tables have them."
    )


def _chance_sentence(run: Decoding) -> str:
    if all(point.on_frontier_probability is None for _, point in run.frontier):
        return "Points whose intervals overlap may well change places in another run. "
    return (
        "The fuller a mark, and in brackets at its label: how probably it is on the frontier that many more prompts "
        "would show, all settings drawn together by the jackknife's errors over prompts. "
    )


def _frontier_alt(run: Decoding) -> str:
    names = name_arms(arm for arm, _ in run.frontier)
    values = [
        f"{_with_chance(names[arm], point)}: {with_interval(point.diversity)} and {with_interval(point.quality)}"
        for arm, point in _on_frontier(run)
    ]
    return (
        f"Scatter plot of {_first(run).quality_name} against {_first(run).diversity_name} for "
        f"{plural(len(run.frontier), 'setting')}. On the frontier by their means (and how probably), diversity and "
        f"quality: {'; '.join(values)}."
    )


SPECS = (
    FigureSpec(
        "figure_07",
        "Figure 7. Diversity against quality across temperatures",
        _figure_07_absent,
        figure_07,
        _figure_07_caption,
        _figure_07_alt,
    ),
)

OWN_SPECS = (
    FigureSpec(
        "figure_frontier",
        "Quality-diversity frontier at stated tuning budgets",
        lambda run: (
            None if _on_frontier(run) else "this run has no decoding/frontier.json, or no setting with both measures"
        ),
        figure_frontier,
        _frontier_caption,
        _frontier_alt,
    ),
)
