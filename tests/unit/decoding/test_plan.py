from typing import Any

import pytest

from triptych.config import parse_config
from triptych.decoding.plan import (
    DecodingConfig,
    compared_arms,
    expand,
    frontier_arms,
    plan_requests,
    planned_rows,
)
from triptych.errors import ConfigError


def config(**fields: Any) -> DecodingConfig:
    return parse_config(DecodingConfig, {"strategies": ["greedy"], **fields}, where="test")


def shown(plan: list[list[Any]]) -> list[list[str]]:
    return [[f"{request.strategy.label}#{request.sample}" for request in own] for own in plan]


TOP_P = "top_p:temperature=0.8,p=0.9"
MIN_P = "min_p:temperature=1.0,p=0.05"


class TestPlan:
    def test_groups_add_to_the_first_prompts_and_make_nothing_twice(self) -> None:
        plan = plan_requests(
            config(
                strategies=["greedy", TOP_P],
                within={"strategies": [TOP_P], "samples": 3, "prompts": 1},
                frontier={"strategies": [TOP_P, MIN_P], "prompts": 2},
            ),
            3,
        )
        assert shown(plan) == [
            ["greedy#0", f"{TOP_P}#0", f"{TOP_P}#1", f"{TOP_P}#2", f"{MIN_P}#0"],
            ["greedy#0", f"{TOP_P}#0", f"{MIN_P}#0"],
            ["greedy#0", f"{TOP_P}#0"],
        ]

    def test_without_a_number_every_prompt_is_meant(self) -> None:
        plan = plan_requests(config(within={"strategies": [TOP_P], "samples": 2}), 2)
        assert shown(plan) == [["greedy#0", f"{TOP_P}#0", f"{TOP_P}#1"]] * 2

    def test_a_strategy_named_twice_runs_once(self) -> None:
        assert [strategy.label for strategy in expand([TOP_P, "top_p:p=0.9,temperature=[0.8,1.0]"])] == [
            TOP_P,
            "top_p:temperature=1.0,p=0.9",
        ]

    def test_arms_of_the_frontier_alone_are_not_compared_with_the_rest(self) -> None:
        both = config(strategies=["greedy", TOP_P], frontier={"strategies": [TOP_P, MIN_P]})
        assert {name for name, _ in compared_arms(both)} == {"greedy", "top_p"}
        assert {name for name, _ in frontier_arms(both)} == {"top_p", "min_p"}
        assert frontier_arms(config()) == frozenset()

    def test_rows_count_beams_and_candidates(self) -> None:
        strategies = ["greedy", "beam:width=4", "diverse_beam:width=6,groups=3", "contrastive:k=5"]
        assert planned_rows(plan_requests(config(strategies=strategies), 2)) == 2 * (1 + 4 + 6 + 5)


class TestConfig:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"strategies": ["gredy"]}, r"strategies: unknown strategy 'gredy'; did you mean 'greedy'\?"),
            ({"strategies": ["top_k:k=0"]}, "strategies: strategy 'top_k': k = 0 is out of range"),
            ({"strategies": []}, "strategies is"),
            ({"limit": 0}, "limit is 0 but must be >= 1"),
            ({"max_new_tokens": 0}, "max_new_tokens is 0 but must be >= 1"),
            ({"fixed_length": 2}, "fixed_length is 2 but must be >= 3"),
            ({"reward": "x"}, "unknown key 'reward' in DecodingConfig; did you mean 'reward_model'"),
            ({"within": {"strategies": ["greedy"]}}, "within.strategies: greedy gives the same text at every sample"),
            ({"within": {"strategies": [TOP_P], "samples": 1}}, "within.samples is 1 but must be >= 2"),
            ({"within": {"strategies": [TOP_P], "prompts": 5}, "limit": 4}, "within.prompts is 5, more than the limit"),
            (
                {"frontier": {"strategies": [TOP_P, "min_p:temperature=[0.5,1.0]"]}},
                r"frontier.strategies: strategies have unequal numbers of settings \(top_p 1, min_p 2\)",
            ),
        ],
    )
    def test_mistakes_are_told_in_one_line(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            config(**fields)
        assert "\n" not in str(caught.value)
