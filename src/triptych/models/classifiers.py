"""Sequence classifiers with one output on any backbone: the bodies of reward models, with a head that may be new.

Not here: training them (`triptych.alignment`), reward models that are finished (`reward`).
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from triptych.errors import ModelError
from triptych.models.hub import first_line
from triptych.models.loading import LOAD_ERRORS, eight_bit, freeze, quiet_transformers
from triptych.models.sources import ModelSource
from triptych.seeding import stream_key

HEADS = ("score", "classifier", "pooler")
"""What a classifier may have that its backbone's checkpoint has not."""


def load_classifier(
    source: ModelSource, *, dtype: torch.dtype, device: torch.device, seed: int, quantisation: str | None = None
) -> PreTrainedModel:
    """The backbone in a folder with one output on top, frozen; a head that the folder has not is drawn from `seed`.

    Raises `ModelError` where the backbone's own weights are not complete, or transformers has no such classifier.
    """
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "local_files_only": True, "num_labels": 1}
    if quantisation is not None:
        options["quantization_config"] = eight_bit(source.spec)
    with quiet_transformers():
        try:
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                source.folder, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
        except LOAD_ERRORS as error:
            raise ModelError(f"model {source.spec} cannot carry a reward head: {first_line(error)}") from error
    model: PreTrainedModel = loaded[0]
    missing = {*loaded[1]["missing_keys"], *(entry[0] for entry in loaded[1]["mismatched_keys"])}
    if alien := sorted(name for name in missing if not any(f".{head}." in f".{name}" for head in HEADS)):
        raise ModelError(f"model {source.spec}: its weights lack {alien[0]}; choose a complete checkpoint")
    _draw_heads(model, missing, seed)
    return freeze(model, source.spec, device) if quantisation is None else model.requires_grad_(False).eval()


def _draw_heads(model: nn.Module, missing: set[str], seed: int) -> None:
    """Normal weights of 0.02, biases 0, each from the stream of its own name; the same at every load."""
    for name, parameter in model.named_parameters():
        if name in missing:
            generator = torch.Generator().manual_seed(stream_key(seed, "head", name) >> 1)
            drawn = torch.zeros(parameter.shape)
            parameter.data.copy_(drawn.normal_(0.0, 0.02, generator=generator) if parameter.dim() > 1 else drawn)
