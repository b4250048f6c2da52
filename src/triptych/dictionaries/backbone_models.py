"""Which backbones are trained on the spot, how large they are, and how they begin: a ResNet and a ViT of transformers.

transformers' ResNet begins with a 7 × 7 convolution of stride 2 and a pooling of stride 2, and no setting leaves them
out: at 32 pixels its first stage would see 8 × 8 places. Such images are enlarged instead (`image_size: 64`), so that
it sees 16 × 16; the weights stay loadable by everybody, and both backbones look at the same pixels.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel, ResNetModel, ViTModel
from transformers import ResNetConfig as HFResNetConfig
from transformers import ViTConfig as HFViTConfig

from triptych.config import Config
from triptych.errors import ConfigError
from triptych.models.loading import quiet_transformers
from triptych.seeding import stream_key


class ResNetPlan(Config):
    """A ResNet of basic layers (He et al. 2016), as transformers' ResNetModel has it."""

    stem: int = Field(default=16, ge=1)
    """Channels of the first convolution."""
    hidden_sizes: tuple[int, ...] = Field(default=(64, 128, 256), min_length=1)
    """Channels of each stage; every stage but the first halves height and width."""
    depths: tuple[int, ...] = Field(default=(1, 1, 1), min_length=1)
    """Layers of two convolutions in each stage."""
    epochs: int = Field(default=4, ge=1)
    batch_size: int | None = Field(default=None, ge=2)
    """None: that of both."""
    learning_rate: float = Field(default=4e-3, gt=0.0)


class ViTPlan(Config):
    """A vision transformer (Dosovitskiy et al. 2021), as transformers' ViTModel has it, without its pooler."""

    hidden_size: int = Field(default=192, ge=4)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=3, ge=1)
    mlp_ratio: float = Field(default=2.0, gt=0.0)
    """Width of the hidden layer between attentions, in hidden sizes."""
    patch_size: int = Field(default=16, ge=1)
    """In pixels. Halving it takes four times the time, and over more patches a ViT takes longer to find shapes."""
    epochs: int = Field(default=8, ge=1)
    batch_size: int | None = Field(default=128, ge=2)
    """None: that of both."""
    learning_rate: float = Field(default=2e-3, gt=0.0)


class BackboneConfig(Config):
    """Both backbones and how they are trained. The defaults are for the starter images; for photographs see CIFAR10."""

    resnet: ResNetPlan = ResNetPlan()
    vit: ViTPlan = ViTPlan()
    image_size: int | None = Field(default=None, ge=8)
    """Height and width that images are resized to; None: the shorter side of the first image."""
    batch_size: int = Field(default=64, ge=2)
    """Of what does not name its own."""
    weight_decay: float = Field(default=0.05, ge=0.0)
    label_smoothing: float = Field(default=0.1, ge=0.0, lt=1.0)
    warmup: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the steps over which the learning rate rises."""
    shift: int = Field(default=2, ge=0)
    """Largest random shift in each direction, in pixels."""
    flip: bool = False
    """Mirror every other image at random: for photographs, not where left and right are told apart."""
    max_minutes: float | None = Field(default=None, gt=0.0)
    """Of both together: the ResNet gets a third of it at most and the ViT what is left. Epochs are planned to fit, by
    the time of those before, so that what is trained then depends on the machine. None: all epochs."""


CIFAR10: Mapping[str, Any] = {
    "image_size": 64,
    "batch_size": 128,
    "shift": 6,
    "flip": True,
    "max_minutes": 20.0,
    "resnet": {"stem": 32, "hidden_sizes": [64, 128, 256], "depths": [1, 1, 1], "epochs": 10, "learning_rate": 4e-3},
    "vit": {"hidden_size": 192, "layers": 6, "heads": 3, "patch_size": 8, "epochs": 8, "learning_rate": 1e-3},
}
"""Settings for CIFAR-10: 32 × 32, enlarged to 64 × 64, where patches of 8 are 4 pixels of the original."""


# --- families ---------------------------------------------------------------------------------------------------------


@runtime_checkable
class Family(Protocol):
    """What differs between the two."""

    @property
    def name(self) -> Literal["resnet", "vit"]: ...

    def build(self, config: BackboneConfig, size: int, device: torch.device, seed: int) -> PreTrainedModel: ...

    def width(self, config: BackboneConfig) -> int: ...

    def pooled(self, backbone: nn.Module, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]: ...


@final
class _ResNet:
    """Its feature is the global average of the last stage."""

    name: Literal["resnet"] = "resnet"

    def width(self, config: BackboneConfig) -> int:
        return config.resnet.hidden_sizes[-1]

    def build(self, config: BackboneConfig, size: int, device: torch.device, seed: int) -> PreTrainedModel:
        plan = config.resnet
        if len(plan.hidden_sizes) != len(plan.depths):
            raise ConfigError(
                f"resnet.depths has {len(plan.depths)} numbers for the {len(plan.hidden_sizes)} stages of "
                "resnet.hidden_sizes; give one a stage"
            )
        options: dict[str, Any] = {"hidden_sizes": list(plan.hidden_sizes), "depths": list(plan.depths)}
        options |= {"embedding_size": plan.stem, "layer_type": "basic"}
        model = _drawn(ResNetModel, HFResNetConfig(**options), seed)
        return model.to(device, memory_format=torch.channels_last)  # type: ignore[no-any-return]

    def pooled(self, backbone: nn.Module, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        pooled: Tensor = backbone(pixels).pooler_output.flatten(1)
        return pooled


@final
class _ViT:
    """Its feature is the state of the CLS token after the last norm."""

    name: Literal["vit"] = "vit"

    def width(self, config: BackboneConfig) -> int:
        return config.vit.hidden_size

    def build(self, config: BackboneConfig, size: int, device: torch.device, seed: int) -> PreTrainedModel:
        plan = config.vit
        if size % plan.patch_size:
            raise ConfigError(
                f"vit.patch_size = {plan.patch_size} does not divide the image size {size}; choose another"
            )
        if plan.hidden_size % plan.heads or plan.hidden_size % 4:
            raise ConfigError(
                f"vit.hidden_size = {plan.hidden_size} must be a multiple of vit.heads = {plan.heads} and of 4"
            )
        options: dict[str, Any] = {"image_size": size, "patch_size": plan.patch_size, "hidden_size": plan.hidden_size}
        options |= {"num_hidden_layers": plan.layers, "num_attention_heads": plan.heads}
        options |= {"intermediate_size": round(plan.hidden_size * plan.mlp_ratio)}
        # Over 65 tokens, SDPA takes twice the time of plain products on a CPU. No part of what is saved.
        options |= {"attn_implementation": "eager" if device.type == "cpu" else "sdpa"}
        model = _drawn(ViTModel, HFViTConfig(**options), seed, add_pooling_layer=False)
        table = sine_positions(size // plan.patch_size, plan.hidden_size)
        with torch.no_grad():
            model.embeddings.position_embeddings[0, 1:] = POSITION_SCALE * table
        model.embeddings.register_forward_hook(_as_autocast)
        return model.to(device)  # type: ignore[no-any-return]

    def pooled(self, backbone: nn.Module, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        state: Tensor = backbone(pixels).last_hidden_state[:, 0]
        return state


POSITION_SCALE = 0.5


def _as_autocast(module: nn.Module, arguments: object, states: Tensor) -> Tensor:
    """States in the number format of autocast, so that the layers do not convert them time and again (a fifth faster).

    A hook, and so no part of what is saved.
    """
    kind = states.device.type
    return states.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else states


FAMILIES: tuple[Family, ...] = (_ResNet(), _ViT())


def _drawn(model_class: Any, config: Any, seed: int, **options: Any) -> Any:
    """A model whose weights depend on the seed alone, each drawn from the stream of its own name.

    Normal with variance 2 / fan out for ResNets (He et al. 2015) and 1 / fan in for ViTs: their usual deviation of 0.02
    is for widths of 768 and more, and narrow ones learn from it slowly. Norms and biases keep their ones and zeros.
    """
    # The constructor draws from torch's global generator; nobody else's draws may move by that.
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        model = model_class(config, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                stream = torch.Generator().manual_seed(stream_key(seed, "backbone", config.model_type, name) >> 1)
                nn.init.normal_(parameter, std=_deviation(name, parameter, config.model_type), generator=stream)
    return model


def _deviation(name: str, parameter: Tensor, model_type: str) -> float:
    if model_type == "resnet":
        return math.sqrt(2.0 / (parameter.shape[0] * parameter[0, 0].numel()))
    return 0.02 if parameter.shape[0] == 1 else 1.0 / math.sqrt(parameter[0].numel())


def sine_positions(grid: int, width: int) -> Float[Tensor, "p d"]:
    """Sines and cosines of a place's row and column, a quarter of the features each (`p` = grid²).

    A ViT must else learn from few images which places are neighbours. Source: Chen et al. 2021 (MoCo v3), Beyer et al.
    2022.
    """
    omega = 1.0 / 10_000 ** (torch.arange(width // 4) / max(1, width // 4 - 1))
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    angles = [place.reshape(-1, 1) * omega for place in (rows, columns)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
