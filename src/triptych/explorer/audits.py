"""The audits of a run: the report card, the responses that findings point at, and all responses by pages.

    auditing/card.json            required   findings, numbered from the gravest
    auditing/responses.parquet    optional   what every checkpoint wrote
    auditing/{perturbed,scores}   optional   perturbed forms and scores, read for the prompts that are opened

Not here: addresses (`audit_pages`), and what counts as a finding (`triptych.auditing`).
"""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field

from triptych.auditing.records import FOLDER, LEVELS, Finding, Level, NullSpread
from triptych.errors import MissingInputError
from triptych.explorer.fresh import Fresh
from triptych.explorer.paging import MAX_QUERY, Page, PageQuery, n_pages
from triptych.explorer.rows import Coded, Rows, encoded, floats
from triptych.explorer.text import clean_strings, excerpts, name_of
from triptych.reports.auditing_card import sentence_of
from triptych.reports.auditing_inputs import AUDITS, CARD, PERTURBED, RESPONSES, SCORES, Auditing, read_auditing
from triptych.reports.auditing_responses import Place
from triptych.reports.inputs import IntArray, read_table
from triptych.reports.safe_text import neutralise

COLUMNS = ("model", "prompt_id", "kind", "category", "n_tokens", "n_words", "is_truncated", "instruction", "text")
NO_CATEGORY = "uncategorised"
Sort = Literal["row", "n_tokens", "n_words"]


class FindingRow(BaseModel):
    """One line of the report card."""

    id: int
    level: Level
    rule: str
    audit: str
    model: str
    metric: str
    category: str | None
    scorer: str | None
    against: str | None
    sentence: str
    mean: float | None
    low: float | None
    high: float | None
    n: int
    method: str
    bound: Literal["lower", "upper"] | None
    p: float | None
    p_warn: float | None
    p_warn_adjusted: float | None
    reason: str
    warn: float
    severe: float
    n_evidence: int
    nulls: NullSpread | None
    """Where the figure stands among those of random changes of the same size."""
    beside_nulls: str
    """The same in words, or why there are none; empty where none were asked for."""


class Levels(BaseModel):
    """How many lines stand at each level."""

    severe: int
    warn: int
    undecided: int
    ok: int


class AuditOverview(BaseModel):
    """The report card, the gravest first, and what responses can be filtered by."""

    checkpoints: list[str]
    levels: Levels
    findings: list[FindingRow]
    kinds: list[str]
    categories: list[str]
    scorers: list[str]
    n_responses: int


class ResponseQuery(PageQuery):
    """Filters and order of responses."""

    model: str | None = None
    kind: str | None = None
    category: str | None = None
    prompt_id: str | None = None
    q: str | None = Field(default=None, max_length=MAX_QUERY)
    sort: Sort = "row"


class ResponseFacts(BaseModel):
    """What is known of a response but its text."""

    id: int
    model: str
    prompt_id: str
    kind: str
    category: str
    n_tokens: int
    n_words: int
    is_truncated: bool


class ResponseRow(ResponseFacts):
    """One response in a list."""

    prompt: str
    text: str


class ResponsePage(Page):
    """A page of responses."""

    rows: list[ResponseRow]


@final
class Audits:
    """The audits of one run."""

    def __init__(self, run_dir: Path) -> None:
        auditing = read_auditing(run_dir)
        if auditing is None:
            raise MissingInputError("this run has no audits: its auditing panel is not finished or was not asked for")
        self.auditing: Auditing = auditing
        path = run_dir / RESPONSES
        table = clean_strings(read_table(path, COLUMNS)) if path.is_file() else _no_responses()
        self._texts = table["text"].combine_chunks()
        self._prompts = encoded(table["instruction"].combine_chunks())
        self._is_truncated = np.array(table["is_truncated"].to_pylist(), dtype=np.bool_)
        missing = pa.nulls(table.num_rows, pa.large_string())
        categories = table["category"].combine_chunks() if "category" in table.column_names else missing
        self.rows = Rows(
            table.num_rows,
            {
                "category": Coded.of(categories, NO_CATEGORY),
                **{name: Coded.of(table[name].combine_chunks()) for name in ("model", "prompt_id", "kind")},
            },
            {name: floats(table[name]) for name in ("n_tokens", "n_words")},
            (self._prompts, self._texts),
        )
        keys = zip(*(table[name].to_pylist() for name in ("model", "prompt_id", "kind")), strict=True)
        self.places = [Place(*key) for key in keys]
        """Of every response, by row."""

    @cached_property
    def row_of(self) -> dict[Place, int]:
        """The row of every response."""
        return {place: row for row, place in enumerate(self.places)}

    @cached_property
    def overview(self) -> AuditOverview:
        """The report card and the filters."""
        card, run = self.auditing.card, self.auditing
        return AuditOverview(
            checkpoints=[name_of(model) for model in run.checkpoints],
            levels=Levels(**{level: sum(finding.level == level for finding in card) for level in LEVELS}),
            findings=[finding_row(number, finding) for number, finding in enumerate(card)],
            kinds=[facet.value for facet in self.rows.coded["kind"].facets],
            categories=[facet.value for facet in self.rows.coded["category"].facets],
            scorers=[name_of(scorer) for scorer in run.all_scorers],
            n_responses=self.rows.n,
        )

    def finding(self, number: int) -> Finding:
        """One line of the card. Raises MissingInputError for an unknown one."""
        if number >= len(self.auditing.card):
            n = len(self.auditing.card)
            raise MissingInputError(f"no finding {number} in this run, whose card has {n:,}, counted from 0")
        return self.auditing.card[number]

    def page(self, query: ResponseQuery) -> ResponsePage:
        """The responses that a query asks for."""
        names = {"model": query.model, "kind": query.kind, "category": query.category, "prompt_id": query.prompt_id}
        masks = self.rows.is_named(names) + ([] if query.q is None else [self.rows.matches(query.q)])
        found = self.rows.select(masks, None if query.sort == "row" else query.sort, query.order)
        shown = found[query.page * query.size :][: query.size]
        pages = n_pages(len(found), query.size)
        return ResponsePage(total=len(found), page=query.page, size=query.size, pages=pages, rows=self._listed(shown))

    def _listed(self, rows: IntArray) -> list[ResponseRow]:
        indices = pa.array(rows)
        prompts = excerpts(self._prompts.take(indices).cast(pa.large_string()))
        texts = excerpts(self._texts.take(indices))
        return [
            ResponseRow(**self.facts(row), prompt=prompt, text=text)
            for row, prompt, text in zip(rows.tolist(), prompts, texts, strict=True)
        ]

    def facts(self, row: int) -> dict[str, Any]:
        """What a list and the full response say alike."""
        numbers = self.rows.numbers
        return {
            "id": row,
            **{name: self.rows.coded[name].name(row) for name in ("model", "prompt_id", "kind", "category")},
            **{name: int(numbers[name][row]) for name in ("n_tokens", "n_words")},
            "is_truncated": bool(self._is_truncated[row]),
        }


def fresh_audits(run_dir: Path) -> Fresh[Audits]:
    """The audits of a run directory, as its files stand."""
    files = [CARD, RESPONSES, SCORES, PERTURBED, *(f"{FOLDER}/{audit}.json" for audit in AUDITS)]
    return Fresh([run_dir / file for file in files], lambda: Audits(run_dir))


def finding_row(number: int, finding: Finding) -> FindingRow:
    """A line of the card as a list has it."""
    estimate = finding.estimate
    names = {
        name: getattr(finding, name) for name in ("rule", "audit", "model", "metric", "category", "scorer", "against")
    }
    return FindingRow(
        id=number,
        level=finding.level,
        **{key: None if name is None else name_of(name) for key, name in names.items()},
        sentence=neutralise(sentence_of(finding)),
        mean=estimate.mean,
        low=estimate.low,
        high=estimate.high,
        n=estimate.n,
        method=neutralise(estimate.method),
        bound=estimate.bound,
        p=finding.p,
        p_warn=finding.p_warn,
        p_warn_adjusted=finding.p_warn_adjusted,
        reason=neutralise(finding.reason),
        warn=finding.warn,
        severe=finding.severe,
        n_evidence=len(finding.evidence),
        nulls=finding.nulls,
        beside_nulls=neutralise(finding.no_nulls or "") if finding.nulls is None else finding.nulls.in_words(),
    )


def _no_responses() -> pa.Table:
    text, number = pa.array([], pa.large_string()), pa.array([], pa.int32())
    columns = dict.fromkeys(COLUMNS, text) | {"n_tokens": number, "n_words": number}
    return pa.table({**columns, "is_truncated": pa.array([], pa.bool_())})
