"""What the auditing panel is to do: its configuration."""

import math
from typing import Literal

from pydantic import Field, field_validator, model_validator

from triptych.alignment.encoding import Template
from triptych.alignment.plan import AlignmentConfig
from triptych.alignment.reward_functions import reward_name
from triptych.auditing.perturbations import PERTURBATIONS
from triptych.auditing.records import BASE
from triptych.auditing.thresholds import Thresholds
from triptych.config import Config
from triptych.data.pairs import PairSource
from triptych.errors import ConfigError, suggestion

RESERVED = (BASE, "all", "classifier", "texts")
"""What records are about that are of no checkpoint."""

SWEEP = (0.25, 0.5, 0.75, 1.25)
"""The factors that `sweep: true` stands for, beside 0 and 1."""


class AuditingConfig(Config):
    """The audits of some checkpoints of one base; in a study, of its own policies too."""

    adapters: dict[str, str] = Field(default_factory=dict)
    """Name → folder: a PEFT adapter, a run directory that holds one, or a whole model with the base's tokenizer."""
    pairs: str | None = None
    """Preference pairs whose chosen answers are read: `starter`, a file or a hub data set. None: those of the study's
    alignment panel, of which the held-out side is taken."""
    limit: int | None = Field(default=None, ge=1)
    shuffle: bool = False
    """Draw the pairs by the seed instead of taking them in their order."""
    on_bad: Literal["error", "skip"] = "error"
    """What to do with blank or identical answers."""
    validation: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Read only this share, the one that `triptych align` holds out with the same seed. None: all of `pairs`. The
    starter sets and a split file have their own."""
    perplexity_prompts: int = Field(default=200, ge=1)
    """Chosen answers that are read, at most."""
    prompts: str = "pairs"
    """What the checkpoints answer: `pairs` (their prompts), `starter`, a file or a hub data set."""
    verbosity_prompts: int = Field(default=500, ge=1)
    """Prompts that are answered, at most: once as they are and once behind a limit of words."""
    divergence_prompts: int = Field(default=100, ge=1)
    """Own responses whose divergence from the base is read, at most."""
    hacking_prompts: int = Field(default=40, ge=1)
    """Responses of the base that are perturbed, at most."""
    length_limit: int = Field(default=50, ge=1)
    """Words."""
    template: Template = "auto"
    max_new_tokens: int = Field(default=128, ge=1)
    max_length: int = Field(default=1024, ge=2)
    """Tokens of a prompt with its answer; what is longer loses its end."""
    scorers: tuple[str, ...] = ()
    """Rewards in the words of GRPO: `reward_model` (the study's own), `model:DIR`, `checks`, `FILE.py:FUNCTION`, …"""
    gold: str | None = None
    """A scorer that nothing was trained on, in the same words."""
    beta: float = Field(default=0.1, gt=0.0)
    """Of the implicit reward β (log π − log π_ref)."""
    nulls: int = Field(default=0, ge=0)
    """Random LoRAs of the targets, rank and norm of every audited one, which are audited like it; a finding then says
    how many of them it is beyond. Each costs as much as a checkpoint."""
    sweep: tuple[float, ...] = ()
    """Factors λ of every LoRA's own scale at which perplexity, KL, rewards and length are measured; `true` for 0.25,
    0.5, 0.75 and 1.25. 0 (the base) and 1 (the adapter) are always among them."""
    sweep_prompts: int = Field(default=24, ge=1)
    """Prompts and chosen answers of the sweep, at most."""
    perturbations: tuple[str, ...] = tuple(PERTURBATIONS)
    thresholds: Thresholds = Thresholds()

    @field_validator("adapters")
    @classmethod
    def _named(cls, adapters: dict[str, str]) -> dict[str, str]:
        for name in adapters:
            if not name.strip() or name in RESERVED:
                taken = ", ".join(RESERVED)
                raise ConfigError(f"adapter name '{name}' cannot be used ({taken} mean others); choose another")
        return adapters

    @model_validator(mode="after")
    def _told_apart(self) -> "AuditingConfig":
        for spec in (*self.scorers, *([] if self.gold is None else [self.gold])):
            if (name := reward_name(spec)) in self.adapters:
                raise ConfigError(f"adapter and scorer '{spec}' are both called '{name}'; choose another adapter name")
        return self

    @field_validator("sweep", mode="before")
    @classmethod
    def _standard(cls, sweep: object) -> object:
        if isinstance(sweep, bool):
            return SWEEP if sweep else ()
        return tuple(sweep) if isinstance(sweep, list) else sweep

    @field_validator("sweep")
    @classmethod
    def _scales(cls, sweep: tuple[float, ...]) -> tuple[float, ...]:
        for factor in sweep:
            if not (math.isfinite(factor) and factor >= 0.0):
                raise ConfigError(f"λ = {factor:g} cannot scale an adapter; give finite numbers of at least 0")
        return sweep

    @field_validator("perturbations")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in PERTURBATIONS:
                raise ConfigError(f"perturbation '{name}' is unknown{suggestion(name, PERTURBATIONS)}")
        return names


def pair_source(config: AuditingConfig, alignment: AlignmentConfig | None) -> PairSource:
    """The configured pairs, or those of the study's alignment panel.

    Raises `ConfigError` where there are neither.
    """
    if config.pairs is not None:
        return PairSource(config.pairs, config.limit, config.shuffle, config.on_bad)
    if alignment is None or alignment.pair_source is None:
        raise ConfigError(
            "auditing.pairs is missing, and there is no alignment panel whose pairs could be read; name some"
        )
    return alignment.pair_source
