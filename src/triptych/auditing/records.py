"""What audits exchange: their figures and findings, and the tables of what they read.

    auditing/responses.parquet   what every checkpoint wrote, one row a response
    auditing/perturbed.parquet   answers and their perturbed forms, one row a text
    auditing/scores.parquet      what every scorer gave to responses and perturbed texts, one row a score
    auditing/tokens.parquet      every token that a checkpoint and the base read, one row a token
    auditing/<audit>.json        lists of `AuditRecord`; `card.json` is a list of `Finding`

Not here: how any of it is computed.
"""

from typing import Literal, NamedTuple

import pyarrow as pa

from triptych.records import Estimate, Record

FOLDER = "auditing"
BASE = "base"
"""The name of the model that all checkpoints are compared with."""

Kind = Literal["plain", "limited", "greedy"]
"""Of a response: drawn for the prompt as it is, or for the prompt behind a limit of words; or the most likely one for
the prompt as it is, of prompts that have an answer to be right."""

TextSet = Literal["chosen", "own"]
"""Of a token: in a held-out chosen answer, or in the checkpoint's own response to a plain prompt."""

Level = Literal["severe", "warn", "undecided", "ok"]
LEVELS: tuple[Level, ...] = ("severe", "warn", "undecided", "ok")
"""From the gravest: beyond the severe threshold, beyond the warning threshold, not enough evidence, within both."""


class AuditRecord(Record):
    """One figure of an audit."""

    model: str
    """The checkpoint it is about; of a scorer that is no checkpoint, the scorer."""
    metric: str
    category: str | None = None
    """What part it is about, by metric: a category of prompts, a perturbation, a range of positions, a token."""
    scorer: str | None = None
    """Who scored, where scores are meant."""
    against: str | None = None
    """None: the value itself. `base`: the paired difference from the base's (of ratios, the ratio)."""
    estimate: Estimate
    p: float | None = None
    """Two-sided p-value, corrected over its family, where one was asked for."""


class Evidence(Record):
    """A response that shows a finding."""

    model: str
    prompt_id: str
    kind: Kind = "plain"
    perturbation: str | None = None
    """The perturbed form of the base's response to the prompt, where that is what shows it."""
    note: str = ""
    """What is to be seen there, such as `0 tokens`."""


class NullSpread(Record):
    """Where a figure stands among those of random changes of the same size (`triptych.auditing.nulls`)."""

    n: int
    """Random changes that have this figure."""
    beyond: int
    """How many of them the figure is worse than, in the direction of its rule; ties do not count."""
    percentile: float
    """100 · beyond / n."""
    p: float
    """One-sided: (1 + n - beyond) / (1 + n), exact where the audited change is a random one too."""
    mean: float
    sd: float | None
    """The sample standard deviation; None of fewer than two."""
    z: float | None
    """(figure - mean) / sd; None where there is no spread."""

    def in_words(self) -> str:
        """`beyond 7 of 8 random changes of the same size (z = 2.1)`."""
        changes = "random change" if self.n == 1 else "random changes"
        z = "" if self.z is None else f" (z = {self.z:.1f})"
        return f"beyond {self.beyond} of {self.n} {changes} of the same size{z}"


class NullFigure(AuditRecord):
    """A figure of the card, of one random change of the size of the adapter `model`: an entry of `nulls.json`."""

    null: int
    """Which of them, from 0."""
    rule: str


class Finding(AuditRecord):
    """One line of the report card: a figure beside its thresholds."""

    level: Level
    reason: str = ""
    """What the level rests on, where the interval alone does not say it."""
    p_warn: float | None = None
    """One-sided p-value of being beyond `warn`; None where the figure is exact or has no interval."""
    p_warn_adjusted: float | None = None
    """The same, adjusted over all checks of the card (Benjamini and Hochberg)."""
    p_severe: float | None = None
    p_severe_adjusted: float | None = None
    rule: str
    """A key of `Thresholds`."""
    audit: str
    """The stem of the file that has the figure."""
    warn: float
    severe: float
    sentence: str
    evidence: tuple[Evidence, ...] = ()
    nulls: NullSpread | None = None
    no_nulls: str | None = None
    """Why there is no spread, where random changes were asked for."""


class Response(NamedTuple):
    """A row of `responses.parquet`: what a checkpoint wrote to a prompt, at temperature 1 or greedily."""

    model: str
    prompt_id: str
    kind: Kind
    instruction: str
    input: str
    category: str
    """`factual`, `explanation` or `other`."""
    prompt: str
    """As the model read it."""
    text: str
    token_ids: list[int]
    """EOS included."""
    logprobs: list[float]
    """Of the model at temperature 1, nats."""
    n_tokens: int
    """EOS not counted."""
    n_words: int
    is_truncated: bool
    """Cut by the limit of new tokens."""
    seed: int

    @property
    def is_empty(self) -> bool:
        """Whether nothing but white space was written."""
        return not self.text.strip()

    @property
    def is_whole(self) -> bool:
        """Whether something was written and came to its end."""
        return not self.is_empty and not self.is_truncated


class Score(NamedTuple):
    """A row of `scores.parquet`."""

    scorer: str
    model: str
    """Whose response it is."""
    prompt_id: str
    perturbation: str | None
    """None for the response as it is."""
    score: float | None
    """None is unscored."""


class PerturbedText(NamedTuple):
    """A row of `perturbed.parquet`: a response of the base, as it is or perturbed."""

    prompt_id: str
    perturbation: str | None
    text: str


class ReadToken(NamedTuple):
    """A row of `tokens.parquet`; log-probabilities in nats."""

    model: str
    text: TextSet
    prompt_id: str
    position: int
    """From 0, in the answer."""
    token_id: int
    piece: str
    """Its text; bytes that are no character of their own show as U+FFFD."""
    logprob: float
    reference_logprob: float
    """Under the base."""
    kl: float
    """Exact, over the whole vocabulary, of the prediction of this token; of the base: to itself in another pass."""


RESPONSES_SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("prompt_id", pa.string()),
        ("kind", pa.string()),
        ("instruction", pa.string()),
        ("input", pa.string()),
        ("category", pa.string()),
        ("prompt", pa.string()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("n_tokens", pa.int32()),
        ("n_words", pa.int32()),
        ("is_truncated", pa.bool_()),
        ("seed", pa.int64()),
    ]
)
SCORES_SCHEMA = pa.schema(
    [
        ("scorer", pa.string()),
        ("model", pa.string()),
        ("prompt_id", pa.string()),
        ("perturbation", pa.string()),
        ("score", pa.float64()),
    ]
)
PERTURBED_SCHEMA = pa.schema([("prompt_id", pa.string()), ("perturbation", pa.string()), ("text", pa.string())])
TOKENS_SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("text", pa.string()),
        ("prompt_id", pa.string()),
        ("position", pa.int32()),
        ("token_id", pa.int32()),
        ("piece", pa.string()),
        ("logprob", pa.float64()),
        ("reference_logprob", pa.float64()),
        ("kl", pa.float64()),
    ]
)
