"""The completions of a run: filtered, ordered and searched over narrow columns in memory.

    decoding/generations.parquet   required; tokens and prompts in full are read for the one row that is opened
    decoding/scores.parquet        optional: rewards
    decoding/pieces.json           optional: the text of single tokens

Texts are kept in Arrow memory, instructions once each: a search or a page reads no file. What a template puts around an
instruction is the same everywhere, and neither shown in lists nor searched. Not here: one completion in full
(`completion`).
"""

import json
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NamedTuple, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field

from triptych.errors import DataError, MissingInputError
from triptych.explorer.fresh import Fresh
from triptych.explorer.paging import MAX_QUERY, Facet, Page, PageQuery, n_pages
from triptych.explorer.rows import Coded, Rows, encoded, floats
from triptych.explorer.text import clean_strings, excerpts, finite, name_of
from triptych.reports.arms import Arm, name_arms, temperature_text
from triptych.reports.dictionaries_inputs import BoolArray
from triptych.reports.inputs import (
    BEAMS,
    GENERATIONS,
    PIECES,
    SCORES,
    CompletionKey,
    FloatArray,
    IntArray,
    Reward,
    arms_of_columns,
    read_pieces,
    read_rewards,
    read_table,
)

COLUMNS = (
    "prompt_id",
    "category",
    "strategy",
    "params",
    "temperature",
    "sample",
    "mean_logprob",
    "n_tokens",
    "stop_reason",
    "instruction",
    "text",
)
NO_TEMPERATURE = "none"
NO_CATEGORY = "uncategorised"
LOGPROB = "mean_logprob"
Sort = Literal["row", "mean_logprob", "n_tokens", "reward", "temperature"]
BEAM_COLUMNS = ("prompt_id", "strategy", "params", "rank", "score", "n_tokens", "stop_reason", "text")
BATCH = 1024
"""Rows decoded at once in the search for one: a file may be one large group of rows."""


class GenerationQuery(PageQuery):
    """Filters and order of completions."""

    strategy: str | None = Field(default=None, description="The value of an arm, or the name of a strategy.")
    temperature: str | None = Field(default=None, description="As the facets have it; `none` for searches.")
    category: str | None = None
    stop_reason: str | None = None
    prompt_id: str | None = None
    q: str | None = Field(default=None, max_length=MAX_QUERY)
    min_score: float | None = None
    max_score: float | None = None
    sort: Sort = "row"


class GenerationRow(BaseModel):
    """One completion in a list."""

    id: int
    prompt_id: str
    category: str
    strategy: str
    arm: str
    temperature: float | None
    sample: int
    mean_logprob: float | None
    n_tokens: int
    stop_reason: str
    reward: float | None
    prompt: str
    text: str


class GenerationPage(Page):
    """A page of completions."""

    rows: list[GenerationRow]


class Score(BaseModel):
    """What completions are filtered by where a score is meant: the reward, or else the mean log-probability."""

    name: str
    low: float | None
    high: float | None


class GenerationFacets(BaseModel):
    """What completions can be filtered by."""

    n: int
    score: Score
    arms: list[Facet]
    strategies: list[Facet]
    temperatures: list[Facet]
    categories: list[Facet]
    stop_reasons: list[Facet]


class _Columns(NamedTuple):
    """What tells completions apart, by row."""

    prompt_ids: list[str]
    arms: list[Arm]
    samples: list[int]


@final
class Generations:
    """All completions of one `generations.parquet`."""

    def __init__(self, run_dir: Path) -> None:
        path = run_dir / GENERATIONS
        if not path.is_file():
            raise MissingInputError(
                "this run has no completions: its decoding panel is not finished or was not asked for"
            )
        table = clean_strings(read_table(path, COLUMNS))
        self.file, self._lock = _open(path, table.num_rows), Lock()
        self._beams = run_dir / BEAMS
        columns = {
            name: table[name].to_pylist() for name in ("strategy", "params", "temperature", "prompt_id", "sample")
        }
        self.of_rows = _Columns(columns["prompt_id"], arms_of_columns(columns), columns["sample"])
        given, keys = read_rewards(run_dir / SCORES), zip(*self.of_rows, strict=True)
        self.rewards: list[tuple[Reward, ...]] = [given.get(CompletionKey(*key), ()) for key in keys]
        """What every reward model says, by row."""
        self.pieces = read_pieces(run_dir / PIECES)
        self.arm_names = name_arms(set(self.of_rows.arms))
        self._texts = table["text"].combine_chunks()
        self._prompts = encoded(table["instruction"].combine_chunks())
        self.rows = Rows(table.num_rows, self._coded(table), self._numbers(table), (self._prompts, self._texts))

    def _coded(self, table: pa.Table) -> dict[str, Coded]:
        arms = {arm: code for code, arm in enumerate(self.arm_names)}
        specs = {arm: spec_of(arm) for arm in arms}
        labels = {specs[arm]: name for arm, name in self.arm_names.items()}
        temperatures = {arm: shown_temperature(arm.temperature) for arm in arms}
        in_order = sorted(arms, key=lambda arm: (arm.temperature is not None, arm.temperature or 0.0))
        levels = list(dict.fromkeys(temperatures[arm] for arm in in_order))
        of_rows = np.array([arms[arm] for arm in self.of_rows.arms], dtype=np.int64)
        level_of = np.array([levels.index(temperatures[arm]) for arm in arms], dtype=np.int64)
        missing = pa.nulls(table.num_rows, pa.large_string())
        categories = table["category"].combine_chunks() if "category" in table.column_names else missing
        return {
            "arm": Coded(of_rows, list(specs.values()), labels),
            "strategy": Coded.of(table["strategy"].combine_chunks()),
            "temperature": Coded(level_of[of_rows] if arms else of_rows, levels),
            "category": Coded.of(categories, NO_CATEGORY),
            "stop_reason": Coded.of(table["stop_reason"].combine_chunks()),
            "prompt_id": Coded.of(table["prompt_id"].combine_chunks()),
        }

    def _numbers(self, table: pa.Table) -> dict[str, FloatArray]:
        numbers = {name: floats(table[name]) for name in ("mean_logprob", "n_tokens", "temperature")}
        model = self.reward_model
        rewards = [next((one.score for one in of_row if one.model == model), None) for of_row in self.rewards]
        return {**numbers, "reward": np.array(rewards, dtype=np.float64)}

    @cached_property
    def reward_model(self) -> str | None:
        """The reward model that lists go by: the first that gave a score."""
        given = (reward.model for rewards in self.rewards for reward in rewards if reward.score is not None)
        return next(given, None)

    @property
    def score_column(self) -> str:
        """The numbers that are meant by a score."""
        return LOGPROB if self.reward_model is None else "reward"

    def full_row(self, row: int) -> dict[str, Any]:
        """All columns of one row, read from the file."""
        with self._lock:
            return read_row(self.file, row)

    def final_beams(self, prompt_id: str, strategy: str, params: str) -> list[dict[str, Any]]:
        """The final beams of one search by rank, read from the file; none where the run kept none."""
        if not self._beams.is_file():
            return []
        key = [("prompt_id", "==", prompt_id), ("strategy", "==", strategy), ("params", "==", params)]
        rows = clean_strings(read_table(self._beams, BEAM_COLUMNS, key)).to_pylist()
        return sorted(rows, key=lambda row: row["rank"])

    # --- what is answered ---------------------------------------------------------------------------------------------

    def page(self, query: GenerationQuery) -> GenerationPage:
        """The completions that a query asks for."""
        column = None if query.sort == "row" else query.sort
        found = self.rows.select(self._masks(query), column, query.order)
        shown = found[query.page * query.size :][: query.size]
        pages = n_pages(len(found), query.size)
        return GenerationPage(total=len(found), page=query.page, size=query.size, pages=pages, rows=self.listed(shown))

    def _masks(self, query: GenerationQuery) -> list[BoolArray]:
        names = {
            "category": query.category,
            "stop_reason": query.stop_reason,
            "prompt_id": query.prompt_id,
            "temperature": query.temperature,
        }
        is_arm = query.strategy in self.rows.coded["arm"].names
        return [
            *self.rows.is_named({"arm" if is_arm else "strategy": query.strategy}),
            *self.rows.is_named(names),
            *self.rows.is_within(self.score_column, query.min_score, query.max_score),
            *([] if query.q is None else [self.rows.matches(query.q)]),
        ]

    def listed(self, rows: IntArray) -> list[GenerationRow]:
        """Some completions as a list has them."""
        indices = pa.array(rows)
        prompts = excerpts(self._prompts.take(indices).cast(pa.large_string()))
        texts = excerpts(self._texts.take(indices))
        return [
            GenerationRow(**self.facts(row), prompt=prompt, text=text)
            for row, prompt, text in zip(rows.tolist(), prompts, texts, strict=True)
        ]

    def facts(self, row: int) -> dict[str, Any]:
        """What a list and the full completion say alike."""
        coded, numbers, arm = self.rows.coded, self.rows.numbers, self.of_rows.arms[row]
        return {
            "id": row,
            **{name: coded[name].name(row) for name in ("prompt_id", "category", "strategy", "stop_reason")},
            "arm": self.arm_names[arm],
            "temperature": arm.temperature,
            "sample": self.of_rows.samples[row],
            "mean_logprob": finite(float(numbers["mean_logprob"][row])),
            "n_tokens": int(numbers["n_tokens"][row]),
            "reward": finite(float(numbers["reward"][row])),
        }

    @cached_property
    def facets(self) -> GenerationFacets:
        """What can be filtered by, and how many completions each has."""
        coded, scores = self.rows.coded, self.rows.numbers[self.score_column]
        known = scores[np.isfinite(scores)]
        low, high = (float(known.min()), float(known.max())) if known.size else (None, None)
        return GenerationFacets(
            n=self.rows.n,
            score=Score(name=LOGPROB if self.reward_model is None else name_of(self.reward_model), low=low, high=high),
            arms=coded["arm"].facets,
            strategies=coded["strategy"].facets,
            temperatures=coded["temperature"].facets,
            categories=coded["category"].facets,
            stop_reasons=coded["stop_reason"].facets,
        )


def fresh_generations(run_dir: Path) -> Fresh[Generations]:
    """The completions of a run directory, as its files stand."""
    return Fresh([run_dir / name for name in (GENERATIONS, SCORES, PIECES)], lambda: Generations(run_dir))


def spec_of(arm: Arm) -> str:
    """An arm as the command line names it: `top_p:p=0.9,temperature=0.8`."""
    params: dict[str, Any] = json.loads(arm.params)
    if arm.temperature is not None:
        params["temperature"] = arm.temperature
    settings = ",".join(f"{key}={value}" for key, value in params.items())
    return name_of(f"{arm.strategy}:{settings}" if settings else arm.strategy)


def shown_temperature(temperature: float | None) -> str:
    """A temperature as a filter: `0.8`, or `none`."""
    return NO_TEMPERATURE if temperature is None else temperature_text(temperature)


def read_row(file: pq.ParquetFile, row: int) -> dict[str, Any]:
    """One row of a parquet file: of its group of rows, no more than what comes before it is decoded."""
    group, before = 0, 0
    while row - before >= file.metadata.row_group(group).num_rows:
        before += file.metadata.row_group(group).num_rows
        group += 1
    try:
        for batch in file.iter_batches(BATCH, row_groups=[group]):
            if row - before < batch.num_rows:
                one = pa.Table.from_batches([batch.slice(row - before, 1)])
                fields: dict[str, Any] = clean_strings(one).to_pylist()[0]
                return fields
            before += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{GENERATIONS} cannot be read ({error}); remove it and run the study again") from error
    raise DataError(f"{GENERATIONS} has fewer rows than it says; remove it and run the study again")


def _open(path: Path, n_rows: int) -> pq.ParquetFile:
    """The file kept open: a rerun that replaces it does not change what a row number means."""
    file = pq.ParquetFile(path)
    if file.metadata.num_rows != n_rows:
        raise DataError(f"{path} was replaced while it was read; ask again")
    return file
