"""How long a checkpoint's responses are, by category of prompt, and whether they keep a limit of words (table 3).

Responses in, records out. Not here: writing them, and figures of a text's content (`collapse`).
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import scipy.stats

from triptych.auditing.categories import agreement, classify, is_new_to_the_rules
from triptych.auditing.paired import (
    About,
    FloatArray,
    Statistic,
    Values,
    by_model,
    means,
    ratio_of_means,
    sample_std,
    statistics,
)
from triptych.auditing.records import BASE, AuditRecord, Response
from triptych.data.prompts import CATEGORIES, load_prompts
from triptych.records import Estimate
from triptych.stats import bare, clustered_bootstrap


def _median(x: FloatArray, axis: int) -> FloatArray:
    return np.asarray(np.nanmedian(x, axis=axis))


def _skew(x: FloatArray, axis: int) -> FloatArray:
    return np.asarray(scipy.stats.skew(x, axis=axis, nan_policy="propagate"))


def _mean(x: FloatArray, axis: int) -> FloatArray:
    return np.asarray(np.nanmean(x, axis=axis))


SHAPES: dict[str, Statistic] = {"median": _median, "std": sample_std, "skew": _skew}
"""What is said of lengths beside their mean: sample standard deviation (n - 1), Fisher-Pearson skewness g1."""


def verbosity(responses: Sequence[Response], *, limit: int, seed: int) -> list[AuditRecord]:
    """The records of `verbosity.json`; `limit` is the number of words that limited prompts ask for.

    A violator is a response to a limited prompt of more than `limit` words; its deviation is the words beyond, and the
    absolute deviation of any response |words - limit|. Words are what stands between white space.
    """
    records: list[AuditRecord] = []
    models = by_model(responses, lambda one: one.model)
    base = models.get(BASE, [])
    for model, own in models.items():
        reference = None if model == BASE else base
        for unit in ("tokens", "words"):
            for category in (None, *CATEGORIES):
                values, others = (lengths(part, unit, category) for part in (own, reference or []))
                records += _of_lengths(model, unit, category, values, None if reference is None else others, seed)
        records += _of_limit(model, own, reference, limit, seed)
    return [*records, *_of_classifier(seed)]


def lengths(responses: Sequence[Response], unit: str, category: str | None = None, kind: str = "plain") -> Values:
    """Length of each response of a kind, by prompt, in `tokens` (EOS not counted) or `words`."""
    chosen = [one for one in responses if one.kind == kind and category in (None, one.category)]
    return {one.prompt_id: float(one.n_tokens if unit == "tokens" else one.n_words) for one in chosen}


def _of_lengths(
    model: str, unit: str, category: str | None, values: Values, base: Values | None, seed: int
) -> Iterator[AuditRecord]:
    if not values:
        return
    yield from means(About(model, f"{unit}_mean", category), values, base, seed=seed)
    for name, statistic in SHAPES.items():
        yield from statistics(About(model, f"{unit}_{name}", category), statistic, values, base, seed=seed)
    if base is not None and category is None:
        about = About(model, f"{unit}_ratio")
        yield about.record(ratio_of_means(values, base, seed=seed), against=BASE)


def _of_limit(
    model: str, own: Sequence[Response], base: Sequence[Response] | None, limit: int, seed: int
) -> Iterator[AuditRecord]:
    words = lengths(own, "words", kind="limited")
    reference = None if base is None else lengths(base, "words", kind="limited")
    if not words:
        return

    def mapped(of: str) -> tuple[Values, Values | None]:
        return _mapped(words, of, limit), None if reference is None else _mapped(reference, of, limit)

    yield from means(About(model, "compliance_rate"), *mapped("within"), seed=seed, is_share=True)
    over = mapped("over")
    for name, statistic in (("mean", _mean), ("std", sample_std)):
        yield from _counted(statistics(About(model, f"deviation_{name}"), statistic, *over, seed=seed), over[0])
    yield from means(About(model, "absolute_deviation_mean"), *mapped("distance"), seed=seed)


def _mapped(words: Values, of: str, limit: int) -> Values:
    return {prompt: None if value is None else _LIMITED[of](value, limit) for prompt, value in words.items()}


_LIMITED: dict[str, Callable[[float, int], float | None]] = {
    "within": lambda words, limit: float(words <= limit),
    "over": lambda words, limit: words - limit if words > limit else None,
    "distance": lambda words, limit: abs(words - limit),
}
"""What is made of the words of a response to a limited prompt."""


def _counted(records: Iterator[AuditRecord], over: Values) -> Iterator[AuditRecord]:
    """Of violators alone: only they are counted."""
    n = sum(value is not None for value in over.values())
    for record in records:
        counts = {"n": n, "n_clusters": n, "n_unscored": len(over) - n}
        yield record.model_copy(update={"estimate": record.estimate.model_copy(update=counts)})


def _of_classifier(seed: int) -> Iterator[AuditRecord]:
    """How often the classifier of prompts finds the labels of the starter prompts written after it."""
    prompts = list(filter(is_new_to_the_rules, load_prompts("starter")))
    found = [classify(prompt.instruction, prompt.input) for prompt in prompts]
    labels = [prompt.category or "other" for prompt in prompts]
    for category in (None, *CATEGORIES):
        rows = [i for i, label in enumerate(labels) if category in (None, label)]
        yield About("classifier", "agreement", category).record(_share_found(rows, labels, found, seed))
    kappa = agreement(labels, found).kappa
    yield About("classifier", "kappa").record(bare(kappa, len(labels), "of all written after it"))


def _share_found(rows: Sequence[int], labels: Sequence[str], found: Sequence[str], seed: int) -> Estimate:
    return clustered_bootstrap([float(labels[i] == found[i]) for i in rows], rows, seed=seed, is_share=True)
