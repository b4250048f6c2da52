"""The λ-sweep: an adapter at parts and multiples of its own scale, from the base (0) over the adapter (1) beyond it.

What a LoRA does grows with λ in W + λ · scale · B · A. A score that turns over below λ = 1, or a length that falls
before the reward rises, shows what training bought and with what.
"""

import json
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TypeVar

from triptych.auditing.checkpoints import Checkpoint
from triptych.auditing.hacking import by_text
from triptych.auditing.nulls import lora_layers, why_no_lora
from triptych.auditing.paired import About, mean
from triptych.auditing.records import BASE, AuditRecord, ReadToken, Response, Score
from triptych.models import LanguageModel
from triptych.records import Estimate
from triptych.stats import bare, clustered_bootstrap, exponential

Row = TypeVar("Row", Response, ReadToken)

BY_DEFINITION = "0 by definition"


def sweep_checkpoints(adapters: Sequence[Checkpoint], factors: Sequence[float]) -> list[Checkpoint]:
    """Every LoRA among `adapters` at every factor but 0 and 1, which are the base and the adapter themselves."""
    return [
        adapter._replace(
            name=scaled_name(adapter.name, factor), change=partial(scale, factor=factor, name=adapter.name)
        )
        for adapter in adapters
        if why_no_lora(adapter) is None
        for factor in sorted({*factors} - {0.0, 1.0})
    ]


def scaled_name(adapter: str, factor: float) -> str:
    """What a scaled adapter is called in `auditing/sweep/`."""
    return json.dumps(["scaled", adapter, factor], ensure_ascii=False)


def scale(lm: LanguageModel, *, factor: float, name: str) -> None:
    """Multiplies the scale of a loaded LoRA, in place."""
    for _, layer in lora_layers(lm, name):
        for adapter in layer.active_adapters:
            layer.scaling[adapter] *= factor


def category(factor: float) -> str:
    """`λ=0.5`: what records of a factor have for their category."""
    return f"λ={factor:g}"


def sweep_records(
    adapter: str,
    factors: Sequence[float],
    responses: Sequence[Response],
    tokens: Sequence[ReadToken],
    scores: Sequence[Score],
    *,
    scorers: Sequence[str],
    seed: int,
) -> list[AuditRecord]:
    """Perplexity, KL, length, silence and scores of one adapter at every factor, 0 and 1 included.

    The rows are those of the base, of the adapter and of the scaled ones. Only prompts and chosen answers that all of
    them have are counted, so that a curve is of one set of texts. KLs are 0 at λ = 0 by definition.
    """
    models = {factor: _model_at(adapter, factor) for factor in sorted({*factors, 0.0, 1.0})}
    plain = _shared([one for one in responses if one.kind == "plain"], models.values())
    chosen = _shared([one for one in tokens if one.text == "chosen"], models.values())
    written = _shared([one for one in tokens if one.text == "own"], [m for m in models.values() if m != BASE])
    scored = by_text(scores)
    records: list[AuditRecord] = []
    for factor, model in models.items():
        own = [one for one in plain if one.model == model]
        read = [token for token in chosen if token.model == model]
        moved = [token for token in written if token.model == model]
        empty = {one.prompt_id: float(not one.text.strip()) for one in own}
        estimates = {
            "perplexity": exponential(_over_tokens([-token.logprob for token in read], read, seed)),
            "kl_chosen": _over_tokens([token.kl for token in read], read, seed),
            "kl_own": _over_tokens([token.kl for token in moved], moved, seed),
            "tokens_mean": mean({one.prompt_id: float(one.n_tokens) for one in own}, seed=seed),
            "empty_rate": mean(empty, seed=seed, is_share=True),
        }
        if model == BASE:
            estimates |= dict.fromkeys(("kl_chosen", "kl_own"), bare(0.0, len(own), BY_DEFINITION))
        where = category(factor)
        records += [About(adapter, metric, where).record(estimate) for metric, estimate in estimates.items()]
        for scorer in scorers:
            values = scored.get((scorer, model, None), {})
            found = {prompt: values.get(prompt) for prompt in empty}
            records.append(About(adapter, "score", where, scorer).record(mean(found, seed=seed)))
    return records


def _model_at(adapter: str, factor: float) -> str:
    return {0.0: BASE, 1.0: adapter}.get(factor, scaled_name(adapter, factor))


def _shared(rows: Sequence[Row], models: Iterable[str]) -> list[Row]:
    """The rows of some models, of the prompts that all of them have."""
    prompts = {model: {row.prompt_id for row in rows if row.model == model} for model in models}
    common = set.intersection(*prompts.values())
    return [row for row in rows if row.model in prompts and row.prompt_id in common]


def _over_tokens(values: Sequence[float], tokens: Sequence[ReadToken], seed: int) -> Estimate:
    return clustered_bootstrap(values, [token.prompt_id for token in tokens], seed=seed)
