"""Scores of responses and of perturbed texts: by rewards, and by every policy as its own surrogate.

Not here: what scores say (`hacking`, `comparison`).
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from triptych.alignment.reward_functions import NamedReward, call_reward
from triptych.auditing.hacking import HACK
from triptych.auditing.paired import About
from triptych.auditing.perturbations import PERTURBATIONS
from triptych.auditing.records import BASE, SCORES_SCHEMA, PerturbedText, Response, Score
from triptych.auditing.tables import table_of
from triptych.auditing.work import COSTS, TextSum, unit_name
from triptych.data.prompts import question_of
from triptych.parts import PartStore
from triptych.progress import Meter
from triptych.records import Prompt
from triptych.seeding import stream_key

PROMPTS_AT_ONCE = 8
"""Of a unit of scoring: with all their texts, so that a reward model reads a prompt once."""


class ToScore(NamedTuple):
    """A text that rewards score."""

    model: str
    prompt_id: str
    perturbation: str | None
    text: str
    n_tokens: int | None
    """Of a response as it was written."""
    is_truncated: bool
    """Whether it, or what it was made of, was cut by the token limit."""


def texts_to_score(
    responses: Sequence[Response], perturbed: Sequence[PerturbedText], *, seed: int
) -> dict[str, list[ToScore]]:
    """Prompt → its texts: plain responses of all, those of the base perturbed, others behind the safety prefix.

    Behind the prefix, only responses that are whole: to the prompts whose response of the base is perturbed.
    """
    found: dict[str, list[ToScore]] = {}
    cut_of_base = {one.prompt_id: one.is_truncated for one in responses if (one.model, one.kind) == (BASE, "plain")}
    hacked = {one.prompt_id for one in perturbed}
    has_prefix = any(one.perturbation == HACK for one in perturbed)
    for one in responses:
        if one.kind != "plain":
            continue
        own = found.setdefault(one.prompt_id, [])
        own.append(ToScore(one.model, one.prompt_id, None, one.text, one.n_tokens, one.is_truncated))
        if one.model != BASE and one.prompt_id in hacked and has_prefix and one.is_whole:
            key = stream_key(seed, "perturbation", one.prompt_id)
            own.append(ToScore(one.model, one.prompt_id, HACK, PERTURBATIONS[HACK](one.text, key), None, False))
    for text in perturbed:
        if text.perturbation is not None:
            cut = cut_of_base[text.prompt_id]
            found[text.prompt_id].append(ToScore(BASE, text.prompt_id, text.perturbation, text.text, None, cut))
    return found


def score_texts(
    reward: NamedReward,
    texts: Mapping[str, list[ToScore]],
    prompts: Mapping[str, Prompt],
    parts: PartStore,
    meter: Meter,
) -> None:
    """The units of one reward that are missing.

    Raises `ConfigError` where the reward fails or gives what is no finite number, naming it and the text.
    """
    ids = list(texts)
    for number, start in enumerate(range(0, len(ids), PROMPTS_AT_ONCE)):
        unit, began = unit_name("scores", reward.name, number), time.monotonic()
        if unit in parts.done_ids():
            continue
        chosen = [one for prompt in ids[start : start + PROMPTS_AT_ONCE] for one in texts[prompt]]
        records = [prompts[one.prompt_id] for one in chosen]
        columns: dict[str, list[Any]] = {
            "record": records,
            "id": [record.id for record in records],
            "category": [record.category for record in records],
            "answers": [record.answers for record in records],
            "checks": [record.checks for record in records],
            "n_tokens": [one.n_tokens for one in chosen],
            "is_truncated": [one.is_truncated for one in chosen],
        }
        questions = [question_of(record.instruction, record.input) for record in records]
        values = call_reward(reward, questions, [one.text for one in chosen], columns)
        rows = [
            Score(reward.name, one.model, one.prompt_id, one.perturbation, value)
            for one, value in zip(chosen, values, strict=True)
        ]
        costs = json.dumps({"scoring_seconds": time.monotonic() - began}).encode()
        parts.save(unit, table_of(rows, SCORES_SCHEMA).replace_schema_metadata({COSTS: costs}))
        meter.advance(len(rows))


def surrogate_scores(name: str, sums: Sequence[TextSum], base: Sequence[TextSum], *, beta: float) -> Iterator[Score]:
    """A checkpoint as the judge of the base's texts, as the paper has it.

        implicit_reward = β (log π(y|x) - log π_ref(y|x)),     mean_logprob = log π(y|x) / |y|

    over texts, with the EOS of those that came to their end (Rafailov et al. 2023, eq. 5, up to a constant of the
    prompt). The base's implicit reward is 0 by definition and left out.
    """
    reference = {(one.prompt_id, one.perturbation): one.logprob for one in base}
    for one in sums:
        yield Score(surrogate("mean_logprob", name), BASE, one.prompt_id, one.perturbation, one.logprob / one.n_tokens)
        if name != BASE:
            gained = beta * (one.logprob - reference[one.prompt_id, one.perturbation])
            yield Score(surrogate("implicit_reward", name), BASE, one.prompt_id, one.perturbation, gained)


def surrogate(kind: str, name: str) -> str:
    """What a checkpoint is called as a scorer."""
    return f"{kind}({name})"


def scorers_of(rewards: Sequence[str], checkpoints: Sequence[str]) -> dict[str, About]:
    """Every scorer, and what its records are about."""
    found = {reward: About(reward, "", scorer=reward) for reward in rewards}
    for name in checkpoints:
        kinds = ("mean_logprob",) if name == BASE else ("implicit_reward", "mean_logprob")
        found |= {surrogate(kind, name): About(name, "", scorer=kind) for kind in kinds}
    return found
