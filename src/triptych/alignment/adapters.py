"""LoRA through PEFT: putting it on a model with weights of our own drawing, saving it, and merging it into its base.

Adapters are written as PEFT writes them, so that plain PEFT reads them. Not here: training them, loading them for use
(`triptych.models`).
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

from triptych.config import Config
from triptych.errors import ModelError
from triptych.files import atomic_path, atomic_write_json
from triptych.models.hub import first_line
from triptych.models.loading import LOAD_ERRORS, quiet_transformers
from triptych.models.sources import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from triptych.seeding import stream_key

TaskType = Literal["CAUSAL_LM", "SEQ_CLS"]


class LoraConfig(Config):
    """A low-rank update x·Aᵀ·Bᵀ·alpha/rank of linear modules (Hu et al. 2021)."""

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0.0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Of the input of the update, in training alone."""
    targets: tuple[str, ...] | Literal["all-linear"] | None = None
    """Names of modules, such as `q_proj`; None takes PEFT's choice for the architecture (Llama: q_proj, v_proj)."""


def with_lora(
    model: nn.Module, config: LoraConfig, *, task: TaskType, spec: str, seed: int, heads: Sequence[str] = ()
) -> nn.Module:
    """`model` with LoRA on it: A drawn from a stream of `seed`, B zero, both fp32; the model itself stays frozen.

    A classifier's `heads`, modules by name, are trained and saved as a whole beside it.

    Raises `ModelError` where the model has no module of those names.
    """
    with quiet_transformers():
        # Takes seconds.
        import peft

    targets = list(config.targets) if isinstance(config.targets, tuple) else config.targets
    # PEFT draws first weights from torch's global generator, which is put back; they are drawn again below.
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        try:
            settings = peft.LoraConfig(
                r=config.rank,
                lora_alpha=cast(int, config.alpha),  # PEFT divides by the rank: any number serves
                lora_dropout=config.dropout,
                target_modules=targets,
                task_type=task,
                modules_to_save=list(heads) or None,
                base_model_name_or_path=spec,
            )
            wrapped = peft.get_peft_model(model, settings)
        except LOAD_ERRORS as error:
            names = ", ".join(
                sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear)})
            )
            raise ModelError(
                f"LoRA does not fit model {spec}: {first_line(error)}; name modules it has, such as {names or 'none'}"
            ) from error
    # PEFT records where the model was loaded from, which is a cache folder of this machine.
    wrapped.peft_config["default"].base_model_name_or_path = spec
    _draw(wrapped, seed)
    # PEFT leaves its dropout on.
    return wrapped.eval()


def _draw(model: nn.Module, seed: int) -> None:
    """A uniform in ±1/√in (as PEFT draws it, from its Kaiming rule), each from the stream of its own name."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ".lora_A." in name:
            generator = torch.Generator().manual_seed(stream_key(seed, "lora", name) >> 1)
            bound = 1.0 / math.sqrt(parameter.shape[1])
            drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            parameter.data.copy_(drawn)


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """What PEFT saves of a model, by its names, as contiguous tensors on the CPU."""
    from peft import get_peft_model_state_dict

    # Embeddings are frozen; to find out, PEFT would ask the hub for the base's configuration.
    state: Mapping[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def save_adapter(model: Any, folder: Path) -> None:
    """`adapter_model.safetensors` and `adapter_config.json`, each whole or not at all."""
    with atomic_path(folder / ADAPTER_WEIGHTS) as path:
        save_file(adapter_state(model), path, metadata={"format": "pt"})
    atomic_write_json(folder / ADAPTER_CONFIG, _plain(model.peft_config["default"].to_dict()))


def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Puts saved weights into a model that has the same LoRA on it."""
    from peft import set_peft_model_state_dict

    with quiet_transformers():
        set_peft_model_state_dict(model, dict(state))


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """As PEFT writes them: sets become sorted lists, enumerations their values."""
    return {
        key: sorted(value) if isinstance(value, set) else getattr(value, "value", value)
        for key, value in settings.items()
        if not isinstance(value, dict) or value or key.endswith("_pattern")
    }
