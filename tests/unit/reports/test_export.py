import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from triptych.cli import run
from triptych.errors import MissingInputError, OutputError
from triptych.reports import printing
from triptych.reports.citation import bibtex
from triptych.reports.export import export
from triptych.reports.latex import escape as latex
from triptych.reports.latex import latex_table
from triptych.reports.markdown import escape as markdown_escape
from triptych.reports.markdown import fenced, markdown, markdown_table, tables_of
from triptych.reports.tables import Cell, Column, Table
from triptych.runs import read_manifest

HOSTILE = "\\input{x} 50% & $x_1^2$ #1 ~ <b>|`*_[a](javascript:0)\x00\u202e\udcff -- {\n## no heading"
TABLE = Table(
    "hostile_table",
    HOSTILE,
    (Column("What", HOSTILE), Column("Value", "95 % interval", numeric=True)),
    ((Cell(HOSTILE), Cell("−0.61", "[−0.62, −0.60]")), (Cell("- a"), Cell("1. b"))),
)


def test_latex_text_holds_no_command() -> None:
    shown = latex(HOSTILE)
    assert r"\textbackslash{}input\{x\}" in shown
    assert all(text in shown for text in (r"50\%", r"\&", r"\$x\_1\textasciicircum{}2\$", r"\#1", r"\textasciitilde{}"))
    assert "-{}-" in shown
    assert "\n" not in shown
    assert not re.search("[\x00\u202e\udcff]", shown)
    shown.encode()


def test_a_latex_table_has_a_row_a_line_and_keeps_its_intervals() -> None:
    written = latex_table(TABLE)
    lines = written.splitlines()
    rows = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert [line.endswith(r" \\") for line in rows] == [True, True]
    assert r"\begin{tabular}{lr}" in written
    assert r"\label{tab:hostile-table}" in written
    assert r"{$-$0.61} {\footnotesize [$-$0.62, $-$0.60]}" in written
    # Every brace is closed, those that text brought aside.
    bare = re.sub(r"\\[{}]", "", written)
    assert bare.count("{") == bare.count("}")
    assert r"\begin{tabular}{p{0.45\linewidth}p{0.45\linewidth}}" in latex_table(TABLE._replace(stacked=True))


def test_markdown_text_is_text() -> None:
    shown = markdown_escape(HOSTILE)
    assert "&lt;b&gt;" in shown
    assert r"\|\`\*\_\[a\](javascript:0)" in shown
    assert "\n" not in shown
    assert not re.search("[\x00\u202e\udcff]", shown)
    for text, wanted in (("# a", r"\# a"), ("1. a", r"1\. a"), ("- a", r"\- a"), ("0.5 a", "0.5 a"), ("-1", "-1")):
        assert markdown_escape(text) == wanted


def test_a_markdown_table_has_as_many_cells_in_every_row() -> None:
    rows = markdown_table(TABLE).splitlines()[2:]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [3, 3, 3, 3]
    assert rows[1] == "| --- | ---: |"
    assert r"| −0.61 \[−0.62, −0.60\] |" in rows[2]


def test_a_fence_is_longer_than_what_it_holds() -> None:
    assert fenced("a\n````\nb") == "`````\na\n````\nb\n`````"


def test_the_page_as_markdown_says_what_the_page_says(built: Path) -> None:
    text = markdown((built / "report.html").read_text("utf-8"))
    for heading in ("# Triptych report", "## Abstract", "## Beside the paper", "## Costs of the run", "## How to cite"):
        assert f"\n{heading}\n" in f"\n{text}"
    assert "<" not in re.sub(r"(?s)```+\n.*?```+", "", text)
    assert text.count("![") == 11
    assert all((built / path).is_file() for path in re.findall(r"\]\((figures/\w+\.png)\)", text))
    assert "Skip to the content" not in text
    text.encode()


def test_every_table_of_the_page_is_found(built: Path) -> None:
    page = (built / "report.html").read_text("utf-8")
    found = tables_of(page)
    assert len(found) == page.count("<table")
    assert len({table.name for table in found}) == len(found)
    claims = next(table for table in found if table.name == "decoding-claims")
    assert claims.stacked
    assert claims.columns[3] == Column("This run", "95 % interval")
    assert {len(row) for row in claims.rows} == {len(claims.columns)}


def test_bibtex_is_escaped_and_names_run_and_paper(built: Path) -> None:
    manifest = read_manifest(built)
    entry = bibtex(manifest.model_copy(update={"run_id": "a_b}\\x%", "packages": {"triptych": "1.0}"}}))
    assert entry.startswith("@software{triptych-a-b--x-,\n")
    assert r"Run a\_b\}\textbackslash{}x\%" in entry
    assert "year = {2025}" in entry
    assert r"version = {1.0\}}" in entry
    assert "reproduces ``PA5: RLHF'' by" in entry
    assert (built / "citation.bib").read_text("utf-8") == bibtex(manifest)


def copied(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "run", ignore=shutil.ignore_patterns("figures", "tables", "*.html")))


def test_everything_goes_to_a_folder_and_the_run_stays_as_it_was(built: Path, tmp_path: Path) -> None:
    run_dir, out = copied(built, tmp_path), tmp_path / "out"
    before = sorted(run_dir.rglob("*"))
    done = export(run_dir, "md", figures="pdf", tables="latex", out=out)
    assert sorted(run_dir.rglob("*")) == before
    assert done.report == out / "report.md"
    pdf = (out / "figures/figure_04.pdf").read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert b"CreationDate" not in pdf
    assert (out / "figures/figure_04.png").is_file()
    assert (out / "report.html").is_file()
    written = [path.read_text("utf-8") for path in (out / "tables").glob("*.tex")]
    assert len(written) == (out / "report.html").read_text("utf-8").count("<table")
    assert all(r"\toprule" in text for text in written)
    assert not list(out.rglob(".partial-*"))
    assert set(done.files) <= set(out.rglob("*"))


class TestPrinting:
    def test_without_a_browser_it_is_told_before_the_work(
        self, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(shutil, "which", lambda name: None)
        run_dir = copied(built, tmp_path)
        assert run(["report", str(run_dir), "--format", "pdf"]) == 2
        assert "no Chromium, Chrome or Edge is on the PATH" in capsys.readouterr().err
        assert not (run_dir / "report.html").exists()

    def test_the_browser_is_asked_for_a_pdf_of_the_page(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[str] = []

        def print_it(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
            seen.extend(command)
            target = next(part for part in command if part.startswith("--print-to-pdf="))
            Path(target.partition("=")[2]).write_bytes(b"%PDF-1.4")
            return subprocess.CompletedProcess(command, 0, b"", b"")

        monkeypatch.setattr(subprocess, "run", print_it)
        page = tmp_path / "a b.html"
        page.write_text("")
        assert printing.print_pdf(page, "chrome") == b"%PDF-1.4"
        assert seen[0] == "chrome"
        assert seen[-1].endswith("/a%20b.html")
        assert "--no-pdf-header-footer" in seen

    def test_a_browser_that_fails_or_hangs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(OutputError, match=r"printed no PDF of .*exit code 1"):
            printing.print_pdf(tmp_path / "page.html", "false")

        def hang(command: list[str], **options: Any) -> None:
            raise subprocess.TimeoutExpired(command, 1.0)

        monkeypatch.setattr(subprocess, "run", hang)
        with pytest.raises(OutputError, match="could not print"):
            printing.print_pdf(tmp_path / "page.html", "chrome")

    @pytest.mark.skipif(not any(map(shutil.which, printing.BROWSERS)), reason="no browser to print with")
    def test_it_prints(self, built: Path) -> None:
        assert printing.print_pdf(built / "report.html", printing.find_browser()).startswith(b"%PDF-")

    def test_none_is_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "which", lambda name: None)
        with pytest.raises(MissingInputError, match="print report.html by any browser"):
            printing.find_browser()
