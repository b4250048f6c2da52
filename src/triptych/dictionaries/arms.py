"""Which dictionaries a study trains: the shared one, what it is compared with, and the nulls it must differ from."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from triptych.dictionaries.plan import DictionariesConfig
from triptych.dictionaries.records import MAIN, Role
from triptych.dictionaries.settings import UniversalConfig

AGAIN = " again"
"""What the second side of the same-model null is called."""


class Arm(NamedTuple):
    """One dictionary to train."""

    name: str
    """Its folder."""
    role: Role
    seed: int
    models: tuple[str, ...]
    """As they are called in the dictionary."""
    reads: tuple[str, ...]
    """Whose activations these are."""
    config: UniversalConfig
    is_shuffled: bool = False

    @property
    def is_summed(self) -> bool:
        return self.config.code == "summed"


def arms(config: DictionariesConfig) -> list[Arm]:
    """All dictionaries of a study, the shared one first."""
    found = [_universal(config, seed) for seed in range(config.seeds)]
    for role in config.baselines:
        found += ALONE[role](config) if role in ALONE else [*COMPARED[role](config)]
    return found + [one for null in config.nulls for one in NULLS[null](config)]


def _universal(config: DictionariesConfig, seed: int) -> Arm:
    return Arm(_name(MAIN, seed), "universal", seed, config.names, config.names, config.universal)


def _name(base: str, seed: int) -> str:
    return base if seed == 0 else f"{base}.seed{seed}"


def _independent(config: DictionariesConfig) -> list[Arm]:
    """As many steps as the shared dictionary takes."""
    return _each_alone(config, "independent", config.universal)


def _independent_equal_updates(config: DictionariesConfig) -> list[Arm]:
    """As many updates as an encoder of the shared dictionary gets, which is one among M sources."""
    every = config.universal.sources == "every"
    epochs = config.universal.epochs if every else max(1, round(config.universal.epochs / len(config.names)))
    return _each_alone(config, "independent_equal_updates", config.universal.model_copy(update={"epochs": epochs}))


def _each_alone(config: DictionariesConfig, role: Role, settings: UniversalConfig) -> list[Arm]:
    # One model has but one source, and nobody else to sum with.
    alone = settings.model_copy(update={"sources": "one", "code": "own"})
    return [
        Arm(_name(f"{role}.{model}", seed), role, seed, (model,), (model,), alone)
        for seed in range(config.seeds)
        for model in config.names
    ]


def _other_update(config: DictionariesConfig) -> Iterator[Arm]:
    other = "source" if config.universal.update == "all" else "all"
    changed = config.universal.model_copy(update={"update": other})
    yield Arm("other_update", "other_update", 0, config.names, config.names, changed)


def _sparc(config: DictionariesConfig) -> Iterator[Arm]:
    if config.universal.coder.sparsifier.name == "top_k":
        changed = config.universal.model_copy(update={"sources": "every", "code": "summed", "update": "all"})
        yield Arm("sparc", "sparc", 0, config.names, config.names, changed)


def _shuffled(config: DictionariesConfig) -> Iterator[Arm]:
    yield Arm("shuffled", "shuffled", 0, config.names, config.names, config.universal, is_shuffled=True)


def _same(config: DictionariesConfig) -> Iterator[Arm]:
    """The first model against itself, trained as the shared dictionary is, one source a step and from other starts.

    So it can fail: two sides that begin alike and are encoded together stay alike whatever the rule.
    """
    model, coder = config.names[0], config.universal.coder
    apart = coder if coder.init == "random" else coder.model_copy(update={"init": "own_samples"})
    changed = config.universal.model_copy(update={"coder": apart, "sources": "one", "code": "own"})
    yield Arm("same", "same", 0, (model, model + AGAIN), (model, model), changed)


ALONE: dict[str, Callable[[DictionariesConfig], list[Arm]]] = {
    "independent": _independent,
    "independent_equal_updates": _independent_equal_updates,
}
COMPARED: dict[str, Callable[[DictionariesConfig], Iterator[Arm]]] = {"other_update": _other_update, "sparc": _sparc}
NULLS: dict[str, Callable[[DictionariesConfig], Iterator[Arm]]] = {"shuffled": _shuffled, "same": _same}
