"""What the decoding panel left on disk, read and checked.

    decoding/generations.parquet  required   one row a completion (see the contract)
    decoding/diversity.json       required   list of ArmMeasure
    decoding/beams.parquet        optional   one row a final beam of a beam search
    decoding/scores.parquet       optional   one row a completion and reward model; absent or null is unscored
    decoding/claims.json          optional   list of Claim
    decoding/frontier.json        optional   list of FrontierPoint
    decoding/costs.json           optional   {name: number or text}
    decoding/pieces.json          optional   {token id: piece}, see `triptych.reports.pieces`

Only the numbers of a completion are kept in memory here; texts and tokens of the few prompts that are shown are read
where they are shown. Not here: statistics. What the run did not measure is missing, never computed in passing.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from triptych.errors import DataError, MissingInputError
from triptych.metrics import BeamLead, beam_lead
from triptych.records import ArmMeasure, Claim, Estimate, FrontierPoint
from triptych.reports.arms import Arm, make_arm, ordered
from triptych.reports.glossary import Scope
from triptych.runs import Manifest, read_manifest, read_records_json

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

GENERATIONS = "decoding/generations.parquet"
MEASURES = "decoding/diversity.json"
BEAMS = "decoding/beams.parquet"
SCORES = "decoding/scores.parquet"
CLAIMS = "decoding/claims.json"
FRONTIER = "decoding/frontier.json"
COSTS = "decoding/costs.json"
PIECES = "decoding/pieces.json"

NUMERIC_COLUMNS = (
    "prompt_id",
    "strategy",
    "params",
    "temperature",
    "sample",
    "mean_logprob",
    "n_tokens",
    "stop_reason",
    "score",
)


class ArmRows(NamedTuple):
    """The completions of one arm, in the order of the file; one entry a completion in every field."""

    prompt_ids: tuple[str, ...]
    samples: IntArray
    mean_logprobs: FloatArray
    """Nats per token; NaN where there is no token to average."""
    scores: FloatArray
    """A beam's cumulative log-probability in nats; NaN elsewhere."""
    n_tokens: IntArray
    stop_reasons: tuple[str, ...]

    @property
    def n_prompts(self) -> int:
        return len(set(self.prompt_ids))


class CompletionKey(NamedTuple):
    """What tells one completion of a run from every other."""

    prompt_id: str
    arm: Arm
    sample: int


class Reward(NamedTuple):
    """What one reward model says about one completion."""

    model: str
    score: float | None
    """None where it gave no score."""


@dataclass(frozen=True)
class Decoding:
    """Everything the decoding panel left on disk, short of texts and tokens."""

    run_dir: Path
    manifest: Manifest
    rows: Mapping[Arm, ArmRows]
    """The arms that the run measured, in the order of figures and tables."""
    n_tuning: int
    """Completions of further settings, which were tried for the frontier alone."""
    measures: Mapping[tuple[Arm, str, Scope], Estimate]
    claims: tuple[Claim, ...]
    frontier: tuple[tuple[Arm, FrontierPoint], ...]
    beam_leads: Mapping[Arm, tuple[BeamLead | None, ...]]
    """Of every prompt's best beam, None where no other final beam ended as it did; empty where no beams were kept."""
    costs: Mapping[str, float | int | str | None]
    rewards: Mapping[CompletionKey, tuple[Reward, ...]]
    pieces: Mapping[int, str] | None
    """Token id to piece; None where the run wrote none."""

    @property
    def arms(self) -> list[Arm]:
        return list(self.rows)

    @property
    def prompt_ids(self) -> list[str]:
        return sorted({prompt_id for rows in self.rows.values() for prompt_id in rows.prompt_ids})

    @property
    def n_completions(self) -> int:
        return sum(len(rows.prompt_ids) for rows in self.rows.values())

    @property
    def reward_models(self) -> list[str]:
        """Reward models that scored at least one completion."""
        return sorted({reward.model for given in self.rewards.values() for reward in given if reward.score is not None})

    def measure(self, arm: Arm, metric: str, *scopes: Scope) -> Estimate | None:
        """The estimate of a metric in the first of `scopes` that has one; None where it was not measured."""
        for scope in scopes or ("arm", "across", "within"):
            if (estimate := self.measures.get((arm, metric, scope))) is not None:
                return estimate
        return None

    def measured(self, arm: Arm, metric: str, *scopes: Scope) -> bool:
        """Whether there is a value, rather than a record that says there is none."""
        estimate = self.measure(arm, metric, *scopes)
        return estimate is not None and estimate.mean is not None

    def sweep(self, family_arms: Iterable[Arm], metric: str, *scopes: Scope) -> list[tuple[float, Estimate]]:
        """Temperature and estimate of the arms that have a value, by temperature."""
        found = [
            (arm.temperature, estimate)
            for arm in ordered(family_arms)
            if arm.temperature is not None and (estimate := self.measure(arm, metric, *scopes)) is not None
        ]
        return [(temperature, estimate) for temperature, estimate in found if estimate.mean is not None]


def read_decoding(run_dir: Path) -> Decoding:
    """The decoding panel's files of a run directory, checked."""
    all_rows = _read_rows(_required(run_dir, GENERATIONS))
    measures = read_records_json(_required(run_dir, MEASURES), ArmMeasure)
    measured = {_arm_of(entry) for entry in measures}
    if not measured & set(all_rows):
        raise DataError(f"{run_dir / MEASURES} measures no arm of {GENERATIONS}; remove it and run the study again")
    claims, frontier = run_dir / CLAIMS, run_dir / FRONTIER
    return Decoding(
        run_dir=run_dir,
        manifest=read_manifest(run_dir),
        rows={arm: rows for arm, rows in all_rows.items() if arm in measured},
        n_tuning=sum(len(rows.prompt_ids) for arm, rows in all_rows.items() if arm not in measured),
        measures={(_arm_of(entry), entry.metric, entry.scope): entry.estimate for entry in measures},
        claims=tuple(read_records_json(claims, Claim)) if claims.is_file() else (),
        frontier=_read_frontier(frontier) if frontier.is_file() else (),
        beam_leads=_read_beam_leads(run_dir / BEAMS),
        costs=_read_costs(run_dir / COSTS),
        rewards=read_rewards(run_dir / SCORES),
        pieces=read_pieces(run_dir / PIECES),
    )


def read_table(path: Path, columns: Iterable[str], filters: list[tuple[str, str, Any]] | None = None) -> pa.Table:
    """Some columns of a parquet file; an error that names the file where it cannot be read or lacks a column.

    `category` may be absent: the contract does not ask for it.
    """
    try:
        present = set(pq.read_schema(path).names)
        wanted = [name for name in columns if name in present or name != "category"]
        missing = sorted(set(wanted) - present)
        if not missing:
            return pq.read_table(path, columns=wanted, filters=filters)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet ({error}); remove it and run the panel again") from error
    raise DataError(
        f"{path} has no column {', '.join(missing)}; it was written by another version: run the panel again"
    )


def _required(run_dir: Path, name: str) -> Path:
    path = run_dir / name
    if not path.is_file():
        raise MissingInputError(
            f"{path} is missing, so the decoding panel cannot be reported; run the study again with the same --out, or "
            "with --fresh if the stage that writes it is already done"
        )
    return path


def _read_rows(path: Path) -> dict[Arm, ArmRows]:
    table = read_table(path, NUMERIC_COLUMNS)
    if not table.num_rows:
        raise DataError(f"{path} holds no completion; decode at least one prompt")
    columns = {name: table.column(name).to_pylist() for name in NUMERIC_COLUMNS}
    arms = arms_of_columns(columns)
    members: dict[Arm, list[int]] = {}
    for index, arm in enumerate(arms):
        members.setdefault(arm, []).append(index)
    return {arm: _pick(columns, members[arm]) for arm in ordered(members)}


def _pick(columns: Mapping[str, list[Any]], indices: list[int]) -> ArmRows:
    def floats(name: str) -> FloatArray:
        return np.array([columns[name][index] for index in indices], dtype=np.float64)  # None becomes NaN

    return ArmRows(
        prompt_ids=tuple(columns["prompt_id"][index] for index in indices),
        samples=np.array([columns["sample"][index] for index in indices], dtype=np.int64),
        mean_logprobs=floats("mean_logprob"),
        scores=floats("score"),
        n_tokens=np.array([columns["n_tokens"][index] for index in indices], dtype=np.int64),
        stop_reasons=tuple(columns["stop_reason"][index] for index in indices),
    )


def arms_of_columns(columns: Mapping[str, list[Any]]) -> list[Arm]:
    """The arm of every row; tens of thousands of rows share a dozen arms, so each is made once."""
    known: dict[tuple[str, str, float | None], Arm] = {}
    arms = []
    for key in zip(columns["strategy"], columns["params"], columns["temperature"], strict=True):
        if key not in known:
            known[key] = make_arm(*key)
        arms.append(known[key])
    return arms


def read_rewards(path: Path) -> dict[CompletionKey, tuple[Reward, ...]]:
    if not path.is_file():
        return {}
    names = ("prompt_id", "strategy", "params", "temperature", "sample", "reward_model", "score")
    table = read_table(path, names)
    columns = {name: table.column(name).to_pylist() for name in names}
    rewards: dict[CompletionKey, tuple[Reward, ...]] = {}
    for index, arm in enumerate(arms_of_columns(columns)):
        key = CompletionKey(columns["prompt_id"][index], arm, columns["sample"][index])
        reward = Reward(str(columns["reward_model"][index]), columns["score"][index])
        rewards[key] = (*rewards.get(key, ()), reward)
    return rewards


def _read_beam_leads(path: Path) -> dict[Arm, tuple[BeamLead | None, ...]]:
    if not path.is_file():
        return {}
    rows = read_table(path, ("prompt_id", "strategy", "params", "rank", "score", "stop_reason")).to_pylist()
    searches: dict[Arm, dict[str, list[dict[str, Any]]]] = {}
    for row in sorted(rows, key=lambda row: row["rank"]):
        arm = make_arm(row["strategy"], row["params"], None)
        searches.setdefault(arm, {}).setdefault(row["prompt_id"], []).append(row)
    return {
        arm: tuple(
            beam_lead([row["score"] for row in beams], [row["stop_reason"] == "eos" for row in beams])
            for beams in by_prompt.values()
        )
        for arm, by_prompt in searches.items()
    }


def read_pieces(path: Path) -> dict[int, str] | None:
    if not path.is_file():
        return None
    pieces = _read_json(path)
    try:
        return {int(token_id): str(piece) for token_id, piece in pieces.items()}
    except (AttributeError, ValueError) as error:
        raise DataError(f"{path} must map token ids to pieces ({error}); remove it and run the study again") from error


def _read_frontier(path: Path) -> tuple[tuple[Arm, FrontierPoint], ...]:
    points = {_arm_of(point): point for point in read_records_json(path, FrontierPoint)}
    return tuple((arm, points[arm]) for arm in ordered(points))


def _read_costs(path: Path) -> dict[str, float | int | str | None]:
    if not path.is_file():
        return {}
    costs = _read_json(path)
    if not isinstance(costs, dict) or not all(isinstance(cost, int | float | str | None) for cost in costs.values()):
        raise DataError(f"{path} must map names to numbers or texts; remove it and run the study again")
    return costs


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}); remove it and run the study again") from error


def _arm_of(entry: ArmMeasure | FrontierPoint) -> Arm:
    return make_arm(entry.strategy, entry.params, entry.temperature)
