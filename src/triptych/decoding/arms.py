"""Completions by arm: a strategy with its parameters, temperature included, is the unit that the study compares.

Not here: how arms are named and ordered for display (the report's affair).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from triptych.records import FinalBeam, Generation


class Arm(NamedTuple):
    """One strategy with its parameters."""

    strategy: str
    params: str
    """Canonical JSON, the temperature included."""
    temperature: float | None

    @property
    def settings(self) -> dict[str, Any]:
        """The parameters as a mapping."""
        settings: dict[str, Any] = json.loads(self.params)
        return settings

    @property
    def family(self) -> tuple[str, str]:
        """The strategy and its parameters but for the temperature: what a temperature sweep holds fixed."""
        rest = {key: value for key, value in self.settings.items() if key != "temperature"}
        return self.strategy, json.dumps(rest, sort_keys=True)


class CompletionKey(NamedTuple):
    """What tells one completion of a run from every other."""

    prompt_id: str
    strategy: str
    params: str
    sample: int


def arm_of(generation: Generation) -> Arm:
    """The arm that a completion belongs to."""
    return Arm(generation.strategy, generation.params, generation.temperature)


def key_of(generation: Generation) -> CompletionKey:
    """The key of a completion."""
    return CompletionKey(generation.prompt_id, generation.strategy, generation.params, generation.sample)


def by_arm(generations: Iterable[Generation]) -> dict[Arm, list[Generation]]:
    """The completions of every arm, arms and completions in the order given."""
    arms: dict[Arm, list[Generation]] = {}
    for generation in generations:
        arms.setdefault(arm_of(generation), []).append(generation)
    return arms


def by_prompt(generations: Iterable[Generation]) -> dict[str, list[Generation]]:
    """The completions of every prompt, prompts and completions in the order given."""
    prompts: dict[str, list[Generation]] = {}
    for generation in generations:
        prompts.setdefault(generation.prompt_id, []).append(generation)
    return prompts


def beams_by_arm(beams: Iterable[FinalBeam]) -> dict[Arm, dict[str, list[FinalBeam]]]:
    """The final beams of every arm and prompt, the best first."""
    arms: dict[Arm, dict[str, list[FinalBeam]]] = {}
    for beam in sorted(beams, key=lambda beam: beam.rank):
        arms.setdefault(Arm(beam.strategy, beam.params, None), {}).setdefault(beam.prompt_id, []).append(beam)
    return arms


def first_samples(generations: Iterable[Generation]) -> dict[str, Generation]:
    """Sample 0 of every prompt: the one completion a prompt that pooled figures are made of."""
    return {generation.prompt_id: generation for generation in generations if generation.sample == 0}


def common_prompts(arms: Sequence[Mapping[str, Generation]]) -> list[str]:
    """The prompts that every arm completed, in the order of the first arm."""
    if not arms:
        return []
    return [prompt_id for prompt_id in arms[0] if all(prompt_id in arm for arm in arms[1:])]


def temperature_sweep(arms: Iterable[Arm], strategy: str) -> list[Arm]:
    """The arms of a strategy that differ in temperature alone, by temperature; of several such families the largest.

    Empty where no family has two temperatures.
    """
    families: dict[tuple[str, str], list[Arm]] = {}
    for arm in arms:
        if arm.strategy == strategy and arm.temperature is not None:
            families.setdefault(arm.family, []).append(arm)
    largest = max(families.values(), key=len, default=[])
    return sorted(largest, key=lambda arm: arm.temperature or 0.0) if len(largest) >= 2 else []
