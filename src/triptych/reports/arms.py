"""Arms of a decoding run: what they are called, how they are ordered and which ones form a temperature sweep."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from triptych.reports.format import NBSP
from triptych.reports.safe_text import neutralise

STRATEGY_ORDER = (
    "greedy",
    "beam",
    "diverse_beam",
    "contrastive",
    "top_k",
    "top_p",
    "min_p",
    "typical",
    "eta",
    "top_nsigma",
    "ancestral",
)
"""Order in every figure and table; strategies not listed follow by name."""

MAIN_PARAMETER = {
    "beam": "width",
    "diverse_beam": "width",
    "contrastive": "k",
    "top_k": "k",
    "top_p": "p",
    "min_p": "p",
    "typical": "mass",
    "eta": "epsilon",
    "top_nsigma": "n",
}
"""The parameter that is always part of a name; others are named only where they tell two arms apart."""


class Family(NamedTuple):
    """One strategy with one set of parameters: what a temperature sweep varies over."""

    strategy: str
    params: str
    """Canonical JSON without the temperature."""


class Arm(NamedTuple):
    """One strategy with its parameters and temperature: the unit that figures and tables compare."""

    strategy: str
    params: str
    """Canonical JSON without the temperature."""
    temperature: float | None

    @property
    def family(self) -> Family:
        return Family(self.strategy, self.params)


def make_arm(strategy: str, params: Mapping[str, Any] | str, temperature: float | None) -> Arm:
    """An arm from a row of any of the run's files.

    The temperature has its own column: neither its repetition in `params` nor its rounding in a single-precision
    column must make two arms out of one.
    """
    given = json.loads(params) if isinstance(params, str) else dict(params)
    given.pop("temperature", None)
    return Arm(strategy, json.dumps(given, sort_keys=True), None if temperature is None else round(temperature, 6))


def ordered(arms: Iterable[Arm]) -> list[Arm]:
    """The paper's order of strategies, then parameters, then temperature."""
    return sorted(arms, key=lambda arm: (*_rank(arm.family), arm.temperature is not None, arm.temperature or 0.0))


def families(arms: Iterable[Arm]) -> list[Family]:
    """The families of some arms, in order and without repeats."""
    return list(dict.fromkeys(arm.family for arm in ordered(arms)))


def name_families(arms: Iterable[Arm]) -> dict[Family, str]:
    """Short names such as `top-p 0.9`: the main parameter, and others only where they differ within the strategy."""
    by_strategy: dict[str, list[Family]] = defaultdict(list)
    for family in families(arms):
        by_strategy[family.strategy].append(family)
    return {family: _name(family, siblings) for siblings in by_strategy.values() for family in siblings}


def name_arms(arms: Iterable[Arm]) -> dict[Arm, str]:
    """Short names such as `top-p 0.9, T 0.8`, in order."""
    in_order = ordered(arms)
    names = name_families(in_order)
    return {
        arm: names[arm.family] + ("" if arm.temperature is None else f", {at_temperature(arm.temperature)}")
        for arm in in_order
    }


def setting_labels(arms: Iterable[Arm]) -> dict[Arm, str]:
    """What tells an arm from others of its strategy, as short as can be: `T 0.8`, `alpha 0.4` or `p 0.9, T 0.8`."""
    in_order = ordered(arms)
    siblings = families(in_order)
    labels = {}
    for arm in in_order:
        own = [family for family in siblings if family.strategy == arm.strategy]
        parts = _varying(arm.family, own)
        parts += [] if arm.temperature is None else [at_temperature(arm.temperature)]
        labels[arm] = ", ".join(parts) or strategy_name(arm.strategy)
    return labels


def at_temperature(temperature: float) -> str:
    """`T 0.8`, on one line."""
    return f"T{NBSP}{temperature_text(temperature)}"


def temperature_text(temperature: float) -> str:
    """`0.2`, `1.0`, `0.25`: at least one decimal."""
    return f"{temperature:.1f}" if round(10.0 * temperature, 6).is_integer() else f"{temperature:g}"


def strategy_name(strategy: str) -> str:
    """`top_p` as it is written in text: `top-p`."""
    return neutralise(strategy).replace("_", "-")


def parameters(family: Family) -> dict[str, Any]:
    """The parameters of a family, the temperature aside."""
    params: dict[str, Any] = json.loads(family.params)
    return params


def _name(family: Family, siblings: list[Family]) -> str:
    main = MAIN_PARAMETER.get(family.strategy)
    params = parameters(family)
    shown = [strategy_name(family.strategy)]
    if main in params:
        shown.append(_shown(params[main]))
    return " ".join([*shown, *_varying(family, siblings, but=main)])


def _varying(family: Family, siblings: list[Family], but: str | None = None) -> list[str]:
    """`key value` of the parameters in which the families of one strategy differ."""
    all_params, params = [parameters(sibling) for sibling in siblings], parameters(family)
    return [
        f"{neutralise(key).replace('_', ' ')}{NBSP}{_shown(params[key])}"
        for key in sorted(params)
        if key != but and len({json.dumps(other.get(key), sort_keys=True) for other in all_params}) > 1
    ]


def _shown(param: Any) -> str:
    return f"{param:g}" if isinstance(param, float) else neutralise(str(param))


def _rank(family: Family) -> tuple[int, str, list[tuple[str, float, str]]]:
    order = STRATEGY_ORDER.index(family.strategy) if family.strategy in STRATEGY_ORDER else len(STRATEGY_ORDER)
    return order, family.strategy, [_sortable(key, param) for key, param in sorted(parameters(family).items())]


def _sortable(key: str, param: Any) -> tuple[str, float, str]:
    """Numbers sort as numbers (k = 5 before k = 50), anything else as text, and the two never meet in a comparison."""
    is_number = isinstance(param, int | float)
    return key, float(param) if is_number else 0.0, "" if is_number else str(param)
