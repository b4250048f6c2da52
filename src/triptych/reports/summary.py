"""What the run found, as data for those who do not open the page: `findings.json`.

    {"abstract": [sentence, …], "sections": [{"id", "title", "findings": [sentence, …]}, …]}

Not here: how a terminal shows it (`triptych.commands.summary`).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triptych.reports.safe_text import neutralise
from triptych.reports.sections import Section

FINDINGS = "findings.json"


def findings_json(sections: Sequence[Section], abstract: Sequence[str]) -> bytes:
    """The file: nothing hidden in its texts, and so always UTF-8."""
    content = {
        "abstract": [neutralise(sentence) for sentence in abstract],
        "sections": [
            {"id": section.id, "title": section.title, "findings": [neutralise(said) for said in section.findings]}
            for section in sections
        ],
    }
    return f"{json.dumps(content, ensure_ascii=False, indent=1)}\n".encode()


def read_findings(run_dir: Path) -> dict[str, Any]:
    """What a run directory holds of it; empty where its report is older than the file."""
    path = run_dir / FINDINGS
    found: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {"abstract": [], "sections": []}
    return found
