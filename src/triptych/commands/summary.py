"""What a terminal shows when a command is done: findings by panel, the worst of the report card, time by stage.

Not here: where findings come from (`triptych.reports.summary`), and the path of the report, which comes last.
"""

import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 100
"""Characters of a line at most; narrower terminals get narrower lines."""
BEYOND = ("severe", "warn")
"""Levels of the report card beyond a threshold, from the gravest."""


def summary_lines(
    findings: Mapping[str, Any], card: Sequence[Mapping[str, Any]], seconds: Mapping[str, float]
) -> tuple[str, ...]:
    """Lines to print: wrapped, with bold headings on a terminal and plain elsewhere."""
    from triptych.reports.format import duration

    parts = [(section["title"], section["findings"]) for section in findings["sections"]]
    if card:
        parts.append(("Report card", [worst_of(card)]))
    if seconds:
        stages = ", ".join(f"{name} {duration(spent)}" for name, spent in seconds.items())
        parts.append(("Time", [f"{duration(sum(seconds.values()))}: {stages}"]))
    return tuple(line for title, sentences in parts for line in _shown(title, sentences))


def _shown(title: str, sentences: Sequence[str]) -> list[str]:
    """A heading, bold on a terminal, and its sentences below it."""
    from triptych.reports.format import NBSP
    from triptych.reports.safe_text import neutralise

    is_terminal = sys.stdout.isatty()
    width = min(WIDTH, shutil.get_terminal_size().columns) if is_terminal else WIDTH
    heading = f"\x1b[1m{neutralise(title)}\x1b[0m" if is_terminal else neutralise(title)
    # A number stays with its interval: no line ends at a space that is not to be broken.
    wrapped = [
        line
        for sentence in sentences
        for line in textwrap.wrap(neutralise(sentence), width, initial_indent="  ", subsequent_indent="  ")
    ]
    return [heading, *(line.replace(NBSP, " ") for line in wrapped)]


def worst_of(card: Sequence[Mapping[str, Any]]) -> str:
    """The gravest line of a report card, and how many checks there were."""
    beyond = [finding for level in BEYOND for finding in card if finding["level"] == level]
    counts = Counter(finding["level"] for finding in card)
    within = f"{counts['ok']} of {len(card)} checks are within their thresholds"
    if counts["undecided"]:
        within += f", {counts['undecided']} lack evidence"
    return f"The gravest, {beyond[0]['level']}: {beyond[0]['sentence']} ({within}.)" if beyond else f"{within}."
