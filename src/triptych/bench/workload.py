"""What every contender of the decoding benchmark is given: the paper's grid over some starter prompts."""

import time
from collections.abc import Callable
from typing import NamedTuple

from triptych.config import Config
from triptych.data import load_prompts, render_prompt
from triptych.decoding import Beam, Greedy, Sampler, Strategy, TopK, TopP
from triptych.models import LanguageModel
from triptych.records import Prompt

TEMPERATURES = (0.2, 0.5, 0.8, 1.0, 1.2)


class Workload(Config):
    """The paper's grid: greedy, beams of 4, top-k (50) and top-p (0.9) at five temperatures."""

    model: str = "starter"
    prompts: int = 8
    samples: int = 10
    """Of each prompt in every sampling arm; the paper's within-prompt samples."""
    max_new_tokens: int = 128
    seed: int = 0


class Measured(NamedTuple):
    """One contender's work: only tokens of completions count, up to and with EOS."""

    tokens: int
    completions: int
    seconds: float
    detail: dict[str, object]


def arms() -> list[Strategy]:
    """The strategies of the paper's grid."""
    samplers: list[Strategy] = [TopK(k=50, temperature=t) for t in TEMPERATURES]
    samplers += [TopP(p=0.9, temperature=t) for t in TEMPERATURES]
    return [Greedy(), Beam(width=4), *samplers]


def rendered_prompts(workload: Workload, lm: LanguageModel) -> list[Prompt]:
    """The first prompts of the starter set, as text in the paper's template."""
    prompts = load_prompts("starter", limit=workload.prompts)
    return [one.model_copy(update={"prompt": render_prompt(one, "paper", lm.tokenizer)}) for one in prompts]


def samples_of(strategy: Strategy, workload: Workload) -> int:
    """How many completions of each prompt an arm makes."""
    return workload.samples if isinstance(strategy, Sampler) else 1


def useful_tokens(ids: list[int], eos_ids: frozenset[int]) -> int:
    """Tokens up to and with the first EOS; what a batch pads after it is waste."""
    return next((i + 1 for i, token in enumerate(ids) if token in eos_ids), len(ids))


def timed(work: Callable[[], list[int]]) -> tuple[float, list[int]]:
    """Seconds that `work` takes, and the lengths of the completions it made."""
    started = time.perf_counter()
    lengths = work()
    return time.perf_counter() - started, lengths
