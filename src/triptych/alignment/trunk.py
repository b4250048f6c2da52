"""A model's body in training: by the fused path where that can train it, else by transformers and autograd.

Not here: heads (`head`), what is trained with it (`policy`, `scorers`).
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from triptych.alignment.adapters import LoraConfig
from triptych.alignment.backends.fused import FusedTrunk, supports
from triptych.alignment.backends.generic import GenericTrunk
from triptych.alignment.packing import Group, Packed, pack
from triptych.errors import ConfigError
from triptych.lanes import Lanes
from triptych.models.hub import first_line

logger = logging.getLogger(__name__)


class Trunk(NamedTuple):
    """A model's body: from packed tokens to the states that its head reads."""

    run: Callable[[Packed, bool, torch.Generator | None], Tensor]
    """(packed, with LoRA, dropout masks) → states [T, H]."""
    states: Callable[[Tensor], Tensor]
    """What still has to be done to selected states: the final norm, where the body leaves it out."""
    path: str
    shares_prefix: bool
    lanes: Lanes
    """For passes side by side: the fused path changes nothing that another pass reads; modules may."""


def make_trunk(
    base: Any,
    model: nn.Module,
    trainable: Sequence[str],
    *,
    lora: LoraConfig | None,
    checkpointing: bool = False,
    share_prefix: bool = True,
    path: str | None = None,
    as_written: bool = False,
) -> Trunk:
    """The body of `base`, which lies inside `model`: by the fused path where that can train it, else generic.

    `as_written`: the fused path reads by the arithmetic that the decoding engine writes with.

    Raises `ConfigError` for a path the model has not.
    """
    if path not in (None, "fused", "generic"):
        raise ConfigError(f"training path '{path}' is unknown; choose fused or generic")
    can_fuse = supports(base, trainable)
    if path == "fused" and not can_fuse:
        raise ConfigError("this model has no fused training path (Llama on CPU with LoRA has); choose generic")
    body = base.base_model
    if can_fuse and path != "generic":
        dropout = 0.0 if lora is None else lora.dropout
        fused = FusedTrunk(body, dropout=dropout, checkpoint=checkpointing, as_written=as_written)

        def run(packed: Packed, use_lora: bool, generator: torch.Generator | None) -> Tensor:
            return fused.hidden(packed, use_lora=use_lora, generator=generator)

        def normed(states: Tensor) -> Tensor:
            normal: Tensor = F.rms_norm(states, states.shape[-1:], body.norm.weight.float(), base.config.rms_norm_eps)
            return normal

        return Trunk(run, normed, "fused", share_prefix, Lanes())
    return _generic_trunk(base, body, model, checkpointing, share_prefix)


def _generic_trunk(base: Any, body: nn.Module, model: Any, checkpointing: bool, share_prefix: bool) -> Trunk:
    dropouts = lora_dropouts(body)
    if checkpointing:
        recompute_layers(body, dropouts)
    weight = next(base.parameters())
    # fp32 weights that train on a GPU compute in bf16; a base in bf16 needs no autocast but for its fp32 LoRA.
    compute = torch.bfloat16 if weight.dtype == torch.bfloat16 or weight.dtype == torch.int8 else None
    shares = share_prefix and shares_prefixes(body, compute)
    trunk = GenericTrunk(body, compute_dtype=compute, shares_prefix=shares)

    def run(packed: Packed, use_lora: bool, generator: torch.Generator | None) -> Tensor:
        off = model.disable_adapter() if not use_lora and hasattr(model, "disable_adapter") else nullcontext()
        with off, dropping(dropouts, generator is not None), seeded(generator):
            return trunk.hidden(packed)

    return Trunk(run, lambda states: states, "generic", shares, Lanes(1))


def lora_dropouts(model: nn.Module) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if ".lora_dropout." in name]


@contextmanager
def dropping(dropouts: Sequence[nn.Module], is_on: bool) -> Iterator[None]:
    """The LoRA's dropout on or off. The base's own stays off: it is compared with the reference."""
    try:
        for module in dropouts:
            module.train(is_on)
        yield
    finally:
        for module in dropouts:
            module.eval()


def recompute_layers(body: nn.Module, dropouts: Sequence[nn.Module]) -> None:
    """Layers keep their inputs alone, and the backward pass computes the rest again, dropping what was dropped before.

    By hand: transformers does so in training mode alone, which turns on the base's own dropout.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    def recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*args, **options)
            again = dropping(dropouts, any(module.training for module in dropouts))
            return checkpoint(forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), again), **options)

        return run

    layer: Any
    for layer in body.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.forward = recomputing(layer.forward)


@contextmanager
def seeded(generator: torch.Generator | None) -> Iterator[None]:
    """PEFT's dropout draws from torch's global generator: it is set from ours, and put back."""
    if generator is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))  # noqa: TID251 - put back at once
        yield


def shares_prefixes(body: Any, compute: torch.dtype | None) -> bool:
    """Whether the body reads completions behind one prompt as it reads separate rows; if not, it is logged why."""
    reason = why_apart(body, compute)
    if reason is not None:
        logger.info("prompts are not shared: %s %s", type(body).__name__, reason)
    return reason is None


@torch.no_grad()
def why_apart(body: Any, compute: torch.dtype | None) -> str | None:
    """Why completions must not stand behind one prompt; None where they may.

    Tried on a few tokens, because no configuration says it. A leak of one completion into another can be small, and
    rounding hides it; but what is not seen changes not a single bit, and that is what is asked for. Windows are longer
    than any trial, and a mask of our own would switch them off: layers that have one rule sharing out.
    """
    if "position_ids" not in inspect.signature(body.forward).parameters:
        return "takes no positions"
    config = body.config.get_text_config()
    if getattr(config, "sliding_window", None) or set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        return "has layers that do not see the whole text"
    prompt, one, other, changed = (1, 2, 3), (1, 4), (2, 3), (3, 1)
    packed = pack([Group(prompt, (one, other))])
    apart = pack([Group(prompt, (one, other))], share_prefix=False)
    # Outside the attempt: a model that cannot read plain rows either is broken, and its own error says how.
    separate = GenericTrunk(body, compute_dtype=compute, shares_prefix=False).hidden(apart)[apart.last].float()
    trunk = GenericTrunk(body, compute_dtype=compute, shares_prefix=True)
    try:
        shared = trunk.hidden(packed)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError) as error:
        return f"takes no mask of its own ({first_line(error)})"
    beside = trunk.hidden(pack([Group(prompt, (changed, other))]))
    if not torch.equal(shared[[0, 1, 2, 5, 6]], beside[[0, 1, 2, 5, 6]]):
        return "lets completions see one another"
    shifted = trunk.hidden(packed._replace(positions=packed.positions + (packed.positions >= len(prompt)).long()))
    if torch.equal(shared, shifted):
        return "does not heed its positions"
    # A gross check alone: in bf16, packed and separate rows differ by a per cent.
    is_same = (shared[packed.last].float() - separate).abs().max() <= 0.05 * separate.abs().max()
    return None if is_same else "reads a packed row differently"
