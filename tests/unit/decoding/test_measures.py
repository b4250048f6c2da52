import math
import time
from collections.abc import Callable
from typing import Any

import pytest

from triptych.decoding.arms import arm_of, key_of, temperature_sweep
from triptych.decoding.measures import SELF_BLEU_TEXTS, mean_over_prompts, measure_arms
from triptych.metrics import count_word_types, distinct_n, distinct_n_at, expectation_adjusted_distinct, self_bleu
from triptych.records import ArmMeasure, Estimate, Generation

Make = Callable[..., Generation]


def found(measures: list[ArmMeasure], metric: str, scope: str, **params: Any) -> Estimate:
    matching = [
        m.estimate for m in measures if (m.metric, m.scope) == (metric, scope) and params.items() <= m.params.items()
    ]
    assert len(matching) == 1, f"{metric} {scope}: {len(matching)}"
    return matching[0]


class TestEveryCompletion:
    def test_a_prompt_counts_once_however_many_samples_it_has(self, make_completion: Make) -> None:
        rows = [make_completion("many", mean_logprob=-3.0, sample=sample) for sample in range(9)]
        rows.append(make_completion("one", mean_logprob=-1.0))
        estimate = found(measure_arms(rows), "mean_logprob", "arm")
        assert estimate.mean == pytest.approx(-2.0)
        assert (estimate.n, estimate.n_clusters) == (10, 2)

    def test_a_completion_without_tokens_is_unscored_and_not_zero(self, make_completion: Make) -> None:
        rows = [make_completion("a", mean_logprob=-2.0), make_completion("b", text="", mean_logprob=None)]
        measures = measure_arms(rows)
        estimate = found(measures, "mean_logprob", "arm")
        assert (estimate.mean, estimate.n, estimate.n_unscored) == (-2.0, 1, 1)
        assert found(measures, "words", "arm").mean == 1.5
        # Greedy draws nothing: neither row has a probability under a sampler.
        assert found(measures, "sampler_mean_logprob", "arm").n_unscored == 2

    def test_beams_have_no_sampler(self, make_completion: Make) -> None:
        rows = [make_completion(f"p{i}", "beam", {"width": 4}) for i in range(3)]
        estimate = found(measure_arms(rows), "sampler_mean_logprob", "arm")
        assert (estimate.mean, estimate.n, estimate.n_unscored) == (None, 0, 3)

    def test_shares_of_stop_reasons_add_up_and_stay_within_the_unit(self, make_completion: Make) -> None:
        reasons = ["eos"] * 9 + ["length", "repeat", "marker"]
        rows = [make_completion(f"p{i}", stop_reason=reason) for i, reason in enumerate(reasons)]
        shares = [
            found(measure_arms(rows), f"stop_{reason}", "arm") for reason in ("eos", "length", "repeat", "marker")
        ]
        assert math.fsum(share.mean or 0.0 for share in shares) == pytest.approx(1.0)
        assert all(share.low is not None and 0.0 <= share.low <= (share.high or 0.0) <= 1.0 for share in shares)

    def test_one_prompt_gives_no_interval(self, make_completion: Make) -> None:
        for measure in measure_arms([make_completion(text="a b c d")]):
            assert measure.estimate.low is None, measure.metric
            assert "no interval" in measure.estimate.method or "no estimate" in measure.estimate.method


class TestRewards:
    def test_there_is_no_reward_without_a_reward_model(self, make_completion: Make) -> None:
        assert "reward" not in {measure.metric for measure in measure_arms([make_completion()])}

    def test_unscored_completions_are_counted_and_further_samples_are_not_meant(self, make_completion: Make) -> None:
        rows = [make_completion(f"p{i}", sample=sample) for i in range(3) for sample in range(2)]
        firsts = [row for row in rows if row.sample == 0]
        rewards = dict(zip(map(key_of, firsts), [1.0, 3.0, None], strict=True))
        estimate = found(measure_arms(rows, rewards), "reward", "arm")
        assert (estimate.mean, estimate.n, estimate.n_unscored) == (2.0, 2, 1)

    def test_a_reward_model_that_could_not_be_loaded_leaves_no_number(self, make_completion: Make) -> None:
        rows = [make_completion(f"p{i}") for i in range(3)]
        estimate = found(measure_arms(rows, {key_of(row): None for row in rows}), "reward", "arm")
        assert (estimate.mean, estimate.n, estimate.n_unscored) == (None, 0, 3)


class TestAcrossPrompts:
    TEXTS = ("the cat sat on the mat", "The dog sat", "a cat and a dog and a cow")

    def test_only_sample_0_counts_and_the_figures_are_those_of_the_metrics(self, make_completion: Make) -> None:
        rows = [make_completion(f"p{i}", text=text) for i, text in enumerate(self.TEXTS)]
        rows += [make_completion(f"p{i}", text="zebra " * 40, sample=1) for i in range(3)]
        measures = measure_arms(rows, length=4)
        types = count_word_types(row.text for row in rows)
        for n in (1, 2, 3):
            assert found(measures, f"distinct_{n}", "across").mean == pytest.approx(distinct_n(self.TEXTS, n))
            at_length = found(measures, f"distinct_{n}_at_4", "across")
            assert at_length.mean == pytest.approx(distinct_n_at(self.TEXTS, n, 4).value)
            assert (at_length.n, at_length.n_unscored) == (2, 1)
        adjusted = found(measures, "ead_1", "across")
        assert adjusted.mean == pytest.approx(expectation_adjusted_distinct(self.TEXTS, types))
        # For longer n-grams it follows the length of the text: there is none.
        assert [measure.metric for measure in measures if measure.metric.startswith("ead")] == ["ead_1"]

    def test_ead_states_its_vocabulary_which_all_arms_share(self, make_completion: Make) -> None:
        rows = [make_completion("a", text="one two"), make_completion("a", "top_p", {"p": 0.9}, text="three four five")]
        methods = [m.estimate.method for m in measure_arms(rows) if m.metric == "ead_1"]
        assert all("V = 5 word types" in method for method in methods)

    def test_self_bleu_compares_groups_of_ten(self, make_completion: Make) -> None:
        texts = [f"a {'b' if i % 2 else 'c'} d e {i}" for i in range(3 * SELF_BLEU_TEXTS)]
        rows = [make_completion(f"p{i}", text=text) for i, text in enumerate(texts)]
        estimate = found(measure_arms(rows), "self_bleu", "across")
        assert estimate.mean == pytest.approx(sum(self_bleu(texts[start::3]) for start in range(3)) / 3)
        assert estimate.n == 30
        assert "3 groups of about 10 prompts" in estimate.method

    def test_texts_that_all_differ_get_no_interval_of_width_zero(self, make_completion: Make) -> None:
        rows = [make_completion(f"p{i}", text=f"u{i} v{i} w{i} x{i}") for i in range(5)]
        estimate = found(measure_arms(rows), "distinct_1", "across")
        assert (estimate.mean, estimate.low) == (1.0, None)
        assert estimate.method.startswith("no interval")


class TestWithinAPrompt:
    def test_it_is_the_mean_over_prompts_that_have_several_samples(self, make_completion: Make) -> None:
        groups = {"p0": ["a b", "a b"], "p1": ["a b", "c d"], "p2": ["e f"]}
        rows = [make_completion(k, text=text, sample=i) for k, own in groups.items() for i, text in enumerate(own)]
        estimate = found(measure_arms(rows), "distinct_1", "within")
        assert estimate.mean == pytest.approx((0.5 + 1.0) / 2)
        assert estimate.n_clusters == 2

    def test_one_sample_a_prompt_says_nothing_about_it(self, make_completion: Make) -> None:
        scopes = {measure.scope for measure in measure_arms([make_completion("a"), make_completion("b")])}
        assert scopes == {"arm", "across"}


def test_arms_keep_their_order_and_parameters(make_completion: Make) -> None:
    rows = [make_completion("a", "top_p", {"p": 0.9, "temperature": t}) for t in (0.8, 0.2)] + [make_completion("a")]
    measures = measure_arms(rows)
    assert list(dict.fromkeys((m.strategy, m.temperature) for m in measures)) == [
        ("top_p", 0.8),
        ("top_p", 0.2),
        ("greedy", None),
    ]
    assert measures[0].params == {"p": 0.9, "temperature": 0.8}


def test_a_sweep_is_the_family_with_most_temperatures(make_completion: Make) -> None:
    settings = [(40, 0.2), (50, 0.8), (50, 0.2), (50, 1.0), (60, None)]
    arms = [arm_of(make_completion("a", "top_k", {"k": k, "temperature": t})) for k, t in settings]
    assert [(arm.settings["k"], arm.temperature) for arm in temperature_sweep(arms, "top_k")] == [
        (50, 0.2),
        (50, 0.8),
        (50, 1.0),
    ]
    assert temperature_sweep(arms[:1], "top_k") == []


def test_means_of_nothing_are_none() -> None:
    estimate = mean_over_prompts([None, math.nan], ["a", "b"], seed=0)
    assert (estimate.mean, estimate.n, estimate.n_clusters, estimate.n_unscored) == (None, 0, 0, 2)


def test_thousands_of_completions_take_seconds(make_world: Any) -> None:
    rows = make_world(n_prompts=320, within=30).generations()
    assert len(rows) > 4000
    started = time.perf_counter()
    measure_arms(rows)
    # About 3 s on one core; the bound is for a machine that does something else as well.
    assert time.perf_counter() - started < 20
