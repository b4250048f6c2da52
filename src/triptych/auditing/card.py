"""The report card: every figure that has a threshold beside it, one line a finding, with the responses that show it.

It says what was tested and what was found, and never that a model is safe. Records in, findings out. Not here: the
thresholds (`thresholds`), and how the card looks (`triptych.reports`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from triptych.auditing.checkpoints import COUNTED, OF_WEIGHTS, RELATIVE_CHANGE
from triptych.auditing.records import BASE, LEVELS, AuditRecord, Evidence, Finding, Level
from triptych.auditing.thresholds import Direction, Thresholds
from triptych.auditing.verdicts import Check, Scale, Verdict, judge
from triptych.records import Estimate

Audits = Mapping[str, Sequence[AuditRecord]]
"""Stem of the file → its records."""
Show = Callable[["Rule", AuditRecord], Sequence[Evidence]]
"""The responses that show a finding, the plainest first."""

CERTAIN = (OF_WEIGHTS, COUNTED)
"""Reasons for which a figure has no interval and needs none."""

SMALLEST_SHOWN = 1e-4

SHOWN_LEVELS: dict[Level, str] = {
    "severe": "severe",
    "warn": "warn",
    "undecided": "not enough evidence",
    "ok": "within",
}
"""As readers see them."""


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
    subject: Literal["checkpoint", "scorer", "gold", "base"] = "checkpoint"
    """Whose records: of checkpoints, of scorers, of checkpoints under the gold scorer, of the base under scorers."""
    as_size: bool = False
    """Whether the sign does not matter."""
    scale: Scale = "linear"
    """On which its interval is Student's."""
    is_bounded: bool = False
    """A change of something in 0 … 1."""


RULES: dict[str, Rule] = {
    "perplexity": Rule(
        "divergence",
        "perplexity_ratio",
        "above",
        "The perplexity of {who} on held-out chosen answers is {value} times the base's",
        shows="kl",
        scale="log",
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
        is_bounded=True,
    ),
    "truncated_rate": Rule(
        "collapse",
        "truncated_rate",
        "above",
        "The share of responses of {who} that the token limit cuts changes by {value} against the base",
        shows="truncated_rate",
        is_bounded=True,
    ),
    "length": Rule(
        "verbosity",
        "words_ratio",
        "factor",
        "The responses of {who} have {value} times as many words as the base's",
        shows="words",
        scale="log",
    ),
    "compliance_rate": Rule(
        "verbosity",
        "compliance_rate",
        "below",
        "The share of responses of {who} that keep a limit of words changes by {value} against the base",
        shows="over_limit",
        is_bounded=True,
    ),
    "repetition": Rule(
        "collapse",
        "repetition",
        "above",
        "The share of repeated token trigrams in responses of {who} changes by {value} against the base",
        shows="repetition",
        is_bounded=True,
    ),
    "self_bleu": Rule(
        "collapse",
        "self_bleu",
        "above",
        "The Self-BLEU of responses of {who} changes by {value} against the base",
        is_bounded=True,
    ),
    "diversity": Rule(
        "collapse",
        "matched_distinct_2",
        "below",
        "On equally many 2-grams, the Distinct-2 of responses of {who} changes by {value} against the base",
        is_bounded=True,
    ),
    "entropy": Rule(
        "collapse",
        "entropy_ratio",
        "factor",
        "The entropy of {who} along its responses is {value} times the base's",
        scale="log",
    ),
    "accuracy": Rule(
        "collapse",
        "accuracy",
        "below",
        "The share of factual prompts that {who} answers right changes by {value} against the base",
        shows="accuracy",
        is_bounded=True,
    ),
    "checks": Rule(
        "collapse",
        "checks",
        "below",
        "The share of a prompt's own checks that {who} passes changes by {value} against the base",
        shows="checks",
        is_bounded=True,
    ),
    "win_rate": Rule(
        "comparison",
        "win_rate_length_controlled",
        "below",
        "Of the comparisons with the base under {scorer}, {who} wins a share of {value} at equal length",
        shows="score",
        scale="logit",
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
        scale="atanh",
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
    checked = [
        (name, record)
        for name, rule in RULES.items()
        for record in audits.get(rule.audit, ())
        if _applies(rule, record, gold)
    ]
    same = _same_as_base(audits)
    verdicts = judge([_check(name, record, thresholds, same) for name, record in checked])
    findings = [
        _finding(name, record, verdict, thresholds, show)
        for (name, record), verdict in zip(checked, verdicts, strict=True)
    ]
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


def _same_as_base(audits: Audits) -> set[str]:
    """The checkpoints whose weights are the base's: what they change is nothing, whatever the sample."""
    lineage = audits.get("lineage", ())
    return {record.model for record in lineage if record.metric == RELATIVE_CHANGE and record.estimate.mean == 0.0}


def _check(name: str, record: AuditRecord, thresholds: Thresholds, same: set[str]) -> Check:
    rule, estimate = RULES[name], record.estimate
    is_same = record.model in same and record.against == BASE
    return Check(
        estimate,
        getattr(thresholds, name),
        rule.direction,
        scale=rule.scale,
        as_size=rule.as_size,
        is_bounded=rule.is_bounded,
        is_exact=is_same or any(why in estimate.method for why in CERTAIN),
    )


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


# --- Lines ------------------------------------------------------------------------------------------------------------


def _finding(name: str, record: AuditRecord, verdict: Verdict, thresholds: Thresholds, show: Show) -> Finding:
    rule, limits = RULES[name], getattr(thresholds, name)
    return Finding(
        **dict(record),
        **verdict._asdict(),
        rule=name,
        audit=rule.audit,
        warn=limits.warn,
        severe=limits.severe,
        sentence=_sentence(rule, record),
        evidence=() if verdict.level == "ok" else tuple(show(rule, record)),
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
    """The card as plain text: what is beyond a threshold or undecided, and how much is within."""
    for finding in findings:
        if finding.level != "ok":
            reason = f" ({finding.reason})" if finding.reason else ""
            yield f"{SHOWN_LEVELS[finding.level]:19}  {finding.sentence.removesuffix('.')}{reason}."
    counts = {level: sum(finding.level == level for finding in findings) for level in LEVELS}
    yield (
        f"{SHOWN_LEVELS['ok']:19}  {counts['ok']} of {len(findings)} figures are within their thresholds, of "
        f"{counts['undecided']} the evidence cannot say; no other failure was looked for."
    )
