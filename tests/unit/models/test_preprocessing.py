import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from triptych.errors import ModelError
from triptych.models.loading import quiet_transformers
from triptych.models.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PROCESSOR,
    RESAMPLINGS,
    ImageSettings,
    UInt8Image,
    area_weights,
    cropped,
    line_weights,
    preprocess,
    read_settings,
    resize_levels,
)
from triptych.seeding import generator

CPU = torch.device("cpu")
SIZES = st.integers(1, 40)


def picture(height: int, width: int, name: str = "a") -> UInt8Image:
    return generator(0, name, height, width).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- Weights ----------------------------------------------------------------------------------------------------------


def test_bilinear_weights_by_hand() -> None:
    # 2 → 4: new pixels lie at 0.25, 0.75, 1.25, 1.75 of a line whose pixels lie at 0.5 and 1.5: beyond the outer ones
    # nothing is left but them; at 0.75 the first is 0.25 away and weighs 0.75.
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    assert line_weights(2, 4, "bilinear").tolist() == expected


def test_shrinking_widens_the_triangle() -> None:
    # 4 → 2: the first new pixel lies at 1.0 and reaches 2 to each side: distances 0.5, 0.5, 1.5 (and 2.5: none) weigh
    # 1 - d/2 = 0.75, 0.75, 0.25, whose sum is 1.75.
    expected = np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7
    np.testing.assert_allclose(line_weights(4, 2, "bilinear"), expected, atol=1e-7)


def test_bicubic_weights_by_hand() -> None:
    # 4 → 8, third new pixel at 1.25: pixels at 0.5, 1.5, 2.5 are 0.75, 0.25, 1.25 away (3.5 is beyond 2). With a = -0.5
    # near: (1.5 d - 2.5) d² + 1 → 0.2265625 and 0.8671875; far: ((d - 5) d + 8) d a - 4 a → -0.0703125.
    values = np.array([0.2265625, 0.8671875, -0.0703125, 0.0])
    np.testing.assert_allclose(line_weights(4, 8, "bicubic")[2], values / values.sum(), atol=1e-6)


def test_areas_by_hand() -> None:
    # 3 → 2: cells of 1.5 pixels, which share the middle one.
    np.testing.assert_allclose(area_weights(3, 2), [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]], atol=1e-7)
    np.testing.assert_allclose(area_weights(2, 4), line_weights(2, 4, "bilinear"))


@given(SIZES, SIZES, st.sampled_from([*RESAMPLINGS.values()]))
def test_weights_of_a_new_pixel_sum_to_one(n_in: int, n_out: int, resample: str) -> None:
    for weights in (line_weights(n_in, n_out, resample), area_weights(n_in, n_out)):
        assert weights.shape == (n_out, n_in)
        np.testing.assert_allclose(weights.sum(1), 1.0, atol=1e-5)


@given(SIZES, SIZES)
def test_shrinking_by_areas_keeps_the_mean(n_in: int, n_out: int) -> None:
    if n_out <= n_in:
        np.testing.assert_allclose(area_weights(n_in, n_out).sum(0), n_out / n_in, atol=1e-5)


def test_a_crop_takes_the_middle_and_pads_with_nothing() -> None:
    weights = np.eye(4, dtype=np.float32)
    assert cropped(weights, 2).tolist() == weights[1:3].tolist()
    # transformers puts the odd pixel of a padding before the image.
    assert cropped(weights, 7)[:, 0].tolist() == [0, 0, 1, 0, 0, 0, 0]


@settings(deadline=None, max_examples=60)
@given(SIZES, SIZES, SIZES, SIZES, st.sampled_from([*RESAMPLINGS]))
def test_resizing_is_that_of_pillow(height: int, width: int, to_height: int, to_width: int, number: int) -> None:
    image = picture(height, width)
    theirs = np.asarray(Image.fromarray(image).resize((to_width, to_height), Image.Resampling(number)))
    weights = [line_weights(*pair, RESAMPLINGS[number]) for pair in ((height, to_height), (width, to_width))]
    ours = resize_levels(torch.from_numpy(image).permute(2, 0, 1)[None].float(), weights[0], weights[1])
    difference = np.abs(ours[0].permute(1, 2, 0).numpy() - theirs.astype(np.float32))
    assert difference.mean() <= 1
    # Pillow 13 goes the other way round, across first, where an image becomes much lower: overshoots are then cut
    # elsewhere. Else weights in fixed point, as theirs, may round the other way after each of two passes.
    if height / to_height <= max(width / to_width, 1):
        assert difference.max() <= 2


# --- Whole processors -------------------------------------------------------------------------------------------------

IMAGENET = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("ConvNextImageProcessor", {"size": {"shortest_edge": 24}, "crop_pct": 0.875, "resample": 3, **IMAGENET}),
    "convnext-384": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}, "resample": 3}),
    "vit": ("ViTImageProcessor", {"size": {"height": 24, "width": 24}, "resample": 2}),
    "oblong": ("ViTImageProcessor", {"size": {"height": 16, "width": 24}, "resample": 0}),
    "deit": (
        "DeiTImageProcessor",
        {"size": {"height": 28, "width": 28}, "crop_size": {"height": 24, "width": 24}, "do_center_crop": True},
    ),
    "clip": ("CLIPImageProcessor", {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}),
    "dinov2": ("BitImageProcessor", {"size": {"shortest_edge": 28}, "crop_size": {"height": 24, "width": 24}}),
    "padded": ("BitImageProcessor", {"size": {"shortest_edge": 20}, "crop_size": {"height": 31, "width": 31}}),
    "levels": (
        "ViTImageProcessor",
        {"size": {"height": 24, "width": 24}, "do_rescale": False, "image_mean": [100.0] * 3},
    ),
    "symmetric": ("ViTImageProcessor", {"size": {"height": 24, "width": 24}, "rescale_factor": 1 / 127.5}),
    "unnormalised": ("ViTImageProcessor", {"size": {"height": 24, "width": 24}, "do_normalize": False}),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_the_models_own_processor(tmp_path: Path, name: str) -> None:
    kind, options = PROCESSORS[name]
    images = [picture(30, 41), picture(33, 50), picture(24, 24), picture(12, 17), picture(30, 41, "b")]
    with warnings.catch_warnings(), quiet_transformers():
        warnings.simplefilter("ignore")
        processor = getattr(transformers, kind)(**options)
        theirs = processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
    processor.save_pretrained(tmp_path)
    found = read_settings(tmp_path, "m", None)
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (found.mean, found.std))
    ours = (preprocess(images, found, CPU) - mean) / std
    assert ours.shape == theirs.shape
    # Two levels in one pixel at most, in units of what the model sees; a quarter of a level on average.
    level = 1 / 255 / std.min()
    assert float((ours - theirs).abs().max()) <= 2.01 * level
    assert float((ours - theirs).abs().mean()) <= 0.25 * level


def read(folder: Path, default: tuple[int, int] | None = None, **values: Any) -> ImageSettings:
    (folder / PROCESSOR).write_text(json.dumps(values))
    return read_settings(folder, "m", default)


def test_a_plain_number_means_what_the_processor_takes_it_for(tmp_path: Path) -> None:
    # microsoft/resnet-18 as it stands on the hub: the shorter edge becomes int(224 / 0.875) = 256.
    resnet = read(tmp_path, crop_pct=0.875, feature_extractor_type="ConvNextFeatureExtractor", resample=3, size=224)
    assert (resnet.shortest_edge, resnet.size, resnet.resample) == (256, (224, 224), "bicubic")
    vit = read(tmp_path, feature_extractor_type="ViTFeatureExtractor", resample=2, size=224)
    assert (vit.shortest_edge, vit.size, vit.resized) == (None, (224, 224), None)
    deit = read(tmp_path, feature_extractor_type="DeiTFeatureExtractor", size=256, do_center_crop=True, crop_size=224)
    assert (deit.shortest_edge, deit.size, deit.resized) == (None, (224, 224), (256, 256))
    clip = read(tmp_path, feature_extractor_type="CLIPFeatureExtractor", size=224, do_center_crop=True, crop_size=224)
    assert (clip.shortest_edge, clip.size) == (224, (224, 224))


def test_what_is_left_out_is_the_processors_default(tmp_path: Path) -> None:
    vit = read(tmp_path, (64, 64), image_processor_type="ViTImageProcessor")
    assert (vit.size, vit.resample, vit.mean) == ((224, 224), "bilinear", (0.5, 0.5, 0.5))
    clip = read(tmp_path, image_processor_type="CLIPImageProcessorFast", image_mean=None)
    assert (clip.shortest_edge, clip.size, clip.resample) == (224, (224, 224), "bicubic")
    assert clip.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)
    assert read(tmp_path, image_processor_type="MyImageProcessor").mean == IMAGENET_MEAN


def test_without_a_file_the_custom_is_taken(tmp_path: Path) -> None:
    expected = ImageSettings(None, (64, 64), None, "bilinear", IMAGENET_MEAN, IMAGENET_STD)
    assert read_settings(tmp_path, "m", (64, 64)) == expected
    assert read_settings(tmp_path, "m", None).size == (224, 224)
    assert read(tmp_path, (64, 64), do_resize=False, size=224).size == (64, 64)
    assert read(tmp_path, None, size=None, resample=None, do_center_crop=None).size == (224, 224)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": -3}, "-3 is no size in pixels"),
        ({"size": {"height": 3}}, "None is no size in pixels"),
        ({"size": {"shortest_edge": 3, "longest_edge": 9}}, "longest_edge"),
        ({"resample": 9}, "resample = 9 is unknown"),
        ({"image_mean": [0.5]}, "not one number for each of three channels"),
        ({"image_std": 0.0}, "image_std and rescale_factor must be above 0"),
        ({"do_flip_channel_order": True}, "asks for do_flip_channel_order"),
        ({"image_processor_type": "LevitImageProcessor"}, "LevitImageProcessor resizes in a way of its own"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(tmp_path, **values)
    (tmp_path / PROCESSOR).write_text("{")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        read_settings(tmp_path, "m", None)
