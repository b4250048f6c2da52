"""A batch that goes on as long as anybody wants something of it: prompts come and go while it steps.

For a page that shows completions while they grow. Several users' rows take their steps together, as those of a study
do, and what one of them gets does not depend on the others. Not here: threads, and who is told what
(`triptych.explorer`).
"""

from collections.abc import Sequence
from typing import final

from triptych.decoding.batch import Batch, EngineStats, Job, PromptEntry
from triptych.decoding.engine import choose_backend, prompt_entry
from triptych.decoding.stopping import Stopping, StopRules
from triptych.decoding.watching import Watcher
from triptych.errors import ConfigError, DataError
from triptych.models import LanguageModel


@final
class LiveEngine:
    """One model with rows for everybody. Used by one thread at a time.

    Args:
        lm: the model.
        slots: rows that can grow at once; further ones wait.
        max_new_tokens: the longest completion that can be asked for.
        prompt_tokens: of all prompts that are being continued, together.
    """

    def __init__(self, lm: LanguageModel, *, slots: int, max_new_tokens: int, prompt_tokens: int) -> None:
        self._lm, self._slots, self._prompt_tokens = lm, slots, prompt_tokens
        self.max_new_tokens = max_new_tokens
        self._rules = StopRules(Stopping(), lm.tokenizer, lm.eos_ids, max_new_tokens)
        self._batch = self._empty_batch()

    @property
    def is_busy(self) -> bool:
        """Whether there is anything left to do."""
        return self._batch.is_busy

    def start(self, jobs: Sequence[Job], watchers: Sequence[Watcher], *, seed: int, max_new_tokens: int) -> PromptEntry:
        """Queues the jobs of one prompt; each is told to its watcher while `advance` is called.

        Raises `ConfigError` or `DataError` for what does not fit, before anything is queued.
        """
        if not 1 <= max_new_tokens <= self.max_new_tokens:
            raise ConfigError(f"max_new_tokens is {max_new_tokens}; it must be 1 to {self.max_new_tokens}")
        entry = prompt_entry(self._lm, jobs, seed, self._rules.limited(max_new_tokens), watchers)
        if len(entry.ids) > self._prompt_tokens:
            raise DataError(f"the prompt has {len(entry.ids)} tokens; here it may have {self._prompt_tokens}")
        if (widest := max(unit.width for unit in entry.units)) > self._slots:
            raise ConfigError(f"a search {widest} rows wide is wider than the {self._slots} rows here; choose less")
        self._batch.add(entry)
        return entry

    def stop(self, entry: PromptEntry) -> None:
        """Forgets what is left to do of an entry; again, or after its end, is fine."""
        self._batch.drop(entry)

    def advance(self) -> None:
        """One token for every row. After an error everything under way is lost, and the engine is as new."""
        try:
            self._batch.advance()
        except BaseException:
            self._batch = self._empty_batch()
            raise

    def _empty_batch(self) -> Batch:
        backend = choose_backend(self._lm, None)(
            self._lm,
            slots=self._slots,
            max_new_tokens=self.max_new_tokens,
            prefix_tokens=self._prompt_tokens,
        )
        return Batch(backend, EngineStats(path=backend.path, dtype=str(self._lm.dtype)))
