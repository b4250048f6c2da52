"""The playground: one prompt, several models and strategies beside each other, tokens streamed as they come.

The models are those of the run: its base, the policies it trained and the adapters it audited. The same prompt, model,
strategy, seed and sample give the same text, whoever else is generating. Not here: the engine's thread (`streams`), and
what is told of a step (`events`).
"""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from triptych.auditing.checkpoints import Checkpoint, find_checkpoints, load_checkpoint
from triptych.auditing.records import BASE
from triptych.data.prompts import load_prompts
from triptych.decoding import STRATEGIES, Strategy
from triptych.decoding.plan import expand
from triptych.explorer.events import Event
from triptych.explorer.streams import MAX_NEW_TOKENS, Asked, Session, Streams
from triptych.models import LanguageModel, load_language_model
from triptych.models.sources import ADAPTER_WEIGHTS, resolve_source
from triptych.reports.safe_text import neutralise
from triptych.runs import read_manifest

MAX_PROMPT = 8000
MAX_STREAMS = 24
MAX_SESSIONS = 8
TITLES = {BASE: "base", "dpo": "DPO", "grpo": "GRPO"}
Template = Literal["chat", "paper", "alpaca", "plain"]
TEMPLATES: dict[Template, str] = {
    "chat": "the model’s own chat template",
    "paper": "as in the paper: Alpaca, then “Answer:”",
    "alpaca": "Alpaca",
    "plain": "the text as it stands",
}


class Parameter(BaseModel):
    """One number of a strategy, with the range in which it is accepted."""

    name: str
    type: Literal["int", "float"]
    default: float
    low: float | None
    high: float | None


class StrategyInfo(BaseModel):
    """A strategy that can be asked for."""

    name: str
    spec: str
    """With its defaults."""
    about: str
    parameters: list[Parameter]


class ModelInfo(BaseModel):
    """A model of the run."""

    name: str
    title: str
    ready: bool
    problem: str | None
    """Why it cannot be loaded."""


class LimitsInfo(BaseModel):
    """What one request may ask for."""

    max_new_tokens: int
    max_streams: int
    max_prompt_chars: int


class TemplateInfo(BaseModel):
    """A way to put a prompt to a model."""

    name: Template
    title: str


class PlaygroundInfo(BaseModel):
    """Everything that a form needs."""

    available: bool
    reason: str | None
    models: list[ModelInfo]
    strategies: list[StrategyInfo]
    limits: LimitsInfo
    templates: list[TemplateInfo]
    examples: list[str]


class GenerateRequest(BaseModel):
    """What to generate."""

    model_config = ConfigDict(extra="forbid", strict=True)
    prompt: str = Field(min_length=1, max_length=MAX_PROMPT)
    template: Template = "chat"
    models: list[Annotated[str, Field(max_length=200)]] = Field(min_length=1, max_length=MAX_STREAMS)
    strategies: list[Annotated[str, Field(max_length=200)]] = Field(min_length=1, max_length=MAX_STREAMS)
    """SPECs, as on the command line."""
    max_new_tokens: int = Field(default=128, ge=1, le=MAX_NEW_TOKENS)
    seed: int = Field(default=0, ge=0, lt=2**63)
    sample: int = Field(default=0, ge=0, lt=2**31)


class Playground:
    """The models of a run, ready to be asked. `start` it before use and `close` it after."""

    def __init__(self, loaders: Mapping[str, Callable[[], LanguageModel]], examples: list[str]) -> None:
        self.streams = Streams(loaders)
        self.examples = examples

    @classmethod
    def of_run(cls, run_dir: Path, *, device: str = "auto") -> "Playground":
        """The base of a run and its checkpoints, none of them loaded yet.

        Raises an `InputError` where the base cannot be found.
        """
        config = read_manifest(run_dir).config
        spec = str(config.get("model") or "starter")
        source = resolve_source(spec)
        shared: list[LanguageModel] = []

        def base() -> LanguageModel:
            if not shared:
                shared.append(load_language_model(spec, dtype=str(config.get("dtype") or "auto"), device=device))
            return shared[0]

        loaders: dict[str, Callable[[], LanguageModel]] = {}
        for checkpoint in find_checkpoints(source, adapters_of(run_dir, config)):
            loaders[checkpoint.name] = partial(_load, checkpoint, base, device)
        return cls(loaders, [prompt.instruction for prompt in load_prompts("starter", limit=6)])

    def start(self) -> None:
        self.streams.start()

    def close(self) -> None:
        self.streams.close()

    async def open(self, request: GenerateRequest) -> Session:
        """A session that is under way. Raises `HTTPException` or an `InputError` for what cannot be done."""
        strategies = expand(request.strategies)
        if len(strategies) * len(request.models) > MAX_STREAMS:
            asked = f"{len(request.models)} models with {len(strategies)} strategies each"
            raise HTTPException(422, f"{asked} are more than {MAX_STREAMS} texts at once; choose fewer")
        if self.streams.n_sessions >= MAX_SESSIONS:
            raise HTTPException(429, f"{MAX_SESSIONS} requests are being answered; try again when one is done")
        names = dict.fromkeys(self._named(shown) for shown in request.models)
        asked_of = [Asked(name, request.prompt, request.template, strategies) for name in names]
        return await self.streams.open(
            asked_of, sample=request.sample, seed=request.seed, max_new_tokens=request.max_new_tokens
        )

    @property
    def max_new_tokens(self) -> int:
        """The most that every model can be asked for."""
        return min([MAX_NEW_TOKENS, *(served.engine.max_new_tokens for served in self.streams.served)])

    def _named(self, shown: str) -> str:
        """The model of a name as the page shows it. Raises `HTTPException` where it cannot be asked."""
        name = next((name for name in self.streams.names if neutralise(name) == shown), None)
        if name is None:
            raise HTTPException(404, f"the run has no model '{neutralise(shown)}'")
        if (problem := self.streams.failures.get(name)) is not None:
            raise HTTPException(409, f"{neutralise(name)} could not be loaded: {neutralise(problem)}")
        if not self.streams.is_ready(name):
            raise HTTPException(409, f"{neutralise(name)} is still being loaded; try again in some seconds")
        return name


def adapters_of(run_dir: Path, config: Mapping[str, Any]) -> dict[str, Path]:
    """Name → folder of the policies that a run trained and the checkpoints that it audited, where they still are."""
    own = {name: run_dir / "alignment" / name for name in ("dpo", "grpo")}
    audited = (config.get("auditing") or {}).get("adapters") or {}
    found = {**own, **{str(name): Path(str(folder)).expanduser() for name, folder in audited.items()}}
    return {name: folder for name, folder in found.items() if (folder / ADAPTER_WEIGHTS).is_file() or name not in own}


def playground_router(playground: Playground | None, reason: str = "") -> APIRouter:
    """The playground's part of the page; `reason` says why there is none."""
    router = APIRouter(prefix="/api/playground", tags=["playground"])

    @router.get("")
    async def info() -> PlaygroundInfo:
        """What can be asked for."""
        return _info(playground, reason)

    @router.post("/generate", response_class=StreamingResponse, responses={200: {"content": {NDJSON: {}}}})
    async def generate(request: GenerateRequest) -> StreamingResponse:
        """Streams events, one line of JSON each; closing the connection frees the engine."""
        if playground is None:
            raise HTTPException(409, reason)
        session = await playground.open(request)
        return StreamingResponse(_lines(playground.streams, session), media_type=NDJSON)

    return router


NDJSON = "application/x-ndjson"


async def _lines(streams: Streams, session: Session) -> AsyncIterator[str]:
    try:
        async for event in session.events():
            yield encode(event)
    finally:
        streams.close_session(session)


def encode(event: Event) -> str:
    """One line of JSON."""
    return json.dumps(event, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def _load(checkpoint: Checkpoint, base: Callable[[], LanguageModel], device: str) -> LanguageModel:
    return load_checkpoint(checkpoint, base(), device=device)


def _info(playground: Playground | None, reason: str) -> PlaygroundInfo:
    streams = None if playground is None else playground.streams
    return PlaygroundInfo(
        available=playground is not None,
        reason=None if playground is not None else reason,
        models=[] if streams is None else [_model_info(streams, name) for name in streams.names],
        strategies=[strategy_info(kind) for kind in STRATEGIES.values()],
        limits=LimitsInfo(
            max_new_tokens=MAX_NEW_TOKENS if playground is None else playground.max_new_tokens,
            max_streams=MAX_STREAMS,
            max_prompt_chars=MAX_PROMPT,
        ),
        templates=[TemplateInfo(name=name, title=TEMPLATES[name]) for name in get_args(Template)],
        examples=[] if playground is None else playground.examples,
    )


def _model_info(streams: Streams, name: str) -> ModelInfo:
    problem = streams.failures.get(name)
    return ModelInfo(
        name=neutralise(name),
        title=neutralise(TITLES.get(name, name)),
        ready=streams.is_ready(name),
        problem=None if problem is None else neutralise(problem),
    )


def strategy_info(kind: type[Strategy]) -> StrategyInfo:
    """A strategy as its configuration declares it."""
    default, fields = kind(), kind.model_json_schema()["properties"]
    return StrategyInfo(
        name=kind.name,
        spec=default.label,
        about=" ".join((kind.__doc__ or "").split()),
        parameters=[_parameter(name, getattr(default, name), schema) for name, schema in fields.items()],
    )


def _parameter(name: str, default: float, schema: Mapping[str, Any]) -> Parameter:
    return Parameter(
        name=name,
        type="int" if schema["type"] == "integer" else "float",
        default=default,
        low=schema.get("minimum", schema.get("exclusiveMinimum")),
        high=schema.get("maximum", schema.get("exclusiveMaximum")),
    )
