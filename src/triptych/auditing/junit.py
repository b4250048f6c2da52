"""The report card as JUnit XML, which CI servers show: a test case a check.

`severe` and `warn` are failures, what could not be decided is skipped, with its reason; all else has passed. Names come
from anybody's adapters: ElementTree escapes them, and characters that XML 1.0 does not have become U+FFFD.

Source: the format as Jenkins, GitLab and pytest (`xunit1`, whose test cases have properties) read and write it.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree

from triptych.auditing.records import Finding

FAILURES = ("severe", "warn")
PASSES = ("ok",)
"""Levels; findings of all others are skipped."""

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(findings: Sequence[Finding], seconds: Mapping[str, float]) -> bytes:
    """The card as one test suite, UTF-8; `seconds` by stage are its time. A card without checks has no test case."""
    levels = Counter(_outcome(finding) for finding in findings)
    counts = {
        "tests": str(len(findings)),
        "failures": str(levels["failure"]),
        "errors": "0",
        "skipped": str(levels["skipped"]),
        "time": f"{sum(seconds.values()):.3f}",
    }
    root = ElementTree.Element("testsuites", {"name": "triptych audit", **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": "report card", **counts})
    for name, finding in _named(findings):
        _add_case(suite, name, finding)
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def clean(text: str) -> str:
    """The text without characters that XML 1.0 forbids: most control characters, surrogates, U+FFFE and U+FFFF."""
    return _NOT_XML.sub("\ufffd", text)


def _named(findings: Sequence[Finding]) -> Iterator[tuple[str, Finding]]:
    """Every finding with the name of its case: no two of one class have the same."""
    seen: Counter[tuple[str, str]] = Counter()
    for finding in findings:
        parts = [part for part in (finding.category, finding.scorer) if part is not None and part != finding.model]
        name = clean(finding.rule + (f" ({', '.join(parts)})" if parts else ""))
        key = (clean(finding.model), name)
        seen[key] += 1
        yield name if seen[key] == 1 else f"{name} #{seen[key]}", finding


def _outcome(finding: Finding) -> str:
    if finding.level in FAILURES:
        return "failure"
    return "passed" if finding.level in PASSES else "skipped"


def _add_case(suite: ElementTree.Element, name: str, finding: Finding) -> None:
    attributes = {"classname": clean(finding.model), "name": name, "time": "0"}
    case = ElementTree.SubElement(suite, "testcase", attributes)
    properties = ElementTree.SubElement(case, "properties")
    for key, value in _figures(finding):
        ElementTree.SubElement(properties, "property", {"name": key, "value": clean(str(value))})
    message = clean(f"{finding.sentence} ({finding.reason})" if finding.reason else finding.sentence)
    match _outcome(finding):
        case "failure":
            failure = ElementTree.SubElement(case, "failure", {"message": message, "type": finding.level})
            failure.text = clean("\n".join([finding.sentence, *_evidence(finding)]))
        case "skipped":
            ElementTree.SubElement(case, "skipped", {"message": message})


def _figures(finding: Finding) -> Iterator[tuple[str, object]]:
    """What is known, name by name; what has no value is left out."""
    estimate, nulls = finding.estimate, finding.nulls
    figures: dict[str, object] = {
        "level": finding.level,
        "audit": finding.audit,
        "metric": finding.metric,
        "category": finding.category,
        "scorer": finding.scorer,
        "value": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.n,
        "prompts": estimate.n_clusters,
        "method": estimate.method,
        "warn": finding.warn,
        "severe": finding.severe,
        "p": finding.p,
        "p_warn": finding.p_warn,
        "p_warn_adjusted": finding.p_warn_adjusted,
        "p_severe": finding.p_severe,
        "p_severe_adjusted": finding.p_severe_adjusted,
        "nulls": None if nulls is None else nulls.in_words(),
        "null_percentile": None if nulls is None else nulls.percentile,
        "null_z": None if nulls is None else nulls.z,
        "no_nulls": finding.no_nulls,
    }
    yield from ((name, value) for name, value in figures.items() if value is not None)


def _evidence(finding: Finding) -> Iterator[str]:
    for evidence in finding.evidence:
        yield f"{evidence.prompt_id} ({evidence.kind}): {evidence.note}"
