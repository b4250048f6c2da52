"""Backbones that are trained on the spot: what they learn, that a kill changes nothing, and what anybody can load."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel

from triptych.config import parse_config
from triptych.data.images import Factor, ImageSplit, UInt8Image
from triptych.dictionaries import backbone_training as training
from triptych.dictionaries import backbones
from triptych.dictionaries.backbone_models import FAMILIES, sine_positions
from triptych.dictionaries.backbones import CIFAR10, BackboneConfig, train_backbones
from triptych.dictionaries.records import BackboneRecord
from triptych.errors import ConfigError, DataError, WorkError
from triptych.seeding import generator

TINY: Mapping[str, Any] = {
    "batch_size": 16,
    "shift": 1,
    "resnet": {"stem": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "epochs": 6, "learning_rate": 1e-2},
    "vit": {
        "hidden_size": 32,
        "layers": 1,
        "heads": 2,
        "patch_size": 8,
        "batch_size": None,
        "epochs": 20,
        "learning_rate": 5e-3,
    },
}


class Squares:
    """16 × 16 noise of a colour (red or blue) that is bright in one half (top, bottom): two separable factors."""

    def __init__(self, n: int, name: str, *, size: int = 16, labelled: bool = True) -> None:
        draw = generator(7, name)
        colour, half = draw.integers(0, 2, n), draw.integers(0, 2, n)
        pixels = draw.integers(0, 60, (n, size, size, 3))
        for row in range(n):
            first = half[row] * size // 2
            pixels[row, first : first + size // 2, :, 2 * colour[row]] += 150
        self.pixels: npt.NDArray[np.uint8] = pixels.astype(np.uint8)
        self.source, self.fingerprint = name, f"{name}-{n}-{size}"
        self.ids: Sequence[str] = [f"{name}-{row}" for row in range(n)]
        both = {"colour": (("red", "blue"), colour), "half.of": (("top", "bottom"), half)}
        self.factors: Mapping[str, Factor] = {
            key: Factor(values, of.astype(np.int32)) for key, (values, of) in both.items() if labelled
        }

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> UInt8Image:
        image: UInt8Image = self.pixels[index]
        return image


def split(n: int = 96, **options: Any) -> ImageSplit:
    return ImageSplit(Squares(n, "train", **options), Squares(40, "test", **options))


def config(**changes: Any) -> BackboneConfig:
    return parse_config(BackboneConfig, {**TINY, **changes}, where="test")


def run(folder: Path, images: ImageSplit | None = None, *, seed: int = 0, **changes: Any) -> dict[str, Path]:
    return train_backbones(images or split(), config(**changes), folder, seed=seed, device="cpu", show_progress=False)


def record(folder: Path) -> BackboneRecord:
    return BackboneRecord.model_validate_json((folder / "training.json").read_bytes())


def weights(folder: Path) -> dict[str, Tensor]:
    return {**load_file(folder / "model.safetensors"), **load_file(folder / "heads.safetensors")}


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return run(tmp_path_factory.mktemp("backbones"))


# --- what is learnt and written ---------------------------------------------------------------------------------------


def test_both_learn_what_is_planted(trained: dict[str, Path]) -> None:
    assert list(trained) == ["resnet", "vit"]
    for name, folder in trained.items():
        found = record(folder)
        assert (found.family, found.images, found.epochs) == (name, 96, TINY[name]["epochs"])
        for factor in ("colour", "half.of"):
            estimate = found.accuracy[factor]
            assert estimate.n == 40
            assert "Wilson" in estimate.method
            assert estimate.low is not None
            assert estimate.low > found.chance[factor] + 0.1, (name, factor, estimate)


def test_what_is_written_is_complete_and_nothing_else(trained: dict[str, Path]) -> None:
    files = ["config.json", "heads.safetensors", "model.safetensors", "preprocessor_config.json", "training.json"]
    for folder in trained.values():
        assert sorted(path.name for path in folder.iterdir()) == files
        with safe_open(folder / "heads.safetensors", framework="pt") as heads:
            assert json.loads(heads.metadata()["factors"]) == {"colour": ["red", "blue"], "half.of": ["top", "bottom"]}
            assert set(heads.keys()) == {"colour.weight", "colour.bias", "half.of.weight", "half.of.bias"}
    assert "pooler.dense.weight" not in weights(trained["vit"])


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_anybody_loads_them_and_finds_the_same_accuracy(trained: dict[str, Path]) -> None:
    images = split()
    for name, folder in trained.items():
        processor = AutoImageProcessor.from_pretrained(folder)
        model, report = AutoModel.from_pretrained(
            folder, output_loading_info=True, **({"add_pooling_layer": False} if name == "vit" else {})
        )
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        pixels = processor(list(images.test.pixels), return_tensors="pt")["pixel_values"]  # type: ignore[attr-defined]
        with torch.no_grad():
            out = model.eval()(pixels)
        features = out.pooler_output.flatten(1) if name == "resnet" else out.last_hidden_state[:, 0]
        heads = load_file(folder / "heads.safetensors")
        for factor, known in images.test.factors.items():
            logits = features @ heads[f"{factor}.weight"].T + heads[f"{factor}.bias"]
            share = float((logits.argmax(dim=1).numpy() == known.of).mean())
            # One image of 40 may lie on the edge, for training evaluates in bf16 where there is hardware for it.
            assert share == pytest.approx(record(folder).accuracy[factor].value, abs=1.01 / 40)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_preprocessing_is_what_training_did(trained: dict[str, Path]) -> None:
    """Also of images of another size, and of others than square ones: neither is cropped."""
    images = np.asarray(generator(3, "odd").integers(0, 256, (2, 20, 24, 3)), dtype=np.uint8)
    settings = json.loads((trained["resnet"] / "preprocessor_config.json").read_text())
    normalise = training.Normalisation(tuple(settings["image_mean"]), tuple(settings["image_std"]))
    own = normalise(torch.from_numpy(np.stack([training._resized(one, 16) for one in images])))
    theirs = AutoImageProcessor.from_pretrained(trained["resnet"])(list(images), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(own, theirs, atol=1e-5, rtol=1e-5)


# --- reproducible, resumable, reused ----------------------------------------------------------------------------------


def test_same_seed_same_weights_another_seed_others(trained: dict[str, Path], tmp_path: Path) -> None:
    torch.rand(3)  # moves the global generator, which must not matter
    again, other = run(tmp_path / "again"), run(tmp_path / "other", seed=1)
    for name, folder in trained.items():
        assert same(folder, again[name])
        assert not same(folder, other[name])


def test_global_generator_is_left_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    run(tmp_path, resnet={**TINY["resnet"], "epochs": 1}, vit={**TINY["vit"], "epochs": 1})
    assert torch.equal(before, torch.random.get_rng_state())


def test_killed_and_resumed_equals_uninterrupted(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []
    whole = training._epoch

    def killed(*arguments: Any) -> float:
        if len(epochs) == 2:
            raise KeyboardInterrupt
        epochs.append(1)
        return whole(*arguments)

    for _ in range(2):  # once in the ResNet, once more two epochs on
        epochs.clear()
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(training, "_epoch", killed)
            run(tmp_path)
    assert not (tmp_path / "resnet" / "training.json").exists()
    resumed = run(tmp_path)
    for name, folder in trained.items():
        assert same(folder, resumed[name])
        assert record(resumed[name]).accuracy == record(folder).accuracy


def test_finished_ones_are_reused(trained: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is to be decoded or trained")

    monkeypatch.setattr(backbones, "decode", never)
    assert run(trained["resnet"].parent) == trained


def test_folder_of_something_else_is_refused(trained: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"resnet holds a backbone of other images, settings or seed; pass another"):
        run(trained["resnet"].parent, batch_size=8)
    with pytest.raises(ConfigError, match="other images, settings or seed"):
        run(trained["resnet"].parent, split(95))


def test_the_vits_settings_leave_the_resnet_as_it_is(trained: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="vit holds a backbone of other"):
        run(trained["resnet"].parent, vit={**TINY["vit"], "layers": 2})


# --- parts, with numbers by hand --------------------------------------------------------------------------------------


def test_shift_and_flip_by_hand() -> None:
    # One row 0 1 2 3 in every line; line y holds 10 y on top of it.
    plane = torch.arange(4)[None, :] + 10 * torch.arange(4)[:, None]
    images = plane[None, :, :, None].expand(1, 4, 4, 3).to(torch.uint8)

    def seen(down: int, right: int, flip: bool) -> list[list[int]]:
        some = training.Draws(torch.tensor([0]), torch.tensor([[down, right]]), torch.tensor([flip]))
        rows: list[list[int]] = training.augmented(images, some)[0, :, :, 0].tolist()
        return rows

    assert seen(0, 0, False) == plane.tolist()
    # One pixel to the right: the first column repeats itself. One up: the last line does.
    assert seen(0, 1, False)[0] == [0, 0, 1, 2]
    assert seen(-1, 0, False) == [[10, 11, 12, 13], [20, 21, 22, 23], [30, 31, 32, 33], [30, 31, 32, 33]]
    assert seen(0, 0, True)[0] == [3, 2, 1, 0]


def test_draws_visit_every_image_and_stay_in_their_bounds() -> None:
    one = training.draws(500, shift=2, flip=True, seed=0, family="vit", epoch=3)
    assert sorted(one.rows.tolist()) == list(range(500))
    assert set(one.shifts.flatten().tolist()) == {-2, -1, 0, 1, 2}
    assert 0.4 < float(one.flips.float().mean()) < 0.6
    still = training.draws(500, shift=0, flip=False, seed=0, family="vit", epoch=4)
    assert not still.flips.any()
    assert not still.shifts.any()
    assert still.rows.tolist() != one.rows.tolist()


def test_normalisation_by_hand() -> None:
    # Red: half 0 and half 255, mean ½ and deviation ½. Green: always 51 = 0.2 of 255. Blue: 0, 0, 0, 255: mean ¼,
    # deviation √(¼ · ¾).
    red, green, blue = [0, 0, 255, 255], [51] * 4, [0, 0, 0, 255]
    images = torch.tensor([red, green, blue], dtype=torch.uint8).T.reshape(1, 2, 2, 3)
    found = training.normalisation_of(images)
    assert found.mean == pytest.approx((0.5, 0.2, 0.25))
    assert found.std == pytest.approx((0.5, 1 / 255, math.sqrt(0.25 * 0.75)))
    assert found(images)[0, 0].flatten().tolist() == pytest.approx([-1, -1, 1, 1])


def test_loss_counts_the_images_that_have_a_value() -> None:
    # Uniform logits over 2 and 4 values: ln 2 + ln 4, whatever the smoothing; a factor without any value adds nothing.
    logits = [torch.zeros(3, 2), torch.zeros(3, 4)]
    labels = torch.tensor([[0, -1], [1, 3], [-1, 2]])
    assert float(training.naming_loss(logits, labels, 0.1)) == pytest.approx(math.log(2) + math.log(4))
    labels[:, 1] = -1
    assert float(training.naming_loss(logits, labels, 0.0)) == pytest.approx(math.log(2))


def test_chance_is_that_of_the_commonest_training_value() -> None:
    # Commonest in training: 1. Of the four labelled held-out images, one has it.
    assert training.chance(torch.tensor([1, 1, 0, -1, -1, -1]), torch.tensor([0, 0, 0, 1, -1])) == 0.25


def test_unlabelled_images_are_unscored() -> None:
    found = training.accuracy(torch.tensor([0, 1, 1]), torch.tensor([0, 0, -1]), ["a", "b", "c"], seed=0)
    assert (found.mean, found.n, found.n_unscored) == (0.5, 2, 1)


def test_learning_rate_rises_and_falls() -> None:
    plan = training.Plan("vit", 1, 8, 2.0, 0.0, 0.2, 0.0, 0, False, 0, None)
    # 10 steps, 2 of warm-up: 1, 2, then 2 · ½ (1 + cos(π i / 8)) of i = 0 … 7.
    assert [training.rate(plan, step, 10) for step in range(3)] == pytest.approx([1.0, 2.0, 2.0])
    assert training.rate(plan, 6, 10) == pytest.approx(1.0)
    assert training.rate(plan, 9, 10) == pytest.approx(1 + math.cos(math.pi * 7 / 8))


def test_epochs_are_planned_to_fit_the_time() -> None:
    plan = training.Plan("vit", 20, 8, 1.0, 0.0, 0.0, 0.0, 0, False, 0, 100.0)
    # 3 epochs took 30 s: 7 more fit. 8 took 96 s: no other does. Fast ones are not more than 20.
    assert training._epochs_that_fit(plan, 3, 30.0) == 10
    assert training._epochs_that_fit(plan, 8, 96.0) == 8
    assert training._epochs_that_fit(plan, 1, 0.1) == 20
    assert training._epochs_that_fit(plan, 2, 300.0) == 2


def test_time_limit_ends_training_early(tmp_path: Path) -> None:
    found = run(tmp_path, max_minutes=1e-6)
    assert [record(folder).epochs for folder in found.values()] == [1, 1]


def test_sine_positions_tell_places_apart() -> None:
    # Place 0 has angle 0 both ways: sines 0, cosines 1.
    table = sine_positions(4, 8)
    assert table[0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert len({tuple(row) for row in table.tolist()}) == 16
    # Rows first: place 1 is the second column of the first row.
    assert table[1].tolist() == pytest.approx([0, 0, 1, 1, math.sin(1), math.sin(1e-4), math.cos(1), math.cos(1e-4)])


def test_moments_lie_as_their_parameters_do_after_a_resume() -> None:
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    namer = training.Namer(conv, lambda model, pixels: model(pixels).mean((2, 3)), 4, [2])
    plan = training.Plan("resnet", 1, 8, 0.1, 0.0, 0.0, 0.0, 0, False, 0, None)
    optimiser = training._Optimiser(namer, plan)
    sum(one.sum() for one in namer(torch.ones(1, 3, 5, 5))).backward()
    optimiser.step(0.1)
    kept = {key: value.contiguous() for key, value in optimiser.state().items()}
    other = training._Optimiser(namer, plan)
    other.restore(kept)
    moment = other._adamw.state[conv.weight]["exp_avg"]
    assert moment.stride() == conv.weight.stride()
    assert torch.equal(moment, kept["backbone.weight:exp_avg"])


# --- errors -----------------------------------------------------------------------------------------------------------


def test_unlabelled_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="images train have no labels.*choose labelled ones"):
        run(tmp_path, split(labelled=False))


def test_factors_that_differ_are_refused(tmp_path: Path) -> None:
    images = split()
    images.test.factors = {"colour": images.test.factors["colour"]}  # type: ignore[misc]
    with pytest.raises(DataError, match="images train and test differ in their factors"):
        run(tmp_path, images)


def test_a_factor_without_values_is_refused(tmp_path: Path) -> None:
    images = split()
    nothing = Factor(("red", "blue"), np.full(40, -1, dtype=np.int32))
    images.test.factors = {**images.test.factors, "colour": nothing}  # type: ignore[misc]
    with pytest.raises(DataError, match="images test: none has a value of 'colour'"):
        run(tmp_path, images)


def test_too_many_images_for_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "MAX_BYTES", 10_000)
    with pytest.raises(DataError, match="136 images at 16 × 16 take .* set a limit"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vit": {**TINY["vit"], "patch_size": 5}}, "vit.patch_size = 5 does not divide"),
        ({"vit": {**TINY["vit"], "hidden_size": 33}}, "vit.hidden_size = 33 must be a multiple"),
        ({"resnet": {**TINY["resnet"], "depths": [1]}}, "resnet.depths has 1 numbers for the 2 stages"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, **changes)


def test_nan_is_an_error_and_keeps_the_epochs_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([1.0, math.nan])
    monkeypatch.setattr(training, "_epoch", lambda *_: next(losses))
    with pytest.raises(WorkError, match="backbone resnet: the loss of epoch 2 is nan; lower its learning_rate"):
        run(tmp_path)
    kept = [path.name for path in (tmp_path / "resnet" / "checkpoints").iterdir()]
    assert kept == ["step-000001"]


# --- settings ---------------------------------------------------------------------------------------------------------


def test_preset_is_a_configuration_and_its_models_are_buildable() -> None:
    cifar = parse_config(BackboneConfig, CIFAR10, where="CIFAR10")
    assert cifar.flip
    for chosen, size in ((cifar, 64), (BackboneConfig(), 64)):
        for family in FAMILIES:
            model = family.build(chosen, size, torch.device("cpu"), 0)
            assert sum(one.numel() for one in model.parameters()) < 5_000_000
            with torch.no_grad():
                pooled = family.pooled(model, torch.zeros(2, 3, size, size))
            assert pooled.shape == (2, family.width(chosen))
