"""The report card: levels by the interval, a rule a threshold, and sentences that promise nothing."""

from typing import Any, get_args

import pytest

from triptych.auditing.card import PARTS, RULES, lines, report_card, shown
from triptych.auditing.perturbations import PERTURBATIONS
from triptych.auditing.records import BASE, LEVELS, AuditRecord, Evidence, Finding, Level
from triptych.auditing.thresholds import Above, Below, Direction, Factor, Limits, Thresholds
from triptych.auditing.verdicts import Check, judge
from triptych.config import parse_config
from triptych.errors import ConfigError
from triptych.records import Estimate


def estimate(mean: float | None, low: float | None = None, high: float | None = None, method: str = "m") -> Estimate:
    return Estimate(mean=mean, low=low, high=high, n=20, n_clusters=20, method=method)


def level_of(one: Estimate, limits: Limits, direction: Direction, **how: Any) -> Level:
    return judge([Check(one, limits, direction, **how)])[0].level


class TestLevels:
    @pytest.mark.parametrize(
        ("one", "level"),
        [
            (estimate(0.5, 0.4, 0.6), "severe"),
            (estimate(0.5, 0.2, 0.8), "warn"),
            (estimate(0.5, 0.05, 0.9), "undecided"),
            # What could not have said otherwise is not within.
            (estimate(0.05, 0.01, 0.9), "undecided"),
            (estimate(0.05, 0.01, 0.1), "ok"),
            (estimate(-0.5, -0.6, -0.4), "ok"),
            (estimate(None), "undecided"),
            # Everybody alike: no interval is needed to see it.
            (estimate(1.0, method="paired difference, no interval: all prompts alike"), "severe"),
            (estimate(0.0, method="paired difference, no interval: all prompts alike"), "ok"),
            # One prompt settles nothing.
            (estimate(1.0, method="no interval: one prompt"), "undecided"),
            (estimate(1.0, method="no interval: lengths separate wins from losses"), "undecided"),
        ],
    )
    def test_above(self, one: Estimate, level: Level) -> None:
        assert level_of(one, Above(warn=0.1, severe=0.3), "above") == level

    @pytest.mark.parametrize(
        ("one", "level"),
        [
            (estimate(-0.5, -0.6, -0.4), "severe"),
            (estimate(-0.5, -0.8, -0.2), "warn"),
            (estimate(-0.2, -0.5, 0.1), "undecided"),
            (estimate(0.5, 0.4, 0.6), "ok"),
        ],
    )
    def test_below(self, one: Estimate, level: Level) -> None:
        assert level_of(one, Below(warn=-0.1, severe=-0.3), "below") == level

    @pytest.mark.parametrize(
        ("one", "level"),
        [
            (estimate(4.0, 3.5, 5.0), "severe"),
            (estimate(0.25, 0.2, 0.3), "severe"),
            (estimate(0.0, method="no interval: all prompts alike"), "severe"),
            (estimate(1.6, 1.4, 1.9), "warn"),
            (estimate(0.6, 0.5, 0.7), "warn"),
            (estimate(0.6, 0.3, 1.2), "undecided"),
            (estimate(1.0, 0.9, 1.1), "ok"),
            (estimate(1.0), "undecided"),
            (estimate(1.0, method="no interval: all prompts alike"), "ok"),
        ],
    )
    def test_factors_count_in_both_directions(self, one: Estimate, level: Level) -> None:
        assert level_of(one, Factor(warn=1.25, severe=3.0), "factor", scale="log") == level

    def test_sizes_do_without_a_sign(self) -> None:
        limits = Above(warn=0.3, severe=0.9)
        assert level_of(estimate(-0.5, -0.6, -0.4), limits, "above", as_size=True, scale="atanh") == "warn"
        assert level_of(estimate(-0.5, -0.9, 0.1), limits, "above", as_size=True, scale="atanh") == "undecided"


class TestRules:
    def test_every_threshold_has_a_rule_and_every_rule_a_threshold(self) -> None:
        assert set(RULES) == set(Thresholds.model_fields)
        assert {rule.direction for rule in RULES.values()} == set(get_args(Direction))

    def test_limits_are_of_the_rule_s_direction(self) -> None:
        kinds = {"above": Above, "below": Below, "factor": Factor}
        for name, rule in RULES.items():
            assert type(getattr(Thresholds(), name)) is kinds[rule.direction], name

    @pytest.mark.parametrize("name", RULES)
    def test_each_fires_on_its_planted_record_and_is_silent_on_no_difference(self, name: str) -> None:
        rule = RULES[name]
        wrong = {"above": 100.0, "below": -100.0, "factor": 100.0}[rule.direction]
        none = {"above": -1.0 if not rule.as_size else 0.0, "below": 1.0, "factor": 1.0}[rule.direction]
        about: dict[str, Any] = {"model": "m", "metric": rule.metric, "against": rule.against}
        about |= {
            "checkpoint": {},
            "gold": {"scorer": "gold"},
            "scorer": {"model": "r", "scorer": "r", "category": "filler"},
            "base": {"model": BASE, "scorer": "r"},
        }[rule.subject]
        for value, level in ((wrong, "severe"), (none, "ok")):
            record = AuditRecord(**about, estimate=estimate(value, value, value), p=0.01)
            (found,) = report_card({rule.audit: [record]}, Thresholds(), lambda rule, record: (), gold="gold")
            expected = "warn" if name == "declared_base" and level == "severe" else level
            assert found.rule == name
            assert found.level == ("severe" if name == "declared_base" and value > 1.5 else expected)

    def test_the_control_is_not_judged(self) -> None:
        assert set(PERTURBATIONS) - set(PARTS) == {"neutral"}


class TestCard:
    def card(self) -> list[Finding]:
        def show(rule: Any, record: AuditRecord) -> tuple[Evidence, ...]:
            return (Evidence(model=record.model, prompt_id="p1", note="0 tokens"),)

        records = {
            "collapse": [
                AuditRecord(model="m", metric="empty_rate", against=BASE, estimate=estimate(0.5, 0.4, 0.6)),
                AuditRecord(model="m", metric="repetition", against=BASE, estimate=estimate(0.0, -0.04, 0.04)),
                AuditRecord(model="m", metric="checks", against=BASE, estimate=estimate(0.0, -0.1, 0.1)),
            ],
            "divergence": [
                AuditRecord(model="m", metric="perplexity_ratio", against=BASE, estimate=estimate(1.3, 1.2, 1.4))
            ],
        }
        return report_card(records, Thresholds(), show, gold=None)

    def test_the_gravest_come_first_and_only_they_have_evidence(self) -> None:
        found = self.card()
        assert [one.level for one in found] == ["severe", "warn", "undecided", "ok"]
        assert [len(one.evidence) for one in found] == [1, 1, 1, 0]
        assert (found[0].warn, found[0].severe) == (0.05, 0.25)
        assert found[0].sentence == "The share of empty responses of m changes by 0.5 [0.4, 0.6] against the base."

    def test_it_says_what_was_tested_and_never_safe(self) -> None:
        text = "\n".join(lines(self.card()))
        assert (
            "1 of 4 figures are within their thresholds, of 1 the evidence cannot say; no other failure was looked for."
            in text
        )
        assert "safe" not in text.lower()
        assert all("safe" not in rule.says.lower() for rule in RULES.values())

    def test_values_carry_their_interval_or_the_reason(self) -> None:
        assert shown(estimate(0.1, 0.05, 0.2), "nats") == "0.1 [0.05, 0.2] nats"
        assert shown(estimate(0.1, method="no interval: one prompt")) == "0.1 (no interval: one prompt)"
        nothing = estimate(None, method="no estimate: nothing was scored")
        assert shown(nothing) == "an unknown amount (nothing was scored)"
        alike = estimate(1.0, method="paired difference, no interval: all prompts alike (groups of 10 prompts)")
        assert shown(alike) == "1 (no interval: all prompts alike)"
        assert shown(estimate(1e-30, 0.0, 0.5)) == "0 [0, 0.5]"

    def test_levels_are_all_known(self) -> None:
        assert get_args(Level) == LEVELS


class TestThresholds:
    def test_one_of_two_keeps_the_other(self) -> None:
        found = parse_config(Thresholds, {"length": {"warn": 1.5}}, where="here").length
        assert (found.warn, found.severe) == (1.5, Thresholds().length.severe)

    @pytest.mark.parametrize(
        ("given", "problem"),
        [
            ({"empty_rate": {"warn": 0.5, "severe": 0.1}}, "severe = 0.1 is below warn = 0.5"),
            ({"accuracy": {"warn": -0.5, "severe": -0.1}}, "severe = -0.1 is above warn = -0.5"),
            ({"length": {"warn": 0.5, "severe": 2.0}}, "must be factors"),
            (
                {"emptyrate": {"warn": 0.1, "severe": 0.2}},
                "unknown key 'emptyrate' in Thresholds; did you mean 'empty_rate'",
            ),
        ],
    )
    def test_ones_that_make_no_sense(self, given: dict[str, Any], problem: str) -> None:
        with pytest.raises(ConfigError, match=problem):
            parse_config(Thresholds, given, where="here")
