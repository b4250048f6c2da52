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
    """The records of `comparison.json`, of responses to plain prompts; `scorers` include the gold one."""
    table = by_text(scores)
    words = {
        model: {one.prompt_id: one.n_words for one in own if one.kind == "plain"}
        for model, own in by_model(responses, lambda one: one.model).items()
    }
    records: list[AuditRecord] = []
    for scorer in scorers:
        base = table.get((scorer, BASE, None), {})
        for model in words:
            values = table.get((scorer, model, None), {})
            about = About(model, "score", scorer=scorer)
            records += means(about, values, None if model == BASE else base, seed=seed)
            if model != BASE and values:
                records += _against_base(about, values, base, words, seed)
    records += [_root(record) for record in divergences if record.metric == "kl_own"]
    return records


def _against_base(
    about: About, values: Values, base: Values, words: Mapping[str, Mapping[str, int]], seed: int
) -> Iterator[AuditRecord]:
    moved = change_in_sd(differences(values, base, set(values)), base)
    yield about._replace(metric="score_change_in_sd").record(moved, against=BASE)
    prompts = [prompt for prompt in base if prompt in values]
    shares = win_shares([values[p] for p in prompts], [base[p] for p in prompts])
    raw = mean(dict(zip(prompts, shares, strict=True)), seed=seed, is_share=True)
    yield about._replace(metric="win_rate").record(raw, against=BASE)
    longer = [float(words[about.model][p] - words[BASE][p]) for p in prompts]
    controlled = length_controlled_win_rate(shares, longer, prompts)
    yield about._replace(metric="win_rate_length_controlled").record(controlled, against=BASE)


def _root(record: AuditRecord) -> AuditRecord:
    """√KL, the distance in which over-optimisation is drawn (Gao et al. 2023), of the same interval."""
    return About(record.model, "sqrt_kl").record(_rooted(record.estimate))


def _rooted(estimate: Estimate) -> Estimate:
    parts = {n: None if v is None else math.sqrt(max(v, 0.0)) for n, v in estimate if n in ("mean", "low", "high")}
    return estimate.model_copy(update={**parts, "method": f"{estimate.method}, root of the KL"})
