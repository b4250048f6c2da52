"""The quality-diversity frontier: settings that no other beats on both, every strategy given equally many tries.

Quality is the mean reward where completions were scored, else the model's own mean log-probability, a substitute that
is named as one: likelihood is not quality (Zhang et al. 2021, "Trading Off Diversity and Quality in Natural Language
Generation"). Diversity is EAD-1 over one completion a prompt: Distinct-1 corrected for the amount of text. A strategy
with more settings has more chances to lie on the frontier (Schaeffer et al. 2025), so each point carries the number.

Not here: choosing the settings (the study's configuration, which insists on equal numbers).
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from triptych.decoding.arms import Arm, by_arm, common_prompts, first_samples, key_of
from triptych.decoding.measures import Rewards, from_jackknife, mean_over_prompts
from triptych.metrics import count_word_types, expectation_adjusted_jackknife
from triptych.records import Estimate, FrontierPoint, Generation

LOGPROB_NAME = "mean log-probability (nats per token; not quality)"
DIVERSITY_NAME = "EAD-1 across prompts"


class _Point(NamedTuple):
    arm: Arm
    quality: Estimate
    diversity: Estimate


def build_frontier(
    generations: Sequence[Generation], rewards: Rewards | None = None, *, reward_model: str | None = None, seed: int = 0
) -> list[FrontierPoint]:
    """One point a setting, arms in the order given, all on the prompts that every arm completed.

    Where there are rewards, on those of them that are scored in every arm, and where none is, in log-probabilities.

    The vocabulary size V of EAD-1 is the number of word types in the texts compared, which `method` states.
    Empty where the arms share no prompt.
    """
    arms = {arm: first_samples(rows) for arm, rows in by_arm(generations).items()}
    prompts = common_prompts(list(arms.values()))
    if not prompts:
        return []
    known = [] if rewards is None else [p for p in prompts if _is_scored([own[p] for own in arms.values()], rewards)]
    scored, prompts = (rewards, known) if known else (None, prompts)
    rows = {arm: [firsts[prompt_id] for prompt_id in prompts] for arm, firsts in arms.items()}
    vocabulary_size = count_word_types(generation.text for own in rows.values() for generation in own)
    points = [
        _Point(arm, _quality(own, scored, seed), _diversity([g.text for g in own], vocabulary_size))
        for arm, own in rows.items()
    ]
    quality_name = LOGPROB_NAME if scored is None else f"mean reward ({reward_model or 'reward model'})"
    budgets = Counter(arm.strategy for arm in rows)
    return [
        _record(point, quality_name, budgets[point.arm.strategy], is_on_frontier(point, points)) for point in points
    ]


def is_on_frontier(point: _Point, points: Sequence[_Point]) -> bool:
    """Whether both figures of the point exist and no other point is at least as good on both and better on one."""
    if point.quality.mean is None or point.diversity.mean is None:
        return False
    return not any(_dominates(other, point) for other in points)


def _dominates(one: _Point, other: _Point) -> bool:
    # NaN, which stands for no value, compares as false: such a point dominates nothing.
    quality, diversity = one.quality.value - other.quality.value, one.diversity.value - other.diversity.value
    return quality >= 0.0 and diversity >= 0.0 and (quality > 0.0 or diversity > 0.0)


def _is_scored(rows: Sequence[Generation], rewards: Rewards) -> bool:
    """Whether every arm's completion of a prompt is; a prompt that is scored for some arms alone compares nothing."""
    return all(rewards.get(key_of(generation)) is not None for generation in rows)


def _quality(rows: Sequence[Generation], rewards: Rewards | None, seed: int) -> Estimate:
    values = [g.mean_logprob if rewards is None else rewards[key_of(g)] for g in rows]
    return mean_over_prompts(values, [g.prompt_id for g in rows], seed=seed)


def _diversity(texts: Sequence[str], vocabulary_size: int) -> Estimate:
    estimate = from_jackknife(expectation_adjusted_jackknife(texts, vocabulary_size), len(texts))
    return estimate.model_copy(
        update={"method": f"{estimate.method}; V = {vocabulary_size:,} word types of the texts compared"}
    )


def _record(point: _Point, quality_name: str, budget: int, on_frontier: bool) -> FrontierPoint:
    return FrontierPoint(
        strategy=point.arm.strategy,
        params=point.arm.settings,
        temperature=point.arm.temperature,
        quality=point.quality,
        quality_name=quality_name,
        diversity=point.diversity,
        diversity_name=DIVERSITY_NAME,
        on_frontier=on_frontier,
        budget=budget,
    )
