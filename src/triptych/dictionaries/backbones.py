"""Two small backbones of different families, trained on the spot to name the factors of labelled images.

    folder/resnet/   config.json, model.safetensors, preprocessor_config.json, heads.safetensors, training.json
    folder/vit/      the same

The first three are a transformers folder, which `AutoModel.from_pretrained` loads; `heads.safetensors` holds the linear
heads (`<factor>.weight` [values, width], `<factor>.bias`) and, as its metadata, the names of factors and values. A
folder with a `training.json` (a BackboneRecord) is complete. Not here: which models there are (`backbone_models`), the
loop (`backbone_training`).

Preprocessing is `ViTImageProcessor` for both, because `ConvNextImageProcessor`, which transformers names for ResNets,
crops whatever is smaller than 384 pixels.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from triptych.checkpoints import Checkpoints
from triptych.config import canonical_json, config_hash
from triptych.data.images import Factor, ImageSet, ImageSplit
from triptych.dictionaries.backbone_models import CIFAR10, FAMILIES, BackboneConfig, Family, ResNetPlan, ViTPlan
from triptych.dictionaries.backbone_training import (
    Fitted,
    Namer,
    Normalisation,
    Pixels,
    Plan,
    accuracy,
    chance,
    decode,
    fit,
    named_values,
    normalisation_of,
)
from triptych.dictionaries.records import BackboneRecord
from triptych.errors import ConfigError, DataError
from triptych.files import TEMPORARY, atomic_path, atomic_write_json, make_folder, output_errors
from triptych.models.loading import quiet_transformers, resolve_device

__all__ = ["CIFAR10", "BackboneConfig", "ResNetPlan", "ViTPlan", "train_backbones"]

HEADS, PREPROCESSOR, TRAINING = "heads.safetensors", "preprocessor_config.json", "training.json"


# --- training both ----------------------------------------------------------------------------------------------------


class _Task(NamedTuple):
    """What both backbones are trained on."""

    images: ImageSplit
    train: Pixels
    test: Pixels
    normalise: Normalisation
    size: int


def train_backbones(
    images: ImageSplit,
    config: BackboneConfig,
    folder: Path,
    *,
    seed: int,
    device: str = "auto",
    show_progress: bool = True,
) -> dict[str, Path]:
    """Trains a ResNet and a ViT to name every factor of the images; the folder of each.

    What is finished for the same images, configuration and seed is taken as it is, what was interrupted goes on from
    its last epoch. Weights depend on the seed alone, given the machine and its number of threads.

    Raises `DataError` where images have no labels or do not fit into memory, `ConfigError` for sizes that do not fit
    each other and for a folder of something else, `WorkError` where the loss is no longer finite.
    """
    _require_labels(images)
    size = config.image_size or min(images.train.read(0).shape[:2])
    chosen = resolve_device(device)
    keys: dict[str, str] = {family.name: _key(family, images, config, size, seed) for family in FAMILIES}
    folders: dict[str, Path] = {family.name: folder / family.name for family in FAMILIES}
    missing = [one for one in FAMILIES if not _is_finished(folders[one.name], keys[one.name])]
    if not missing:
        return folders
    # Sizes that do not fit are told before anything is decoded.
    models = {family.name: family.build(config, size, chosen, seed) for family in missing}
    train, test = decode([images.train, images.test], size, show_progress=show_progress)
    normalise = normalisation_of(train.images)
    task = _Task(images, _on(train, chosen), _on(test, chosen), normalise, size)
    for family in missing:
        _train_one(family, models[family.name], task, config, folders, keys[family.name], seed, show_progress)
    return folders


def _require_labels(images: ImageSplit) -> None:
    for one in images:
        if not one.factors:
            raise DataError(
                f"images {one.source} have no labels, which backbones are trained on; choose labelled ones (a "
                "folder of class folders, 'starter') or give models that are trained already"
            )
        if len(one) < 2:
            raise DataError(f"images {one.source}: {len(one)} of them; training and holding out takes 2 each at least")
    if _names(images.train) != _names(images.test):
        raise DataError(
            f"images {images.train.source} and {images.test.source} differ in their factors or the names of their "
            "values; label both alike"
        )
    for one in images:
        for name, factor in one.factors.items():
            if not (factor.of >= 0).any():
                raise DataError(f"images {one.source}: none has a value of '{name}'; leave it out, or label some")


def _names(images: ImageSet) -> dict[str, tuple[str, ...]]:
    return {name: factor.values for name, factor in images.factors.items()}


def _on(data: Pixels, device: torch.device) -> Pixels:
    return Pixels(*(tensor.to(device) for tensor in data))


def _key(family: Family, images: ImageSplit, config: BackboneConfig, size: int, seed: int) -> str:
    """Hash of everything a backbone depends on, the other family's settings left out."""
    other = {"resnet", "vit"} - {family.name}
    identity = [family.name, config_hash(config.model_dump(mode="json", exclude=other)), size, seed]
    identity += [images.train.fingerprint, images.test.fingerprint]
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]


def _is_finished(folder: Path, key: str) -> bool:
    """Raises `ConfigError` where the folder holds a backbone of something else."""
    if not (folder / TRAINING).is_file():
        return False
    with safe_open(folder / HEADS, framework="pt") as heads:
        found = (heads.metadata() or {}).get("key")
    if found != key:
        raise ConfigError(
            f"{folder} holds a backbone of other images, settings or seed; pass another folder, or remove it to "
            "train anew"
        )
    return True


def _train_one(
    family: Family,
    model: PreTrainedModel,
    task: _Task,
    config: BackboneConfig,
    folders: Mapping[str, Path],
    key: str,
    seed: int,
    show_progress: bool,
) -> None:
    folder, factors = folders[family.name], task.images.train.factors
    namer = Namer(model, family.pooled, family.width(config), [len(one.values) for one in factors.values()])
    namer.heads.to(model.device)
    checkpoints = Checkpoints(folder, key)
    plan = _plan(family, config, _budget(family, config, folders), seed)
    fitted = fit(namer, task.train, task.normalise, plan, checkpoints, show_progress=show_progress)
    save_backbone(folder, model, task.normalise, task.size)
    _save_heads(folder / HEADS, namer, factors, key)
    # The last file: a folder that has it is complete.
    atomic_write_json(folder / TRAINING, _record(family, namer, task, fitted, seed))
    checkpoints.discard()


def _budget(family: Family, config: BackboneConfig, folders: Mapping[str, Path]) -> float | None:
    """Seconds that a backbone may take."""
    if config.max_minutes is None:
        return None
    total = 60.0 * config.max_minutes
    if family.name == "resnet":
        return total / 3
    before = BackboneRecord.model_validate_json((folders["resnet"] / TRAINING).read_bytes())
    return max(total - before.seconds, total / 3)


def _plan(family: Family, config: BackboneConfig, max_seconds: float | None, seed: int) -> Plan:
    own: ResNetPlan | ViTPlan = getattr(config, family.name)
    return Plan(
        name=family.name,
        epochs=own.epochs,
        batch_size=own.batch_size or config.batch_size,
        learning_rate=own.learning_rate,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        label_smoothing=config.label_smoothing,
        shift=config.shift,
        flip=config.flip,
        seed=seed,
        max_seconds=max_seconds,
    )


# --- what is written --------------------------------------------------------------------------------------------------


def save_backbone(folder: Path, model: PreTrainedModel, normalise: Normalisation, size: int) -> None:
    """A transformers folder: weights, configuration and preprocessing; each file in place only when all are written."""
    partial = folder / f"{TEMPORARY}model"
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(partial)
    try:
        with output_errors(partial), quiet_transformers():
            model.save_pretrained(partial)
        atomic_write_json(partial / PREPROCESSOR, preprocessor(normalise, size))
        for path in sorted(partial.iterdir()):
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def preprocessor(normalise: Normalisation, size: int) -> dict[str, Any]:
    """`preprocessor_config.json`: what was done to the images in training, augmentation aside."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(normalise.mean),
        "image_std": list(normalise.std),
    }


def _save_heads(path: Path, namer: Namer, factors: Mapping[str, Factor], key: str) -> None:
    weights = namer.heads.weight.detach().cpu().split(namer.values)
    biases = namer.heads.bias.detach().cpu().split(namer.values)
    tensors = {f"{name}.weight": one.clone() for name, one in zip(factors, weights, strict=True)}
    tensors |= {f"{name}.bias": one.clone() for name, one in zip(factors, biases, strict=True)}
    names = json.dumps({name: factor.values for name, factor in factors.items()}, ensure_ascii=False)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"key": key, "factors": names})


def _record(family: Family, namer: Namer, task: _Task, fitted: Fitted, seed: int) -> BackboneRecord:
    named = named_values(namer, task.test, task.normalise)
    ids = task.images.test.ids
    names = list(task.images.train.factors)
    train, test = task.train.labels.cpu(), task.test.labels.cpu()
    named = named.cpu()
    return BackboneRecord(
        name=family.name,
        family=family.name,
        parameters=sum(one.numel() for one in namer.backbone.parameters()),
        images=len(task.train.images),
        epochs=fitted.epochs,
        seconds=fitted.seconds,
        accuracy={name: accuracy(named[:, at], test[:, at], ids, seed=seed) for at, name in enumerate(names)},
        chance={name: chance(train[:, at], test[:, at]) for at, name in enumerate(names)},
    )
