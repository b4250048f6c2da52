from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import stdtr

from triptych.decoding.arms import key_of
from triptych.decoding.frontier import LOGPROB_NAME, build_frontier, membership
from triptych.records import FrontierPoint, Generation
from triptych.seeding import generator

Make = Callable[..., Generation]

# Ten prompts a setting; the share of words that only one text has sets the diversity.
N_PROMPTS = 10


@pytest.fixture
def arm(make_completion: Make) -> Callable[..., list[Generation]]:
    def make(
        k: int, quality: float, own_words: int, strategy: str = "top_k", prompts: int = N_PROMPTS
    ) -> list[Generation]:
        return [
            make_completion(
                f"p{i}",
                strategy,
                {"k": k, "temperature": 1.0},
                text=" ".join([f"own{i}w{w}" for w in range(own_words)] + ["same"] * (10 - own_words)),
                mean_logprob=quality - 0.01 * i,
            )
            for i in range(prompts)
        ]

    return make


def on_frontier(points: list[FrontierPoint]) -> set[int]:
    return {point.params["k"] for point in points if point.on_frontier}


def test_what_another_setting_beats_on_both_is_off_the_frontier(arm: Any) -> None:
    rows = arm(1, -1.0, 2) + arm(2, -2.0, 5) + arm(3, -3.0, 8) + arm(4, -2.5, 4) + arm(5, -3.5, 2)
    points = build_frontier(rows)
    assert on_frontier(points) == {1, 2, 3}
    assert [point.params["k"] for point in points] == [1, 2, 3, 4, 5]


def test_two_equal_settings_are_both_on_it(arm: Any) -> None:
    assert on_frontier(build_frontier(arm(1, -1.0, 2) + arm(2, -1.0, 2))) == {1, 2}


def test_equal_on_one_and_better_on_the_other_wins(arm: Any) -> None:
    assert on_frontier(build_frontier(arm(1, -1.0, 2) + arm(2, -1.0, 5))) == {2}


def test_the_budget_is_the_number_of_settings_of_the_strategy(arm: Any) -> None:
    points = build_frontier(arm(1, -1.0, 2) + arm(2, -2.0, 3) + arm(9, -1.0, 3, strategy="top_nsigma"))
    assert [point.budget for point in points] == [2, 2, 1]


def test_settings_are_compared_on_the_prompts_they_share(arm: Any) -> None:
    points = build_frontier(arm(1, -1.0, 2) + arm(2, -2.0, 3, prompts=4))
    assert [point.quality.n for point in points] == [4, 4]
    assert [point.diversity.n for point in points] == [4, 4]


def test_log_probability_says_that_it_is_no_quality(arm: Any) -> None:
    (point,) = build_frontier(arm(1, -1.0, 2))
    assert point.quality_name == LOGPROB_NAME
    assert "not quality" in point.quality_name
    assert point.quality.low is not None


def test_rewards_are_the_quality_of_the_prompts_that_are_scored_in_every_setting(arm: Any) -> None:
    rows = arm(1, -1.0, 2) + arm(2, -2.0, 5)
    rewards: dict[Any, float | None] = {key_of(row): float(row.params.count("2")) for row in rows}
    points = build_frontier(rows, rewards, reward_model="a/judge")
    assert {point.quality_name for point in points} == {"mean reward (a/judge)"}
    assert on_frontier(points) == {2}
    # A prompt that one setting has no score for is left out of all, on both axes.
    rewards[key_of(rows[0])] = None
    points = build_frontier(rows, rewards)
    assert {point.quality_name for point in points} == {"mean reward (reward model)"}
    assert {(point.quality.n, point.diversity.n) for point in points} == {(N_PROMPTS - 1, N_PROMPTS - 1)}
    nothing: dict[Any, float | None] = dict.fromkeys(rewards)
    assert {point.quality_name for point in build_frontier(rows, nothing)} == {LOGPROB_NAME}


def test_a_setting_without_a_figure_is_off_and_beats_nobody(arm: Any, make_completion: Make) -> None:
    empty = [
        make_completion(f"p{i}", "top_k", {"k": 9, "temperature": 1.0}, text="", mean_logprob=0.0) for i in range(10)
    ]
    points = build_frontier(arm(1, -1.0, 2) + empty)
    assert on_frontier(points) == {1}
    assert points[1].diversity.mean is None


def test_nothing_in_nothing_out(arm: Any) -> None:
    assert build_frontier([]) == []
    apart = arm(1, -1.0, 2, prompts=1) + [row.model_copy(update={"prompt_id": "other"}) for row in arm(2, -1.0, 2)]
    assert build_frontier(apart) == []


# --- Probabilities ----------------------------------------------------------------------------------------------------


def jackknife_table(values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Means of values [prompts, settings, 2], and without each prompt."""
    n = len(values)
    return values.mean(axis=0), (values.sum(axis=0) - values) / (n - 1)


def truly_on_frontier(truth: npt.NDArray[np.float64]) -> list[bool]:
    return [not any((other > own).all() for other in truth) for own in truth]


def test_two_settings_by_hand() -> None:
    # Diversities are 1 and 2 without any spread, so the first is on the frontier where its quality is higher: the
    # difference is 0.5 with a standard error of 0.4, from 5 prompts, so t = 1.25 with 4 degrees of freedom.
    spread = np.array([-2.0, -1.0, 0.0, 1.0, 2.0]) * 0.4 / np.sqrt(0.5)
    values = np.zeros((5, 2, 2))
    values[:, :, 1] = [1.0, 2.0]
    values[:, 0, 0] = 0.5 + spread
    first, second = membership(*jackknife_table(values), seed=0)
    assert first == pytest.approx(stdtr(4, 1.25), abs=0.02)
    assert second == 1.0


def test_settings_that_share_their_prompts_are_compared_pair_by_pair() -> None:
    # The qualities differ by 0.1 at every prompt, whatever the prompt: nothing is uncertain about who is better.
    values = np.zeros((20, 2, 2))
    values[:, :, 0] = generator(0, "shared").normal(0.0, 5.0, (20, 1)) + np.array([0.1, 0.0])
    assert membership(*jackknife_table(values), seed=0) == [1.0, 0.0]


def test_probabilities_are_calibrated() -> None:
    """Of settings that are on the frontier with a probability of 0.9, about nine in ten truly are.

    Populations with 12 settings, their truths normal with three standard errors, on 40 prompts with skewed noise, part
    of it shared by all settings. Point estimates alone are wrong about one setting in eight.
    """
    probabilities: list[float] = []
    truths: list[bool] = []
    for seed in range(150):
        rng = generator(seed, "planted frontier")
        truth = rng.normal(0.0, 3 * 0.5 / np.sqrt(40), (12, 2))
        noise = rng.normal(0.0, 1.0, (40, 1, 2)) + 0.5 * (rng.exponential(1.0, (40, 12, 2)) - 1.0)
        found = membership(*jackknife_table(truth + noise), seed=seed, n_draws=400)
        probabilities += [float(probability or 0.0) for probability in found]
        truths += truly_on_frontier(truth)
    p, is_on = np.array(probabilities), np.array(truths)
    for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.85), (0.85, 0.97), (0.97, 1.01)):
        chosen = (p >= low) & (p < high)
        assert chosen.sum() > 50
        assert is_on[chosen].mean() == pytest.approx(p[chosen].mean(), abs=0.09), (low, high)
    assert np.square(p - is_on).mean() < 0.09


def test_a_run_says_how_sure_it_is(arm: Any) -> None:
    # 2 is as varied as 1 and worse; 3 is more varied. Every prompt agrees on it.
    points = build_frontier(arm(1, -1.0, 2) + arm(2, -2.0, 2) + arm(3, -3.0, 8))
    assert [point.on_frontier_probability for point in points] == [1.0, 0.0, 1.0]


def test_settings_within_the_noise_are_not_told_apart(make_completion: Make) -> None:
    # Equal texts, so equal diversity; qualities from one distribution: each is the better one in about half the worlds.
    found = []
    for seed in range(20):
        draws = generator(seed, "alike").normal(-1.0, 0.5, (2, 30))
        rows = [
            make_completion(
                f"p{i}", "top_k", {"k": k, "temperature": 1.0}, text=f"a b w{i}", mean_logprob=draws[k - 1, i]
            )
            for k in (1, 2)
            for i in range(30)
        ]
        found += [point.on_frontier_probability or 0.0 for point in build_frontier(rows)]
        assert sum(found[-2:]) == pytest.approx(1.0, abs=1e-9)
    assert 0.15 < np.std(found) < 0.45  # probabilities of a true null are uniform: 0.29


def test_no_probability_without_figures_or_with_one_prompt(arm: Any, make_completion: Make) -> None:
    empty = [make_completion(f"p{i}", "top_k", {"k": 9, "temperature": 1.0}, text="") for i in range(N_PROMPTS)]
    points = build_frontier(arm(1, -1.0, 2) + empty)
    assert [point.on_frontier_probability for point in points] == [1.0, None]
    assert [p.on_frontier_probability for p in build_frontier(arm(1, -1.0, 2, prompts=1))] == [None]


def test_equal_settings_are_on_it_together(arm: Any) -> None:
    points = build_frontier(arm(1, -1.0, 2) + arm(2, -1.0, 2) + arm(3, -1.5, 2))
    assert [point.on_frontier_probability for point in points] == [1.0, 1.0, 0.0]
