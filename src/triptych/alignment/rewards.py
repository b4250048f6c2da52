"""Rewards by name: functions, and reward models in the dress of functions."""

from collections.abc import Sequence
from pathlib import Path

from triptych.alignment.reward_functions import (
    OWN,
    NamedReward,
    is_reward_model,
    load_reward_functions,
    reward_name,
)
from triptych.errors import ConfigError
from triptych.models import load_reward_model


def load_rewards(specs: Sequence[str], *, own: Path | None, device: str) -> list[NamedReward]:
    """Rewards by their specs: `reward_model` is the run's own in the folder `own`, `model:DIR` any other.

    Raises `ConfigError` for an unknown name, for `reward_model` where there is none, and for two of one name.
    """
    functions = iter(load_reward_functions([spec for spec in specs if not is_reward_model(spec)]))
    rewards = [_reward_model(spec, own, device) if is_reward_model(spec) else next(functions) for spec in specs]
    names = [reward.name for reward in rewards]
    if repeated := [spec for spec, name in zip(specs, names, strict=True) if names.count(name) > 1]:
        raise ConfigError(
            f"rewards {' and '.join(repeated)} are both called '{names[specs.index(repeated[0])]}', so that their "
            "figures could not be told apart: leave one out"
        )
    return rewards


def _reward_model(spec: str, own: Path | None, device: str) -> NamedReward:
    name, _, written = spec.partition("=")
    if name == OWN and own is None:
        raise ConfigError("reward 'reward_model' needs a trained one: configure alignment.reward, or write model:DIR")
    try:
        weight = float(written or 1.0)
    except ValueError:
        raise ConfigError(f"reward '{spec}': its weight '{written}' is no number") from None
    model = load_reward_model(own if name == OWN and own is not None else name.removeprefix("model:"), device=device)

    def score(
        prompts: list[str], completions: list[str], *, is_truncated: list[bool] | None = None, **columns: object
    ) -> list[float | None]:
        return model.score(list(zip(prompts, completions, strict=True)), truncated=is_truncated)

    return NamedReward(reward_name(spec), score, weight)
