import dataclasses
import functools
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from triptych.decoding import (
    STRATEGIES,
    Ancestral,
    Beam,
    Contrastive,
    DiverseBeam,
    Eta,
    Greedy,
    MinP,
    Sampler,
    Stopping,
    Strategy,
    TopK,
    TopNSigma,
    TopP,
    Typical,
    decode,
    make_strategy,
    parse_strategies,
)
from triptych.decoding.head import read_heads
from triptych.decoding.sampling import draw
from triptych.errors import ConfigError
from triptych.models.tiny import tiny_language_model
from triptych.seeding import generator

# --- SPEC -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("greedy", [Greedy()]),
        ("greedy:", [Greedy()]),
        ("top_k", [TopK()]),
        ("top_p:p=0.8", [TopP(p=0.8)]),
        ("top_p:p=.8,temperature=1", [TopP(p=0.8, temperature=1.0)]),
        (" top_k: k = 5 , temperature = 2.5 ", [TopK(k=5, temperature=2.5)]),
        ("eta:epsilon=1e-3", [Eta(epsilon=0.001)]),
        ("beam:width=2,length_penalty=-0.5", [Beam(width=2, length_penalty=-0.5)]),
        ("diverse_beam:width=6,groups=3", [DiverseBeam(width=6, groups=3)]),
        ("min_p:p=[0.1]", [MinP(p=0.1)]),
        ("min_p:p=0.1,", [MinP(p=0.1)]),
        ("ancestral:temperature=[0.5, 1.0]", [Ancestral(temperature=0.5), Ancestral(temperature=1.0)]),
        # The order of the list is the order of the sweep, repetitions included.
        ("top_k:k=[9,3,9]", [TopK(k=9), TopK(k=3), TopK(k=9)]),
    ],
)
def test_parsing(spec: str, expected: list[Strategy]) -> None:
    assert parse_strategies(spec) == expected


def test_a_sweep_is_a_cartesian_product_with_the_last_parameter_fastest() -> None:
    strategies = parse_strategies("top_p:p=[0.5,0.9],temperature=[0.2,1.0,1.2]")
    assert strategies == [TopP(p=p, temperature=t) for p in (0.5, 0.9) for t in (0.2, 1.0, 1.2)]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("top-p", "unknown strategy 'top-p'; did you mean 'top_p'?"),
        ("Greedy", "unknown strategy 'Greedy'; did you mean 'greedy'?"),
        ("", "unknown strategy ''; known: ancestral, beam, "),
        ("top_p:tempreature=1", "unknown parameter 'tempreature' of strategy 'top_p'; did you mean 'temperature'?"),
        ("top_p:k=5", "unknown parameter 'k' of strategy 'top_p'; known: p, temperature"),
        ("greedy:temperature=0", "unknown parameter 'temperature' of strategy 'greedy'; it takes none"),
        ("top_k:k=0", "strategy 'top_k': k = 0 is out of range: should be greater than or equal to 1"),
        ("top_k:k=99999999999999999999", "k = 99999999999999999999 is out of range"),
        ("top_k:k=2.5", "strategy 'top_k': k = 2.5 is out of range: should be a valid integer"),
        ("top_k:k=[5,0]", "strategy 'top_k': k = 0 is out of range"),
        ("top_p:p=1.5", "strategy 'top_p': p = 1.5 is out of range: should be less than or equal to 1"),
        ("top_p:p=0", "p = 0 is out of range: should be greater than 0"),
        ("min_p:p=-0.1", "p = -0.1 is out of range"),
        ("typical:mass=2", "mass = 2 is out of range"),
        ("eta:epsilon=1", "epsilon = 1 is out of range: should be less than 1"),
        ("top_nsigma:n=0", "n = 0 is out of range"),
        ("ancestral:temperature=0", "temperature = 0 is out of range: should be greater than 0"),
        ("ancestral:temperature=-1", "temperature = -1 is out of range"),
        ("ancestral:temperature=inf", "temperature = inf is out of range: should be a finite number"),
        ("ancestral:temperature=nan", "temperature = nan is out of range"),
        ("beam:width=0", "strategy 'beam': width = 0 is out of range: should be greater than or equal to 1"),
        # A length to this power leaves the range of numbers.
        ("beam:length_penalty=1000", "length_penalty = 1000 is out of range"),
        ("contrastive:alpha=1.1", "alpha = 1.1 is out of range"),
        ("diverse_beam:width=4,groups=3", "is out of range: width 4 is not a multiple of groups 3"),
        ("diverse_beam:penalty=-1", "penalty = -1 is out of range"),
        ("top_k:k=[]", "strategy 'top_k': the list of k is empty; give at least one value"),
        # Not a truth value, an octal number or minutes and seconds.
        ("top_k:k=true", "k = true is out of range"),
        ("top_k:k=1:30", "k = 1:30 is out of range"),
    ],
)
def test_every_mistake_is_one_sentence_with_its_remedy(spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_strategies(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    [
        "top_k:k",
        "top_k:k:5",
        "top_k:=5",
        "top_k:k=5 temperature=1",
        "top_k:k=[1,[2]]",
        "top_k:k=[1,2",
        "top_k:k=1,2",
        "top_k:k=[1]2",
        "top_k:,",
        "beam:width=2;length_penalty=1",
        # Which of the two would count?
        "top_k:k=5,k=6",
        "top_k:k=" + "[" * 5000,
    ],
)
def test_malformed_specs(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"is malformed; write NAME:key=value,key=\[value,value\]"):
        parse_strategies(spec)


NOISE = st.text(st.sampled_from("kptemraui=:,[]{}0159.-+e!&*<>|%@'\"# \n\t?_~"), max_size=12)
SPECS = st.one_of(
    st.text(max_size=30),
    st.tuples(st.sampled_from(sorted(STRATEGIES)), NOISE).map(":".join),
    st.tuples(st.sampled_from(sorted(STRATEGIES)), st.sampled_from(["k", "p", "width", "temperature"]), NOISE).map(
        lambda parts: f"{parts[0]}:{parts[1]}={parts[2]}"
    ),
)


@given(SPECS)
@example("top_k:!!bool k")
@example("top_k:k=!!timestamp k")
@example("top_k:k=&a [*a]")
@example("top_k:k=\x00")
@example("top_k:k=0x" + "f" * 5000)
def test_any_text_gives_strategies_or_a_config_error(spec: str) -> None:
    try:
        strategies = parse_strategies(spec)
    except ConfigError:
        return
    assert strategies
    assert all(type(strategy) in STRATEGIES.values() for strategy in strategies)


# --- Configs ----------------------------------------------------------------------------------------------------------

OPEN_UNIT = st.floats(0.0, 1.0, exclude_min=True, exclude_max=True)
UNIT = st.floats(0.0, 1.0, exclude_min=True)
POSITIVE = st.floats(0.0, 1e6, exclude_min=True)
COUNT = st.integers(1, 10**6)
# Every field of every strategy, with what may stand in it.
FIELDS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "greedy": {},
    "beam": {"width": COUNT, "length_penalty": st.floats(-10.0, 10.0)},
    "diverse_beam": {"width": COUNT, "groups": st.just(1), "penalty": st.floats(0.0, 1e6)},
    "contrastive": {"k": COUNT, "alpha": st.floats(0.0, 1.0)},
    "ancestral": {"temperature": POSITIVE},
    "top_k": {"temperature": POSITIVE, "k": COUNT},
    "top_p": {"temperature": POSITIVE, "p": UNIT},
    "min_p": {"temperature": POSITIVE, "p": UNIT},
    "typical": {"temperature": POSITIVE, "mass": UNIT},
    "eta": {"temperature": POSITIVE, "epsilon": OPEN_UNIT},
    "top_nsigma": {"temperature": POSITIVE, "n": POSITIVE},
}
ANY_STRATEGY = st.one_of(
    [st.fixed_dictionaries(fields).map(functools.partial(make_strategy, name)) for name, fields in FIELDS.items()]
)


def test_the_table_of_fields_is_complete() -> None:
    assert {name: set(cls.model_fields) for name, cls in STRATEGIES.items()} == {
        name: set(fields) for name, fields in FIELDS.items()
    }


@pytest.mark.parametrize("cls", STRATEGIES.values(), ids=STRATEGIES)
def test_the_label_of_the_defaults_is_a_spec_of_them(cls: type[Strategy]) -> None:
    assert parse_strategies(cls().label) == [cls()]
    assert parse_strategies(cls.name) == [cls()]


@given(ANY_STRATEGY)
def test_the_label_is_a_spec_of_the_strategy(strategy: Strategy) -> None:
    assert parse_strategies(strategy.label) == [strategy]


@given(ANY_STRATEGY)
def test_params_are_canonical_json_of_the_parameters(strategy: Strategy) -> None:
    params = json.loads(strategy.params)
    assert make_strategy(strategy.name, params) == strategy
    assert strategy.params == json.dumps(params, sort_keys=True, separators=(",", ":"))


def test_a_whole_number_names_the_same_arm_as_the_fraction_it_equals() -> None:
    assert parse_strategies("top_p:p=1,temperature=1")[0].params == TopP(p=1.0, temperature=1.0).params


def test_strategies_are_frozen() -> None:
    strategy: Any = TopK()
    with pytest.raises(ValidationError):
        strategy.k = 3


# --- Every field is read ----------------------------------------------------------------------------------------------

# Of each strategy one other value for every field, and the parameters beside it where they need not be the defaults.
PERTURBED: list[tuple[Strategy, dict[str, Any]]] = [
    (Beam(width=4, length_penalty=0.0), {"width": 1, "length_penalty": 2.0}),
    (DiverseBeam(width=4, groups=2, penalty=0.5), {"width": 2, "groups": 4, "penalty": 5.0}),
    (Contrastive(k=4, alpha=0.6), {"k": 2, "alpha": 0.0}),
    (Ancestral(temperature=1.0), {"temperature": 0.5}),
    (TopK(k=50, temperature=1.0), {"k": 5, "temperature": 0.5}),
    (TopP(p=0.9, temperature=1.0), {"p": 0.5, "temperature": 0.5}),
    (MinP(p=0.05, temperature=1.0), {"p": 0.5, "temperature": 0.5}),
    (Typical(mass=0.95, temperature=1.0), {"mass": 0.3, "temperature": 0.5}),
    (Eta(epsilon=0.0009, temperature=1.0), {"epsilon": 0.1, "temperature": 0.5}),
    (TopNSigma(n=1.0, temperature=1.0), {"n": 2.0, "temperature": 0.5}),
]
CHANGES = [
    pytest.param(strategy, field, value, id=f"{strategy.name}.{field}")
    for strategy, values in PERTURBED
    for field, value in values.items()
]


def behaviour(strategy: Strategy) -> list[Any]:
    """What a strategy does: 64 draws from one fixed row of logits, or a search on a tiny model that stops often."""
    if isinstance(strategy, Sampler):
        rng = generator(3, "strategies")
        logits = torch.from_numpy(rng.normal(0.0, 2.0, (1, 500))).float()
        source = read_heads(logits, torch.tensor([strategy.temperature]))
        rows = torch.zeros(64, dtype=torch.int64)
        drawn = draw(source, rows, [strategy] * 64, torch.from_numpy(rng.uniform(size=64)))
        return [drawn.tokens.tolist(), drawn.logprobs.tolist(), drawn.sampler_logprobs.tolist()]
    lm = dataclasses.replace(tiny_language_model(), eos_ids=frozenset(range(2, 40)))
    rows_P = decode(lm, ["one", "two", "three"], [strategy], max_new_tokens=10, stopping=Stopping(block=None))
    return [[one.token_ids, one.score] for one in rows_P]


def test_every_field_is_perturbed() -> None:
    perturbed = {strategy.name: set(values) for strategy, values in PERTURBED}
    assert perturbed | {"greedy": set()} == {name: set(cls.model_fields) for name, cls in STRATEGIES.items()}


@pytest.mark.parametrize(("strategy", "field", "value"), CHANGES)
def test_every_field_changes_what_the_strategy_does(strategy: Strategy, field: str, value: float) -> None:
    changed = make_strategy(strategy.name, strategy.model_dump() | {field: value})
    assert behaviour(strategy) == behaviour(strategy)
    assert behaviour(changed) != behaviour(strategy)


@pytest.mark.parametrize("strategy", [strategy for strategy, _ in PERTURBED], ids=lambda strategy: strategy.name)
def test_what_the_strategies_do_is_finite(strategy: Strategy) -> None:
    if isinstance(strategy, Sampler):
        _, logprobs, sampler_logprobs = behaviour(strategy)
        assert all(math.isfinite(value) and value <= 0 for value in (*logprobs, *sampler_logprobs))
