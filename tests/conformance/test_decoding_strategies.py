"""What every decoding strategy must do, on every path. A strategy enters by standing in `STRATEGIES`."""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest

from triptych.data import encode_prompt
from triptych.decoding import STRATEGIES, Sampler, Stopping, Strategy, decode, make_strategy
from triptych.models import LanguageModel
from triptych.models.logprobs import sequence_logprobs
from triptych.models.tiny import tiny_gpt2, tiny_language_model, tiny_llama
from triptych.records import Generation

LIMIT = 14
PROMPTS = ("a", "Name three things that are blue.", "The quick brown fox jumps over the lazy dog. " * 3, "1 + 1 =")
EOS = frozenset(range(2, 22))
"""Twenty of 260 tokens end a text, so that some completions end early."""


class Setting(NamedTuple):
    """A model and the path it is run on."""

    model: str
    path: str


SETTINGS = [Setting("llama", "fused"), Setting("llama", "generic"), Setting("gpt2", "generic")]
EACH_SETTING = pytest.mark.parametrize("setting", SETTINGS, ids="-".join)

# The defaults of every strategy, and beside them values at which it does something else.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "greedy": [{}],
    "beam": [{}, {"width": 1}, {"width": 3, "length_penalty": 1.0}],
    "diverse_beam": [{}, {"width": 6, "groups": 2, "penalty": 2.0}],
    "contrastive": [{}, {"k": 6, "alpha": 0.9}],
    "ancestral": [{}, {"temperature": 0.3}],
    "top_k": [{}, {"k": 1}, {"k": 100, "temperature": 2.0}],
    "top_p": [{}, {"p": 1.0}, {"p": 0.3, "temperature": 0.5}],
    "min_p": [{}, {"p": 0.5, "temperature": 3.0}],
    "typical": [{}, {"mass": 0.2}],
    "eta": [{}, {"epsilon": 0.1}],
    "top_nsigma": [{}, {"n": 3.0, "temperature": 1.5}],
}
EACH_STRATEGY = pytest.mark.parametrize(
    "strategy", [make_strategy(name, params) for name in STRATEGIES for params in VARIANTS[name]], ids=lambda s: s.label
)


@cache
def language_model(model: str) -> LanguageModel:
    make: dict[str, Callable[[int], Any]] = {"llama": tiny_llama, "gpt2": tiny_gpt2}
    return dataclasses.replace(tiny_language_model(make[model](7)), eos_ids=EOS)


@cache
def completions(setting: Setting, strategy: Strategy, seed: int = 0, samples: int = 3) -> list[Generation]:
    lm = language_model(setting.model)
    return decode(
        lm,
        PROMPTS,
        [strategy],
        max_new_tokens=LIMIT,
        samples=samples,
        seed=seed,
        stopping=Stopping(block=2, threshold=2),
        path=setting.path,
    )


def token_ids(found: list[Generation]) -> list[tuple[int, ...]]:
    return [one.token_ids for one in found]


def test_every_strategy_is_here() -> None:
    assert set(VARIANTS) == set(STRATEGIES)


@EACH_SETTING
@EACH_STRATEGY
def test_it_completes_every_prompt(strategy: Strategy, setting: Setting) -> None:
    found = completions(setting, strategy)
    samples = 3 if isinstance(strategy, Sampler) else 1
    assert [(one.prompt, one.sample) for one in found] == [(text, i) for text in PROMPTS for i in range(samples)]
    assert {(one.strategy, one.params) for one in found} == {(strategy.name, strategy.params)}


@EACH_SETTING
@EACH_STRATEGY
def test_it_obeys_the_stop_rules(strategy: Strategy, setting: Setting) -> None:
    for one in completions(setting, strategy):
        ids = one.token_ids
        assert 1 <= len(ids) <= LIMIT
        assert not EOS & set(ids[:-1])
        pairs = [ids[i : i + 2] for i in range(len(ids) - 1)]
        repeats = max((pairs.count(pair) for pair in pairs), default=0)
        if ids[-1] in EOS:
            reason = "eos"
        elif repeats > 2:
            reason = "repeat"
            # And not before.
            assert pairs.count(pairs[-1]) == 3
            assert max(pairs[:-1].count(pair) for pair in pairs) == 2
        else:
            reason = "length"
        assert one.stop_reason == reason
        assert reason != "length" or len(ids) == LIMIT


@EACH_SETTING
def test_every_reason_to_stop_occurs(setting: Setting) -> None:
    strategies = [make_strategy(name, params) for name in STRATEGIES for params in VARIANTS[name]]
    reasons = {one.stop_reason for strategy in strategies for one in completions(setting, strategy)}
    # Beams that repetition cut come after complete ones, so that it is seen where every repeated token cuts.
    strict = Stopping(block=1, threshold=1)
    lm, often = language_model(setting.model), make_strategy("top_k", {"k": 3})
    cut = decode(lm, PROMPTS, [often], max_new_tokens=LIMIT, samples=20, stopping=strict, path=setting.path)
    assert reasons | {one.stop_reason for one in cut} == {"eos", "repeat", "length"}


@EACH_SETTING
@EACH_STRATEGY
def test_it_is_deterministic(strategy: Strategy, setting: Setting) -> None:
    again = completions.__wrapped__(setting, strategy)
    assert again == completions(setting, strategy)


@EACH_SETTING
@EACH_STRATEGY
def test_the_seed_matters_to_what_draws_and_to_nothing_else(strategy: Strategy, setting: Setting) -> None:
    first, second = (token_ids(completions(setting, strategy, seed)) for seed in (0, 1))
    draws = isinstance(strategy, Sampler) and getattr(strategy, "k", None) != 1
    assert (first != second) == draws
    if draws:
        assert len(set(first)) > len(PROMPTS)


@EACH_SETTING
@EACH_STRATEGY
def test_log_probabilities_are_those_of_a_plain_forward_pass(strategy: Strategy, setting: Setting) -> None:
    lm, found = language_model(setting.model), completions(setting, strategy)
    prompts = [encode_prompt(one.prompt, lm.tokenizer) for one in found]
    expected = sequence_logprobs(lm, prompts, [list(one.token_ids) for one in found])
    for one, values in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(values, abs=1e-4)
        assert one.mean_logprob == pytest.approx(sum(values) / len(values), abs=1e-4)
        if one.score is not None:
            assert one.score == pytest.approx(sum(values), abs=1e-4)


@EACH_STRATEGY
def test_the_fused_path_gives_the_tokens_of_the_generic_one(strategy: Strategy) -> None:
    fused, generic = (completions(setting, strategy) for setting in SETTINGS[:2])
    assert token_ids(fused) == token_ids(generic)
    for one, other in zip(fused, generic, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert one.sampler_logprobs == pytest.approx(other.sampler_logprobs, abs=1e-4)
        assert (one.text, one.stop_reason) == (other.text, other.stop_reason)


@EACH_SETTING
@EACH_STRATEGY
def test_what_is_drawn_was_not_cut_off(strategy: Strategy, setting: Setting) -> None:
    for one in completions(setting, strategy):
        if one.sampler_logprobs is None:
            assert not isinstance(strategy, Sampler)
            continue
        assert all(-1e9 < value <= 1e-6 for value in one.sampler_logprobs)
        if isinstance(strategy, Sampler) and strategy.temperature == 1.0:
            # What is kept has a larger share of what is kept.
            assert all(ours >= raw - 1e-5 for ours, raw in zip(one.sampler_logprobs, one.logprobs, strict=True))
