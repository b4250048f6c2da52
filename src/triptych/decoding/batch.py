"""The live batch: rows of all prompts and strategies on one backend, stepped together and refilled as they end.

What is decoded, and with how many rows, is the engine's business; how one token is chosen is that of `sampling` and
`search`.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from triptych.decoding.backends import Backend, Prefix
from triptych.decoding.head import HeadSource, read_heads
from triptych.decoding.sampling import draw
from triptych.decoding.search import SEARCHES, Finished, Predictions, Search, make_search
from triptych.decoding.stopping import Monitor, StopRules
from triptych.decoding.strategies import Sampler, Strategy
from triptych.decoding.watching import Watcher, glance
from triptych.records import FinalBeam, Generation, Prompt
from triptych.seeding import uniforms

OnBeams: TypeAlias = Callable[[list[FinalBeam]], None]
"""Told of all final beams of a search, the best first, just before its completion is handed out."""


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


@dataclass(eq=False)
class Unit:
    """A job on its way: the rows it feeds next, and what it has produced."""

    job: Job
    key: int
    seed: int
    rules: StopRules
    watcher: Watcher | None = None
    """Who is told of every step, for those that show a completion while it grows."""
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

    def restart(self) -> "Unit":
        return Unit(self.job, self.key, self.seed, self.rules, self.watcher)


@dataclass(eq=False)
class PromptEntry:
    """A prompt with the jobs that continue it."""

    ids: list[int]
    units: list[Unit]


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


class Batch:
    """One backend and the rows that live on it.

    With `on_beams` beam searches go on until all their final beams are settled; their completions are the same.
    """

    def __init__(
        self,
        backend: Backend,
        stats: EngineStats,
        queue: Sequence[PromptEntry] = (),
        on_beams: OnBeams | None = None,
    ) -> None:
        self._backend = backend
        self._on_beams = on_beams
        self._stats = stats
        self._queue = deque(queue)
        self._ready: deque[tuple[Unit, _Active]] = deque()
        self._live: dict[Unit, _Active] = {}
        # What follows a live unit's text: its search, or else a monitor of its one row.
        self._searches: dict[Unit, Search] = {}
        self._monitors: dict[Unit, Monitor] = {}
        self._free = list(range(backend.slots))[::-1]
        self._finished: list[Generation] = []

    def run(self) -> Iterator[Generation]:
        """Steps until every job is finished."""
        while self.is_busy:
            yield from self.advance()

    @property
    def is_busy(self) -> bool:
        return bool(self._queue or self._ready or self._live)

    def advance(self) -> list[Generation]:
        """One step of all rows, after those that wait were let in; the completions that ended with it."""
        started = time.perf_counter()
        self._admit()
        if self._live:
            self._step()
        self._stats.seconds += time.perf_counter() - started
        return self.finished()

    def add(self, entry: PromptEntry) -> None:
        """Puts a prompt at the end of the queue, also while others are under way."""
        self._queue.append(entry)

    def drop(self, entry: PromptEntry) -> None:
        """Forgets what is left to do of a prompt; its rows are free at once."""
        if entry in self._queue:
            self._queue.remove(entry)
            return
        units = set(entry.units)
        for unit, active in [pair for pair in self._ready if pair[0] in units]:
            self._ready.remove((unit, active))
            self._close(active)
        for unit in units & self._live.keys():
            self._searches.pop(unit, None)
            self._monitors.pop(unit, None)
            self._leave(unit)

    def finished(self) -> list[Generation]:
        """What is finished and was not handed out yet; a step that failed half-way may have left some."""
        finished, self._finished = self._finished, []
        return finished

    def unfinished(self) -> list[PromptEntry]:
        """What is left to do, from the beginning of each completion."""
        entries: dict[_Active, list[Unit]] = {}
        for unit, active in [*self._live.items(), *self._ready]:
            entries.setdefault(active, []).append(unit.restart())
        started = [PromptEntry(active.ids, units) for active, units in entries.items()]
        return [*started, *self._queue]

    def _admit(self) -> None:
        """Fills free slots from the queue; a new row's first token comes from its prompt's prediction."""
        self._read_prompts()
        units: list[Unit] = []
        actives: list[_Active] = []
        while self._ready and self._ready[0][0].width <= len(self._free):
            unit, active = self._ready.popleft()
            unit.reserved = [self._free.pop() for _ in range(unit.width)]
            for slot in unit.reserved:
                self._backend.admit(active.prefix, slot)
            if unit.job.strategy.name in SEARCHES:
                self._searches[unit] = make_search(unit.job.strategy, unit.rules, keep_beams=self._on_beams is not None)
                unit.held = {slot: [] for slot in unit.reserved}
            else:
                self._monitors[unit] = Monitor(unit.rules)
            unit.slots = unit.reserved[:1]
            self._live[unit] = active
            units.append(unit)
            actives.append(active)
        if not units:
            return
        logits = torch.stack([active.prefix.logits for active in actives])
        hidden = [active.prefix.hidden for active in actives]
        self._choose(units, logits, hidden)

    def _read_prompts(self) -> None:
        """Reads so many prompts that the free slots are taken, once enough slots are free to be worth a prefill."""
        waiting = sum(unit.width for unit, _ in self._ready)
        room = len(self._free) - waiting
        if room < max(1, self._backend.slots // 8) and (self._live or self._ready):
            return
        chosen: list[PromptEntry] = []
        tokens = 0
        for entry in self._queue:
            if room <= 0 or not self._backend.room_for(tokens + len(entry.ids)):
                break
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
            # Not before: a prefill that fails must leave its prompts in the queue.
            self._queue.popleft()
            active = _Active(entry.ids, prefix, len(entry.units))
            self._ready.extend((unit, active) for unit in entry.units)

    def _step(self) -> None:
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
            search = self._searches.get(unit)
            if search is not None:
                for slot, token in zip(unit.slots, unit.tokens, strict=True):
                    unit.held[slot].append(token)
            wanted = search is not None and search.needs_hidden
            hidden.append(output.hidden[row : row + len(unit.slots)] if wanted else None)
            row += len(unit.slots)
        self._choose(units, output.logits, hidden)

    def _choose(self, units: list[Unit], logits: Tensor, hidden: Sequence[Tensor | None]) -> None:
        """Lets every unit react to its rows of `logits`."""
        temperatures = torch.tensor([unit.temperature for unit in units for _ in unit.slots], dtype=torch.float32)
        source = read_heads(logits, temperatures.to(logits.device))
        first_rows = np.cumsum([0, *(len(unit.slots) for unit in units)])
        by_strategy: dict[str, list[int]] = {}
        for i, unit in enumerate(units):
            by_strategy.setdefault(unit.job.strategy.name, []).append(i)
        copies = _Copies([], [], [])
        for name, members in by_strategy.items():
            rows = [int(first_rows[i]) for i in members]
            if name in SEARCHES:
                self._search([units[i] for i in members], rows, source, [hidden[i] for i in members], copies)
            else:
                self._sample([units[i] for i in members], rows, source)
        self._backend.copy(*(np.array(column, np.int64) for column in copies))

    def _sample(self, units: list[Unit], rows: list[int], source: HeadSource) -> None:
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
        for row, unit, token, logprob, sampler_logprob in zip(rows, units, *columns, strict=True):
            if unit.watcher is not None:
                unit.watcher.chose(token, logprob, sampler_logprob, glance(source, row, unit.job.strategy))
            unit.logprobs.append(logprob)
            unit.sampler_logprobs.append(sampler_logprob)
            unit.tokens = [token]
            if reason := self._monitors[unit].push(token):
                result = Finished(self._monitors.pop(unit).ids, unit.logprobs, reason, None)
                self._finish(unit, result, unit.sampler_logprobs)

    def _search(
        self,
        units: list[Unit],
        rows: list[int],
        source: HeadSource,
        hidden: Sequence[Tensor | None],
        copies: _Copies,
    ) -> None:
        """Lets searches of one kind move on, and notes the cache copies that their new rows need."""
        counts = [len(unit.slots) for unit in units]
        wanted = max(self._searches[unit].head for unit in units)
        at = torch.tensor([row + j for row, count in zip(rows, counts, strict=True) for j in range(count)])
        head = source.take(at.to(source.device), wanted)
        ids = head.ids.cpu().numpy()
        logprobs = (head.logits - head.log_normaliser[:, None]).float().cpu().numpy()
        row = 0
        for unit, count, states in zip(units, counts, hidden, strict=True):
            search = self._searches[unit]
            own = (slice(row, row + count), slice(0, search.head))
            row += count
            array = None if states is None else states.float().cpu().numpy()
            predictions = Predictions(ids[own], logprobs[own], array)
            move = search.advance(predictions)
            if unit.watcher is not None:
                unit.watcher.moved(predictions, move)
            if move.finished:
                del self._searches[unit]
                if self._on_beams is not None and (beams := _final_beams(unit, move.finished)):
                    self._on_beams(beams)
                self._finish(unit, move.finished[0], None)
            else:
                _assign_slots(unit, move.parents, copies)
                unit.tokens = move.tokens

    def _finish(self, unit: Unit, result: Finished, sampler_logprobs: list[float] | None) -> None:
        done = _generation(unit, result, sampler_logprobs, *unit.rules.texts(result.ids))
        self._finished.append(done)
        self._leave(unit)
        self._stats.rows += 1
        self._stats.tokens += len(result.ids)
        if unit.watcher is not None:
            unit.watcher.ended(done)

    def _leave(self, unit: Unit) -> None:
        """Frees the rows of a unit."""
        active = self._live.pop(unit)
        self._free += unit.reserved
        self._close(active)

    def _close(self, active: _Active) -> None:
        """One unit fewer continues the prompt; after the last one its cache is forgotten."""
        active.open_units -= 1
        if not active.open_units:
            self._backend.release(active.prefix)


def _assign_slots(unit: Unit, parents: Sequence[int], copies: _Copies) -> None:
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


def _final_beams(unit: Unit, finished: Sequence[Finished]) -> list[FinalBeam]:
    """The final beams of a search; none where its candidates have no scores. Beams of probability 0 are left out."""
    return [
        FinalBeam(
            prompt_id=unit.job.prompt.id,
            strategy=unit.job.strategy.name,
            params=unit.job.strategy.params,
            rank=rank,
            score=beam.score,
            mean_logprob=sum(beam.logprobs) / len(beam.logprobs),
            n_tokens=len(beam.ids),
            stop_reason=beam.stop_reason,
            token_ids=tuple(beam.ids),
            logprobs=tuple(beam.logprobs),
            text=unit.rules.texts(beam.ids)[1],
        )
        for rank, beam in enumerate(finished, start=1)
        if beam.score is not None and math.isfinite(beam.score)
    ]


def _generation(
    unit: Unit, result: Finished, sampler_logprobs: list[float] | None, raw_text: str, text: str
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
