"""The page as Markdown: what it says, read from the page itself, so that both always say the same.

Tables become pipe tables, figures links to their PNG files with the alt text. Text of models and users comes out as
text: nothing in it is a link, a heading or HTML. Not here: what stands in the page (`triptych.reports.page`).
"""

import re
from html.parser import HTMLParser
from typing import final

from triptych.reports.safe_text import neutralise
from triptych.reports.tables import Cell, Column, Table

_SPECIAL = re.compile(r"[\\`*_\[\]|~]")
_AS_ENTITY = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_AT_START = re.compile(r"^(\d+)([.)])(?=\s|$)|^([#+=-])(?=[\s#=-]|$)")
HEADINGS = {f"h{level}": "#" * level for level in range(1, 7)}
BLOCKS = {*HEADINGS, "p", "li", "dt", "dd", "figcaption", "summary"}
"""Elements whose text is a block of its own."""
SKIPPED = {"head", "nav", "svg", "style"}
LINKS = {"files", "skip"}
"""Classes of what leads elsewhere."""
APART = {"small", "p", "br"}
"""Elements that stand apart from the text before them."""


def escape(text: str) -> str:
    """The text as one line of Markdown that shows it."""
    line = " ".join(neutralise(text).split())
    plain = _SPECIAL.sub(r"\\\g<0>", re.sub("[&<>]", lambda match: _AS_ENTITY[match[0]], line))
    return _AT_START.sub(lambda match: f"{match[1]}\\{match[2]}" if match[1] else f"\\{match[3]}", plain)


def markdown_table(table: Table) -> str:
    """A pipe table below its caption; the second line of a cell stands behind the first."""
    rule = ["---:" if column.numeric else "---" for column in table.columns]
    rows = [[_with_note(cell.text, cell.note) for cell in row] for row in table.rows]
    lines = [[_with_note(column.head, column.note) for column in table.columns], rule, *rows]
    return "\n".join([f"**{escape(table.caption)}**", "", *(f"| {' | '.join(line)} |" for line in lines)])


def fenced(text: str) -> str:
    """Text as it stands, behind a fence that it does not hold."""
    shown = "\n".join(neutralise(line) for line in text.strip("\n").split("\n"))
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{shown}\n{fence}"


def markdown(page: str) -> str:
    """A page of this package as Markdown."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    return "\n\n".join(block for block in reader.blocks if block) + "\n"


def tables_of(page: str) -> list[Table]:
    """All tables of a page of this package, in order, as the page shows them."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    return reader.tables


def _with_note(text: str, note: str) -> str:
    return " ".join(part for part in (escape(text), escape(note)) if part)


@final
class _Reader(HTMLParser):
    """Collects blocks and tables; pages of this package are well formed, and their own text is escaped."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[str] = []
        self.tables: list[Table] = []
        self._skipping = 0
        self._text = ""
        self._note: str | None = None
        """Text of a cell's second line; None outside of one."""
        self._table: _OpenTable | None = None
        self._figure = ""
        self._items = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if tag == "svg" and not self._skipping:
            self.blocks.append(f"![{escape(attributes.get('aria-label', ''))}](figures/{self._figure}.png)")
        # A void element has no end that could count it out.
        is_left_out = tag in SKIPPED or bool(LINKS & set(attributes.get("class", "").split()))
        self._skipping += is_left_out or (self._skipping > 0 and tag not in ("meta", "link"))
        if self._skipping:
            return
        if tag == "figure":
            self._figure = attributes["id"]
        elif tag == "table":
            self._table = _OpenTable(attributes.get("class") == "stacked")
        elif tag in ("th", "td", "caption") and self._table is not None:
            self._table.begin(tag, attributes)
            self._text, self._note = "", None
        elif tag == "small" and self._table is not None:
            self._note = ""
        elif tag == "pre":
            self._text = ""
        elif tag == "span" and attributes.get("id", "").startswith("table-") and self._table is not None:
            self._table.name = attributes["id"].removeprefix("table-")
        elif tag in BLOCKS and tag != "p":
            self._flush()
            self._items += tag == "li"
        if tag in APART or (tag == "span" and self._table is not None):
            self._text += " "

    def handle_endtag(self, tag: str) -> None:
        if self._skipping:
            self._skipping -= 1
        elif tag == "table" and self._table is not None:
            table = self._table.close()
            self.tables.append(table)
            self.blocks.append(markdown_table(table))
            self._table, self._text = None, ""
        elif self._table is not None:
            self._end_in_table(tag)
        elif tag == "pre":
            self.blocks.append(fenced(self._text))
            self._text = ""
        elif tag in BLOCKS and not (tag == "p" and self._items):
            self._flush(tag)
            self._items -= tag == "li"

    def _end_in_table(self, tag: str) -> None:
        if tag in ("th", "td", "caption") and self._table is not None:
            self._table.end(tag, self._text, self._note or "")
            self._text, self._note = "", None

    def handle_data(self, data: str) -> None:
        if self._skipping:
            return
        if self._note is not None:
            self._note += data
        else:
            self._text += data

    def _flush(self, tag: str = "p") -> None:
        """The text so far as a block."""
        text, self._text = escape(self._text), ""
        if text:
            self.blocks.append(_AS[tag].format(text) if tag in _AS else text)


_AS = {
    **{tag: f"{marks} {{}}" for tag, marks in HEADINGS.items()},
    "li": "- {}",
    "dt": "**{}**",
    "summary": "**{}**",
    "figcaption": "*{}*",
}
"""How the text of a block is written."""


@final
class _OpenTable:
    """A table while it is read."""

    def __init__(self, is_stacked: bool) -> None:
        self._is_stacked = is_stacked
        self.name = ""
        self._caption = ""
        self._columns: list[Column] = []
        self._rows: list[list[Cell]] = []
        self._is_head, self._is_numeric = False, False

    def begin(self, tag: str, attributes: dict[str, str]) -> None:
        self._is_head = attributes.get("scope") == "col"
        self._is_numeric = "number" in attributes.get("class", "").split()
        if attributes.get("scope") == "row":
            self._rows.append([])

    def end(self, tag: str, text: str, note: str) -> None:
        shown, second = " ".join(text.split()), " ".join(note.split())
        if tag == "caption":
            self._caption = shown
        elif self._is_head:
            self._columns.append(Column(shown, second, numeric=self._is_numeric))
        else:
            self._rows[-1].append(Cell(shown, second))

    def close(self) -> Table:
        return Table(self.name, self._caption, tuple(self._columns), tuple(map(tuple, self._rows)), self._is_stacked)
