from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from triptych.models import load_language_model
from triptych.models.tiny import (
    SPECIAL_TOKENS,
    save_tiny,
    tiny_bert_reward,
    tiny_deberta_reward,
    tiny_gpt2,
    tiny_language_model,
    tiny_llama,
    tiny_tokenizer,
)

MAKERS = [tiny_llama, tiny_gpt2, tiny_bert_reward, tiny_deberta_reward]


@pytest.mark.parametrize("make", MAKERS)
def test_the_weights_are_a_function_of_the_seed(make: Callable[[int], PreTrainedModel]) -> None:
    first, again, other = make(1).state_dict(), make(1).state_dict(), make(2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    matrices = [name for name in first if first[name].ndim == 2 and first[name].is_floating_point()]
    assert not any(torch.equal(first[name], other[name]) for name in matrices)


@pytest.mark.parametrize("make", MAKERS)
def test_the_global_generator_is_left_alone(make: Callable[[int], PreTrainedModel]) -> None:
    before = torch.get_rng_state()
    make(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_logits_are_spread_out() -> None:
    with torch.no_grad():
        logits = tiny_llama()(torch.arange(4, 24)[None]).logits
    # With the usual initialisation (0.02) the spread would be about 0.1, and argmax a matter of rounding.
    assert float(logits.std()) > 0.5


@settings(deadline=None)
@given(st.text().filter(lambda text: not any(name in text for name in SPECIAL_TOKENS)))
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_a_special_token_is_one_token(name: str) -> None:
    assert tiny_tokenizer()(name)["input_ids"] == [SPECIAL_TOKENS.index(name)]


@pytest.mark.parametrize(
    "model", [tiny_llama(5), tiny_gpt2(5), tiny_llama(5, tied=False)], ids=["llama", "gpt2", "untied"]
)
def test_a_saved_model_loads_unchanged(tmp_path: Path, model: PreTrainedModel) -> None:
    loaded = load_language_model(save_tiny(tmp_path, model), dtype="float32", device="cpu")
    ids = torch.tensor([[4, 5, 6]])
    assert torch.equal(loaded.model(ids).logits, model(ids).logits)


def test_the_ready_made_language_model_equals_the_loaded_one(tmp_path: Path) -> None:
    ready, loaded = tiny_language_model(), load_language_model(save_tiny(tmp_path), dtype="float32", device="cpu")
    assert ready.eos_ids == loaded.eos_ids
    assert (ready.pad_id, ready.vocab_size, ready.context_length) == (
        loaded.pad_id,
        loaded.vocab_size,
        loaded.context_length,
    )
    assert not any(parameter.requires_grad for parameter in ready.model.parameters())
