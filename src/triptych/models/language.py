"""Causal language models: one call from a spec to a model that is ready to be read from.

Not here: generating (`triptych.decoding`), training (`triptych.alignment`), log-probabilities (`logprobs`).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from triptych.errors import ModelError
from triptych.models.hub import first_line
from triptych.models.loading import (
    LOAD_ERRORS,
    freeze,
    load_pretrained,
    load_tokenizer,
    quiet_transformers,
    read_config,
    resolve_device,
    resolve_dtype,
)
from triptych.models.sources import (
    ADAPTER_WEIGHTS,
    ModelSource,
    find_adapter,
    fingerprint,
    require_own_base,
    resolve_source,
)

_OTHER_HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model with its tokenizer: in evaluation mode, frozen, on one device."""

    model: nn.Module = field(repr=False)
    """A `PreTrainedModel`, or a `PeftModel` around one where an adapter was asked for (not merged)."""
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    """Has a pad token: its own or, for want of one, an EOS. Masks come from lengths all the same, never from it."""
    spec: str
    """What the user asked for: `starter`, a folder or a hub id."""
    eos_ids: frozenset[int]
    """Every token that ends a text, from the generation configuration, the configuration and the tokenizer."""
    fingerprint: str
    """16 hexadecimal digits that change with configuration, weights or adapter; for manifests."""
    revision: str | None = None
    """The commit of the hub repository; None for anything local."""
    adapter: str | None = None
    """The folder of the adapter; None without one."""

    @property
    def base(self) -> PreTrainedModel:
        """The transformers model, with the adapter's layers inside it where there is one."""
        return base_model(self.model)

    @property
    def config(self) -> PretrainedConfig:
        """The configuration of the transformers model."""
        return self.base.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self.base.dtype

    @property
    def context_length(self) -> int | None:
        """The longest sequence, prompt and completion together, in tokens; None where the model states none."""
        length = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return int(length) if length is not None else None

    @property
    def vocab_size(self) -> int:
        """The number of logits, which may exceed the number of tokens."""
        return _vocab_size(self.base)

    @property
    def pad_id(self) -> int:
        """What fills the end of short rows."""
        return _pad_id(self.tokenizer)


def load_language_model(
    spec: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    adapter: str | Path | None = None,
    quantisation: str | None = None,
) -> LanguageModel:
    """A causal language model from `starter`, a local folder or a hub id, with a PEFT adapter on top where asked for.

    `dtype` is `auto` (bf16 where the device has it in hardware, else fp32), `float32`, `bfloat16` or `float16`;
    `device` is `auto`, `cpu`, `cuda`, `cuda:1`, `mps`; `quantisation` is None or `8bit` (needs bitsandbytes); `adapter`
    is its folder, or a run directory that holds just one. Only safetensors are read and no code of a repository is run.

    Raises `ModelError`, `MissingInputError` or `ConfigError`, each with the remedy.
    """
    chosen_device = resolve_device(device)
    chosen_dtype = resolve_dtype(dtype, chosen_device)
    adapter_folder = find_adapter(Path(adapter).expanduser()) if adapter is not None else None
    source = resolve_source(str(spec))
    _require_causal(source)
    base = load_pretrained(AutoModelForCausalLM, source, chosen_dtype, chosen_device, quantisation=quantisation)
    tokenizer = load_tokenizer(source)
    eos_ids = _eos_ids(base, tokenizer)
    _require_fitting_tokenizer(source, base, tokenizer)
    _ensure_pad_token(source, base, tokenizer, eos_ids)
    if adapter_folder is not None:
        require_own_base(adapter_folder, source)
    model = base if adapter_folder is None else _with_adapter(base, adapter_folder, source.spec, chosen_device)
    return LanguageModel(
        model=model,
        tokenizer=tokenizer,
        spec=source.spec,
        eos_ids=eos_ids,
        fingerprint=fingerprint(source, adapter_folder),
        revision=source.revision,
        adapter=str(adapter_folder) if adapter_folder is not None else None,
    )


def base_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside `model`, which is it or a `PeftModel` around it."""
    if isinstance(model, PreTrainedModel):
        return model
    # PEFT takes seconds to import, and only adapters need it.
    from peft import PeftModel

    inner = model.get_base_model() if isinstance(model, PeftModel) else None
    if not isinstance(inner, PreTrainedModel):
        raise TypeError(f"expected a transformers model or a PeftModel around one, got {type(model).__name__}")
    return inner


def _require_causal(source: ModelSource) -> None:
    """Refuses what would load with a warning and a head that is random, or attend to the future."""
    for name in read_config(source).architectures or ():
        if str(name).endswith(_OTHER_HEADS):
            raise ModelError(f"model {source.spec} is a {name}, not a causal language model; choose another")


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """All ids that end a text: chat models name the end of their turn in only one of these three places."""
    configs = [model.generation_config, model.config.get_text_config()]
    named: list[Any] = [getattr(config, "eos_token_id", None) for config in configs]
    flat = [
        item for value in [*named, tokenizer.eos_token_id] for item in (value if isinstance(value, list) else [value])
    ]
    return frozenset(int(item) for item in flat if item is not None and 0 <= int(item) < _vocab_size(model))


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    pad: Any = tokenizer.pad_token_id
    return int(pad)


def _vocab_size(model: PreTrainedModel) -> int:
    return _rows(model.get_output_embeddings())


def _rows(embedding: Any) -> int:
    return int(embedding.weight.shape[0])


def _require_fitting_tokenizer(source: ModelSource, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    if (tokens := int(tokenizer.vocab_size)) > (rows := _rows(model.get_input_embeddings())):
        raise ModelError(
            f"model {source.spec}: its tokenizer has {tokens} tokens and its embedding {rows} rows; they do not belong "
            "together"
        )


def _ensure_pad_token(
    source: ModelSource, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, eos_ids: frozenset[int]
) -> None:
    """Gives the tokenizer a pad token that the model has a row for; it is never read, only computed on."""
    if tokenizer.pad_token is not None and _pad_id(tokenizer) < _vocab_size(model):
        return
    if not eos_ids:
        raise ModelError(
            f"model {source.spec} names no EOS token: no text of it would ever end; name one in config.json"
        )
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(min(eos_ids))


def _with_adapter(base: PreTrainedModel, folder: Path, spec: str, device: torch.device) -> nn.Module:
    """`base` with an adapter around it, every one of whose weights comes from the folder."""
    from safetensors import safe_open

    misfit = f"adapter {folder} does not fit model {spec}"
    with quiet_transformers():
        from peft import PeftModel, get_peft_model_state_dict

        try:
            model = PeftModel.from_pretrained(base, str(folder), is_trainable=False)
            with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
                stored = set(file.keys())
            # Embeddings may be a part of it; to find out, PEFT would ask the hub for the base's configuration.
            known = [set(get_peft_model_state_dict(model, save_embedding_layers=one)) for one in (False, True)]
        except LOAD_ERRORS as error:
            raise ModelError(f"{misfit}: {first_line(error)}") from error
    if stored not in known:
        differing = sorted(known[0] ^ stored)
        raise ModelError(f"{misfit}: {len(differing)} of its weights have no counterpart, such as {differing[0]}")
    return freeze(model if is_plain_lora(model) else _merged(model, folder), spec, device)


def is_plain_lora(model: Any) -> bool:
    """Whether all that an adapter does is to add x·Aᵀ·Bᵀ·scale to linear modules, which every engine here knows."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    return bool(layers) and all(
        isinstance(layer, LoraLayer) and layer.lora_A and not layer.lora_variant and not any(layer.lora_bias.values())
        for layer in layers
    )


def _merged(model: Any, folder: Path) -> nn.Module:
    """The base with any other kind of adapter (DoRA, IA³, trained embeddings, …) worked into its weights.

    Raises `ModelError` for kinds that are no change of weights, such as prompt tuning.
    """
    kind = str(getattr(model.active_peft_config.peft_type, "value", ""))
    try:
        with quiet_transformers():
            merged: nn.Module = model.merge_and_unload()
    except (AttributeError, NotImplementedError, ValueError) as error:
        raise ModelError(
            f"adapter {folder} is of the kind {kind}, which cannot be merged into weights; choose a LoRA or its kin"
        ) from error
    return merged
