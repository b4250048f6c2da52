import json
import sys
from pathlib import Path
from typing import Any

import pytest

from triptych.commands.options import GLOBALS, Globals
from triptych.commands.outcome import run_outcome
from triptych.commands.summary import WIDTH, summary_lines, worst_of

FINDINGS: dict[str, Any] = {
    "abstract": [],
    "sections": [{"id": "decoding", "title": "Decoding", "findings": ["It is 0.61\u00a0[0.60,\u00a00.62]. " * 9]}],
}
CARD = [
    {"level": "ok", "sentence": "Nothing."},
    {"level": "undecided", "sentence": "Shorter.\x1b[31m"},
    {"level": "severe", "sentence": "Empty."},
]


def test_lines_are_short_and_break_no_number() -> None:
    lines = summary_lines(FINDINGS, CARD, {"decoding": 60.0, "report": 3.0})
    assert lines[0] == "Decoding"
    assert max(map(len, lines)) <= WIDTH
    assert all(line.count("[") == line.count("]") for line in lines)
    assert lines[-2:] == ("Time", "  1 min 03 s: decoding 1 min 00 s, report 3.0 s")
    assert "\x1b" not in "".join(lines)


def test_headings_are_bold_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert summary_lines(FINDINGS, [], {})[0] == "\x1b[1mDecoding\x1b[0m"


def test_the_gravest_line_of_the_card() -> None:
    assert worst_of(CARD) == "The gravest, severe: Empty. (1 of 3 checks are within their thresholds, 1 lack evidence.)"
    assert worst_of(CARD[:1]) == "1 of 1 checks are within their thresholds."


def test_the_path_comes_last_and_alone_when_quiet(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"stages": {"decoding": {"seconds": 2.0}}}))
    (tmp_path / "findings.json").write_text(json.dumps(FINDINGS))
    page = tmp_path / "report.html"
    # Other tests of this process leave what their last command line said.
    token = GLOBALS.set(Globals())
    try:
        outcome = run_outcome(tmp_path, page, did_work=True)
        assert outcome.lines[0] == "Decoding"
        assert outcome.lines[-1] == str(page)
        assert outcome.figures["findings"] == FINDINGS
        GLOBALS.set(Globals(quiet=True))
        assert run_outcome(tmp_path, page, did_work=True).lines == (str(page),)
    finally:
        GLOBALS.reset(token)


def test_a_run_without_findings_still_has_its_path(tmp_path: Path) -> None:
    outcome = run_outcome(tmp_path, tmp_path / "report.html", did_work=False)
    assert outcome.lines == (str(tmp_path / "report.html"),)
    assert outcome.figures["findings"] == {"abstract": [], "sections": []}
