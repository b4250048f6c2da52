"""The abstract: what this run did, what it showed, and the one thing that must not be concluded, in its own numbers.

Not here: each panel's share (`triptych.reports.digests`).
"""

from collections.abc import Mapping, Sequence

from triptych.reports import format as fmt
from triptych.reports.sections import Section
from triptych.runs import Manifest

REPORT = "report"
"""The stage that writes the page, and cannot know how long it will have taken."""
CAUTIONS = ("auditing", "dictionaries", "alignment", "decoding")
"""Whose caution ends the abstract: the first of these that the run has."""


def abstract(manifest: Manifest, sections: Sequence[Section], panels: Mapping[str, str]) -> tuple[str, ...]:
    """Sentences, in order; `panels` are the ids and titles of all panels that a run can have."""
    results = [sentence for section in sections for sentence in section.digest.results]
    return (_what_was_done(manifest, sections), *results, _caution(sections), *_not_run(sections, panels))


def _what_was_done(manifest: Manifest, sections: Sequence[Section]) -> str:
    seconds = sum(stage.seconds for name, stage in manifest.stages.items() if name != REPORT)
    took = f", {fmt.duration(seconds)} of work" if seconds else ""
    return f"In this run (seed {manifest.seed}{took}), {'; '.join(section.digest.done for section in sections)}."


def _caution(sections: Sequence[Section]) -> str:
    by_id = {section.id: section.digest.caution for section in sections}
    return next(by_id[name] for name in CAUTIONS if name in by_id)


def _not_run(sections: Sequence[Section], panels: Mapping[str, str]) -> list[str]:
    missing = [title for panel, title in panels.items() if panel not in {section.id for section in sections}]
    return [f"Not part of this run: {fmt.joined(missing)}."] if missing else []
