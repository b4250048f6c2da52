"""The real SmolLM2 in fp32: this engine against `transformers.generate` and an independent forward pass.

Real prompts are the Alpaca sample beside the repository where it is there, else the starter set: 64 of them, and 24 new
tokens (TRIPTYCH_GOLDEN_TOKENS asks for more). Only EOS and length end a completion, as in transformers.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from triptych.data import encode_prompt, load_prompts, render_prompt
from triptych.decoding import Beam, Engine, Greedy, Job, Stopping, Strategy, TopP, decode
from triptych.models import LanguageModel, load_language_model
from triptych.models.logprobs import sequence_logprobs
from triptych.records import FinalBeam, Generation, Prompt

pytestmark = [pytest.mark.real, pytest.mark.slow]

ALPACA = Path(__file__).parents[2].parent / "shared" / "data" / "alpaca_cleaned_sample.jsonl"
TOKENS = int(os.environ.get("TRIPTYCH_GOLDEN_TOKENS", "24"))
ONLY_EOS = Stopping(block=None, markers=())
BATCH = 16


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load_language_model("starter", dtype="float32")


@pytest.fixture(scope="module")
def prompts(lm: LanguageModel) -> list[Prompt]:
    chosen = load_prompts(ALPACA if ALPACA.is_file() else "starter", limit=64)
    return [one.model_copy(update={"prompt": render_prompt(one, "paper", lm.tokenizer)}) for one in chosen]


@pytest.fixture(scope="module")
def ours(lm: LanguageModel, prompts: list[Prompt]) -> dict[str, list[Generation]]:
    strategies: list[Strategy] = [Greedy(), Beam(width=4), TopP(p=0.9, temperature=1.0)]
    made = decode(lm, prompts, strategies, max_new_tokens=TOKENS, stopping=ONLY_EOS)
    return {s.name: [one for one in made if one.strategy == s.name] for s in strategies}


def generated(
    lm: LanguageModel, prompts: list[Prompt], *, per_prompt: int = 1, **arguments: Any
) -> list[tuple[int, ...]]:
    """Completions by transformers, up to and with EOS; batches of similar length, padded on the left."""
    rows = [encode_prompt(one.prompt or "", lm.tokenizer) for one in prompts]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: dict[int, tuple[int, ...]] = {}
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        width = max(len(rows[i]) for i in batch)
        ids = torch.tensor([[lm.pad_id] * (width - len(rows[i])) + rows[i] for i in batch])
        mask = torch.tensor([[0] * (width - len(rows[i])) + [1] * len(rows[i]) for i in batch])
        model: Any = lm.base
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=TOKENS, do_sample=False, pad_token_id=lm.pad_id, **arguments
        )
        for i, row in enumerate(out[:, width:].tolist()):
            end = next((j + 1 for j, token in enumerate(row) if token in lm.eos_ids), len(row))
            found[batch[i // per_prompt] * per_prompt + i % per_prompt] = tuple(row[:end])
    return [found[i] for i in range(len(rows) * per_prompt)]


def test_greedy_is_that_of_transformers(
    lm: LanguageModel, prompts: list[Prompt], ours: dict[str, list[Generation]]
) -> None:
    assert [one.token_ids for one in ours["greedy"]] == generated(lm, prompts)


def test_beams_are_those_of_transformers(
    lm: LanguageModel, prompts: list[Prompt], ours: dict[str, list[Generation]]
) -> None:
    """The same final beams; where some were cut by the limit, complete ones come first here and by score there."""
    beams: dict[str, list[FinalBeam]] = {}
    engine = Engine(
        lm, max_new_tokens=TOKENS, stopping=ONLY_EOS, on_beams=lambda final: beams.update({final[0].prompt_id: final})
    )
    best = {row.prompt_id: row.token_ids for row in engine.run([Job(prompt, Beam(width=4)) for prompt in prompts])}
    # Asking for the runners-up changes no winner.
    assert best == {row.prompt_id: row.token_ids for row in ours["beam"]}
    settings = {"num_beams": 4, "length_penalty": 0.0, "early_stopping": "never", "num_return_sequences": 4}
    theirs = generated(lm, prompts, per_prompt=4, **settings)
    for i, prompt in enumerate(prompts):
        final = theirs[4 * i : 4 * i + 4]
        complete, cut = ([ids for ids in final if (ids[-1] in lm.eos_ids) == ends] for ends in (True, False))
        our_complete, our_cut = (
            [beam.token_ids for beam in beams[prompt.id] if (beam.stop_reason == "eos") == ends]
            for ends in (True, False)
        )
        assert our_complete[: len(complete)] == complete, prompt.id
        assert our_cut == cut[: 4 - len(our_complete)], prompt.id


@pytest.mark.parametrize("name", ["greedy", "beam", "top_p"])
def test_logprobs_are_those_of_an_independent_forward_pass(
    lm: LanguageModel, ours: dict[str, list[Generation]], name: str
) -> None:
    made = ours[name]
    prompt_ids = [encode_prompt(one.prompt, lm.tokenizer) for one in made]
    expected = sequence_logprobs(lm, prompt_ids, [list(one.token_ids) for one in made])
    worst = max(
        abs(a - b) for one, row in zip(made, expected, strict=True) for a, b in zip(one.logprobs, row, strict=True)
    )
    assert worst < 1e-4


def test_the_paths_agree_token_for_token(lm: LanguageModel, prompts: list[Prompt]) -> None:
    strategies: list[Strategy] = [Greedy(), Beam(width=2), TopP(p=0.9, temperature=1.2)]
    fused, generic = (
        decode(lm, prompts[:12], strategies, max_new_tokens=12, stopping=ONLY_EOS, path=path)
        for path in ("fused", "generic")
    )
    assert [one.token_ids for one in fused] == [one.token_ids for one in generic]
