"""Every architecture decodes and trains as transformers runs it, row by row without padding, cache or packing.

Windows of four tokens are shorter than every text here.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from triptych.alignment.backends.generic import GenericTrunk
from triptych.alignment.packing import Group, pack
from triptych.alignment.trunk import shares_prefixes, why_apart
from triptych.decoding import Greedy, Stopping, decode
from triptych.errors import ModelError
from triptych.models import LanguageModel
from triptych.models.tiny import tiny_tokenizer

# Kernels that are not installed, and what they are replaced by.
pytestmark = pytest.mark.filterwarnings("ignore")

TEXTS = ["Hello you", "A much longer prompt than this one is", "x"]
GROUPS = [
    Group(tuple(range(10, 22)), (tuple(range(30, 39)), tuple(range(50, 57)))),
    Group((5, 6, 7), (tuple(range(70, 80)), (9,), (99, 98, 97, 96))),
]
APART = {
    "bloom": "takes no positions",
    "codegen": "lets completions see one another",
    "falcon-alibi": "takes no mask of its own",
    "gemma2": "has layers that do not see the whole text",
    "gemma3": "has layers that do not see the whole text",
    "gptj": "lets completions see one another",
    "mistral": "has layers that do not see the whole text",
    "mpt": "takes no positions",
    "xglm": "lets completions see one another",
    "jamba": "has layers that do not see the whole text",
    "mamba": "takes no positions",
    "rwkv": "takes no positions",
}
SHARED = ["falcon", "gpt2", "mistral-full", "neox", "opt", "phi", "qwen3"]


def language_model(model: PreTrainedModel) -> LanguageModel:
    return LanguageModel(
        model=model, tokenizer=tiny_tokenizer(), spec="tiny", eos_ids=frozenset({2}), fingerprint="tiny"
    )


def test_greedy_tokens_are_those_of_plain_forward_passes(causal_model: Any) -> None:
    lm = language_model(causal_model)
    found = decode(lm, TEXTS, [Greedy()], max_new_tokens=10, stopping=Stopping(block=None, markers=()))
    for text, one in zip(TEXTS, found, strict=True):
        ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
        for token in one.token_ids:
            logits = causal_model(input_ids=ids, use_cache=False).logits[0, -1]
            assert token == int(logits.argmax()), f"after {ids.shape[1]} tokens"
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


def test_training_reads_every_completion_as_a_row_of_its_own(causal_model: Any) -> None:
    body = causal_model.base_model
    shares = shares_prefixes(body, None)
    packed = pack(GROUPS, share_prefix=shares)
    found = GenericTrunk(body, compute_dtype=None, shares_prefix=shares).hidden(packed)[packed.last]
    rows = [torch.tensor([[*group.prompt, *one]]) for group in GROUPS for one in group.completions]
    expected = torch.cat([body(input_ids=row).last_hidden_state[:, -1] for row in rows])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*SHARED, *APART])
def test_prompts_are_shared_where_that_changes_nothing(
    name: str, dtype: torch.dtype, build_model: Callable[[str], Any]
) -> None:
    body = build_model(name).base_model.to(dtype)
    reason = why_apart(body, torch.bfloat16 if dtype == torch.bfloat16 else None)
    assert (reason or "").startswith(APART.get(name, ""))
    assert (reason is None) == (name in SHARED)


def test_positions_that_are_not_heeded(build_model: Callable[[str], Any]) -> None:
    body = build_model("phi").base_model
    forward = body.forward

    def heedless(input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, use_cache: bool) -> Any:
        return forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    body.forward = heedless
    assert why_apart(body, None) == "does not heed its positions"


def test_a_model_that_recurs_is_refused_before_any_work(recurrent_model: PreTrainedModel) -> None:
    with pytest.raises(ModelError, match="model 'tiny' keeps no key/value cache .*; choose a transformer that has att"):
        decode(language_model(recurrent_model), TEXTS, [Greedy()], max_new_tokens=3)
