import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from triptych.records import Estimate
from triptych.reports.figures import OWN_FIGURES, PAPER_FIGURES, FigureSpec, figure_04, figure_07, style
from triptych.reports.figures.spec import count_sentence, interval_sentence
from triptych.reports.figures.tradeoff import Label, is_scored, place_labels
from triptych.reports.inputs import read_decoding

MakeRun = Callable[..., Path]
SPECS = (*PAPER_FIGURES, *OWN_FIGURES)
NAMES = [spec.name for spec in SPECS]
SVG = "{http://www.w3.org/2000/svg}"
PAGES = ("#fcfcfa", "#ffffff", "#14171b", "#1b1f24")
"""Backgrounds of the page and of its cards, light and dark (page.css)."""


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_numbering_is_the_papers() -> None:
    assert [spec.name for spec in PAPER_FIGURES] == [f"figure_{number:02d}" for number in range(1, 8)]


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_is_there_as_svg_and_png(built: Path, name: str) -> None:
    png = (built / "figures" / f"{name}.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    root = ElementTree.fromstring((built / "figures" / f"{name}.svg").read_text("utf-8"))  # noqa: S314
    assert root.tag == f"{SVG}svg"
    assert root.find(f"{SVG}title") is not None
    assert len((root.findtext(f"{SVG}desc") or "").split()) > 10  # the alt text


@pytest.mark.parametrize("name", NAMES)
def test_svg_follows_the_page(built: Path, name: str) -> None:
    text = (built / "figures" / f"{name}.svg").read_text("utf-8")
    assert "currentColor" in text
    assert style.INK not in text
    assert "<text" in text  # text stays text
    assert "sans-serif" in text
    assert "<dc:date" not in text
    assert "<metadata" not in text
    assert not re.search(r'(?:href|src)="(?!#)', text)  # nothing from elsewhere
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert all(identifier.startswith(name) for identifier in ids)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)


def test_optional_figures_say_why_they_are_absent(built_bare: Path) -> None:
    run = read_decoding(built_bare)
    absent = {spec.name: spec.absent(run) for spec in SPECS if spec.absent(run) is not None}
    assert list(absent) == ["figure_frontier"]
    assert "frontier.json" in str(absent["figure_frontier"])


def test_a_run_without_sampling_has_no_sweeps(built: Path) -> None:
    run = read_decoding(built)
    fixed = {arm: rows for arm, rows in run.rows.items() if arm.temperature is None}
    only_fixed = type(run)(**{**vars(run), "rows": fixed})
    absent = [spec.name for spec in PAPER_FIGURES if spec.absent(only_fixed) is not None]
    assert absent == ["figure_04", "figure_05", "figure_06", "figure_07"]


def test_figure_4_shows_both_readings_with_intervals(built: Path) -> None:
    figure = figure_04(read_decoding(built))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["of the model itself", "as sampled from"]
    # One error-bar container a sweep and panel, each with bars.
    assert all(len(axes.containers) == 2 for axes in figure.axes)
    assert all(container.has_yerr for axes in figure.axes for container in axes.containers)  # type: ignore[attr-defined]


def test_figure_7_scored_shows_the_reward_in_both_directions(built: Path) -> None:
    run = read_decoding(built)
    assert is_scored(run)
    (axes,) = figure_07(run).axes
    assert axes.get_ylabel() == "mean reward (reward-model)"
    assert all(container.has_xerr and container.has_yerr for container in axes.containers)  # type: ignore[attr-defined]
    assert {text.get_text().replace("\u00a0", " ") for text in axes.texts} == {"T 0.2", "T 0.8"}


def test_figure_7_unscored_says_so_and_shows_no_reward(built_bare: Path) -> None:
    run = read_decoding(built_bare)
    assert not is_scored(run)
    (axes,) = figure_07(run).axes
    assert "Unscored" in axes.get_title(loc="left")
    assert "reward" not in axes.get_ylabel()
    caption = next(spec for spec in PAPER_FIGURES if spec.name == "figure_07").caption(run)
    assert "nothing here is a reward" in caption
    assert "name a reward model" in caption


@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_captions_say_n_and_what_the_interval_is(built: Path, built_bare: Path, spec: FigureSpec) -> None:
    caption = spec.caption(read_decoding(built))
    assert "n = " in caption
    if spec.name in ("figure_04", "figure_05", "figure_06", "figure_07", "figure_frontier"):
        assert "95\u00a0% intervals, clustered by prompt (cluster bootstrap-t, 2000 resamples)" in caption
        one = read_decoding(built_bare)
        assert spec.absent(one) or "one prompt gives no interval" in spec.caption(one)


def test_figure_5_says_what_the_paper_leaves_open(built: Path) -> None:
    caption = next(spec for spec in PAPER_FIGURES if spec.name == "figure_05").caption(read_decoding(built))
    assert "caption says top-k and its text top-p" in caption


def test_frontier_states_the_budget(built: Path) -> None:
    caption = next(spec for spec in OWN_FIGURES if spec.name == "figure_frontier").caption(read_decoding(built))
    assert "Every strategy was tried with 2 settings" in caption
    assert "how probably it is on the frontier" in caption


def test_figure_3_shows_the_lead_where_runners_up_were_kept(built: Path, built_bare: Path) -> None:
    spec = next(spec for spec in PAPER_FIGURES if spec.name == "figure_03")
    with_beams, without = read_decoding(built), read_decoding(built_bare)
    assert [len(spec.draw(run).axes) for run in (with_beams, without)] == [2, 1]
    assert "lead" in spec.caption(with_beams)
    assert "lead" not in spec.caption(without)
    assert "median 0.50 nats" in spec.alt(with_beams)


def test_labels_that_would_overlap_are_left_out() -> None:
    _, (axes,) = style.new_figure(3.0)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    labels = [Label("T 0.2", 0.5, 0.5, below=False), Label("T 0.5", 0.51, 0.5, below=False)]
    place_labels(axes, [*labels, Label("T 0.8", 0.5, 0.5, below=True)])
    assert [text.get_text() for text in axes.texts] == ["T 0.2", "T 0.8"]


def test_counts_are_told_group_by_group(built: Path) -> None:
    run = read_decoding(built)
    sentence = count_sentence(run, run.arms)
    assert "4 completions of 4 prompts (greedy and beam 4)" in sentence
    assert "8 completions of 4 prompts (each of 4 other arms)" in sentence


def test_no_interval_draws_no_bar() -> None:
    one = Estimate(mean=0.5, low=None, high=None, n=1, n_clusters=1, method="no interval: one prompt")
    assert np.isnan(style.errors([one])).all()
    assert interval_sentence([one]) == "No error bars: one prompt gives no interval."


def test_box_is_tukeys() -> None:
    # Quartiles of 1 … 5 are 2 and 4; the whiskers may reach 3 beyond, so 100 is outside and 5 is the last inside.
    box = style.box_of(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert box == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert style.box_of(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 100.0])).high == 5.0


@pytest.mark.parametrize("page", PAGES)
def test_colours_are_visible_on_light_and_dark(page: str) -> None:
    colours = {look.colour for look in style.STRATEGY_LOOKS.values()} | set(style.ORDER_COLOURS.values())
    for colour in colours | {style.GREEN, style.PURPLE}:
        assert contrast(colour, page) >= 3.0, colour  # what WCAG asks of graphics


def test_looks_never_rest_on_colour_alone() -> None:
    looks = list(style.STRATEGY_LOOKS.values())
    assert len({look.marker for look in looks}) == len(looks)
    assert len(set(style.ORDER_MARKERS.values())) == len(set(style.ORDER_LINES.values())) == 3


@pytest.mark.parametrize("colour", [style.BLUE, style.ORANGE, style.RED, style.GREY])
def test_text_on_colour_is_legible(colour: str) -> None:
    assert contrast({"black": "#000000", "white": "#ffffff"}[style.text_on(colour)], colour) >= 4.5


def test_drawing_leaves_global_settings_alone(built: Path) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    figure_04(read_decoding(built))
    assert dict(mpl.rcParams) == before
