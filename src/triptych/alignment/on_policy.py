"""On-policy pairs: the best and the worst of n samples of each prompt under a reward (best-versus-worst of n).

Not here: training on them, which is DPO as with any other pairs.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from triptych.alignment.encoding import resolve_template
from triptych.alignment.reward_functions import NamedReward
from triptych.alignment.rewards import load_rewards
from triptych.alignment.rollouts import RolloutGroup, roll_out, score_rollouts
from triptych.data.prompts import load_prompts, question_of
from triptych.data.templates import render_prompt
from triptych.errors import ConfigError, DataError
from triptych.files import atomic_write_text
from triptych.models import LanguageModel, load_language_model
from triptych.progress import progress
from triptych.records import Prompt

logger = logging.getLogger(__name__)

BATCH = 16
"""Prompts that are written to at once."""


class OnPolicyPairs(NamedTuple):
    """What came of the prompts."""

    rows: list[dict[str, Any]]
    n_alike: int
    """Prompts without two finished samples of different text and reward: no pair."""


def make_pairs(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    rewards: Sequence[NamedReward],
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    show_progress: bool,
) -> OnPolicyPairs:
    """One pair a prompt (rendered): the finished samples of highest and of lowest reward.

    Raises `DataError` where no prompt gives a pair.
    """
    rows: list[dict[str, Any]] = []
    with progress(len(prompts), "prompts", "pairs", enabled=show_progress) as meter:
        for start in range(0, len(prompts), BATCH):
            groups = roll_out(
                lm,
                prompts[start : start + BATCH],
                group_size=samples,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed,
                step=0,
            )
            totals = score_rollouts(groups, rewards).total
            rows += [row for g, t in zip(groups, totals, strict=True) if (row := _pair(g, t)) is not None]
            meter.advance(len(groups))
    if not rows:
        raise DataError(
            f"none of {len(prompts)} prompts has finished samples of different reward; raise --samples, "
            "--temperature or --max-new-tokens"
        )
    return OnPolicyPairs(rows, len(prompts) - len(rows))


def write_pairs(path: Path, pairs: OnPolicyPairs) -> None:
    """One JSON object a line: id, question, chosen, rejected, reward_chosen, reward_rejected."""
    atomic_write_text(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in pairs.rows))


def _pair(group: RolloutGroup, rewards: Sequence[float | None]) -> dict[str, Any] | None:
    # Training closes every answer of a pair with EOS: behind one that was cut, it would teach to break off.
    finished = [(r, one.text) for r, one in zip(rewards, group.rollouts, strict=True) if not one.is_truncated]
    usable = [(reward, text) for reward, text in finished if reward is not None and text.strip()]
    if len(usable) < 2:
        return None
    best, worst = max(usable, key=lambda pair: pair[0]), min(usable, key=lambda pair: pair[0])
    if best[0] == worst[0] or best[1] == worst[1]:
        return None
    return {
        "id": group.prompt.id,
        # Named so, it is put into a template when it is read; a `prompt` would count as a finished text.
        "question": question_of(group.prompt.instruction, group.prompt.input),
        "chosen": best[1],
        "rejected": worst[1],
        "reward_chosen": best[0],
        "reward_rejected": worst[0],
    }


def run_pairs(
    model: str,
    source: str,
    out: Path,
    *,
    rewards: Sequence[str],
    samples: int,
    limit: int | None,
    max_new_tokens: int,
    temperature: float,
    template: str,
    adapter: Path | None,
    seed: int,
    show_progress: bool,
) -> OnPolicyPairs:
    """Loads model and prompts, makes the pairs and writes them to the .jsonl file `out`.

    Raises `ConfigError` for what is out of range, and what loading raises.
    """
    if samples < 2:
        raise ConfigError(f"--samples is {samples}; a pair needs at least 2")
    if temperature <= 0.0:
        raise ConfigError(f"--temperature is {temperature}; it must be above 0")
    prompts = load_prompts(source, limit=limit, seed=seed)
    functions = load_rewards(rewards, own=None, device="auto")
    lm = load_language_model(model, adapter=adapter)
    name = resolve_template(template, lm.tokenizer)
    rendered = [prompt.model_copy(update={"prompt": render_prompt(prompt, name, lm.tokenizer)}) for prompt in prompts]
    pairs = make_pairs(
        lm,
        rendered,
        functions,
        samples=samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        show_progress=show_progress,
    )
    write_pairs(out, pairs)
    return pairs
