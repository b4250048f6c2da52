"""Tables as LaTeX (booktabs), and text that is safe in it.

Not here: what stands in a table.
"""

import re

from triptych.reports.format import MINUS, NBSP
from triptych.reports.safe_text import neutralise
from triptych.reports.tables import Cell, Column, Table

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "`": r"\textasciigrave{}",
    **{char: f"\\{char}" for char in "{}$&#_%"},
    MINUS: "$-$",
    NBSP: "~",
    "“": "``",
    "”": "''",
    "‘": "`",
    "’": "'",
    "–": "--",
    "…": r"\ldots{}",
    "⟨": r"\textlangle{}",
    "⟩": r"\textrangle{}",
    "²": r"\textsuperscript{2}",
    "√": r"$\surd$",
    "→": r"$\rightarrow$",
    "·": r"\textperiodcentered{}",
    "×": r"$\times$",
    "κ": r"$\kappa$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "✓": r"\checkmark{}",
    "✗": r"$\times$",
    "\n": " ",
    "\t": " ",
}
_SPECIAL = re.compile("|".join([*map(re.escape, SPECIAL), "-(?=-)"]))
HEAD = "% Needs the packages booktabs, amssymb and textcomp; other letters than Latin ones need LuaLaTeX or XeLaTeX.\n"


def escape(text: str) -> str:
    """The text as LaTeX shows it: no command, no comment, and two dashes that do not become a longer one."""
    return _SPECIAL.sub(lambda match: SPECIAL.get(match[0], "-{}"), neutralise(text))


def latex_table(table: Table) -> str:
    """A `table` with caption and label; the second line of a cell, such as an interval, stands behind the first."""
    lines = [
        rf"\caption{{{escape(table.caption)}}}",
        rf"\label{{tab:{re.sub('[^A-Za-z0-9-]', '-', table.name)}}}",
        rf"\begin{{tabular}}{{{_alignment(table)}}}",
        r"\toprule",
        _line([_head(column) for column in table.columns]),
        r"\midrule",
        *[_line([_cell(cell) for cell in row]) for row in table.rows],
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return HEAD + "\n".join([r"\begin{table}", r"\centering", r"\small", *lines, r"\end{table}", ""])


def _alignment(table: Table) -> str:
    if table.stacked:
        width = 0.9 / len(table.columns)
        return "".join(rf"p{{{width:.2f}\linewidth}}" for _ in table.columns)
    return "".join("r" if column.numeric else "l" for column in table.columns)


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _head(column: Column) -> str:
    return _with_note(column.head, column.note)


def _cell(cell: Cell) -> str:
    return _with_note(cell.text, cell.note)


def _with_note(text: str, note: str) -> str:
    # Braces keep a bracket at the start of a row from being read as an argument of the line break before it.
    shown = f"{{{escape(text)}}}"
    return f"{shown} {{\\footnotesize {escape(note)}}}" if note else shown
