"""Makes the completions of a study and keeps every prompt as soon as it is finished.

A killed run goes on with the prompts that are missing. A completion's draws depend on what it is and not on what shares
its batch, so it ends with the completions of an uninterrupted run. Not here: planning (`plan`), the engine, measuring.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from triptych.config import config_hash
from triptych.data.prompts import load_prompts
from triptych.data.split import Split, read_held_out
from triptych.data.templates import render_prompt
from triptych.decoding import Engine, Job
from triptych.decoding.pieces import token_pieces
from triptych.decoding.plan import DecodingConfig, Request, plan_requests
from triptych.decoding.table import ROW_GROUP, beams_table, generations_table
from triptych.files import atomic_path, atomic_write_json, atomic_write_text
from triptych.models import LanguageModel
from triptych.parts import PartStore
from triptych.progress import Meter, progress
from triptych.records import FinalBeam, Generation, Prompt
from triptych.runs import RunDirectory

GENERATIONS = "decoding/generations.parquet"
BEAMS = "decoding/beams.parquet"
PIECES = "decoding/pieces.json"
COSTS = "decoding/costs.json"
PARTS = "decoding/parts"
BEAM_PARTS = "decoding/beam_parts"

logger = logging.getLogger(__name__)


class Work(NamedTuple):
    """What is to be made of one prompt."""

    prompt: Prompt
    """With the text that the model reads."""
    requests: list[Request]


def make_completions(
    load_model: Callable[[], LanguageModel],
    config: DecodingConfig,
    run: RunDirectory,
    split: Split,
    *,
    seed: int,
    show_progress: bool,
) -> None:
    """Writes the completions of held-out prompts, the final beams of searches, token pieces, and what all this cost.

    Raises `DataError` for prompts that cannot be read or do not fit the model, before anything is made.
    """
    loaded = load_prompts(config.prompts, seed=seed, shuffle=config.shuffle)
    prompts = read_held_out(split, loaded, config.prompts, config.limit)
    started = time.monotonic()
    lm = load_model()
    load_seconds = time.monotonic() - started
    works = prepare(prompts, config, lm)
    key = _parts_key(works, config, lm, seed)
    parts, beams = PartStore(run.path / PARTS, key), _BeamParts(PartStore(run.path / BEAM_PARTS, key))
    engine = Engine(
        lm, max_new_tokens=config.max_new_tokens, seed=seed, stopping=config.stopping, on_beams=beams.collect
    )
    with progress(None, "tokens", "decoding", enabled=show_progress) as meter:
        _make_missing(works, engine, parts, beams, meter)
    tables = parts.read_all()
    table = pa.concat_tables([tables[work.prompt.id].replace_schema_metadata(None) for work in works])
    with atomic_path(run.path / GENERATIONS) as path:
        pq.write_table(table, path, row_group_size=ROW_GROUP)
    beams.write(run.path / BEAMS, works)
    _write_pieces(run, lm, table)
    atomic_write_json(run.path / COSTS, _cost_figures(tables, engine, lm, load_seconds))
    parts.discard()
    beams.discard()


def prepare(prompts: Sequence[Prompt], config: DecodingConfig, lm: LanguageModel) -> list[Work]:
    """The prompts as the model reads them, with their completions to make."""
    rendered = [
        prompt.model_copy(update={"prompt": render_prompt(prompt, config.template, lm.tokenizer)}) for prompt in prompts
    ]
    return [Work(*pair) for pair in zip(rendered, plan_requests(config, len(rendered)), strict=True)]


def _parts_key(works: Sequence[Work], config: DecodingConfig, lm: LanguageModel, seed: int) -> str:
    """What the completions depend on: parts of anything else are not gone on with."""
    made = {"max_new_tokens": config.max_new_tokens, "stopping": config.stopping}
    plan = [[work.prompt.id, work.prompt.prompt, [request.key for request in work.requests]] for work in works]
    # Parts of before beams were kept have none beside them.
    made["final_beams"] = True
    return config_hash({**made, "plan": plan, "model": lm.fingerprint, "dtype": str(lm.dtype), "seed": seed})


# --- one prompt after the other ---------------------------------------------------------------------------------------


class _BeamParts:
    """The final beams of prompts that are under way, and of those that are finished."""

    def __init__(self, parts: PartStore) -> None:
        self._parts = parts
        self._under_way: dict[str, list[FinalBeam]] = {}

    def collect(self, beams: list[FinalBeam]) -> None:
        """Takes the final beams of one search."""
        self._under_way.setdefault(beams[0].prompt_id, []).extend(beams)

    def save(self, work: Work) -> None:
        """Keeps those of a finished prompt, searches in the order of its plan."""
        order = {request.key[:2]: position for position, request in enumerate(work.requests)}
        beams = self._under_way.pop(work.prompt.id, [])
        if beams:
            beams.sort(key=lambda beam: (order[beam.strategy, beam.params], beam.rank))
            self._parts.save(work.prompt.id, beams_table(beams))

    def write(self, path: Path, works: Sequence[Work]) -> None:
        """The file of all prompts; none for a run without a beam search."""
        tables = self._parts.read_all()
        if not tables:
            path.unlink(missing_ok=True)
            return
        kept = [tables[work.prompt.id] for work in works if work.prompt.id in tables]
        with atomic_path(path) as temporary:
            pq.write_table(pa.concat_tables(kept), temporary, row_group_size=ROW_GROUP)

    def discard(self) -> None:
        self._parts.discard()


def _make_missing(works: Sequence[Work], engine: Engine, parts: PartStore, beams: _BeamParts, meter: Meter) -> None:
    todo = [work for work in works if work.prompt.id not in parts.done_ids()]
    if len(todo) < len(works):
        logger.info("going on: %d of %d prompts are finished", len(works) - len(todo), len(works))
    before = _Counters.of(engine)
    for work, generations in _finished_prompts(todo, engine, meter):
        now = _Counters.of(engine)
        table = generations_table(generations, work.prompt.category)
        beams.save(work)  # before the completions, which say that the prompt is finished
        parts.save(work.prompt.id, table.replace_schema_metadata({_COSTS: (now - before).to_json()}))
        before = now


def _finished_prompts(todo: Sequence[Work], engine: Engine, meter: Meter) -> Iterator[tuple[Work, list[Generation]]]:
    """Each prompt with its completions in the order of the plan, as soon as the last of them is there."""
    jobs = [Job(work.prompt, request.strategy, request.sample) for work in todo for request in work.requests]
    work_of = {work.prompt.id: work for work in todo}
    made: dict[str, dict[tuple[str, str, int], Generation]] = {work.prompt.id: {} for work in todo}
    for count, generation in enumerate(engine.run(jobs), start=1):
        work, own = work_of[generation.prompt_id], made[generation.prompt_id]
        own[generation.strategy, generation.params, generation.sample] = generation
        meter.advance(generation.n_tokens)
        # Nobody knows how long texts get: what is left is taken to be as long as what was made.
        meter.update(total=meter.completed / count * len(jobs))
        if len(own) == len(work.requests):
            del made[generation.prompt_id]
            yield work, [own[request.key] for request in work.requests]


# --- what is written beside them --------------------------------------------------------------------------------------

_COSTS = b"triptych.costs"


class _Counters(NamedTuple):
    """The engine's counters."""

    new_tokens: int
    forward_tokens: int
    prefill_tokens: int
    seconds: float

    @classmethod
    def of(cls, engine: Engine) -> "_Counters":
        stats = engine.stats
        return cls(stats.tokens, stats.forward_tokens, stats.prefill_tokens, stats.seconds)

    @classmethod
    def from_table(cls, table: pa.Table) -> "_Counters":
        return cls(**json.loads(table.schema.metadata[_COSTS]))

    def to_json(self) -> bytes:
        return json.dumps(self._asdict()).encode()

    def __sub__(self, other: "_Counters") -> "_Counters":
        return _Counters(
            self.new_tokens - other.new_tokens,
            self.forward_tokens - other.forward_tokens,
            self.prefill_tokens - other.prefill_tokens,
            self.seconds - other.seconds,
        )


def _cost_figures(
    tables: Mapping[str, pa.Table], engine: Engine, lm: LanguageModel, load_seconds: float
) -> dict[str, int | float | str | None]:
    """Names and figures, added up over the attempts that a resumed run took."""
    spent = [_Counters.from_table(table) for table in tables.values()]
    new_tokens, seconds = sum(part.new_tokens for part in spent), sum(part.seconds for part in spent)
    return {
        "device": str(lm.device),
        "dtype": str(lm.dtype).removeprefix("torch."),
        "engine_path": engine.stats.path,
        "load_seconds": round(load_seconds, 3),
        "seconds": round(seconds, 3),
        "rows": sum(table.num_rows for table in tables.values()),
        "tokens": sum(part.forward_tokens for part in spent),
        "useful_tokens": new_tokens,
        "tokens_per_second": round(new_tokens / seconds, 1) if seconds > 0 else None,
        "prefill_tokens": sum(part.prefill_tokens for part in spent),
        "peak_rows": engine.stats.peak_rows,
    }


def _write_pieces(run: RunDirectory, lm: LanguageModel, table: pa.Table) -> None:
    ids = table["token_ids"].combine_chunks().flatten().unique().to_pylist()
    # ASCII alone: pieces hold stray bytes as lone surrogates, which UTF-8 cannot write and an escape can.
    text = json.dumps(token_pieces(lm.tokenizer, ids), ensure_ascii=True)
    atomic_write_text(run.path / PIECES, f"{text}\n")
