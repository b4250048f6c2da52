"""What a decoding study makes: its configuration, and the completions of every prompt that follow from it.

Three groups of arms share prompts and completions. The main strategies run once on every prompt. `within` adds further
samples of the first prompts, for diversity within a prompt. `frontier` compares strategies at equally many settings on
the first prompts. A completion that two groups want is made once.

Not here: making them (`study`).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pydantic import Field, field_validator, model_validator

from triptych.config import Config
from triptych.decoding.stopping import Stopping
from triptych.decoding.strategies import Beam, Contrastive, DiverseBeam, Sampler, Strategy, parse_strategies
from triptych.errors import ConfigError


class WithinConfig(Config):
    """Several samples of a prompt, for diversity within it."""

    strategies: tuple[str, ...] = Field(min_length=1)
    """SPECs, as on the command line; samplers alone, for a search gives the same text again."""
    samples: int = Field(default=10, ge=2)
    """Of each prompt, the one that every arm has included."""
    prompts: int | None = Field(default=None, ge=1)
    """The first so many of the study's prompts; null for all."""

    @field_validator("strategies")
    @classmethod
    def _samplers(cls, specs: tuple[str, ...]) -> tuple[str, ...]:
        for strategy in expand(specs):
            if not isinstance(strategy, Sampler):
                raise ConfigError(f"{strategy.label} gives the same text at every sample; name samplers alone")
        return specs


class FrontierConfig(Config):
    """Strategies compared for quality and diversity, each at equally many settings."""

    strategies: tuple[str, ...] = Field(min_length=1)
    prompts: int | None = Field(default=None, ge=1)
    """The first so many of the study's prompts; null for all."""

    @field_validator("strategies")
    @classmethod
    def _equal_budgets(cls, specs: tuple[str, ...]) -> tuple[str, ...]:
        settings: dict[str, int] = {}
        for strategy in expand(specs):
            settings[strategy.name] = settings.get(strategy.name, 0) + 1
        if len(set(settings.values())) > 1:
            counted = ", ".join(f"{name} {count}" for name, count in settings.items())
            raise ConfigError(f"strategies have unequal numbers of settings ({counted}); give all the same number")
        return specs


class DecodingConfig(Config):
    """A decoding study: prompts, strategies, and what is measured on their completions."""

    prompts: str = "starter"
    """`starter`, a file or a hub data set."""
    shuffle: bool = True
    """Take the prompts in an order that depends on the seed; else in that of their source."""
    limit: int | None = Field(default=None, ge=1)
    """How many prompts; null for all."""
    template: str = "paper"
    """How a prompt is put to the model: `paper`, `alpaca` or `chat`."""
    max_new_tokens: int = Field(default=128, ge=1)
    strategies: tuple[str, ...] = Field(min_length=1)
    """SPECs, as on the command line; they run on every prompt."""
    within: WithinConfig | None = None
    frontier: FrontierConfig | None = None
    stopping: Stopping = Stopping()
    fixed_length: int = Field(default=20, ge=3)
    """Words of every text that length-matched Distinct-n looks at."""
    reward_model: str | None = None
    """A hub id or a local folder; null leaves the completions unscored."""

    @field_validator("strategies")
    @classmethod
    def _known(cls, specs: tuple[str, ...]) -> tuple[str, ...]:
        expand(specs)
        return specs

    @model_validator(mode="after")
    def _enough_prompts(self) -> "DecodingConfig":
        for name, group in (("within", self.within), ("frontier", self.frontier)):
            wanted = None if group is None else group.prompts
            if wanted is not None and self.limit is not None and wanted > self.limit:
                raise ConfigError(f"{name}.prompts is {wanted}, more than the limit of {self.limit} prompts")
        return self


class Request(NamedTuple):
    """One completion of a prompt."""

    strategy: Strategy
    sample: int

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from the other completions of its prompt."""
        return self.strategy.name, self.strategy.params, self.sample


def expand(specs: Iterable[str]) -> list[Strategy]:
    """The strategies that some SPECs name, in order and each once."""
    strategies = (strategy for spec in specs for strategy in parse_strategies(spec))
    return list({(strategy.name, strategy.params): strategy for strategy in strategies}.values())


def plan_requests(config: DecodingConfig, n_prompts: int) -> list[list[Request]]:
    """The completions of every prompt, in the order in which they are stored."""
    return [_requests(config, index) for index in range(n_prompts)]


def compared_arms(config: DecodingConfig) -> frozenset[tuple[str, str]]:
    """Name and parameters of the arms that measures and statements are about: all but those of the frontier alone."""
    return _arm_names([*config.strategies, *(config.within.strategies if config.within else ())])


def frontier_arms(config: DecodingConfig) -> frozenset[tuple[str, str]]:
    """Name and parameters of the arms on the frontier plot."""
    return _arm_names(config.frontier.strategies if config.frontier else ())


def planned_rows(requests: Sequence[Sequence[Request]]) -> int:
    """Rows that the model steps: a beam search takes its width, contrastive search its candidates."""
    return sum(_rows_of(request.strategy) for own in requests for request in own)


def _requests(config: DecodingConfig, index: int) -> list[Request]:
    wanted = [Request(strategy, 0) for strategy in expand(config.strategies)]
    if config.within is not None and _includes(config.within.prompts, index):
        samples = range(config.within.samples)
        wanted += [Request(strategy, sample) for strategy in expand(config.within.strategies) for sample in samples]
    if config.frontier is not None and _includes(config.frontier.prompts, index):
        wanted += [Request(strategy, 0) for strategy in expand(config.frontier.strategies)]
    return _samples_together({request.key: request for request in wanted}.values())


def _samples_together(requests: Iterable[Request]) -> list[Request]:
    """Arm by arm, arms in the order of first mention."""
    arms: dict[tuple[str, str], list[Request]] = {}
    for request in requests:
        arms.setdefault(request.key[:2], []).append(request)
    return [request for own in arms.values() for request in own]


def _includes(prompts: int | None, index: int) -> bool:
    return prompts is None or index < prompts


def _arm_names(specs: Iterable[str]) -> frozenset[tuple[str, str]]:
    return frozenset((strategy.name, strategy.params) for strategy in expand(specs))


def _rows_of(strategy: Strategy) -> int:
    match strategy:
        case Beam(width=width) | DiverseBeam(width=width):
            return width
        case Contrastive(k=candidates):
            return candidates
        case _:
            return 1
