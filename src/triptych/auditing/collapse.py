"""What a checkpoint has lost: silence, sameness, repetition, entropy, and what it used to know (table 4).

Responses in, records out. Not here: lengths (`verbosity`), rewards (`comparison`), likelihoods (`divergence`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from triptych.auditing.paired import About, FloatArray, Values, by_model, change, means, ratio_of_means
from triptych.auditing.records import BASE, AuditRecord, Kind, Response
from triptych.data.answer_checks import answer_score, check_answer
from triptych.metrics import (
    distinct_n,
    distinct_n_without_each,
    matched_distinct_n,
    matched_distinct_without_each,
    self_bleu,
    seq_rep_n,
)
from triptych.records import Estimate, Prompt
from triptych.stats import clustered_bootstrap, delete_one

Prompts = Mapping[str, Prompt]

SELF_BLEU_TEXTS = 10
"""Texts that are compared with one another: Self-BLEU rises with their number."""


def _accuracy(response: Response, prompts: Prompts) -> float | None:
    prompt = prompts[response.prompt_id]
    passed = check_answer(prompt, response.text).get("answers") if prompt.answers else None
    return None if passed is None else float(passed)


def _entropy(response: Response, prompts: Prompts) -> float | None:
    return -math.fsum(response.logprobs) / len(response.logprobs) if response.logprobs else None


OF_RESPONSE: dict[str, Callable[[Response, Prompts], float | None]] = {
    "empty_rate": lambda response, prompts: float(response.is_empty),
    "truncated_rate": lambda response, prompts: float(response.is_truncated),
    "repetition": lambda response, prompts: seq_rep_n(response.token_ids, 3),
    "accuracy": _accuracy,
    "checks": lambda response, prompts: answer_score(prompts[response.prompt_id], response.text),
    "entropy": _entropy,
}
"""Figures of one response; None or NaN is unscored. The entropy is the mean of -log π of the tokens that were drawn
from π, which is unbiased for the entropy along the text; a response weighs as one, however long."""

SHARES = {"empty_rate", "truncated_rate", "accuracy"}


def collapse(responses: Sequence[Response], prompts: Prompts, *, seed: int) -> list[AuditRecord]:
    """The records of `collapse.json`; `prompts` by id have answers and checks.

    Of responses drawn for plain prompts, but for accuracy, which is that of the most likely response.

    Distinct-n falls with the amount of text; whether a checkpoint is less varied than the base is told by
    `matched_distinct_2`, of both on equally many 2-grams.
    """
    plain = by_model([one for one in responses if one.kind == "plain"], lambda one: one.model)
    every = by_model(responses, lambda one: one.model)
    records: list[AuditRecord] = []
    for model, own in plain.items():
        reference = None if model == BASE else plain[BASE]
        for metric in OF_RESPONSE:
            others = None if reference is None else of_responses(metric, every[BASE], prompts)
            values = of_responses(metric, every[model], prompts)
            records += means(About(model, metric), values, others, seed=seed, is_share=metric in SHARES)
            if metric == "entropy" and others is not None:
                ratio = ratio_of_means(values, others, seed=seed)
                records.append(About(model, "entropy_ratio").record(ratio, against=BASE))
        records += _diversity(model, own, reference, seed)
    return records


def kind_of(metric: str) -> Kind:
    """Which responses a figure is of."""
    return "greedy" if metric == "accuracy" else "plain"


def of_responses(metric: str, responses: Sequence[Response], prompts: Prompts) -> Values:
    """A figure of `OF_RESPONSE` of each response of its kind, by prompt."""
    chosen = [one for one in responses if one.kind == kind_of(metric)]
    found = {one.prompt_id: OF_RESPONSE[metric](one, prompts) for one in chosen}
    return {prompt: None if value is None or math.isnan(value) else value for prompt, value in found.items()}


def _diversity(
    model: str, own: Sequence[Response], base: Sequence[Response] | None, seed: int
) -> Iterator[AuditRecord]:
    """Of all texts pooled, with intervals that leave out a prompt at a time."""
    texts, others = ([one.text for one in part] for part in (own, base or ()))
    pooled: dict[str, tuple[Callable[[list[str]], float], Callable[[list[str]], FloatArray]]] = {
        f"distinct_{n}": (_distinct(n), _distinct_without(n)) for n in (1, 2, 3)
    }
    for metric, (value, without) in pooled.items():
        about = About(model, metric)
        mine = without(texts)
        yield about.record(delete_one(value(texts), mine, n=len(texts)))
        if base is not None:
            difference = value(texts) - value(others)
            yield about.record(delete_one(difference, mine - without(others), n=len(texts)), against=BASE)
    if base is not None:
        matched, other = matched_distinct_n(texts, others, 2)
        left = matched_distinct_without_each(texts, others, 2)
        about = About(model, "matched_distinct_2")
        yield about.record(delete_one(matched, left.texts, n=len(texts)))
        yield about.record(delete_one(matched - other, left.texts - left.other, n=len(texts)), against=BASE)
    yield from _self_bleu(model, texts, None if base is None else others, seed)


def _distinct(n: int) -> Callable[[list[str]], float]:
    return lambda texts: distinct_n(texts, n)


def _distinct_without(n: int) -> Callable[[list[str]], FloatArray]:
    return lambda texts: distinct_n_without_each(texts, n)


def _self_bleu(model: str, texts: list[str], base: list[str] | None, seed: int) -> Iterator[AuditRecord]:
    """The mean of groups of about ten prompts, the same ones on both sides."""
    about = About(model, "self_bleu")
    values = _grouped_bleu(texts)
    yield about.record(_over_groups(clustered_bootstrap(list(values.values()), list(values), seed=seed, is_share=True)))
    if base is not None:
        yield about.record(_over_groups(change(values, _grouped_bleu(base), seed=seed)), against=BASE)


def _grouped_bleu(texts: list[str]) -> dict[str, float | None]:
    n_groups = max(1, len(texts) // SELF_BLEU_TEXTS)
    found = {str(start): self_bleu(texts[start::n_groups]) for start in range(n_groups)}
    return {group: None if math.isnan(value) else value for group, value in found.items()}


def _over_groups(estimate: Estimate) -> Estimate:
    return estimate.model_copy(
        update={"method": f"{estimate.method} (groups of {SELF_BLEU_TEXTS} prompts for prompts)"}
    )
