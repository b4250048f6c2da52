"""The panel as a whole, on tiny models of transformers with random weights and a few starter images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel

from triptych.cli import run
from triptych.config import parse_config
from triptych.dictionaries import study
from triptych.dictionaries.arms import arms
from triptych.dictionaries.coder import UniversalSAE
from triptych.dictionaries.plan import DictionariesConfig
from triptych.dictionaries.records import DictionaryRecord, LatentPictures, TrainedRecord
from triptych.files import read_records_json

SETTINGS = ("--set", "pictures={universal: 1, specific: 1, top: 2, maximisation: {steps: 2}}", "--seeds", "2")
SIZES = ("--latents", "24", "--k", "4", "--epochs", "3", "--limit", "96", "--set", "test_limit=48")


def save_models(folder: Path) -> dict[str, Path]:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        resnet = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"))
        vit = ViTModel(
            ViTConfig(
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
                image_size=32,
                patch_size=8,
            ),
            add_pooling_layer=False,
        )
    found = {}
    for name, model in (("a", resnet), ("b", vit)):
        model.save_pretrained(folder / name)
        settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
        (folder / name / "preprocessor_config.json").write_text(json.dumps(settings))
        found[name] = folder / name
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_models(tmp_path_factory.mktemp("models"))


def interpret(models: dict[str, Path], out: Path, *more: str) -> int:
    named = [part for name, folder in models.items() for part in ("--model", f"{name}={folder}")]
    return run(["--quiet", "interpret", "vision", *named, "--out", str(out), *SIZES, *SETTINGS, *more])


@pytest.fixture(scope="module")
def done(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert interpret(models, out) == 0
    return out


def test_all_dictionaries_are_there_with_their_files(done: Path) -> None:
    records = read_records_json(done / "dictionaries" / "dictionaries.json", TrainedRecord)
    roles = [one.role for one in records]
    counts = {role: roles.count(role) for role in dict.fromkeys(roles)}
    # Two seeds of each kind that has an interval over seeds, one model each where models are alone.
    assert counts == {
        "universal": 2,
        "independent": 4,
        "independent_equal_updates": 4,
        "other_update": 1,
        "sparc": 1,
        "shuffled": 1,
        "same": 1,
    }
    for one in records:
        folder = done / "dictionaries" / one.name
        assert {"config.json", "model.safetensors", "features.parquet", "metrics.json"} <= {
            p.name for p in folder.iterdir()
        }
        assert UniversalSAE.load(folder).names == one.models
        assert not list(folder.glob("state*"))


def test_features_and_metrics_are_what_the_contract_says(done: Path) -> None:
    folder = done / "dictionaries" / "universal"
    table = pq.read_table(folder / "features.parquet")
    expected = {"latent", "firing_entropy", "co_fires", "dead"}
    expected |= {f"{what}_{name}" for what in ("fires", "cofire", "energy") for name in "ab"}
    assert expected <= set(table.column_names)
    assert table.num_rows == 24
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["r2"]) == set(metrics["r2"]["a"]) == set(metrics["r2_global"]) == {"a", "b"}
    assert {"universal", "specific", "dead", "co_firing_proportion", "loss"} <= set(metrics)
    assert set(metrics["alignment_tax"]) == {"a", "b"}
    entropy, dead = table["firing_entropy"].to_pylist(), table["dead"].to_pylist()
    assert [value is None for value in entropy] == dead
    kinds, owners = table["kind"].to_pylist(), table["specific_to"].to_pylist()
    for kind in ("universal", "partial", "specific", "dead"):
        assert metrics[kind] == kinds.count(kind)
    assert [kind == "dead" for kind in kinds] == dead
    assert [kind == "specific" for kind in kinds] == [owner in ("a", "b") for owner in owners]
    assert {"confirmed", "universal_by_counts", "specific_by_counts", "universal_by_variance"} <= set(metrics)


def test_the_tax_is_the_difference_of_r2(done: Path) -> None:
    folder = done / "dictionaries"
    shared, alone = (json.loads((folder / n / "metrics.json").read_text()) for n in ("universal", "independent.a"))
    assert shared["alignment_tax"]["a"] == pytest.approx(alone["r2"]["a"]["a"] - shared["r2"]["a"]["a"])
    records = read_records_json(folder / "measures.json", DictionaryRecord)
    (over,) = [one for one in records if one.metric == "alignment_tax" and one.source == "a" and one.seed is None]
    each = [
        one.estimate.mean
        for one in records
        if one.metric == "alignment_tax"
        and one.source == "a"
        and one.seed is not None
        and one.estimate.mean is not None
    ]
    assert over.estimate.mean == pytest.approx(sum(each) / len(each))
    assert over.estimate.method == "95% Student's t over 2 seeds"


def test_nulls_say_what_they_must(done: Path) -> None:
    metrics = json.loads((done / "dictionaries" / "shuffled" / "metrics.json").read_text())
    assert metrics["confirmed"] == metrics["universal"] == 0


def test_pictures_and_report_are_there(done: Path) -> None:
    images = done / "dictionaries" / "universal" / "images"
    for record in read_records_json(images / "index.json", LatentPictures):
        for picture in record.pictures:
            with Image.open(images / picture.file) as opened:
                opened.verify()
    for name in ("report.html", "tables/table_05.csv", "tables/table_06.csv", "figures/figure_11.svg"):
        assert (done / name).stat().st_size > 0


def test_every_live_latent_has_its_top_images(done: Path) -> None:
    folder = done / "dictionaries" / "universal"
    features, tops = pq.read_table(folder / "features.parquet"), pq.read_table(folder / "tops.parquet").to_pylist()
    images = dict(zip(*pq.read_table(folder / "thumbnails.parquet").to_pydict().values(), strict=True))
    shown = {(one["latent"], one["model"]): 0 for one in tops}
    for latent, *fires in zip(*(features[name].to_pylist() for name in ("latent", "fires_a", "fires_b")), strict=True):
        assert [(latent, name) in shown for name in "ab"] == [n > 0 for n in fires]
    for one in tops:
        own = [other for other in tops if (other["latent"], other["model"]) == (one["latent"], one["model"])]
        assert [other["rank"] for other in own] == list(range(len(own)))
        assert own == sorted(own, key=lambda other: (-other["activation"], other["row"]))
        assert one["image_id"] == f"test-{one['row']:06d}"
    assert set(images) == {one["row"] for one in tops}


def test_again_does_nothing(models: dict[str, Path], done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (done / "dictionaries").rglob("*") if path.is_file()}
    capsys.readouterr()
    named = [part for name, folder in models.items() for part in ("--model", f"{name}={folder}")]
    assert run(["--quiet", "--json", "interpret", "vision", *named, "--out", str(done), *SIZES, *SETTINGS]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["did_work"] is False
    assert {path: path.stat().st_mtime_ns for path in (done / "dictionaries").rglob("*") if path.is_file()} == before


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [1, 7])
def test_a_killed_run_ends_with_the_same_files(
    models: dict[str, Path], done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Killed when some dictionaries are finished, then gone on with: the same weights and figures."""
    finish = study._finish
    finished: list[int] = []

    def killing(*arguments: Any) -> None:
        if len(finished) == after:
            raise _Killed
        finish(*arguments)
        finished.append(1)

    with monkeypatch.context() as patch:
        patch.setattr(study, "_finish", killing)
        with pytest.raises(_Killed):
            interpret(models, tmp_path / "run")
    assert interpret(models, tmp_path / "run") == 0
    weights = ("universal/model.safetensors", "same/model.safetensors")
    tops = ("universal/tops.parquet", "universal/thumbnails.parquet")
    for name in ("measures.json", "universal/metrics.json", *weights, *tops):
        assert (tmp_path / "run" / "dictionaries" / name).read_bytes() == (done / "dictionaries" / name).read_bytes(), (
            name
        )


def test_activations_are_shared_between_runs(models: dict[str, Path], tmp_path: Path) -> None:
    shared = ("--activations", str(tmp_path / "store"), "--set", "baselines=[]", "--set", "nulls=[]")
    assert interpret(models, tmp_path / "one", *shared) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.safetensors")}
    assert interpret(models, tmp_path / "two", *shared, "--seed", "0") == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.safetensors")} == before
    assert not (tmp_path / "two" / "dictionaries" / "activations").exists()


def test_activations_of_another_model_are_refused(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ("--activations", str(tmp_path / "store"), "--set", "baselines=[]", "--set", "nulls=[]")
    assert interpret(models, tmp_path / "one", *shared) == 0
    assert interpret({"a": models["b"], "b": models["a"]}, tmp_path / "two", *shared) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "store") in said
    assert "Traceback" not in said


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "k beyond the latents": (("--k", "30"), "k cannot exceed latents"),
    "one model": ((), "at least two models"),
    "unknown images": (("--images", "./nowhere"), "nowhere"),
    "unknown update": (("--update", "some"), "update"),
    "unknown key": (("--set", "universal.epoch=3"), "did you mean 'epochs'"),
    "a limit of one": (("--limit", "1"), "limit"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_usage_is_one_sentence_and_leaves_nothing(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    more, words = BAD[name]
    given = {"a": models["a"]} if name == "one model" else models
    assert interpret(given, tmp_path / "run", *more) == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("item", ["a", "=folder", "a=", "a=x:site:cls:more"])
def test_a_model_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], item: str) -> None:
    assert run(["interpret", "vision", "--model", item, "--out", str(tmp_path / "run")]) == 2
    assert "NAME=SOURCE" in capsys.readouterr().err


def test_a_corrupt_image_stops_or_is_skipped_for_all_models(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("red", "blue"):
        folder = tmp_path / "photos" / kind
        folder.mkdir(parents=True)
        for number in range(40):
            shade = np.full((20, 20, 3), (200, number, 10) if kind == "red" else (10, number, 200), dtype=np.uint8)
            Image.fromarray(shade).save(folder / f"{number:02d}.png")
    (tmp_path / "photos" / "red" / "07.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    few = ("--images", str(tmp_path / "photos"), "--set", "baselines=[]", "--set", "nulls=[]", "--seeds", "1")
    assert interpret(models, tmp_path / "stopped", *few) == 2
    assert "07.png" in capsys.readouterr().err
    assert interpret(models, tmp_path / "skipped", *few, "--on-corrupt", "skip") == 0
    stores = [
        json.loads(p.read_text()) for p in (tmp_path / "skipped" / "dictionaries" / "activations").rglob("store.json")
    ]
    assert [one["skipped"] for one in stores if one["skipped"]] in ([["red/07.png"]] * 2, [["train/red/07.png"]] * 2)
    assert len({json.dumps(one["shards"]) for one in stores}) == 2


def test_arms_of_one_source_a_step_get_their_share_of_updates() -> None:
    config = parse_config(
        DictionariesConfig, {"models": {n: {"source": n} for n in "abc"}, "universal": {"epochs": 30}}, where="test"
    )
    epochs = {arm.role: arm.config.epochs for arm in arms(config)}
    assert (epochs["universal"], epochs["independent"], epochs["independent_equal_updates"]) == (30, 30, 10)
    every = config.model_copy(update={"universal": config.universal.model_copy(update={"sources": "every"})})
    assert {arm.role: arm.config.epochs for arm in arms(every)}["independent_equal_updates"] == 30


def test_arms_have_names_of_their_own() -> None:
    config = parse_config(DictionariesConfig, {"models": {n: {"source": n} for n in "ab"}}, where="test")
    names = [arm.name for arm in arms(config)]
    assert len(set(names)) == len(names) == 19
