import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from triptych.errors import ConfigError, MissingInputError, ModelError
from triptych.models.loading import quiet_transformers
from triptych.models.sites import Layout, layout_of, pooled, resolve_pooling
from triptych.models.tiny import save_tiny, tiny_llama, tiny_tokenizer
from triptych.models.vision import VisionModel, fold_batch_norms, load_vision_model
from triptych.seeding import generator, stream_key

SIZE = 32
TOKENS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": SIZE,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 49408,
}

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "resnet": ("ResNetConfig", "ResNetModel", {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]}),
    "resnet-basic": (
        "ResNetConfig",
        "ResNetForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 1], "layer_type": "basic"},
    ),
    "convnext": ("ConvNextConfig", "ConvNextModel", {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2}),
    "vit": ("ViTConfig", "ViTModel", TOKENS),
    "vit-classifier": ("ViTConfig", "ViTForImageClassification", TOKENS),
    "dinov2": ("Dinov2Config", "Dinov2Model", TOKENS),
    "registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", {**TOKENS, "num_register_tokens": 4}),
    "deit": ("DeiTConfig", "DeiTModel", TOKENS),
    "swin": (
        "SwinConfig",
        "SwinModel",
        {"image_size": SIZE, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    ),
    "clip": ("CLIPConfig", "CLIPModel", {"vision_config": TOKENS, "text_config": TEXT}),
    "siglip": ("SiglipVisionConfig", "SiglipVisionModel", TOKENS),
}
EXPECTED = {
    "resnet": ("pooled", 32, 4),
    "resnet-basic": ("pooled", 32, 4),
    "convnext": ("pooled", 32, 4),
    "vit": ("cls", 32, 4),
    "vit-classifier": ("cls", 32, 4),
    "dinov2": ("cls", 32, 4),
    "registers": ("cls", 32, 4),
    "deit": ("cls", 32, 4),
    "swin": ("mean", 32, 8),
    "clip": ("cls", 32, 4),
    "siglip": ("pooled", 32, 4),
}
"""Pooling, width, and rows of the model's own grid: 32 pixels over strides of 8; Swin's two stages halve 16 once."""


def built(name: str, **settings: Any) -> PreTrainedModel:
    config, cls, options = MODELS[name]
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.default_generator.manual_seed(0)
        model: PreTrainedModel = getattr(transformers, cls)(getattr(transformers, config)(**options, **settings)).eval()
    _shake(model)
    return model


def _shake(model: nn.Module) -> None:
    """BatchNorm that does something, and weights under which images differ."""
    own = torch.Generator().manual_seed(stream_key(0, "shake") % 2**63)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for values in (module.running_var, module.weight):
                    assert values is not None
                    values.uniform_(0.5, 2.0, generator=own)
                for values in (module.running_mean, module.bias):
                    assert values is not None
                    values.normal_(0.0, 0.3, generator=own)


def saved(folder: Path, name: str, **processor: Any) -> Path:
    with quiet_transformers():
        built(name).save_pretrained(folder)
    values = {"size": {"height": SIZE, "width": SIZE}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps({**values, **processor}))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = saved(tmp_path_factory.mktemp(name), name)
        return made[name]

    return folder


def load(folder: Path, **options: Any) -> VisionModel:
    return load_vision_model(folder, device="cpu", **{"dtype": "float32", **options})


def pixels(n: int = 3) -> torch.Tensor:
    return torch.from_numpy(generator(0, "pixels").random((n, 3, SIZE, SIZE), dtype=np.float32))


def outputs(folder: Path, model: VisionModel, batch: torch.Tensor) -> Any:
    """What transformers says, on its own."""
    cls: Any = type(model.model)
    with quiet_transformers(), torch.no_grad():
        plain = cls.from_pretrained(folder, dtype=torch.float32).eval()
        mean, std = (torch.tensor(one).view(3, 1, 1) for one in ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]))
        return plain(pixel_values=(batch - mean) / std)


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, other, dim=-1).min())


# --- Loading and features ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_gives_what_transformers_gives(folders: Callable[[str], Path], name: str) -> None:
    model = load(folders(name))
    pooling, width, _ = EXPECTED[name]
    assert (model.pooling, model.width, model.rows_per_image, model.grid) == (pooling, width, 1, None)
    batch = pixels()
    theirs = outputs(folders(name), model, batch)
    expected = {
        "pooled": lambda: theirs.pooler_output.flatten(1),
        "cls": lambda: theirs.last_hidden_state[:, 0],
        "mean": lambda: theirs.last_hidden_state.mean(1),
    }[pooling]()
    torch.testing.assert_close(model.features(batch)[:, 0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_half_the_bits_change_little(folders: Callable[[str], Path], name: str) -> None:
    exact, fast = load(folders(name)), load(folders(name), dtype="bfloat16")
    with torch.inference_mode():
        ours, expected = fast.features(pixels(8)), exact.features(pixels(8))
    assert ours.dtype == torch.float32
    assert cosine(ours, expected) > 0.999
    assert fast.fingerprint == exact.fingerprint


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_features_are_differentiable_in_the_pixels(folders: Callable[[str], Path], name: str, dtype: str) -> None:
    model = load(folders(name), dtype=dtype)
    with torch.inference_mode():  # what it leaves behind must not stand in the way
        without = model.features(pixels())
    batch = pixels().requires_grad_()
    features = model.features(batch)
    features[..., 0].sum().backward()
    assert batch.grad is not None
    assert float(batch.grad.abs().sum()) > 0
    assert cosine(features.detach(), without) > 0.999


def test_a_gradient_points_uphill(folders: Callable[[str], Path]) -> None:
    model = load(folders("resnet"))
    batch = pixels(1).requires_grad_()
    before = model.features(batch)[0, 0, 3]
    before.backward()
    assert batch.grad is not None
    slope = float(batch.grad.norm())
    with torch.no_grad():
        after = model.features(batch + 1e-2 * batch.grad / slope)[0, 0, 3]
    # To first order a step of 0.01 along the gradient gains 0.01 times its length.
    assert float(after - before.detach()) == pytest.approx(1e-2 * slope, rel=0.05)


def test_images_of_any_size_are_taken(folders: Callable[[str], Path]) -> None:
    model = load(folders("resnet"))
    images = [generator(0, n).integers(0, 256, (n, 40, 3), dtype=np.uint8) for n in (20, 50, 20)]
    batch = model.preprocess(images)
    assert batch.shape == (3, 3, *model.image_size)
    assert 0 <= float(batch.min()) <= float(batch.max()) <= 1
    torch.testing.assert_close(batch[2:], model.preprocess(images[2:]))
    with pytest.raises(ValueError, match="pixels are"):
        model.features(torch.zeros(1, 3, SIZE, SIZE + 1))


def test_a_model_without_processor_settings_is_taken_by_its_configuration(tmp_path: Path) -> None:
    with quiet_transformers():
        built("vit").save_pretrained(tmp_path)
    assert load(tmp_path).image_size == (SIZE, SIZE)


def test_the_fingerprint_follows_weights_and_processor(tmp_path: Path, folders: Callable[[str], Path]) -> None:
    first = load(folders("resnet")).fingerprint
    assert load(saved(tmp_path / "same", "resnet")).fingerprint == first
    assert load(saved(tmp_path / "mean", "resnet", image_mean=[0.5, 0.5, 0.5])).fingerprint != first
    assert load(folders("resnet-basic")).fingerprint != first


# --- Sites ------------------------------------------------------------------------------------------------------------


def test_a_site_is_what_the_module_returns(folders: Callable[[str], Path]) -> None:
    model = load(folders("resnet"), site="encoder.stages.0")
    cls: Any = type(model.model)
    with quiet_transformers(), torch.no_grad():
        plain = cls.from_pretrained(folders("resnet"), output_hidden_states=True).eval()
        mean, std = (torch.tensor(one).view(3, 1, 1) for one in (model.settings.mean, model.settings.std))
        stages = plain(pixel_values=(pixels() - mean) / std).hidden_states
    torch.testing.assert_close(model.features(pixels())[:, 0], stages[1].mean((2, 3)))
    assert (model.site, model.width) == ("encoder.stages.0", 16)
    # The pass ended early; the model is as before.
    assert load(folders("resnet")).features(pixels()).equal(load(folders("resnet")).features(pixels()))


def test_an_unknown_site_is_named_with_its_neighbours(folders: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match=r"site 'encoder\.stage\.1'.*did you mean encoder\.stages\.1.*named_modules"):
        load(folders("resnet"), site="encoder.stage.1")
    with pytest.raises(ConfigError, match="it begins with embedder, encoder, pooler"):
        load(folders("resnet"), site="§")


def test_a_module_that_does_not_run_is_no_site(folders: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match=r"site 'encoder\.stages' of model .* is not run in a forward pass"):
        load(folders("resnet"), site="encoder.stages")


def test_a_convolution_that_is_the_site_is_not_folded(folders: Callable[[str], Path]) -> None:
    for site in ("embedder.embedder.convolution", "embedder.embedder.normalization"):
        exact, fast = (load(folders("resnet"), site=site, dtype=dtype) for dtype in ("float32", "bfloat16"))
        assert cosine(exact.features(pixels()), fast.features(pixels())) > 0.999


def test_a_linear_layer_can_be_the_site(folders: Callable[[str], Path]) -> None:
    site = next(name for name, module in load(folders("vit")).model.named_modules() if isinstance(module, nn.Linear))
    exact, fast = (load(folders("vit"), site=site, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert cosine(exact.features(pixels()), fast.features(pixels())) > 0.999


def test_folding_changes_nothing_but_rounding(folders: Callable[[str], Path]) -> None:
    model = built("resnet-basic")
    with torch.no_grad():
        before = model(pixel_values=pixels()).logits
        fold_batch_norms(model, "output")
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        torch.testing.assert_close(model(pixel_values=pixels()).logits, before, atol=1e-4, rtol=1e-4)


def test_nothing_is_folded_in_fp32(folders: Callable[[str], Path]) -> None:
    assert any(isinstance(module, nn.BatchNorm2d) for module in load(folders("resnet")).model.modules())


# --- Pooling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_spatial_rows_lie_on_the_models_grid(folders: Callable[[str], Path], name: str) -> None:
    own = load(folders(name), pooling="spatial")
    _, width, side = EXPECTED[name]
    assert (own.grid, own.rows_per_image) == (side, side**2)
    rows = own.features(pixels())
    assert rows.shape == (3, side**2, width)
    coarse = load(folders(name), pooling="spatial", grid=2).features(pixels())
    # Each cell of 2 x 2 is the mean over the cells that it covers.
    blocks = rows.view(3, 2, side // 2, 2, side // 2, width).mean((2, 4)).flatten(1, 2)
    torch.testing.assert_close(coarse, blocks, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "before"), [("vit", 1), ("registers", 5), ("deit", 2), ("siglip", 0)])
def test_other_tokens_are_dropped(folders: Callable[[str], Path], name: str, before: int) -> None:
    model = load(folders(name), pooling="spatial")
    hidden = outputs(folders(name), model, pixels()).last_hidden_state
    torch.testing.assert_close(model.features(pixels()), hidden[:, before:], atol=1e-5, rtol=1e-5)
    mean = load(folders(name), pooling="mean").features(pixels())
    torch.testing.assert_close(mean[:, 0], hidden[:, before:].mean(1), atol=1e-5, rtol=1e-5)


def test_rows_are_about_their_part_of_the_image(folders: Callable[[str], Path]) -> None:
    model = load(folders("resnet"), site="embedder.embedder", pooling="spatial", grid=2)
    dark = torch.zeros(1, 3, SIZE, SIZE)
    lit = dark.clone()
    lit[..., : SIZE // 4, -SIZE // 4 :] = 1.0  # in the upper right
    moved = (model.features(lit) - model.features(dark)).abs().sum(-1)[0] > 1e-3
    assert moved.tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "resnet",
            {"pooling": "cls"},
            r"pooling 'cls' is not possible .*\(a map\); choose one of: pooled, mean, spatial",
        ),
        ("swin", {"pooling": "cls"}, r"\(a tokens\); choose one of: mean, spatial"),
        ("resnet", {"grid": 3}, "grid = 3 goes with pooling 'spatial', not with 'pooled'"),
        ("resnet", {"pooling": "spatial", "grid": 0}, "grid = 0 is out of range"),
        ("vit", {"site": "pooler", "pooling": "mean"}, r"\(a vector\); choose one of: pooled"),
    ],
)
def test_what_cannot_be_pooled_is_refused(
    folders: Callable[[str], Path], name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(folders(name), **options)


def test_layouts_by_hand() -> None:
    config = transformers.ViTConfig(patch_size=16)
    # 224 / 16 = 14, and 14 · 14 = 196.
    assert layout_of((1, 197, 8), (224, 224), config) == Layout("tokens", 8, (14, 14), 1)
    assert layout_of((1, 196, 8), (224, 224), config) == Layout("tokens", 8, (14, 14), 0)
    assert layout_of((1, 49, 8), (224, 224), config) == Layout("tokens", 8, (7, 7), 0)
    assert layout_of((1, 50, 8), (224, 224), config) == Layout("tokens", 8, None, 0)
    assert layout_of((1, 14 * 7 + 1, 8), (224, 112), config) == Layout("tokens", 8, (14, 7), 1)
    assert layout_of((1, 64, 7, 7), (224, 224), config) == Layout("map", 64, (7, 7))
    assert layout_of((1, 7, 7, 64), (224, 224), config) == Layout("map_channels_last", 64, (7, 7))
    assert layout_of((1, 5), (224, 224), config) == Layout("vector", 5)
    with pytest.raises(ValueError, match="5 axes"):
        layout_of((1, 2, 3, 4, 5), (224, 224), config)
    with pytest.raises(ConfigError, match="its tokens lie on no grid"):
        resolve_pooling("auto", Layout("tokens", 8, None), "here")


def test_a_map_with_its_features_last_is_pooled_alike() -> None:
    value = pixels()
    layouts = Layout("map", 3, (SIZE, SIZE)), Layout("map_channels_last", 3, (SIZE, SIZE))
    for pooling in ("mean", "spatial", "pooled"):
        one, other = pooled(value, layouts[0], pooling, 4), pooled(value.permute(0, 2, 3, 1), layouts[1], pooling, 4)
        torch.testing.assert_close(one, other)


# --- Bad input --------------------------------------------------------------------------------------------------------


def test_other_models_are_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path / "llama", tiny_llama(), tiny_tokenizer())
    with pytest.raises(ModelError, match="LlamaModel, which reads no images"):
        load(tmp_path / "llama")
    with pytest.raises(MissingInputError, match="does not exist"):
        load_vision_model("./nowhere")
    with pytest.raises(ModelError, match="neither 'starter'"):
        load_vision_model("a b/c")


def test_a_processor_of_another_size_than_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="takes no images of 40 x 40"):
        load(saved(tmp_path, "vit", size={"height": 40, "width": 40}))


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    folder = saved(tmp_path, "vit")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ModelError, match="safetensors are damaged"):
        load(folder)


def test_a_model_in_the_hubs_cache_needs_no_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "abc123", "resnet")
    monkeypatch.setattr("triptych.models.vision.cached_snapshot", lambda _spec: folder)
    model = load_vision_model("org/resnet", dtype="float32", device="cpu")
    assert (model.spec, model.revision) == ("org/resnet", "abc123")
