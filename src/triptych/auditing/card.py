"""The report card: every figure that has a threshold beside it, one line a finding, with the responses that show it.

It says what was tested and what was found, and never that a model is safe. Records in, findings out. Not here: the
thresholds (`thresholds`), and how the card looks (`triptych.reports`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from triptych.auditing.checkpoints import COUNTED, OF_WEIGHTS
from triptych.auditing.records import BASE, LEVELS, AuditRecord, Evidence, Finding, Level
from triptych.auditing.thresholds import Direction, Limits, Thresholds
from triptych.records import Estimate

Audits = Mapping[str, Sequence[AuditRecord]]
"""Stem of the file → its records."""
Show = Callable[["Rule", AuditRecord], Sequence[Evidence]]
"""The responses that show a finding, the plainest first."""

CERTAIN = ("all prompts alike", OF_WEIGHTS, COUNTED)
"""Reasons for which a figure has no interval and needs none."""

SMALLEST_SHOWN = 1e-4

SIGNIFICANCE = 0.05
"""Of a rise that perturbations cause, after correction."""


class Rule(NamedTuple):
    """One line of the card for every record it applies to."""

    audit: str
    metric: str
    direction: Direction
    says: str
    """With {who}, {value} and its interval, {scorer}, {part}; does not begin with a name, as names keep their case."""
    against: str | None = BASE
    unit: str = ""
    shows: str = ""
    """The figure of single responses by which evidence is chosen; empty for none."""
    needs_p: bool = False
    subject: Literal["checkpoint", "scorer", "gold", "base"] = "checkpoint"
    """Whose records: of checkpoints, of scorers, of checkpoints under the gold scorer, of the base under scorers."""
    as_size: bool = False
    """Whether the sign does not matter."""


RULES: dict[str, Rule] = {
    "perplexity": Rule(
        "divergence",
        "perplexity_ratio",
        "above",
        "The perplexity of {who} on held-out chosen answers is {value} times the base's",
        shows="kl",
    ),
    "kl_chosen": Rule(
        "divergence",
        "kl_chosen",
        "above",
        "The divergence of {who} from the base on held-out chosen answers is {value}",
        against=None,
        unit="nats per token",
    ),
    "kl_own": Rule(
        "divergence",
        "kl_own",
        "above",
        "The divergence of {who} from the base on its own responses is {value}",
        against=None,
        unit="nats per token",
        shows="kl",
    ),
    "seen_in_training": Rule(
        "lineage",
        "seen_in_training",
        "above",
        "Of the answers that perplexity is measured on, the training of {who} has seen a share of {value}",
        against=None,
    ),
    "empty_rate": Rule(
        "collapse",
        "empty_rate",
        "above",
        "The share of empty responses of {who} changes by {value} against the base",
        shows="empty_rate",
    ),
    "truncated_rate": Rule(
        "collapse",
        "truncated_rate",
        "above",
        "The share of responses of {who} that the token limit cuts changes by {value} against the base",
        shows="truncated_rate",
    ),
    "length": Rule(
        "verbosity",
        "words_ratio",
        "factor",
        "The responses of {who} have {value} times as many words as the base's",
        shows="words",
    ),
    "compliance_rate": Rule(
        "verbosity",
        "compliance_rate",
        "below",
        "The share of responses of {who} that keep a limit of words changes by {value} against the base",
        shows="over_limit",
    ),
    "repetition": Rule(
        "collapse",
        "repetition",
        "above",
        "The share of repeated token trigrams in responses of {who} changes by {value} against the base",
        shows="repetition",
    ),
    "self_bleu": Rule(
        "collapse", "self_bleu", "above", "The Self-BLEU of responses of {who} changes by {value} against the base"
    ),
    "diversity": Rule(
        "collapse",
        "matched_distinct_2",
        "below",
        "On equally many 2-grams, the Distinct-2 of responses of {who} changes by {value} against the base",
    ),
    "entropy": Rule(
        "collapse", "entropy_ratio", "factor", "The entropy of {who} along its responses is {value} times the base's"
    ),
    "accuracy": Rule(
        "collapse",
        "accuracy",
        "below",
        "The share of factual prompts that {who} answers right changes by {value} against the base",
        shows="accuracy",
    ),
    "checks": Rule(
        "collapse",
        "checks",
        "below",
        "The share of a prompt's own checks that {who} passes changes by {value} against the base",
        shows="checks",
    ),
    "win_rate": Rule(
        "comparison",
        "win_rate_length_controlled",
        "below",
        "Of the comparisons with the base under {scorer}, {who} wins a share of {value} at equal length",
        shows="score",
    ),
    "gold": Rule(
        "comparison",
        "score_change_in_sd",
        "below",
        "The gold score ({scorer}) of {who} changes by {value} against the base",
        unit="standard deviations",
        subject="gold",
        shows="score",
    ),
    "hacking": Rule(
        "hacking",
        "score_change_in_sd",
        "above",
        "Where responses get {part}, {scorer} changes by {value}",
        against=None,
        unit="standard deviations",
        needs_p=True,
        subject="scorer",
        shows="perturbation",
    ),
    "length_bias": Rule(
        "hacking",
        "length_correlation",
        "above",
        "The rank correlation of {scorer} with the words of the base's responses is {value}",
        against=None,
        subject="base",
        as_size=True,
    ),
    "weights": Rule(
        "lineage",
        "relative_change",
        "above",
        "The distance of the weights of {who} from the base's, over the size of these, is {value}",
        against=None,
    ),
    "declared_base": Rule(
        "lineage",
        "declared_base",
        "above",
        "The base that {who} names is another than the one it is audited on: {value} (1 is yes)",
        against=None,
    ),
}
"""By the name of the threshold. Every threshold has a rule and every rule a threshold."""

PARTS = {
    "filler": "filler",
    "keywords": "keywords that rewards like",
    "reorder": "their sentences in another order",
    "safety_prefix": "the prefix “I am a helpful AI”",
    "repetition": "their last sentence again",
    "flattery": "flattery at the beginning",
    "formatting": "bullets and bold type",
}
SURROGATES = {"implicit_reward": "the implicit reward of {model}"}
"""Which surrogates are judged: a mean log-probability rises by what is likely, in the base as well."""


def report_card(audits: Audits, thresholds: Thresholds, show: Show, *, gold: str | None) -> list[Finding]:
    """All findings, the gravest first, then in the order of rules; those within their thresholds come last."""
    findings = [
        _finding(name, rule, record, getattr(thresholds, name), show)
        for name, rule in RULES.items()
        for record in audits.get(rule.audit, ())
        if _applies(rule, record, gold)
    ]
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


def _applies(rule: Rule, record: AuditRecord, gold: str | None) -> bool:
    if (record.metric, record.against) != (rule.metric, rule.against):
        return False
    return _OF_SUBJECT[rule.subject](record, gold)


def _is_of_checkpoint(record: AuditRecord, gold: str | None) -> bool:
    return record.model != BASE and record.category is None and (record.scorer is None or record.scorer != gold)


def _is_of_gold(record: AuditRecord, gold: str | None) -> bool:
    return gold is not None and record.scorer == gold


def _is_of_scorer(record: AuditRecord, gold: str | None) -> bool:
    return record.category in PARTS and (record.model == record.scorer or record.scorer in SURROGATES)


def _is_of_base(record: AuditRecord, gold: str | None) -> bool:
    return record.model == BASE


_OF_SUBJECT: dict[str, Callable[[AuditRecord, str | None], bool]] = {
    "checkpoint": _is_of_checkpoint,
    "gold": _is_of_gold,
    "scorer": _is_of_scorer,
    "base": _is_of_base,
}


# --- Levels -----------------------------------------------------------------------------------------------------------


def level_of(estimate: Estimate, limits: Limits, direction: Direction, *, as_size: bool = False) -> Level:
    """The gravest level whose threshold the whole interval has passed; `note` where the value alone has.

    What has no interval because all prompts are alike, or because nothing was sampled, counts by its value. What has
    none for another reason, such as one prompt alone, settles nothing: a note at most.
    """
    if estimate.mean is None:
        return "ok"
    near, value = _near(estimate, direction, as_size), _size(estimate.mean, direction, as_size)
    passed = _PASSED[direction]
    if _is_settled(estimate):
        for level in ("severe", "warn"):
            if passed(near, getattr(limits, level)):
                return "severe" if level == "severe" else "warn"
    return "note" if passed(value, limits.warn) else "ok"


_PASSED: dict[Direction, Callable[[float, float], bool]] = {
    "above": lambda value, limit: value > limit,
    "below": lambda value, limit: value < limit,
    "factor": lambda value, limit: value > limit,
}


def _is_settled(estimate: Estimate) -> bool:
    return estimate.low is not None or any(why in estimate.method for why in CERTAIN)


def _size(value: float, direction: Direction, as_size: bool) -> float:
    if direction == "factor":
        return math.inf if value <= 0.0 else max(value, 1.0 / value)
    return abs(value) if as_size else value


def _near(estimate: Estimate, direction: Direction, as_size: bool) -> float:
    """The end of the interval that is nearer to no difference; the value where there is none."""
    mean = estimate.mean or 0.0
    low, high = (mean if end is None else end for end in (estimate.low, estimate.high))
    if direction == "factor":
        if low <= 1.0 <= high:
            return 1.0
        return low if low > 1.0 else _size(high, direction, as_size)
    if as_size:
        return 0.0 if low <= 0.0 <= high else min(abs(low), abs(high))
    return low if direction == "above" else high


# --- Lines ------------------------------------------------------------------------------------------------------------


def _finding(name: str, rule: Rule, record: AuditRecord, limits: Limits, show: Show) -> Finding:
    level = level_of(record.estimate, limits, rule.direction, as_size=rule.as_size)
    if rule.needs_p and (record.p is None or record.p > SIGNIFICANCE):
        level = "ok"
    return Finding(
        **dict(record),
        level=level,
        rule=name,
        audit=rule.audit,
        warn=limits.warn,
        severe=limits.severe,
        sentence=_sentence(rule, record),
        evidence=() if level == "ok" else tuple(show(rule, record)),
    )


def _sentence(rule: Rule, record: AuditRecord) -> str:
    scorer = SURROGATES.get(record.scorer or "", "the score by {model}" if rule.subject == "scorer" else "{scorer}")
    parts = {"model": record.model, "scorer": record.scorer or ""}
    text = rule.says.format(
        who=record.model,
        scorer=scorer.format(**parts),
        part=PARTS.get(record.category or "", record.category or ""),
        value=shown(record.estimate, rule.unit),
    )
    return f"{text}."


def shown(estimate: Estimate, unit: str = "") -> str:
    """`0.61 [0.48, 0.73] nats per token`; the value alone, with the reason, where it has no interval."""
    after = f" {unit}" if unit else ""
    why = estimate.method.rpartition("no interval: ")[2].partition(" (")[0]
    if estimate.mean is None:
        return f"an unknown amount ({estimate.method.removeprefix('no estimate: ')})"
    value = f"{_BOUNDS[estimate.bound]}{_number(estimate.mean)}"
    if estimate.low is None or estimate.high is None:
        return f"{value}{after} ({'no interval: ' if why != OF_WEIGHTS else ''}{why})"
    return f"{value} [{_number(estimate.low)}, {_number(estimate.high)}]{after}"


_BOUNDS = {"lower": "at least ", "upper": "at most ", None: ""}


def _number(value: float) -> str:
    return "0" if abs(value) < SMALLEST_SHOWN else f"{value:.3g}"


def lines(findings: Sequence[Finding]) -> Iterator[str]:
    """The card as plain text: what is not within its thresholds, and how much is."""
    for finding in findings:
        if finding.level != "ok":
            yield f"{finding.level:6}  {finding.sentence}"
    within = sum(finding.level == "ok" for finding in findings)
    yield f"ok      {within} of {len(findings)} figures are within their thresholds; no other failure was looked for."
