"""Completions that are shown while they grow: every model of a page behind one thread.

That thread alone touches tokenizers and engines; requests leave calls for it and get events back. Rows of several users
take their steps together. A session that is closed frees its rows before the next step. Not here: HTTP, and which
models there are (`playground`), what an event looks like (`events`).
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple, final

from triptych.data.templates import render_prompt
from triptych.decoding import STRATEGIES, Job, Strategy
from triptych.decoding.batch import PromptEntry
from triptych.decoding.live import LiveEngine
from triptych.decoding.pieces import token_pieces
from triptych.decoding.search import SEARCHES
from triptych.errors import TriptychError, WorkError
from triptych.explorer.events import Event, Painter
from triptych.models import LanguageModel
from triptych.records import Prompt
from triptych.reports.safe_text import neutralise

PROMPT_ID = "playground"
"""Part of what a draw depends on."""
SLOTS = 32
MAX_NEW_TOKENS = 512
PROMPT_TOKENS = 8192

logger = logging.getLogger(__name__)


class Served(NamedTuple):
    """A model that is ready."""

    lm: LanguageModel
    engine: LiveEngine
    pieces: Mapping[int, str]


class Asked(NamedTuple):
    """What one model is to do for a session."""

    model: str
    prompt: str
    template: str
    strategies: Sequence[Strategy]


@final
class Session:
    """One request on its way: events come out, and closing it frees the engine."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._started = time.monotonic()
        self._first_token: float | None = None
        self._tokens = 0
        self.open_streams = 0
        self.entries: list[tuple[LiveEngine, PromptEntry]] = []

    def emit(self, event: Event) -> None:
        """Hands an event to the reader; from any thread, and for nothing where nobody listens any more."""
        if event["type"] in ("token", "beams"):
            self._tokens += 1
            self._first_token = self._first_token or time.monotonic() - self._started
        self._put(event)
        if event["type"] == "end":
            self.open_streams -= 1
            if not self.open_streams:
                self.finish()

    def finish(self, error: str | None = None) -> None:
        """The last event: what it took, or what went wrong."""
        if error is not None:
            self._put({"type": "error", "message": error})
        else:
            seconds = round(time.monotonic() - self._started, 4)
            first = None if self._first_token is None else round(self._first_token, 4)
            self._put({"type": "done", "seconds": seconds, "tokens": self._tokens, "first_token_seconds": first})
        self._put(None)

    async def events(self) -> AsyncIterator[Event]:
        """Every event in order, until the last."""
        while (event := await self._events.get()) is not None:
            yield event

    def _put(self, event: Event | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


@final
class Streams:
    """The models by name, loaded one after the other in the background, and the thread that steps them."""

    def __init__(self, loaders: Mapping[str, Callable[[], LanguageModel]]) -> None:
        self._loaders = dict(loaders)
        self._served: dict[str, Served] = {}
        self.failures: dict[str, str] = {}
        """Model → why it could not be loaded."""
        self._sessions: set[Session] = set()
        self._calls: list[Callable[[], None]] = []
        self._wake = threading.Condition()
        self._closing = False
        self._threads = [
            threading.Thread(target=self._load_all, name="triptych-load", daemon=True),
            threading.Thread(target=self._work, name="triptych-engine", daemon=True),
        ]

    @property
    def names(self) -> list[str]:
        return list(self._loaders)

    @property
    def served(self) -> list[Served]:
        """Those that are ready."""
        return list(self._served.values())

    @property
    def n_sessions(self) -> int:
        """Requests under way."""
        return len(self._sessions)

    @property
    def n_busy(self) -> int:
        """Models that have something to do."""
        return len(self._busy())

    def is_ready(self, name: str) -> bool:
        return name in self._served

    def start(self) -> None:
        """Starts loading and stepping."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Ends every session and the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._threads[1].join()

    async def open(self, wanted: Sequence[Asked], *, sample: int, seed: int, max_new_tokens: int) -> Session:
        """Starts a session; its first event names the streams.

        Raises an `InputError` for what does not fit a model, and `WorkError` where a model could not be loaded.
        """
        session = Session(asyncio.get_running_loop())
        begin = partial(self._begin, session, wanted, sample, seed, max_new_tokens)
        await asyncio.wrap_future(self._call(begin))
        return session

    def close_session(self, session: Session) -> None:
        """Frees the rows of a session; again, or after its end, is fine."""
        self._call(partial(self._stop, session))

    # --- the engine's thread ------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._wake:
                while not (self._closing or self._calls or self._busy()):
                    self._wake.wait()
                calls, self._calls = self._calls, []
                is_closing = self._closing
            for call in calls:
                call()
            if is_closing:
                break
            for name, served in self._busy():
                try:
                    served.engine.advance()
                except Exception as error:  # noqa: BLE001 - one user's trouble must not end everybody's page
                    self._fail(name, served, error)
        for session in list(self._sessions):
            self._stop(session)
            session.finish("the server is closing")

    def _busy(self) -> list[tuple[str, Served]]:
        return [(name, served) for name, served in self._served.items() if served.engine.is_busy]

    def _begin(self, session: Session, wanted: Sequence[Asked], sample: int, seed: int, max_new_tokens: int) -> None:
        self._sessions.add(session)
        streams: list[Event] = []
        try:
            for asked in wanted:
                served = self._served[asked.model]
                text = render_prompt(
                    Prompt(id=PROMPT_ID, instruction=asked.prompt), asked.template, served.lm.tokenizer
                )
                prompt = Prompt(id=PROMPT_ID, instruction=asked.prompt, prompt=text)
                jobs = [Job(prompt, strategy, sample) for strategy in asked.strategies]
                numbers = range(len(streams), len(streams) + len(jobs))
                watchers = [Painter(session.emit, number, served.pieces) for number in numbers]
                streams += [
                    describe(number, asked.model, job.strategy) for number, job in zip(numbers, jobs, strict=True)
                ]
                entry = served.engine.start(jobs, watchers, seed=seed, max_new_tokens=max_new_tokens)
                session.entries.append((served.engine, entry))
        except BaseException:
            self._stop(session)
            raise
        session.open_streams = len(streams)
        session.emit({"type": "start", "streams": streams})

    def _stop(self, session: Session) -> None:
        for engine, entry in session.entries:
            engine.stop(entry)
        self._sessions.discard(session)

    def _fail(self, name: str, served: Served, error: Exception) -> None:
        """The engine has lost all it had: whoever waited for it is told."""
        logger.error("the engine of %s failed: %s: %s", name, type(error).__name__, error)
        for session in list(self._sessions):
            if any(engine is served.engine for engine, _ in session.entries):
                self._stop(session)
                session.finish(f"generating with {name} failed ({type(error).__name__}); try again")

    def _call(self, work: Callable[[], None]) -> "Future[None]":
        """Has the engine's thread do something before its next step."""
        future: Future[None] = Future()

        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - for whoever waits for it
                future.set_exception(error)
            else:
                future.set_result(None)

        with self._wake:
            if self._closing:
                future.set_exception(WorkError("the server is closing; start it again"))
                return future
            self._calls.append(run)
            self._wake.notify_all()
        return future

    # --- loading ------------------------------------------------------------------------------------------------------

    def _load_all(self) -> None:
        for name, load in self._loaders.items():
            if self._closing:
                return
            try:
                served = serve(load())
            except Exception as error:  # noqa: BLE001 - the page says so; other models may be fine
                self.failures[name] = str(error) if isinstance(error, TriptychError) else f"{type(error).__name__}"
                logger.warning("%s cannot be played with: %s", name, self.failures[name])
                continue
            with self._wake:
                self._served[name] = served


def serve(lm: LanguageModel) -> Served:
    """A model with its engine, and the text of every token."""
    engine = LiveEngine(lm, slots=SLOTS, max_new_tokens=_longest(lm), prompt_tokens=PROMPT_TOKENS)
    pieces = token_pieces(lm.tokenizer, range(len(lm.tokenizer)))
    _warm_up(engine, pieces)
    return Served(lm, engine, pieces)


def _warm_up(engine: LiveEngine, pieces: Mapping[int, str]) -> None:
    """Takes a step of every kind, which loads its kernels: nobody waits for it yet."""
    strategies: list[Strategy] = [kind() for kind in STRATEGIES.values()]
    prompt = Prompt(id=PROMPT_ID, instruction="", prompt="Hello")
    watchers = [Painter(lambda event: None, number, pieces) for number in range(len(strategies))]
    jobs = [Job(prompt, strategy, 0) for strategy in strategies]
    engine.start(jobs, watchers, seed=0, max_new_tokens=min(2, engine.max_new_tokens))
    while engine.is_busy:
        engine.advance()


def describe(number: int, model: str, strategy: Strategy) -> dict[str, Any]:
    """A stream as the first event names it."""
    return {
        "stream": number,
        "model": neutralise(model),
        "strategy": strategy.name,
        "label": strategy.label,
        "is_search": strategy.name in SEARCHES,
    }


def _longest(lm: LanguageModel) -> int:
    """A small context must leave room for a prompt."""
    return MAX_NEW_TOKENS if lm.context_length is None else max(1, min(MAX_NEW_TOKENS, lm.context_length // 2))
