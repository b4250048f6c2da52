"""The checkpoints of an audit: where they are, that they belong to the base, and how far their weights are from its.

Anybody's: an adapter that PEFT can load, a run directory that holds one, or a whole model with the base's tokenizer.
Not here: what they write and how they read.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from triptych.auditing.paired import About
from triptych.auditing.records import BASE, AuditRecord
from triptych.data.pairs import PreferencePair
from triptych.data.split import text_hash, trained_texts
from triptych.errors import ModelError
from triptych.models import LanguageModel, load_language_model
from triptych.models.loading import load_tokenizer
from triptych.models.sources import (
    ADAPTER_CONFIG,
    TOKENIZER_FILES,
    ModelSource,
    find_adapter,
    fingerprint,
    read_json,
    resolve_source,
)
from triptych.records import Prompt
from triptych.stats import bare

RELATIVE_CHANGE = "relative_change"
OF_WEIGHTS, COUNTED = "a property of the weights", "counted, not sampled"
"""Why a figure has no interval and needs none."""


class Checkpoint(NamedTuple):
    """A model to be audited, or the base itself."""

    name: str
    folder: Path | None
    """None for the base."""
    is_adapter: bool
    fingerprint: str
    change: Callable[[LanguageModel], None] | None = None
    """What is done to the loaded adapter, of random changes of its size (`nulls`) and scaled ones (`sweep`)."""
    seed: int | None = None
    """Of its draws; None for the audit's own, which all checkpoints share."""


def find_checkpoints(source: ModelSource, folders: Mapping[str, Path]) -> list[Checkpoint]:
    """The base, then the checkpoints by name; nothing is loaded yet.

    Raises `ModelError` or `MissingInputError` for a folder that holds neither an adapter nor a model.
    """
    found = [Checkpoint(BASE, None, is_adapter=False, fingerprint=fingerprint(source))]
    for name, folder in folders.items():
        is_whole = (folder / "config.json").is_file() and not (folder / ADAPTER_CONFIG).is_file()
        if is_whole:
            whole = resolve_source(str(folder.absolute()))
            found.append(Checkpoint(name, folder, is_adapter=False, fingerprint=fingerprint(whole)))
        else:
            place = find_adapter(folder)
            found.append(Checkpoint(name, place, is_adapter=True, fingerprint=fingerprint(source, place)))
    return found


def load_checkpoint(checkpoint: Checkpoint, base: LanguageModel, *, device: str) -> LanguageModel:
    """The checkpoint, in the base's arithmetic. Raises `ModelError` where it does not fit the base."""
    if checkpoint.folder is None:
        return base
    if checkpoint.is_adapter:
        lm = load_language_model(base.spec, dtype=base.dtype, device=device, adapter=checkpoint.folder)
        if any((checkpoint.folder / name).is_file() for name in TOKENIZER_FILES):
            beside = load_tokenizer(ModelSource(str(checkpoint.folder), "folder", checkpoint.folder))
            require_same_tokenizer(checkpoint.name, beside, base)
        if checkpoint.change is not None:
            checkpoint.change(lm)
        return lm
    lm = load_language_model(checkpoint.folder, dtype=base.dtype, device=device)
    require_same_tokenizer(checkpoint.name, lm.tokenizer, base)
    shapes, others = (_shapes(one) for one in (base, lm))
    if shapes != others:
        differing = sorted(key for key in {*shapes, *others} if shapes.get(key) != others.get(key))
        raise ModelError(
            f"checkpoint '{checkpoint.name}' ({checkpoint.folder}) is no checkpoint of {base.spec}: "
            f"{differing[0]} is {others.get(differing[0])} there and {shapes.get(differing[0])} in the base"
        )
    return lm


def _shapes(lm: LanguageModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in lm.base.named_parameters()}


def require_same_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase, base: LanguageModel) -> None:
    """Raises `ModelError` naming the first token that differs: divergences are taken token by token."""
    mine, theirs = base.tokenizer.get_vocab(), tokenizer.get_vocab()
    if mine == theirs:
        return
    differing = sorted({*mine.items()} ^ {*theirs.items()}, key=lambda item: item[1])[0][0]
    raise ModelError(
        f"checkpoint '{name}' has another tokenizer than {base.spec}: token {differing!r} is {theirs.get(differing)} "
        f"there and {mine.get(differing)} in the base; audit it against its own base"
    )


# --- How far the weights are ------------------------------------------------------------------------------------------


def lineage(checkpoint: Checkpoint, lm: LanguageModel, base: LanguageModel) -> list[AuditRecord]:
    """The records of `lineage.json` of one checkpoint: distance of its weights, and the base that it names.

        relative_change = √(Σ ‖W - W_base‖²) / √(Σ ‖W_base‖²),   unchanged_share = weights equal bit for bit / all

    A LoRA's W - W_base is B·A·scale. `declared_base` is 1 for an adapter that names another base than the one it is
    audited on. Names are compared by their last part, for the same model lies in many places; its folder's will do.
    """
    changed, moved, total, size = 0, 0.0, 0.0, 0
    updates = _lora_updates(lm.model)
    others = dict(lm.base.named_parameters())
    for name, weight in base.base.named_parameters():
        total += _squares(weight)
        size += weight.numel()
        difference = updates[name]() if name in updates else _difference(others.get(name), weight)
        if difference is not None:
            changed += int(torch.count_nonzero(difference))
            moved += _squares(difference)
    distance, unchanged = (moved / total) ** 0.5, 1.0 - changed / size
    records = [
        About(checkpoint.name, RELATIVE_CHANGE).record(bare(distance, 1, OF_WEIGHTS)),
        About(checkpoint.name, "unchanged_share").record(bare(unchanged, 1, OF_WEIGHTS)),
    ]
    if (differs := _names_another_base(checkpoint, base.spec)) is not None:
        records.append(About(checkpoint.name, "declared_base").record(bare(float(differs), 1, COUNTED)))
    return records


def _squares(weight: Tensor) -> float:
    """The sum of squares in double precision, a million numbers at a time."""
    return sum(float(part.double().square().sum()) for part in weight.detach().flatten().split(2**20))


def _difference(weight: Tensor | None, base: Tensor) -> Tensor | None:
    """None where nothing is different: the weights are those of the base's layer inside the adapter's."""
    return None if weight is None else weight.detach().float() - base.detach().float()


def _lora_updates(model: Any) -> dict[str, Callable[[], Tensor]]:
    """Name of a weight of the base → its update by the active adapters."""
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = {name: module for name, module in inner.named_modules() if hasattr(module, "get_delta_weight")}
    return {f"{name}.weight": partial(_update, layer) for name, layer in layers.items()}


def _update(layer: Any) -> Tensor:
    parts = [layer.get_delta_weight(adapter).float() for adapter in layer.active_adapters]
    return torch.stack(parts).sum(0)


def _names_another_base(checkpoint: Checkpoint, spec: str) -> bool | None:
    """None where it names none."""
    if not checkpoint.is_adapter or checkpoint.folder is None:
        return None
    named = read_json(checkpoint.folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not named:
        return None
    known = {Path(spec).name.casefold(), resolve_source(spec).folder.name.casefold()}
    return Path(str(named)).name.casefold() not in known


# --- What it was trained on -------------------------------------------------------------------------------------------


def seen_in_training(name: str, folder: Path | None, items: Sequence[Prompt | PreferencePair]) -> AuditRecord | None:
    """The share of what is audited on that the run around a folder trained on; None where no run of ours tells."""
    texts = None if folder is None else trained_texts(folder)
    if texts is None:
        return None
    share = sum(text_hash(item) in texts for item in items) / len(items)
    return About(name, "seen_in_training").record(bare(share, len(items), COUNTED))


def folders_of(adapters: Mapping[str, str], own: Mapping[str, Path]) -> dict[str, Path]:
    """The study's own policies, then those that the user names. Raises `ModelError` where a name is used twice."""
    if twice := sorted({*adapters} & {*own}):
        raise ModelError(f"adapter name '{twice[0]}' is that of the study's own policy; choose another")
    return {**own, **{name: Path(folder).expanduser() for name, folder in adapters.items()}}
