"""`triptych interpret activations`: a whole study over matrices with planted structure, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from fastapi import FastAPI
from fastapi.testclient import TestClient
from safetensors.numpy import save_file

from triptych.cli import run
from triptych.dictionaries.records import DictionaryRecord, MatrixRecord
from triptych.dictionaries.store import ActivationStore
from triptych.explorer.concepts import concepts_router
from triptych.files import read_records_json

N, CONCEPTS, PRIVATE = 600, 12, 4
SIZES = ("--latents", "32", "--k", "3", "--epochs", "12", "--seeds", "1", "--set", "universal.batch_size=16")


def planted() -> dict[str, Any]:
    """Two models on the same rows: shared concepts and private ones, two or so in a row; labels are a concept."""
    draw = np.random.default_rng(7)
    shared = draw.random((N, CONCEPTS)) < 1.5 / CONCEPTS
    found: dict[str, Any] = {"label": shared[:, 0].astype(np.int64)}
    for name, width in (("cnn", 24), ("vit", 40)):
        active = np.hstack([shared, draw.random((N, PRIVATE)) < 0.5 / PRIVATE])
        values = active * draw.uniform(0.5, 1.5, active.shape)
        directions = draw.normal(size=(active.shape[1], width)) / np.sqrt(width)
        found[name] = (values @ directions + 0.01 * draw.normal(size=(N, width))).astype(np.float16)
    return found


def write(folder: Path, tensors: dict[str, Any], file: str = "acts.safetensors") -> Path:
    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, folder / file)
    return folder / file


def words(file: Path, *more: str, names: tuple[str, ...] = ("cnn", "vit")) -> list[str]:
    named = [word for name in names for word in ("--activations", f"{name}={file}")]
    return ["interpret", "activations", *named, *more, *SIZES]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("given"), planted())


@pytest.fixture(scope="module")
def done(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert run([*words(file, "--labels", f"{file}:label"), "--out", str(out), "--quiet"]) == 0
    return out


def metrics(done: Path, name: str) -> Any:
    return json.loads((done / "dictionaries" / name / "metrics.json").read_text())


# --- What it makes ----------------------------------------------------------------------------------------------------


def test_the_files_of_the_contract_are_there(done: Path) -> None:
    folder = done / "dictionaries" / "universal"
    assert {"config.json", "model.safetensors", "features.parquet", "metrics.json"} <= {
        p.name for p in folder.iterdir()
    }
    assert not (folder / "images").exists()
    assert not (folder / "thumbnails.parquet").exists()
    expected = {"r2", "r2_global", "universal", "specific", "dead", "co_firing_proportion", "alignment_tax", "loss"}
    assert expected <= set(metrics(done, "universal"))
    assert set(metrics(done, "universal")["alignment_tax"]) == {"cnn", "vit"}


def test_features_have_the_columns_of_the_contract(done: Path) -> None:
    table = pq.read_table(done / "dictionaries/universal/features.parquet")
    columns = {f"{part}_{name}" for part in ("fires", "cofire", "energy") for name in ("cnn", "vit")}
    columns |= {"latent", "firing_entropy", "co_fires", "dead", "kind", "specific_to", "confirmed"}
    assert columns <= set(table.column_names)
    rows = table.to_pylist()
    for row in rows:
        assert (row["firing_entropy"] is None) == row["dead"] == (row["kind"] == "dead")
        assert (row["specific_to"] in ("cnn", "vit")) == (row["kind"] == "specific")
        assert row["kind"] in ("universal", "partial", "specific", "dead")
    counted = metrics(done, "universal")
    for kind in ("universal", "specific", "dead"):
        assert sum(row["kind"] == kind for row in rows) == counted[kind]


def test_of_one_model_alone_every_live_latent_is_its_own(done: Path) -> None:
    rows = pq.read_table(done / "dictionaries/independent.cnn/features.parquet").to_pylist()
    assert {(row["kind"], row["specific_to"]) for row in rows} <= {("specific", "cnn"), ("dead", None)}
    assert metrics(done, "independent.cnn")["dead"] == sum(row["dead"] for row in rows) < 32
    assert {row["firing_entropy"] for row in rows} == {None}


def test_planted_concepts_are_shared_and_shuffled_rows_share_nothing(done: Path) -> None:
    shared, shuffled = metrics(done, "universal"), metrics(done, "shuffled")
    assert shared["r2"]["cnn"]["cnn"] > 0.5
    for source, target in (("cnn", "vit"), ("vit", "cnn")):
        assert shared["r2"][source][target] > 0.15 > 0 > shuffled["r2"][source][target]
    assert shared["co_firing_proportion"] > 3 * shuffled["co_firing_proportion"]


def test_the_label_is_told_by_a_latent(done: Path) -> None:
    records = read_records_json(done / "dictionaries/measures.json", DictionaryRecord)
    (found,) = [r for r in records if (r.metric, r.role, r.factor) == ("auroc_universal", "universal", "label")]
    assert found.estimate.mean is not None
    # Of the concept; no single latent tells its absence.
    assert found.estimate.mean > 0.65


def test_rows_are_copied_whole_and_their_files_are_recorded(done: Path, file: Path) -> None:
    given = planted()
    numbers: list[int] = []
    for split, n in (("train", 480), ("test", 120)):
        stores = [ActivationStore.open(done / "dictionaries/activations" / split / name) for name in ("cnn", "vit")]
        rows = stores[0].images_of_rows().tolist()
        numbers += rows
        assert len(rows) == n
        for store in stores:
            np.testing.assert_array_equal(store.load().numpy(), given[store.info.model][rows].astype(np.float32))
    assert sorted(numbers) == list(range(N))
    records = read_records_json(done / "dictionaries/matrices.json", MatrixRecord)
    said = [(r.name, r.part, r.file, r.key, r.rows, r.width, r.dtype) for r in records]
    assert said == [
        ("cnn", "train", str(file), "cnn", N, 24, "float16"),
        ("vit", "train", str(file), "vit", N, 40, "float16"),
        ("label", "labels", str(file), "label", N, 1, "labels"),
    ]


def test_the_report_says_that_there_are_no_images(done: Path) -> None:
    page = (done / "report.html").read_text()
    assert "its activations were given as matrices" in page
    assert "held-out rows" in page
    assert "held-out images" not in page
    assert "acts.safetensors" in page
    for name in ("table_05.csv", "table_06.csv"):
        assert (done / "tables" / name).stat().st_size > 0
    assert (done / "figures/figure_11.svg").is_file()


def test_the_explorer_lists_rows_in_the_place_of_images(done: Path) -> None:
    app = FastAPI()
    app.include_router(concepts_router(done))
    client = TestClient(app)
    assert client.get("/api/concepts").json()["unit"] == "row"
    listed = client.get("/api/concepts/latents").json()["rows"]
    live = next(row for row in listed if row["fires"]["cnn"] > 0)
    assert live["thumbnails"] == {"cnn": [], "vit": []}
    detail = client.get(f"/api/concepts/latents/{live['latent']}").json()
    top = detail["images"]["cnn"]["top"]
    assert [row["url"] for row in top] == [None] * len(top) != []
    assert top[0]["image_id"].startswith("row ")
    assert "label = " in top[0]["image_id"]
    activations = [row["activation"] for row in top]
    assert activations == sorted(activations, reverse=True)


# --- Other ways to the same -------------------------------------------------------------------------------------------

QUICK = ("--set", "baselines=[]", "--set", "nulls=[]", "--epochs", "1")


def test_other_files_give_the_same_dictionary(file: Path, tmp_path: Path) -> None:
    """From a recipe, with arrays in the place of tensors; float16 as float64 holds the same numbers."""
    assert run([*words(file), *QUICK, "--out", str(tmp_path / "first"), "--quiet"]) == 0
    given = planted()
    for name in ("cnn", "vit"):
        np.save(tmp_path / f"{name}.npy", given[name].astype(np.float64))
    recipe = yaml.safe_load((tmp_path / "first/config.yaml").read_text())
    train = {name: {"file": str(tmp_path / f"{name}.npy")} for name in ("cnn", "vit")}
    recipe["dictionaries"]["matrices"]["train"] = train
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert run(["study", "--recipe", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "second"), "--quiet"]) == 0
    weights = [tmp_path / name / "dictionaries/universal/model.safetensors" for name in ("first", "second")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_held_out_rows_may_lie_elsewhere(file: Path, tmp_path: Path) -> None:
    given = planted()
    test = write(tmp_path, {name: values[:100] for name, values in given.items()}, "test.safetensors")
    elsewhere = [word for name in ("cnn", "vit") for word in ("--test-activations", f"{name}={test}")]
    more = ("--test-labels", f"{test}:label", *QUICK, "--out", str(tmp_path / "run"), "--quiet")
    assert run([*words(file, *elsewhere), *more]) == 0
    assert metrics(tmp_path / "run", "universal")["rows"] == 100
    store = ActivationStore.open(tmp_path / "run/dictionaries/activations/train/cnn")
    assert store.n_rows == N
    parts = [r.part for r in read_records_json(tmp_path / "run/dictionaries/matrices.json", MatrixRecord)]
    assert parts == ["train", "train", "test", "test", "labels"]


def test_again_does_nothing_and_a_changed_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = planted()
    again = [*words(write(tmp_path, given), *QUICK), "--out", str(tmp_path / "run"), "--quiet", "--json"]
    assert run(again) == 0
    assert run(again) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["did_work"] is False
    given["vit"][3, 3] += 1
    write(tmp_path, given)
    assert run(again) == 2
    assert "'vit'" in (said := capsys.readouterr().err)
    assert "has changed" in said
    # What is copied needs no file any more.
    (tmp_path / "acts.safetensors").unlink()
    assert run(again) == 0


def test_a_dry_run_knows_rows_and_widths(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = {name: {"file": str(file), "key": name} for name in ("cnn", "vit")}
    small = {"coder": {"latents": 32, "sparsifier": {"name": "top_k", "k": 3}}}
    recipe: dict[str, Any] = {"dictionaries": {"matrices": {"train": train}, "universal": small}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    dry = ["study", "--recipe", str(tmp_path / "recipe.yaml"), "--dry-run", "--quiet"]
    assert run(dry) == 0
    said = capsys.readouterr().out
    assert "480 rows to train on, 120 held out" in said
    assert "cnn 24, vit 40" in said
    assert run([*dry, "--set", "dictionaries.matrices.train.vit.key=vot"]) == 2
    assert "did you mean 'vit'" in capsys.readouterr().err


# --- What it refuses --------------------------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], None]


def cut(given: dict[str, Any]) -> None:
    given["vit"] = given["vit"][:-1]


def spoil(given: dict[str, Any]) -> None:
    given["cnn"][17, 2] = np.nan


def flatten(given: dict[str, Any]) -> None:
    given["cnn"][:] = 1


def nothing(given: dict[str, Any]) -> None:
    pass


BAD: dict[str, tuple[Change, tuple[str, ...], str]] = {
    "other rows": (cut, (), "'vit' (FILE:vit) 599"),
    "not a number": (spoil, (), "nan in row 17, feature 2"),
    "alike": (flatten, (), "nothing varies"),
    "fewer rows than latents": (nothing, ("--latents", "2048"), "480 rows to train on"),
    "a limit below the latents": (nothing, ("--limit", "20"), "20 rows to train on"),
    "k beyond latents": (nothing, ("--k", "40"), "k cannot exceed latents"),
    "a name twice": (nothing, ("--activations", "cnn=FILE:vit"), "'cnn' is given twice"),
    "a name in capitals": (nothing, ("--activations", "CNN=FILE:vit"), "capitals"),
    "a reserved name": (nothing, ("--activations", "same=FILE:vit"), "name 'same' cannot be used"),
    "a name for no folder": (nothing, ("--activations", "a/b=FILE:vit"), "name 'a/b' cannot be used"),
    "a name with a dot": (nothing, ("--activations", "a.seed1=FILE:vit"), "name 'a.seed1' cannot be used"),
    "another key": (nothing, ("--activations", "third=FILE:cn"), "did you mean 'cnn'"),
    "integers": (nothing, ("--activations", "third=FILE:label"), "1-dimensional"),
    "no file": (nothing, ("--activations", "third=none.npy"), "none.npy does not exist"),
    "no such suffix": (nothing, ("--activations", "third=acts.pt"), "'.pt' are not read"),
    "labels of another length": (nothing, ("--labels", "SHORT.npy"), "are 10 and the activations have 600 rows"),
    "labels that are activations": (nothing, ("--labels", "FILE:cnn"), "600 x 24"),
    "test labels alone": (nothing, ("--test-labels", "FILE:label"), "test_labels"),
    "held-out rows of one model": (nothing, ("--test-activations", "cnn=FILE"), "held-out activations are of cnn"),
    "a share of 1": (nothing, ("--held-out", "1"), "test_share"),
    "images as well": (nothing, ("--set", "images=photos"), "images as well"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, more, says = BAD[name]
    given = planted()
    change(given)
    file = write(tmp_path, given)
    np.save(tmp_path / "SHORT.npy", np.array([0, 1] * 5))
    more = tuple(word.replace("FILE", str(file)).replace("SHORT", str(tmp_path / "SHORT")) for word in more)
    assert run([*words(file), *more, "--out", str(tmp_path / "run"), "--quiet"]) == 2
    said = capsys.readouterr().err.strip()
    assert says.replace("FILE", str(file)) in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_one_model_is_refused(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*words(file, names=("cnn",)), "--out", str(tmp_path / "run"), "--quiet"]) == 2
    assert "at least two models" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
