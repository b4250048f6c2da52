"""SAELens' layout: the formulas of its forward pass, written out here, give what ours give."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from triptych.dictionaries.coder import CoderConfig, UniversalSAE, initialise
from triptych.dictionaries.exchange import load_from_sae_lens, save_for_sae_lens
from triptych.dictionaries.sparsifiers import BatchTopK, Sparsifier, TopK
from triptych.errors import ConfigError, DataError, MissingInputError


def sae_of(sparsifier: Sparsifier) -> UniversalSAE:
    stream = torch.Generator().manual_seed(0)
    sae = UniversalSAE(CoderConfig(latents=16, sparsifier=sparsifier), {"a": 6, "b": 4})
    initialise(sae, [torch.randn(20, width, generator=stream) for width in sae.widths], seed=0)
    for name in sae.names:
        coder = sae.coder(name)
        coder.mean.copy_(torch.randn(coder.width, generator=stream))
        coder.scale.copy_(torch.rand(coder.width, generator=stream) + 0.5)
        coder.threshold.fill_(0.3)
        with torch.no_grad():
            coder.encoder_bias.copy_(0.1 * torch.randn(16, generator=stream))
            coder.decoder_bias.copy_(0.1 * torch.randn(coder.width, generator=stream))
    return sae


def rows(width: int) -> torch.Tensor:
    return torch.randn(30, width, generator=torch.Generator().manual_seed(1)) * 2 + 1


def test_topk_as_sae_lens_computes_it(tmp_path: Path) -> None:
    sae = sae_of(TopK(k=3))
    save_for_sae_lens(sae, "b", tmp_path)
    w, config = load_file(tmp_path / "sae_weights.safetensors"), json.loads((tmp_path / "cfg.json").read_text())
    assert (config["architecture"], config["k"], config["d_in"], config["d_sae"]) == ("topk", 3, 4, 16)
    assert config["apply_b_dec_to_input"] is False
    values, places = (rows(4) @ w["W_enc"] + w["b_enc"]).topk(3, dim=-1)
    codes = torch.zeros(30, 16).scatter(-1, places, values.relu())
    torch.testing.assert_close(codes, sae.encode("b", rows(4)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(codes @ w["W_dec"] + w["b_dec"], sae("b", "b", rows(4)), atol=1e-5, rtol=1e-4)


def test_thresholds_become_a_jumprelu(tmp_path: Path) -> None:
    sae = sae_of(BatchTopK(k=3))
    save_for_sae_lens(sae, "a", tmp_path)
    w = load_file(tmp_path / "sae_weights.safetensors")
    pre = rows(6) @ w["W_enc"] + w["b_enc"]
    codes = pre.relu() * (pre > w["threshold"])
    torch.testing.assert_close(codes, sae.encode("a", rows(6)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sparsifier", [TopK(k=3), BatchTopK(k=3)])
def test_round_trip(tmp_path: Path, sparsifier: Sparsifier) -> None:
    sae = sae_of(sparsifier)
    save_for_sae_lens(sae, "a", tmp_path)
    again = load_from_sae_lens(tmp_path, "theirs")
    torch.testing.assert_close(again("theirs", "theirs", rows(6)), sae("a", "a", rows(6)), atol=1e-5, rtol=1e-4)


def test_a_bias_that_is_taken_off_the_input(tmp_path: Path) -> None:
    """x W + b with x less b_dec is x W + (b − b_dec W)."""
    sae = sae_of(TopK(k=3))
    save_for_sae_lens(sae, "a", tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps({**config, "apply_b_dec_to_input": True}))
    w = load_file(tmp_path / "sae_weights.safetensors")
    expected = (rows(6) - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    found = load_from_sae_lens(tmp_path, "a").pre_codes("a", rows(6))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_bad_input_is_told_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"it has no cfg\.json"):
        load_from_sae_lens(tmp_path, "a")
    save_for_sae_lens(sae_of(TopK(k=3)), "a", tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    for changed, words in (
        ({"architecture": "gated"}, "architecture 'gated'"),
        ({"normalize_activations": "layer_norm"}, "rescaled on the way"),
        ({"d_in": 5}, "cannot be read"),
    ):
        (tmp_path / "cfg.json").write_text(json.dumps({**config, **changed}))
        with pytest.raises(DataError, match=words):
            load_from_sae_lens(tmp_path, "a")
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    save_file({"W_enc": torch.zeros(6, 16)}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(DataError, match="cannot be read"):
        load_from_sae_lens(tmp_path, "a")
    normed = UniversalSAE(CoderConfig(latents=4, sparsifier=TopK(k=1), encoder="batch_norm"), {"a": 3})
    with pytest.raises(ConfigError, match="batch-normalised"):
        save_for_sae_lens(normed, "a", tmp_path)
