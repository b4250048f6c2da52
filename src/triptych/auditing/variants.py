"""Null and scaled adapters of an audit: which there are, and what they wrote, read and scored, in folders of their own.

They are no checkpoints of the report: their rows lie in `auditing/nulls/` and `auditing/sweep/`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from triptych.auditing.checkpoints import Checkpoint
from triptych.auditing.nulls import null_checkpoints, require_loras
from triptych.auditing.plan import AuditingConfig
from triptych.auditing.records import (
    BASE,
    FOLDER,
    RESPONSES_SCHEMA,
    SCORES_SCHEMA,
    TOKENS_SCHEMA,
    ReadToken,
    Response,
    Score,
)
from triptych.auditing.scoring import SURROGATE_KINDS, surrogate, surrogate_scores
from triptych.auditing.sweep import sweep_checkpoints
from triptych.auditing.tables import read_rows, rows_of, table_of, write_rows
from triptych.auditing.work import Material, TextSum

NULLS, SWEEP = f"{FOLDER}/nulls", f"{FOLDER}/sweep"
"""Folders of rows; with `.json` behind them, the figures."""

Tables = Mapping[tuple[str, str, str | int], pa.Table]
"""(step, checkpoint or scorer, which) → what was kept of it."""


class Rows(NamedTuple):
    """What some models wrote, read and scored."""

    responses: list[Response]
    tokens: list[ReadToken]
    scores: list[Score]

    def only(self, model: str) -> "Rows":
        """The rows of a model; scores that it gave as a surrogate are of the base's texts, and its own all the same."""
        surrogates = {surrogate(kind, model) for kind in SURROGATE_KINDS}
        return Rows(
            [row for row in self.responses if row.model == model],
            [row for row in self.tokens if row.model == model],
            [row for row in self.scores if row.model == model or row.scorer in surrogates],
        )

    def beside(self, others: "Rows") -> "Rows":
        """These rows, then the others'."""
        return Rows(self.responses + others.responses, self.tokens + others.tokens, self.scores + others.scores)


class Variants(NamedTuple):
    """Null and scaled adapters; none where none are asked for."""

    nulls: list[Checkpoint]
    scaled: list[Checkpoint]


def find_variants(config: AuditingConfig, adapters: Sequence[Checkpoint], seed: int) -> Variants:
    """Of the LoRAs among `adapters`. Raises `ModelError` where some are asked for and no adapter is a LoRA."""
    for option, is_asked in {"nulls": config.nulls > 0, "sweep": bool(config.sweep)}.items():
        if is_asked:
            require_loras(adapters, option)
    scaled = sweep_checkpoints(adapters, config.sweep) if config.sweep else []
    return Variants(null_checkpoints(adapters, config.nulls, seed=seed), scaled)


def sweep_material(material: Material) -> Material:
    """The first prompts, as they are, and the first chosen answers; nothing is perturbed."""
    n = material.config.sweep_prompts
    prompts = [one._replace(rendered={"plain": one.rendered["plain"]}) for one in material.prompts[:n]]
    return material._replace(prompts=prompts, chosen=material.chosen[:n], perturbs=False)


def in_order(tables: Tables, step: str, name: str) -> Iterator[pa.Table]:
    """The tables of the passes of one kind, in order."""
    keys = [key for key in tables if key[:2] == (step, name)]
    yield from (tables[key] for key in sorted(keys, key=lambda key: int(key[2])))


def write_variants(folder: Path, tables: Tables, names: Sequence[str], prompt_ids: Sequence[str], beta: float) -> None:
    """The rows of null or scaled adapters, short of the scores by rewards; no folder where there are none."""
    if not names:
        return
    sums = {
        name: [row for table in in_order(tables, "sums", name) for row in rows_of(table, TextSum)]
        for name in (BASE, *names)
    }
    scores = [one for name in names for one in surrogate_scores(name, sums[name], sums[BASE], beta=beta)]
    responses = [tables["responses", name, prompt_id] for name in names for prompt_id in prompt_ids]
    tokens = [table for step in ("chosen", "own") for name in names for table in in_order(tables, step, name)]
    write_rows(folder / "responses.parquet", responses, RESPONSES_SCHEMA)
    write_rows(folder / "tokens.parquet", tokens, TOKENS_SCHEMA)
    write_rows(folder / "scores.parquet", [table_of(scores, SCORES_SCHEMA)], SCORES_SCHEMA)


def read_variants(path: Path) -> dict[str, Rows]:
    """The rows of null and scaled adapters of a run by folder; none of what it has not."""
    return {
        name: Rows(
            read_rows(path / name / "responses.parquet", Response),
            read_rows(path / name / "tokens.parquet", ReadToken),
            read_rows(path / name / "scores.parquet", Score),
        )
        for name in (NULLS, SWEEP)
        if (path / name).is_dir()
    }
