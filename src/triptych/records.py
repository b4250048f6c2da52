"""Typed results that the panels exchange: frozen, and JSON round trips are strict.

NaN is handled on purpose: a number that could not be computed is `None` in JSON (`null`), never `NaN` (which is not
JSON) and never 0. An interval that cannot be given is `None` with the reason in `method`.
"""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

StopReason = Literal["eos", "length", "repeat", "marker"]


class Record(BaseModel):
    """Base of all records: frozen, unknown keys refused, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Estimate(Record):
    """A number with its uncertainty.

    `low`/`high` bound the 95 % interval named by `method`, in the unit of `mean`; both are `None` where no interval
    can be given (`method` says why). `n` counts scored observations, `n_clusters` the prompts they come from (the
    unit that is resampled), `n_unscored` observations that had no value: unscored is not zero.

    `bound` marks a figure of what a limit cut: the true one is at least (`lower`) or at most (`upper`) `mean`; its
    interval is of the figure as it was cut.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    n_clusters: int
    n_unscored: int = 0
    method: str
    bound: Literal["lower", "upper"] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> "Estimate":
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval has two ends: give both low and high, or neither")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"interval [{self.low}, {self.high}] is reversed")
        return self

    @property
    def value(self) -> float:
        """The mean as a float, NaN where there is none (for plotting)."""
        return math.nan if self.mean is None else self.mean


class Prompt(Record):
    """One prompt: the Alpaca fields, or a finished `prompt` text that is used as it stands."""

    id: str
    instruction: str
    input: str = ""
    prompt: str | None = None
    category: Literal["factual", "explanation", "other"] | None = None
    answers: tuple[str, ...] = ()
    checks: dict[str, Any] = {}


class Generation(Record):
    """One completion: a row of `decoding/generations.parquet` (see the contract for the columns).

    `logprobs` is the log-softmax of the model's own logits at T = 1 (nats, fp32), one per token of `token_ids`, EOS
    included; `sampler_logprobs` the log-probability under the distribution actually sampled from (`None` for beams).
    `score` is a beam's cumulative log-probability. `params` is canonical JSON of the strategy's parameters.
    """

    prompt_id: str
    prompt: str
    instruction: str
    input: str
    strategy: str
    params: str
    temperature: float | None
    sample: int
    text: str
    raw_text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    sampler_logprobs: tuple[float, ...] | None
    mean_logprob: float | None
    n_tokens: int
    stop_reason: StopReason
    score: float | None
    seed: int

    @property
    def is_truncated(self) -> bool:
        """Whether the text broke off: at the token limit, or where a rule stopped a loop.

        One that a marker ends is whole: what followed was the next prompt.
        """
        return self.stop_reason in ("length", "repeat")


class ArmMeasure(Record):
    """One measure of one arm (a strategy with its parameters): an entry of `decoding/diversity.json`.

    `scope` says over what the measure was taken: `across` prompts (one sample a prompt, pooled), `within` a prompt
    (several samples of one prompt, then the mean over prompts), or the whole `arm` (every completion).
    """

    strategy: str
    params: dict[str, Any]
    temperature: float | None
    metric: str
    scope: Literal["across", "within", "arm"]
    estimate: Estimate


Verdict = Literal["agrees", "disagrees", "undecided", "not tested"]


class Claim(Record):
    """One sentence of the paper beside what this run measured: an entry of `decoding/claims.json`."""

    claim: str
    """The paper's sentence."""
    where: str
    """Where it stands, such as `Discussion, paragraph 3`."""
    quantity: str
    """What was measured to test it."""
    estimate: Estimate
    verdict: Verdict
    explanation: str


class FrontierPoint(Record):
    """One arm on the quality-diversity plane: an entry of `decoding/frontier.json`."""

    strategy: str
    params: dict[str, Any]
    temperature: float | None
    quality: Estimate
    quality_name: str
    diversity: Estimate
    diversity_name: str
    on_frontier: bool
    budget: int
    """Settings that were tried for this strategy."""
