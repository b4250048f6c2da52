"""Rows of audits by hand, and a tiny base with checkpoints on disk."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from triptych.auditing.records import AuditRecord, Kind, ReadToken, Response, Score, TextSet
from triptych.metrics import words
from triptych.models.loading import quiet_transformers
from triptych.models.tiny import EOS_ID, PAD_ID, save_tiny, tiny_llama, tiny_tokenizer


class Rows:
    """Rows and records by hand; stateless."""

    @staticmethod
    def response(model: str, prompt_id: str, text: str, *, kind: Kind = "plain", **given: Any) -> Response:
        """One of as many tokens as it has words, each drawn with probability 1/e, then EOS."""
        ids = [10 + sum(map(ord, word)) for word in words(text)]
        fields: dict[str, Any] = {
            "instruction": f"Question {prompt_id}",
            "input": "",
            "category": "other",
            "prompt": f"Question {prompt_id}",
            "token_ids": [*ids, EOS_ID],
            "logprobs": [-1.0] * (len(ids) + 1),
            "n_tokens": len(ids),
            "n_words": len(ids),
            "is_truncated": False,
            "seed": 0,
        }
        return Response(model=model, prompt_id=prompt_id, kind=kind, text=text, **{**fields, **given})

    def responses(self, model: str, texts: Sequence[str], **given: Any) -> list[Response]:
        """To the prompts p0, p1, …"""
        return [self.response(model, f"p{i}", text, **given) for i, text in enumerate(texts)]

    @staticmethod
    def token(
        model: str,
        prompt_id: str,
        logprob: float,
        reference: float,
        kl: float = 0.0,
        *,
        text: TextSet = "chosen",
        position: int = 0,
        piece: str = "x",
    ) -> ReadToken:
        return ReadToken(model, text, prompt_id, position, 7, piece, logprob, reference, kl)

    @staticmethod
    def scores(scorer: str, model: str, values: Sequence[float | None], perturbation: str | None = None) -> list[Score]:
        """Of the prompts p0, p1, …"""
        return [Score(scorer, model, f"p{i}", perturbation, value) for i, value in enumerate(values)]

    @staticmethod
    def find(
        records: Sequence[AuditRecord],
        model: str,
        metric: str,
        category: str | None = None,
        *,
        against: str | None = None,
        scorer: str | None = None,
    ) -> AuditRecord:
        """The only record about this."""
        wanted = (model, metric, category, against, scorer)
        (found,) = [r for r in records if (r.model, r.metric, r.category, r.against, r.scorer) == wanted]
        return found

    def value(self, *about: Any, **more: Any) -> float:
        """The mean of the only record about this."""
        mean = self.find(*about, **more).estimate.mean
        assert mean is not None
        return mean

    @staticmethod
    def differences(records: Sequence[AuditRecord]) -> list[AuditRecord]:
        return [record for record in records if record.against is not None]


@pytest.fixture(scope="session")
def rows() -> Rows:
    return Rows()


THINGS = "rain snow wind sun moon hill river stone bird tree house road night day".split()  # noqa: SIM905 - fourteen words


def asked(question: str) -> str:
    """A question as the tiny tokenizer's chat template puts it."""
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def teach(model: Any, lessons: Sequence[tuple[str, Sequence[int]]], *, steps: int, rate: float) -> None:
    """Plain gradient steps towards some answers (token ids), as anybody would take them without this project."""
    tokenizer: Any = tiny_tokenizer()
    prompts = [tokenizer(asked(question), add_special_tokens=False)["input_ids"] for question, _ in lessons]
    rows = [[*prompt, *answer] for prompt, (_, answer) in zip(prompts, lessons, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [PAD_ID] * (width - len(row)) for row in rows])
    labels = torch.tensor(
        [[-100] * len(p) + row[len(p) :] + [-100] * (width - len(row)) for p, row in zip(prompts, rows, strict=True)]
    )
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(steps):
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()


class AuditWorld:
    """A tiny base that has learnt two answers to each of its questions; pairs and prompts on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.questions = [*(f"Say {i}." for i in range(12)), *(f"What is {i} and {i}?" for i in range(12))]
        base = self.untaught(0).requires_grad_(True)
        lessons = [(q, self.encoded(self.answer(i, k))) for i, q in enumerate(self.questions) for k in range(2)]
        teach(base, lessons, steps=40, rate=1e-2)
        self.model = self.save("base", base)
        self.pairs = self.write(
            "pairs.jsonl",
            [
                {"id": f"r{i}", "question": self.questions[12 + i], "chosen": self.answer(12 + i, 0), "rejected": "No."}
                for i in range(12)
            ],
        )
        self.prompts = self.write(
            "prompts.jsonl",
            [
                {"id": f"q{i}", "instruction": question, "category": ("factual", "explanation", "other")[i % 3]}
                | ({"answers": [str(i)]} if i % 3 == 0 else {})
                for i, question in enumerate(self.questions)
            ],
        )

    @staticmethod
    def answer(number: int, variant: int) -> str:
        first, second, third, fourth = (THINGS[(5 * number + 3 * variant + j * j) % len(THINGS)] for j in range(4))
        return f"{number} {first} and {second}. The {third} {fourth}."

    @staticmethod
    def encoded(text: str) -> list[int]:
        ids: Any = tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]
        return [*ids, EOS_ID]

    @staticmethod
    def untaught(seed: int) -> Any:
        return tiny_llama(seed, context=512, hidden=48)

    def save(self, name: str, model: Any) -> str:
        return str(save_tiny(self.folder / name, model, tiny_tokenizer(context=512)))

    def load(self) -> Any:
        """The base by transformers alone."""
        with quiet_transformers():
            return AutoModelForCausalLM.from_pretrained(self.model)

    def adapter(self, name: str, answer: Sequence[int] = ()) -> str:
        """A LoRA by plain PEFT; with an answer, trained to give it to everything."""
        with quiet_transformers(), torch.random.fork_rng():
            torch.manual_seed(0)  # noqa: TID251 - PEFT draws first weights from the global generator
            settings = peft.LoraConfig(r=8, lora_alpha=32, target_modules="all-linear")
            tuned: Any = peft.get_peft_model(self.load(), settings)
        if answer:
            teach(tuned, [(question, answer) for question in self.questions], steps=25, rate=2e-2)
        with quiet_transformers():
            tuned.save_pretrained(self.folder / name)
        return str(self.folder / name)

    def write(self, name: str, rows: Sequence[object]) -> str:
        (self.folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        return str(self.folder / name)


@pytest.fixture(scope="session")
def audit_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditWorld]:
    folder = tmp_path_factory.mktemp("audits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIPTYCH_CACHE", str(folder / "cache"))
        yield AuditWorld(folder)
