"""How often the collapse watch of GRPO raises an alarm on a run that is healthy, and how often it sees one that dies.

    python benchmarks/watch_alarms.py [--runs 400] [--seed 0] [--metrics RUN/metrics.jsonl]…

Healthy runs are simulated from their completions: prompts with lengths of their own, completions that go on in groups
of four, and a policy whose mean length, entropy and readiness to end wander from step to step (an autoregression of
0.9) about where they are, or slowly get better. With `--metrics` they are replayed from real runs instead: their steps
are drawn in blocks of three, so that what follows one another stays together; a trend is lost. Dying runs are healthy
ones that fall silent over 20 steps from the middle on. Prints a Markdown table with Wilson's 95 % intervals.
"""

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from triptych.alignment.watch import CollapseWatch
from triptych.alignment.watch_rules import StepHealth, WatchConfig
from triptych.seeding import generator
from triptych.stats import clustered_bootstrap

FloatArray = npt.NDArray[np.float64]
GROUP = 4
CAP = 48.0
"""Tokens."""
WANDER = 0.9
"""Autoregression of what a policy does, from step to step."""
BLOCK = 3


class Policy(NamedTuple):
    """What a policy is like over the steps of a run. [steps]"""

    silent: FloatArray
    """The probability that the end of text is the first token."""
    length: FloatArray
    """Median tokens were there no limit."""
    entropy: FloatArray
    kl: FloatArray
    alike: FloatArray
    """The probability that all rewards of a group are alike."""


def policy(rng: np.random.Generator, steps: int, *, is_learning: bool, dies_at: int | None = None) -> Policy:
    """A stationary policy, or one that learns: half again as long or two thirds, surer, fewer empty completions."""
    way = np.linspace(0.0, 1.0, steps) if is_learning else np.zeros(steps)
    silent = rng.choice([0.005, 0.02, 0.05]) * (1.0 - 0.5 * way) * np.exp(0.3 * wander(rng, steps))
    if dies_at is not None:
        silent = np.maximum(silent, np.clip((np.arange(steps) - dies_at) / 20.0, 0.0, 0.98))
    return Policy(
        silent=silent,
        length=rng.choice([20.0, 35.0, 60.0]) * rng.choice([1.5, 0.67]) ** way * np.exp(0.1 * wander(rng, steps)),
        entropy=rng.uniform(1.0, 3.0) * (1.0 - 0.4 * way) * np.exp(0.08 * wander(rng, steps)),
        kl=0.15 * (way if is_learning else np.full(steps, 0.1)) * np.exp(0.2 * wander(rng, steps)),
        alike=np.full(steps, rng.choice([0.05, 0.3])) + 0.3 * way,
    )


def wander(rng: np.random.Generator, steps: int) -> FloatArray:
    """A stationary autoregression with variance 1. [steps]"""
    path = np.empty(steps)
    path[0] = rng.standard_normal()
    for step in range(1, steps):
        path[step] = WANDER * path[step - 1] + math.sqrt(1.0 - WANDER**2) * rng.standard_normal()
    return path


def healths(rng: np.random.Generator, of: Policy, n_prompts: int) -> Iterable[StepHealth]:
    """What each step shows in n_prompts · 4 completions."""
    for silent, length, entropy, kl, alike in zip(*of, strict=True):
        topic = 0.4 * rng.standard_normal((n_prompts, 1))
        lengths = np.ceil(length * np.exp(topic + 0.5 * rng.standard_normal((n_prompts, GROUP))))
        lengths = np.where(rng.random(lengths.shape) < silent, 0.0, lengths)
        is_cut = lengths >= CAP
        lengths = np.minimum(lengths, CAP)
        p10, middle, p90 = np.quantile(lengths, [0.1, 0.5, 0.9])
        tokens = max(1.0, float(lengths.sum()))
        yield StepHealth(
            empty_rate=float((lengths == 0.0).mean()),
            eos_first=float(np.clip(silent * np.exp(0.5 * rng.standard_normal(n_prompts)), 0.0, 1.0).mean()),
            length_p10=float(p10),
            length_median=float(middle),
            length_p90=float(p90),
            entropy=entropy * float(np.exp(0.15 * rng.standard_normal())),
            zero_variance=float((rng.random(n_prompts) < alike).mean()),
            # The estimate over some hundred tokens has a heavy tail.
            kl=kl * float(rng.gamma(tokens / 60.0) / (tokens / 60.0)),
            truncated_rate=float(is_cut.mean()),
            reward=float(rng.standard_normal()),
        )


def replayed(rng: np.random.Generator, rows: Sequence[dict[str, float]], steps: int) -> Iterable[StepHealth]:
    """Steps of a real run, drawn in blocks."""
    known = [{name: row[name] for name in StepHealth._fields if row.get(name) is not None} for row in rows]
    for _ in range(math.ceil(steps / BLOCK)):
        start = int(rng.integers(0, len(known) - BLOCK + 1))
        yield from (StepHealth(**row) for row in known[start : start + BLOCK])


def read_steps(path: Path) -> list[dict[str, float]]:
    """The GRPO steps of a metrics.jsonl, one mapping a step."""
    steps: dict[int, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row.get("panel") == "grpo":
            steps.setdefault(row["step"], {}).update(row.get("metrics", row))
    return [row for _, row in sorted(steps.items()) if row.get("entropy") is not None]


def worst(steps: Iterable[StepHealth]) -> str | None:
    """The gravest level of a run's alarms."""
    watch = CollapseWatch(WatchConfig(action="warn"))
    levels = {alarm.level for step, health in enumerate(steps) for alarm in watch.observe(step, health)}
    return "severe" if "severe" in levels else "warn" if levels else None


def line(what: str, found: Sequence[str | None]) -> str:
    def share(levels: tuple[str, ...]) -> str:
        estimate = clustered_bootstrap(
            [float(one in levels) for one in found], range(len(found)), seed=0, is_share=True
        )
        ends = (100.0 * (end or 0.0) for end in (estimate.low, estimate.high))
        return f"{100.0 * estimate.value:.1f} % [{', '.join(f'{end:.1f}' for end in ends)}]"

    return f"| {what} | {share(('warn', 'severe'))} | {share(('severe',))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--metrics", type=Path, action="append", default=[])
    given = parser.parse_args()
    print("| runs | with any alarm | with a severe one |\n|---|---|---|")
    for n_prompts in (4, 8):
        for steps in (24, 200):
            for kind in ("healthy", "healthy, learning", "falling silent"):
                rng = generator(given.seed, "watch", n_prompts, steps, kind)
                found = []
                for _ in range(given.runs):
                    dies_at = steps // 3 if kind == "falling silent" else None
                    of = policy(rng, steps, is_learning="learning" in kind, dies_at=dies_at)
                    found.append(worst(healths(rng, of, n_prompts)))
                print(line(f"{kind}, {steps} steps of {n_prompts} × {GROUP} completions", found), flush=True)
    for path in given.metrics:
        rows = read_steps(path)
        for steps in (24, 200):
            rng = generator(given.seed, "watch", str(path), steps)
            found = [worst(replayed(rng, rows, steps)) for _ in range(given.runs)]
            print(line(f"replayed from {path.parent.name} ({len(rows)} steps), {steps} steps", found), flush=True)


if __name__ == "__main__":
    main()
