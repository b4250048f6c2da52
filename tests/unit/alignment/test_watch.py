import json
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from triptych.alignment.watch import CollapseWatch
from triptych.alignment.watch_rules import (
    Alarm,
    Falling,
    Lasting,
    Level,
    Rising,
    StepHealth,
    WatchConfig,
)
from triptych.config import parse_config
from triptych.errors import ConfigError, DataError
from triptych.seeding import generator

# --- Simulated policies -----------------------------------------------------------------------------------------------

COMPLETIONS, GROUP = 16, 4
"""Of a step: four prompts, as few as anyone trains on."""


def observe(
    rng: np.random.Generator,
    *,
    silent: float = 0.02,
    length: float = 60.0,
    entropy: float = 2.5,
    kl: float = 0.05,
    truncated: float = 0.1,
    alike: float = 0.2,
    reward: float = 0.0,
) -> StepHealth:
    """A step of a policy with these means, as it looks in 16 completions."""
    lengths = np.round(length * np.exp(0.6 * rng.normal(size=COMPLETIONS)))
    lengths[rng.uniform(size=COMPLETIONS) < silent] = 0
    p10, middle, p90 = np.quantile(lengths, [0.1, 0.5, 0.9])
    return StepHealth(
        empty_rate=float(np.mean(lengths == 0)),
        eos_first=float(np.clip(silent + 0.01 * rng.normal(), 0, 1)),
        length_p10=float(p10),
        length_median=float(middle),
        length_p90=float(p90),
        entropy=entropy * float(np.exp(0.15 * rng.normal())),
        zero_variance=float(np.mean(rng.uniform(size=COMPLETIONS // GROUP) < alike)),
        # k3 over a few hundred tokens has a heavy tail.
        kl=kl * float(np.exp(0.5 * rng.normal())),
        truncated_rate=float(np.mean(rng.uniform(size=COMPLETIONS) < truncated)),
        reward=reward + 0.3 * float(rng.normal()),
    )


def run(watch: CollapseWatch, steps: Iterable[StepHealth], first: int = 0) -> list[Alarm]:
    return [alarm for step, health in enumerate(steps, first) for alarm in watch.observe(step, health)]


def between(start: float, end: float, share: float) -> float:
    return start + (end - start) * min(1.0, max(0.0, share))


# How a policy goes wrong, as a function of how far it has got (0 … 1), and the signal that must say so.
COLLAPSES: dict[str, tuple[Callable[[float], dict[str, float]], str]] = {
    "silence": (lambda s: {"silent": between(0.02, 1.0, s), "reward": s, "kl": between(0.05, 0.4, s)}, "empty_rate"),
    "silence, by its first token": (lambda s: {"silent": between(0.02, 1.0, s)}, "eos_first"),
    "ever shorter": (lambda s: {"length": between(60.0, 1.0, s)}, "length_median"),
    "never an end": (lambda s: {"truncated": between(0.1, 1.0, s)}, "truncated_rate"),
    "one thing only": (lambda s: {"entropy": between(2.5, 0.01, s), "alike": between(0.2, 1.0, s)}, "entropy_low"),
    "babble": (lambda s: {"entropy": between(2.5, 10.0, s)}, "entropy_high"),
    "off the reference": (lambda s: {"kl": between(0.05, 4.0, s)}, "kl"),
}


# --- Planted failures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", COLLAPSES)
@pytest.mark.parametrize("seed", range(5))
def test_a_planted_collapse_is_warned_of_and_then_severe(kind: str, seed: int) -> None:
    course, signal = COLLAPSES[kind]
    watch, rng = CollapseWatch(WatchConfig()), generator(seed, kind)
    # Thirty healthy steps, then twenty into the collapse, and ten more.
    found = run(watch, (observe(rng, **course((step - 30) / 20)) for step in range(60)))
    own = [alarm for alarm in found if alarm.signal == signal]
    assert {alarm.level for alarm in own} == {"warn", "severe"}
    assert own[0].level == "warn"
    assert 30 < own[0].step < next(alarm.step for alarm in own if alarm.level == "severe") <= 53
    assert not watch.is_healthy
    # The step to go back to lies before half of the way.
    assert watch.last_healthy_step is not None
    assert 20 < watch.last_healthy_step < 40


@pytest.mark.parametrize("start", [0, 30])
@pytest.mark.parametrize("seed", range(10))
def test_falling_silent_over_twenty_steps_is_warned_of_before_half_of_the_way(start: int, seed: int) -> None:
    course, _ = COLLAPSES["silence"]
    rng = generator(seed, "silence", start)
    found = run(
        CollapseWatch(WatchConfig()), (observe(rng, **course((step - start) / 20)) for step in range(start + 20))
    )
    assert start < found[0].step < start + 10
    assert found[0].signal in ("eos_first", "empty_rate")


@pytest.mark.parametrize("seed", range(10))
def test_a_collapse_within_the_first_steps_is_severe(seed: int) -> None:
    rng = generator(seed, "at once")
    found = run(CollapseWatch(WatchConfig()), (observe(rng, silent=between(0.02, 1.0, step / 2)) for step in range(8)))
    # The start that the watch sees is a silent one already.
    assert "severe" in {alarm.level for alarm in found if alarm.signal == "empty_rate"}


@pytest.mark.parametrize("seed", range(10))
def test_a_sudden_collapse_leaves_a_step_to_go_back_to(seed: int) -> None:
    rng, watch = generator(seed, "sudden"), CollapseWatch(WatchConfig())
    found = run(watch, (observe(rng, silent=0.02 if step < 40 else 1.0) for step in range(50)))
    # Two of five make the mean 40 %, three the median 100 %.
    assert found[0].step == 42
    # The first of the five steps before the collapse that were not called in question.
    assert watch.last_healthy_step == 34


def test_rewards_that_are_all_alike_for_long() -> None:
    watch = CollapseWatch(WatchConfig())
    found = run(watch, [StepHealth(zero_variance=1.0)] * 25)
    assert [(alarm.step, alarm.signal, alarm.level) for alarm in found] == [
        (9, "zero_variance", "warn"),
        (19, "zero_variance", "severe"),
    ]
    assert found[0].sentence == (
        "step 9: for 10 steps on end (limit 10), more than 90 % of the groups had one reward for all their completions: "
        "nothing is learnt from them"
    )


# --- Healthy policies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_noise_is_no_alarm(seed: int) -> None:
    rng, watch = generator(seed, "healthy"), CollapseWatch(WatchConfig())
    assert run(watch, (observe(rng) for _ in range(200))) == []
    assert watch.is_healthy
    assert watch.last_healthy_step is not None
    assert watch.last_healthy_step > 180


@pytest.mark.parametrize("seed", range(4))
def test_learning_is_no_alarm(seed: int) -> None:
    # In 200 steps: half again as long or two thirds as long, a little surer, away from the reference, fewer empty ones.
    for length in (90.0, 42.0):
        rng, watch = generator(seed, "learning"), CollapseWatch(WatchConfig())
        steps = [
            observe(
                rng,
                silent=between(0.05, 0.0, s),
                length=between(60.0, length, s),
                entropy=between(2.5, 1.5, s),
                kl=between(0.0, 0.15, s),
                alike=between(0.2, 0.5, s),
                truncated=between(0.1, 0.3, s),
                reward=s,
            )
            for s in np.linspace(0, 1, 200)
        ]
        assert run(watch, steps) == []


@pytest.mark.parametrize("seed", range(4))
def test_a_base_model_that_never_ends_is_no_alarm(seed: int) -> None:
    rng = generator(seed, "base model")
    assert run(CollapseWatch(WatchConfig()), (observe(rng, truncated=0.9) for _ in range(200))) == []


@pytest.mark.parametrize("seed", range(4))
def test_answers_that_are_short_from_the_start_may_stay_so(seed: int) -> None:
    rng = generator(seed, "short")
    assert (
        run(CollapseWatch(WatchConfig()), (observe(rng, length=4 if s < 50 else 1.6, silent=0) for s in range(100)))
        == []
    )


def test_the_start_of_training_is_no_alarm() -> None:
    # KL 0 and no reward at all differs: both are right at the start.
    start = StepHealth(empty_rate=0.0, eos_first=0.01, kl=0.0, zero_variance=1.0, entropy=2.0, length_median=40.0)
    assert run(CollapseWatch(WatchConfig()), [start] * 8) == []


def test_one_odd_batch_is_no_alarm() -> None:
    fine = StepHealth(empty_rate=0.0, eos_first=0.01, kl=0.1, zero_variance=0.0, entropy=2.0, length_median=40.0)
    odd = StepHealth(empty_rate=1.0, eos_first=0.9, kl=50.0, zero_variance=1.0, entropy=9.0, length_median=0.0)
    watch = CollapseWatch(WatchConfig())
    assert run(watch, [fine] * 10 + [odd] + [fine] * 10 + [odd, odd] + [fine]) == []
    # But no step to go back to: of the seven others, 0 … 4 and 6, 7, the last five may yet be called in question.
    watch = CollapseWatch(WatchConfig())
    assert run(watch, [fine] * 5 + [odd] + [fine] * 2) == []
    assert watch.is_healthy
    assert watch.last_healthy_step == 1


# --- Numbers by hand --------------------------------------------------------------------------------------------------


def empty(*rates: float) -> list[StepHealth]:
    return [StepHealth(empty_rate=rate) for rate in rates]


def test_the_sentence_says_what_when_and_how_bad() -> None:
    config = WatchConfig(window=1, baseline_steps=1)
    found = run(CollapseWatch(config), empty(0.0, 0.2, 0.625, 0.7), first=38)
    assert [alarm.sentence for alarm in found] == [
        "step 39: 20 % of completions are empty (limit 15 %): the policy is learning to stay silent",
        "step 40: 62.5 % of completions are empty (limit 30 %): the policy has learnt to stay silent",
    ]
    assert found[1] == Alarm(
        step=40, signal="empty_rate", value=0.625, threshold=0.3, level="severe", sentence=found[1].sentence
    )


def test_the_sentence_says_that_the_reward_rose() -> None:
    config = WatchConfig(window=1, baseline_steps=1)
    steps = [StepHealth(length_median=60.0, reward=-1.2), StepHealth(length_median=12.0, reward=-0.24)]
    (alarm,) = run(CollapseWatch(config), steps)
    assert alarm.sentence == (
        "step 1: the median completion has 12 tokens (limit 15; 60 at the start): little is left of the policy's answers, "
        "although the reward rose from -1.2 to -0.24"
    )


@pytest.mark.parametrize(
    ("start", "now", "level"),
    [
        # From 10 %: 25 % and 40 %.
        (0.1, 0.24, None),
        (0.1, 0.26, "warn"),
        (0.1, 0.41, "severe"),
        # From 25 %: a warning at 30 %, not at 40 %; severe at 55 %.
        (0.25, 0.31, "warn"),
        (0.25, 0.54, "warn"),
        (0.25, 0.56, "severe"),
        # From 70 %: told of; severe at 90 %.
        (0.7, 0.7, "warn"),
        (0.7, 0.89, "warn"),
        (0.7, 0.91, "severe"),
        (0.95, 0.95, "severe"),
        (0.7, 0.1, None),
    ],
)
def test_silence_is_measured_from_the_start(start: float, now: float, level: Level | None) -> None:
    watch = CollapseWatch(WatchConfig(window=1, baseline_steps=3))
    run(watch, empty(start, start, start, now))
    assert watch.state()["levels"] == ({} if level is None else {"empty_rate": level})


def test_nothing_is_judged_before_the_start_is_known() -> None:
    watch = CollapseWatch(WatchConfig())
    found = run(watch, [StepHealth(kl=3.0, entropy=2.0)] * 5)
    assert [(alarm.step, alarm.signal, alarm.level) for alarm in found] == [(4, "kl", "severe")]


def test_an_alarm_sounds_once_a_level_and_again_after_a_recovery() -> None:
    config = WatchConfig(window=1, baseline_steps=1)
    watch = CollapseWatch(config)
    found = run(watch, empty(0.0, 0.2, 0.2, 0.5, 0.5, 0.2, 0.5, 0.0, 0.2))
    assert [(alarm.step, alarm.level) for alarm in found] == [(1, "warn"), (3, "severe"), (6, "severe"), (8, "warn")]


def test_an_alarm_ends_when_mean_and_median_are_back() -> None:
    watch = CollapseWatch(WatchConfig(window=3, baseline_steps=1))
    rates = (0.0, 0.2, 0.2, 0.2, 0.0, 0.7, 0.0, 0.0, 0.0)
    # Windows, mean, median: 2 | 0 .2 .2 | .13, .2; 3 | .2 .2 .2 | .2, .2: warn; 4 | .2 .2 0 | .13, .2; 5 | .2 0 .7 | .3, .2;
    # 6 | 0 .7 0 | .23, 0: still, by the mean; 7 | .7 0 0 | .23, 0; 8 | 0 0 0.
    healthy, alarms = [], []
    for step, health in enumerate(empty(*rates)):
        alarms += [(alarm.step, alarm.level) for alarm in watch.observe(step, health)]
        healthy.append(watch.is_healthy)
    assert alarms == [(3, "warn")]
    assert healthy == [True, True, True, False, False, False, False, False, True]


def test_what_is_not_observed_stays_as_it_was() -> None:
    watch = CollapseWatch(WatchConfig(window=1, baseline_steps=1))
    run(watch, [StepHealth(entropy=2.0, empty_rate=0.0), StepHealth(entropy=0.5, empty_rate=0.0)])
    assert not watch.is_healthy
    # Entropy is measured every other step.
    assert run(watch, empty(0.0), first=2) == []
    assert not watch.is_healthy
    assert run(watch, [StepHealth(entropy=1.9, empty_rate=0.0)], first=3) == []
    assert watch.is_healthy
    assert watch.last_healthy_step is None
    run(watch, empty(0.0, 0.0), first=4)
    assert watch.last_healthy_step == 4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", StepHealth._fields)
def test_what_is_no_number_is_severe_at_once(field: str, value: float) -> None:
    watch = CollapseWatch(WatchConfig())
    (alarm,) = watch.observe(0, StepHealth(**{field: value}))
    assert (alarm.signal, alarm.level, alarm.value) == (field, "severe", None)
    assert alarm.sentence == f"step 0: {field} is no finite number: the computation has broken down"
    assert watch.observe(1, StepHealth(**{field: value})) == []
    assert not watch.is_healthy
    assert watch.last_healthy_step is None
    # The state is JSON all the same, and the watch goes on.
    json.dumps(watch.state(), allow_nan=False)
    watch.observe(2, StepHealth(**{field: 0.0}))
    assert watch.is_healthy


# --- Resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 1, 3, 10, 33, 37, 45])
def test_a_restored_watch_goes_on_as_if_never_interrupted(cut: int) -> None:
    rng, (course, _) = generator(0, "resume"), COLLAPSES["silence"]
    steps = [observe(rng, **course((step - 30) / 20)) for step in range(60)]
    whole = CollapseWatch(WatchConfig())
    expected = run(whole, steps)

    before, after = CollapseWatch(WatchConfig()), CollapseWatch(WatchConfig())
    found = run(before, steps[:cut])
    after.restore(json.loads(json.dumps(before.state())))
    found += run(after, steps[cut:], first=cut)
    assert found == expected
    assert after.state() == whole.state()
    assert after.last_healthy_step == whole.last_healthy_step


def test_a_rollback_restores_health() -> None:
    watch = CollapseWatch(WatchConfig(window=1, baseline_steps=1))
    run(watch, empty(0.0, 0.0))
    kept = watch.state()
    run(watch, empty(0.9), first=2)
    assert not watch.is_healthy
    watch.restore(kept)
    assert watch.is_healthy
    assert watch.last_healthy_step == 0


def test_a_state_that_is_none_is_refused() -> None:
    with pytest.raises(DataError, match="not a state of the collapse watch"):
        CollapseWatch(WatchConfig()).restore({"levels": {"kl": "bad"}})


# --- Configuration ----------------------------------------------------------------------------------------------------

# For every key a value at which something else happens in a run that goes wrong in every way.
PERTURBED: dict[str, Any] = {
    "window": 9,
    "baseline_steps": 2,
    "empty_rate": Rising(warn_at=0.01, stop_at=0.02),
    "eos_first": None,
    "truncated_rate": None,
    "length_median": Falling(warn_at=0.9, stop_at=0.8),
    "entropy_low": Falling(warn_at=0.9, stop_at=0.8),
    "entropy_high": None,
    "kl": Rising(warn_at=0.6, stop_at=3.0),
    "zero_variance": Lasting(above=0.9, warn_after=2, stop_after=3),
}


def going_wrong() -> list[StepHealth]:
    """Healthy, then low entropy and equal rewards, then everything else."""
    rng = generator(0, "every way")
    good = [observe(rng) for _ in range(20)]
    dull = [observe(rng, entropy=0.1, alike=1.0) for _ in range(30)]
    bad = [observe(rng, silent=s, truncated=1.0, kl=4 * s, entropy=9.0) for s in np.linspace(0, 1, 30)]
    return good + dull + bad


@pytest.mark.parametrize("key", PERTURBED)
def test_every_key_is_read(key: str) -> None:
    default = run(CollapseWatch(WatchConfig()), going_wrong())
    assert run(CollapseWatch(WatchConfig(**{key: PERTURBED[key]})), going_wrong()) != default


def test_the_action_is_for_the_trainer() -> None:
    assert set(PERTURBED) == set(WatchConfig.model_fields) - {"action"}
    assert CollapseWatch(WatchConfig(action="rollback")).config.action == "rollback"


@pytest.mark.parametrize("key", sorted(set(PERTURBED) - {"window", "baseline_steps"}))
def test_a_signal_can_be_switched_off(key: str) -> None:
    assert key in {alarm.signal for alarm in run(CollapseWatch(WatchConfig()), going_wrong())}
    assert key not in {alarm.signal for alarm in run(CollapseWatch(WatchConfig(**{key: None})), going_wrong())}


@pytest.mark.parametrize(
    "params",
    [
        {"window": 0},
        {"baseline_steps": 0},
        {"action": "panic"},
        {"empty_rate": {"warn_at": 0.5, "stop_at": 0.3}},
        {"length_median": {"warn_at": 0.2, "stop_at": 0.5}},
        {"zero_variance": {"above": 0.9, "warn_after": 5, "stop_after": 2}},
        {"zero_variance": {"above": 1.0, "warn_after": 5, "stop_after": 8}},
    ],
    ids=str,
)
def test_limits_out_of_order_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        WatchConfig(**params)


def test_a_recipe_can_set_one_limit() -> None:
    written = {"action": "warn", "kl": {"warn_at": 1.0, "stop_at": 2.0}, "entropy_high": None}
    config = parse_config(WatchConfig, written, where="a.yaml")
    assert config.kl == Rising(warn_at=1.0, stop_at=2.0)
    assert config.entropy_high is None
    with pytest.raises(ConfigError, match=r"a\.yaml: kl: stop_at 0\.5 comes before warn_at 1\.0"):
        parse_config(WatchConfig, {"kl": {"warn_at": 1.0, "stop_at": 0.5}}, where="a.yaml")
