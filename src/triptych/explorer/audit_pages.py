"""From a finding to the very responses that show it, one response beside all others, and the addresses of both.

Not here: the report card and the list of responses (`audits`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi import Query as InQuery
from pydantic import BaseModel

from triptych.auditing.records import BASE, Evidence
from triptych.errors import MissingInputError
from triptych.explorer.audits import (
    AuditOverview,
    Audits,
    FindingRow,
    ResponseFacts,
    ResponsePage,
    ResponseQuery,
    finding_row,
    fresh_audits,
)
from triptych.explorer.paging import RowId
from triptych.explorer.segments import Segment, compared
from triptych.explorer.text import Text, finite, name_of, text_of
from triptych.reports.auditing_responses import Place, Texts, place_of, read_texts, shown_note, surrogates
from triptych.reports.safe_text import neutralise


class ScoreChange(BaseModel):
    """What one scorer says: of the base's response or the unperturbed text, and of the one that is shown."""

    scorer: str
    before: float | None
    after: float | None


class EvidenceItem(BaseModel):
    """One response that shows a finding."""

    id: int | None
    """Its number among all responses; null where the run did not keep it."""
    model: str
    prompt_id: str
    kind: str
    perturbation: str | None
    note: str
    instruction: Text
    input: Text
    text: Text
    base_text: Text | None
    """The base's response, or the unperturbed text."""
    segments: list[Segment] | None
    """The text compared with the unperturbed one."""
    scores: list[ScoreChange]
    n_tokens: int | None
    n_words: int | None
    is_truncated: bool | None


class FindingItem(FindingRow):
    """One line of the report card with what shows it."""

    evidence: list[EvidenceItem]


class ResponseScore(BaseModel):
    """What one scorer says of a response."""

    scorer: str
    score: float | None


class FullResponse(ResponseFacts):
    """A response in full."""

    text: Text
    scores: list[ResponseScore]


class ResponseItem(FullResponse):
    """A response in full, with those of the other checkpoints to the same prompt."""

    instruction: Text
    input: Text
    others: list[FullResponse]


def audits_router(run_dir: Path) -> APIRouter:
    """Addresses of the audits of a run."""
    router, source = APIRouter(prefix="/api/audits", tags=["audits"]), fresh_audits(run_dir)

    @router.get("")
    def audits() -> AuditOverview:
        return source.get().overview

    @router.get("/findings/{finding}")
    def one_finding(finding: RowId) -> FindingItem:
        return finding_item(source.get(), finding)

    @router.get("/responses")
    def list_responses(query: Annotated[ResponseQuery, InQuery()]) -> ResponsePage:
        return source.get().page(query)

    @router.get("/responses/{response}")
    def one_response(response: RowId) -> ResponseItem:
        return response_item(source.get(), response)

    return router


# --- a finding --------------------------------------------------------------------------------------------------------


def finding_item(audits: Audits, number: int) -> FindingItem:
    """A line of the card with its responses. Raises MissingInputError for an unknown one."""
    finding = audits.finding(number)
    texts = _read_texts(audits, [evidence.prompt_id for evidence in finding.evidence])
    evidence = [_evidence(audits, texts, one) for one in finding.evidence]
    return FindingItem(**dict(finding_row(number, finding)), evidence=evidence)


def _read_texts(audits: Audits, prompt_ids: list[str]) -> Texts:
    """Nothing where there is nothing to read."""
    return read_texts(audits.auditing, prompt_ids) if prompt_ids and audits.rows.n else Texts({}, {}, {}, {})


def _evidence(audits: Audits, texts: Texts, evidence: Evidence) -> EvidenceItem:
    place = place_of(evidence)
    original = place._replace(perturbation=None)
    row: Mapping[str, Any] = texts.responses.get(original, {})
    before = _before(texts, place)
    is_perturbed = place.perturbation is not None
    text = texts.perturbed.get(place, "") if is_perturbed else row.get("text", "")
    return EvidenceItem(
        id=audits.row_of.get(original),
        model=name_of(place.model),
        prompt_id=name_of(place.prompt_id),
        kind=name_of(place.kind),
        perturbation=None if evidence.perturbation is None else name_of(evidence.perturbation),
        note=neutralise(shown_note(evidence.note)),
        instruction=text_of(row.get("instruction")),
        input=text_of(row.get("input")),
        text=text_of(text),
        base_text=None if before is None else text_of(before),
        segments=compared(before or "", text) if is_perturbed else None,
        scores=_changes(audits, texts, place),
        **{name: None if is_perturbed else row.get(name) for name in ("n_tokens", "n_words", "is_truncated")},
    )


def _before(texts: Texts, place: Place) -> str | None:
    """What a text is compared with: the unperturbed one, or the base's response; None of the base itself."""
    base = Place(BASE, place.prompt_id, place.kind)
    if place.perturbation is None:
        found = None if place.model == BASE else texts.responses.get(base)
        return None if found is None else str(found["text"])
    # The file has the unperturbed texts too; a run may keep only one of the two.
    row = texts.responses.get(base)
    return texts.perturbed.get(base) or (None if row is None else str(row["text"]))


def _changes(audits: Audits, texts: Texts, place: Place) -> list[ScoreChange]:
    """Scores of plain responses and of perturbed texts: others are not scored."""
    if place.kind != "plain":
        return []
    after = texts.scores.get(place, {})
    if place.perturbation is None:
        before = {} if place.model == BASE else texts.scores.get(Place(BASE, place.prompt_id, "plain"), {})
        after = _rewards(audits, after)
    else:
        before = texts.scores.get(place._replace(perturbation=None), {})
    return [
        ScoreChange(scorer=name_of(scorer), before=finite(before.get(scorer)), after=finite(score))
        for scorer, score in after.items()
    ]


def _rewards(audits: Audits, scores: Mapping[str, float | None]) -> dict[str, float | None]:
    """Without the other checkpoints' own measures, which are of the perturbations alone."""
    return {scorer: score for scorer, score in scores.items() if scorer not in surrogates(audits.auditing)}


# --- a response -------------------------------------------------------------------------------------------------------


def response_item(audits: Audits, row: int) -> ResponseItem:
    """A response beside all others to its prompt. Raises MissingInputError for an unknown one."""
    if row >= audits.rows.n:
        raise MissingInputError(f"no response {row} in this run, which has {audits.rows.n:,}, counted from 0")
    place = audits.places[row]
    texts = _read_texts(audits, [place.prompt_id])
    places = [place._replace(model=model) for model in audits.auditing.checkpoints]
    others = [_full(audits, texts, other) for other in places if other != place and other in texts.responses]
    own = texts.responses[place]
    return ResponseItem(
        **dict(_full(audits, texts, place)),
        instruction=text_of(own["instruction"]),
        input=text_of(own["input"]),
        others=others,
    )


def _full(audits: Audits, texts: Texts, place: Place) -> FullResponse:
    scores = {} if place.kind != "plain" else _rewards(audits, texts.scores.get(place, {}))
    return FullResponse(
        **audits.facts(audits.row_of[place]),
        text=text_of(texts.responses[place]["text"]),
        scores=[ResponseScore(scorer=name_of(name), score=finite(score)) for name, score in scores.items()],
    )
