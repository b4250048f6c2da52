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
    heads = head_names(model)
    if alien := sorted(name for name in missing if not set(name.split(".")) & set(heads)):
        raise ModelError(f"model {source.spec}: its weights lack {alien[0]}; choose a complete checkpoint")
    _draw_heads(model, missing, seed)
    return freeze(model, source.spec, device) if quantisation is None else model.requires_grad_(False).eval()


def head_names(model: PreTrainedModel) -> list[str]:
    """The modules with weights beside the backbone, and the pooler in it: what a backbone's checkpoint may lack."""
    beside = [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and next(module.parameters(), None) is not None
    ]
    has_pooler = any(name.endswith(".pooler") for name, _ in model.named_modules())
    return [*beside, *(["pooler"] if has_pooler and "pooler" not in beside else [])]


def _draw_heads(model: nn.Module, missing: set[str], seed: int) -> None:
    """Matrices are normal of 0.02, each from the stream of its own name, biases 0, norms 1: the same at every load."""
    for name, parameter in model.named_parameters():
        if name not in missing:
            continue
        if parameter.dim() > 1:
            generator = torch.Generator().manual_seed(stream_key(seed, "head", name) >> 1)
            parameter.data.copy_(torch.zeros(parameter.shape).normal_(0.0, 0.02, generator=generator))
        else:
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)
