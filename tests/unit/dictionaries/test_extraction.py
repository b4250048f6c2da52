from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, ResNetConfig, ResNetModel, ViTConfig, ViTModel

import triptych.dictionaries.extraction as extraction
from triptych.data.image_files import Factor, UInt8Image
from triptych.dictionaries.extraction import extract
from triptych.dictionaries.store import INFO, ActivationStore, matching_rows, shard_name, write_shard
from triptych.errors import ConfigError, DataError, MissingInputError, ModelError
from triptych.files import TEMPORARY
from triptych.models.loading import quiet_transformers
from triptych.models.vision import VisionModel, load_vision_model
from triptych.seeding import generator


class Pictures:
    """Small images of noise, in two sizes; some cannot be decoded."""

    def __init__(self, n: int = 11, corrupt: Sequence[int] = (), fingerprint: str = "f") -> None:
        self.source = "pictures"
        self.fingerprint = fingerprint
        self.ids: Sequence[str] = [f"picture-{number}" for number in range(n)]
        self.factors: Mapping[str, Factor] = {}
        self.corrupt = corrupt
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> UInt8Image:
        self.reads.append(index)
        if index in self.corrupt:
            raise DataError(f"image {self.ids[index]} cannot be decoded")
        shape = (16, 16 + 4 * (index % 2), 3)
        return generator(0, "picture", index).integers(0, 256, shape, dtype=np.uint8)


def load(folder: Path, model: PreTrainedModel, **options: Any) -> VisionModel:
    with quiet_transformers():
        model.save_pretrained(folder)
    return load_vision_model(folder, device="cpu", **options)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VisionModel]:
    folder = tmp_path_factory.mktemp("models")
    (folder / "resnet").mkdir()
    # ResNet says nothing of a size; without settings it would be 224.
    (folder / "resnet" / "preprocessor_config.json").write_text('{"size": {"height": 16, "width": 16}}')
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        resnet = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"))
        vit = ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes))
    return {"resnet": load(folder / "resnet", resnet), "vit": load(folder / "vit", vit)}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run(
    images: Pictures, models: Mapping[str, VisionModel], folder: Path, **options: Any
) -> dict[str, ActivationStore]:
    return extract(images, models, folder, **{"shard_images": 4, "batch_size": 3, "show_progress": False, **options})


def test_rows_are_the_features_of_every_image(models: dict[str, VisionModel], tmp_path: Path) -> None:
    images = Pictures()
    stores = run(images, models, tmp_path)
    matching_rows(stores)
    assert sorted(images.reads) == list(range(11))  # once each, for both models
    for name, model in models.items():
        expected = [model.features(model.preprocess([images.read(index)]))[0, 0] for index in range(11)]
        torch.testing.assert_close(stores[name].load(), torch.stack(expected), atol=0.02, rtol=0.02)
        assert stores[name].images_of_rows().tolist() == list(range(11))
        assert stores[name].shard_rows == (4, 4, 3)
        assert stores[name].info.spec == model.spec


def test_spatial_rows_know_their_image(models: dict[str, VisionModel], tmp_path: Path) -> None:
    spec = models["vit"].spec
    model = load_vision_model(spec, pooling="spatial", grid=3, device="cpu")
    store = run(Pictures(3), {"vit": model}, tmp_path)["vit"]
    assert (store.n_rows, store.info.grid) == (27, 3)
    assert store.images_of_rows().tolist() == [0] * 9 + [1] * 9 + [2] * 9


def test_rows_can_be_kept_in_half_the_bits(models: dict[str, VisionModel], tmp_path: Path) -> None:
    whole = run(Pictures(), models, tmp_path / "whole")["vit"].load()
    half = run(Pictures(), models, tmp_path / "half", dtype="bfloat16")["vit"].load()
    assert half.equal(whole.to(torch.bfloat16).float())


def test_a_finished_store_is_kept_as_it_is(models: dict[str, VisionModel], tmp_path: Path) -> None:
    run(Pictures(), {"vit": models["vit"]}, tmp_path)
    before = files(tmp_path)
    images = Pictures()
    run(images, models, tmp_path, shard_images=5)  # a model more, and shards of another size
    assert len(images.reads) == 11
    assert {name: data for name, data in files(tmp_path).items() if name.startswith("vit")} == before
    images.reads.clear()
    stores = run(images, models, tmp_path)
    assert images.reads == []
    matching_rows(stores)


def test_an_interrupted_extraction_goes_on_to_the_same_bytes(
    models: dict[str, VisionModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(Pictures(corrupt=[1, 9]), models, tmp_path / "whole", on_corrupt="skip")
    written: list[Path] = []

    def killed(path: Path, *args: Any) -> None:
        if len(written) == 3:  # in the middle of the second shard: of one model it is finished
            raise KeyboardInterrupt
        written.append(path)
        write_shard(path, *args)

    with monkeypatch.context() as patched:
        patched.setattr(extraction, "write_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            run(Pictures(corrupt=[1, 9]), models, tmp_path / "torn", on_corrupt="skip")
    with pytest.raises(DataError, match=r"unfinished \(1 of 3 shards\)"):
        ActivationStore.open(tmp_path / "torn" / "vit")
    (tmp_path / "torn" / "vit" / f"{TEMPORARY}999999999-0-{shard_name(1)}").write_bytes(b"half")
    images = Pictures(corrupt=[1, 9])
    run(images, models, tmp_path / "torn", on_corrupt="skip")
    assert sorted(images.reads) == list(range(4, 11))
    assert files(tmp_path / "torn") == files(tmp_path / "whole")


def test_a_corrupt_image_stops_the_work(models: dict[str, VisionModel], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"image picture-6 cannot be decoded; .*on_corrupt='skip'"):
        run(Pictures(corrupt=[6]), models, tmp_path)


def test_a_corrupt_image_can_be_left_out_for_all(models: dict[str, VisionModel], tmp_path: Path) -> None:
    stores = run(Pictures(corrupt=[0, 6, 8, 9, 10]), models, tmp_path, on_corrupt="skip")
    matching_rows(stores)
    for store in stores.values():
        assert store.info.skipped == ("picture-0", "picture-6", "picture-8", "picture-9", "picture-10")
        assert store.images_of_rows().tolist() == [1, 2, 3, 4, 5, 7]
        assert store.shard_rows == (3, 3, 0)
    whole = run(Pictures(), models, tmp_path / "whole")
    kept = whole["vit"].load()[stores["vit"].images_of_rows()]
    torch.testing.assert_close(stores["vit"].load(), kept, atol=0.02, rtol=0.02)


def test_no_image_at_all_is_an_error(models: dict[str, VisionModel], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the 5 images of pictures can be decoded"):
        run(Pictures(5, corrupt=range(5)), models, tmp_path, on_corrupt="skip")
    with pytest.raises(DataError, match="pictures has no images"):
        run(Pictures(0), models, tmp_path / "none")


def test_other_errors_of_a_reader_surface(models: dict[str, VisionModel], tmp_path: Path) -> None:
    class Broken(Pictures):
        def read(self, index: int) -> UInt8Image:
            if index == 7:
                raise RuntimeError("a bug")
            return super().read(index)

    with pytest.raises(RuntimeError, match="a bug"):
        run(Broken(), models, tmp_path)


def test_activations_that_are_no_numbers_are_an_error(
    models: dict[str, VisionModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models["vit"]
    features = VisionModel.features

    def broken(self: VisionModel, batch: torch.Tensor) -> torch.Tensor:
        rows = features(self, batch)
        if len(rows) == 1:  # the fourth image is a batch of its own
            rows[0, 0, 2] = torch.nan
        return rows

    monkeypatch.setattr(VisionModel, "features", broken)
    message = r"activations of model .*vit at site 'output' are not finite for image picture-3"
    with pytest.raises(ModelError, match=message):
        run(Pictures(), {"vit": model}, tmp_path)


def test_a_store_of_something_else_is_named(models: dict[str, VisionModel], tmp_path: Path) -> None:
    run(Pictures(), {"one": models["vit"]}, tmp_path)
    kept = files(tmp_path)
    message = r"one holds activations of model .*vit at site 'output' on pictures and not of model .*resnet"
    with pytest.raises(DataError, match=message):
        run(Pictures(), {"one": models["resnet"]}, tmp_path)
    with pytest.raises(DataError, match="images_fingerprint f and not g"):
        run(Pictures(fingerprint="g"), {"one": models["vit"]}, tmp_path)
    with pytest.raises(DataError, match="dtype float32 and not bfloat16"):
        run(Pictures(), {"one": models["vit"]}, tmp_path, dtype="bfloat16")
    other = load_vision_model(models["vit"].spec, pooling="mean", device="cpu")
    with pytest.raises(DataError, match="pooling cls and not mean"):
        run(Pictures(), {"one": other}, tmp_path)
    assert files(tmp_path) == kept


def test_a_store_that_has_lost_a_shard_is_named(models: dict[str, VisionModel], tmp_path: Path) -> None:
    run(Pictures(), {"vit": models["vit"]}, tmp_path)
    (tmp_path / "vit" / shard_name(1)).unlink()
    with pytest.raises(MissingInputError, match=r"vit lacks shard_00001\.safetensors"):
        run(Pictures(), {"vit": models["vit"]}, tmp_path)


def test_the_same_model_elsewhere_is_the_same(
    models: dict[str, VisionModel], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run(Pictures(), {"vit": models["vit"]}, tmp_path)
    moved = tmp_path_factory.mktemp("moved") / "copy"
    moved.symlink_to(models["vit"].spec)
    images = Pictures()
    run(images, {"vit": load_vision_model(moved, device="cpu")}, tmp_path)
    assert images.reads == []


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch_size": 0}, "batch_size = 0 is out of range"), ({"shard_images": 0}, "shard_images = 0 is out of range")],
)
def test_numbers_out_of_range_are_refused(
    models: dict[str, VisionModel], tmp_path: Path, options: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(Pictures(), models, tmp_path, **options)


def test_names_must_be_names_of_folders(models: dict[str, VisionModel], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model name '\.\./a' cannot be a folder's name"):
        run(Pictures(), {"../a": models["vit"]}, tmp_path)
    with pytest.raises(ConfigError, match="no models"):
        run(Pictures(), {}, tmp_path)


def test_progress_is_told(models: dict[str, VisionModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(Pictures(), models, tmp_path, show_progress=True)
    assert "activations: 11/11 images (100%)" in capsys.readouterr().err
    run(Pictures(), models, tmp_path, show_progress=True)
    assert capsys.readouterr().err == ""
    assert INFO in {path.name for path in (tmp_path / "vit").iterdir()}
