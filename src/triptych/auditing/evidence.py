"""Which responses show a finding: those that moved furthest from the base's in the direction that is wrong.

Not here: what counts as wrong (`card`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from triptych.auditing.card import Rule
from triptych.auditing.collapse import OF_RESPONSE, Prompts, kind_of, of_responses
from triptych.auditing.divergence import own_kl
from triptych.auditing.hacking import by_text
from triptych.auditing.records import BASE, AuditRecord, Evidence, Kind, ReadToken, Response, Score
from triptych.auditing.scoring import surrogate

SHOWN = 3
"""Responses a finding."""


class _Candidate(NamedTuple):
    badness: float
    evidence: Evidence


class Exhibits:
    """Finds the responses that show a finding; `show` is what the card asks."""

    def __init__(
        self,
        responses: Sequence[Response],
        prompts: Prompts,
        tokens: Sequence[ReadToken],
        scores: Sequence[Score],
        *,
        length_limit: int,
    ) -> None:
        self._prompts, self._limit = prompts, length_limit
        self._kl = own_kl(tokens)
        self._scores = by_text(scores)
        self._responses: dict[tuple[str, Kind], list[Response]] = {}
        for one in responses:
            self._responses.setdefault((one.model, one.kind), []).append(one)

    def show(self, rule: Rule, record: AuditRecord) -> tuple[Evidence, ...]:
        find = _FINDERS.get(rule.shows)
        found = sorted(find(self, rule, record), key=lambda one: -one.badness) if find is not None else []
        return tuple(one.evidence for one in found[:SHOWN] if one.badness > 0.0)

    def _by_kl(self, rule: Rule, record: AuditRecord) -> Iterable[_Candidate]:
        for (model, prompt), kl in self._kl.items():
            if model == record.model:
                yield _Candidate(kl, Evidence(model=model, prompt_id=prompt, note=f"{kl:.3g} nats per token"))

    def _by_figure(self, rule: Rule, record: AuditRecord) -> Iterable[_Candidate]:
        sign = -1.0 if rule.direction == "below" else 1.0
        kind = kind_of(rule.shows)
        of = [self._responses.get((model, kind), []) for model in (record.model, BASE)]
        own, base = (of_responses(rule.shows, responses, self._prompts) for responses in of)
        for prompt, value in own.items():
            before = base.get(prompt)
            if value is not None and before is not None:
                note = f"{_figure_name(rule.shows)} {value:.3g}, the base's {before:.3g}"
                found = Evidence(model=record.model, prompt_id=prompt, kind=kind, note=note)
                yield _Candidate(sign * (value - before), found)

    def _by_words(self, rule: Rule, record: AuditRecord) -> Iterable[_Candidate]:
        longer = (record.estimate.mean or 0.0) > 1.0
        base = {one.prompt_id: one.n_words for one in self._plain(BASE)}
        for one in self._plain(record.model):
            more = one.n_words - base[one.prompt_id]
            note = f"{one.n_words} words, the base's {base[one.prompt_id]}"
            found = Evidence(model=one.model, prompt_id=one.prompt_id, note=note)
            yield _Candidate(float(more if longer else -more), found)

    def _by_limit(self, rule: Rule, record: AuditRecord) -> Iterable[_Candidate]:
        for one in self._responses.get((record.model, "limited"), ()):
            note = f"{one.n_words} words, where {self._limit} were the limit"
            found = Evidence(model=one.model, prompt_id=one.prompt_id, kind="limited", note=note)
            yield _Candidate(float(one.n_words - self._limit), found)

    def _by_score(self, rule: Rule, record: AuditRecord) -> Iterable[_Candidate]:
        scorer = record.scorer or ""
        own, base = (self._scores.get((scorer, model, None), {}) for model in (record.model, BASE))
        for prompt, value in own.items():
            before = base.get(prompt)
            if value is not None and before is not None:
                note = f"score {value:.3g}, the base's {before:.3g}"
                yield _Candidate(before - value, Evidence(model=record.model, prompt_id=prompt, note=note))

    def _by_perturbation(self, rule: Rule, record: AuditRecord) -> Iterable[_Candidate]:
        scorer, model = record.scorer or "", record.model
        key = scorer if scorer == model else surrogate(scorer, model)
        originals = self._scores.get((key, BASE, None), {})
        for prompt, value in self._scores.get((key, BASE, record.category), {}).items():
            before = originals.get(prompt)
            if value is not None and before is not None:
                note = f"score {before:.3g} becomes {value:.3g}"
                found = Evidence(model=BASE, prompt_id=prompt, perturbation=record.category, note=note)
                yield _Candidate(value - before, found)

    def _plain(self, model: str) -> list[Response]:
        return self._responses.get((model, "plain"), [])


def _figure_name(metric: str) -> str:
    return metric.removesuffix("_rate").replace("_", " ")


_FINDERS: Mapping[str, Callable[[Exhibits, Rule, AuditRecord], Iterable[_Candidate]]] = {
    "kl": Exhibits._by_kl,
    "words": Exhibits._by_words,
    "over_limit": Exhibits._by_limit,
    "score": Exhibits._by_score,
    "perturbation": Exhibits._by_perturbation,
    **dict.fromkeys(OF_RESPONSE, Exhibits._by_figure),
}
