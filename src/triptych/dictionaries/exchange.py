"""One model's part of a dictionary in the layout of SAELens (6.x), and back: `cfg.json` and `sae_weights.safetensors`.

What is normalised here is folded into the weights there, so that both take raw activations:

    W_enc = (W / σ)ᵀ,    b_enc = b − W (μ / σ),    W_dec = σ ⊙ D,    b_dec = σ ⊙ c + μ

Not here: the dictionary's own files (`coder`).
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from triptych.dictionaries.coder import CoderConfig, UniversalSAE
from triptych.dictionaries.sparsifiers import JumpRelu, TopK
from triptych.errors import ConfigError, DataError, MissingInputError, suggestion
from triptych.files import atomic_path, atomic_write_json, make_folder

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
ARCHITECTURES = {"top_k": "topk", "batch_top_k": "jumprelu", "matryoshka": "jumprelu", "jump_relu": "jumprelu"}
"""Theirs, for inference: what has thresholds after training is a JumpReLU there."""


def save_for_sae_lens(sae: UniversalSAE, model: str, folder: Path) -> None:
    """Writes the encoder and decoder of one model so that `sae_lens.SAE.load_from_disk(folder)` reads them.

    Raises `ConfigError` for a batch-normalised encoder, which SAELens has none of.
    """
    coder = sae.coder(model)
    if sae.config.encoder != "linear":
        raise ConfigError("a batch-normalised encoder has no place in SAELens' layout; train with encoder: linear")
    weight = coder.encoder_weight / coder.scale
    tensors = {
        "W_enc": weight.T,
        "b_enc": coder.encoder_bias - weight @ coder.mean,
        "W_dec": coder.decoder_weight * coder.scale,
        "b_dec": coder.decoder_bias * coder.scale + coder.mean,
    }
    architecture = ARCHITECTURES[sae.config.sparsifier.name]
    own: dict[str, Any] = {"k": sae.config.sparsifier.k, "rescale_acts_by_decoder_norm": False}
    if architecture == "jumprelu":
        tensors["threshold"] = coder.threshold.clamp_min(0)
        own = {}
    make_folder(folder)
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
    described = {"architecture": architecture, "d_in": coder.width, "d_sae": sae.latents, **own}
    fixed = {"dtype": "float32", "device": "cpu", "apply_b_dec_to_input": False, "normalize_activations": "none"}
    atomic_write_json(folder / CONFIG, {**described, **fixed, "reshape_activations": "none", "metadata": {}})


def load_from_sae_lens(folder: Path, model: str) -> UniversalSAE:
    """A dictionary of one model from SAELens' layout: `topk` and `jumprelu`, of plain activations.

    Raises `MissingInputError` where there is none, `DataError` for what cannot be read or is of another kind.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise MissingInputError(f"{folder} holds no autoencoder of SAELens: it has no {CONFIG}")
    try:
        config, tensors = json.loads(path.read_bytes()), load_file(folder / WEIGHTS)
        sparsifier = _sparsifier(folder, config)
        sae = UniversalSAE(
            CoderConfig(latents=config["d_sae"], sparsifier=sparsifier, decoder_norm="free", normalisation="none"),
            {model: config["d_in"]},
        )
        coder = sae.coder(model)
        # Where they take b_dec off the input, we have it in the bias.
        shift = tensors["b_dec"] if config.get("apply_b_dec_to_input", True) else torch.zeros_like(tensors["b_dec"])
        with torch.no_grad():
            coder.encoder_weight.copy_(tensors["W_enc"].T)
            coder.encoder_bias.copy_(tensors["b_enc"] - shift @ tensors["W_enc"])
            coder.decoder_weight.copy_(tensors["W_dec"])
            coder.decoder_bias.copy_(tensors["b_dec"])
            if isinstance(sparsifier, JumpRelu):
                coder.threshold.copy_(tensors["threshold"])
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{folder} holds an autoencoder that cannot be read ({str(error).splitlines()[0]})") from error
    return sae


def _sparsifier(folder: Path, config: dict[str, Any]) -> TopK | JumpRelu:
    if config.get("normalize_activations", "none") != "none" or config.get("rescale_acts_by_decoder_norm"):
        raise DataError(f"{folder} was saved with activations that are rescaled on the way; fold that in with SAELens")
    match config.get("architecture"):
        case "topk":
            return TopK(k=config["k"])
        case "jumprelu":
            return JumpRelu(k=1)
        case other:
            raise DataError(f"{folder} has the architecture '{other}'{suggestion(str(other), ['topk', 'jumprelu'])}")
