"""Completions made up to order, so that tests know the truth behind them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from triptych.records import Generation

Temperatures = (0.2, 0.5, 0.8, 1.0, 1.2)


def completion(
    prompt_id: str = "p0",
    strategy: str = "greedy",
    params: dict[str, Any] | None = None,
    *,
    text: str = "a b c",
    sample: int = 0,
    mean_logprob: float | None = -1.0,
    n_tokens: int = 4,
    stop_reason: str = "eos",
) -> Generation:
    """One completion; its tokens all have the mean log-probability."""
    params = params or {}
    logprobs = () if mean_logprob is None else (mean_logprob,) * n_tokens
    is_search = strategy in ("beam", "diverse_beam")
    return Generation(
        prompt_id=prompt_id,
        prompt=f"Say something about {prompt_id}.",
        instruction=f"Say something about {prompt_id}.",
        input="",
        strategy=strategy,
        params=json.dumps(params, sort_keys=True, separators=(",", ":")),
        temperature=params.get("temperature"),
        sample=sample,
        text=text,
        raw_text=text,
        token_ids=tuple(range(4, 4 + len(logprobs))),
        logprobs=logprobs,
        sampler_logprobs=None if is_search else logprobs,
        mean_logprob=mean_logprob,
        n_tokens=len(logprobs),
        stop_reason=stop_reason,
        score=sum(logprobs) if is_search else None,
        seed=0,
    )


@dataclass(frozen=True)
class World:
    """A run whose truth is set by hand. Texts are words of Zipf's law over a vocabulary."""

    seed: int = 0
    n_prompts: int = 60
    temperatures: Sequence[float] = Temperatures
    slopes: dict[str, float] = field(default_factory=lambda: {"top_k": 0.0, "top_p": 0.0})
    """Of mean log-probability over temperature, by strategy."""
    vocabulary: Callable[[float], int] = lambda temperature: 300
    """Word types at a temperature."""
    topics: bool = False
    """Whether every prompt has words of its own."""
    words: int = 30
    samples: int = 10
    """Of the first `within` prompts, top-p at temperature 0.8."""
    within: int = 20
    greedy_sd: float = 0.3
    beam_sd: float = 0.3
    beam_gain: float = 0.0
    """How much higher the mean log-probability of beams is."""

    def generations(self) -> list[Generation]:
        rng = np.random.default_rng(self.seed)
        rows = []
        for prompt in range(self.n_prompts):
            own = rng.normal(-1.5, 0.3)
            rows.append(self._row(rng, prompt, "greedy", {}, -1.0 + rng.normal(0, self.greedy_sd)))
            beam = -1.0 + self.beam_gain + rng.normal(0, self.beam_sd)
            rows.append(self._row(rng, prompt, "beam", {"width": 4, "length_penalty": 0.0}, beam))
            for strategy, slope in self.slopes.items():
                for temperature in self.temperatures:
                    many = strategy == "top_p" and temperature == 0.8 and prompt < self.within
                    for sample in range(self.samples if many else 1):
                        value = own + slope * temperature + rng.normal(0, 0.2)
                        params = {"temperature": temperature, **PARAMS[strategy]}
                        rows.append(self._row(rng, prompt, strategy, params, value, sample))
        return rows

    def _row(
        self,
        rng: np.random.Generator,
        prompt: int,
        strategy: str,
        params: dict[str, Any],
        mean_logprob: float,
        sample: int = 0,
    ) -> Generation:
        size = self.vocabulary(params.get("temperature", 0.2))
        weights = 1 / np.arange(1, size + 1)
        ranks = rng.choice(size, self.words, p=weights / weights.sum())
        topic = f"t{prompt}" if self.topics else ""
        text = " ".join(f"{topic}w{rank}" for rank in ranks)
        return completion(f"p{prompt:03d}", strategy, params, text=text, sample=sample, mean_logprob=mean_logprob)


PARAMS: dict[str, dict[str, Any]] = {"top_k": {"k": 50}, "top_p": {"p": 0.9}}


@pytest.fixture
def make_completion() -> Callable[..., Generation]:
    return completion


@pytest.fixture
def make_world() -> type[World]:
    return World
