"""The paper's statements about decoding, each with the function that tests it on a run.

To add one: a function `Evidence → Finding | NotTested` and one entry in `STATEMENTS`.

A statement about several N at once ("for every N-gram") is an intersection: it is reported by the part that is hardest
on it, which needs no correction to agree (Berger 1982) and one over the parts to disagree.

Not here: verdicts (`claims`), the numbers themselves (`contrasts`). Longer than most files: each sentence should
stand in sight of its test.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from triptych.decoding.arms import Arm
from triptych.decoding.contrasts import (
    Contrast,
    Evidence,
    beam_leads,
    cumulative_gap,
    distinct_slope_gaps,
    distinct_slopes,
    equal_number_of_texts,
    log_spread_ratio,
    logprob_slopes,
    over_prompts,
    reward_gap_at_equal_diversity,
    reward_gap_at_equal_temperature,
    reward_slope_over_diversity,
    within_minus_across,
    within_minus_across_equal,
)
from triptych.decoding.measures import mean_over_prompts
from triptych.records import Generation
from triptych.stats import clustered_bootstrap

WITHIN_TEMPERATURE = 0.8
"""The temperature of the paper's figure 6."""


class Finding(NamedTuple):
    """What a run measured about a statement."""

    contrast: Contrast
    detail: str
    """Sentences with the numbers behind it, and what else to know."""


class NotTested(NamedTuple):
    """Why a run cannot test a statement."""

    reason: str


class Statement(NamedTuple):
    """A sentence of the paper and how to test it."""

    claim: str
    where: str
    quantity: str
    sign: int
    """+1 where the quantity is positive if the paper is right, -1 where it is negative."""
    test: Callable[[Evidence], Finding | NotTested]


def hardest(parts: Sequence[Contrast], sign: int) -> Contrast:
    """Of several contrasts that should all have one sign, the one that speaks most against it."""

    def support(part: Contrast) -> float:
        low, high = part.estimate.low, part.estimate.high
        if low is None or high is None:
            return float("-inf")
        return low if sign > 0 else -high

    chosen = min(parts, key=support)
    is_opposed = chosen.estimate.value * sign < 0
    p = None if chosen.p is None else min(1.0, chosen.p * (len(parts) if is_opposed else 1))
    return chosen._replace(p=p)


# --- log-probability --------------------------------------------------------------------------------------------------


def _falls_with_temperature(strategy: str) -> Callable[[Evidence], Finding | NotTested]:
    def test(evidence: Evidence) -> Finding | NotTested:
        sweep = evidence.sweep(strategy)
        if not sweep:
            return _no_sweep(strategy)
        contrast = over_prompts(logprob_slopes(evidence, sweep), evidence.seed)
        ends = [_mean_logprob(evidence, arm) for arm in (sweep[0], sweep[-1])]
        detail = (
            f"Mean log-probability is {_number(ends[0])} at T {sweep[0].temperature:g} and {_number(ends[1])} at "
            f"T {sweep[-1].temperature:g}; the slope is that of a straight line through {len(sweep)} temperatures, "
            "prompt by prompt."
        )
        return Finding(contrast, detail)

    return test


def _top_p_falls_faster(evidence: Evidence) -> Finding | NotTested:
    pair = _same_temperatures(evidence.sweep("top_p"), evidence.sweep("top_k"))
    if pair is None:
        return _no_pair()
    nucleus, fixed = (logprob_slopes(evidence, sweep) for sweep in pair)
    gaps = {
        prompt_id: None if (a := nucleus[prompt_id]) is None or (b := fixed[prompt_id]) is None else a - b
        for prompt_id in nucleus
        if prompt_id in fixed
    }
    means = [_number(over_prompts(slopes, evidence.seed).estimate.mean) for slopes in (nucleus, fixed)]
    detail = f"Slopes of {means[0]} (top-p) and {means[1]} (top-k) nats per token and unit of temperature."
    return Finding(over_prompts(gaps, evidence.seed), detail)


def _greedy_is_narrower(evidence: Evidence) -> Finding | NotTested:
    greedy, beam = evidence.only("greedy"), evidence.only("beam")
    if greedy is None or beam is None:
        return NotTested("This run has no greedy or no beam arm.")
    contrast = log_spread_ratio(evidence, beam, greedy)
    return Finding(contrast, "0 is an equal standard deviation over prompts, 0.69 one twice as large for beams.")


def _beams_find_more_probable(evidence: Evidence) -> Finding | NotTested:
    greedy, beam = evidence.only("greedy"), evidence.only("beam")
    if greedy is None or beam is None:
        return NotTested("This run has no greedy or no beam arm.")
    tokens = [_mean(evidence, arm, lambda generation: float(generation.n_tokens)) for arm in (beam, greedy)]
    detail = (
        f"Beam completions have {tokens[0]:.1f} tokens on average, greedy ones {tokens[1]:.1f}; a sum over fewer "
        "tokens is higher for that alone."
    )
    return Finding(cumulative_gap(evidence, beam, greedy), detail)


def _beam_has_one_winner(evidence: Evidence) -> Finding | NotTested:
    beam = evidence.only("beam")
    if beam is None:
        return NotTested("This run has no beam arm.")
    leads = beam_leads(evidence, beam)
    rivals = {prompt_id: lead for prompt_id, lead in leads.items() if lead is not None}
    if not rivals:
        return NotTested("No prompt of this run has a runner-up to its best beam: none was kept, or none ended alike.")
    contrast = over_prompts({k: None if lead is None else lead.log_odds for k, lead in leads.items()}, evidence.seed)
    gap = over_prompts({prompt_id: lead.gap for prompt_id, lead in rivals.items()}, evidence.seed)
    majority = clustered_bootstrap(
        [float(lead.log_odds > 0.0) for lead in rivals.values()], list(rivals), seed=evidence.seed, is_share=True
    )
    detail = (
        f"Above 0 the best beam is more probable than all runners-up together. It leads the next-best by "
        f"{_listed([gap])} nats (never below 0, so that this alone says nothing), and is more probable than all others "
        f"together at a share of {_listed([Contrast(majority, None)])} of the prompts. Complete beams are compared "
        f"with complete ones, cut ones with cut ones; {len(leads) - len(rivals)} of {len(leads)} prompts have no such "
        "runner-up."
    )
    return Finding(contrast, detail)


# --- diversity --------------------------------------------------------------------------------------------------------


def _distinct_rises(strategy: str) -> Callable[[Evidence], Finding | NotTested]:
    def test(evidence: Evidence) -> Finding | NotTested:
        sweep = evidence.sweep(strategy)
        if not sweep:
            return _no_sweep(strategy)
        slopes = distinct_slopes(evidence, sweep)
        cut = distinct_slopes(evidence, sweep, length=evidence.fixed_length)
        detail = (
            f"Slopes of Distinct-1, -2, -3: {_listed(slopes)}; the one hardest on the statement decides. "
            f"{_at_length(evidence, cut)}: {_listed(cut)}."
        )
        return Finding(hardest(slopes, +1), detail)

    return test


def _larger_n_climbs_faster(strategy: str) -> Callable[[Evidence], Finding | NotTested]:
    def test(evidence: Evidence) -> Finding | NotTested:
        sweep = evidence.sweep(strategy)
        if not sweep:
            return _no_sweep(strategy)
        gaps = distinct_slope_gaps(evidence, sweep)
        cut = distinct_slope_gaps(evidence, sweep, length=evidence.fixed_length)
        detail = (
            f"Slope of Distinct-2 less that of Distinct-1, and of Distinct-3 less Distinct-2: {_listed(gaps)}; the one "
            f"hardest on the statement decides. {_at_length(evidence, cut)}: {_listed(cut)}. "
            "No Distinct-N exceeds 1, so one that starts near it has no room to climb."
        )
        return Finding(hardest(gaps, +1), detail)

    return test


def _within_exceeds_across(evidence: Evidence) -> Finding | NotTested:
    arm = _arm_within(evidence)
    if arm is None:
        return _no_samples_within()
    parts = within_minus_across(evidence, arm)
    n_within, n_across = _numbers_of_texts(evidence, arm)
    detail = (
        f"Differences for N = 1, 2, 3: {_listed(parts)}; the one hardest on the statement decides. As the paper "
        f"counts, {n_within} texts of one prompt stand against {n_across} texts of as many prompts, and Distinct-N "
        "falls with the number of texts: the comparison favours the smaller pool whatever the texts say."
    )
    return Finding(hardest(parts, +1), detail)


def _within_exceeds_across_equal(evidence: Evidence) -> Finding | NotTested:
    arm = _arm_within(evidence)
    if arm is None:
        return _no_samples_within()
    size = equal_number_of_texts(evidence, arm)
    if size < 2:
        return NotTested("Too few prompts to draw as many of them as a prompt has samples.")
    parts = within_minus_across_equal(evidence, arm)
    detail = (
        f"Differences for N = 1, 2, 3 with {size} texts on either side: {_listed(parts)}; the one hardest on the "
        "statement decides."
    )
    return Finding(hardest(parts, +1), detail)


# --- reward -----------------------------------------------------------------------------------------------------------


def _diversity_costs_reward(strategy: str) -> Callable[[Evidence], Finding | NotTested]:
    def test(evidence: Evidence) -> Finding | NotTested:
        if not _is_scored(evidence):
            return _unscored()
        sweep = evidence.sweep(strategy)
        if not sweep:
            return _no_sweep(strategy)
        contrast = reward_slope_over_diversity(evidence, sweep)
        return Finding(contrast, f"A straight line through {len(sweep)} temperatures.")

    return test


def _top_p_scores_higher(
    gap: Callable[[Evidence, Sequence[Arm], Sequence[Arm]], Contrast], detail: str
) -> Callable[[Evidence], Finding | NotTested]:
    def test(evidence: Evidence) -> Finding | NotTested:
        if not _is_scored(evidence):
            return _unscored()
        pair = _same_temperatures(evidence.sweep("top_p"), evidence.sweep("top_k"))
        return _no_pair() if pair is None else Finding(gap(evidence, *pair), detail)

    return test


STATEMENTS: tuple[Statement, ...] = (
    Statement(
        "Greedy gives a narrow range of average log probabilities across samples. In contrast, beam search spreads out "
        "more.",
        "Discussion, paragraph 1; figures 1 and 2",
        "ln(SD of beam / SD of greedy) of mean log-probability over prompts",
        +1,
        _greedy_is_narrower,
    ),
    Statement(
        "Greedy wins locally, yet might skip smarter full-run options.",
        "Discussion, paragraph 1; figure 3",
        "cumulative log-probability of beam less greedy, paired by prompt (nats a completion)",
        +1,
        _beams_find_more_probable,
    ),
    Statement(
        "There's a wide space between the top and next-best beam: the beam locks onto one main option.",
        "Discussion, paragraph 2; figure 3",
        "ln(probability of the best beam / that of the runners-up together)",
        +1,
        _beam_has_one_winner,
    ),
    *(
        Statement(
            f"{name} gets lower in average token log probability once temperature goes up.",
            "Discussion, paragraph 3; figure 4",
            f"slope of mean log-probability over temperature, {name.lower()} (nats per token and unit of temperature)",
            -1,
            _falls_with_temperature(strategy),
        )
        for strategy, name in (("top_k", "Top-K"), ("top_p", "Top-P"))
    ),
    Statement(
        "Top-P plunges faster compared to Top-K that eases down relatively more gently.",
        "Discussion, paragraph 3; figure 4",
        "slope of mean log-probability over temperature, top-p less top-k, paired by prompt",
        -1,
        _top_p_falls_faster,
    ),
    *(
        Statement(
            f"Distinct-N climbs as the temperature is increased ({name}).",
            "Discussion, paragraph 4; figure 5",
            f"slope of Distinct-N across prompts over temperature, {name.lower()}, N = 1, 2, 3",
            +1,
            _distinct_rises(strategy),
        )
        for strategy, name in (("top_k", "Top-K"), ("top_p", "Top-P"))
    ),
    *(
        Statement(
            f"The larger value of N climbs the fastest as the temperature is increased ({name}).",
            "Discussion, paragraph 4; figure 5",
            f"slope of Distinct-N over temperature less that of Distinct-(N-1), {name.lower()}, N = 2, 3",
            +1,
            _larger_n_climbs_faster(strategy),
        )
        for strategy, name in (("top_k", "Top-K"), ("top_p", "Top-P"))
    ),
    Statement(
        "For every N-gram, within-prompt diversity is constantly greater than across-prompt diversity.",
        "Discussion, paragraph 5; figure 6",
        "Distinct-N within a prompt less across prompts, top-p, N = 1, 2, 3, each with the number of texts it has",
        +1,
        _within_exceeds_across,
    ),
    Statement(
        "For every N-gram, within-prompt diversity is constantly greater than across-prompt diversity: the same with "
        "equal numbers of texts.",
        "Discussion, paragraph 5; figure 6",
        "Distinct-N within a prompt less across as many prompts as it has samples, top-p, N = 1, 2, 3",
        +1,
        _within_exceeds_across_equal,
    ),
    *(
        Statement(
            f"Increasing diversity (Distinct-1) typically results in a lower average reward score ({name}).",
            "Discussion, paragraph 5; figure 7",
            f"slope of mean reward over Distinct-1 across temperatures, {name.lower()}",
            -1,
            _diversity_costs_reward(strategy),
        )
        for strategy, name in (("top_k", "Top-K"), ("top_p", "Top-P"))
    ),
    Statement(
        "Across similar levels of diversity, Top-P Sampling consistently achieves a higher reward score than Top-K "
        "Sampling.",
        "Discussion, paragraph 6; figure 7",
        "reward of top-p less top-k at equal Distinct-1, averaged over the range that both reach",
        +1,
        _top_p_scores_higher(
            reward_gap_at_equal_diversity, "Rewards between two temperatures are interpolated linearly over Distinct-1."
        ),
    ),
    Statement(
        "Top-P sampling performs better than Top-K when it comes to reward scores with consistency.",
        "Conclusion; figure 7",
        "reward of top-p less top-k at equal temperature, paired by prompt",
        +1,
        _top_p_scores_higher(reward_gap_at_equal_temperature, "The mean over the temperatures that both have."),
    ),
)


# --- small parts ------------------------------------------------------------------------------------------------------


def _no_sweep(strategy: str) -> NotTested:
    return NotTested(f"This run has no {strategy} arm at two or more temperatures.")


def _no_pair() -> NotTested:
    return NotTested("This run has no two temperatures that both top_k and top_p were run at.")


def _no_samples_within() -> NotTested:
    return NotTested("This run has no top_p arm with several samples of at least two prompts.")


def _unscored() -> NotTested:
    return NotTested("No completion has a reward: give the run a reward model (`decoding.reward_model`).")


def _is_scored(evidence: Evidence) -> bool:
    return any(reward is not None for reward in (evidence.rewards or {}).values())


def _same_temperatures(ours: Sequence[Arm], theirs: Sequence[Arm]) -> tuple[list[Arm], list[Arm]] | None:
    """Both sweeps at the temperatures that both have; None with fewer than two."""
    shared = {arm.temperature for arm in ours} & {arm.temperature for arm in theirs}
    if len(shared) < 2:
        return None
    return [arm for arm in ours if arm.temperature in shared], [arm for arm in theirs if arm.temperature in shared]


def _arm_within(evidence: Evidence) -> Arm | None:
    """The top-p arm with several samples of at least two prompts, nearest the paper's temperature."""
    candidates = [
        arm
        for arm in evidence.arms
        if arm.strategy == "top_p" and _numbers_of_texts(evidence, arm)[0] >= 2 and arm.temperature is not None
    ]
    return min(candidates, key=lambda arm: abs((arm.temperature or 0.0) - WITHIN_TEMPERATURE), default=None)


def _numbers_of_texts(evidence: Evidence, arm: Arm) -> tuple[int, int]:
    """Samples of a prompt (of those that have several; 0 with fewer than two such prompts), and prompts."""
    counts: dict[str, int] = {}
    for generation in evidence.arms[arm]:
        counts[generation.prompt_id] = counts.get(generation.prompt_id, 0) + 1
    several = [count for count in counts.values() if count >= 2]
    return (min(several) if len(several) >= 2 else 0), len(counts)


def _mean(evidence: Evidence, arm: Arm, value: Callable[[Generation], float | None]) -> float:
    rows = evidence.arms[arm]
    return mean_over_prompts(
        [value(generation) for generation in rows], [generation.prompt_id for generation in rows], seed=evidence.seed
    ).value


def _mean_logprob(evidence: Evidence, arm: Arm) -> float:
    return _mean(evidence, arm, lambda generation: generation.mean_logprob)


def _number(value: float | None) -> str:
    return "no value" if value is None else f"{value:.3f}".replace("-", "−")


def _at_length(evidence: Evidence, parts: Sequence[Contrast]) -> str:
    n_prompts = parts[0].estimate.n_clusters
    return (
        f"On the first {evidence.fixed_length} words of the {n_prompts} prompts that have as many at every temperature"
    )


def _listed(parts: Sequence[Contrast]) -> str:
    """`0.12 [0.10, 0.14], 0.31 [0.25, 0.36]`."""
    shown = []
    for part in parts:
        low, high = part.estimate.low, part.estimate.high
        bounds = "(no interval)" if low is None or high is None else f"[{_number(low)}, {_number(high)}]"
        shown.append(f"{_number(part.estimate.mean)} {bounds}")
    return ", ".join(shown)
