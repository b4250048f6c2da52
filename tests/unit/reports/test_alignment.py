import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from triptych.errors import DataError, MissingInputError
from triptych.reports import build_report
from triptych.reports.alignment import MAX_WARNINGS, alignment_section
from triptych.reports.alignment_findings import details, findings, headline
from triptych.reports.alignment_inputs import Alignment, read_alignment
from triptych.reports.alignment_tables import (
    PAPER_SETTINGS,
    PAPER_VALUES,
    costs_table,
    figure_label,
    paper_table,
    results_table,
    settings,
    settings_tables,
)
from triptych.reports.figures import TRAINING_FIGURES
from triptych.reports.glossary import TRAINING, describe_curve
from triptych.reports.reported import reported

MakeRun = Callable[..., Path]
ReadPage = Callable[[Path], Any]
MakeTraining = Callable[..., Path]


CASES: dict[str, dict[str, Any]] = {
    "all": {"steps": 60},
    "dpo": {"runs": ("dpo",), "steps": 60},
    "collapsed": {"runs": ("grpo",), "collapsed": True},
    "one step": {"steps": 1},
    "nulls": {"nulls": True, "steps": 3},
    "hostile": {"runs": ("dpo", "grpo"), "hostile": True, "steps": 30},
}


@pytest.fixture(scope="module")
def folders(make_training: MakeTraining, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run directory of each case, with its report. Read only."""
    made = {}
    for name, case in CASES.items():
        made[name] = make_training(tmp_path_factory.mktemp("case") / "run", **case)
        build_report(made[name])
    return made


@pytest.fixture(scope="module")
def pages(folders: dict[str, Path], read_page: ReadPage) -> dict[str, Any]:
    return {name: read_page(folder / "report.html") for name, folder in folders.items()}


def read(folder: Path) -> Alignment:
    run = read_alignment(folder)
    assert run is not None
    return run


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "tables" / name).read_text("utf-8"))))


# --- The page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_pages_are_sound(folders: dict[str, Path], pages: dict[str, Any], case: str) -> None:
    page = pages[case]
    assert page.mistakes == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for a in page.all("a") if a["href"].startswith("#")]
    labels = [label for _, a in page.tags for label in a.get("aria-labelledby", "").split()]
    assert set(targets) | set(labels) <= set(ids)
    files = [a["href"] for a in page.all("a") if not a["href"].startswith("#")]
    assert all((folders[case] / name).is_file() for name in files)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.all("script") == []
    assert "nan" not in page.text.lower().split()


@pytest.mark.parametrize(
    ("case", "drawn"),
    [("all", 4), ("dpo", 1), ("collapsed", 2), ("one step", 4), ("nulls", 0), ("hostile", 3)],
)
def test_figures_are_inline_and_named(pages: dict[str, Any], case: str, drawn: int) -> None:
    drawings = pages[case].all("svg")
    assert len(drawings) == drawn
    assert all(a.get("role") == "img" and len(a.get("aria-label", "")) > 80 for a in drawings)


def test_all_parts_are_there(pages: dict[str, Any]) -> None:
    headings = (
        "Training in brief",
        "Warnings",
        "Training results",
        "Training beside the paper",
        "Training curves",
        "What the curves show",
        "Training settings",
        "Training costs",
    )
    assert all(heading in pages["all"].text for heading in headings)
    assert "Completions side by side" not in pages["all"].text  # there is no decoding panel here
    for heading in ("Training results", "Training beside the paper", "What the curves show"):
        assert heading not in pages["nulls"].text


def test_decoding_and_alignment_stand_in_one_page(
    make_run: MakeRun, make_training: MakeTraining, tmp_path: Path, read_page: ReadPage
) -> None:
    folder = make_training(make_run(tmp_path / "run", n_prompts=1, hostile=False), runs=("reward",), steps=3)
    page = read_page(build_report(folder))
    assert page.mistakes == []
    assert "Alignment. The reward model was trained" in page.text
    assert "Decoding. The model" in page.text
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_same_run_gives_the_same_bytes(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(folders["collapsed"], copy, ignore=shutil.ignore_patterns("figures", "tables", "report.html"))
    build_report(copy)
    files = sorted(path.relative_to(copy) for path in copy.rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(folders["collapsed"]) for p in folders["collapsed"].rglob("*") if p.is_file())
    for name in files:
        assert (copy / name).read_bytes() == (folders["collapsed"] / name).read_bytes(), name


def test_hostile_text_is_shown_and_does_nothing(folders: dict[str, Path]) -> None:
    raw = (folders["hostile"] / "report.html").read_bytes()
    text = raw.decode("utf-8")
    assert b"\x00" not in raw
    assert "\u202e" not in text
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "⟨U+202E⟩" in text
    assert "{{ 7 * 7 }}" in text
    assert len(raw) < 600_000  # a megabyte on one line stays out
    svg = (folders["hostile"] / "figures" / "figure_training_grpo.svg").read_text("utf-8")
    assert "_$hidden_{x}" in svg


def test_warnings_are_a_list_with_their_level(pages: dict[str, Any]) -> None:
    text = " ".join(pages["collapsed"].text.split())
    assert "GRPO: 3 severe alarms and 2 warnings" in text
    assert "✗ severe step 126, eos_first The end of text has a probability of 72 % as the first token" in text
    assert "! warning step 115, length_median The median completion has 20 tokens" in text
    levels = [a["class"] for a in pages["collapsed"].all("span") if a.get("class", "").startswith("level")]
    assert levels == ["level warn", "level warn", "level severe", "level severe", "level severe"]
    assert "Nothing was warned of for GRPO" in pages["all"].text


def test_many_warnings_are_folded_the_gravest_first(folders: dict[str, Path], pages: dict[str, Any]) -> None:
    n = len(read(folders["hostile"]).runs["dpo"].state.warnings)
    assert n > MAX_WARNINGS
    assert f"{n - MAX_WARNINGS} more" in pages["hostile"].text
    levels = [a["class"].split()[1] for a in pages["hostile"].all("span") if a.get("class", "").startswith("level")]
    assert levels[:8] == ["severe"] * 7 + ["warn"]


# --- Sentences --------------------------------------------------------------------------------------------------------


def test_the_summary_holds_the_runs_numbers(folders: dict[str, Path]) -> None:
    run = read(folders["dpo"])
    text = " ".join(findings(run))
    assert "The policy of DPO was trained on 640 pairs for 60 steps." in text
    accuracy = run.runs["dpo"].figure("accuracy")
    assert accuracy is not None
    assert f"{accuracy.estimate.value:.3f}\u00a0[" in text
    # 10.23 + 0.77 = 11.00 ± 0.8, and 0.016 ± 0.002: what the fixture wrote.
    assert "perplexity is 11.00\u00a0[10.20,\u00a011.80] against the reference's 10.23" in text
    assert "at a KL of 0.0160\u00a0[0.0140,\u00a00.0180] nats per token" in text
    assert "95\u00a0% intervals, clustered by prompt" in text


def test_a_collapse_is_the_headline(folders: dict[str, Path]) -> None:
    text = " ".join(findings(read(folders["collapsed"])))
    assert "was trained on 640 prompts and stopped at step 200 of 400." in text
    assert "The median completion goes from 46 to 2 tokens (no interval)." in text
    assert (
        "The first of 3 severe alarms, at step 126: the end of text has a probability of 72 % as the first token, "
        "although the reward rose from -1 to -0.4." in text
    )


def test_a_clean_run_is_called_clean_and_no_more_is_said_than_measured(folders: dict[str, Path]) -> None:
    assert "The collapse watch raised no alarm." in headline(read(folders["all"]).runs["grpo"])
    run = read(folders["nulls"])
    assert findings(run) == (
        "The reward model was trained on 640 pairs for 3 steps.",
        "The policy of DPO was trained on 640 pairs for 3 steps.",
        "The policy of GRPO was trained on 640 prompts for 3 steps.",
        "The collapse watch raised no alarm.",
    )
    assert details(run.runs["dpo"]) == ["1 warning stands under Warnings."]


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        ("finished", "pairs for 60 steps."),
        ("stopped", "pairs and stopped at step 60 of 60."),
        ("rolled_back", "pairs and rolled back to step 60 of 60."),
        ("running", "pairs; it was at step 60 of 60 when this page was written."),
    ],
)
def test_every_outcome_has_its_words(folders: dict[str, Path], tmp_path: Path, outcome: str, said: str) -> None:
    copy = tmp_path / "run"
    shutil.copytree(folders["dpo"], copy)
    change_state(copy, "dpo", outcome=outcome)
    assert headline(read(copy).runs["dpo"])[0].endswith(said)


def test_what_was_kept_is_told_and_not_what_came_after(folders: dict[str, Path], tmp_path: Path) -> None:
    # Rolled back to step 100: its evaluation counts, though later ones were logged.
    copy = tmp_path / "run"
    shutil.copytree(folders["collapsed"], copy)
    change_state(copy, "grpo", outcome="rolled_back", step=100, figures=[])
    run = read(copy).runs["grpo"]
    at_100 = next(line for line in run.evaluations if line["step"] == 100)
    assert run.after("length_median") == at_100["length_median"]
    assert run.after("length_median") != run.evaluations[-1]["length_median"]


# --- Tables -----------------------------------------------------------------------------------------------------------


def test_final_figures_stand_in_a_table_and_in_full_in_a_file(folders: dict[str, Path]) -> None:
    run = read(folders["all"])
    rows = rows_of(folders["all"], "alignment_results.csv")
    assert len(rows) == sum(len(of.state.figures) for of in run.runs.values())
    first = run.runs["reward"].state.figures[0]
    assert float(rows[0]["value"]) == first.estimate.mean
    assert rows[0]["method"] == first.estimate.method
    table = results_table(run.runs["grpo"])
    cells = {row[0].text: row for row in table.rows}
    assert cells["median length"][1] == ("39", "no interval", "")
    assert cells["median length"][4].text == "No interval: one figure of the whole held-out set"
    assert cells["reward"][2] == ("160", "of 148 prompts", "")


def test_the_papers_values_stand_beside_ours(folders: dict[str, Path]) -> None:
    table = paper_table(read(folders["all"]))
    assert table is not None
    cells = {row[0].text: (row[1].text, row[2].text) for row in table.rows}
    # As the paper prints them: Results of DPO, and table 4.
    assert cells["DPO: perplexity of the reference"] == ("10.23", "10.23")
    assert cells["DPO: perplexity of the policy"] == ("11.00", "11.00")
    assert cells["DPO: KL from the reference (nats per token)"] == ("0.016", "0.0160")
    assert cells["GRPO: perplexity of the policy"][0] == "48.13"
    assert cells["GRPO: median length (tokens)"] == ("0.0", "39")
    assert cells["GRPO: mean length (tokens)"] == ("43.1", "not measured")
    rows = rows_of(folders["all"], "alignment_paper.csv")
    assert [row["quantity"] for row in rows] == list(cells)
    assert rows[-1]["source"] == "Table 4"


def test_without_a_final_figure_the_last_evaluation_is_compared(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(folders["dpo"], copy)
    change_state(copy, "dpo", figures=[])
    table = paper_table(read(copy))
    assert table is not None
    assert table.rows[1][2] == ("11", "no interval", "")
    assert "metrics.jsonl" in table.rows[1][3].text
    assert paper_table(read(folders["nulls"])) is None


@pytest.mark.parametrize("method", PAPER_VALUES)
def test_every_key_of_the_paper_exists(method: Any) -> None:
    keys = [value.key for value in PAPER_VALUES[method]] + [setting.key for setting in PAPER_SETTINGS[method]]
    assert all(reported()[key].source for key in keys)


def test_the_modules_of_an_adapter_are_its_own_list(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(folders["all"], copy)
    path = copy / "alignment" / "grpo" / "adapter_config.json"

    def targets() -> tuple[str, bool | None]:
        run = read(copy)
        row = next(row for row in settings(run.runs["grpo"], run.manifest.config) if row.name == "LoRA targets")
        return row.ours, row.same

    path.write_text('{"target_modules": ["v_proj", "k_proj"]}')
    assert targets() == ("k_proj, v_proj", False)
    path.write_text('{"target_modules": null}')
    assert targets() == ("v_proj, q_proj", True)  # as the recipe has it
    path.write_text("{")
    with pytest.raises(DataError, match=r"adapter_config\.json cannot be read as JSON .* train again"):
        targets()


def test_settings_are_compared_with_what_was_done(folders: dict[str, Path]) -> None:
    run = read(folders["all"])
    dpo = {row.name: row for row in settings(run.runs["dpo"], run.manifest.config)}
    assert dpo["learning rate"][1:] == ("2e-5", "Table 2", "2e-5", True)
    assert dpo["model"].same is True  # the hub id differs from the paper's name by owner and case only
    assert dpo["pairs"].same is True
    assert dpo["epochs"].paper == "1 epoch"
    assert (dpo["steps"].ours, dpo["steps"].same) == ("60", False)
    assert (dpo["share of the data for training"].ours, dpo["share of the data for training"].same) == ("0.8", True)
    grpo = {row.name: row for row in settings(run.runs["grpo"], run.manifest.config)}
    assert grpo["LoRA targets"].same is True  # whatever their order
    assert (grpo["group"].ours, grpo["group"].same) == ("8", False)
    assert (grpo["base in 8 bit"].ours, grpo["base in 8 bit"].same) == ("no", False)


def test_further_settings_are_listed_once(folders: dict[str, Path]) -> None:
    run = read(folders["all"])
    compared, further = settings_tables(run.runs["dpo"], run.manifest.config)
    listed = {row[0].text: row[1].text for row in further.rows}
    assert listed["loss.beta"] == "0.1"
    assert listed["optimiser.betas"] == "0.9, 0.999"
    assert "lora.rank" not in listed
    assert "LoRA rank" in [row[0].text for row in compared.rows]
    rows = rows_of(folders["all"], "alignment_settings.csv")
    assert {row["run"] for row in rows} == {"reward", "dpo", "grpo"}
    assert {row["same"] for row in rows} == {"yes", "no", "not recorded", ""}


def test_a_setting_that_is_not_recorded_is_not_called_the_same(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(folders["dpo"], copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "config": {}}))
    run = read(copy)
    rows = {row.name: row for row in settings(run.runs["dpo"], {})}
    assert (rows["LoRA rank"].ours, rows["LoRA rank"].same) == ("not recorded", None)
    assert len(settings_tables(run.runs["dpo"], {})) == 1


def test_the_settings_of_a_run_of_its_own_are_all_of_its_configuration(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(folders["dpo"], copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    flat = {"lora": {"rank": 4}, "loss": {"name": "ipo"}, "decoding": {"batch_size": 99}}
    (copy / "manifest.json").write_text(json.dumps({**manifest, "config": flat}))
    run = read(copy)
    rows = {row.name: row for row in settings(run.runs["dpo"], run.manifest.config)}
    assert rows["LoRA rank"].ours == "4"
    assert rows["batch"].ours == "not recorded"  # that of another panel is not ours
    assert run.runs["dpo"].loss_name == "ipo"


def test_costs_have_a_column_a_run(folders: dict[str, Path], tmp_path: Path) -> None:
    table = costs_table(read(folders["all"]))
    assert [column.head for column in table.columns] == ["Run", "Reward model", "DPO", "GRPO"]
    cells = {row[0].text: row[1].text for row in table.rows}
    assert cells["time"] == "4\u00a0min 30\u00a0s"  # 60 steps of 4.5 s
    assert cells["speed"] == "667 tokens/s"  # 3,000 tokens in 4.5 s
    assert cells["peak memory"] == "3.1\u00a0GB"
    assert cells["trainable parameters"] == "460,800"
    copy = tmp_path / "run"
    shutil.copytree(folders["dpo"], copy)
    change_state(copy, "dpo", seconds=0.0, tokens=0, peak_bytes=0, path="")
    bare = {row[0].text: row[1].text for row in costs_table(read(copy)).rows}
    assert bare["time"] == bare["speed"] == bare["peak memory"] == "not measured"
    assert bare["engine"] == "not recorded"


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("eval_accuracy", "accuracy"),
        ("perplexity_ratio", "perplexity over the reference's"),
        ("length_median", "median length"),
        ("some_new_figure", "some new figure"),
    ],
)
def test_final_figures_have_names(name: str, label: str) -> None:
    assert figure_label("dpo", name) == label


def test_every_curve_is_described(folders: dict[str, Path], pages: dict[str, Any]) -> None:
    run = read(folders["all"])
    for spec in TRAINING_FIGURES:
        described = TRAINING[spec.method]
        names = {t.name for p in spec.panels(run.runs[spec.method]) for t in p.traces if "/" not in t.name}
        assert names - {"perplexity_reference"} <= set(described)
        assert all(describe_curve(spec.method, name).definition in pages["all"].text for name in names & set(described))
    assert "Not described" in describe_curve("dpo", "unheard_of").definition


# --- Files ------------------------------------------------------------------------------------------------------------


def change_state(folder: Path, run: str, **fields: Any) -> None:
    path = folder / "alignment" / run / "trainer_state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_folder_without_a_run_makes_no_section(tmp_path: Path) -> None:
    (tmp_path / "alignment" / "dpo").mkdir(parents=True)
    assert alignment_section(tmp_path) is None


def test_a_run_that_recorded_nothing_is_refused_with_a_remedy(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(folders["dpo"] / "manifest.json", tmp_path)
    (tmp_path / "alignment" / "dpo").mkdir(parents=True)
    with pytest.raises(MissingInputError, match="no decoding, no alignment"):
        build_report(tmp_path)


def test_a_state_that_cannot_be_read_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(folders["dpo"], copy)
    change_state(copy, "dpo", outcome="exploded")
    with pytest.raises(DataError, match=r"dpo/trainer_state.json cannot be read.*at outcome: .*train again"):
        read_alignment(copy)
    change_state(copy, "dpo", outcome="finished", method="grpo")
    with pytest.raises(DataError, match="is the state of a grpo run; move it to alignment/grpo"):
        read_alignment(copy)


def test_a_run_without_a_log_is_reported_all_the_same(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(folders["dpo"], copy, ignore=shutil.ignore_patterns("figures", "tables", "report.html"))
    (copy / "metrics.jsonl").unlink()
    text = build_report(copy).read_text("utf-8")
    assert "Not drawn: metrics.jsonl has none of its values" in text
    assert "11.00" in text  # the final figures need no log
