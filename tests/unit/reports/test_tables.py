import csv
import io
from pathlib import Path

import pytest

from triptych.records import Estimate
from triptych.reports.findings import findings
from triptych.reports.inputs import read_decoding
from triptych.reports.settings import lookup, settings
from triptych.reports.tables import arm_tables, estimate_cell, frontier_table, to_csv


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8"))))


def test_arms_csv_has_every_number_in_full(built: Path) -> None:
    run = read_decoding(built)
    rows = rows_of(built / "tables" / "decoding_arms.csv")
    assert [row["arm"] for row in rows][:3] == ["greedy", "beam 4", "top-k 50, T 0.2"]
    for row, arm in zip(rows, run.arms, strict=True):
        for (measured_arm, metric, scope), estimate in run.measures.items():
            if measured_arm == arm and estimate.mean is not None:
                assert float(row[f"{metric}_{scope}"]) == estimate.mean
                assert int(row[f"{metric}_{scope}_prompts"]) == estimate.n_clusters


def test_a_missing_value_is_an_empty_cell(built_bare: Path) -> None:
    row = rows_of(built_bare / "tables" / "decoding_arms.csv")[0]
    assert row["reward_arm"] == ""
    assert row["reward_arm_unscored"] == "1"
    assert row["mean_logprob_arm_low"] == ""
    assert row["mean_logprob_arm_method"] == "no interval: one prompt"


def test_claims_and_frontier_are_written_where_the_run_has_them(built: Path, built_bare: Path) -> None:
    verdicts = [row["verdict"] for row in rows_of(built / "tables" / "claims.csv")]
    assert verdicts == ["agrees", "disagrees", "undecided", "not tested"]
    rows = rows_of(built / "tables" / "frontier.csv")
    assert [row["on_frontier"] for row in rows] == ["yes", "no", "yes", "no"]
    assert [row["on_frontier_probability"] for row in rows] == ["0.62", "0.05", "0.999", "0.3"]
    assert sorted(path.name for path in (built_bare / "tables").iterdir()) == [
        "beside_settings.csv",
        "costs.csv",
        "decoding_arms.csv",
        "settings.csv",
    ]


def test_settings_that_may_be_on_the_frontier_are_listed_with_their_probability(built: Path) -> None:
    table = frontier_table(read_decoding(built))
    # Off the frontier by the means: 0.3 is worth a line, 0.05 is not.
    assert sorted(row[1].text for row in table.rows) == ["0.30", "0.62", "> 0.99"]


def test_csv_cells_cannot_hold_what_no_reader_sees() -> None:
    assert to_csv(["a", "b"], [["x\x00,\u202ey", None]]).decode() == 'a,b\n"x⟨U+0000⟩,⟨U+202E⟩y",\n'


def test_every_measure_stands_in_one_table(built: Path) -> None:
    run = read_decoding(built)
    tables = arm_tables(run)
    assert sum(len(table.columns) - 1 for table in tables) == len({key[1:] for key in run.measures})
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)


def test_cells_tell_no_value_from_not_measured() -> None:
    nothing = Estimate(mean=None, low=None, high=None, n=0, n_clusters=0, n_unscored=4, method="no estimate: nothing")
    assert estimate_cell(None).text == "not measured"
    assert estimate_cell(nothing).text == "no value"
    one = Estimate(mean=0.5, low=None, high=None, n=1, n_clusters=1, method="no interval: one prompt")
    assert estimate_cell(one).note == "no interval: one prompt"


def test_settings_are_compared_with_what_was_done(built: Path) -> None:
    same = {row.name: row.same for row in settings(read_decoding(built))}
    assert same["model"] is True  # the hub id differs from the paper's name by owner and case only
    assert same["beam width"] is True
    assert same["new tokens at most"] is True
    assert same["repetition: n-gram"] is True
    assert same["number of prompts"] is False  # 4, not 400
    assert same["temperatures"] is False  # two of the paper's five
    assert same["reward model"] is False


def test_a_setting_that_is_not_recorded_is_not_called_the_same(built: Path) -> None:
    run = read_decoding(built)
    bare = run.manifest.model_copy(update={"config": {}})
    rows = {row.name: row for row in settings(type(run)(**{**vars(run), "manifest": bare}))}
    assert rows["model"].same is None
    assert rows["new tokens at most"].ours == "not recorded"
    assert rows["new tokens at most"].same is None


def test_lookup_prefers_the_outermost() -> None:
    assert lookup({"a": {"model": "inner"}, "model": "outer"}, "model") == "outer"
    assert lookup({"a": [{"block": 3}]}, "block") == 3
    assert lookup({"a": 1}, "model") is None


def test_the_summary_holds_the_runs_numbers(built: Path) -> None:
    text = " ".join(findings(read_decoding(built)))
    assert "4 prompts" in text
    assert "40 completions" in text
    assert "1 agrees with this run, 1 disagrees, 1 is undecided at this sample size and 1 is not tested" in text
    assert "highest mean reward" in text
    assert "[" in text  # intervals


def test_the_summary_claims_nothing_that_was_not_measured(built_bare: Path) -> None:
    text = " ".join(findings(read_decoding(built_bare)))
    assert "No completion was scored by a reward model" in text
    assert "highest mean reward" not in text
    assert "claim" not in text
    assert "no interval: one prompt" in text


@pytest.mark.parametrize("name", ["decoding_arms.csv", "settings.csv"])
def test_tables_use_plain_spaces(built: Path, name: str) -> None:
    assert "\u00a0" not in (built / "tables" / name).read_text("utf-8")
