import pytest

from triptych.reports.arms import (
    Arm,
    families,
    make_arm,
    name_arms,
    name_families,
    ordered,
    setting_labels,
    temperature_text,
)
from triptych.reports.format import NBSP

GREEDY = make_arm("greedy", {}, None)
BEAM = make_arm("beam", {"width": 4, "length_penalty": 0.0}, None)


def top_p(p: float, temperature: float) -> Arm:
    return make_arm("top_p", {"p": p}, temperature)


def test_all_files_name_the_same_arm() -> None:
    # The parquet column holds JSON, the records a mapping; one repeats the temperature, one was single precision.
    assert make_arm("top_p", '{"temperature":0.2,"p":0.9}', 0.2) == make_arm("top_p", {"p": 0.9}, 0.20000000298023224)


def test_order_is_the_papers_then_by_number() -> None:
    arms = [
        top_p(0.9, 1.2),
        make_arm("zeta", {}, 1.0),
        top_p(0.9, 0.2),
        make_arm("top_k", {"k": 50}, 0.5),
        BEAM,
        GREEDY,
    ]
    assert [arm.strategy for arm in ordered(arms)] == ["greedy", "beam", "top_k", "top_p", "top_p", "zeta"]
    assert [arm.temperature for arm in ordered(arms)] == [None, None, 0.5, 0.2, 1.2, 1.0]
    ks = [make_arm("top_k", {"k": k}, 1.0) for k in (100, 5, 50)]
    assert [name_arms(ks)[arm] for arm in ordered(ks)] == [f"top-k {k}, T{NBSP}1.0" for k in (5, 50, 100)]


def test_names_are_short() -> None:
    assert list(name_arms([top_p(0.9, 0.8), BEAM, GREEDY]).values()) == ["greedy", "beam 4", f"top-p 0.9, T{NBSP}0.8"]


def test_names_tell_arms_of_one_strategy_apart() -> None:
    plain, penalised = BEAM, make_arm("beam", {"width": 4, "length_penalty": 0.6}, None)
    assert list(name_families([plain, penalised]).values()) == [
        f"beam 4 length penalty{NBSP}0",
        f"beam 4 length penalty{NBSP}0.6",
    ]


def test_labels_say_only_what_differs() -> None:
    contrastive = [make_arm("contrastive", {"k": 4, "alpha": alpha}, None) for alpha in (0.2, 0.4)]
    labels = setting_labels([*contrastive, top_p(0.9, 0.8), top_p(0.9, 1.0), GREEDY])
    assert [label.replace(NBSP, " ") for label in labels.values()] == [
        "greedy",
        "alpha 0.2",
        "alpha 0.4",
        "T 0.8",
        "T 1.0",
    ]
    both = setting_labels([top_p(0.9, 0.8), top_p(0.5, 0.8)])
    assert [label.replace(NBSP, " ") for label in both.values()] == ["p 0.5, T 0.8", "p 0.9, T 0.8"]


def test_names_cannot_steer_the_page() -> None:
    assert name_arms([make_arm("x\u202e", {}, None)]) == {make_arm("x\u202e", {}, None): "x⟨U+202E⟩"}


def test_a_family_is_a_sweep() -> None:
    assert families([top_p(0.9, 0.2), top_p(0.9, 1.2), GREEDY]) == [GREEDY.family, top_p(0.9, 0.2).family]


@pytest.mark.parametrize(("temperature", "text"), [(1.0, "1.0"), (0.2, "0.2"), (0.25, "0.25"), (2, "2.0")])
def test_temperature_text(temperature: float, text: str) -> None:
    assert temperature_text(temperature) == text
