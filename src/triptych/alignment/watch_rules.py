"""What counts as wrong in what a policy writes: observations of a step, limits of the signals, and the rules of each.

Not here: what is remembered from step to step (`watch`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from triptych.config import Config
from triptych.records import Record

Level = Literal["warn", "severe"]

SHORTEST_BASELINE = 8.0
"""Tokens: completions that were shorter than this from the start may become shorter still and be right."""

ALL_BUT_SILENT = 0.9
"""Share of empty completions that is severe however the run started: it may have collapsed within the first steps."""

LOWEST_ENTROPY = 0.05
"""Nats per token: a policy that was as sure as that from the start has no entropy to lose, nor a multiple to gain."""


class StepHealth(NamedTuple):
    """What was observed of the completions of one step; None where it was not measured.

    NaN and infinity are no "not measured": they are alarms of their own. Lengths are in tokens, EOS not counted.
    """

    empty_rate: float | None = None
    """Share of completions without a single token."""
    eos_first: float | None = None
    """Mean probability of the end of text as the first token: what empty completions are drawn from."""
    length_p10: float | None = None
    """For the record; judged by nothing, as is `length_p90`."""
    length_median: float | None = None
    length_p90: float | None = None
    entropy: float | None = None
    """Of the policy's next token, nats per token."""
    zero_variance: float | None = None
    """Share of groups in which all rewards are alike."""
    kl: float | None = None
    """To the reference, nats per token."""
    truncated_rate: float | None = None
    """Share of completions that ran into the length limit."""
    reward: float | None = None
    """Mean; it is no sign of health, and alarms say so where it rose meanwhile."""


class Alarm(Record):
    """Something went wrong, or got worse: a signal says so once a level, and again after it had recovered."""

    step: int
    signal: str
    """The key of `WatchConfig`; a field of `StepHealth` where that was no finite number."""
    value: float | None
    """Over the window: of mean and median the milder. Steps on end for `zero_variance`; None for no finite number."""
    threshold: float | None
    level: Level
    sentence: str


# --- Limits -----------------------------------------------------------------------------------------------------------


class Rising(Config):
    """Alarms above `warn_at`, and severe ones above `stop_at`."""

    warn_at: float = Field(gt=0.0)
    stop_at: float

    @model_validator(mode="after")
    def _in_order(self) -> "Rising":
        if self.stop_at < self.warn_at:
            raise ValueError(f"stop_at {self.stop_at} comes before warn_at {self.warn_at}")
        return self


class Falling(Config):
    """Alarms below `warn_at`, and severe ones below `stop_at`, as shares of the start."""

    warn_at: float = Field(lt=1.0)
    stop_at: float = Field(ge=0.0)

    @model_validator(mode="after")
    def _in_order(self) -> "Falling":
        if self.stop_at > self.warn_at:
            raise ValueError(f"stop_at {self.stop_at} comes before warn_at {self.warn_at}")
        return self


class Lasting(Config):
    """Alarms after `warn_after` steps on end above a share, and severe ones after `stop_after`."""

    above: float = Field(ge=0.0, lt=1.0)
    warn_after: int = Field(ge=1)
    stop_after: int

    @model_validator(mode="after")
    def _in_order(self) -> "Lasting":
        if self.stop_after < self.warn_after:
            raise ValueError(f"stop_after {self.stop_after} comes before warn_after {self.warn_after}")
        return self


class WatchConfig(Config):
    """What to do about a severe alarm, and what one is. None in place of limits switches a signal off."""

    action: Literal["warn", "stop", "rollback"] = "stop"
    """`warn`: say so and go on; `stop`: end the run; `rollback`: go back to the last healthy step."""
    window: Annotated[int, Field(ge=1)] = 5
    """Steps that are judged together, by the milder of their mean and median."""
    baseline_steps: Annotated[int, Field(ge=1)] = 5
    """How many first steps are the start; nothing is judged before their end."""
    empty_rate: Rising | None = Rising(warn_at=0.15, stop_at=0.3)
    """Above the start's. More than `stop_at` is a warning, and more than 90 % is severe, however the run started."""
    eos_first: Rising | None = Rising(warn_at=0.15, stop_at=0.3)
    """Likewise: the first to move when a policy falls silent, and the least noisy."""
    length_median: Falling | None = Falling(warn_at=0.5, stop_at=0.25)
    """Of the start's, unless that was below 8 tokens."""
    truncated_rate: Rising | None = Rising(warn_at=0.4, stop_at=0.6)
    """Above the start's."""
    entropy_low: Falling | None = Falling(warn_at=0.4, stop_at=0.2)
    """Of the start's. Some loss is normal: what is learnt is no longer tried out."""
    entropy_high: Rising | None = Rising(warn_at=1.75, stop_at=2.5)
    """Times the start's."""
    kl: Rising | None = Rising(warn_at=0.5, stop_at=1.0)
    """Nats per token, whatever the start."""
    zero_variance: Lasting | None = Lasting(above=0.9, warn_after=10, stop_after=20)
    """One step, or a few, without a group that differs is normal with few groups or rewards of 0 and 1."""


class Series(Record):
    """What is remembered of one observation."""

    first: tuple[float, ...] = ()
    recent: tuple[float, ...] = ()


# --- The rules --------------------------------------------------------------------------------------------------------


class _Limits(NamedTuple):
    warn: float
    severe: float


def _as_such(levels: Rising | Falling, start: float) -> _Limits:
    return _Limits(levels.warn_at, levels.stop_at)


def _above_start(levels: Rising | Falling, start: float) -> _Limits:
    return _Limits(start + levels.warn_at, start + levels.stop_at)


def _silence(levels: Rising | Falling, start: float) -> _Limits:
    """Above the start. But a policy that starts half silent is told of, and one that is all silent cannot rise."""
    return _Limits(
        warn=min(start + levels.warn_at, levels.stop_at),
        severe=min(start + levels.stop_at, max(levels.stop_at, ALL_BUT_SILENT)),
    )


def _times_start(levels: Rising | Falling, start: float) -> _Limits:
    return _Limits(start * levels.warn_at, start * levels.stop_at)


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def _plain(value: float) -> str:
    return f"{value:.3g}"


class Rule(NamedTuple):
    """When one observation is wrong, and how to say so."""

    signal: str
    observes: str
    limits: Callable[[Rising | Falling, float], _Limits]
    sentence: str
    outlook: Mapping[Level, str]
    rises: bool = True
    """Wrong is too much of it, not too little."""
    shown: Callable[[float], str] = _plain
    least_start: float = -math.inf
    """Where the start lies below it, the rule does not apply."""


RULES: tuple[Rule, ...] = (
    Rule(
        signal="empty_rate",
        observes="empty_rate",
        limits=_silence,
        shown=_percent,
        sentence="{value} of completions are empty (limit {limit})",
        outlook={"warn": "the policy is learning to stay silent", "severe": "the policy has learnt to stay silent"},
    ),
    Rule(
        signal="eos_first",
        observes="eos_first",
        limits=_silence,
        shown=_percent,
        sentence="the end of text has a probability of {value} as the first token (limit {limit})",
        outlook={"warn": "empty completions are next", "severe": "the policy is about to fall silent, or has"},
    ),
    Rule(
        signal="length_median",
        observes="length_median",
        rises=False,
        limits=_times_start,
        least_start=SHORTEST_BASELINE,
        sentence="the median completion has {value} tokens (limit {limit}; {start} at the start)",
        outlook={"warn": "the policy is shrinking its answers", "severe": "little is left of the policy's answers"},
    ),
    Rule(
        signal="truncated_rate",
        observes="truncated_rate",
        limits=_above_start,
        shown=_percent,
        sentence="{value} of completions run into the length limit (limit {limit}; {start} at the start)",
        outlook={"warn": "the policy is forgetting to end", "severe": "the policy no longer ends its answers"},
    ),
    Rule(
        signal="entropy_low",
        observes="entropy",
        rises=False,
        limits=_times_start,
        least_start=LOWEST_ENTROPY,
        sentence="the entropy is {value} nats a token (limit {limit}; {start} at the start)",
        outlook={"warn": "the policy is ceasing to try anything new", "severe": "the policy writes one thing only"},
    ),
    Rule(
        signal="entropy_high",
        observes="entropy",
        limits=_times_start,
        least_start=LOWEST_ENTROPY,
        sentence="the entropy is {value} nats a token (limit {limit}; {start} at the start)",
        outlook={"warn": "the policy is losing its language", "severe": "the policy babbles"},
    ),
    Rule(
        signal="kl",
        observes="kl",
        limits=_as_such,
        sentence="the policy is {value} nats a token from its reference (limit {limit})",
        outlook={"warn": "it is leaving what the reference knows", "severe": "it has left what the reference knows"},
    ),
)

OBSERVES = {rule.signal: rule.observes for rule in RULES}


def _limits(rule: Rule, config: WatchConfig, series: Series) -> _Limits | None:
    """None: the rule is switched off, does not apply, or the start is not known yet."""
    levels: Rising | Falling | None = getattr(config, rule.signal)
    if levels is None or len(series.first) < config.baseline_steps:
        return None
    start = _middles(rule, series.first).harsh
    return rule.limits(levels, start) if start >= rule.least_start else None


class _Middles(NamedTuple):
    """Mean and median: of shares in small batches the mean is surer, and of one odd batch the median."""

    mild: float
    """What must be wrong for an alarm."""
    harsh: float
    """What must be right for the alarm to end; of the first steps, the start."""


def _middles(rule: Rule, values: Sequence[float]) -> _Middles:
    low, high = sorted((fmean(values), median(values)))
    return _Middles(low, high) if rule.rises else _Middles(high, low)


def level_of(rule: Rule, config: WatchConfig, series: Series, value: float) -> Level | None:
    limits = _limits(rule, config, series)
    if limits is None:
        return None
    sign = 1.0 if rule.rises else -1.0
    if sign * (value - limits.severe) > 0:
        return "severe"
    return "warn" if sign * (value - limits.warn) > 0 else None


def judge(
    rule: Rule, config: WatchConfig, series: Mapping[str, Series], before: Mapping[str, Level], step: int
) -> Alarm | None:
    own, limits = series[rule.observes], _limits(rule, config, series[rule.observes])
    value, harsh = _middles(rule, own.recent)
    level = level_of(rule, config, own, value)
    if level is None and rule.signal in before and level_of(rule, config, own, harsh) is not None:
        level, value = "warn", harsh
    if level is None or limits is None:
        return None
    limit = limits.severe if level == "severe" else limits.warn
    start = _middles(rule, own.first).harsh
    said = rule.sentence.format(value=rule.shown(value), limit=rule.shown(limit), start=rule.shown(start))
    return Alarm(
        step=step,
        signal=rule.signal,
        value=value,
        threshold=limit,
        level=level,
        sentence=f"step {step}: {said}: {rule.outlook[level]}{_although(series.get('reward'), config)}",
    )


def _although(reward: Series | None, config: WatchConfig) -> str:
    """`, although the reward rose from -0.4 to 0`, where it did."""
    if reward is None or len(reward.first) < config.baseline_steps or median(reward.recent) <= median(reward.first):
        return ""
    return f", although the reward rose from {_plain(median(reward.first))} to {_plain(median(reward.recent))}"


def judge_flatness(config: WatchConfig, flat_steps: int, step: int) -> Alarm | None:
    lasting = config.zero_variance
    if lasting is None or flat_steps < lasting.warn_after:
        return None
    level: Level = "severe" if flat_steps >= lasting.stop_after else "warn"
    limit = lasting.stop_after if level == "severe" else lasting.warn_after
    return Alarm(
        step=step,
        signal="zero_variance",
        value=flat_steps,
        threshold=limit,
        level=level,
        sentence=(
            f"step {step}: for {flat_steps} steps on end (limit {limit}), more than {_percent(lasting.above)} of the "
            "groups had one reward for all their completions: nothing is learnt from them"
        ),
    )


def broken(name: str, step: int) -> Alarm:
    return Alarm(
        step=step,
        signal=name,
        value=None,
        threshold=None,
        level="severe",
        sentence=f"step {step}: {name} is no finite number: the computation has broken down",
    )
