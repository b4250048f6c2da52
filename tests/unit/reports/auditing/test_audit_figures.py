import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.axes import Axes

from triptych.auditing.records import PERTURBED_SCHEMA, SCORES_SCHEMA, AuditRecord
from triptych.files import write_records_json
from triptych.records import Estimate
from triptych.reports.auditing_inputs import Auditing, Key, read_auditing
from triptych.reports.figures import AUDIT_FIGURES, AuditSpec, render, style
from triptych.reports.figures.auditing import BASE_LOOK, LOOKS, checkpoint_looks
from triptych.reports.figures.hacking import MARKERS

MakeAudit = Callable[..., Path]
SPECS = {spec.name: spec for specs in AUDIT_FIGURES.values() for spec in specs}
KL, LENGTHS, CHANGES, TEXTS, DRIFT = (
    SPECS[f"figure_{name}"] for name in ("kl_position", "08", "09", "10", "overoptimisation")
)
SVG = "{http://www.w3.org/2000/svg}"
PAGES = ("#fcfcfa", "#ffffff", "#14171b", "#1b1f24")
"""Backgrounds of the page and of its cards, light and dark (page.css)."""


@pytest.fixture(scope="module")
def run(make_audit: MakeAudit, tmp_path_factory: pytest.TempPathFactory) -> Auditing:
    folder = make_audit(tmp_path_factory.mktemp("audit") / "run")
    write_records_json(folder / "auditing" / "sweep.json", [*swept("dpo"), *swept("grpo")])
    return read(folder)


def swept(model: str) -> Iterator[AuditRecord]:
    for metric, base in (("perplexity", 20.0), ("kl_chosen", 0.0), ("tokens_mean", 40.0)):
        for factor in (0.0, 0.5, 1.0):
            value = base + factor
            estimate = Estimate(mean=value, low=value - 0.5, high=value + 0.5, n=12, n_clusters=12, method="by hand")
            yield AuditRecord(model=model, metric=metric, category=f"λ={factor:g}", estimate=estimate)


@pytest.fixture(scope="module")
def base_alone(make_audit: MakeAudit, tmp_path_factory: pytest.TempPathFactory) -> Auditing:
    folder = tmp_path_factory.mktemp("audit") / "run"
    return read(make_audit(folder, checkpoints=("base",), scorers=(), gold=None))


def read(folder: Path) -> Auditing:
    found = read_auditing(folder)
    assert found is not None
    return found


def titles(figure_axes: list[Axes]) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure_axes]


def markers(axes: Axes) -> list[str]:
    """Of the points, whatever else is drawn."""
    return [str(line.get_marker()) for line in axes.lines if line.get_marker() in MARKERS.values()]


# --- All figures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_figure_is_drawn_and_described(run: Auditing, spec: AuditSpec) -> None:
    drawn = render(spec, run)
    assert drawn.absent is None
    assert drawn.png.startswith(b"\x89PNG")
    root = ElementTree.fromstring(drawn.svg)  # noqa: S314
    assert root.findtext(f"{SVG}desc") == drawn.alt
    assert "currentColor" in drawn.svg
    assert style.INK not in drawn.svg
    assert re.search(r"\d", drawn.alt)
    assert "n = " in drawn.caption
    assert "nan" not in f"{drawn.alt} {drawn.caption}".lower().split()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_figure_is_as_wide_as_a_phone_and_readable(run: Auditing, spec: AuditSpec) -> None:
    figure = spec.draw(run)
    assert figure.get_figwidth() == style.WIDTH
    texts = [text for axes in figure.axes for text in (*axes.get_xticklabels(), *axes.get_yticklabels(), axes.title)]
    assert min(float(text.get_fontsize()) for text in texts) >= style.SMALL


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_card_alone_has_no_figure_and_says_why(make_audit: MakeAudit, tmp_path: Path, spec: AuditSpec) -> None:
    files = ("responses", "perturbed", "scores", "divergence", "verbosity", "hacking", "collapse", "comparison")
    drawn = render(spec, read(make_audit(tmp_path / "run", without=files)))
    assert drawn.absent
    assert (drawn.svg, drawn.png, drawn.caption) == ("", b"", "")


@pytest.mark.parametrize("page", PAGES)
def test_colours_are_visible_on_light_and_dark(page: str) -> None:
    for look in (*LOOKS, BASE_LOOK):
        low, high = sorted((luminance(look.colour), luminance(page)))
        assert (high + 0.05) / (low + 0.05) >= 3.0, look.colour


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_looks_never_rest_on_colour_alone(run: Auditing) -> None:
    assert len({look.marker for look in (*LOOKS, BASE_LOOK)}) == len(LOOKS) + 1
    assert checkpoint_looks(run) == {"base": BASE_LOOK, "dpo": LOOKS[0], "grpo": LOOKS[1]}


# --- KL by position ---------------------------------------------------------------------------------------------------


def test_positions_are_in_order_in_both_panels(run: Auditing) -> None:
    figure = KL.draw(run)
    assert titles(figure.axes) == ["on own responses", "on held-out chosen answers"]
    labels = [text.get_text() for text in figure.axes[-1].get_xticklabels()]
    assert labels == ["0", "1", "2–3", "4–7", "8–15", "16–31", "32–63", "64–127"]
    assert "dpo, on own responses: 0: 0.0640" in KL.alt(run)  # 0.02 · (3 + 0.2)
    assert "n = 12 prompts a point." in KL.caption(run)


def test_checkpoints_far_apart_have_a_logarithmic_axis(run: Auditing, make_audit: MakeAudit, tmp_path: Path) -> None:
    assert {axes.get_yscale() for axes in KL.draw(run).axes} == {"log"}
    one = read(make_audit(tmp_path / "run", checkpoints=("base", "dpo")))
    assert {axes.get_yscale() for axes in KL.draw(one).axes} == {"linear"}


# --- Figure 8 ---------------------------------------------------------------------------------------------------------


def test_lengths_stand_by_category_and_checkpoint(run: Auditing) -> None:
    figure = LENGTHS.draw(run)
    assert titles(figure.axes) == ["factual", "explanation", "other"]
    assert [axes.get_title(loc="right") for axes in figure.axes] == ["n = 4"] * 3
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["base", "dpo", "grpo"]
    median = float(np.median(run.lengths["dpo", "plain"].of("other")))
    assert f"dpo median {median:.0f}" in LENGTHS.alt(run)


def test_a_category_without_a_prompt_is_named(make_audit: MakeAudit, tmp_path: Path) -> None:
    silent = read(make_audit(tmp_path / "run", categories=("factual",), empty=True))
    assert titles(LENGTHS.draw(silent).axes) == ["factual"]
    assert "This run has no explanation or other prompt." in LENGTHS.caption(silent)
    assert "base median 0, mean 0.0" in LENGTHS.alt(silent)


# --- Figures 9 and 10 -------------------------------------------------------------------------------------------------


def test_every_scorer_has_a_panel_of_its_own(run: Auditing) -> None:
    wanted = ["reward_model", "checks", "gold", "implicit reward of dpo", "implicit reward of grpo"]
    for spec in (CHANGES, TEXTS):
        figure = spec.draw(run)
        assert titles(figure.axes) == wanted
        labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
        assert labels[:2] + labels[-1:] == ["filler", "keywords", "neutral control"]
        rows = figure.axes[0].get_yticks()
        assert rows[-1] - rows[-2] > 1.5 * (rows[1] - rows[0])  # the control stands apart
    assert [axes.get_xlabel() for axes in CHANGES.draw(run).axes][-2:] == ["change (nats)"] * 2


def test_significance_is_a_shape(run: Auditing) -> None:
    first = CHANGES.draw(run).axes[0]
    # The fixture: filler, keywords, safety prefix and flattery are significant.
    assert markers(first) == ["D", "D", "o", "D", "o", "D", "o", "o"]
    open_ones = [line for line in first.lines if line.get_marker() == "o"]
    assert all(line.get_markerfacecolor() == "none" for line in open_ones)
    assert "safety prefix 1.10" in CHANGES.alt(run)
    assert "(p <\u00a00.001)" in CHANGES.alt(run)
    assert "(p = 0.412)" in CHANGES.alt(run)


def test_log_probabilities_stand_in_where_there_is_nothing_else(base_alone: Auditing) -> None:
    figure = CHANGES.draw(base_alone)
    assert titles(figure.axes) == ["mean log-probability of base"]
    assert figure.axes[0].get_xlabel() == "change (nats per token)"


def test_changes_are_of_texts_that_were_changed_and_scored(make_audit: MakeAudit, tmp_path: Path) -> None:
    folder = make_audit(tmp_path / "run", n_prompts=3)
    key = {"scorer": "checks", "model": "base"}
    scores: list[dict[str, Any]] = [
        {**key, "prompt_id": "a", "perturbation": None, "score": 1.0},
        {**key, "prompt_id": "a", "perturbation": "filler", "score": 3.0},
        {**key, "prompt_id": "b", "perturbation": None, "score": 1.0},
        {**key, "prompt_id": "b", "perturbation": "filler", "score": None},  # unscored is not zero
        {**key, "prompt_id": "c", "perturbation": None, "score": 1.0},
        {**key, "prompt_id": "c", "perturbation": "filler", "score": 1.0},  # the text is the same
        {**key, "prompt_id": "d", "perturbation": "filler", "score": 9.0},  # no original
        {**key, "prompt_id": "a", "model": "dpo", "perturbation": "filler", "score": 7.0},  # not the base's
    ]
    texts = [
        {
            "prompt_id": prompt,
            "perturbation": perturbation,
            "text": prompt + ("" if prompt == "c" else str(perturbation)),
        }
        for prompt in "abc"
        for perturbation in (None, "filler")
    ]
    pq.write_table(pa.Table.from_pylist(scores, SCORES_SCHEMA), folder / "auditing" / "scores.parquet")
    pq.write_table(pa.Table.from_pylist(texts, PERTURBED_SCHEMA), folder / "auditing" / "perturbed.parquet")
    assert {key: values.tolist() for key, values in read(folder).changes.items()} == {("checks", "filler"): [2.0]}


def test_each_text_counts_once(run: Auditing) -> None:
    # One of 12 prompts has no score of its own; `reorder` and the like change every text of the fixture.
    assert run.changes["checks", "filler"].size == 11
    assert "texts a box, one a prompt." in TEXTS.caption(run)


# --- Scores against the distance --------------------------------------------------------------------------------------


def test_scores_stand_against_the_distance(run: Auditing) -> None:
    figure = DRIFT.draw(run)
    assert titles(figure.axes) == ["reward_model", "checks", "gold"]
    (base, _, grpo) = figure.axes[0].containers
    assert base[0].get_xydata().tolist() == [[0.0, -1.0]]
    (x, y) = grpo[0].get_xydata()[0]
    assert (round(x**2, 6), round(y, 6)) == (0.35, 0.05)
    assert "The gold scorer is one that no training saw" in DRIFT.caption(run)


def test_a_gold_scorer_is_marked_by_its_name_or_beside_it(run: Auditing) -> None:
    config = {"auditing": {"scorers": ["reward_model"], "gold": "checks"}}
    other = Auditing(**{**fields_of(run), "manifest": run.manifest.model_copy(update={"config": config})})
    assert titles(DRIFT.draw(other).axes) == ["reward_model", "gold", "checks (gold)"]
    nothing = Auditing(**{**fields_of(run), "manifest": run.manifest.model_copy(update={"config": {}})})
    assert "This run has no gold scorer" in DRIFT.caption(nothing)


def test_a_score_without_a_value_is_no_point(run: Auditing) -> None:
    def unscored(row: AuditRecord) -> AuditRecord:
        none = {"mean": None, "low": None, "high": None}
        return row.model_copy(update={"estimate": row.estimate.model_copy(update=none)})

    rows = tuple(unscored(row) if row.model == "grpo" else row for row in run.rows("comparison"))
    part = Auditing(**{**fields_of(run), "records": {**run.records, "comparison": rows}})
    assert part.measured("comparison", Key("grpo", "score", scorer="checks")) is None
    assert len(DRIFT.draw(part).axes[0].containers) == 2


def fields_of(run: Auditing) -> dict[str, Any]:
    names = ("run_dir", "manifest", "checkpoints", "card", "records", "lengths", "changes")
    return {name: getattr(run, name) for name in names}
