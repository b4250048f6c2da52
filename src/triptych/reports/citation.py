"""How this run is cited: BibTeX entries of it and of the paper that it reproduces."""

import re

from triptych.reports.latex import escape
from triptych.reports.reported import reported
from triptych.runs import Manifest

FILE = "citation.bib"


def bibtex(manifest: Manifest) -> str:
    """Two entries; every value is escaped, and the key holds letters, digits and dashes alone."""
    paper = reported().citation
    run = {
        "author": "{The Triptych contributors}",
        "title": "{Triptych: decoding, alignment and interpretation of small models}",
        "version": f"{{{escape(manifest.packages.get('triptych', 'unknown'))}}}",
        "year": f"{{{escape(manifest.created[:4])}}}",
        "note": f"{{Run {escape(manifest.run_id)}, configuration {escape(manifest.config_hash)}; "
        f"reproduces {escape(str(paper))}}}",
    }
    theirs = {"author": f"{{{escape(' and '.join(paper.authors))}}}", "title": f"{{{{{escape(paper.title)}}}}}"}
    key = f"triptych-{re.sub('[^A-Za-z0-9-]', '-', manifest.run_id)}"
    return _entry("software", key, run) + _entry("misc", PAPER_KEY, theirs)


PAPER_KEY = "reproduced-paper"


def _entry(kind: str, key: str, fields: dict[str, str]) -> str:
    lines = [f"  {name} = {value}," for name, value in fields.items()]
    return "\n".join([f"@{kind}{{{key},", *lines, "}", ""])
