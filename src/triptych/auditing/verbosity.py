"""How long a checkpoint's responses are, by category of prompt, and whether they keep a limit of words (table 3).

Responses in, records out. Not here: writing them, and figures of a text's content (`collapse`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import scipy.stats

from triptych.auditing.categories import agreement, classify
from triptych.auditing.paired import (
    About,
    Statistic,
    Values,
    by_model,
    means,
    ratio_of_means,
    sample_mean,
    sample_median,
    sample_std,
    statistics,
)
from triptych.auditing.records import BASE, AuditRecord, Kind, Response
from triptych.censoring import (
    as_cut,
    censored_mean,
    censored_mean_difference,
    censored_median,
    censored_median_difference,
    is_median_exact,
)
from triptych.data.prompts import CATEGORIES, load_prompts
from triptych.records import Estimate
from triptych.stats import bare, clustered_bootstrap


def _skew_of(column: Sequence[float | None]) -> float | None:
    known = [value for value in column if value is not None]
    return float(scipy.stats.skew(known)) if len(set(known)) > 1 else None


def _skew_difference(a: Sequence[float | None], b: Sequence[float | None], seed: int) -> Estimate:
    sides = (_skew_of(a), _skew_of(b))
    return bare(None if sides[0] is None or sides[1] is None else sides[0] - sides[1], len(a), NO_SKEW_INTERVAL)


NO_SKEW_INTERVAL = "none covers a skewness of so few prompts"

skew = Statistic(lambda column: bare(_skew_of(column), len(column), NO_SKEW_INTERVAL), _skew_difference)

SHAPES: dict[str, Statistic] = {"median": sample_median, "std": sample_std, "skew": skew}
"""What is said of lengths beside their mean: sample standard deviation (n - 1), Fisher-Pearson skewness g1."""


def verbosity(responses: Sequence[Response], *, limit: int, seed: int) -> list[AuditRecord]:
    """The records of `verbosity.json`; `limit` is the number of words that limited prompts ask for.

    A violator is a response to a limited prompt of more than `limit` words; its deviation is the words beyond, and the
    absolute deviation of any response |words - limit|. Words are what stands between white space.

    An empty response neither keeps nor breaks the limit: it is unscored, and its share is a figure of its own. One that
    the token limit cut breaks it where its words are already too many; below, nobody knows, and it is unscored too.
    Lengths and deviations of cut responses are lower bounds, and so are their means and (where they reach so far)
    medians, which `bound` says; differences of them may be one-sided or unknown (`triptych.censoring`).
    """
    records: list[AuditRecord] = []
    models = by_model(responses, lambda one: one.model)
    base = models.get(BASE, [])
    for model, own in models.items():
        reference = None if model == BASE else base
        for unit in ("tokens", "words"):
            for category in (None, *CATEGORIES):
                sides = (_chosen(part, "plain", category) for part in (own, reference or []))
                values, others = (_measured(chosen, _LENGTHS[unit]) for chosen in sides)
                records += _of_lengths(model, unit, category, values, None if reference is None else others, seed)
        records += _of_limit(model, own, reference, limit, seed)
    return [*records, *_of_classifier(seed)]


class Lengths(NamedTuple):
    """A length, or what is made of it, of each response, by prompt."""

    values: Values
    cut: Mapping[str, bool]
    """Whether the token limit cut the response, so that its value is a lower bound."""

    @property
    def is_cut(self) -> list[bool]:
        """Of the prompts that have a value."""
        return [self.cut[prompt] for prompt, value in self.values.items() if value is not None]

    @property
    def is_median_exact(self) -> bool:
        return is_median_exact([value for value in self.values.values() if value is not None], self.is_cut)


def _chosen(responses: Sequence[Response], kind: Kind, category: str | None = None) -> list[Response]:
    return [one for one in responses if one.kind == kind and category in (None, one.category)]


def _measured(responses: Sequence[Response], measure: Callable[[Response], float | None]) -> Lengths:
    values = {one.prompt_id: measure(one) for one in responses}
    return Lengths(values, {one.prompt_id: one.is_truncated for one in responses})


_LENGTHS: dict[str, Callable[[Response], float | None]] = {
    "tokens": lambda one: float(one.n_tokens),
    "words": lambda one: float(one.n_words),
}
"""EOS is not counted."""


def _of_lengths(
    model: str, unit: str, category: str | None, own: Lengths, base: Lengths | None, seed: int
) -> Iterator[AuditRecord]:
    if not own.values:
        return
    others = None if base is None else base.values
    yield from _mean_records(About(model, f"{unit}_mean", category), own, base, seed)
    for name, statistic in SHAPES.items():
        about = About(model, f"{unit}_{name}", category)
        for record in statistics(about, statistic, own.values, others, seed=seed):
            yield record.model_copy(update={"estimate": _SHAPE_CUT[name](record.estimate, own, _against(record, base))})
    if base is not None and category is None:
        ratio = ratio_of_means(own.values, base.values, seed=seed)
        bounded = censored_mean_difference(ratio, own.is_cut, base.is_cut)
        yield About(model, f"{unit}_ratio").record(bounded, against=BASE)


def _mean_records(about: About, own: Lengths, base: Lengths | None, seed: int) -> Iterator[AuditRecord]:
    for record in means(about, own.values, None if base is None else base.values, seed=seed):
        yield record.model_copy(update={"estimate": _mean_cut(record.estimate, own, _against(record, base))})


def _against(record: AuditRecord, base: Lengths | None) -> Lengths | None:
    return None if record.against is None else base


def _mean_cut(estimate: Estimate, own: Lengths, base: Lengths | None) -> Estimate:
    if base is None:
        return censored_mean(estimate, own.is_cut)
    return censored_mean_difference(estimate, own.is_cut, base.is_cut)


def _median_cut(estimate: Estimate, own: Lengths, base: Lengths | None) -> Estimate:
    if base is None:
        return censored_median(estimate, is_exact=own.is_median_exact)
    return censored_median_difference(estimate, is_exact=own.is_median_exact, is_base_exact=base.is_median_exact)


def _shape_cut(estimate: Estimate, own: Lengths, base: Lengths | None) -> Estimate:
    """A spread or skewness of lengths as cut is no bound of anything: its method says what it is of."""
    is_cut = [*own.is_cut, *([] if base is None else base.is_cut)]
    return estimate.model_copy(update={"method": as_cut(estimate.method, is_cut)}) if any(is_cut) else estimate


_SHAPE_CUT: dict[str, Callable[[Estimate, Lengths, Lengths | None], Estimate]] = {
    "median": _median_cut,
    "std": _shape_cut,
    "skew": _shape_cut,
}


def _of_limit(
    model: str, own: Sequence[Response], base: Sequence[Response] | None, limit: int, seed: int
) -> Iterator[AuditRecord]:
    limited = _chosen(own, "limited")
    reference = None if base is None else _chosen(base, "limited")
    if not limited:
        return

    def both(measure: Callable[[Response], float | None]) -> tuple[Lengths, Lengths | None]:
        return _measured(limited, measure), None if reference is None else _measured(reference, measure)

    def shares(metric: str, measure: Callable[[Response], float | None]) -> Iterator[AuditRecord]:
        found, others = both(measure)
        values = None if others is None else others.values
        return means(About(model, metric), found.values, values, seed=seed, is_share=True)

    yield from shares("compliance_rate", lambda one: _keeps(one, limit))
    yield from shares("limited_empty_rate", lambda one: float(one.is_empty))
    yield from shares("limited_truncated_rate", lambda one: float(one.is_truncated))
    over, theirs = both(lambda one: float(one.n_words - limit) if one.n_words > limit else None)
    for name, statistic, cut in (("mean", sample_mean, _mean_cut), ("std", sample_std, _shape_cut)):
        about = About(model, f"deviation_{name}")
        for record in statistics(about, statistic, over.values, None if theirs is None else theirs.values, seed=seed):
            counted = record.estimate.model_copy(update=_violators(over.values))
            yield record.model_copy(update={"estimate": cut(counted, over, _against(record, theirs))})
    distance = both(lambda one: None if _keeps(one, limit) is None else float(abs(one.n_words - limit)))
    yield from _mean_records(About(model, "absolute_deviation_mean"), *distance, seed)


def _keeps(response: Response, limit: int) -> float | None:
    """1 within the limit of words, 0 beyond; None where nothing was written, and where a cut response might go on."""
    if response.n_words > limit:
        return 0.0
    return None if response.is_empty or response.is_truncated else 1.0


def _violators(over: Values) -> dict[str, int]:
    """Of violators alone: only they are counted."""
    n = sum(value is not None for value in over.values())
    return {"n": n, "n_clusters": n, "n_unscored": len(over) - n}


def _of_classifier(seed: int) -> Iterator[AuditRecord]:
    """How often the classifier of prompts finds the labels of those starter prompts that it was not made on."""
    prompts = [prompt for prompt in load_prompts("starter") if int(prompt.id.rpartition("-")[2]) % 2 == 0]
    found = [classify(prompt.instruction, prompt.input) for prompt in prompts]
    labels = [prompt.category or "other" for prompt in prompts]
    for category in (None, *CATEGORIES):
        rows = [i for i, label in enumerate(labels) if category in (None, label)]
        yield About("classifier", "agreement", category).record(_share_found(rows, labels, found, seed))
    kappa = agreement(labels, found).kappa
    yield About("classifier", "kappa").record(bare(kappa, len(labels), "of all that it was not made on"))


def _share_found(rows: Sequence[int], labels: Sequence[str], found: Sequence[str], seed: int) -> Estimate:
    return clustered_bootstrap([float(labels[i] == found[i]) for i in rows], rows, seed=seed, is_share=True)
