import csv
import io
import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from triptych.dictionaries.records import DictionaryRecord
from triptych.errors import DataError
from triptych.records import Estimate
from triptych.reports import build_report
from triptych.reports.dictionaries import dictionaries_section
from triptych.reports.dictionaries_findings import findings
from triptych.reports.dictionaries_glossary import DICTIONARY_TERMS, ROLE_NAMES, ROLE_TERMS, describe_measure
from triptych.reports.dictionaries_inputs import ROLES, Dictionaries, Key, read_dictionaries
from triptych.reports.dictionaries_paper import family_models, sparc_table, table_5, table_6
from triptych.reports.dictionaries_tables import (
    QUALITY,
    backbones_table,
    costs_table,
    counts_table,
    factors_table,
    latents_table,
    quality_table,
)
from triptych.reports.format import NBSP
from triptych.reports.reported import reported
from triptych.reports.tables import Table
from triptych.runs import read_records_json, write_records_json

MakeDictionaries = Callable[..., Path]
ReadPage = Callable[[Path], Any]
HOSTILE = "\u202e<img src=x onerror=alert(5)>$\\frac{1}{2}$" + "z" * 300
FILES = ("trained", "features", "shuffled", "same", "images", "backbones")
ROLES_BESIDE = ("other_update", "independent", "independent_equal_updates", "sparc", "shuffled", "same")
TAXES = ("alignment_tax", "alignment_tax_equal_updates")

CASES: dict[str, dict[str, Any]] = {
    "two": {},
    "three": {"models": ("resnet", "vit", "dino"), "heat": False},
    "hostile": {"models": ("resnet", HOSTILE), "factors": (HOSTILE, "hue"), "hostile": True, "seeds": (0,)},
    "bare": {
        "seeds": (0,),
        "factors": (),
        "without": (*FILES, *ROLES_BESIDE, *TAXES, "universal_by_counts", "universal_by_variance", "confirmed"),
    },
}
PARTS = ("r2", "tax", "latents", "pictures", "factors", "training", "backbones", "dictionary-costs", "methods")


@pytest.fixture(scope="module")
def folders(make_dictionaries: MakeDictionaries, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run directory of each case, with its report. Read only."""
    made = {}
    for name, case in CASES.items():
        made[name] = make_dictionaries(tmp_path_factory.mktemp("case") / "run", **case)
        build_report(made[name])
    return made


@pytest.fixture(scope="module")
def pages(folders: dict[str, Path], read_page: ReadPage) -> dict[str, Any]:
    return {name: read_page(folder / "report.html") for name, folder in folders.items()}


@pytest.fixture(scope="module")
def run(folders: dict[str, Path]) -> Dictionaries:
    return read(folders["two"])


@pytest.fixture(scope="module")
def bare(folders: dict[str, Path]) -> Dictionaries:
    return read(folders["bare"])


def read(folder: Path) -> Dictionaries:
    found = read_dictionaries(folder)
    assert found is not None
    return found


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "tables" / name).read_text("utf-8"))))


def texts(table: Table | None, label: str, note: str | None = None) -> list[str]:
    """The texts of the row with a head, and a note where several have it."""
    assert table is not None
    return next([c.text for c in row] for row in table.rows if row[0].text == label and note in (None, row[0].note))


# --- The pages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_pages_are_sound(folders: dict[str, Path], pages: dict[str, Any], case: str) -> None:
    page = pages[case]
    assert page.mistakes == []
    assert len(page.ids) == len(set(page.ids))
    labels = [label for _, a in page.tags for label in a.get("aria-labelledby", "").split()]
    targets = [a["href"] for a in page.all("a")]
    assert {*labels, *(target[1:] for target in targets if target.startswith("#"))} <= set(page.ids)
    assert all((folders[case] / target).is_file() for target in targets if not target.startswith("#"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.all("script") == page.all("img") == []
    assert "nan" not in page.text.lower().split()


@pytest.mark.parametrize(("case", "drawn"), [("two", 7), ("three", 7), ("hostile", 7), ("bare", 1)])
def test_figures_are_inline_and_named(pages: dict[str, Any], case: str, drawn: int) -> None:
    drawings = pages[case].all("svg")
    assert len(drawings) == drawn
    assert all(a.get("role") == "img" and len(a.get("aria-label", "")) > 80 for a in drawings)
    assert all(re.search(r"\d", a["aria-label"]) for a in drawings)


def test_hidden_characters_are_spelled_out(pages: dict[str, Any], folders: dict[str, Path]) -> None:
    raw = (folders["hostile"] / "report.html").read_text("utf-8")
    assert "\u202e" not in raw
    assert "<img src=x" not in raw
    assert "⟨U+202E⟩" in pages["hostile"].text
    assert "z" * 60 not in pages["hostile"].text
    assert "\u202e" not in (folders["hostile"] / "tables" / "table_05.csv").read_text("utf-8")


def test_all_parts_and_files_are_there(folders: dict[str, Path]) -> None:
    section = dictionaries_section(folders["two"])
    assert section is not None
    assert (section.id, section.title) == ("dictionaries", "Universal dictionaries")
    assert tuple(part.id for part in section.parts) == PARTS
    names = ("table_05", "table_06", "dictionaries_measures", "dictionaries_training")
    assert [f"tables/{name}.csv" in section.files for name in names] == [True] * 4
    figures = [figure.name.removeprefix("figure_") for figure in section.figures]
    assert figures == ["r2", "definitions", "11", "energy", "12", "13", "factors"]


def test_a_run_without_the_panel_has_no_section(tmp_path: Path) -> None:
    assert dictionaries_section(tmp_path) is None


def test_a_bare_run_says_what_it_lacks(pages: dict[str, Any], bare: Dictionaries) -> None:
    text = " ".join(pages["bare"].text.split())
    for sentence in (
        "this run has no independent dictionaries",
        "this run was measured before there were several definitions of universal",
        "No null was trained",
        "This run has no pictures of latents",
        "Not drawn: this run has no dictionaries/universal/features.parquet",
        "Not drawn: this run has no pictures of a universal latent",
        "Not drawn: these images have no labels",
        "No backbone was trained in this run",
        "This run has one seed",
    ):
        assert sentence in text
    assert latents_table(bare) is factors_table(bare) is backbones_table(bare) is costs_table(bare) is None
    assert bare.models == ("resnet", "vit")  # from the measures alone


# --- Reading ----------------------------------------------------------------------------------------------------------


def estimate(mean: float | None, half: float | None = None) -> Estimate:
    low, high = (None, None) if half is None or mean is None else (mean - half, mean + half)
    return Estimate(mean=mean, low=low, high=high, n=9, n_clusters=9, method="no interval: by hand")


def with_measures(folder: Path, source: Path, *rows: DictionaryRecord) -> Dictionaries:
    """A run of some measures alone."""
    (folder / "dictionaries").mkdir(parents=True)
    (folder / "manifest.json").write_bytes((source / "manifest.json").read_bytes())
    write_records_json(folder / "dictionaries/measures.json", rows)
    return read(folder)


def test_an_interval_over_seeds_goes_before_one_over_images(run: Dictionaries) -> None:
    found = run.estimate(Key("universal", "r2", "resnet", "vit"))
    assert found is not None
    assert found.method == "95% Student's t over seeds"
    main = run.of_main("universal")
    assert main is not None
    assert main.method == "no interval: one dictionary"  # of the very one that is drawn


def test_one_seed_falls_back_on_images(folders: dict[str, Path]) -> None:
    found = read(folders["hostile"]).estimate(Key("universal", "r2", "resnet", "resnet"))
    assert found is not None
    assert found.method == "95% cluster bootstrap-t, 2000 resamples"


def test_the_seed_shown_is_that_of_the_main_dictionary(folders: dict[str, Path], tmp_path: Path) -> None:
    rows = [
        DictionaryRecord(role="universal", metric="universal", seed=seed, estimate=estimate(mean))
        for seed, mean in ((5, 70.0), (3, 60.0))
    ]
    some = with_measures(tmp_path / "run", folders["two"], *rows)
    assert some.of_main("universal") == estimate(60.0)  # no record says which is the main one: the lowest seed
    trained = read(folders["two"]).trained[0].model_copy(update={"seed": 5})
    write_records_json(tmp_path / "run/dictionaries/dictionaries.json", [trained])
    assert read(tmp_path / "run").of_main("universal") == estimate(70.0)


def test_a_value_that_is_none_is_not_told(folders: dict[str, Path], tmp_path: Path) -> None:
    way = {"source": "resnet", "target": "resnet"}
    rows = [
        DictionaryRecord(role="universal", metric="r2", estimate=estimate(None), **way),
        DictionaryRecord(role="universal", metric="universal", estimate=estimate(None)),
    ]
    some = with_measures(tmp_path / "run", folders["two"], *rows)
    assert "how much it explains was not measured" in findings(some)[0]
    assert not any("By what they explain" in sentence for sentence in findings(some))
    assert dictionaries_section(tmp_path / "run") is not None


@pytest.mark.parametrize("name", ["measures.json", "universal/images/index.json", "backbones/0/training.json"])
def test_files_of_something_else_are_refused_by_name(
    make_dictionaries: MakeDictionaries, tmp_path: Path, name: str
) -> None:
    folder = make_dictionaries(tmp_path / "run", seeds=(0,))
    (folder / "dictionaries" / name).write_text('[{"role": "queen"}]')
    with pytest.raises(DataError, match=re.escape(name)):
        read_dictionaries(folder)


def test_features_without_a_column_are_refused(make_dictionaries: MakeDictionaries, tmp_path: Path) -> None:
    folder = make_dictionaries(tmp_path / "run", seeds=(0,))
    path = folder / "dictionaries/universal/features.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["energy_vit"]), path)
    with pytest.raises(DataError, match="no column energy_vit"):
        read_dictionaries(folder)


def test_features_as_the_contract_has_them_are_enough(make_dictionaries: MakeDictionaries, tmp_path: Path) -> None:
    folder = make_dictionaries(tmp_path / "run", seeds=(0,), without=("chance", "trained"))
    run = read(folder)
    assert run.latents is not None
    assert not run.latents.has_chances
    assert run.latents.labels == (None,) * 400
    assert run.models == ("resnet", "vit")  # from the columns
    section = dictionaries_section(folder)
    assert section is not None
    assert "What chance would give was not recorded." in str(section.parts[2].body)


def test_entropies_by_class(run: Dictionaries) -> None:
    latents = run.latents
    assert latents is not None
    classes = [latents.of_class(name) for name in ("universal", "mid", "specific")]
    assert sum(int(of.sum()) for of in classes) == latents.n_live  # each live latent is of one class
    assert latents.n_live + latents.n_dead == 400


# --- Tables -----------------------------------------------------------------------------------------------------------


def test_table_5_stands_beside_the_papers(run: Dictionaries) -> None:
    table = table_5(run)
    assert [column.head for column in table.columns] == [
        "Source",
        "R², shared, update = source",
        "R², shared, update = all",
        "R², shared, update = source",
        "R², shared, update = all",
        "Paper",
    ]
    assert [c.note for c in table.columns[1:5]] == ["per-feature mean"] * 2 + ["one global mean"] * 2
    # Of the fixture: the paper's value, 0.03 more across models for the other update, 0.05 more for the global mean.
    assert texts(table, "resnet", "→ vit") == ["resnet", "0.618", "0.648", "0.668", "0.698", "0.618"]
    assert [row[-1].text for row in table.rows] == ["0.759", "0.618", "0.718", "0.771"]  # as printed in table 5


def test_the_update_is_named_by_what_was_trained(run: Dictionaries, folders: dict[str, Path]) -> None:
    swapped = {"source": "all", "all": "source"}
    trained = tuple(one.model_copy(update={"update": swapped[one.update]}) for one in run.trained)
    other = Dictionaries(**{**vars_of(run), "trained": trained})
    assert other.updates() == [("other_update", "source"), ("universal", "all")]
    assert texts(table_5(other), "resnet", "→ vit")[1:3] == ["0.648", "0.618"]
    assert [c.head for c in table_5(read(folders["bare"])).columns[1:3]] == ["R², shared", "R², shared"]


@pytest.mark.parametrize(
    ("models", "found"),
    [
        (("ResNet-50", "google/vit"), {"resnet18": "ResNet-50", "vit": "google/vit"}),
        (("vit", "resnet", "dino"), {"resnet18": "resnet", "vit": "vit"}),
        (("resnet18", "resnet50"), {}),
        (("resnet", "vit-a", "vit-b"), {}),  # which of the two would it be?
        (("resnet-vit", "dino"), {}),
    ],
)
def test_the_papers_models_are_told_by_name(run: Dictionaries, models: tuple[str, ...], found: dict[str, str]) -> None:
    main = run.trained[0].model_copy(update={"models": models})
    assert family_models(Dictionaries(**{**vars_of(run), "trained": (main,)})) == found


def test_other_models_have_the_papers_values_in_rows_of_their_own(folders: dict[str, Path]) -> None:
    run = read(folders["hostile"])
    table = table_5(run)
    assert len(table.rows) == 8
    assert texts(table, "Paper: ViT-B/16", "→ ResNet-18")[1:] == ["–", "–", "–", "–", "0.718"]
    assert [row[0].text for row in table_6(run).rows][-1] == "Paper: ResNet-18 (Model A)"


def test_table_6_has_both_taxes_and_the_papers_row_below_model_a(run: Dictionaries) -> None:
    table = table_6(run)
    assert [row[0].text for row in table.rows] == ["resnet", "Paper: ResNet-18 (Model A)", "vit"]
    # The independent dictionary is 0.05 above the shared one at equal steps, 0.03 at equal updates (the fixture).
    assert texts(table, "resnet")[1:] == ["0.809", "0.759", "0.0500", "0.789", "0.0300"]
    assert texts(table, "Paper: ResNet-18 (Model A)")[1:] == ["0.8089", "0.7566", "0.0523", "–", "–"]


def test_an_independent_r2_is_found_under_either_name(folders: dict[str, Path], tmp_path: Path) -> None:
    row = DictionaryRecord(role="universal", metric="r2_independent", source="resnet", estimate=estimate(0.9))
    some = with_measures(tmp_path / "run", folders["two"], row)
    assert some.independent_r2("resnet") == estimate(0.9)
    assert some.independent_r2("resnet", equal_updates=True) is None


def test_csvs_have_all_numbers_and_the_papers(folders: dict[str, Path]) -> None:
    five = rows_of(folders["two"], "table_05.csv")
    assert len(five) == 4 * 2 * 2 + 4  # ways, updates, conventions; the paper's ways
    ours = next(row for row in five if row["source"] == "vit" and row["target"] == "resnet" and row["metric"] == "r2")
    assert (ours["role"], ours["update"], ours["value"]) == ("universal", "source", "0.718")
    assert [float(row["value"]) for row in five if row["role"] == "paper"] == [0.759, 0.618, 0.718, 0.771]
    assert all(row["low"] == "" for row in five if row["role"] == "paper")
    six = rows_of(folders["two"], "table_06.csv")
    assert len(six) == 2 * 5 + 3
    assert six[-1]["value"] == "0.0523"
    measures = rows_of(folders["two"], "dictionaries_measures.csv")
    assert len(measures) == len(read_records_json(folders["two"] / "dictionaries/measures.json", DictionaryRecord))
    assert {row["seed"] for row in measures} == {"", "0", "1", "2"}
    assert len(rows_of(folders["two"], "dictionaries_training.csv")) == 15


def test_counts_stand_beside_the_papers(run: Dictionaries) -> None:
    table = counts_table(run)
    assert [row[0].text for row in table.rows] == [
        "shared, update = source",
        "shared, update = all",
        "shared, joint top k (SPARC)",
        "null: images shuffled",
        "null: a model and itself",
        "Paper",
    ]
    # Its numbers are by counts, and stand in no column of ours.
    assert texts(table, "Paper")[1:] == [*["–"] * 5, "763", "319", "0.2144", "–"]
    assert table.rows[-1][6].note == "of 2,048"
    shuffled = texts(table, "null: images shuffled")
    assert [shuffled[1], shuffled[5], shuffled[6]] == ["0.0", "3.0", "110"]


def test_sparc_stands_apart_from_table_5(run: Dictionaries, folders: dict[str, Path]) -> None:
    """Its latents are chosen with the target's own activations: what it explains is no cross reconstruction."""
    assert not any("SPARC" in column.head for column in table_5(run).columns)
    table = sparc_table(run)
    assert table is not None
    # Of the fixture: the paper's value, and 0.02 less across models.
    assert [row[1].text for row in table.rows] == ["0.759", "0.598", "0.698", "0.771"]
    assert sparc_table(read(folders["bare"])) is None
    assert reported()["usae.co_firing_proportion"].value == 0.2144


def test_latents_of_the_pictures_come_first(run: Dictionaries) -> None:
    table = latents_table(run)
    assert table is not None
    heads = [row[0] for row in table.rows]
    assert [cell.text for cell in heads[:2]] == ["200", "3"]
    assert {cell.note for cell in heads[2:]} == {"universal", "specific"}
    assert len(heads) <= 2 + 2 * 8


def test_quality_has_a_line_a_measure_and_model(run: Dictionaries) -> None:
    table = quality_table(run)
    assert texts(table, "final loss")[1] == "0.587"
    assert texts(table, "final loss")[-1] == "0.587"  # the paper's
    assert texts(table, "matched", "vit, share of latents")[1] == "0.2100"
    assert table is not None
    assert len(table.rows) == 1 + 2 * (len(QUALITY) - 1)


def test_backbones_and_costs(run: Dictionaries) -> None:
    backbone = backbones_table(run)
    assert backbone is not None
    assert [column.head for column in backbone.columns][:2] == ["Measure", run.backbones[0].name]
    accuracy = backbone.rows[3]
    assert accuracy[0].text.startswith("accuracy: ")
    assert (accuracy[1].text, accuracy[1].note) == ("0.910", f"[0.900,{NBSP}0.920]; 0.125")
    costs = texts(costs_table(run), "universal")
    assert costs[1] == "resnet, vit"
    assert costs[-1] == "20,492"  # 1,500,000 rows in 73.2 s


# --- Findings and methods ---------------------------------------------------------------------------------------------


def test_findings_are_few_and_of_this_run(run: Dictionaries) -> None:
    told = [sentence.replace(NBSP, " ") for sentence in findings(run)]
    assert len(told) == 6
    assert told[0].startswith("One dictionary of 400 latents, 32 active, shared by resnet and vit explains")
    assert "0.0500 [0.0480, 0.0520] for resnet" in told[1]
    assert "0.0300 [0.0284, 0.0316] for vit" in told[1]
    assert told[2].startswith(
        "By what they explain 120 latents of 400 are universal and confirmed, 190 partial, 60 specific and 30 dead; by "
        "firing entropy, the paper’s definition, 160 would be universal"
    )
    assert "where chance alone gives 0.0500" in told[2]
    assert "latents are universal and confirmed, by firing entropy 110 [108, 112]" in told[3]
    assert "0.618 [0.605, 0.631] and 0.718 [0.703, 0.733] with update = source" in told[4]
    assert told[5] == "Brackets are 95 % intervals over 3 seeds."


def test_three_models_are_told_by_a_range(folders: dict[str, Path]) -> None:
    told = findings(read(folders["three"]))
    assert any("0.600 to 0.718 with update = source" in sentence for sentence in told)


def test_every_measure_and_role_is_described(run: Dictionaries) -> None:
    assert {row.metric for row in run.measures} - set(DICTIONARY_TERMS) == {"surprise"}
    assert "Not described" in describe_measure("surprise").definition
    # Metrics as records.py lists them.
    assert {"r2_independent", "r2_independent_equal_updates"} <= set(DICTIONARY_TERMS)
    assert set(ROLE_NAMES) == set(ROLES)
    assert set(ROLE_TERMS) | {"independent_equal_updates"} == set(ROLES)


def test_methods_say_why_entropy_is_no_evidence(pages: dict[str, Any]) -> None:
    text = pages["two"].text
    assert "Why entropy alone is no evidence" in text
    assert "has an entropy of 1 even where no image is in both 3 %" in text
    assert "hypergeometric" in text
    assert "Benjamini and Hochberg" in text
    assert "1 − Σ‖a − â‖² / Σ‖a − ā‖²" in text


def test_hostile_text_in_json_is_only_text(folders: dict[str, Path]) -> None:
    rows = json.loads((folders["hostile"] / "dictionaries/measures.json").read_text("utf-8"))
    assert any(row["source"] == HOSTILE for row in rows)  # the fixture is as hostile as it says


def test_an_all_dead_dictionary_draws_no_latents(make_dictionaries: MakeDictionaries, tmp_path: Path) -> None:
    folder = make_dictionaries(tmp_path / "run", seeds=(0,), without=("images",))
    path = folder / "dictionaries/universal/features.parquet"
    table = pq.read_table(path)
    n = table.num_rows
    columns = {name: table[name] for name in table.column_names}
    columns |= {"dead": pa.array([True] * n), "firing_entropy": pa.array([None] * n, pa.float64())}
    pq.write_table(pa.table(columns), path)
    section = dictionaries_section(folder)
    assert section is not None
    assert "every latent of the shared dictionary is dead" in str(section.parts[2].body)


def vars_of(run: Dictionaries) -> dict[str, Any]:
    names = ("run_dir", "manifest", "measures", "trained", "latents", "null_entropies", "pictures", "backbones")
    return {name: getattr(run, name) for name in names}
