"""The work of `triptych bench audit`, and how a plain loop of transformers and PEFT does it, one text at a time:

    python -m triptych.bench.audit_peer WORK ADAPTER

WORK is an `AuditWork` as JSON, ADAPTER a folder; stdout gets a `Looped` as JSON. Prompts, kinds of responses, texts and
arithmetic are those of the audit. Every text is a row of its own, prompt and answer, read without a cache; softmax in
fp32. It does less in one thing: the audit takes the exact KL on chosen answers, too. Not here: comparing (`audit`).
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from triptych.auditing.perturbations import PERTURBATIONS
from triptych.auditing.plan import AuditingConfig, pair_source
from triptych.auditing.prompts import (
    AuditPrompt,
    Chosen,
    answers_group,
    audit_prompts,
    audited_pairs,
    chosen_answers,
)
from triptych.auditing.records import BASE, Kind
from triptych.config import Config, parse_config
from triptych.data.templates import encode_prompt
from triptych.errors import DataError
from triptych.memory import peak_memory
from triptych.models import LanguageModel, load_language_model
from triptych.models.loading import load_tokenizer, quiet_transformers
from triptych.models.sources import resolve_source
from triptych.seeding import stream_key

SEED = 0
"""That of `triptych audit` where none is given."""

ADAPTER = "one"
"""What the adapter is called that both sides work on."""

MODELS = (BASE, ADAPTER)
SAMPLING = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
GREEDY = {"do_sample": False}
WARM_UP_TOKENS = 4


class AuditWork(Config):
    """An audit whose every part takes the same number of prompts, so that a prompt is the same work for all."""

    model: str = "starter"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the arithmetic; `auto` is bf16 where the hardware has it."""
    pairs: str = "starter"
    prompts: str = "starter"
    limit: int = Field(default=48, ge=1)
    """Prompts that are answered, and chosen answers that are read."""
    peer_prompts: int = Field(default=6, ge=1)
    """The first so many of them, for the plain loop."""
    max_new_tokens: int = Field(default=128, ge=1)


class Material(NamedTuple):
    """What an audit asks and reads."""

    config: AuditingConfig
    prompts: list[AuditPrompt]
    chosen: list[Chosen]
    """As many."""


class Looped(Config):
    """What the plain loop did, and in what time; loading and warming up are not counted."""

    n_prompts: int
    writing_seconds: float
    reading_seconds: float
    written_tokens: int
    n_perturbed: int
    chosen_logprobs: dict[str, dict[str, float]]
    peak_memory_bytes: int
    start_memory_bytes: int
    """Before the model was loaded."""


# --- The work ---------------------------------------------------------------------------------------------------------


def lay_out(work: AuditWork) -> Material:
    """The prompts and chosen answers of `triptych audit` with the options that `audit` gives it.

    Raises `DataError` where there are not as many chosen answers as prompts.
    """
    config = AuditingConfig(
        pairs=work.pairs,
        prompts=work.prompts,
        perplexity_prompts=work.limit,
        verbosity_prompts=work.limit,
        divergence_prompts=work.limit,
        hacking_prompts=work.limit,
        max_new_tokens=work.max_new_tokens,
    )
    tokenizer = load_tokenizer(resolve_source(work.model))
    pairs = audited_pairs(pair_source(config, None), n=work.limit, seed=SEED)
    chosen = chosen_answers(pairs, config.template, tokenizer, config.max_length)
    prompts = audit_prompts(config, pairs, tokenizer, SEED)
    if len(prompts) != len(chosen):
        raise DataError(
            f"{work.prompts} gives {len(prompts)} prompts and {work.pairs} {len(chosen)} chosen answers that can be "
            "read; a prompt must cost the same everywhere: give as many of both, or lower --limit"
        )
    return Material(config, prompts, chosen)


# --- The loop ---------------------------------------------------------------------------------------------------------


class Written(NamedTuple):
    """A response."""

    token_ids: tuple[int, ...]
    """EOS included."""
    text: str
    is_truncated: bool


class Loop:
    """Base and adapter as one PEFT model, with the adapter off or on."""

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm
        self._model: Any = lm.model

    def _as(self, name: str) -> AbstractContextManager[Any]:
        off: AbstractContextManager[Any] = self._model.disable_adapter() if name == BASE else nullcontext()
        return off

    @torch.inference_mode()
    def write(self, name: str, text: str, kind: Kind, limit: int) -> Written:
        """One response to a rendered prompt."""
        lm, ids = self._lm, torch.tensor([encode_prompt(text, self._lm.tokenizer)], device=self._lm.device)
        settings: dict[str, Any] = GREEDY if kind == "greedy" else SAMPLING
        with self._as(name):
            out = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=limit,
                pad_token_id=lm.pad_id,
                eos_token_id=sorted(lm.eos_ids),
                **settings,
            )
        written: list[int] = out[0, ids.shape[1] :].tolist()
        said: Any = lm.tokenizer.decode(written, skip_special_tokens=True)
        return Written(tuple(written), str(said).strip(), is_truncated=written[-1] not in lm.eos_ids)

    @torch.inference_mode()
    def read(self, name: str, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        """Log-probabilities of the whole vocabulary before each token of the answer, [answer, vocab], fp32."""
        ids = torch.tensor([[*prompt, *answer]], device=self._lm.device)
        with self._as(name):
            logits: Tensor = self._model(input_ids=ids, use_cache=False).logits
        return torch.log_softmax(logits[0, len(prompt) - 1 : -1].float(), -1)


def loop(work: AuditWork, adapter: Path) -> Looped:
    """The whole work on the first prompts."""
    start = peak_memory()
    with quiet_transformers():
        everything = lay_out(work)
        lm = load_language_model(work.model, dtype=work.dtype, adapter=adapter)
        first = slice(work.peer_prompts)
        material = everything._replace(prompts=everything.prompts[first], chosen=everything.chosen[first])
        model = Loop(lm)
        for name in MODELS:
            model.write(name, material.prompts[0].rendered["plain"], "plain", min(WARM_UP_TOKENS, work.max_new_tokens))
        started = time.perf_counter()
        written = {name: [_responses(model, name, one, work) for one in material.prompts] for name in MODELS}
        halfway = time.perf_counter()
        chosen = _read_chosen(model, material)
        _read_own(model, material, written[ADAPTER], lm)
        perturbed = _read_perturbed(model, material, written[BASE], lm)
        ended = time.perf_counter()
    return Looped(
        n_prompts=len(material.prompts),
        writing_seconds=halfway - started,
        reading_seconds=ended - halfway,
        written_tokens=sum(len(one.token_ids) for of in written.values() for own in of for one in own.values()),
        n_perturbed=len(perturbed),
        chosen_logprobs=chosen,
        peak_memory_bytes=peak_memory(),
        start_memory_bytes=start,
    )


def _responses(model: Loop, name: str, prompt: AuditPrompt, work: AuditWork) -> dict[Kind, Written]:
    return {kind: model.write(name, text, kind, work.max_new_tokens) for kind, text in prompt.rendered.items()}


def _read_chosen(model: Loop, material: Material) -> dict[str, dict[str, float]]:
    """The mean log-probability of a token, by model and prompt."""
    found: dict[str, dict[str, float]] = {name: {} for name in MODELS}
    for prompt_id, (prompt, (answer,)) in material.chosen:
        for name in MODELS:
            found[name][prompt_id] = float(_of_tokens(model.read(name, prompt, answer), answer).mean())
    return found


def _read_own(
    model: Loop, material: Material, written: Sequence[Mapping[Kind, Written]], lm: LanguageModel
) -> list[tuple[float, float, float]]:
    """Of each response of the adapter: its log-probability there and under the base, and the exact KL between them."""
    found = []
    for prompt, own in zip(material.prompts, written, strict=True):
        ids, answer = encode_prompt(prompt.rendered["plain"], lm.tokenizer), own["plain"].token_ids
        policy, base = model.read(ADAPTER, ids, answer), model.read(BASE, ids, answer)
        divergence = (policy.exp() * (policy - base)).sum()
        found.append((_total(policy, answer), _total(base, answer), float(divergence)))
    return found


def _read_perturbed(
    model: Loop, material: Material, written: Sequence[Mapping[Kind, Written]], lm: LanguageModel
) -> list[dict[str, list[float]]]:
    """Of each response of the base that is perturbed: the log-probabilities of all its forms, by model.

    Those that came to their end, as in the audit, and each different text once.
    """
    own = [(prompt, one["plain"]) for prompt, one in zip(material.prompts, written, strict=True)]
    filled = [(prompt, one) for prompt, one in own if one.text.strip()]
    found = []
    for prompt, one in [(prompt, one) for prompt, one in filled if not one.is_truncated] or filled:
        texts = forms_of(one.text, prompt.prompt.id, material.config.perturbations)
        limit, cut = material.config.max_length, one.is_truncated
        group = answers_group(prompt.rendered["plain"], texts, lm.tokenizer, limit, is_truncated=cut)
        sums: dict[str, list[float]] = {name: [] for name in MODELS}
        if group is not None:
            for answer in group.completions:
                for name in MODELS:
                    sums[name].append(_total(model.read(name, group.prompt, answer), answer))
        found.append(sums)
    return found


def forms_of(text: str, prompt_id: str, perturbations: Sequence[str]) -> list[str]:
    """A response and its perturbed forms, each different text once."""
    key = stream_key(SEED, "perturbation", prompt_id)
    return list(dict.fromkeys([text, *(PERTURBATIONS[name](text, key) for name in perturbations)]))


def _total(logprobs: Tensor, answer: Sequence[int]) -> float:
    return float(_of_tokens(logprobs, answer).sum())


def _of_tokens(logprobs: Tensor, answer: Sequence[int]) -> Tensor:
    return logprobs.gather(-1, torch.tensor(answer, device=logprobs.device)[:, None])[:, 0]


def main(work: str, adapter: str) -> None:
    """Prints the figures as JSON."""
    stdout = sys.stdout
    # Libraries print what they like; stdout is for figures.
    with redirect_stdout(sys.stderr):
        looped = loop(parse_config(AuditWork, json.loads(work), where="work"), Path(adapter))
    stdout.write(looped.model_dump_json() + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
