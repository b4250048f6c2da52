"""A causal language model in training: log-probabilities with gradients, the reference beside it, and its weights.

The reference is the original base, always: the same model with the LoRA switched off, or for full fine-tuning a second
copy of the base. Not here: running the body (`trunk`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.alignment.adapters import LoraConfig, with_lora
from triptych.alignment.head import TokenComparison, TokenLogprobs, any_head, compare_heads, frozen_head
from triptych.alignment.packing import Group, Packed, pack
from triptych.alignment.trunk import Trunk, make_trunk
from triptych.errors import ConfigError, ModelError
from triptych.models import LanguageModel

# What architectures do to their logits, by the name in their configuration.
_ADJUSTMENTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "final_logit_softcapping": lambda logits, cap: cap * torch.tanh(logits / cap),
    "logits_scaling": lambda logits, scale: logits / scale,
    "logit_scale": lambda logits, scale: logits * scale,
}


class Policy:
    """A language model with trainable weights.

    Args:
        lm: the base, frozen; its weights are changed by full fine-tuning alone.
        lora: None trains all weights, which must be fp32.
        seed: of the LoRA's first weights and of dropout.
        checkpointing: keep only the layers' inputs and compute the rest again in the backward pass.
        share_prefix: compute a prompt once for all its completions, where the model can.
        path: `fused` or `generic`; None takes the fused path where the model has one.
        load_reference: for full fine-tuning, loads another copy of the base.
        as_written: read texts by the arithmetic that the decoding engine writes them with, where the path can.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        lora: LoraConfig | None,
        seed: int,
        checkpointing: bool = False,
        share_prefix: bool = True,
        path: str | None = None,
        load_reference: Callable[[], LanguageModel] | None = None,
        as_written: bool = False,
    ) -> None:
        self.lm = lm
        self.seed = seed
        self._load_reference = load_reference
        self._reference: tuple[LanguageModel, Trunk] | None = None
        base: Any = lm.base
        require_known_head(base, lm.spec)
        if lora is None:
            require_full_precision(lm)
            base.requires_grad_(True)
            self.model: nn.Module = base
        else:
            self.model = with_lora(base, lora, task="CAUSAL_LM", spec=lm.spec, seed=seed)
        self.has_lora = lora is not None
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.trunk = make_trunk(
            base,
            self.model,
            [*self.parameters],
            lora=lora,
            checkpointing=checkpointing,
            share_prefix=share_prefix,
            path=path,
            as_written=as_written,
        )

    @property
    def trained(self) -> LanguageModel:
        """The model as it is now, for the decoding engine."""
        from dataclasses import replace

        return replace(self.lm, model=self.model)

    def pack(self, groups: Sequence[Group]) -> Packed:
        """Groups for one pass, sharing prompts where the model can."""
        return pack(groups, share_prefix=self.trunk.shares_prefix)

    def logprobs(
        self, packed: Packed, *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> TokenLogprobs:
        """Of the completion tokens, with gradients; `generator` draws dropout masks, None is evaluation."""
        hidden = self.trunk.run(packed, True, generator)
        return self._read(self._selected(hidden, packed, self.trunk), packed, temperature)

    @torch.no_grad()
    def reference_logprobs(self, packed: Packed, *, temperature: float = 1.0) -> Tensor:
        """Under the original base, [t]."""
        lm, trunk = self._reference_model()
        hidden = self._selected(trunk.run(packed, False, None), packed, trunk)
        weight = plain_head(lm.base, hidden.dtype)
        targets = packed.targets.to(hidden.device)
        if weight is not None and self.has_lora:
            return frozen_head(hidden, weight, targets, temperature).logprobs
        return any_head(hidden, logits_of(lm.base), targets, temperature).logprobs

    @torch.no_grad()
    def compare(self, packed: Packed) -> TokenComparison:
        """Policy and reference on the completion tokens, with the exact KL of each prediction."""
        lm, trunk = self._reference_model()
        mine = self._selected(self.trunk.run(packed, True, None), packed, self.trunk)
        other = self._selected(trunk.run(packed, False, None), packed, trunk)
        return compare_heads(mine, other, logits_of(self.lm.base), logits_of(lm.base), packed.targets.to(mine.device))

    @torch.no_grad()
    def first_token_probability(self, read: TokenLogprobs, packed: Packed, tokens: frozenset[int]) -> Tensor:
        """The probability (at T = 1) that a completion begins with one of `tokens`, [N], from what was read already."""
        starts = packed.lengths.cumsum(0) - packed.lengths
        logits = logits_of(self.lm.base)(read.states[starts.to(read.states.device)]).float()
        return torch.softmax(logits, dim=-1)[:, sorted(tokens)].sum(-1)

    def _selected(self, hidden: Tensor, packed: Packed, trunk: Trunk) -> Tensor:
        # Not by indexing: on several threads its gradient adds up what completions send to the last token of their
        # prompt in whatever order they come.
        states = trunk.states(F.embedding(packed.sources.to(hidden.device), hidden))
        # The head is as large as a third of the body: it computes in the dtype of the base.
        return states.to(self.lm.dtype) if self.has_lora else states

    def _read(self, states: Tensor, packed: Packed, temperature: float) -> TokenLogprobs:
        targets = packed.targets.to(states.device)
        weight = plain_head(self.lm.base, states.dtype)
        if weight is not None and self.has_lora:
            return frozen_head(states, weight, targets, temperature)
        return any_head(states, logits_of(self.lm.base), targets, temperature)

    def _reference_model(self) -> tuple[LanguageModel, Trunk]:
        if self.has_lora:
            return self.lm, self.trunk
        if self._reference is None:
            if self._load_reference is None:
                raise ConfigError("full fine-tuning needs a second copy of the base as its reference")
            lm = self._load_reference()
            # By the same code, so that it starts from a divergence of exactly nothing.
            trunk = make_trunk(
                lm.base, lm.base, [], lora=None, share_prefix=self.trunk.shares_prefix, path=self.trunk.path
            )
            self._reference = lm, trunk
        return self._reference


def require_full_precision(lm: LanguageModel) -> None:
    if lm.dtype != torch.float32:
        raise ConfigError(
            f"full fine-tuning of {lm.spec} in {lm.dtype}: its small steps would be rounded away; use float32"
        )


def plain_head(base: Any, dtype: torch.dtype) -> Tensor | None:
    """The matrix of a head that is one product and nothing else; None where it is more."""
    head = base.get_output_embeddings()
    config = base.config.get_text_config()
    is_adjusted = any(getattr(config, name, None) not in (None, 1.0) for name in _ADJUSTMENTS)
    if is_adjusted or getattr(head, "bias", None) is not None or type(head) is not nn.Linear:
        return None
    weight: Tensor = head.weight.detach()
    return weight if weight.dtype == dtype else weight.to(dtype)


def logits_of(base: Any) -> Callable[[Tensor], Tensor]:
    """States → logits as the model itself makes them."""
    head, config = base.get_output_embeddings(), base.config.get_text_config()
    found = [(adjust, value) for name, adjust in _ADJUSTMENTS.items() if (value := getattr(config, name, None))]

    def logits(states: Tensor) -> Tensor:
        out: Tensor = head(states.to(head.weight.dtype))
        for adjust, value in found:
            out = adjust(out, float(value))
        return out

    return logits


@torch.no_grad()
def require_known_head(base: Any, spec: str) -> None:
    """Checks on a few tokens that body and head give the logits of the whole model.

    Raises `ModelError` for an architecture that does more to its logits than this project knows.
    """
    ids = torch.tensor([[1, 2, 3]], device=base.device)
    body = base.base_model
    expected = base(input_ids=ids).logits.float()
    found = logits_of(base)(body(input_ids=ids).last_hidden_state).float()
    if not torch.allclose(found, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
        raise ModelError(
            f"model {spec} changes its logits in a way that is not known here; choose another architecture"
        )
