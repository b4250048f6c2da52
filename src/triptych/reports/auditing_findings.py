"""What the audits found, in sentences made of this run's own numbers, for the summary on top of the page.

A sentence says what was tested and what was seen; what no audit tests, no sentence speaks of. Not here: the judging.
"""

from collections.abc import Iterator

from triptych.auditing.records import Finding, Level
from triptych.reports import format as fmt
from triptych.reports.auditing_card import WORDS, counted, sentence_of
from triptych.reports.auditing_inputs import AUDITS, Auditing, at_level, shown_name

SHOWN: dict[Level, int] = {"severe": 6, "warn": 3}
"""Sentences of each level in the summary; the rest are counted."""
MAX_NAMED = 6
TESTED = tuple(audit for audit in AUDITS if audit not in ("costs", "lineage"))


def findings(run: Auditing) -> tuple[str, ...]:
    """Sentences, in order; at least the first."""
    sentences = [*_what_was_done(run), *_what_was_found(run)]
    has_intervals = any(finding.estimate.low is not None for finding in run.card)
    return (*sentences, *([f"Brackets are 95{fmt.NBSP}% intervals, clustered by prompt."] if has_intervals else []))


def _what_was_done(run: Auditing) -> Iterator[str]:
    tested = [AUDITS[audit] for audit in TESTED if audit in run.records]
    of = f" for {fmt.joined(tested)}" if tested else ""
    if run.n_responses:
        read = f"{fmt.plural(run.n_responses, 'response')} to {fmt.plural(run.n_prompts, 'prompt')}"
        yield f"{_subject(run)} audited on {read}{of}."
    elif run.checkpoints:
        yield f"{_subject(run)} audited{of}."
    n_within = len(at_level(run.card, "ok"))
    if not run.card:
        yield "The report card holds no check."
        return
    found = counted(run.card) or "nothing beyond a threshold"
    within = f"; {n_within:,} {'is' if n_within == 1 else 'are'} within the thresholds" if n_within else ""
    yield f"Of {fmt.plural(len(run.card), 'check')}: {found}{within}."


def _subject(run: Auditing) -> str:
    names = [shown_name(model) for model in run.checkpoints]
    listed = fmt.joined(names if len(names) <= MAX_NAMED else [*names[:MAX_NAMED], f"{len(names) - MAX_NAMED} more"])
    return f"{fmt.plural(len(names), 'checkpoint')} ({listed}) {'was' if len(names) == 1 else 'were'}"


def _what_was_found(run: Auditing) -> Iterator[str]:
    for level, limit in SHOWN.items():
        own = at_level(run.card, level)
        yield from (_closed(finding) for finding in own[:limit])
        more = len(own) - limit
        if more > 0:
            stands = "stands" if more == 1 else "stand"
            yield f"{fmt.plural(more, f'further {WORDS[level]}')} {stands} in the report card."


def _closed(finding: Finding) -> str:
    """One sentence with its level; its first word may be a name, which keeps its letters."""
    return f"{_LEVELS[finding.level]}{sentence_of(finding).rstrip('.')}."


_LEVELS: dict[Level, str] = {"severe": "✗ Severe: ", "warn": "! Warning: "}
