"""Rollouts: groups of completions written by the decoding engine, with the log-probabilities they were drawn at.

What the engine kept at sampling time is the distribution that was drawn from: importance weights are taken against it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from triptych.alignment.packing import Group
from triptych.alignment.reward_functions import NamedReward, call_reward, combine
from triptych.data.prompts import question_of
from triptych.data.templates import encode_prompt
from triptych.decoding.batch import Job
from triptych.decoding.engine import Engine, Limits
from triptych.decoding.stopping import Stopping
from triptych.decoding.strategies import Ancestral
from triptych.models import LanguageModel
from triptych.records import Generation, Prompt
from triptych.seeding import stream_key

NO_RULES = Stopping(block=None, markers=())
"""Only EOS and length end a rollout: a policy must answer for its repetitions."""


class Rollout(NamedTuple):
    """One completion of a prompt."""

    text: str
    token_ids: tuple[int, ...]
    """As drawn, EOS included; never empty."""
    behaviour_logprobs: tuple[float, ...]
    """At the sampling temperature, nats, one a token."""
    is_truncated: bool
    n_tokens: int
    """EOS not counted."""


class RolloutGroup(NamedTuple):
    """A prompt with its completions."""

    prompt: Prompt
    """With `prompt` set to the text that the model read."""
    rollouts: tuple[Rollout, ...]
    prompt_ids: tuple[int, ...]

    @property
    def group(self) -> Group:
        return Group(self.prompt_ids, tuple(one.token_ids for one in self.rollouts))


class Scored(NamedTuple):
    """Rewards of a batch of groups."""

    total: list[list[float | None]]
    """Weighted sums, [prompts][completions]; None where no function scored."""
    by_name: dict[str, list[float | None]]
    """What each function gave, completions in order."""


def roll_out(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    group_size: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    step: int,
) -> list[RolloutGroup]:
    """A group of completions for each prompt, in order; draws depend on seed, step, prompt and sample number alone."""
    engine = Engine(
        lm,
        max_new_tokens=max_new_tokens,
        seed=stream_key(seed, "rollouts", step) >> 1,
        stopping=NO_RULES,
        limits=Limits(),
    )
    strategy = Ancestral(temperature=temperature)
    jobs = [Job(prompt, strategy, sample) for prompt in prompts for sample in range(group_size)]
    done = {(one.prompt_id, one.sample): one for one in engine.run(jobs)}
    return [
        RolloutGroup(
            prompt,
            tuple(_rollout(done[prompt.id, sample], lm.eos_ids) for sample in range(group_size)),
            tuple(encode_prompt(str(prompt.prompt), lm.tokenizer)),
        )
        for prompt in prompts
    ]


def _rollout(one: Generation, eos_ids: frozenset[int]) -> Rollout:
    ids = one.token_ids
    ended = ids[-1] in eos_ids
    return Rollout(one.text, ids, one.sampler_logprobs or (), not ended, len(ids) - ended)


def score_rollouts(groups: Sequence[RolloutGroup], rewards: Sequence[NamedReward]) -> Scored:
    """Calls every reward once, on all completions of the batch.

    Functions are given the columns `record`, `id`, `category`, `answers` and `checks` of the prompt, `n_tokens` and
    `is_truncated`, one value a completion.
    """
    flat = [(group.prompt, one) for group in groups for one in group.rollouts]
    questions = [question_of(prompt.instruction, prompt.input) for prompt, _ in flat]
    columns: Mapping[str, Sequence[Any]] = {
        "record": [prompt for prompt, _ in flat],
        "id": [prompt.id for prompt, _ in flat],
        "category": [prompt.category for prompt, _ in flat],
        "answers": [prompt.answers for prompt, _ in flat],
        "checks": [prompt.checks for prompt, _ in flat],
        "n_tokens": [one.n_tokens for _, one in flat],
        "is_truncated": [one.is_truncated for _, one in flat],
    }
    values = [call_reward(reward, questions, [one.text for _, one in flat], columns) for reward in rewards]
    summed = iter(combine(values, [reward.weight for reward in rewards]))
    total = [[next(summed) for _ in group.rollouts] for group in groups]
    return Scored(total, {reward.name: one for reward, one in zip(rewards, values, strict=True)})
