import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from triptych.dictionaries.coder import (
    CONFIG,
    WEIGHTS,
    Coder,
    CoderConfig,
    UniversalSAE,
    calibrate,
    initialise,
)
from triptych.dictionaries.sparsifiers import BatchTopK, JumpRelu, Matryoshka, Sparsifier, TopK
from triptych.errors import ConfigError, DataError, MissingInputError

SPARSIFIERS = [TopK(k=3), BatchTopK(k=3), JumpRelu(k=3, threshold=0.125), Matryoshka(k=3, prefixes=(0.25, 0.5))]
EACH = pytest.mark.parametrize("sparsifier", SPARSIFIERS, ids=lambda one: one.name)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_sae(**settings: Any) -> UniversalSAE:
    """Two models of widths 5 and 4, twelve latents, every parameter and buffer different from where it begins."""
    config = CoderConfig(**{"latents": 12, "sparsifier": TopK(k=3)} | settings)
    sae = UniversalSAE(config, {"resnet": 5, "vit": 4})
    with torch.no_grad():
        for place, tensor in enumerate(sae.state_dict().values()):
            if tensor.is_floating_point():
                tensor.copy_(draw(*tensor.shape, seed=place).abs() + 0.25 if tensor.dim() == 1 else draw(*tensor.shape))
    return sae


# --- Shapes, formulae -------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("encoder", ["linear", "batch_norm"])
def test_shapes(sparsifier: Sparsifier, encoder: str) -> None:
    sae = some_sae(sparsifier=sparsifier, encoder=encoder)
    assert (sae.names, sae.widths, sae.latents) == (("resnet", "vit"), (5, 4), 12)
    codes = sae.encode("resnet", draw(7, 5))
    assert codes.shape == sae.pre_codes("resnet", draw(7, 5)).shape == (7, 12)
    assert sae.decode("resnet", codes).shape == (7, 5)
    assert sae.decode("vit", codes).shape == sae("resnet", "vit", draw(7, 5)).shape == (7, 4)
    assert sae.encode("vit", draw(1, 4)).shape == (1, 12)


def test_the_formula_by_hand() -> None:
    """Width 1, two latents, μ = 10, σ = 2, W = (1, −1), b = (0.5, 0.25), D = (3, 5), c = 1, k = 1.

    a = 14: ã = 2, pre-activations 2.5 and −1.75, code (2.5, 0), 2.5 · 3 + 1 = 8.5, and 8.5 · 2 + 10 = 27.
    a = 6: ã = −2, pre-activations −1.5 and 2.25, code (0, 2.25), 2.25 · 5 + 1 = 12.25, and 34.5.
    """
    sae = UniversalSAE(CoderConfig(latents=2, sparsifier=TopK(k=1)), {"a": 1})
    coder = sae.coder("a")
    with torch.no_grad():
        coder.mean.fill_(10.0)
        coder.scale.fill_(2.0)
        coder.encoder_weight.copy_(torch.tensor([[1.0], [-1.0]]))
        coder.encoder_bias.copy_(torch.tensor([0.5, 0.25]))
        coder.decoder_weight.copy_(torch.tensor([[3.0], [5.0]]))
        coder.decoder_bias.fill_(1.0)
    raw = torch.tensor([[14.0], [6.0]])
    assert sae.pre_codes("a", raw).tolist() == [[2.5, -1.75], [-1.5, 2.25]]
    assert sae.encode("a", raw).tolist() == [[2.5, 0.0], [0.0, 2.25]]
    assert sae("a", "a", raw).tolist() == [[27.0], [34.5]]


def test_denormalise_is_the_inverse_of_normalise() -> None:
    coder, rows = some_sae().coder("resnet"), draw(20, 5)
    torch.testing.assert_close(coder.denormalise(coder.normalise(rows)), rows)
    torch.testing.assert_close(coder.normalise(coder.denormalise(rows)), rows)
    assert not torch.allclose(coder.normalise(rows), rows)


def test_batch_norm_sees_the_batch_while_training_alone() -> None:
    sae = some_sae(encoder="batch_norm", sparsifier=TopK(k=12))
    rows = draw(6, 5)
    alone = torch.cat([sae.pre_codes("resnet", row[None]) for row in rows])
    torch.testing.assert_close(sae.pre_codes("resnet", rows), alone)
    sae.train()
    norm = sae.coder("resnet").norm
    assert isinstance(norm, torch.nn.BatchNorm1d)
    pre = (sae.pre_codes("resnet", rows) - norm.bias) / norm.weight
    torch.testing.assert_close(pre.mean(0), torch.zeros(12), atol=1e-5, rtol=0)
    torch.testing.assert_close(pre.var(0, unbiased=False), torch.ones(12), atol=1e-3, rtol=0)


def test_a_dictionary_is_made_for_use() -> None:
    assert not UniversalSAE(CoderConfig(latents=8, sparsifier=TopK(k=2)), {"a": 3}).training


def test_pre_codes_can_be_differentiated_by_activations() -> None:
    rows = draw(3, 5).requires_grad_()
    some_sae().pre_codes("resnet", rows).sum().backward()
    assert rows.grad is not None
    assert rows.grad.abs().min() > 0


# --- What is refused --------------------------------------------------------------------------------------------------


def test_unknown_models_are_refused() -> None:
    sae = some_sae()
    with pytest.raises(ConfigError, match="the dictionary has no model 'resent'; did you mean 'resnet'?"):
        sae.encode("resent", draw(2, 5))
    with pytest.raises(ConfigError, match="has no model 'zzz'; known: resnet, vit"):
        sae.decode("zzz", draw(2, 12))


def test_activations_of_another_width_are_refused() -> None:
    with pytest.raises(DataError, match="activations of 'vit' are 5 wide and the dictionary was made for 4; use the"):
        some_sae().encode("vit", draw(2, 5))


def test_k_above_the_latents_is_refused() -> None:
    for sparsifier in (TopK(k=9), BatchTopK(k=9), JumpRelu(k=9), Matryoshka(k=9)):
        with pytest.raises(ValidationError, match="sparsifier.k is 9 and latents 8: k cannot exceed latents"):
            CoderConfig(latents=8, sparsifier=sparsifier)
    with pytest.raises(ValidationError, match="k is 32 and latents 8"):
        CoderConfig(latents=8)
    assert CoderConfig(latents=8, sparsifier=TopK(k=8)).sparsifier.k == 8


def test_no_models_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one model"):
        UniversalSAE(CoderConfig(), {})


# --- Files ------------------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("encoder", ["linear", "batch_norm"])
def test_what_was_saved_is_loaded(tmp_path: Path, sparsifier: Sparsifier, encoder: str) -> None:
    sae = some_sae(sparsifier=sparsifier, encoder=encoder, decoder_norm="free", normalisation="scalar", init="random")
    sae.save(tmp_path / "new" / "folder")
    loaded = UniversalSAE.load(tmp_path / "new" / "folder")
    assert loaded.config == sae.config
    assert (loaded.names, loaded.widths) == (sae.names, sae.widths)
    assert not loaded.training
    weights, others = sae.state_dict(), loaded.state_dict()
    assert set(weights) == set(others)
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())
    rows = draw(9, 5)
    assert torch.equal(loaded("resnet", "vit", rows), sae("resnet", "vit", rows))
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [CONFIG, WEIGHTS]


def test_the_same_dictionary_is_the_same_bytes_and_takes_the_place_of_another(tmp_path: Path) -> None:
    some_sae(encoder="batch_norm").save(tmp_path / "a")
    some_sae().save(tmp_path / "a")
    some_sae().save(tmp_path / "b")
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_names_of_models_may_be_anything(tmp_path: Path) -> None:
    names = {"a.b": 2, "": 3, "späth/x y": 4, "weights.0": 2}
    UniversalSAE(CoderConfig(latents=4, sparsifier=TopK(k=1)), names).save(tmp_path)
    assert dict(zip(UniversalSAE.load(tmp_path).names, UniversalSAE.load(tmp_path).widths, strict=True)) == names


def test_no_dictionary_is_missing_input(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(MissingInputError, match="holds no dictionary: it has no config.json"):
            UniversalSAE.load(folder)


DAMAGED_CONFIGS: dict[str, tuple[dict[str, Any] | bytes, str]] = {
    "no JSON": (b"{", "at the start: Invalid JSON"),
    "empty": (b"", "at the start: Invalid JSON"),
    "no text": (b"\xff\xfe\x00", "at the start: Invalid JSON"),
    "other kind": ({"kind": "other"}, r"at kind: Input should be 'triptych.UniversalSAE'"),
    "unknown key": ({"colour": "red"}, "at colour: Extra inputs are not permitted"),
    "latents of text": ({"latents": "12"}, "at latents: Input should be a valid integer"),
    "k above latents": ({"latents": 2}, "k cannot exceed latents"),
    "no models": ({"models": {}}, "at least one model"),
    "negative width": ({"models": {"resnet": -5, "vit": 4}}, "negative"),
    "other latents": ({"latents": 13}, "size mismatch for coders.0.encoder_weight"),
    "other width": ({"models": {"resnet": 6, "vit": 4}}, "size mismatch for coders.0.encoder_weight"),
    "fewer models": ({"models": {"resnet": 5}}, r"Unexpected key\(s\).*coders.1.encoder_weight"),
    "more models": ({"models": {"resnet": 5, "vit": 4, "x": 3}}, r"Missing key\(s\).*coders.2.encoder_weight"),
    "other encoder": ({"encoder": "batch_norm"}, r"Missing key\(s\).*coders.0.norm.weight"),
}


@pytest.mark.parametrize("damage", DAMAGED_CONFIGS)
def test_damaged_configs_are_told_in_a_sentence(tmp_path: Path, damage: str) -> None:
    some_sae().save(tmp_path)
    change, reason = DAMAGED_CONFIGS[damage]
    path = tmp_path / CONFIG
    path.write_bytes(
        change if isinstance(change, bytes) else json.dumps(json.loads(path.read_text()) | change).encode()
    )
    with pytest.raises(DataError, match=f"{tmp_path} holds a damaged dictionary .*{reason}.*train it again") as caught:
        UniversalSAE.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_config_without_one_of_its_keys_is_told(tmp_path: Path) -> None:
    some_sae().save(tmp_path)
    saved = json.loads((tmp_path / CONFIG).read_text())
    del saved["models"]
    (tmp_path / CONFIG).write_text(json.dumps(saved))
    with pytest.raises(DataError, match="at models: Field required"):
        UniversalSAE.load(tmp_path)


def test_damaged_weights_are_told_in_a_sentence(tmp_path: Path) -> None:
    some_sae().save(tmp_path)
    path = tmp_path / WEIGHTS
    whole = path.read_bytes()
    for data in (b"", b"no tensors", whole[: len(whole) // 2], whole + b"more"):
        path.write_bytes(data)
        with pytest.raises(DataError, match="holds a damaged dictionary .*; train it again") as caught:
            UniversalSAE.load(tmp_path)
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match=r"damaged dictionary \(No such file"):
        UniversalSAE.load(tmp_path)


def test_weights_of_other_names_are_refused(tmp_path: Path) -> None:
    some_sae().save(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    weights["coders.0.other"] = weights.pop("coders.0.mean")
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(DataError, match=r"Missing key\(s\) in state_dict: \"coders.0.mean\""):
        UniversalSAE.load(tmp_path)


# --- Before training --------------------------------------------------------------------------------------------------


def begun(init: str, widths: dict[str, int], samples: list[Tensor], seed: int = 0) -> list[Coder]:
    sae = some_sae(init=init)
    sae = UniversalSAE(sae.config, widths)
    initialise(sae, samples, seed)
    return [sae.coder(name) for name in widths]


@pytest.mark.parametrize("init", ["samples", "own_samples", "random"])
@pytest.mark.parametrize("n", [0, 3, 12, 30])
def test_rows_begin_with_length_one_and_encoders_as_multiples_of_decoders(init: str, n: int) -> None:
    for coder in begun(init, {"a": 5, "b": 4}, [draw(n, 5), draw(n, 4)]):
        torch.testing.assert_close(coder.decoder_weight.norm(dim=1), torch.ones(12))
        lengths = coder.encoder_weight.norm(dim=1)
        torch.testing.assert_close(coder.encoder_weight, lengths[0] * coder.decoder_weight)
        assert not coder.encoder_bias.any()
        assert not coder.decoder_bias.any()


def test_encoders_begin_with_the_length_that_reconstructs_best() -> None:
    """A tenth less or more explains the samples worse: it is where the squared error over both models is least."""
    samples = [3 * draw(200, 5), draw(200, 4, seed=1)]
    sae = UniversalSAE(some_sae().config, {"a": 5, "b": 4})
    initialise(sae, samples, 0)

    def error(factor: float) -> float:
        codes = factor * sae.coder("a").sparsify(sae.coder("a").pre_codes(samples[0]))
        pairs = zip(sae.names, samples, strict=True)
        return sum(float((rows - sae.coder(name).reconstruct(codes)).square().mean()) for name, rows in pairs)

    with torch.no_grad():
        assert error(1.0) < min(error(0.9), error(1.1))


@pytest.mark.parametrize("init", ["random", "own_samples"])
def test_models_that_begin_apart_begin_differently_even_with_the_same_rows(init: str) -> None:
    rows = draw(40, 5)
    a, b = begun(init, {"a": 5, "b": 5}, [rows, rows])
    assert not torch.allclose(a.decoder_weight, b.decoder_weight, atol=0.5)
    other, *_ = begun(init, {"a": 5}, [rows], seed=1)
    assert not torch.equal(a.decoder_weight, other.decoder_weight)


def test_latents_begin_as_the_same_images_in_all_models() -> None:
    """Noise of a tenth of their length: a latent's direction has a cosine above 0.98 with its image's row."""
    samples = [100 * draw(30, 5), draw(30, 4, seed=1)]
    for coder, own in zip(begun("samples", {"a": 5, "b": 4}, samples), samples, strict=True):
        cosines = torch.nn.functional.normalize(own, dim=1)[:12] @ coder.decoder_weight.T
        assert cosines.diagonal().min() > 0.98


def test_images_that_stand_twice_do_not_make_twins() -> None:
    (coder,) = begun("samples", {"a": 5}, [draw(1, 5).expand(12, 5)])
    cosines = coder.decoder_weight @ coder.decoder_weight.T - 2 * torch.eye(12)
    assert cosines.max() < 0.9999


def test_rows_of_zeros_and_missing_ones_begin_at_random() -> None:
    own = draw(4, 5)
    own[1] = 0.0
    (coder,), (random,) = begun("samples", {"a": 5}, [own]), begun("random", {"a": 5}, [own])
    at_random = [1, *range(4, 12)]
    torch.testing.assert_close(coder.decoder_weight[at_random], random.decoder_weight[at_random])
    assert not torch.allclose(coder.decoder_weight[0], random.decoder_weight[0])


# --- The threshold of BatchTopK ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsifier", [BatchTopK(k=1), Matryoshka(k=1)], ids=["batch_top_k", "matryoshka"])
def test_the_threshold_lets_k_latents_fire_on_a_mean_row(sparsifier: BatchTopK | Matryoshka) -> None:
    """Pre-activations 5, 4 | 3, 1 | 0.5, −2: three rows, so three of the positive ones; 1 is the largest that may not."""
    coder = Coder(CoderConfig(latents=2, sparsifier=sparsifier), 2).eval()
    with torch.no_grad():
        coder.encoder_weight.copy_(torch.eye(2))
    rows = torch.tensor([[5.0, 4.0], [3.0, 1.0], [0.5, -2.0]])
    calibrate(coder, rows)
    assert coder.threshold.tolist() == [1.0, 1.0]
    assert coder.sparsify(coder.pre_codes(rows)).tolist() == [[5.0, 4.0], [3.0, 0.0], [0.0, 0.0]]


def test_other_thresholds_stay() -> None:
    for sparsifier, threshold in ((TopK(k=1), 0.0), (JumpRelu(k=1, threshold=0.25), 0.25)):
        coder = Coder(CoderConfig(latents=2, sparsifier=sparsifier), 3)
        calibrate(coder, torch.ones(2, 3))
        assert coder.threshold.tolist() == [threshold, threshold]
