"""What the contenders of `triptych bench usae` are trained on, and the models whose activations are extracted.

Activations are made, unless somebody names some: sums of few concepts, whose frequencies follow a power law, and noise.
White noise would say nothing about a dictionary, as it has none. Every feature is standardised by its mean and standard
deviation over the training rows, once for all contenders.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel

from triptych.bench.usae_contenders import HELD_OUT, ONE, TRAIN, TWO, WORK_FILE, UsaeWork
from triptych.bench.usae_peer import Rows
from triptych.dictionaries.store import ActivationStore
from triptych.errors import DataError, MissingInputError
from triptych.files import atomic_write_json
from triptych.models.loading import quiet_transformers
from triptych.seeding import generator

WIDTH = 768
WIDTHS = {"narrow": 512, "wide": WIDTH}
"""Of two models, those of a ResNet-18 and a ViT-B/16."""

CONCEPTS, ACTIVE = 1536, 24
NOISE = 0.3
"""Its standard deviation, in those of what the concepts come to: at best R² is 1 / (1 + 0.09) = 0.92."""

SHARE = 10
"""For so many rows that are trained on one is held out."""

TENSOR = "activations"


def lay_out(work: UsaeWork, folder: Path) -> None:
    """Writes the work and its activations, standardised, for the contenders.

    Raises `MissingInputError` or `DataError` naming activations that are missing, damaged, not finite or too few.
    """
    widths = WIDTHS if work.two_models else {"wide": WIDTH}
    made = made_activations(work.rows + held_out_rows(work.rows), widths, work.seed) if _needs_made(work) else {}
    one = made["wide"] if work.activations is None else read_activations(Path(work.activations), work)
    _write({"one": one}, folder / ONE)
    if work.two_models:
        _write(made, folder / TWO)
    atomic_write_json(folder / WORK_FILE, work)


def held_out_rows(rows: int) -> int:
    return max(2, rows // SHARE)


def _needs_made(work: UsaeWork) -> bool:
    return work.activations is None or work.two_models


def _write(rows: Mapping[str, Rows], path: Path) -> None:
    """The last eleventh is held out."""
    tensors = {}
    for name, one in rows.items():
        n = len(one) - max(2, len(one) // (SHARE + 1))
        standardised = standardise(one, n)
        tensors[f"{TRAIN}.{name}"], tensors[f"{HELD_OUT}.{name}"] = standardised[:n], standardised[n:].clone()
    save_file({name: one.contiguous() for name, one in tensors.items()}, path)


def standardise(rows: Rows, n: int) -> Rows:
    """Mean 0 and standard deviation 1 of every feature over the first n rows; a feature that never varies stays 0."""
    known = rows[:n].double()
    scale = known.std(0, unbiased=False)
    return ((rows - known.mean(0)) / torch.where(scale > 0, scale, 1.0)).float()


# --- Made -------------------------------------------------------------------------------------------------------------


def made_activations(n: int, widths: Mapping[str, int], seed: int) -> dict[str, Rows]:
    """Activations [n, width] of models that see the same concepts, each in directions of its own.

    A row has `ACTIVE` different concepts, drawn with chances ∝ 1 / rank, of log-normal strength.
    """
    draws = generator(seed, "bench", "concepts")
    # The largest of log-chances with Gumbel noise: a draw without replacement.
    keys = draws.gumbel(size=(n, CONCEPTS)) - np.log(np.arange(1, CONCEPTS + 1))
    active = np.argpartition(keys, CONCEPTS - ACTIVE, axis=1)[:, CONCEPTS - ACTIVE :]
    strengths = np.zeros((n, CONCEPTS), dtype=np.float32)
    np.put_along_axis(strengths, active, draws.lognormal(0.0, 0.5, size=active.shape).astype(np.float32), axis=1)
    found = {}
    for name, width in widths.items():
        own = generator(seed, "bench", "directions", width)
        directions = own.normal(size=(CONCEPTS, width)).astype(np.float32)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        rows = strengths @ directions
        rows += NOISE * rows.std() * own.normal(size=rows.shape).astype(np.float32)
        found[name] = torch.from_numpy(rows)
    return found


# --- Somebody's -------------------------------------------------------------------------------------------------------


def read_activations(path: Path, work: UsaeWork) -> Float[torch.Tensor, "n d"]:
    """Rows of a store or a file, a random sample of as many as the work wants, in random order."""
    rows = ActivationStore.open(path).load() if path.is_dir() else _read_file(path)
    wanted = work.rows + held_out_rows(work.rows)
    needed = work.batch_size + held_out_rows(work.batch_size)
    if len(rows) < needed:
        raise DataError(
            f"{path} holds {len(rows)} rows, and {needed} are needed for one batch and what is held out; "
            "lower --batch-size or extract more images"
        )
    if not bool(torch.isfinite(rows).all()):
        raise DataError(f"{path} holds activations that are not finite; extract them again, in float32")
    chosen = generator(work.seed, "bench", "rows").permutation(len(rows))[:wanted]
    return rows[torch.from_numpy(chosen)]


def _read_file(path: Path) -> Rows:
    if not path.is_file():
        raise MissingInputError(f"activations {path} do not exist; name an activation store or a .safetensors file")
    try:
        with safe_open(path, framework="pt") as opened:
            names = sorted(opened.keys())
            rows: torch.Tensor | None = opened.get_tensor(TENSOR) if TENSOR in names else None
    except SafetensorError as error:
        raise DataError(f"{path} is no safetensors file ({error}); name an activation store or one") from error
    if rows is None:
        raise DataError(
            f"{path} has no tensor '{TENSOR}' (it has {', '.join(names) or 'none'}); save rows by that name"
        )
    if rows.ndim != 2 or not rows.is_floating_point():
        shape = " x ".join(map(str, rows.shape))
        raise DataError(f"{path}: '{TENSOR}' is {shape} of {rows.dtype}; it must be rows x features, of floats")
    return rows.float()


# --- Models for extraction --------------------------------------------------------------------------------------------


def random_models(folder: Path) -> dict[str, str]:
    """A ResNet-18 and a ViT-B/16 with random weights: name → folder. What they cost does not depend on the weights."""
    resnet = ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic")
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 224, "width": 224},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    found = {}
    made: dict[str, tuple[Any, Any]] = {"resnet18": (ResNetModel, resnet), "vit_b16": (ViTModel, ViTConfig())}
    for name, (cls, config) in made.items():
        # The constructor draws from torch's global generator; nobody else's draws may move by that.
        with torch.random.fork_rng(devices=[]), quiet_transformers():
            cls(config).save_pretrained(folder / name)
        (folder / name / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
        found[name] = str(folder / name)
    return found
