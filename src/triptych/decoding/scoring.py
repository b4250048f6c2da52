"""Scores completions with a reward model, prompt by prompt, keeping what is scored.

Sample 0 of every arm is scored: what the quality of an arm and the frontier are made of. Not here: loading and running
a reward model (`triptych.models.reward`).
"""

import logging
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from triptych.data.prompts import question_of
from triptych.decoding.arms import by_prompt
from triptych.decoding.completions import GENERATIONS
from triptych.decoding.table import read_generations, scores_table
from triptych.errors import MissingInputError, ModelError
from triptych.files import atomic_path
from triptych.models.reward import Scores, load_reward_model
from triptych.parts import PartStore
from triptych.progress import progress
from triptych.records import Generation
from triptych.runs import RunDirectory

SCORES = "decoding/scores.parquet"
SCORE_PARTS = "decoding/score_parts"

OWN = "trained"
"""Names the reward model that this very run trained."""

logger = logging.getLogger(__name__)


def try_load_reward_model(spec: str, run: RunDirectory) -> Scores | None:
    """The reward model, or None with a warning: hours of completions are worth keeping without their scores."""
    try:
        return load_reward_model(run.path if spec == OWN else spec)
    except (ModelError, MissingInputError) as error:
        logger.warning("the completions stay unscored: %s", error)
        run.log("unscored", reward_model=spec, reason=str(error))
        return None


def write_unscored(run: RunDirectory, spec: str) -> None:
    """Scores without a value: what was to be scored, and by what."""
    rows = _rows_to_score(run)
    _write(run, scores_table(rows, [None] * len(rows), spec))


def write_scores(run: RunDirectory, reward: Scores, spec: str, *, show_progress: bool) -> None:
    """The reward of sample 0 of every arm; where the model gives no finite number, none."""
    prompts = by_prompt(_rows_to_score(run))
    parts = PartStore(run.path / SCORE_PARTS, reward.fingerprint)
    todo = {prompt_id: rows for prompt_id, rows in prompts.items() if prompt_id not in parts.done_ids()}
    with progress(sum(map(len, todo.values())), "completions", "scoring", enabled=show_progress) as meter:
        for prompt_id, rows in todo.items():
            pairs = [(question_of(row.instruction, row.input), row.text) for row in rows]
            rewards = reward.score(pairs, truncated=[row.is_truncated for row in rows])
            parts.save(prompt_id, scores_table(rows, rewards, spec))
            meter.advance(len(rows))
    tables = parts.read_all()
    _write(run, pa.concat_tables([tables[prompt_id] for prompt_id in prompts]))
    parts.discard()


def _rows_to_score(run: RunDirectory) -> Sequence[Generation]:
    return [row for row in read_generations(run.path / GENERATIONS) if row.sample == 0]


def _write(run: RunDirectory, table: pa.Table) -> None:
    with atomic_path(run.path / SCORES) as path:
        pq.write_table(table, path)
