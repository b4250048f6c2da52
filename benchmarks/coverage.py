"""How often the intervals of the report card's statistics hold the true value, and how often cards raise false alarms.

    python benchmarks/coverage.py [--replications 2000] [--cards 1000] [--seed 0] [--only WORD]

Prints two Markdown tables: the coverage of the 95 % interval of each statistic at 20, 40 and 60 prompts, and the share
of cards of 65 checks with a false alarm before and after correction. The generators are made to look like responses:
skewed lengths, cut at a token limit, prompts of unequal size with effects of their own, paired with the base's. Numbers
of its docs are of the defaults, which take some ten minutes on one core.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit, ndtri, stdtrit

from triptych.auditing.paired import change_in_sd, ratio_of_means, sample_std
from triptych.auditing.thresholds import Above
from triptych.auditing.verdicts import Check, judge
from triptych.auditing.win_rates import length_controlled_win_rate
from triptych.intervals import median, median_difference, rank_correlation
from triptych.metrics import distinct_n, distinct_n_without_each
from triptych.records import Estimate
from triptych.seeding import generator, stream_key
from triptych.stats import clustered_bootstrap, delete_one, exponential, paired_difference, share_difference

FloatArray = npt.NDArray[np.float64]
Rng = np.random.Generator
SIZES = (20, 40, 60)
LARGE = 1_000_000
"""Prompts by which the true value is known."""
CAP = 64.0


class Cell(NamedTuple):
    """A statistic of a population."""

    name: str
    method: str
    draw: Callable[[Rng, int], Any]
    """A sample of so many prompts."""
    estimate: Callable[[Any, int], Estimate]
    """With a seed."""
    truth: Callable[[Any], float] | None
    """Of a very large sample; None: the mean of the estimates themselves, of what depends on the number of prompts."""


# --- Populations ------------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """A value a prompt of a checkpoint and of its base."""

    a: FloatArray
    b: FloatArray


def lengths(spread: float, cap: float = math.inf, shift: float = 0.2, step: float = 1.0) -> Callable[[Rng, int], Pair]:
    """Log-normal lengths of about 35 tokens, correlated 0.5 in their logarithms, cut at a limit, in steps."""

    def draw(rng: Rng, n: int) -> Pair:
        common, own = rng.standard_normal(n), rng.standard_normal((2, n))
        logs = 3.5 + spread * (math.sqrt(0.5) * common + math.sqrt(0.5) * own) + np.array([[shift], [0.0]])
        a, b = np.minimum(step * np.ceil(np.exp(logs) / step), cap)
        return Pair(a, b)

    return draw


def correlated(rho: float, cap: float = math.inf, steps: bool = False) -> Callable[[Rng, int], Pair]:
    """A score and a length that go together; with steps, a score of five values."""

    def draw(rng: Rng, n: int) -> Pair:
        z = rng.standard_normal(n)
        score = rho * z + math.sqrt(1.0 - rho**2) * rng.standard_normal(n)
        return Pair(
            np.clip(np.round(score), -2, 2) if steps else score, np.minimum(np.ceil(np.exp(3.5 + 0.8 * z)), cap)
        )

    return draw


def events(p: float, q: float, rho: float) -> Callable[[Rng, int], Pair]:
    """0 and 1 with rates p and q, correlated within a prompt (probit)."""

    def draw(rng: Rng, n: int) -> Pair:
        z = math.sqrt(rho) * rng.standard_normal(n) + math.sqrt(1.0 - rho) * rng.standard_normal((2, n))
        return Pair(*(z < ndtri(np.array([[p], [q]]))).astype(np.float64))

    return draw


class Clustered(NamedTuple):
    """Values of prompts of unequal size."""

    values: FloatArray
    prompts: npt.NDArray[np.int64]


def tokens(spread: float) -> Callable[[Rng, int], Clustered]:
    """Differences of log-probabilities or KLs of tokens: log-normal effects of prompts, 5 … 60 tokens each."""

    def draw(rng: Rng, n: int) -> Clustered:
        sizes = rng.integers(5, 61, n)
        prompts = np.repeat(np.arange(n), sizes)
        effects = np.exp(spread * rng.standard_normal(n) - spread**2 / 2)
        return Clustered(0.3 * effects[prompts] * rng.gamma(0.5, 2.0, len(prompts)), prompts)

    return draw


def shares(p: float, samples: int = 1) -> Callable[[Rng, int], Clustered]:
    """Yes or no, several samples a prompt whose rates follow a beta distribution (intraclass correlation 0.25)."""

    def draw(rng: Rng, n: int) -> Clustered:
        rates = rng.beta(3.0 * p, 3.0 * (1.0 - p), n) if samples > 1 else np.full(n, p)
        prompts = np.repeat(np.arange(n), samples)
        return Clustered((rng.random(len(prompts)) < rates[prompts]).astype(np.float64), prompts)

    return draw


def wins(theta: float, phi: float) -> Callable[[Rng, int], Pair]:
    """Wins by a logistic regression on the difference in length."""

    def draw(rng: Rng, n: int) -> Pair:
        longer = np.round(20.0 * rng.standard_normal(n) + 5.0)
        return Pair((rng.random(n) < expit(theta + phi * np.tanh(longer / 20.0))).astype(np.float64), longer)

    return draw


class Texts(NamedTuple):
    a: list[str]
    b: list[str]


def written(rng: Rng, n: int) -> Texts:
    """Words by Zipf's law, a topic a prompt, the base's with the same topics and more words."""
    topics = rng.integers(0, 400, (n, 30))

    def text(topic: npt.NDArray[np.int64], size: int) -> str:
        words = np.where(rng.random(size) < 0.4, rng.choice(topic, size), 400 + rng.zipf(1.4, size) % 3000)
        return " ".join(map(str, words))

    sizes = np.minimum(np.ceil(np.exp(3.3 + 0.5 * rng.standard_normal((2, n)))), 80).astype(np.int64)
    return Texts(*([text(topic, size) for topic, size in zip(topics, side, strict=True)] for side in sizes))


# --- Cells ------------------------------------------------------------------------------------------------------------


def _by_prompt(values: FloatArray) -> dict[str, float]:
    return {str(i): float(value) for i, value in enumerate(values)}


def _mean(sample: Clustered, seed: int) -> Estimate:
    return clustered_bootstrap(sample.values.tolist(), sample.prompts.tolist(), seed=seed)


def _share(sample: Clustered, seed: int) -> Estimate:
    return clustered_bootstrap(sample.values.tolist(), sample.prompts.tolist(), seed=seed, is_share=True)


def _change(sample: Pair, seed: int) -> Estimate:
    return paired_difference(sample.a.tolist(), sample.b.tolist(), range(len(sample.a)), seed=seed)


def _standardised(sample: Pair, seed: int) -> Estimate:
    return change_in_sd(_by_prompt(sample.a - sample.b), _by_prompt(sample.b))


def _distinct(sample: Texts, seed: int) -> Estimate:
    value = distinct_n(sample.a, 2) - distinct_n(sample.b, 2)
    return delete_one(
        value, distinct_n_without_each(sample.a, 2) - distinct_n_without_each(sample.b, 2), n=len(sample.a)
    )


def _always(value: float) -> Callable[[Any], float]:
    return lambda sample: value


def _rank_truth(sample: Pair) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(sample.a, sample.b).statistic)


MEAN, CHANGE, SHARE = "bootstrap-t over prompts", "bootstrap-t, at least Student's t", "Wilson, effective size"
JACKKNIFE, LOG_JACKKNIFE = "jackknife, t", "jackknife of logarithms, t"
LENGTHS = {"lengths": lengths(0.6), "lengths of a long tail": lengths(1.0), "lengths cut at 64": lengths(0.6, CAP)}
COARSE = {"steps of 16, cut at 64": lengths(0.6, CAP, step=16.0)}

CELLS: tuple[Cell, ...] = (
    *(
        Cell(f"mean, {what} of tokens", MEAN, tokens(s), _mean, lambda x: float(x.values.mean()))
        for what, s in {"log-normal KL (0.7)": 0.7, "log-normal KL (1.2)": 1.2}.items()
    ),
    Cell(
        "perplexity ratio, log-normal (0.7)",
        "bootstrap-t, exponentiated",
        tokens(0.7),
        lambda x, seed: exponential(_mean(x, seed)),
        lambda x: math.exp(x.values.mean()),
    ),
    *(
        Cell(f"mean difference, {what}", CHANGE, draw, _change, lambda x: float((x.a - x.b).mean()))
        for what, draw in LENGTHS.items()
    ),
    *(
        Cell(f"share {p:g}, {m} a prompt", SHARE, shares(p, m), _share, _always(p))
        for p, m in ((0.05, 1), (0.1, 1), (0.2, 1), (0.5, 1), (0.1, 4), (0.5, 4))
    ),
    *(
        Cell(
            f"difference of shares, {p:g} and {q:g}",
            "Bonett and Price",
            events(p, q, rho),
            lambda x, seed: share_difference(x.a.tolist(), x.b.tolist(), range(len(x.a))),
            _always(p - q),
        )
        for p, q, rho in ((0.05, 0.05, 0.3), (0.15, 0.05, 0.3), (0.2, 0.1, 0.5), (0.5, 0.5, 0.5), (0.5, 0.2, 0.7))
    ),
    *(
        Cell(
            f"median, {what}",
            "order statistics",
            draw,
            lambda x, seed: median(x.a.tolist()),
            lambda x: float(np.median(x.a)),
        )
        for what, draw in {**LENGTHS, **COARSE}.items()
    ),
    *(
        Cell(
            f"difference of medians, {what}",
            "percentile bootstrap",
            draw,
            lambda x, seed: median_difference(x.a.tolist(), x.b.tolist(), seed=seed, n_resamples=500),
            lambda x: float(np.median(x.a) - np.median(x.b)),
        )
        for what, draw in {**LENGTHS, **COARSE}.items()
    ),
    *(
        Cell(
            f"ratio of means, {what}",
            LOG_JACKKNIFE,
            draw,
            lambda x, seed: ratio_of_means(_by_prompt(x.a), _by_prompt(x.b), seed=seed),
            lambda x: float(x.a.mean() / x.b.mean()),
        )
        for what, draw in LENGTHS.items()
    ),
    *(
        Cell(
            f"standard deviation, {what}",
            LOG_JACKKNIFE,
            draw,
            lambda x, seed: sample_std.of(x.a.tolist()),
            lambda x: float(x.a.std()),
        )
        for what, draw in LENGTHS.items()
    ),
    *(
        Cell(
            f"change of a standard deviation, {what}",
            JACKKNIFE,
            draw,
            lambda x, seed: sample_std.difference(x.a.tolist(), x.b.tolist(), seed),
            lambda x: float(x.a.std() - x.b.std()),
        )
        for what, draw in LENGTHS.items()
    ),
    *(
        Cell(
            f"change in standard deviations, {what}",
            JACKKNIFE,
            draw,
            _standardised,
            lambda x: float((x.a - x.b).mean() / x.b.std()),
        )
        for what, draw in LENGTHS.items()
    ),
    *(
        Cell(
            f"rank correlation, {what}",
            "Fisher's z, Bonett and Wright",
            draw,
            lambda x, seed: rank_correlation(x.a.tolist(), x.b.tolist()),
            _rank_truth,
        )
        for what, draw in {
            "no relation": correlated(0.0),
            "lengths cut at 64": correlated(0.4, CAP),
            "five scores, lengths cut at 64": correlated(0.4, CAP, steps=True),
            "a close one (0.8)": correlated(0.8),
        }.items()
    ),
    *(
        Cell(
            f"win rate at equal length, {expit(theta):.2f}",
            "jackknife of logits, t",
            wins(theta, phi),
            lambda x, seed: length_controlled_win_rate(x.a.tolist(), x.b.tolist(), range(len(x.a))),
            _always(float(expit(theta))),
        )
        for theta, phi in ((0.0, 0.5), (0.7, 1.0))
    ),
    Cell("difference of Distinct-2", JACKKNIFE, written, _distinct, None),
)


class Coverage(NamedTuple):
    """How often an interval held the true value."""

    share: float
    """Of samples that have an interval."""
    without: float
    """Share of samples without one."""


def cover(cell: Cell, n_prompts: int, *, replications: int, seed: int) -> Coverage:
    """Simulates one cell."""
    rng = generator(seed, "coverage", cell.name, n_prompts)
    found = [cell.estimate(cell.draw(rng, n_prompts), trial) for trial in range(replications)]
    if cell.truth is None:
        truth = float(np.mean([estimate.value for estimate in found]))
    else:
        truth = cell.truth(cell.draw(generator(seed, "truth", cell.name), LARGE // 10))
    given = [(e.low, e.high) for e in found if e.low is not None and e.high is not None]
    # Rounding must not decide where an end is the true value itself, as with ties.
    near = 1e-9 * max(1.0, abs(truth))
    hits = sum(low - near <= truth <= high + near for low, high in given)
    return Coverage(hits / max(1, len(given)), 1.0 - len(given) / replications)


# --- Cards ------------------------------------------------------------------------------------------------------------

CHECKS = 65
LIMITS = Above(warn=0.1, severe=0.5)


class Alarms(NamedTuple):
    """Of cards, how many have a false alarm; of checks with a planted effect, how many are seen."""

    uncorrected: float
    corrected: float
    false_discoveries: float
    """Mean share of alarms that are false, after correction."""
    seen_uncorrected: float
    seen: float


def cards(n_cards: int, *, n_prompts: int, planted: int, correlation: float, seed: int) -> Alarms:
    """Simulates cards whose true values all lie at the warning threshold, but for `planted` ones that are beyond.

    Checks share an effect of the prompt, half of them with the opposite sign: dependence of both kinds. Values are
    skewed, and each check is judged by the t-interval of its mean. A planted value lies five standard errors beyond.
    """
    rng = generator(seed, "cards", n_prompts, planted, int(100 * correlation))
    half = float(stdtrit(n_prompts - 1, 0.975)) / math.sqrt(n_prompts)
    rows: list[FloatArray] = []
    for _ in range(n_cards):
        common = rng.standard_normal(n_prompts) * np.where(np.arange(CHECKS) % 2, 1.0, -1.0)[:, None]
        noise = (rng.gamma(4.0, 1.0, (CHECKS, n_prompts)) - 4.0) / 2.0
        values = LIMITS.warn + math.sqrt(correlation) * common + math.sqrt(1.0 - correlation) * noise
        values[:planted] += 5.0 / math.sqrt(n_prompts)
        checks = [Check(_student(row, half), LIMITS, "above") for row in values]
        beyond = np.array([c.estimate.low is not None and c.estimate.low > LIMITS.warn for c in checks])
        alarms = np.array([verdict.level in ("warn", "severe") for verdict in judge(checks)])
        rows.append(
            np.array(
                (
                    beyond[planted:].any(),
                    alarms[planted:].any(),
                    alarms[planted:].sum() / max(1, alarms.sum()),
                    beyond[:planted].mean() if planted else math.nan,
                    alarms[:planted].mean() if planted else math.nan,
                ),
                dtype=np.float64,
            )
        )
    return Alarms(*(float(column) for column in np.mean(rows, axis=0)))


def _student(values: FloatArray, half: float) -> Estimate:
    mean, error, n = float(values.mean()), half * float(values.std(ddof=1)), len(values)
    return Estimate(mean=mean, low=mean - error, high=mean + error, n=n, n_clusters=n, method="95% Student's t")


# --- Tables -----------------------------------------------------------------------------------------------------------


def coverage_lines(cells: Sequence[Cell], replications: int, seed: int) -> list[str]:
    """A Markdown table; cells outside 93 … 97 % by more than two Monte-Carlo errors are in bold."""
    error = math.sqrt(0.95 * 0.05 / replications)
    lines = [
        f"| of | interval | {' | '.join(f'{n} prompts' for n in SIZES)} |",
        f"|---|---|{'---|' * len(SIZES)}",
    ]
    for cell in cells:
        shown = []
        for n in SIZES:
            found = cover(cell, n, replications=replications, seed=seed)
            text = (
                f"{100 * found.share:.1f}"
                if abs(found.share - 0.95) <= 0.02 + 2 * error
                else f"**{100 * found.share:.1f}**"
            )
            shown.append(text + (f" ({100 * found.without:.0f} % without)" if found.without >= 0.005 else ""))
        lines.append(f"| {cell.name} | {cell.method} | {' | '.join(shown)} |")
        print(lines[-1], flush=True)
    return lines


def card_lines(n_cards: int, seed: int) -> list[str]:
    lines = [
        "| prompts | correlation | planted | false alarm on a card, before | after | false | seen before | after |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for n in SIZES:
        for correlation in (0.0, 0.5):
            for planted in (0, 10):
                a = cards(n_cards, n_prompts=n, planted=planted, correlation=correlation, seed=seed)
                seen = (f"{100 * a.seen_uncorrected:.0f} %", f"{100 * a.seen:.0f} %") if planted else ("–", "–")
                shares_ = (f"{100 * value:.1f} %" for value in (a.uncorrected, a.corrected, a.false_discoveries))
                lines.append(f"| {n} | {correlation:g} | {planted} | {' | '.join((*shares_, *seen))} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replications", type=int, default=2000)
    parser.add_argument("--cards", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cells whose names hold this word")
    given = parser.parse_args()
    cells = [cell for cell in CELLS if given.only in cell.name]
    error = 100 * math.sqrt(0.95 * 0.05 / given.replications)
    print(f"{given.replications:,} replications a cell; Monte-Carlo standard error {error:.1f} points at 95 %.\n")
    coverage_lines(cells, given.replications, stream_key(given.seed, "coverage") >> 33)
    if not given.only:
        print("\n" + "\n".join(card_lines(given.cards, given.seed)))


if __name__ == "__main__":
    main()
