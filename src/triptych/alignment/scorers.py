"""A backbone with a head of one output, in training or in use: from token ids to scores with gradients.

A decoder is scored at the last token of each answer, found by its place and not by a pad id, and computes a prompt once
for all its answers. An encoder looks both ways, so that a prompt's states depend on the answer behind it: it reads rows
of prompt and answer, in fp32, and its own head makes the score. Not here: what a score is trained on (`reward_model`).
"""

import inspect
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from triptych.alignment.adapters import LoraConfig
from triptych.alignment.encoding import Kind
from triptych.alignment.packing import Group
from triptych.alignment.packing import pack as pack_groups
from triptych.alignment.trunk import dropping, lora_dropouts, make_trunk, recompute_layers, seeded
from triptych.errors import ConfigError, ModelError
from triptych.lanes import Lanes


@runtime_checkable
class Scorer(Protocol):
    """What reward modelling needs of a model."""

    model: Any
    """As PEFT or transformers has it, to be saved."""
    parameters: dict[str, nn.Parameter]
    path: str
    device: torch.device
    lanes: Lanes
    """For passes side by side."""

    def scores(self, groups: Sequence[Group], generator: torch.Generator | None = None) -> Tensor:
        """One a completion, in order, fp32; `generator` draws dropout masks, None is evaluation."""


class DecoderScorer:
    """A decoder with one linear output over its last token."""

    def __init__(
        self,
        model: nn.Module,
        base: Any,
        *,
        lora: LoraConfig | None = None,
        checkpointing: bool = False,
        share_prefix: bool = True,
        path: str | None = None,
    ) -> None:
        self.model = model
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.device: torch.device = base.device
        self._head = _head_weight(base.score)
        body_names = [name for name in self.parameters if ".modules_to_save." not in name]
        self._trunk = make_trunk(
            base, model, body_names, lora=lora, checkpointing=checkpointing, share_prefix=share_prefix, path=path
        )
        self.path = self._trunk.path
        self.lanes = self._trunk.lanes

    def scores(self, groups: Sequence[Group], generator: torch.Generator | None = None) -> Tensor:
        packed = pack_groups(groups, share_prefix=self._trunk.shares_prefix)
        hidden = self._trunk.run(packed, True, generator)
        states = self._trunk.states(hidden[packed.last.to(hidden.device)])
        return F.linear(states.float(), self._head.float())[:, 0]


def _head_weight(head: Any) -> nn.Parameter:
    """[1, H]; of PEFT's trained copy where there is one."""
    active = head.modules_to_save[head.active_adapters[0]] if hasattr(head, "modules_to_save") else head
    weight: nn.Parameter = active.weight
    return weight


class EncoderScorer:
    """An encoder with the head that transformers gives it, on padded rows."""

    path = "generic"

    def __init__(
        self, model: nn.Module, base: Any, tokenizer: PreTrainedTokenizerBase, *, checkpointing: bool = False
    ) -> None:
        self.model = model
        self._base = base
        self.device: torch.device = base.device
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._dropouts = lora_dropouts(model)
        # Its modules are switched between training and use while they run.
        self.lanes = Lanes(1)
        if checkpointing:
            recompute_layers(base, self._dropouts)
        pad: Any = tokenizer.pad_token_id
        self._pad = 0 if pad is None else int(pad)
        self._has_types = _tells_parts_apart(base, tokenizer)

    def scores(self, groups: Sequence[Group], generator: torch.Generator | None = None) -> Tensor:
        rows = [(group.prompt, answer) for group in groups for answer in group.completions]

        def padded(values: list[Tensor], filler: int) -> Tensor:
            return pad_sequence(values, batch_first=True, padding_value=filler).to(self.device)

        inputs = {
            "input_ids": padded([torch.tensor([*prompt, *answer]) for prompt, answer in rows], self._pad),
            "attention_mask": padded([torch.ones(len(prompt) + len(answer)).long() for prompt, answer in rows], 0),
        }
        if self._has_types:
            types = [torch.tensor([0] * len(prompt) + [1] * len(answer)) for prompt, answer in rows]
            inputs["token_type_ids"] = padded(types, 0)
        with dropping(self._dropouts, generator is not None), seeded(generator):
            logits: Tensor = self._base(**inputs).logits
        return logits[:, 0].float()


def _tells_parts_apart(base: Any, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the model is told which tokens are of the answer: 0 up to it and 1 from there on."""
    joined: Any = tokenizer("a", "b")
    types = joined.get("token_type_ids")
    if types is None or not any(types) or "token_type_ids" not in inspect.signature(base.forward).parameters:
        return False
    before = joined.sequence_ids(0).index(1)
    if types != [0] * before + [1] * (len(types) - before):
        raise ModelError(f"{tokenizer.name_or_path} marks prompt and answer in a way that is not known here: {types}")
    return True


def kind_of(base: Any, tokenizer: PreTrainedTokenizerBase, spec: str) -> Kind:
    """Whether a classifier is a decoder or an encoder. Raises `ModelError` where it is neither."""
    if isinstance(getattr(base, "score", None), nn.Module):
        return "decoder"
    if base.config.is_encoder_decoder:
        raise ModelError(f"model {spec} is an encoder-decoder; choose a decoder or an encoder as a reward model")
    if not tokenizer.is_fast:
        raise ModelError(f"the tokenizer of {spec} does not say which tokens are of the answer; choose one that does")
    return "encoder"


def make_scorer(
    model: nn.Module,
    base: Any,
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    *,
    lora: LoraConfig | None = None,
    checkpointing: bool = False,
    share_prefix: bool = True,
    path: str | None = None,
) -> Scorer:
    """The scorer of a classifier `base`, which lies inside `model`.

    Raises `ConfigError` for a path the model has not.
    """
    if kind == "encoder":
        if path not in (None, "generic"):
            raise ConfigError(f"an encoder has no training path '{path}'; choose generic")
        return EncoderScorer(model, base, tokenizer, checkpointing=checkpointing)
    return DecoderScorer(model, base, lora=lora, checkpointing=checkpointing, share_prefix=share_prefix, path=path)
