import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from triptych.errors import DataError
from triptych.models import LanguageModel, logprobs
from triptych.models.logprobs import (
    length_mask,
    masked_mean,
    masked_sum,
    pad_right,
    sequence_logprobs,
    token_logprobs,
)
from triptych.models.tiny import VOCAB, tiny_gpt2, tiny_language_model, tiny_llama

PROMPTS = [[1, 50, 60], [7], [8, 9, 10, 11, 12, 13, 14], [5, 6]]
COMPLETIONS = [[70, 80], [], [90, 3, 3, 100, 2], [110]]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- Tensors ----------------------------------------------------------------------------------------------------------


def test_token_logprobs_by_hand() -> None:
    # Logits log 1, log 2, log 5: probabilities 1/8, 2/8, 5/8.
    logits = torch.tensor([[[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]]).log()
    values = token_logprobs(logits, torch.tensor([[0, 2]]))
    assert torch.allclose(values, torch.tensor([[math.log(1 / 8), math.log(5 / 8)]]))


@pytest.mark.parametrize("chunk", [1, 7, 40, 10**6])
def test_token_logprobs_are_log_softmax_in_fp32(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", chunk)
    logits = (torch.randn(3, 5, 11, generator=generator()) * 4).bfloat16()
    ids = torch.randint(11, (3, 5), generator=generator(1))
    values = token_logprobs(logits, ids)
    assert values.dtype == torch.float32
    expected = logits.double().log_softmax(-1).gather(2, ids.unsqueeze(2)).squeeze(2)
    assert torch.allclose(values.double(), expected, atol=1e-6)


def test_large_logits_do_not_overflow() -> None:
    values = token_logprobs(torch.tensor([[[1e4, 0.0, -1e4]]]), torch.tensor([[0]]))
    assert values.item() == 0.0


def test_token_logprobs_of_nothing() -> None:
    assert token_logprobs(torch.empty(0, 4, 7), torch.empty(0, 4, dtype=torch.long)).shape == (0, 4)
    assert token_logprobs(torch.empty(2, 0, 7), torch.empty(2, 0, dtype=torch.long)).shape == (2, 0)


def test_token_logprobs_has_gradients() -> None:
    logits = torch.randn(1, 2, 5, generator=generator(), dtype=torch.float64, requires_grad=True)
    token_logprobs(logits, torch.tensor([[1, 3]])).sum().backward()
    # d log p(y) / dz = onehot(y) - softmax(z), which sums to zero.
    assert logits.grad is not None
    assert torch.allclose(logits.grad.sum(-1), torch.zeros(1, 2, dtype=torch.float64), atol=1e-6)


def test_length_mask() -> None:
    expected = [[True, True, False], [False, False, False], [True, True, True]]
    assert length_mask(torch.tensor([2, 0, 3]), 3).tolist() == expected


def test_masked_sums_ignore_what_lies_beyond() -> None:
    values = torch.tensor([[1.0, 2.0, math.nan], [math.inf, math.nan, 0.0], [1.0, 2.0, 3.0]])
    lengths = torch.tensor([2, 0, 3])
    assert masked_sum(values, lengths).tolist() == [3.0, 0.0, 6.0]
    means = masked_mean(values, lengths).tolist()
    assert means[0] == 1.5
    assert math.isnan(means[1])
    assert means[2] == 2.0


def test_pad_right() -> None:
    batch = pad_right([[5], [], [6, 7]], pad_id=9)
    assert batch.ids.tolist() == [[5, 9], [9, 9], [6, 7]]
    assert batch.lengths.tolist() == [1, 0, 2]
    assert pad_right([], pad_id=9).ids.shape == (0, 0)


# --- Models -----------------------------------------------------------------------------------------------------------


def one_by_one(lm: LanguageModel, prompt: list[int], completion: list[int]) -> list[float]:
    """The definition: a full forward pass for every token, of nothing but what comes before it."""
    values = []
    for at, token in enumerate(completion):
        ids = torch.tensor([[*prompt, *completion[:at]]])
        with torch.no_grad():
            logits = lm.model(input_ids=ids).logits[0, -1]
        values.append(float(logits.double().log_softmax(-1)[token]))
    return values


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_sequence_logprobs_are_the_definition(make: Callable[[int], PreTrainedModel], batch_size: int) -> None:
    lm = tiny_language_model(make(4))
    results = sequence_logprobs(lm, PROMPTS, COMPLETIONS, batch_size=batch_size)
    for prompt, completion, values in zip(PROMPTS, COMPLETIONS, results, strict=True):
        assert values == pytest.approx(one_by_one(lm, prompt, completion), abs=1e-5)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9), st.lists(st.integers(0, VOCAB - 1), max_size=9)
        ),
        max_size=6,
    ),
    st.integers(1, 4),
)
def test_company_in_the_batch_changes_nothing(rows: list[tuple[list[int], list[int]]], batch_size: int) -> None:
    # Pad and EOS ids occur inside the sequences, too: only lengths tell what is padding.
    lm = tiny_language_model()
    prompts, completions = [prompt for prompt, _ in rows], [completion for _, completion in rows]
    together = sequence_logprobs(lm, prompts, completions, batch_size=batch_size)
    alone = [sequence_logprobs(lm, [prompt], [completion])[0] for prompt, completion in rows]
    for values, expected in zip(together, alone, strict=True):
        assert values == pytest.approx(expected, abs=1e-5)


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(DataError, match="prompt 1 has no tokens, so nothing predicts its completion"):
        sequence_logprobs(tiny_language_model(), [[1], []], [[2], [3]])


def test_prompts_and_completions_come_in_pairs() -> None:
    with pytest.raises(DataError, match="2 prompts for 1 completions"):
        sequence_logprobs(tiny_language_model(), [[1], [2]], [[3]])


def test_a_batch_has_rows() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        sequence_logprobs(tiny_language_model(), [[1]], [[2]], batch_size=0)
