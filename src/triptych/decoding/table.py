"""Completions as a parquet table and back: the columns of `decoding/generations.parquet`, one row a completion.

Log-probabilities are stored in single precision, in which they were computed. Not here: scores, measures.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from triptych.decoding.arms import CompletionKey
from triptych.errors import DataError
from triptych.records import FinalBeam, Generation

COLUMNS: tuple[tuple[str, pa.DataType], ...] = (
    ("prompt_id", pa.string()),
    ("prompt", pa.string()),
    ("instruction", pa.string()),
    ("input", pa.string()),
    ("strategy", pa.string()),
    ("params", pa.string()),
    ("temperature", pa.float64()),
    ("sample", pa.int32()),
    ("text", pa.string()),
    ("raw_text", pa.string()),
    ("token_ids", pa.list_(pa.int32())),
    ("logprobs", pa.list_(pa.float32())),
    ("sampler_logprobs", pa.list_(pa.float32())),
    ("mean_logprob", pa.float64()),
    ("n_tokens", pa.int32()),
    ("stop_reason", pa.string()),
    ("score", pa.float64()),
    ("seed", pa.int64()),
)
"""The contract's columns: the fields of `Generation`, in order."""

SCHEMA = pa.schema([*COLUMNS, ("category", pa.string())])
"""`category`: the prompt's, null where it has none."""

ROW_GROUP = 1024
"""Rows that are stored together: the explorer reads the group of the one completion that it opens."""

BEAMS_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("strategy", pa.string()),
        ("params", pa.string()),
        ("rank", pa.int32()),
        ("score", pa.float64()),
        ("mean_logprob", pa.float64()),
        ("n_tokens", pa.int32()),
        ("stop_reason", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("text", pa.string()),
    ]
)
"""`decoding/beams.parquet`: one row a final beam, the fields of `FinalBeam`; a search's beams by rank."""

SCORES_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("strategy", pa.string()),
        ("params", pa.string()),
        ("temperature", pa.float64()),
        ("sample", pa.int32()),
        ("reward_model", pa.string()),
        ("score", pa.float64()),
    ]
)
"""`decoding/scores.parquet`: one row a completion that was to be scored; `score` null is unscored."""


def generations_table(generations: Sequence[Generation], category: str | None) -> pa.Table:
    """The completions of one prompt, or of several of one category, as a table."""
    rows = [{**generation.model_dump(), "category": category} for generation in generations]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def generations_of(table: pa.Table) -> list[Generation]:
    """The completions in a table, in order."""
    rows = table.select([name for name, _ in COLUMNS]).to_pylist()
    return [Generation.model_validate(row) for row in rows]


def read_generations(path: Path) -> list[Generation]:
    """The completions in a parquet file; `DataError` where it cannot be read as such."""
    try:
        return generations_of(pq.read_table(path))
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} holds no completions ({reason}); remove it and run the study again") from error


def beams_table(beams: Sequence[FinalBeam]) -> pa.Table:
    """The final beams as a table."""
    return pa.Table.from_pylist([beam.model_dump() for beam in beams], schema=BEAMS_SCHEMA)


def read_beams(path: Path) -> list[FinalBeam]:
    """The final beams in a parquet file, in order; none where there is no file. `DataError` where it is unreadable."""
    if not path.is_file():
        return []
    try:
        return [FinalBeam.model_validate(row) for row in pq.read_table(path, schema=BEAMS_SCHEMA).to_pylist()]
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} holds no final beams ({reason}); remove it and run the study again") from error


def scores_table(rows: Sequence[Generation], rewards: Sequence[float | None], reward_model: str) -> pa.Table:
    """One score a completion, in order."""
    keys = ("prompt_id", "strategy", "params", "temperature", "sample")
    records = [
        {**{key: getattr(row, key) for key in keys}, "reward_model": reward_model, "score": reward}
        for row, reward in zip(rows, rewards, strict=True)
    ]
    return pa.Table.from_pylist(records, schema=SCORES_SCHEMA)


def read_rewards(path: Path) -> Mapping[CompletionKey, float | None]:
    """The scores in a parquet file by completion."""
    rows = pq.read_table(path, schema=SCORES_SCHEMA).to_pylist()
    return {
        CompletionKey(row["prompt_id"], row["strategy"], row["params"], row["sample"]): row["score"] for row in rows
    }
