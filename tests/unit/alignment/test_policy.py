"""What a policy checks of a model before it trains it: that its head is understood, and whether prompts can be shared."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from triptych.alignment.adapters import LoraConfig
from triptych.alignment.policy import Policy, require_known_head
from triptych.alignment.trunk import shares_prefixes
from triptych.errors import ModelError
from triptych.models.tiny import tiny_gpt2, tiny_language_model, tiny_llama


def scaled(model: Any, factor: float) -> Any:
    """The planted failure: logits are changed behind the head, and no configuration says so."""
    forward = model.forward

    def changed(*args: Any, **options: Any) -> Any:
        output = forward(*args, **options)
        output.logits = output.logits * factor
        return output

    model.forward = changed
    return model


class Maskless(nn.Module):
    """A body that takes no mask but a plain one, or none at all."""

    def __init__(self, error: Exception, inner: Any) -> None:
        super().__init__()
        self._inner, self._error = inner, error
        self.config = inner.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Any:
        if attention_mask.dim() == 4:
            raise self._error
        return self._inner(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_a_head_that_is_known(make: Any) -> None:
    require_known_head(make(), "tiny")


def test_logits_that_are_changed_unsaid_are_refused_before_training() -> None:
    lm = tiny_language_model(scaled(tiny_llama(), 2.0))
    with pytest.raises(ModelError, match="changes its logits in a way that is not known here"):
        Policy(lm, lora=LoraConfig(), seed=0)


def test_a_scaling_that_the_configuration_names_is_followed() -> None:
    model = scaled(tiny_llama(), 0.5)
    model.config.logits_scaling = 2.0
    require_known_head(model, "tiny")


def test_a_model_without_such_masks_gets_separate_rows_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="triptych"):
        assert not shares_prefixes(Maskless(ValueError("wrong rank"), tiny_llama().model), None)
    assert "prompts are not shared: Maskless takes no mask of its own (wrong rank)" in caplog.text


def test_running_out_of_memory_is_no_answer() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        shares_prefixes(Maskless(torch.OutOfMemoryError("full"), tiny_llama().model), None)
