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

from triptych.auditing.records import LEVELS, Evidence, Finding
from triptych.errors import DataError
from triptych.records import Estimate
from triptych.reports import build_report
from triptych.reports.auditing import auditing_section
from triptych.reports.auditing_card import SIGNS, card_groups
from triptych.reports.auditing_findings import findings
from triptych.reports.auditing_glossary import AUDIT_TERMS, describe_audit
from triptych.reports.auditing_inputs import Auditing, gravest_first, read_auditing, shown_name
from triptych.reports.auditing_paper import TABLE_3, TABLE_4, TABLE_4_SCORES, table_3, table_4
from triptych.reports.auditing_responses import Responses
from triptych.reports.auditing_tables import (
    audit_cell,
    collapse_table,
    comparison_table,
    decimals_of,
    divergence_table,
    lineage_table,
    quoted,
    token_tables,
)
from triptych.reports.format import NBSP
from triptych.reports.reported import reported
from triptych.reports.tables import Table

MakeAudit = Callable[..., Path]
MakeRun = Callable[..., Path]
ReadPage = Callable[[Path], Any]
HOSTILE = "\u202e<img src=x onerror=alert(4)>" + "z" * 300
FILES = ("responses", "perturbed", "scores")
RECORDS = ("divergence", "verbosity", "hacking", "collapse", "comparison", "lineage", "costs")

CASES: dict[str, dict[str, Any]] = {
    "all": {},
    "hostile": {"checkpoints": ("base", HOSTILE, "奖"), "scorers": ("=cmd()", HOSTILE), "hostile": True},
    "base alone": {"checkpoints": ("base",), "scorers": (), "gold": None},
    "no rewards": {"checkpoints": ("base", "dpo"), "scorers": (), "gold": None},
    "one prompt": {"n_prompts": 1},
    "all empty": {"empty": True, "categories": ("factual",)},
    "no texts": {"without": FILES},
    "card alone": {"without": (*FILES, *RECORDS)},
}
PAGES = ("report.html", "audit_responses.html")


@pytest.fixture(scope="module")
def folders(make_audit: MakeAudit, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run directory of each case, with its report. Read only."""
    made = {}
    for name, case in CASES.items():
        made[name] = make_audit(tmp_path_factory.mktemp("case") / "run", **case)
        build_report(made[name])
    return made


@pytest.fixture(scope="module")
def pages(folders: dict[str, Path], read_page: ReadPage) -> dict[str, Any]:
    return {name: read_page(folder / "report.html") for name, folder in folders.items()}


@pytest.fixture(scope="module")
def run(folders: dict[str, Path]) -> Auditing:
    return read(folders["all"])


def read(folder: Path) -> Auditing:
    found = read_auditing(folder)
    assert found is not None
    return found


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "tables" / name).read_text("utf-8"))))


def cells(table: Table, label: str, note: str | None = None) -> list[str]:
    """The texts of the row with a head, and a note where several have it."""
    return next([c.text for c in row] for row in table.rows if row[0].text == label and note in (None, row[0].note))


# --- The pages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_pages_are_sound(folders: dict[str, Path], case: str, read_page: ReadPage) -> None:
    shown = {name: read_page(folders[case] / name) for name in PAGES if (folders[case] / name).is_file()}
    for name, page in shown.items():
        assert page.mistakes == []
        assert len(page.ids) == len(set(page.ids))
        labels = [label for _, a in page.tags for label in a.get("aria-labelledby", "").split()]
        assert set(labels) <= set(page.ids)
        for target in (a["href"] for a in page.all("a")):
            file, _, anchor = target.partition("#")
            assert (folders[case] / (file or name)).is_file()
            assert not anchor or anchor in (shown[file or name]).ids
        levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
        assert all(after <= before + 1 for before, after in pairwise(levels))
        assert page.all("script") == page.all("img") == []
        assert "nan" not in page.text.lower().split()


@pytest.mark.parametrize(
    ("case", "drawn"),
    [
        ("all", 5),
        ("hostile", 5),
        ("base alone", 3),  # no KL, no distance
        ("no rewards", 4),  # no score against the distance
        ("one prompt", 5),
        ("all empty", 5),
        ("no texts", 3),  # figures 8 and 10 are of texts
        ("card alone", 0),
    ],
)
def test_figures_are_inline_and_named(pages: dict[str, Any], case: str, drawn: int) -> None:
    drawings = pages[case].all("svg")
    assert len(drawings) == drawn
    assert all(a.get("role") == "img" and len(a.get("aria-label", "")) > 80 for a in drawings)


def test_all_parts_and_files_are_there(folders: dict[str, Path], run: Auditing) -> None:
    section = auditing_section(folders["all"])
    assert section is not None
    assert (section.id, section.title) == ("auditing", "Audits")
    assert [part.id for part in section.parts] == [
        "card",
        "divergence",
        "verbosity",
        "hacking",
        "table-4",
        "comparison",
        "lineage",
        "audit-methods",
        "audit-costs",
    ]
    csvs = ("table_03", "table_04", "audit_card", *(f"audit_{name}" for name in RECORDS[:1] + RECORDS[2:5]))
    figures = ("figure_kl_position", "figure_08", "figure_09", "figure_10", "figure_overoptimisation")
    wanted = {f"tables/{name}.csv" for name in csvs} | {"audit_responses.html"}
    assert set(section.files) == wanted
    assert {figure.name for figure in section.figures if figure.absent is None} == set(figures)


def test_what_was_not_audited_is_left_out_and_named(folders: dict[str, Path], pages: dict[str, Any]) -> None:
    section = auditing_section(folders["card alone"])
    assert section is not None
    assert [part.id for part in section.parts] == ["card", "audit-methods"]
    assert set(section.files) == {"tables/audit_card.csv"}
    assert "This run has no file of divergence from the base, verbosity, reward hacking" in pages["card alone"].text
    assert "This run has no file of" not in pages["all"].text
    assert 'href="audit_responses' not in (folders["no texts"] / "report.html").read_text("utf-8")


def test_no_card_no_section(tmp_path: Path) -> None:
    (tmp_path / "auditing").mkdir()
    assert auditing_section(tmp_path) is None


def test_a_damaged_file_is_named(make_audit: MakeAudit, tmp_path: Path) -> None:
    folder = make_audit(tmp_path / "run")
    (folder / "auditing" / "collapse.json").write_text("[{}]")
    with pytest.raises(DataError, match=r"collapse\.json"):
        read_auditing(folder)


def test_ids_are_unique_beside_the_other_panels(
    make_audit: MakeAudit, make_run: MakeRun, make_training: MakeRun, tmp_path: Path, read_page: ReadPage
) -> None:
    folder = tmp_path / "run"
    make_training(folder, runs=("dpo",), steps=3)
    make_run(folder, n_prompts=1, samples=1, hostile=False)
    make_audit(folder, n_prompts=2)
    page = read_page(build_report(folder))
    assert page.mistakes == []
    assert len(page.ids) == len(set(page.ids))
    for panel in ("decoding", "alignment", "auditing"):
        assert panel in page.ids


def test_hostile_text_is_shown_and_does_nothing(folders: dict[str, Path]) -> None:
    for name in PAGES:
        raw = (folders["hostile"] / name).read_bytes()
        text = raw.decode("utf-8")
        assert b"\x00" not in raw
        assert "\u202e" not in text
        assert not re.search(r"<(script|img|b)\b", text)
        assert "⟨U+202E⟩" in text
        assert max(map(len, text.splitlines())) < 300_000  # the text of a megabyte is clipped
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7 * 7 }}" in text


def test_the_same_run_gives_the_same_bytes(folders: dict[str, Path], tmp_path: Path) -> None:
    for case in ("all", "hostile"):
        copy = tmp_path / case
        shutil.copytree(folders[case], copy, ignore=shutil.ignore_patterns("figures", "tables", *PAGES))
        build_report(copy)
        files = sorted(path.relative_to(copy) for path in copy.rglob("*") if path.is_file())
        assert files == sorted(p.relative_to(folders[case]) for p in folders[case].rglob("*") if p.is_file())
        for name in files:
            assert (copy / name).read_bytes() == (folders[case] / name).read_bytes(), name


# --- The report card --------------------------------------------------------------------------------------------------


def test_the_gravest_findings_come_first(run: Auditing) -> None:
    levels = [LEVELS.index(finding.level) for finding in run.card]
    assert levels == sorted(levels)
    again = gravest_first(reversed(run.card))
    assert [finding.level for finding in again] == [finding.level for finding in run.card]
    groups = card_groups(run, Responses((), {}))
    assert [group.title for group in groups] == [
        "grpo: 1 severe finding, 1 warning and 1 undecided check",
        "reward_model: 1 severe finding",
        "dpo: 1 warning and 1 undecided check",
        "base: nothing beyond a threshold",
    ]
    assert [group.n_within for group in groups] == [2, 0, 2, 2]
    assert groups[-1].findings is None
    assert groups[1].within is None


def test_levels_are_signs_and_words(run: Auditing) -> None:
    assert list(SIGNS) == list(LEVELS)
    first = card_groups(run, Responses((), {}))[0].findings
    assert first is not None
    assert "✗ severe" in first.rows[0][0].text
    assert [cell.text for cell in first.rows[0][1:3]] == ["0.930", "0.1 / 0.5"]
    assert first.rows[0][1].note == f"[0.890,{NBSP}0.970]"


def test_within_their_thresholds_is_said_too(pages: dict[str, Any]) -> None:
    page = pages["all"]
    assert "2 checks within their thresholds" in page.text
    assert "✓ within" in page.text
    assert "Of the responses of base, 1 % are empty." in page.text


def test_evidence_leads_to_the_very_response(folders: dict[str, Path], run: Auditing) -> None:
    text = (folders["all"] / "audit_responses.html").read_text("utf-8")
    section = auditing_section(folders["all"])
    assert section is not None
    links = re.findall(r'href="audit_responses\.html#(r-\d+)"><bdi>([^<]+)</bdi>', section.parts[0].body)
    assert len(links) == 17  # 3 of the severe finding, 2 of the scorer's, 6 shown of 8 of each warning
    items = dict(re.findall(r'<li id="(r-\d+)">\s*<strong><bdi>([^<]+)</bdi></strong>', text))
    names = {anchor: items[anchor] for anchor, _ in links}
    for anchor, said in links:
        assert names[anchor] == ("safety prefix" if "safety prefix" in said else names[anchor])
    limited = next(anchor for anchor, said in links if said == "p001, limited: 0 tokens")
    assert items[limited] == "grpo"
    after = text[text.index(f'id="{limited}"') :]
    assert "0 tokens" in after[: after.index("</li>")]
    assert "✗ severe" in after[: after.index("</li>")]
    # p001 comes first: the gravest finding names it first.
    assert text.index("Question 1:") < text.index("Question 0:")


def test_names_and_ids_of_users_are_never_ids_of_the_page(folders: dict[str, Path], read_page: ReadPage) -> None:
    for name in PAGES:
        assert all(
            re.fullmatch(r"[\w.-]+", identifier, re.ASCII) for identifier in read_page(folders["hostile"] / name).ids
        )


def test_many_findings_are_clipped(run: Auditing) -> None:
    finding = run.card[0].model_copy(update={"sentence": "s" * 1_000_000, "evidence": (evidence(0),) * 50})
    card = Auditing(**{**vars_of(run), "card": (finding,) * 20})
    (group,) = card_groups(card, Responses((), {}))
    assert group.findings is not None
    assert len(str(group.findings.rows[0][0].text)) < 1000
    assert "and 44 more" in group.findings.rows[0][3].text
    summary = findings(card)
    assert sum(sentence.startswith("✗ Severe") for sentence in summary) == 6
    assert "14 further severe findings stand in the report card." in summary


def vars_of(run: Auditing) -> dict[str, Any]:
    names = ("run_dir", "manifest", "checkpoints", "card", "records", "lengths", "changes")
    return {name: getattr(run, name) for name in names}


def evidence(place: int) -> Evidence:
    return Evidence(model="dpo", prompt_id=f"p{place:03d}")


# --- The summary ------------------------------------------------------------------------------------------------------


WHAT_WAS_DONE = (
    # 3 checkpoints × (12 prompts × 2 kinds, and the most likely response to 4)
    "3 checkpoints (base, dpo and grpo) were audited on 84 responses to 12 prompts for divergence from the base, "
    "verbosity, reward hacking, collapse and win rates."
)


def test_the_summary_says_what_was_tested_and_seen(run: Auditing) -> None:
    assert findings(run) == (
        WHAT_WAS_DONE,
        "Of 12 checks: 2 severe findings, 2 warnings and 2 undecided checks; 6 are within the thresholds.",
        "✗ Severe: 93 % of the responses of grpo are empty.",
        "✗ Severe: reward_model rates a text higher behind the words “I am a helpful AI”.",
        "! Warning: dpo writes 25 % more tokens than the base.",
        "! Warning: grpo writes 25 % more tokens than the base.",
        f"Brackets are 95{NBSP}% intervals, clustered by prompt.",
    )


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_called_safe(pages: dict[str, Any], case: str) -> None:
    words = re.findall(r"\w+", pages[case].text.lower())
    assert "safe" not in words


def test_a_base_alone_and_an_empty_card(folders: dict[str, Path], run: Auditing) -> None:
    first, second, *_ = findings(read(folders["base alone"]))
    assert first.startswith("1 checkpoint (base) was audited on 28 responses to 12 prompts")
    assert second == "Of 2 checks: nothing beyond a threshold; 2 are within the thresholds."
    assert findings(Auditing(**{**vars_of(run), "card": ()}))[1:] == ("The report card holds no check.",)


# --- Tables 3 and 4 ---------------------------------------------------------------------------------------------------


def test_table_3_is_the_papers_with_ours_beside_it(folders: dict[str, Path], run: Auditing) -> None:
    table = table_3(run)
    assert [row[0].text for row in table.rows] == [
        "mean",
        "median",
        "std",
        "skew",
        "compliance rate",
        "mean_deviation",
        "std_deviations",
        # What compliance leaves out; the paper does not say.
        "empty",
    ]
    assert [column.head for column in table.columns[1:]] == [
        "base",
        "dpo",
        "grpo",
        "Paper: aligned model",
        "Paper: reference model",
    ]
    # The fixture's mean of dpo is 75 with a half-width of 0.08 · 75 + 0.001, so one decimal.
    assert cells(table, "mean")[1:] == ["60.0", "75.0", "12.00", "66.25", "67.70"]
    assert table.rows[0][2].note == f"[69.0,{NBSP}81.0]"
    assert cells(table, "median")[-2:] == ["59.0", "60.0"]
    assert cells(table, "skew")[-2:] == ["0.19", "0.20"]
    assert cells(table, "compliance rate")[-2:] == ["0.736", "0.744"]
    rows = rows_of(folders["all"], "table_03.csv")
    ours = next(row for row in rows if (row["metric"], row["of"]) == ("mean", "dpo"))
    assert (ours["value"], ours["n"]) == ("75.0", "12")
    assert float(ours["low"]) == pytest.approx(68.999)
    printed = next(row for row in rows if (row["metric"], row["of"]) == ("mean", "Paper: aligned model"))
    assert (printed["value"], printed["low"], printed["method"]) == ("66.25", "", "as printed, no interval given")


def test_table_4_is_the_papers_with_ours_beside_it(folders: dict[str, Path], run: Auditing) -> None:
    table = table_4(run)
    printed = [row[-1].text for row in table.rows]
    assert printed[:6] == ["0.0035", "0.0035", "48.13", "43.1", "0.0", "48.3"]
    assert printed[6:] == ["−3.471", "−2.357", "+1.113", *["–"] * 6]  # the paper has one scorer
    own = cells(table, "Mean KL divergence", "Catastrophic forgetting; on own responses")
    assert own == ["Mean KL divergence", "0", "0.0200", "0.350", "0.0035"]
    assert table.rows[0][1].note == "no interval: by definition"
    assert cells(table, "Normal score", "Reward hacking; by checks")[1] == "−3.47"
    rows = rows_of(folders["all"], "table_04.csv")
    assert {row["value"] for row in rows if row["of"] == "Paper: GRPO" and row["metric"] == "Hacked score"} == {
        "-2.357"
    }
    assert [row["of"] for row in rows if row["about"].endswith("by checks")][:4] == ["base", "dpo", "grpo", "base"]
    assert table.rows[-1][0].note == "Reward hacking; by gold"


def test_every_value_of_the_papers_tables_is_shown() -> None:
    keys = {value.key: value.source for value in reported().values}
    aligned = {key.rpartition(".")[2] for key in keys if key.startswith("verbosity.aligned.")}
    assert {row.key for row in TABLE_3} == aligned
    results = {key for key, source in keys.items() if key.startswith("grpo.") and source == "Table 4"}
    assert {f"grpo.{row.key}" for row in (*TABLE_4, *TABLE_4_SCORES)} == results


def test_without_reward_scorers_table_4_has_no_scores(folders: dict[str, Path], pages: dict[str, Any]) -> None:
    run = read(folders["no rewards"])
    assert run.reward_scorers == ()
    assert len(table_4(run).rows) == 6
    assert comparison_table(run) is None
    assert "No reward scorer read these texts" in pages["no rewards"].text


# --- Other tables -----------------------------------------------------------------------------------------------------


def test_the_base_is_not_compared_with_itself(run: Auditing) -> None:
    table = divergence_table(run)
    assert cells(table, "base") == ["base", "10.23", *["–"] * 6]
    # Half-widths 0.08 · value + 0.001 give: 0.0026 → 4 decimals.
    assert cells(table, "dpo") == ["dpo", "10.43", "1.020", "0.0200", "0.0160", "0.0200", "0.0204", "0.0196"]


def test_tokens_are_shown_with_their_white_space(run: Auditing, folders: dict[str, Path]) -> None:
    first = token_tables(run)[0]
    assert [row[0].text for row in first.rows] == ["“␣the”", "“↵”", "“<|im_end|>”", "“␣I”"]
    assert (first.rows[0][2].text, first.rows[0][2].note) == (f"30.0{NBSP}%", "no interval")
    hostile = token_tables(read(folders["hostile"]))[0]
    assert len(hostile.rows) == 7
    assert max(len(row[0].text) for row in hostile.rows) < 80
    assert quoted("\x00") == "“⟨U+0000⟩”"


def test_signs_of_collapse_stand_beside_their_differences(run: Auditing) -> None:
    table = collapse_table(run)
    heads = [column.head for column in table.columns]
    assert heads == ["Sign", "base", "dpo", "dpo − base", "grpo", "grpo − base"]
    assert cells(table, "Empty") == ["Empty", "0.0100", "0.0100", "0.000", "0.930", "0.920"]
    assert len(table.rows) == 11


def test_scores_and_win_rates_stand_side_by_side(run: Auditing) -> None:
    table = comparison_table(run)
    assert table is not None
    assert [(row[0].text, row[0].note) for row in table.rows][-1] == ("grpo", "by gold")
    # 3 · 0.35 = 1.05 less by the gold scorer, and as much more by the reward model; win rates 0.5 ∓ 1.05 / 4.
    assert cells(table, "grpo", "by gold")[1:] == ["−2.05", "−1.050", "−1.050", "0.238", "0.400", "0.500"]
    assert cells(table, "grpo", "by reward_model")[3:] == ["1.050", "0.762", "0.400", "0.500"]
    assert cells(table, "base", "by gold")[2:] == ["–", "–", "–", "–", "–"]


def test_what_has_no_interval_says_why(run: Auditing, folders: dict[str, Path]) -> None:
    table = lineage_table(run)
    assert (table.rows[0][1].text, table.rows[0][1].note) == ("0.00120", "no interval: a property of the weights")
    one = divergence_table(read(folders["one prompt"]))
    assert one.rows[1][1].note == "no interval: one prompt"
    empty = collapse_table(read(folders["all empty"]))
    assert empty.rows[-1][1] == ("no value", "nothing was scored", "none")
    assert audit_cell(None).text == "not measured"


@pytest.mark.parametrize(
    ("mean", "half", "text"),
    [(0.5, 0.1, "0.50"), (0.002, 0.001, "0.0020"), (3.4e-6, 1.2e-6, "0.0000034"), (0.0, 0.0, "0")],
)
def test_a_small_distance_is_not_written_as_zero(mean: float, half: float, text: str) -> None:
    estimate = Estimate(mean=mean, low=mean - half, high=mean + half, n=9, n_clusters=9, method="m")
    assert audit_cell(estimate).text == text
    assert decimals_of(estimate) is None or half < 0.01


def test_csv_files_have_every_figure(folders: dict[str, Path], run: Auditing) -> None:
    for audit in ("divergence", "hacking", "collapse", "comparison"):
        rows = rows_of(folders["all"], f"audit_{audit}.csv")
        assert len(rows) == len(run.rows(audit))
    hacking = rows_of(folders["all"], "audit_hacking.csv")
    row = next(
        r for r in hacking if (r["metric"], r["category"], r["scorer"]) == ("score_change", "safety_prefix", "checks")
    )
    assert float(row["value"]) == pytest.approx(0.055)
    assert row["p"] == "0.412"
    card = rows_of(folders["all"], "audit_card.csv")
    assert [row["level"] for row in card] == [finding.level for finding in run.card]
    assert card[0]["evidence"] == "p001 p002 p003"


def test_every_metric_shown_is_defined(folders: dict[str, Path], run: Auditing, pages: dict[str, Any]) -> None:
    metrics = {row.metric for rows in run.records.values() for row in rows}
    assert metrics <= set(AUDIT_TERMS)
    assert all(describe_audit(metric).definition in pages["all"].text for metric in metrics)
    assert describe_audit("new_one") == ("new one", "", "Not described by this version of the report.")
    assert "95% cluster bootstrap-t, 2000 resamples" in pages["all"].text


# --- Reading ----------------------------------------------------------------------------------------------------------


def test_who_is_a_checkpoint_and_who_a_scorer(run: Auditing) -> None:
    assert run.checkpoints == ("base", "dpo", "grpo")
    assert run.adapters == ("dpo", "grpo")
    assert run.reward_scorers == ("reward_model", "checks")
    assert run.gold == "gold"
    assert [scorer.column for scorer in run.text_scorers] == [
        "reward_model",
        "checks",
        "gold",
        "implicit_reward(dpo)",
        "implicit_reward(grpo)",
        "mean_logprob(base)",
        "mean_logprob(dpo)",
        "mean_logprob(grpo)",
    ]
    assert run.perturbations[-1] == "neutral"


def test_checkpoints_are_known_without_responses(folders: dict[str, Path]) -> None:
    assert read(folders["no texts"]).checkpoints == ("base", "dpo", "grpo")
    assert read(folders["card alone"]).checkpoints == ()


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("gold", "gold"),
        ("gold=0.5", "gold"),
        ("rewards.py:gold", "gold"),
        ("a:b/rewards.py:gold=2", "gold"),
        ("model:/some/where/gold", "gold"),
        ("model:gold=0.5", "gold"),
        ("model:org/checks", "checks"),
    ],
)
def test_scorers_are_configured_by_specs_and_found_by_name(run: Auditing, spec: str, name: str) -> None:
    config = {"auditing": {"scorers": ["checks", "reward_model"], "gold": spec}}
    found = Auditing(**{**vars_of(run), "manifest": run.manifest.model_copy(update={"config": config})})
    assert found.gold == name
    assert found.reward_scorers == tuple(n for n in ("checks", "reward_model", "gold") if n != name)
    assert found.all_scorers == (*found.reward_scorers, name)


@pytest.mark.parametrize("config", [{}, {"auditing": None}, {"auditing": {"scorers": "x", "gold": 3}}])
def test_a_configuration_may_say_nothing(run: Auditing, config: dict[str, Any]) -> None:
    silent = Auditing(**{**vars_of(run), "manifest": run.manifest.model_copy(update={"config": config})})
    assert silent.gold is None
    assert silent.reward_scorers == ("reward_model", "checks", "gold")  # as found: nobody says which is gold


@pytest.mark.parametrize(
    ("name", "text"),
    [("dpo", "dpo"), ("a\nb", "a b"), ("\n", "\n"), ("\u202ex", "⟨U+202E⟩x"), ("y" * 41, "y" * 40 + "…"), ("", "")],
)
def test_names_are_fit_for_a_cell(name: str, text: str) -> None:
    assert shown_name(name) == text


def test_records_are_read_back_as_written(folders: dict[str, Path], run: Auditing) -> None:
    written = json.loads((folders["all"] / "auditing" / "card.json").read_text("utf-8"))
    by_level = sorted(written, key=lambda finding: LEVELS.index(finding["level"]))
    assert [Finding.model_validate(finding) for finding in by_level] == list(run.card)
