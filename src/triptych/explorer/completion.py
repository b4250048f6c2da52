"""One completion in full, with every token's log-probability; two of them beside each other; and their addresses.

Not here: lists (`generations`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi import Query as InQuery
from pydantic import BaseModel

from triptych.errors import DataError, MissingInputError
from triptych.explorer.fresh import Fresh
from triptych.explorer.generations import (
    GenerationFacets,
    GenerationPage,
    GenerationQuery,
    Generations,
)
from triptych.explorer.paging import Query, RowId
from triptych.explorer.segments import Segment, compared
from triptych.explorer.text import Text, finite, name_of, text_of
from triptych.reports.completions import shade_of
from triptych.reports.pieces import join_spans
from triptych.reports.safe_text import neutralise

MAX_TOKENS = 2000
MAX_SIBLINGS = 200
MAX_BEAMS = 20


class TokenSpan(BaseModel):
    """Tokens that together make whole characters: usually one."""

    text: str
    logprobs: list[float | None]
    """Nats; null is minus infinity or not known."""
    sampler_logprobs: list[float | None] | None
    known: bool
    shade: int | None


class RewardOf(BaseModel):
    """What one reward model says."""

    model: str
    score: float | None


class Sibling(BaseModel):
    """Another completion of the same prompt."""

    id: int
    arm: str
    sample: int


class RunnerUp(BaseModel):
    """A final beam that the search did not choose."""

    score: float | None
    stop_reason: str
    n_tokens: int
    text: Text


class GenerationItem(BaseModel):
    """One completion in full."""

    id: int
    prompt_id: str
    category: str
    arm: str
    strategy: str
    params: str
    temperature: float | None
    sample: int
    seed: int | None
    stop_reason: str
    n_tokens: int
    mean_logprob: float | None
    reward: float | None
    rewards: list[RewardOf]
    score: float | None
    """A beam's cumulative log-probability."""
    instruction: Text
    input: Text
    prompt: Text
    text: Text
    raw_text: Text
    spans: list[TokenSpan]
    """None where the run recorded no texts of tokens."""
    tokens_left_out: int
    siblings: list[Sibling]
    runners_up: list[RunnerUp]
    """Of a beam search, the best first."""


class Comparison(BaseModel):
    """Two completions, and the words of each that the other has not."""

    a: GenerationItem
    b: GenerationItem
    marked_a: list[Segment]
    marked_b: list[Segment]


class CompareQuery(Query):
    """Two completions."""

    a: RowId
    b: RowId


def generations_router(source: Fresh[Generations]) -> APIRouter:
    """Addresses of the completions of a run."""
    router = APIRouter(prefix="/api/generations", tags=["generations"])

    @router.get("")
    def list_generations(query: Annotated[GenerationQuery, InQuery()]) -> GenerationPage:
        return source.get().page(query)

    @router.get("/facets")
    def generation_facets() -> GenerationFacets:
        return source.get().facets

    @router.get("/compare")
    def compare_generations(query: Annotated[CompareQuery, InQuery()]) -> Comparison:
        generations = source.get()
        return comparison(generations, query.a, query.b)

    @router.get("/{generation}")
    def one_generation(generation: RowId) -> GenerationItem:
        return item(source.get(), generation)

    return router


def comparison(generations: Generations, a: int, b: int) -> Comparison:
    """Two completions beside each other. Raises MissingInputError for an unknown one."""
    fields = [_fields(generations, row) for row in (a, b)]
    of_a, of_b = (str(of["text"] or "") for of in fields)
    return Comparison(
        a=_item(generations, a, fields[0]),
        b=_item(generations, b, fields[1]),
        marked_a=compared(of_b, of_a),
        marked_b=compared(of_a, of_b),
    )


def item(generations: Generations, row: int) -> GenerationItem:
    """One completion in full. Raises MissingInputError for an unknown one."""
    return _item(generations, row, _fields(generations, row))


def _fields(generations: Generations, row: int) -> dict[str, Any]:
    if row >= generations.rows.n:
        raise MissingInputError(f"no completion {row} in this run, which has {generations.rows.n:,}, counted from 0")
    return generations.full_row(row)


def _item(generations: Generations, row: int, fields: Mapping[str, Any]) -> GenerationItem:
    rewards = [RewardOf(model=name_of(r.model), score=finite(r.score)) for r in generations.rewards[row]]
    texts = {name: text_of(fields[name]) for name in ("instruction", "input", "prompt", "text", "raw_text")}
    return GenerationItem(
        **generations.facts(row),
        **texts,
        params=name_of(fields["params"]),
        seed=fields["seed"],
        score=finite(fields["score"]),
        rewards=rewards,
        spans=spans_of(fields, generations.pieces),
        tokens_left_out=max(0, len(fields["token_ids"]) - MAX_TOKENS),
        siblings=list(siblings_of(generations, row)),
        runners_up=list(_runners_up(generations, fields)),
    )


def _runners_up(generations: Generations, fields: Mapping[str, Any]) -> Iterator[RunnerUp]:
    if fields["score"] is None:
        return
    beams = generations.final_beams(fields["prompt_id"], fields["strategy"], fields["params"])
    for beam in beams[1 : MAX_BEAMS + 1]:
        yield RunnerUp(
            score=finite(beam["score"]),
            stop_reason=name_of(beam["stop_reason"]),
            n_tokens=beam["n_tokens"],
            text=text_of(beam["text"]),
        )


def spans_of(fields: Mapping[str, Any], pieces: Mapping[int, str] | None) -> list[TokenSpan]:
    """The first tokens of a completion; nothing where the run recorded no texts of tokens."""
    ids, logprobs, sampled = fields["token_ids"], fields["logprobs"], fields["sampler_logprobs"]
    if len(ids) != len(logprobs) or (sampled is not None and len(sampled) != len(ids)):
        raise DataError("a completion has more tokens than log-probabilities, or fewer; run the decoding panel again")
    spans, at = [], 0
    for span in [] if pieces is None else join_spans(ids[:MAX_TOKENS], logprobs[:MAX_TOKENS], pieces):
        own = slice(at, at + len(span.logprobs))
        at = own.stop
        is_shaded = span.known and not any(math.isnan(logprob) for logprob in span.logprobs)
        spans.append(
            TokenSpan(
                text=neutralise(span.text),
                logprobs=_finite(span.logprobs),
                sampler_logprobs=None if sampled is None else _finite(sampled[own]),
                known=span.known,
                shade=shade_of(span.logprobs) if is_shaded else None,
            )
        )
    return spans


def siblings_of(generations: Generations, row: int) -> Iterator[Sibling]:
    """Further completions of the prompt, in the order of the file."""
    codes = generations.rows.coded["prompt_id"].codes
    others = [other for other in (codes == codes[row]).nonzero()[0].tolist() if other != row]
    for other in others[:MAX_SIBLINGS]:
        of = generations.of_rows
        yield Sibling(id=other, arm=generations.arm_names[of.arms[other]], sample=of.samples[other])


def _finite(values: Sequence[float | None]) -> list[float | None]:
    return [finite(value) for value in values]
