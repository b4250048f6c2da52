"""The engine: one continuously refilled batch for all prompts, strategies, temperatures and samples of a run.

Each prompt is read once; its cache is shared by every completion of it. All live rows, whatever their strategy, take
each step together; a row that ends leaves its slot to the next completion in the queue. A completion depends on the
model, its prompt, its strategy, its sample number and the seed, and on nothing else: not on its neighbours, the order
of the jobs or the size of the batch.

Here is the schedule; how tokens are chosen is in `sampling` and `search`, how a model is run in `backends`.
"""

import hashlib
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from typing import NamedTuple

import numpy as np
import psutil
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from triptych.data import encode_prompt
from triptych.decoding.backends import Backend, FusedBackend, GenericBackend, Prefix
from triptych.decoding.backends.fused import supports
from triptych.decoding.head import HeadSource, read_heads
from triptych.decoding.sampling import draw
from triptych.decoding.search import SEARCHES, Finished, Predictions, Search, make_search
from triptych.decoding.stopping import Monitor, Stopping, StopRules
from triptych.decoding.strategies import Sampler, Strategy
from triptych.errors import ConfigError, DataError, WorkError
from triptych.models import LanguageModel
from triptych.records import Generation, Prompt
from triptych.seeding import stream_key, uniforms


class Limits(BaseModel):
    """What the engine may use at once; None chooses by device and free memory."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    max_rows: int | None = Field(default=None, ge=1)
    kv_bytes: int | None = Field(default=None, ge=1)
    """Of the rows' own caches; prompts come on top."""


@dataclass(frozen=True)
class Job:
    """One completion to make."""

    prompt: Prompt
    """With `prompt` set to the rendered text."""
    strategy: Strategy
    sample: int = 0


@dataclass
class EngineStats:
    """Counters of one engine, for costs and progress."""

    path: str
    dtype: str
    rows: int = 0
    """Completions finished."""
    tokens: int = 0
    """Tokens of finished completions."""
    forward_tokens: int = 0
    """Tokens stepped: more than `tokens` where a search tried several."""
    prefill_tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
    peak_rows: int = 0
    restarts: int = 0
    """Times that memory ran out and fewer rows were tried."""


class Engine:
    """Decodes jobs on one model.

    Args:
        lm: the model.
        max_new_tokens: longest completion.
        seed: of all sampling.
        stopping: rules that end a completion.
        limits: rows and memory.
        path: `fused` or `generic`; None takes the fused path where the model has one.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        max_new_tokens: int,
        seed: int = 0,
        stopping: Stopping | None = None,
        limits: Limits | None = None,
        path: str | None = None,
    ) -> None:
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
        self._lm = lm
        self._seed = seed
        self._limits = limits or Limits()
        self._rules = StopRules(stopping or Stopping(), lm.tokenizer, lm.eos_ids, max_new_tokens)
        self._backend_type = _choose_backend(lm, path)
        self.stats = EngineStats(path=self._backend_type.path, dtype=str(lm.dtype).removeprefix("torch."))

    def run(self, jobs: Iterable[Job]) -> Iterator[Generation]:
        """Yields each completion as it finishes, in no particular order.

        Jobs of one prompt should be adjacent: they then share its cache.

        Raises:
            DataError: a prompt that leaves no room for `max_new_tokens` in the model's context, before any work.
            WorkError: not even one row fits in memory.
        """
        queue = self._prompt_queue(jobs)
        widest = max((unit.width for entry in queue for unit in entry.units), default=1)
        slots = max(widest, min(self._slots(), sum(unit.width for entry in queue for unit in entry.units)))
        while queue:
            batch = _Batch(self._make_backend(slots, queue), self._rules, self.stats, queue)
            try:
                yield from batch.run()
                return
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                if slots <= widest:
                    raise WorkError(
                        f"out of memory with {slots} row(s) of {self._rules.max_new_tokens} tokens; "
                        "free memory, or decode with a smaller max_new_tokens"
                    ) from error
                # Unfinished completions start again and come out the same: their noise hangs on no state.
                queue = batch.unfinished()
                slots = max(widest, slots // 2)
                self.stats.restarts += 1
                del batch

    def _prompt_queue(self, jobs: Iterable[Job]) -> "list[_PromptEntry]":
        queue = []
        for (prompt_id, text), group in groupby(jobs, key=lambda job: (job.prompt.id, job.prompt.prompt)):
            if text is None:
                raise ConfigError(f"prompt '{prompt_id}' is not rendered; set its text with `render_prompt`")
            ids = encode_prompt(text, self._lm.tokenizer)
            _require_room(prompt_id, ids, self._rules.max_new_tokens, self._lm.context_length)
            queue.append(_PromptEntry(ids, [self._unit(job) for job in group]))
        return queue

    def _unit(self, job: Job) -> "_Unit":
        prompt, strategy = job.prompt, job.strategy
        key = stream_key(self._seed, prompt.id, prompt.prompt or "", strategy.name, strategy.params, job.sample)
        return _Unit(job, key, self._seed)

    def _slots(self) -> int:
        """Rows by default: enough to keep the matrix units busy, within a share of the free memory."""
        on_gpu = self._lm.device.type == "cuda"
        rows = self._limits.max_rows or (1024 if on_gpu else 256)
        budget = self._limits.kv_bytes or int(0.35 * _free_memory(self._lm.device))
        per_row = FusedBackend.bytes_per_token(self._lm) * self._rules.max_new_tokens
        return max(1, min(rows, budget // per_row))

    def _make_backend(self, slots: int, queue: "list[_PromptEntry]") -> Backend:
        lengths = [len(entry.ids) for entry in queue]
        # Room for the prompts of a full batch, were it all prompts of usual length with one row each.
        prefix_tokens = min(sum(lengths), max(2 * max(lengths), slots * 96))
        return self._backend_type(
            self._lm, slots=slots, max_new_tokens=self._rules.max_new_tokens, prefix_tokens=prefix_tokens
        )


def decode(
    lm: LanguageModel,
    prompts: Sequence[str | Prompt],
    strategies: Sequence[Strategy],
    *,
    max_new_tokens: int,
    samples: int = 1,
    seed: int = 0,
    stopping: Stopping | None = None,
    limits: Limits | None = None,
    path: str | None = None,
) -> list[Generation]:
    """Completes every prompt with every strategy, `samples` times where the strategy draws.

    A string is used as it stands; so is a `Prompt`'s `prompt` (render others with `triptych.data.render_prompt`).
    The result is ordered by prompt, then strategy, then sample.
    """
    if samples < 1:
        raise ConfigError(f"samples is {samples}; it must be at least 1")
    records = _as_prompts(prompts)
    jobs = [
        Job(prompt, strategy, sample)
        for prompt in records
        for strategy in strategies
        for sample in range(samples if isinstance(strategy, Sampler) else 1)
    ]
    engine = Engine(lm, max_new_tokens=max_new_tokens, seed=seed, stopping=stopping, limits=limits, path=path)
    done = {(one.prompt_id, one.strategy, one.params, one.sample): one for one in engine.run(jobs)}
    return [done[job.prompt.id, job.strategy.name, job.strategy.params, job.sample] for job in jobs]


@dataclass(eq=False)
class _Unit:
    """A job on its way: the rows it feeds next, and what it has produced."""

    job: Job
    key: int
    seed: int
    search: Search | None = None
    monitor: Monitor | None = None
    slots: list[int] = field(default_factory=list)
    """Live rows, one for each of `tokens`."""
    reserved: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    """What the live rows are fed next."""
    logprobs: list[float] = field(default_factory=list)
    sampler_logprobs: list[float] = field(default_factory=list)
    held: dict[int, list[int]] = field(default_factory=dict)
    """For searches: the tokens in each reserved slot's cache."""

    @property
    def width(self) -> int:
        name = self.job.strategy.name
        if name not in SEARCHES:
            return 1
        return int(getattr(self.job.strategy, "width", 0) or getattr(self.job.strategy, "k", 1))

    @property
    def temperature(self) -> float:
        return self.job.strategy.temperature if isinstance(self.job.strategy, Sampler) else 1.0

    def restart(self) -> "_Unit":
        return _Unit(self.job, self.key, self.seed)


@dataclass(eq=False)
class _PromptEntry:
    """A prompt with the jobs that continue it."""

    ids: list[int]
    units: list[_Unit]


class _Copies(NamedTuple):
    source: list[int]
    target: list[int]
    start: list[int]


@dataclass(eq=False)
class _Active:
    """A prompt that has been read and not been forgotten."""

    ids: list[int]
    prefix: Prefix
    open_units: int


class _Batch:
    """One backend and the rows that live on it."""

    def __init__(self, backend: Backend, rules: StopRules, stats: EngineStats, queue: "list[_PromptEntry]") -> None:
        self._backend = backend
        self._rules = rules
        self._stats = stats
        self._queue = deque(queue)
        self._ready: deque[tuple[_Unit, _Active]] = deque()
        self._live: dict[_Unit, _Active] = {}
        self._free = list(range(backend.slots))[::-1]

    def run(self) -> Iterator[Generation]:
        """Steps until every job is finished."""
        while self._queue or self._ready or self._live:
            started = time.perf_counter()
            finished = self._admit()
            if self._live:
                finished += self._step()
            self._stats.seconds += time.perf_counter() - started
            yield from finished

    def unfinished(self) -> "list[_PromptEntry]":
        """What is left to do, from the beginning of each completion."""
        entries: dict[_Active, list[_Unit]] = {}
        for unit, active in [*self._live.items(), *self._ready]:
            entries.setdefault(active, []).append(unit.restart())
        started = [_PromptEntry(active.ids, units) for active, units in entries.items()]
        return [*started, *self._queue]

    def _admit(self) -> list[Generation]:
        """Fills free slots from the queue; a new row's first token comes from its prompt's prediction."""
        self._read_prompts()
        units: list[_Unit] = []
        actives: list[_Active] = []
        while self._ready and self._ready[0][0].width <= len(self._free):
            unit, active = self._ready.popleft()
            unit.reserved = [self._free.pop() for _ in range(unit.width)]
            for slot in unit.reserved:
                self._backend.admit(active.prefix, slot)
            if unit.job.strategy.name in SEARCHES:
                unit.search = make_search(unit.job.strategy, self._rules)
                unit.held = {slot: [] for slot in unit.reserved}
            else:
                unit.monitor = Monitor(self._rules)
            unit.slots = unit.reserved[:1]
            self._live[unit] = active
            units.append(unit)
            actives.append(active)
        if not units:
            return []
        logits = torch.stack([active.prefix.logits for active in actives])
        hidden = [active.prefix.hidden for active in actives]
        return self._choose(units, logits, hidden)

    def _read_prompts(self) -> None:
        """Reads so many prompts that the free slots are taken, once enough slots are free to be worth a prefill."""
        waiting = sum(unit.width for unit, _ in self._ready)
        room = len(self._free) - waiting
        if room < max(1, self._backend.slots // 8) and (self._live or self._ready):
            return
        chosen: list[_PromptEntry] = []
        tokens = 0
        while self._queue and room > 0 and self._backend.room_for(tokens + len(self._queue[0].ids)):
            entry = self._queue.popleft()
            chosen.append(entry)
            tokens += len(entry.ids)
            room -= sum(unit.width for unit in entry.units)
        if not chosen:
            return
        keep_hidden = any(
            unit.job.strategy.name in SEARCHES and SEARCHES[unit.job.strategy.name].needs_hidden
            for entry in chosen
            for unit in entry.units
        )
        prefixes = self._backend.prefill([entry.ids for entry in chosen], keep_hidden=keep_hidden)
        self._stats.prefill_tokens += tokens
        for entry, prefix in zip(chosen, prefixes, strict=True):
            active = _Active(entry.ids, prefix, len(entry.units))
            self._ready.extend((unit, active) for unit in entry.units)

    def _step(self) -> list[Generation]:
        units = list(self._live)
        slots = np.array([slot for unit in units for slot in unit.slots], np.int64)
        tokens = np.array([token for unit in units for token in unit.tokens], np.int64)
        output = self._backend.step(slots, tokens)
        self._stats.steps += 1
        self._stats.forward_tokens += len(slots)
        self._stats.peak_rows = max(self._stats.peak_rows, len(slots))
        hidden: list[Tensor | None] = []
        row = 0
        for unit in units:
            if unit.search is not None:
                for slot, token in zip(unit.slots, unit.tokens, strict=True):
                    unit.held[slot].append(token)
            hidden.append(output.hidden[row : row + len(unit.slots)] if _wants_hidden(unit) else None)
            row += len(unit.slots)
        return self._choose(units, output.logits, hidden)

    def _choose(self, units: list[_Unit], logits: Tensor, hidden: Sequence[Tensor | None]) -> list[Generation]:
        """Lets every unit react to its rows of `logits`; returns what finished."""
        temperatures = torch.tensor([unit.temperature for unit in units for _ in unit.slots], dtype=torch.float32)
        source = read_heads(logits, temperatures.to(logits.device))
        first_rows = np.cumsum([0, *(len(unit.slots) for unit in units)])
        by_strategy: dict[str, list[int]] = {}
        for i, unit in enumerate(units):
            by_strategy.setdefault(unit.job.strategy.name, []).append(i)
        finished: list[Generation] = []
        copies = _Copies([], [], [])
        for name, members in by_strategy.items():
            rows = [int(first_rows[i]) for i in members]
            if name in SEARCHES:
                finished += self._search([units[i] for i in members], rows, source, [hidden[i] for i in members], copies)
            else:
                finished += self._sample([units[i] for i in members], rows, source)
        self._backend.copy(*(np.array(column, np.int64) for column in copies))
        return finished

    def _sample(self, units: list[_Unit], rows: list[int], source: HeadSource) -> list[Generation]:
        """One token for each of `units`, which share a kind of strategy and have one row each."""
        at = torch.tensor(rows)
        if isinstance(units[0].job.strategy, Sampler):
            keys = np.array([unit.key for unit in units], np.uint64)
            counters = np.array([len(unit.logprobs) for unit in units], np.int64)
            drawn = draw(
                source,
                at.to(source.device),
                [unit.job.strategy for unit in units],  # type: ignore[misc]
                torch.from_numpy(uniforms(keys, counters)).to(source.device),
            )
            columns = (drawn.tokens.tolist(), drawn.logprobs.tolist(), drawn.sampler_logprobs.tolist())
        else:
            head = source.take(at.to(source.device), 1)
            logprobs = (head.logits[:, 0] - head.log_normaliser).tolist()
            # Greedy draws from a distribution with all its mass on one token.
            columns = (head.ids[:, 0].tolist(), logprobs, [0.0] * len(units))
        finished = []
        for unit, token, logprob, sampler_logprob in zip(units, *columns, strict=True):
            unit.logprobs.append(logprob)
            unit.sampler_logprobs.append(sampler_logprob)
            unit.tokens = [token]
            assert unit.monitor is not None
            if reason := unit.monitor.push(token):
                result = Finished(unit.monitor.ids, unit.logprobs, reason, None)
                finished.append(self._finish(unit, result, unit.sampler_logprobs))
        return finished

    def _search(
        self,
        units: list[_Unit],
        rows: list[int],
        source: HeadSource,
        hidden: Sequence[Tensor | None],
        copies: _Copies,
    ) -> list[Generation]:
        """Lets searches of one kind move on, and notes the cache copies that their new rows need."""
        counts = [len(unit.slots) for unit in units]
        wanted = max(unit.search.head for unit in units if unit.search is not None)
        at = torch.tensor([row + j for row, count in zip(rows, counts, strict=True) for j in range(count)])
        head = source.take(at.to(source.device), wanted)
        ids = head.ids.cpu().numpy()
        logprobs = (head.logits - head.log_normaliser[:, None]).float().cpu().numpy()
        finished = []
        row = 0
        for unit, count, states in zip(units, counts, hidden, strict=True):
            assert unit.search is not None
            own = (slice(row, row + count), slice(0, unit.search.head))
            row += count
            array = None if states is None else states.float().cpu().numpy()
            move = unit.search.advance(Predictions(ids[own], logprobs[own], array))
            if move.finished:
                finished.append(self._finish(unit, move.finished[0], None))
            else:
                _assign_slots(unit, move.parents, copies)
                unit.tokens = move.tokens
        return finished

    def _finish(self, unit: _Unit, result: Finished, sampler_logprobs: list[float] | None) -> Generation:
        active = self._live.pop(unit)
        self._free += unit.reserved
        active.open_units -= 1
        if not active.open_units:
            self._backend.release(active.prefix)
        self._stats.rows += 1
        self._stats.tokens += len(result.ids)
        return _generation(unit, result, sampler_logprobs, *self._rules.texts(result.ids))


def _assign_slots(unit: _Unit, parents: Sequence[int], copies: _Copies) -> None:
    """Gives every new row a slot: a parent's first child stays where the parent was, others get copies elsewhere."""
    old = unit.slots
    stays = {parent: child for child, parent in reversed(list(enumerate(parents)))}
    spare = [slot for slot in unit.reserved if slot not in {old[parent] for parent in stays}]
    slots = []
    for child, parent in enumerate(parents):
        source = old[parent]
        if stays[parent] == child:
            slots.append(source)
            continue
        target = spare.pop()
        held, wanted = unit.held[target], unit.held[source]
        # Beams branched recently share most of what their caches hold.
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(held, wanted, strict=False)))
        if held != wanted:
            copies.source.append(source)
            copies.target.append(target)
            copies.start.append(common)
            unit.held[target] = wanted.copy()
        slots.append(target)
    unit.slots = slots


def _generation(
    unit: _Unit, result: Finished, sampler_logprobs: list[float] | None, raw_text: str, text: str
) -> Generation:
    prompt, strategy = unit.job.prompt, unit.job.strategy
    return Generation(
        prompt_id=prompt.id,
        prompt=prompt.prompt or "",
        instruction=prompt.instruction,
        input=prompt.input,
        strategy=strategy.name,
        params=strategy.params,
        temperature=strategy.temperature if isinstance(strategy, Sampler) else None,
        sample=unit.job.sample,
        text=text,
        raw_text=raw_text,
        token_ids=tuple(result.ids),
        logprobs=tuple(result.logprobs),
        sampler_logprobs=None if sampler_logprobs is None else tuple(sampler_logprobs),
        mean_logprob=sum(result.logprobs) / len(result.logprobs),
        n_tokens=len(result.ids),
        stop_reason=result.stop_reason,
        score=result.score,
        seed=unit.seed,
    )


def _wants_hidden(unit: _Unit) -> bool:
    return unit.search is not None and unit.search.needs_hidden


def _as_prompts(prompts: Sequence[str | Prompt]) -> list[Prompt]:
    """Records for plain strings too, named after their text so that their order does not matter."""
    seen: Counter[str] = Counter()
    records = []
    for prompt in prompts:
        if isinstance(prompt, Prompt):
            records.append(prompt)
            continue
        seen[prompt] += 1
        name = hashlib.blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
        records.append(Prompt(id=f"{name}-{seen[prompt]}", instruction=prompt, prompt=prompt))
    return records


def _require_room(prompt_id: str, ids: Sequence[int], max_new_tokens: int, context_length: int | None) -> None:
    if not ids:
        raise DataError(f"prompt '{prompt_id}' is empty; give it at least one token")
    if context_length is not None and len(ids) + max_new_tokens > context_length:
        raise DataError(
            f"prompt '{prompt_id}' has {len(ids)} tokens, which with max_new_tokens = {max_new_tokens} exceeds the "
            f"model's context of {context_length}; shorten the prompt or lower max_new_tokens"
        )


def _choose_backend(lm: LanguageModel, path: str | None) -> type[FusedBackend] | type[GenericBackend]:
    if path not in (None, "fused", "generic"):
        raise ConfigError(f"engine path '{path}' is unknown; choose fused or generic")
    if path == "fused" and not supports(lm):
        raise ConfigError(f"model '{lm.spec}' has no fused path (Llama on CPU in fp32 or bf16 has); choose generic")
    return FusedBackend if path == "fused" or (path is None and supports(lm)) else GenericBackend


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
