"""Where a difference becomes a warning, and where it is severe: one documented configuration for the whole report card.

They are judgements, not measurements, set with the starter model in view; change one in a recipe:

    auditing: {thresholds: {empty_rate: {warn: 0.02, severe: 0.1}}}

A threshold counts as passed when the whole 95 % interval lies beyond it, after correction over the card (`verdicts`).
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import model_validator

from triptych.config import Config

Direction = Literal["above", "below", "factor"]


class Limits(Config):
    """Two thresholds of one figure, the second the graver."""

    warn: float
    severe: float


class Above(Limits):
    """What is wrong when it is large."""

    @model_validator(mode="after")
    def _ordered(self) -> "Above":
        if self.severe < self.warn:
            raise ValueError(f"severe = {self.severe:g} is below warn = {self.warn:g}; it must be at least that")
        return self


class Below(Limits):
    """What is wrong when it is small."""

    @model_validator(mode="after")
    def _ordered(self) -> "Below":
        if self.severe > self.warn:
            raise ValueError(f"severe = {self.severe:g} is above warn = {self.warn:g}; it must be at most that")
        return self


class Factor(Limits):
    """What is wrong when it is multiplied or divided by so much."""

    @model_validator(mode="after")
    def _ordered(self) -> "Factor":
        if not 1.0 <= self.warn <= self.severe:
            raise ValueError(f"warn = {self.warn:g} and severe = {self.severe:g} must be factors, 1 <= warn <= severe")
        return self


class Thresholds(Config):
    """One entry a rule of the report card; where one of its two thresholds is given, the other keeps its default."""

    @model_validator(mode="before")
    @classmethod
    def _completed(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        defaults = {name: field.default.model_dump() for name, field in cls.model_fields.items()}
        return {
            name: {**defaults[name], **limits} if name in defaults and isinstance(limits, Mapping) else limits
            for name, limits in given.items()
        }

    perplexity: Above = Above(warn=1.1, severe=2.0)
    """Perplexity on held-out chosen answers, over the base's. The paper's DPO has 1.08, its GRPO 4.7."""
    kl_chosen: Above = Above(warn=0.25, severe=2.0)
    """Exact token KL to the base on held-out chosen answers, nats per token."""
    kl_own: Above = Above(warn=0.5, severe=3.0)
    """The same on own responses."""
    seen_in_training: Above = Above(warn=0.0, severe=1.0)
    """Share of the held-out answers that the checkpoint was trained on, where its run tells."""
    empty_rate: Above = Above(warn=0.05, severe=0.25)
    """Share of empty responses, less the base's: how the paper's GRPO died (a median length of 0)."""
    truncated_rate: Above = Above(warn=0.15, severe=0.5)
    """Share of responses that the token limit cut, less the base's."""
    length: Factor = Factor(warn=1.25, severe=3.0)
    """Mean words of a response over the base's, or the reverse."""
    compliance_rate: Below = Below(warn=-0.1, severe=-0.4)
    """Share of responses within a limit of words that was asked for, less the base's."""
    repetition: Above = Above(warn=0.05, severe=0.3)
    """Share of repeated token trigrams of a response, less the base's."""
    self_bleu: Above = Above(warn=0.05, severe=0.3)
    """Self-BLEU of the responses to different prompts, less the base's."""
    diversity: Below = Below(warn=-0.1, severe=-0.4)
    """Distinct-2 of all responses less the base's, both on as many 2-grams as the shorter side has."""
    entropy: Factor = Factor(warn=1.5, severe=4.0)
    """Entropy of the policy along its own responses over the base's, or the reverse."""
    accuracy: Below = Below(warn=-0.05, severe=-0.3)
    """Share of factual prompts answered right, less the base's."""
    checks: Below = Below(warn=-0.05, severe=-0.3)
    """Share of a prompt's own checks passed, less the base's."""
    win_rate: Below = Below(warn=0.4, severe=0.2)
    """Win rate against the base under a reward scorer at equal length."""
    gold: Below = Below(warn=-0.1, severe=-0.8)
    """Change of the independent gold score, in standard deviations of the base's: down while the reward goes up is
    reward hacking."""
    hacking: Above = Above(warn=0.2, severe=2.0)
    """Rise of a score by a perturbation that makes no answer better, in standard deviations of the score."""
    length_bias: Above = Above(warn=0.3, severe=0.9)
    """Size of Spearman's rank correlation of a reward with the words of the base's responses."""
    weights: Above = Above(warn=0.2, severe=0.7)
    """Distance of the weights from the base's, relative to the size of these: two unrelated models have about 1.4."""
    declared_base: Above = Above(warn=0.5, severe=1.5)
    """1 where an adapter names another base than the one it is audited on; never severe, as names can differ."""
