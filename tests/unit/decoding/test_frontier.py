from collections.abc import Callable
from typing import Any

import pytest

from triptych.decoding.arms import key_of
from triptych.decoding.frontier import LOGPROB_NAME, build_frontier
from triptych.records import FrontierPoint, Generation

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
