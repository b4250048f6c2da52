"""The decoding strategies as small frozen configs, and the SPEC language that names them on a command line.

To add a strategy: a config class here with its `name`, a plain function in
[`transforms`][triptych.decoding.transforms] (a truncation) or [`search`][triptych.decoding.search] (a search over
several rows), one entry in that module's table, and one in `STRATEGIES` below. The conformance suite then runs it.
"""

import itertools
import json
import re
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from triptych.errors import ConfigError, suggestion


class Strategy(BaseModel):
    """Base of the strategy configs: frozen, unknown parameters refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    name: ClassVar[str]

    @property
    def params(self) -> str:
        """Canonical JSON of the parameters (sorted keys): with `name` it identifies an arm."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))

    @property
    def label(self) -> str:
        """The SPEC that names this strategy, e.g. `top_p:p=0.9,temperature=1.0`."""
        settings = ",".join(f"{key}={value}" for key, value in self.model_dump().items())
        return f"{self.name}:{settings}" if settings else self.name


class Sampler(Strategy):
    """A strategy that draws: logits / temperature, truncated, renormalised, sampled."""

    temperature: float = Field(default=1.0, gt=0.0)


class Greedy(Strategy):
    """The most probable token at every step; ties go to the lower token id."""

    name: ClassVar[str] = "greedy"


class Beam(Strategy):
    """Beam search: the `width` best partial completions by summed log-probability, over length ** `length_penalty`."""

    name: ClassVar[str] = "beam"
    width: int = Field(default=4, ge=1)
    length_penalty: float = Field(default=0.0, ge=-10.0, le=10.0)


class DiverseBeam(Strategy):
    """Diverse beam search (Vijayakumar et al. 2018): `groups` searches in turn, each pays `penalty` nats for a token
    as often as earlier groups chose it at this step."""

    name: ClassVar[str] = "diverse_beam"
    width: int = Field(default=4, ge=1)
    groups: int = Field(default=4, ge=1)
    penalty: float = Field(default=0.5, ge=0.0)

    @model_validator(mode="after")
    def _divisible(self) -> "DiverseBeam":
        if self.width % self.groups:
            raise ValueError(f"width {self.width} is not a multiple of groups {self.groups}")
        return self


class Contrastive(Strategy):
    """Contrastive search (Su et al. 2022): of the `k` most probable tokens the one with the best
    (1 - `alpha`) · probability - `alpha` · largest cosine similarity of its hidden state to those before it."""

    name: ClassVar[str] = "contrastive"
    k: int = Field(default=4, ge=1)
    alpha: float = Field(default=0.6, ge=0.0, le=1.0)


class Ancestral(Sampler):
    """The whole distribution at a temperature, nothing cut off."""

    name: ClassVar[str] = "ancestral"


class TopK(Sampler):
    """Exactly the `k` most probable tokens (Fan et al. 2018); ties at the k-th go to the lower token id."""

    name: ClassVar[str] = "top_k"
    k: int = Field(default=50, ge=1, le=2**31 - 1)


class TopP(Sampler):
    """The nucleus (Holtzman et al. 2020): the smallest most-probable prefix whose mass exceeds `p`."""

    name: ClassVar[str] = "top_p"
    p: float = Field(default=0.9, gt=0.0, le=1.0)


class MinP(Sampler):
    """Tokens at least `p` times as probable as the most probable one (Nguyen et al. 2024)."""

    name: ClassVar[str] = "min_p"
    p: float = Field(default=0.05, gt=0.0, le=1.0)


class Typical(Sampler):
    """Locally typical sampling (Meister et al. 2023): tokens with a surprisal nearest the entropy, up to `mass`."""

    name: ClassVar[str] = "typical"
    mass: float = Field(default=0.95, gt=0.0, le=1.0)


class Eta(Sampler):
    """Eta sampling (Hewitt et al. 2022): tokens above min(`epsilon`, sqrt(`epsilon`) · exp(-entropy))."""

    name: ClassVar[str] = "eta"
    epsilon: float = Field(default=0.0009, gt=0.0, lt=1.0)


class TopNSigma(Sampler):
    """Top-nσ (Tang et al. 2024): logits within `n` standard deviations of the largest; the set ignores temperature."""

    name: ClassVar[str] = "top_nsigma"
    n: float = Field(default=1.0, gt=0.0)


STRATEGIES: dict[str, type[Strategy]] = {
    cls.name: cls
    for cls in (
        Greedy,
        Beam,
        DiverseBeam,
        Contrastive,
        Ancestral,
        TopK,
        TopP,
        MinP,
        Typical,
        Eta,
        TopNSigma,
    )
}


# key=value or key=[value,...] and what separates it from the next. Not YAML, where 010 is 8, 1:30 is 90, true is 1 and
# the second of two equal keys wins.
_SETTING = re.compile(r"\s*(?P<key>[^\s=,\[\]]+)\s*=\s*(?P<value>\[[^=\[\]]*\]|[^=,\[\]]*?)\s*(?:,|\Z)")


def make_strategy(name: str, params: dict[str, Any]) -> Strategy:
    """The config called `name` with `params`; every mistake is one sentence with its remedy.

    Raises:
        ConfigError: unknown strategy or parameter (with a suggestion), or a value out of range.
    """
    cls = STRATEGIES.get(name)
    if cls is None:
        raise ConfigError(f"unknown strategy '{name}'{suggestion(name, STRATEGIES)}")
    for key in params:
        if key not in cls.model_fields:
            known = suggestion(key, cls.model_fields) if cls.model_fields else "; it takes none"
            raise ConfigError(f"unknown parameter '{key}' of strategy '{name}'{known}")
    try:
        return cls(**params)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        value = f"{where} = {first['input']}" if where else json.dumps(params)
        raise ConfigError(f"strategy '{name}': {value} is out of range: {_reason(first['msg'])}") from None


def parse_strategies(spec: str) -> list[Strategy]:
    """The strategies that a SPEC names: `top_p:p=0.9,temperature=[0.2,0.5]` is a sweep of two.

    Several lists make their Cartesian product, the last parameter fastest.

    Raises:
        ConfigError: malformed SPEC, unknown strategy or parameter, value out of range.
    """
    name, _, settings = spec.strip().partition(":")
    params: dict[str, Any] = {}
    at = 0
    while at < len(settings):
        setting = _SETTING.match(settings, at)
        if setting is None or setting["key"] in params:
            raise ConfigError(f"strategy '{spec}' is malformed; write NAME:key=value,key=[value,value]")
        params[setting["key"]] = _values(setting["value"])
        at = setting.end()
    return expand_sweep(name, params)


def expand_sweep(name: str, params: dict[str, Any]) -> list[Strategy]:
    """One strategy for every combination of the listed values."""
    axes = [value if isinstance(value, list) else [value] for value in params.values()]
    empty = next((key for key, axis in zip(params, axes, strict=True) if not axis), None)
    if empty is not None:
        raise ConfigError(f"strategy '{name}': the list of {empty} is empty; give at least one value")
    return [make_strategy(name, dict(zip(params, point, strict=True))) for point in itertools.product(*axes)]


def _values(text: str) -> str | list[str]:
    """One value or the list of them, as text: the config's own types read numbers."""
    if not text.startswith("["):
        return text
    inner = text[1:-1].strip()
    return [part.strip() for part in inner.split(",")] if inner else []


def _reason(message: str) -> str:
    text = message.removeprefix("Value error, ").removeprefix("Input ")
    return text[:1].lower() + text[1:]
