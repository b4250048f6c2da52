"""Checkpoints beside their base under rewards: means, win rates raw and at equal length, and reward against distance.

Scores in, records out. Not here: scoring.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from triptych.auditing.hacking import by_text, differences
from triptych.auditing.paired import About, Values, by_model, change_in_sd, mean, means
from triptych.auditing.records import BASE, AuditRecord, Response, Score
from triptych.auditing.win_rates import length_controlled_win_rate, win_shares
from triptych.records import Estimate


def comparison(
    scores: Sequence[Score],
    responses: Sequence[Response],
    divergences: Sequence[AuditRecord],
    *,
    scorers: Sequence[str],
    seed: int,
) -> list[AuditRecord]:
    """The records of `comparison.json`, of responses to plain prompts; `scorers` include the gold one.

    Texts that the token limit cut are scored as they stand, and win or lose so; `win_rate_finished` is of the prompts
    to which both sides came to their end.
    """
    table = by_text(scores)
    plain = {
        model: {one.prompt_id: one for one in own if one.kind == "plain"}
        for model, own in by_model(responses, lambda one: one.model).items()
    }
    records: list[AuditRecord] = []
    for scorer in scorers:
        base = table.get((scorer, BASE, None), {})
        for model in plain:
            values = table.get((scorer, model, None), {})
            about = About(model, "score", scorer=scorer)
            records += means(about, values, None if model == BASE else base, seed=seed)
            if model != BASE and values:
                records += _against_base(about, values, base, plain, seed)
    records += [_root(record) for record in divergences if record.metric == "kl_own"]
    return records


def _against_base(
    about: About, values: Values, base: Values, plain: Mapping[str, Mapping[str, Response]], seed: int
) -> Iterator[AuditRecord]:
    moved = change_in_sd(differences(values, base, set(values)), base)
    yield about._replace(metric="score_change_in_sd").record(moved, against=BASE)
    prompts = [prompt for prompt in base if prompt in values]
    shares = win_shares([values[p] for p in prompts], [base[p] for p in prompts])
    raw = mean(dict(zip(prompts, shares, strict=True)), seed=seed, is_share=True)
    yield about._replace(metric="win_rate").record(raw, against=BASE)
    pairs = [(plain[about.model][prompt], plain[BASE][prompt]) for prompt in prompts]
    cut = [one.is_truncated or other.is_truncated for one, other in pairs]
    finished = {p: None if is_cut else share for p, is_cut, share in zip(prompts, cut, shares, strict=True)}
    yield about._replace(metric="win_rate_finished").record(mean(finished, seed=seed, is_share=True), against=BASE)
    longer = [float(one.n_words - other.n_words) for one, other in pairs]
    controlled = length_controlled_win_rate(shares, longer, prompts)
    yield about._replace(metric="win_rate_length_controlled").record(controlled, against=BASE)


def _root(record: AuditRecord) -> AuditRecord:
    """√KL, the distance in which over-optimisation is drawn (Gao et al. 2023), of the same interval."""
    return About(record.model, "sqrt_kl").record(_rooted(record.estimate))


def _rooted(estimate: Estimate) -> Estimate:
    parts = {n: None if v is None else math.sqrt(max(v, 0.0)) for n, v in estimate if n in ("mean", "low", "high")}
    return estimate.model_copy(update={**parts, "method": f"{estimate.method}, root of the KL"})
