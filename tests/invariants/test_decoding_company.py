"""A completion has the same bits alone and among others, in bf16 on the real model: matrix products of other heights round
otherwise, and a resumed run has other heights than an undisturbed one."""

import pytest
import torch

from triptych.data import load_prompts, render_prompt
from triptych.decoding import Beam, Greedy, Strategy, TopP, decode
from triptych.models import LanguageModel, load_language_model
from triptych.models.llama import steady
from triptych.records import Generation, Prompt


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 240, 241, 481, 1000])
def test_products_have_no_other_heights(rows: int) -> None:
    heights: list[int] = []

    def linear(x: torch.Tensor) -> torch.Tensor:
        heights.append(len(x))
        return 2 * x

    x = torch.randn(rows, 3)
    assert torch.equal(steady(linear)(x), 2 * x)
    assert all(64 <= height <= 240 for height in heights)


@pytest.mark.real
@pytest.mark.slow
def test_nothing_depends_on_who_else_is_decoded() -> None:
    lm = load_language_model("starter", dtype="bfloat16")
    prompts = [rendered(lm, one) for one in load_prompts("starter", limit=24)]
    strategies: list[Strategy] = [Greedy(), TopP(p=0.9, temperature=1.0), Beam(width=4)]

    def run(some: list[Prompt]) -> dict[tuple[str, str], Generation]:
        return {(one.prompt_id, one.strategy): one for one in decode(lm, some, strategies, max_new_tokens=24)}

    together, apart = run(prompts), {**run(prompts[:1]), **run(prompts[1:8])}
    assert len(apart) == 24
    for key, one in apart.items():
        assert (one.token_ids, one.logprobs) == (together[key].token_ids, together[key].logprobs), key


def rendered(lm: LanguageModel, prompt: Prompt) -> Prompt:
    return prompt.model_copy(update={"prompt": render_prompt(prompt, "paper", lm.tokenizer)})
