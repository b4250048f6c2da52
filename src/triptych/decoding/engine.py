"""The engine: one continuously refilled batch for all prompts, strategies, temperatures and samples of a run.

Each prompt is read once; its cache is shared by every completion of it. All live rows, whatever their strategy, take
each step together; a row that ends leaves its slot to the next completion in the queue. A completion depends on the
model, its prompt, its strategy, its sample number and the seed, and on nothing else: not on its neighbours, the order
of the jobs or the size of the batch.

Here is what users call, and how many rows there are; the schedule is in `batch`, how tokens are chosen in `sampling`
and `search`, how a model is run in `backends`.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import psutil
import torch
from pydantic import BaseModel, ConfigDict, Field

from triptych.data import encode_prompt
from triptych.decoding.backends import Backend, FusedBackend, GenericBackend, require_cache
from triptych.decoding.backends.fused import supports
from triptych.decoding.batch import Batch, EngineStats, Job, OnBeams, PromptEntry, Unit
from triptych.decoding.stopping import Stopping, StopRules
from triptych.decoding.strategies import Sampler, Strategy
from triptych.decoding.watching import Watcher
from triptych.errors import ConfigError, DataError, WorkError
from triptych.models import LanguageModel
from triptych.records import Generation, Prompt
from triptych.seeding import stream_key


class Limits(BaseModel):
    """What the engine may use at once; None chooses by device and free memory."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    max_rows: int | None = Field(default=None, ge=1)
    kv_bytes: int | None = Field(default=None, ge=1)
    """Of the rows' own caches; prompts come on top."""


class Engine:
    """Decodes jobs on one model.

    Args:
        lm: the model.
        max_new_tokens: longest completion.
        seed: of all sampling.
        stopping: rules that end a completion.
        limits: rows and memory.
        path: `fused` or `generic`; None takes the fused path where the model has one.
        on_beams: told of all final beams of every beam search, which then steps until they are settled.
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
        on_beams: OnBeams | None = None,
    ) -> None:
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
        require_cache(lm)
        self._lm = lm
        self._seed = seed
        self._limits = limits or Limits()
        self._on_beams = on_beams
        self._rules = StopRules(stopping or Stopping(), lm.tokenizer, lm.eos_ids, max_new_tokens)
        self._backend_type = choose_backend(lm, path)
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
            batch: Batch | None = None
            try:
                batch = Batch(self._make_backend(slots, queue), self.stats, queue, self._on_beams)
                yield from batch.run()
                return
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                if batch is not None:
                    yield from batch.finished()
                    # Unfinished completions start again and come out the same: their noise hangs on no state.
                    queue = batch.unfinished()
                if slots <= widest:
                    raise WorkError(
                        f"out of memory with {slots} row(s) of {self._rules.max_new_tokens} tokens; "
                        "free memory, or decode with a smaller max_new_tokens"
                    ) from error
                slots = max(widest, slots // 2)
                self.stats.restarts += 1
                del batch

    def _prompt_queue(self, jobs: Iterable[Job]) -> list[PromptEntry]:
        groups = groupby(jobs, key=lambda job: (job.prompt.id, job.prompt.prompt))
        return [prompt_entry(self._lm, list(group), self._seed, self._rules) for _, group in groups]

    def _slots(self) -> int:
        """Rows by default: enough to keep the matrix units busy, within a share of the free memory."""
        on_gpu = self._lm.device.type == "cuda"
        rows = self._limits.max_rows or (1024 if on_gpu else 256)
        budget = self._limits.kv_bytes or int(0.35 * _free_memory(self._lm.device))
        per_row = FusedBackend.bytes_per_token(self._lm) * self._rules.max_new_tokens
        return max(1, min(rows, budget // per_row))

    def _make_backend(self, slots: int, queue: list[PromptEntry]) -> Backend:
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
    _require_one_text_each(records)
    jobs = [
        Job(prompt, strategy, sample)
        for prompt in records
        for strategy in strategies
        for sample in range(samples if isinstance(strategy, Sampler) else 1)
    ]
    engine = Engine(lm, max_new_tokens=max_new_tokens, seed=seed, stopping=stopping, limits=limits, path=path)
    done = {(one.prompt_id, one.strategy, one.params, one.sample): one for one in engine.run(jobs)}
    return [done[job.prompt.id, job.strategy.name, job.strategy.params, job.sample] for job in jobs]


def prompt_entry(
    lm: LanguageModel, jobs: Sequence[Job], seed: int, rules: StopRules, watchers: Sequence[Watcher] = ()
) -> PromptEntry:
    """Jobs of one prompt as a batch takes them, with who watches each of them.

    Raises `DataError` for a prompt that leaves no room for the completion, `ConfigError` for one that is not rendered.
    """
    prompt = jobs[0].prompt
    if prompt.prompt is None:
        raise ConfigError(f"prompt '{prompt.id}' is not rendered; set its text with `render_prompt`")
    ids = encode_prompt(prompt.prompt, lm.tokenizer)
    _require_room(prompt.id, ids, rules.max_new_tokens, lm.context_length)
    units = []
    for job, watcher in zip(jobs, watchers or (None,) * len(jobs), strict=True):
        strategy = job.strategy
        key = stream_key(seed, prompt.id, prompt.prompt, strategy.name, strategy.params, job.sample)
        units.append(Unit(job, key, seed, rules, watcher))
    return PromptEntry(ids, units)


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


def _require_one_text_each(prompts: Sequence[Prompt]) -> None:
    texts: dict[str, str | None] = {}
    for prompt in prompts:
        if texts.setdefault(prompt.id, prompt.prompt) != prompt.prompt:
            raise DataError(f"prompt '{prompt.id}' stands for two different texts; give each an id of its own")


def _require_room(prompt_id: str, ids: Sequence[int], max_new_tokens: int, context_length: int | None) -> None:
    if not ids:
        raise DataError(f"prompt '{prompt_id}' is empty; give it at least one token")
    if context_length is not None and len(ids) + max_new_tokens > context_length:
        raise DataError(
            f"prompt '{prompt_id}' has {len(ids)} tokens, which with max_new_tokens = {max_new_tokens} exceeds the "
            f"model's context of {context_length}; shorten the prompt or lower max_new_tokens"
        )


def choose_backend(lm: LanguageModel, path: str | None) -> type[FusedBackend] | type[GenericBackend]:
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
