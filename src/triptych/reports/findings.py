"""The summary: what this run found about decoding, in sentences made of its own numbers.

A sentence stands here only if the run measured what it says, and always with its interval. It states values and leaves
the judging of differences to the claims, whose verdicts come with the run.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from triptych.records import Estimate, Verdict
from triptych.reports.arms import Arm, at_temperature, families, name_arms, name_families
from triptych.reports.figures.spec import arms_of, sweeps
from triptych.reports.figures.tradeoff import is_scored
from triptych.reports.format import NBSP, joined, plural, probability, with_interval
from triptych.reports.glossary import Scope
from triptych.reports.inputs import Decoding
from triptych.reports.settings import model_name

VERDICT_WORDS: dict[Verdict, tuple[str, str]] = {
    "agrees": ("agrees with this run", "agree with this run"),
    "disagrees": ("disagrees", "disagree"),
    "undecided": ("is undecided at this sample size", "are undecided at this sample size"),
    "not tested": ("is not tested", "are not tested"),
}
"""Of one claim, and of several."""

SURE = 0.9
"""Settings that are on the frontier at least so probably are counted apart."""


def findings(run: Decoding) -> tuple[str, ...]:
    """Sentences, in order; at least the first."""
    return (_what_was_done(run), *(sentence for find in _FINDERS for sentence in find(run)))


def _what_was_done(run: Decoding) -> str:
    names = name_families(run.arms)
    counts = Counter(arm.family for arm in run.arms)
    listed = [
        names[family] + (f" at {counts[family]} temperatures" if counts[family] > 1 else "")
        for family in families(run.arms)
    ]
    further = f", and {run.n_tuning:,} of settings tried for the frontier alone" if run.n_tuning else ""
    return (
        f"The model {model_name(run)} answered {plural(len(run.prompt_ids), 'prompt')} with {joined(listed)}: "
        f"{plural(run.n_completions, 'completion')}{further}. Brackets are 95{NBSP}% intervals, clustered by prompt."
    )


def _greedy_and_beam(run: Decoding) -> Iterator[str]:
    names = name_arms(run.arms)
    values = [
        f"{with_interval(estimate)} for {names[arm]}"
        for arm in arms_of(run, "greedy", "beam")
        if (estimate := run.measure(arm, "mean_logprob", "arm")) is not None and estimate.mean is not None
    ]
    if values:
        yield f"The mean log-probability of a completion is {joined(values)} (nats per token)."


def temperature(run: Decoding) -> Iterator[str]:
    yield from _ends_of_sweeps(run, "mean_logprob", "arm", "the mean log-probability goes from")
    yield from _ends_of_sweeps(run, "distinct_2", "across", "Distinct-2 across prompts goes from")


def _ends_of_sweeps(run: Decoding, metric: str, scope: Scope, says: str) -> Iterator[str]:
    """The first and the last temperature of every sweep; the figures have those between."""
    names, parts, span = name_families(run.arms), [], None
    for family in families(sweeps(run)):
        points = run.sweep([arm for arm in run.arms if arm.family == family], metric, scope)
        if len(points) < 2 or span not in (None, (points[0][0], points[-1][0])):
            continue
        span = (points[0][0], points[-1][0])
        parts.append(f"{with_interval(points[0][1])} to {with_interval(points[-1][1])} for {names[family]}")
    if span is not None:
        yield f"From {at_temperature(span[0])} to {at_temperature(span[1])}, {says} {joined(parts)}."


def _endings(run: Decoding) -> Iterator[str]:
    names = name_arms(run.arms)
    shares = {
        arm: estimate
        for arm in run.arms
        if (estimate := run.measure(arm, "stop_repeat", "arm")) is not None and estimate.mean is not None
    }
    if not shares:
        return
    most = max(shares, key=lambda arm: shares[arm].value)
    if shares[most].value > 0:
        yield (
            f"In this run the repetition rule stops completions most often under {names[most]}: a share of "
            f"{with_interval(shares[most])}{_as_high(shares, most)}."
        )


def _as_high(estimates: Mapping[Arm, Estimate], best: Arm) -> str:
    """How many other arms may be as high as the highest, by intervals that reach its own."""
    low = estimates[best].low
    if low is None:
        return ""
    others = [e for arm, e in estimates.items() if arm != best and e.high is not None and e.high >= low]
    if not others:
        return ", and no other arm's interval reaches its own"
    return f"; the intervals of {plural(len(others), 'other arm')} reach its own, so that it need not be the highest"


def _rewards(run: Decoding) -> Iterator[str]:
    if not is_scored(run):
        yield "No completion was scored by a reward model, so nothing here speaks of quality as the paper measures it."
        return
    names = name_arms(run.arms)
    scored = {arm: e for arm in sweeps(run) if (e := run.measure(arm, "reward")) is not None and e.mean is not None}
    best = max(scored, key=lambda arm: scored[arm].value)
    yield (
        f"The highest mean reward among {plural(len(scored), 'sampling arm')} is {with_interval(scored[best])}, of "
        f"{names[best]}{_as_high(scored, best)}."
    )


def _frontier(run: Decoding) -> Iterator[str]:
    names = name_arms(arm for arm, _ in run.frontier)
    chances = {arm: p.on_frontier_probability for arm, p in run.frontier if p.on_frontier_probability is not None}
    if not chances:
        return
    on_it = [
        f"{names[arm]} (probability {probability(chances[arm])})"
        for arm, point in run.frontier
        if point.on_frontier and arm in chances
    ]
    sure = sum(chance >= SURE for chance in chances.values())
    quality = "reward" if is_scored(run) else "log-probability, which is not quality"
    yield (
        f"By their means, {len(on_it)} of {plural(len(run.frontier), 'setting')} tried are on the frontier of "
        f"diversity and {quality}: {joined(on_it)}. {sure} of all tried are on it with a probability of {SURE} or more."
    )


def claims(run: Decoding) -> Iterator[str]:
    if not run.claims:
        return
    found = Counter(claim.verdict for claim in run.claims)
    parts = [f"{n} {words[n > 1]}" for verdict, words in VERDICT_WORDS.items() if (n := found[verdict])]
    yield f"Of {plural(len(run.claims), 'claim')} that the paper makes about decoding: {joined(parts)}."


_FINDERS: tuple[Callable[[Decoding], Iterator[str]], ...] = (
    _greedy_and_beam,
    temperature,
    _endings,
    _rewards,
    _frontier,
    claims,
)
