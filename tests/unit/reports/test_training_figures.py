import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.lines import Line2D

from triptych.reports import build_report
from triptych.reports.alignment_inputs import Alignment, Curve, TrainingRun, number, plain, read_alignment
from triptych.reports.figures import TRAINING_FIGURES, TrainingSpec, style
from triptych.reports.figures.curves import (
    ALARM_LOOKS,
    REFERENCE,
    alarms,
    drawable,
    smooth,
    smoothing_width,
    stride,
)
from triptych.reports.figures.training import LN_2, PARTIAL_LOOKS, drifts, shown

MakeTraining = Callable[..., Path]
REWARD, DPO, GRPO, HEALTH = TRAINING_FIGURES
NAMES = [spec.name for spec in TRAINING_FIGURES]
SVG = "{http://www.w3.org/2000/svg}"
PAGES = ("#fcfcfa", "#ffffff", "#14171b", "#1b1f24")
"""Backgrounds of the page and of its cards, light and dark (page.css)."""


@pytest.fixture(scope="module")
def folder(make_training: MakeTraining, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three runs, with their report. Read only."""
    run_dir = make_training(tmp_path_factory.mktemp("training") / "run", steps=60)
    build_report(run_dir)
    return run_dir


@pytest.fixture(scope="module")
def healthy(folder: Path) -> Alignment:
    return read(folder)


@pytest.fixture(scope="module")
def collapsed(make_training: MakeTraining, tmp_path_factory: pytest.TempPathFactory) -> Alignment:
    return read(make_training(tmp_path_factory.mktemp("collapsed") / "run", runs=("grpo",), collapsed=True))


def read(run_dir: Path) -> Alignment:
    run = read_alignment(run_dir)
    assert run is not None
    return run


def changed(run: TrainingRun, **fields: Any) -> TrainingRun:
    """The run with another state, or other lines."""
    state = {name: value for name, value in fields.items() if name in type(run.state).model_fields}
    own = {name: value for name, value in fields.items() if name not in state}
    kept = {name: getattr(run, name) for name in ("state", "lines", "evaluations", "config")}
    return TrainingRun(**{**kept, "state": run.state.model_copy(update=state), **own})


def xs_of(line: Line2D) -> list[float]:
    return [float(x) for x in np.asarray(line.get_xdata())]


def ys_of(line: Line2D) -> list[float]:
    return [float(y) for y in np.asarray(line.get_ydata())]


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# --- Files ------------------------------------------------------------------------------------------------------------


def test_names_say_that_they_are_ours() -> None:
    assert [f"figure_training_{name}" for name in ("reward", "dpo", "grpo", "health")] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_is_there_as_svg_and_png(folder: Path, name: str) -> None:
    assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    text = (folder / "figures" / f"{name}.svg").read_text("utf-8")
    root = ElementTree.fromstring(text)  # noqa: S314
    assert root.find(f"{SVG}title") is not None
    assert len((root.findtext(f"{SVG}desc") or "").split()) > 20  # the alt text
    assert "currentColor" in text
    assert style.INK not in text
    assert not re.search(r'(?:href|src)="(?!#)', text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert all(identifier.startswith(name) for identifier in ids)


@pytest.mark.parametrize("spec", TRAINING_FIGURES, ids=NAMES)
def test_a_figure_is_as_wide_as_a_phone_and_readable(healthy: Alignment, spec: TrainingSpec) -> None:
    figure = spec.draw(healthy)
    assert figure.get_figwidth() == style.WIDTH
    texts = [text for axes in figure.axes for text in (*axes.get_xticklabels(), *axes.texts, axes.title)]
    assert min(float(text.get_fontsize()) for text in texts) >= style.SMALL


# --- What is shown ----------------------------------------------------------------------------------------------------


def titles(spec: TrainingSpec, run: TrainingRun) -> list[str]:
    return [panel.title for panel in shown(run, spec)]


def test_panels_of_each_figure(healthy: Alignment) -> None:
    assert titles(REWARD, healthy.runs["reward"]) == ["loss (nats)", "accuracy (share of pairs)"]
    assert titles(DPO, healthy.runs["dpo"]) == [
        "loss (nats)",
        "accuracy (share of pairs)",
        "implicit rewards (nats)",
        "perplexity",
        "KL from the reference (nats per token)",
    ]
    assert titles(GRPO, healthy.runs["grpo"]) == [
        "reward",
        "reward of each function",
        "gold score",
        "KL from the reference (nats per token)",
    ]
    assert titles(HEALTH, healthy.runs["grpo"]) == [
        "length (tokens)",
        "completions (%)",
        "entropy (nats per token)",
        "groups of one reward (%)",
        "perplexity",
    ]


def test_all_panels_over_steps_share_one_axis(healthy: Alignment) -> None:
    figure = DPO.draw(healthy)
    limits = {axes.get_xlim() for axes in figure.axes}
    assert len(limits) == 1
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "", "", "optimizer step"]


def test_what_was_not_logged_has_no_panel(make_training: MakeTraining, tmp_path: Path) -> None:
    run = read(make_training(tmp_path / "run", runs=("grpo",), steps=20, gold=False))
    assert "gold score" not in titles(GRPO, run.runs["grpo"])
    assert [drift.label for drift in drifts(run.runs["grpo"], GRPO)] == ["reward"]


def test_one_reward_function_is_the_reward_itself(healthy: Alignment) -> None:
    run = healthy.runs["grpo"]
    one = tuple({name: value for name, value in line.items() if name != "reward/brevity"} for line in run.lines)
    assert "reward of each function" not in titles(GRPO, changed(run, lines=one))


def test_ln_2_is_marked_where_the_loss_is_dpos(healthy: Alignment) -> None:
    run = healthy.runs["dpo"]
    marks = [panel.mark.value for panel in shown(run, DPO) if panel.mark is not None]
    assert marks == [LN_2, 0.5]
    ipo = changed(run, config={"loss": {"name": "ipo", "tau": 0.1}})
    assert [panel.mark.value for panel in shown(ipo, DPO) if panel.mark is not None] == [0.5]
    assert titles(DPO, ipo)[0] == "loss"
    assert "ln 2 = 0.693" in DPO.caption(healthy)


def test_a_policy_that_is_its_reference_has_no_accuracy(healthy: Alignment) -> None:
    # Before the first step every margin is 0, and "chosen > rejected" is true of no pair: that is no accuracy of 0.
    run = healthy.runs["dpo"]
    assert run.evaluations[0]["accuracy"] == 0.0
    assert run.before("accuracy") is None
    assert run.evaluated("accuracy").steps.tolist() == [15, 30, 45, 60]
    assert healthy.runs["reward"].before("accuracy") == 0.49


def test_runs_without_a_method_or_without_a_log_say_so(make_training: MakeTraining, tmp_path: Path) -> None:
    only = read(make_training(tmp_path / "dpo", runs=("dpo",), steps=3))
    assert [spec.name for spec in TRAINING_FIGURES if spec.absent(only) is None] == ["figure_training_dpo"]
    assert REWARD.absent(only) == "this run has no training with reward"
    nothing = read(make_training(tmp_path / "nulls", nulls=True, steps=3))
    assert all("metrics.jsonl has none" in str(spec.absent(nothing)) for spec in TRAINING_FIGURES)


@pytest.mark.parametrize("spec", TRAINING_FIGURES, ids=NAMES)
def test_a_single_step_can_be_drawn(make_training: MakeTraining, tmp_path: Path, spec: TrainingSpec) -> None:
    run = read(make_training(tmp_path / "run", steps=1))
    assert spec.draw(run).axes[0].get_xlim() == (-0.06, 1.06)  # steps 0 and 1 with a margin
    assert "Thin: each step" not in spec.caption(run)
    assert "(step 1)" in spec.alt(run)


def test_a_log_of_training_alone_can_be_drawn(healthy: Alignment) -> None:
    run = changed(healthy.runs["grpo"], evaluations=(), lines=healthy.runs["grpo"].lines[:1], figures=())
    for spec in (GRPO, HEALTH):
        figure = spec.draw(Alignment(healthy.run_dir, healthy.manifest, {"grpo": run}))
        assert figure.axes[0].get_xlim() == (0.5, 1.5)
    assert drifts(run, GRPO) == []


# --- Distance, alarms, intervals --------------------------------------------------------------------------------------


def test_scores_stand_against_the_root_of_the_kl(healthy: Alignment) -> None:
    evaluations = tuple(
        {"step": step, "kl": kl, "reward": reward, "gold": gold}
        for step, kl, reward, gold in ((0, -1e-9, 0.0, 1.0), (10, 0.04, 0.5, None), (20, 0.09, 0.7, 2.0), (30, None, 1.0, 1.0))
    )  # fmt: skip
    reward, gold = drifts(changed(healthy.runs["grpo"], evaluations=evaluations), GRPO)
    # Rounding may leave a KL a hair below 0; √0.04 = 0.2 and √0.09 = 0.3; step 30 has no KL.
    np.testing.assert_allclose(reward.distances, [0.0, 0.2, 0.3])
    assert reward.steps == (0, 10, 20)
    np.testing.assert_allclose(gold.scores, [1.0, 2.0])
    assert gold.steps == (0, 20)


def test_the_first_alarm_of_each_signal_is_marked(collapsed: Alignment) -> None:
    run = collapsed.runs["grpo"]
    again = run.state.warnings[-1].model_copy(update={"step": 199})
    note = run.state.warnings[0].model_copy(update={"level": "note"})
    before = run.state.warnings[0].model_copy(update={"step": None})
    found = alarms(changed(run, warnings=(again, note, before, *run.state.warnings)))
    assert [(warned.step, warned.signal, warned.level) for warned in found] == [
        (115, "eos_first", "warn"),
        (115, "length_median", "warn"),
        (126, "eos_first", "severe"),
        (126, "length_median", "severe"),
        (126, "entropy_low", "severe"),
    ]


def test_alarms_cross_every_panel_and_point_at_their_own(collapsed: Alignment) -> None:
    figure = HEALTH.draw(collapsed)
    by_title = dict(zip(titles(HEALTH, collapsed.runs["grpo"]), figure.axes, strict=True))
    vertical = {
        title: {xs_of(line)[0] for line in axes.lines if ys_of(line) == [0, 1]} for title, axes in by_title.items()
    }
    assert all(steps == {115, 126} for steps in vertical.values())
    pointed = {
        title: sum(line.get_marker() == "v" and len(xs_of(line)) == 1 for line in axes.lines)
        for title, axes in by_title.items()
    }
    assert pointed == {
        "length (tokens)": 2,
        "completions (%)": 2,
        "entropy (nats per token)": 1,
        "groups of one reward (%)": 0,
        "perplexity": 0,
    }
    assert "eos_first at step 115 (warning)" in HEALTH.caption(collapsed)
    assert "and 1 more" in HEALTH.caption(collapsed)
    assert "eos_first at step 115 (warning)" in HEALTH.alt(collapsed)


def test_a_rollback_is_marked_where_it_went_to(collapsed: Alignment) -> None:
    run = changed(collapsed.runs["grpo"], outcome="rolled_back", step=100)
    figure = HEALTH.draw(Alignment(collapsed.run_dir, collapsed.manifest, {"grpo": run}))
    dotted = [xs_of(line) for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert dotted == [[100, 100]]
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "rolled back to"


def test_final_intervals_stand_at_the_step_of_the_adapter(healthy: Alignment) -> None:
    accuracy = DPO.draw(healthy).axes[1]
    (bars,) = accuracy.containers
    assert bars.has_yerr  # type: ignore[attr-defined]
    assert bars[0].get_xdata()[0] == 60
    assert (
        "Error bars at the step of the adapter: 95\u00a0% intervals (cluster bootstrap-t, 2000 resamples)"
        in DPO.caption(healthy)
    )


def test_a_perplexity_that_explodes_is_logarithmic(healthy: Alignment, collapsed: Alignment) -> None:
    assert HEALTH.draw(healthy).axes[-1].get_yscale() == "linear"
    assert HEALTH.draw(collapsed).axes[-1].get_yscale() == "log"


# --- Words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", TRAINING_FIGURES, ids=NAMES)
def test_captions_say_n_and_how_curves_were_smoothed(healthy: Alignment, spec: TrainingSpec) -> None:
    caption = spec.caption(healthy)
    unit = "prompts" if spec.method == "grpo" else "pairs"
    assert f"n = 640 {unit} for training, 160 {unit} held out." in caption
    assert "the mean over 5 steps around it" in caption


@pytest.mark.parametrize("spec", TRAINING_FIGURES, ids=NAMES)
def test_alt_texts_name_every_curve_with_its_ends(healthy: Alignment, spec: TrainingSpec) -> None:
    alt = spec.alt(healthy)
    for panel in shown(healthy.runs[spec.method], spec):
        assert all(f"{trace.label}, " in alt for trace in panel.traces)
    assert "(step 60)" in alt
    assert "nan" not in alt


def test_alt_text_has_the_numbers(healthy: Alignment) -> None:
    assert "perplexity" not in REWARD.alt(healthy)
    assert "policy, held out from 10.2 (step 0) to 11 (step 60)" in DPO.alt(healthy)
    assert "reward against √KL, from" in GRPO.alt(healthy)


def test_smoothing_is_a_centred_mean() -> None:
    values = np.array([0.0, 1.0, 2.0, 9.0, 4.0])
    # At the ends of the two values that there are: (0 + 1) / 2 and (9 + 4) / 2; inside of three.
    np.testing.assert_allclose(smooth(values, 3), [0.5, 1.0, 4.0, 5.0, 6.5])
    np.testing.assert_allclose(smooth(values, 1), values)


@pytest.mark.parametrize(("n", "width"), [(1, 1), (11, 1), (12, 5), (100, 5), (200, 11), (500, 25), (5000, 251)])
def test_smoothing_widths_are_odd_and_about_a_twentieth(n: int, width: int) -> None:
    assert smoothing_width(n) == width


@pytest.mark.parametrize(("n", "each"), [(0, 1), (1, 1), (600, 1), (601, 2), (6000, 10)])
def test_long_runs_are_thinned(n: int, each: int) -> None:
    assert stride(n) == each


def test_thinning_is_told(healthy: Alignment) -> None:
    run = healthy.runs["reward"]
    lines = tuple({"step": step, "loss": 0.5, "accuracy": 0.5} for step in range(1, 1401))
    longer = Alignment(healthy.run_dir, healthy.manifest, {"reward": changed(run, lines=lines)})
    assert "of 1,400 steps, one in 3 is drawn" in REWARD.caption(longer)
    assert max(len(xs_of(line)) for line in REWARD.draw(longer).axes[0].lines) <= 600


@pytest.mark.parametrize(
    ("name", "shown_as"),
    [
        ("checks", "checks"),
        ("_private", "\u00a0_private"),  # matplotlib leaves names with a leading underscore out of legends
        ("$x$", "$x$"),
        ("\u202egnp", "⟨U+202E⟩gnp"),
        ("奖", "⟨U+5956⟩"),  # no glyph in DejaVu Sans
        ("a" * 30, "a" * 24 + "…"),
    ],
)
def test_names_of_reward_functions_are_fit_for_a_legend(name: str, shown_as: str) -> None:
    assert drawable(name) == shown_as


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (46.0, "46"),
        (10.23, "10.2"),
        (610.4, "610"),
        (0.0123456, "0.0123"),
        (-0.5, "−0.500"),
        (3e-7, "0.00000"),
    ],
)
def test_plain_numbers_have_three_digits(value: float, text: str) -> None:
    assert plain(value) == text


@pytest.mark.parametrize("value", [None, True, "1", float("nan"), float("inf"), [1.0]])
def test_what_is_no_number_is_missing(value: object) -> None:
    assert number(value) is None


def test_values_that_are_missing_leave_no_gap_and_no_zero(healthy: Alignment) -> None:
    lines = ({"step": 1, "loss": 0.7}, {"step": 2, "loss": None}, {"step": 3}, {"step": 4, "loss": 0.5})
    curve = changed(healthy.runs["reward"], lines=lines).training("loss")
    assert (curve.steps.tolist(), curve.values.tolist()) == ([1, 4], [0.7, 0.5])
    assert Curve(curve.steps[:0], curve.values[:0]).is_empty


# --- Looks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_colours_are_visible_on_light_and_dark(page: str) -> None:
    colours = {look.colour for look in (*PARTIAL_LOOKS, REFERENCE)} | {look.colour for look in ALARM_LOOKS.values()}
    for colour in colours:
        low, high = sorted((luminance(colour), luminance(page)))
        assert (high + 0.05) / (low + 0.05) >= 3.0, colour  # what WCAG asks of graphics


def test_looks_never_rest_on_colour_alone() -> None:
    assert len({look.marker for look in PARTIAL_LOOKS}) == len(PARTIAL_LOOKS)
    assert len({look.line for look in PARTIAL_LOOKS[:4]}) == 4
    assert len({look.line for look in ALARM_LOOKS.values()}) == len(ALARM_LOOKS)


def test_records_are_read_back_as_written(folder: Path, healthy: Alignment) -> None:
    state = json.loads((folder / "alignment" / "dpo" / "trainer_state.json").read_text())
    assert healthy.runs["dpo"].state.model_dump(mode="json") == state
