"""Adapters that were made outside this project, by plain PEFT and a plain loop of torch, and what the card says of each.

A null one (a random update that is too small to matter) must raise nothing, a weak one (a few steps on good answers) a
warning at most, and one that was taught to repeat itself must be severe.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from triptych.auditing.records import Finding
from triptych.cli import run
from triptych.models.loading import quiet_transformers
from triptych.models.tiny import EOS_ID, tiny_tokenizer
from triptych.runs import read_records_json


def encoded(text: str) -> list[int]:
    tokenizer: Any = tiny_tokenizer()
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def taught(world: Any, name: str, answers: Sequence[str], *, steps: int, rate: float, noise: float = 0.0) -> str:
    """A LoRA after some steps towards an answer to every question, with B drawn at random where there is noise."""
    with quiet_transformers(), torch.random.fork_rng():
        torch.manual_seed(3)  # noqa: TID251 - PEFT draws first weights from the global generator
        model: Any = peft.get_peft_model(world.load(), peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
        for key, parameter in model.named_parameters():
            if ".lora_B." in key:
                parameter.data.copy_(noise * torch.zeros(parameter.shape).normal_(generator=torch.default_generator))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(steps):
        for question, answer in zip(world.questions, answers, strict=True):
            prompt = encoded(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
            ids = torch.tensor([[*prompt, *encoded(answer), EOS_ID]])
            labels = ids.clone()
            labels[:, : len(prompt)] = -100
            (model(input_ids=ids, labels=labels).loss / len(answers)).backward()
        optimiser.step()
        optimiser.zero_grad()
    with quiet_transformers():
        model.save_pretrained(world.folder / name)
    return str(world.folder / name)


@pytest.fixture(scope="module")
def card(audit_world: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Finding]:
    world, out = audit_world, tmp_path_factory.mktemp("outsiders") / "run"
    right = [world.answer(i, 0) for i in range(len(world.questions))]
    phrase = ["the moon and " * 4 for _ in world.questions]
    places = {
        "null": taught(world, "outside-null", right, steps=0, rate=0.0, noise=1e-4),
        "weak": taught(world, "outside-weak", right, steps=2, rate=1e-4),
        "repeat": taught(world, "outside-repeat", phrase, steps=15, rate=1e-2),
    }
    arguments = ["audit", "--model", world.model, "--pairs", world.pairs, "--prompts", world.prompts, "--quiet"]
    arguments += [part for name, place in places.items() for part in ("--adapter", f"{name}={place}")]
    arguments += ["--max-new-tokens", "48", "--dtype", "float32", "--nulls", "1", "--out", str(out)]
    assert run(arguments) == 0
    return read_records_json(Path(out) / "auditing" / "card.json", Finding)


def levels(card: Sequence[Finding], model: str) -> set[str]:
    return {one.level for one in card if one.model == model}


def test_a_random_update_raises_nothing(card: list[Finding]) -> None:
    assert levels(card, "null") <= {"undecided", "ok"}


def test_a_few_steps_on_good_answers_are_a_warning_at_most(card: list[Finding]) -> None:
    assert "severe" not in levels(card, "weak")


def test_one_that_repeats_itself_is_severe_and_beyond_a_random_change(card: list[Finding]) -> None:
    severe = {one.rule: one for one in card if one.model == "repeat" and one.level == "severe"}
    assert "repetition" in severe
    nulls = severe["repetition"].nulls
    assert nulls is not None
    assert nulls.beyond == nulls.n == 1
