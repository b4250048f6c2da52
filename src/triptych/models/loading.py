"""What loading any pretrained model has in common: dtype and device by name, quiet, and errors in one sentence.

Not here: what a model is for (`language`, `reward`), where it comes from (`sources`).
"""

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from triptych.errors import ConfigError, ModelError, suggestion
from triptych.models.hardware import detect_hardware
from triptych.models.hub import first_line
from triptych.models.sources import TOKENIZER_FILES, ModelSource

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}

Model = TypeVar("Model", bound=nn.Module)

LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError)
"""What transformers and its tokenizers raise on a damaged or unknown model."""


def resolve_device(device: str | torch.device) -> torch.device:
    """`auto` is the first CUDA device, else the CPU (Apple's `mps` only by name); anything else as torch names it.

    Raises `ConfigError` where this machine has no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device '{device}' is unknown{suggestion(str(device), ['auto', *_available()])}") from error
    if chosen.type not in _available() or (chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(f"device '{device}' is not on this machine; choose one of: auto, {', '.join(_available())}")
    return chosen


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """`auto` is bf16 where the device computes it in hardware (CUDA, CPUs with AMX or AVX-512 BF16), else fp32.

    Raises `ConfigError` for an unknown name.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        native = device.type == "cuda" or (device.type == "cpu" and detect_hardware().has_native_bf16)
        return torch.bfloat16 if native else torch.float32
    if dtype not in DTYPES:
        raise ConfigError(f"dtype '{dtype}' is unknown{suggestion(dtype, ['auto', *DTYPES])}")
    return DTYPES[dtype]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps progress bars, advice and warnings of transformers, PEFT and bitsandbytes off the terminal, for a while.

    What matters among the warnings (weights that are missing or left over) is checked by whoever loads.
    """
    verbosity = transformers_logging.get_verbosity()
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    # PEFT imports it where it is installed, and it then tells of kernels that it did not find.
    bitsandbytes = logging.getLogger("bitsandbytes")
    level = bitsandbytes.level
    bitsandbytes.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        bitsandbytes.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()


def load_pretrained(
    auto_class: Any,
    source: ModelSource,
    dtype: torch.dtype,
    device: torch.device,
    *,
    quantisation: str | None = None,
) -> PreTrainedModel:
    """The model in a folder, complete, in evaluation mode, frozen, on its device.

    `auto_class` is one of transformers' `AutoModelFor…`. Attention is torch's own (SDPA) where the model knows it.

    Raises `ModelError` where the weights are damaged, do not fit the configuration or leave anything to chance: what
    a checkpoint lacks would be initialised at random, and only a warning would say so.
    """
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "local_files_only": True}
    # Shapes that differ are reported rather than raised, because what is raised does not say which.
    options |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
    if quantisation is not None:
        options["quantization_config"] = eight_bit(source.spec)
    with quiet_transformers():
        try:
            model, report = _with_best_attention(auto_class, source.folder, options)
        except SafetensorError as error:
            raise ModelError(
                f"model {source.spec}: its safetensors are damaged ({first_line(error)}); fetch the model again"
            ) from error
        except LOAD_ERRORS as error:
            raise ModelError(f"model {source.spec} cannot be loaded: {first_line(error)}") from error
    _require_complete(source.spec, type(model).__name__, report)
    # bitsandbytes puts its weights where they belong by itself.
    return freeze(model, source.spec, device) if quantisation is None else model.eval().requires_grad_(False)


def eight_bit(spec: str) -> BitsAndBytesConfig:
    """The settings that load a model in 8 bit; `ModelError` where bitsandbytes is not installed."""
    if find_spec("bitsandbytes") is None:
        raise ModelError(f"model {spec} in 8 bit needs bitsandbytes: pip install 'triptych[quantised]'")
    return BitsAndBytesConfig(load_in_8bit=True)


def freeze(model: Model, spec: str, device: torch.device) -> Model:
    """The model on its device, in evaluation mode, no parameter asking for a gradient."""
    try:
        model.to(device)
    except torch.OutOfMemoryError as error:
        raise ModelError(f"model {spec} does not fit into the memory of {device}; load it on the CPU") from error
    model.eval().requires_grad_(False)
    return model


def read_config(source: ModelSource) -> PretrainedConfig:
    """The configuration in a model folder; `ModelError` where transformers knows no such model."""
    with quiet_transformers():
        try:
            config: PretrainedConfig = AutoConfig.from_pretrained(source.folder, local_files_only=True)
        except LOAD_ERRORS as error:
            raise ModelError(f"model {source.spec} has an unusable config.json: {first_line(error)}") from error
    return config


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer in a model folder; `ModelError` where there is none or it cannot be read."""
    if not any((source.folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(f"model {source.spec} has no tokenizer ({', '.join(TOKENIZER_FILES)}); save one beside it")
    with quiet_transformers():
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.folder, local_files_only=True)
        except LOAD_ERRORS as error:
            raise ModelError(
                f"model {source.spec}: its tokenizer cannot be read ({first_line(error)}); fetch it again"
            ) from error
    return tokenizer


def _require_complete(spec: str, kind: str, report: Mapping[str, Any]) -> None:
    if mismatched := sorted(report["mismatched_keys"]):
        name, stored, expected = mismatched[0]
        raise ModelError(
            f"model {spec}: {name} is {_shape(stored)} in its weights and {_shape(expected)} by its config.json; "
            "they do not belong together"
        )
    if missing := sorted(report["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"model {spec}: its weights lack {missing[0]}{more}, which {kind} needs; choose a checkpoint of this kind"
        )


def _shape(sizes: Iterable[int]) -> str:
    return " x ".join(str(size) for size in sizes)


def _with_best_attention(auto_class: Any, folder: Path, options: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    try:
        loaded = auto_class.from_pretrained(folder, attn_implementation="sdpa", **options)
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        loaded = auto_class.from_pretrained(folder, **options)
    return loaded[0], loaded[1]


def _available() -> list[str]:
    cuda = ["cuda"] if torch.cuda.is_available() else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ["cpu", *cuda, *mps]
