"""How many latents count as universal by each definition, beside the nulls that should say none and all."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from triptych.dictionaries.records import MAIN
from triptych.records import Estimate
from triptych.reports.dictionaries_glossary import describe_measure, role_name
from triptych.reports.dictionaries_inputs import Dictionaries, Key
from triptych.reports.dictionaries_tables import count_in_words
from triptych.reports.figures import style
from triptych.reports.figures.auditing import category_rows
from triptych.reports.figures.dictionaries import DictionarySpec, bars_sentence, seeds_sentence
from triptych.reports.figures.style import Look

DEFINITIONS = ("universal_by_counts", "universal_by_variance", "confirmed", "universal")
"""From the weakest to the strictest; the last is both of those before it."""
LABELS = {
    "universal_by_counts": "fired equally often\n(paper)",
    "universal_by_variance": "explains equally much",
    "confirmed": "confirmed",
    "universal": "universal: explains\nequally much, confirmed",
}
LOOKS = {
    MAIN: Look(style.BLUE, "o", "-"),
    "shuffled": Look(style.INK, "X", "-"),
    "same": Look(style.PURPLE, "D", "-"),
}


def figure_definitions(run: Dictionaries) -> Figure:
    """Counts of latents: a row a definition, a point a dictionary."""
    roles = [role for role in LOOKS if any(_count(run, role, name) for name in DEFINITIONS)]
    with style.applied():
        figure, (axes,) = style.new_figure(3.3)
        for place, role in enumerate(roles):
            points = [(row, e) for row, name in enumerate(DEFINITIONS) if (e := _count(run, role, name)) is not None]
            axes.errorbar(
                [estimate.value for _, estimate in points],
                [row + 0.2 * (place - (len(roles) - 1) / 2) for row, _ in points],
                xerr=style.errors([estimate for _, estimate in points]),
                color=LOOKS[role].colour,
                marker=LOOKS[role].marker,
                markersize=5,
                linestyle="none",
                capsize=2.5,
                elinewidth=1.1,
                label=_name(run, role),
            )
        category_rows(axes, [LABELS[name] for name in DEFINITIONS])
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        axes.set_xlabel("latents that count as universal")
        axes.grid(axis="x")
        style.legend_above(figure, axes, columns=1)
    return figure


def _name(run: Dictionaries, role: str) -> str:
    return "shared dictionary" if role == MAIN else role_name(role, unit=run.unit)


def _count(run: Dictionaries, role: str, metric: str) -> Estimate | None:
    estimate = run.estimate(Key(role, metric))
    return None if estimate is None or estimate.mean is None else estimate


def _absent(run: Dictionaries) -> str | None:
    has_counts = all(_count(run, MAIN, name) is not None for name in DEFINITIONS)
    return None if has_counts else "this run was measured before there were several definitions of universal"


def _caption(run: Dictionaries) -> str:
    estimates = [_count(run, role, name) for role in LOOKS for name in DEFINITIONS]
    size = f" of {run.main.latents:,}" if run.main is not None else ""
    return (
        f"Latents{size} that count as universal, by definition. The first two compare how much, never on what, and may "
        f"find as many on {run.unit}s that do not correspond. Confirmed latents are fired together beyond chance and "
        f"with codes that correlate. {seeds_sentence(run)} {bars_sentence(estimates)}"
    )


def _alt(run: Dictionaries) -> str:
    sentences = []
    for role in LOOKS:
        counts = [
            f"{describe_measure(name).label} {count_in_words(estimate)}"
            for name in DEFINITIONS
            if (estimate := _count(run, role, name)) is not None
        ]
        if counts:
            sentences.append(f"{_name(run, role)}: {'; '.join(counts)}.")
    return "Numbers of latents that count as universal by four definitions. " + " ".join(sentences)


SPECS: Sequence[DictionarySpec] = (
    DictionarySpec("figure_definitions", "Universal by which definition?", _absent, figure_definitions, _caption, _alt),
)
