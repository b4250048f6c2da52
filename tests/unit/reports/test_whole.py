"""What stands around the panels: abstract, beside the paper, costs, and what other programs read."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from triptych.models.starter import MODEL_NAME
from triptych.records import Claim, Estimate
from triptych.reports import abstract as abstracts
from triptych.reports import beside, differences, page
from triptych.reports.costs import costs_csv, costs_table
from triptych.reports.inputs import read_decoding
from triptych.reports.page import Report, read_report, write_report
from triptych.reports.settings import EMBEDDED
from triptych.runs import StageRecord, read_manifest


@pytest.fixture(scope="module")
def report(built: Path) -> Report:
    return read_report(built)


@pytest.fixture(scope="module")
def both(
    make_run: Callable[..., Path], make_training: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Report:
    folder = tmp_path_factory.mktemp("both")
    run_dir = make_training(make_run(folder / "run", hostile=False), steps=20)
    trained = json.loads((make_training(folder / "trained", steps=2) / "manifest.json").read_text())
    manifest = json.loads((run_dir / "manifest.json").read_text())
    manifest["config"] |= {"alignment": trained["config"]["alignment"]}
    (run_dir / "manifest.json").write_text(json.dumps(manifest))
    return read_report(run_dir)


def test_the_embedded_model_is_called_what_it_is() -> None:
    assert {"starter": f"starter ({MODEL_NAME})"} == EMBEDDED


class TestAbstract:
    def test_it_says_what_was_done_shown_and_not_to_be_concluded(self, both: Report) -> None:
        said = abstracts.abstract(both.manifest, both.sections, beside.PANELS)
        assert said[0].startswith("In this run (seed 0, 2\u00a0min 03\u00a0s of work), the model HuggingFaceTB/")
        assert "; a reward model (640 pairs, 20 steps), DPO (640 pairs, 20 steps) and GRPO (640 prompts" in said[0]
        assert any(sentence.startswith("After training, the reward model has a held-out accuracy") for sentence in said)
        assert said[-2] == both.sections[1].digest.caution
        assert said[-1] == "Not part of this run: audits and universal dictionaries."
        assert 6 <= len(said) <= 10

    def test_every_result_has_a_number(self, both: Report) -> None:
        for section in both.sections:
            assert section.digest.results
            assert all(re.search(r"\d", sentence) for sentence in section.digest.results)

    def test_it_stands_on_top(self, built: Path, report: Report) -> None:
        text = (built / "report.html").read_text("utf-8")
        assert text.index('id="abstract"') < text.index('id="summary"') < text.index('id="beside"')


class TestBeside:
    def test_all_figures_and_tables_of_the_paper_are_listed(self, report: Report) -> None:
        table = beside.items_table(report.sections)
        names = [f"Figure {number}" for number in range(1, 14)] + [f"Table {number}" for number in range(3, 7)]
        assert [row[0].text for row in table.rows] == names
        places = {row[0].text: row[1].text for row in table.rows}
        assert places["Figure 4"] == '<a href="#figure_04">Figure 4 of this run</a>'
        assert places["Table 5"] == "not here: this run has no universal dictionaries"

    def test_what_could_not_be_drawn_says_why(self, built_bare: Path) -> None:
        run = read_report(built_bare)
        absent = {figure.name: figure.absent for figure in run.sections[0].figures if figure.absent}
        places = {row[0].text: row[1].text for row in beside.items_table(run.sections).rows}
        for name, why in absent.items():
            if name.startswith("figure_0"):
                assert places[f"Figure {int(name[-2:])}"] == f"not drawn: {why}"

    def test_settings_that_differ_say_what_that_does(self, both: Report) -> None:
        rows = {row.setting.name: row for row in beside.differing(both.manifest, both.sections)}
        assert rows["number of prompts"].effect == beside.EFFECTS["number of prompts"]
        assert rows["GRPO: group"].setting.paper == "4 completions"
        assert (rows["GRPO: group"].setting.ours, bool(rows["GRPO: group"].effect)) == ("8", True)
        assert "model" not in rows
        assert "model (Decoding)" in beside.same_sentence(both.sections)
        assert rows["hardware"].setting.ours == both.manifest.device

    def test_every_setting_that_a_panel_compares_has_an_effect(self, both: Report) -> None:
        names = {setting.name.rpartition(": ")[2] for setting in both.sections[1].settings}
        names |= {setting.name for setting in both.sections[0].settings}
        assert names <= set(beside.EFFECTS)

    def test_the_claim_that_is_most_at_odds_is_the_chief_difference(self, built: Path) -> None:
        run = read_decoding(built)
        value = Estimate(mean=0.5, low=0.25, high=0.75, n=4, n_clusters=4, method="95% m")

        def claim(verdict: str, where: str) -> Claim:
            return Claim.model_validate(
                {
                    "claim": "c",
                    "where": where,
                    "quantity": f"slope, {verdict}",
                    "estimate": value,
                    "verdict": verdict,
                    "explanation": "",
                }
            )

        claims = (
            claim("agrees", "a; figures 4 and 5"),
            claim("disagrees", "b; figure 4"),
            claim("undecided", "figure 7"),
        )
        found = differences.decoding_differences(type(run)(**{**vars(run), "claims": claims}))
        assert found["figure_04"] == "1 of its 2 claims disagrees; slope, disagrees: 0.50\u00a0[0.25,\u00a00.75]."
        assert found["figure_05"].startswith("Its claim agrees; slope, agrees")
        assert found["figure_07"].startswith("Its claim is undecided")
        assert "figure_06" not in found


class TestCosts:
    def test_every_stage_with_share_speed_and_memory(self, report: Report) -> None:
        stages = {
            "decoding": StageRecord(status="done", started="", seconds=30.0, peak_memory_bytes=2_000_000_000),
            "report": StageRecord(status="failed", started="", seconds=10.0, error="OutputError: disk full"),
        }
        manifest = report.manifest.model_copy(update={"stages": stages})
        rows = [[cell.text for cell in row] for row in costs_table(manifest, report.rates).rows]
        assert rows == [
            ["decoding", "30.0\u00a0s", "75.0\u00a0%", "384 tokens/s", "2.0\u00a0GB"],
            ["report", "10.0\u00a0s", "25.0\u00a0%", "–", "not measured"],
            ["all stages", "40.0\u00a0s", "100.0\u00a0%", "–", "2.0\u00a0GB"],
        ]
        notes = [row[0].note for row in costs_table(manifest, {}).rows]
        assert notes == ["", "failed: OutputError: disk full", ""]
        assert (
            costs_csv(manifest, report.rates).decode().splitlines()[1] == "decoding,done,30.0,384 tokens/s,2000000000"
        )

    def test_the_speed_of_training_is_that_of_its_own_record(self, both: Report) -> None:
        assert both.rates["align.dpo"] == "667 tokens/s"  # 3,000 tokens in 4.5 s


def test_findings_are_there_for_other_programs(built: Path, report: Report) -> None:
    found = json.loads((built / "findings.json").read_text("utf-8"))
    assert [section["id"] for section in found["sections"]] == ["decoding"]
    assert found["sections"][0]["findings"] == list(report.sections[0].findings)
    assert found["abstract"] == list(abstracts.abstract(read_manifest(built), report.sections, beside.PANELS))


def test_a_page_that_is_too_large_is_warned_of(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        write_report(report, tmp_path / "a")
        assert caplog.text == ""
        monkeypatch.setattr(page, "MAX_BYTES", 1000)
        write_report(report, tmp_path / "b")
    assert "some browsers and mail programs will refuse it" in caplog.text
    shutil.rmtree(tmp_path / "a")
