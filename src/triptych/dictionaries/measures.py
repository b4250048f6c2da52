"""From what a dictionary makes of held-out rows to the figures of `metrics.json`, `features.parquet`, `measures.json`.

Not here: the definitions (`universality`, `reconstruction`, `agreement`, `matching`), files (`study`).
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import sparse
from scipy.special import stdtrit

from triptych.data.images import Factor
from triptych.dictionaries.agreement import IntArray, auroc, best_latents, by_image
from triptych.dictionaries.coder import UniversalSAE
from triptych.dictionaries.codes import FloatArray, Reading
from triptych.dictionaries.matching import MATCHED, match
from triptych.dictionaries.reconstruction import r_squared, r_squared_estimate, ratio_estimate
from triptych.dictionaries.records import UNIVERSAL, DictionaryRecord, Role
from triptych.dictionaries.universality import (
    KINDS,
    BoolArray,
    CoFiring,
    Kinds,
    by_counts,
    chance_pvalues,
    classify,
    co_firing,
    confirmed,
    correlation,
    energy,
    firing_entropy,
)
from triptych.records import Estimate
from triptych.stats import bare

LABELLED = 0.7
"""AUROC from which a latent is said to be about a value."""
ONE_SEED = "one seed"
NUMBERS = (*KINDS, "confirmed", "universal_by_variance", "universal_by_counts", "specific_by_counts")
"""Figures that are numbers of latents."""


class Facts(NamedTuple):
    """All that is measured of one dictionary on held-out rows. Models in the dictionary's order."""

    names: tuple[str, ...]
    reading: Reading
    images: IntArray
    """[rows]: 0, 1, … by image."""
    counts: CoFiring
    tested: CoFiring
    """Counts for the test against chance: one row an image, since rows of one image resemble one another."""
    entropy: FloatArray
    """Of counts, the paper's; NaN where no model fires the latent."""
    correlations: FloatArray
    is_confirmed: BoolArray
    kinds: Kinds
    """By what latents explain, the project's own definition."""
    energies: FloatArray
    """[models, latents]."""


def facts_of(sae: UniversalSAE, reading: Reading, images: IntArray, *, threshold: float) -> Facts:
    """Counts, entropies and energies of every latent."""
    _, place = np.unique(images, return_inverse=True)
    counts = co_firing(reading.codes, threshold)
    is_row_an_image = len(np.unique(place)) == len(place)
    apart = reading.codes if is_row_an_image else _one_row_an_image(reading.codes, place)
    tested = co_firing(apart, threshold)
    weights = [sae.coder(name).decoder_weight for name in sae.names]
    energies = np.stack([energy(codes, weight) for codes, weight in zip(reading.codes, weights, strict=True)])
    correlations = correlation(apart)
    is_confirmed = confirmed(tested, correlations)
    kinds = classify(reading.explained, is_confirmed)
    entropy = firing_entropy(counts.fires)
    return Facts(sae.names, reading, place, counts, tested, entropy, correlations, is_confirmed, kinds, energies)


def _one_row_an_image(codes: Sequence[sparse.csr_matrix], place: IntArray) -> list[sparse.csr_matrix]:
    """Of image i row i mod (its rows), so that every part of an image is looked at."""
    starts = np.flatnonzero(np.r_[True, place[1:] != place[:-1]])
    sizes = np.diff(np.r_[starts, len(place)])
    chosen = starts + np.arange(len(starts)) % sizes
    return [one[chosen] for one in codes]


# --- features.parquet -------------------------------------------------------------------------------------------------


def feature_table(facts: Facts, labels: Sequence["Label | None"] | None = None) -> pa.Table:
    """One row a latent. `dead` and `kind` are by `classify`; what it calls dead has no entropy here."""
    counts, tested, kinds = facts.counts, facts.tested, facts.kinds
    n, dead = len(facts.entropy), kinds.kind == "dead"
    columns: dict[str, Any] = {"latent": np.arange(n)}
    for place, name in enumerate(facts.names):
        columns[f"fires_{name}"] = counts.fires[place]
        columns[f"cofire_{name}"] = _nullable(counts.per_model[place])
        columns[f"energy_{name}"] = facts.energies[place]
        columns[f"explained_{name}"] = kinds.shares[place]
    columns["firing_entropy"] = _nullable(np.where(dead, np.nan, facts.entropy))
    columns["explained_entropy"] = _nullable(kinds.entropy)
    columns["co_fires"] = counts.together
    columns["co_fire_chance"] = counts.chance
    columns["p_value"] = _nullable(chance_pvalues(tested))
    columns["correlation"] = facts.correlations
    columns["confirmed"] = facts.is_confirmed
    columns["kind"] = pa.array(kinds.kind.tolist(), pa.string())
    owners = [None if place < 0 else facts.names[place] for place in kinds.specific_to.tolist()]
    columns["specific_to"] = pa.array(owners, pa.string())
    columns["dead"] = dead
    columns["label"] = pa.array([None if one is None else one.text for one in labels or [None] * n], pa.string())
    columns["label_auroc"] = pa.array(
        [None if one is None else one.auroc for one in labels or [None] * n], pa.float64()
    )
    return pa.table(columns)


def _nullable(values: FloatArray) -> pa.Array:
    return pa.array(values, mask=np.isnan(values))


# --- metrics.json -----------------------------------------------------------------------------------------------------


def metrics_of(facts: Facts, loss: float) -> dict[str, Any]:
    """The plain figures of one dictionary; `alignment_tax` is for whoever knows the independent ones."""
    classic, reading = by_counts(facts.entropy), facts.reading
    return {
        "r2": _matrix(facts, reading.spread),
        "r2_global": _matrix(facts, reading.spread_global),
        **{kind: facts.kinds.count(kind) for kind in KINDS},
        "confirmed": int(facts.is_confirmed.sum()),
        "universal_by_variance": int((facts.kinds.entropy > UNIVERSAL).sum()),
        "universal_by_counts": classic.universal,
        "specific_by_counts": classic.specific,
        "co_firing_proportion": _plain(facts.counts.proportion),
        "co_firing_chance": _plain(facts.counts.chance_proportion),
        "l0": {
            name: float(n) for name, n in zip(facts.names, facts.counts.fires.sum(1) / facts.counts.n_rows, strict=True)
        },
        "alignment_tax": None,
        "loss": loss,
        "rows": facts.counts.n_rows,
    }


def _matrix(facts: Facts, spread: FloatArray) -> dict[str, dict[str, float | None]]:
    errors = facts.reading.errors
    return {
        source: {target: _plain(r_squared(errors[i, j], spread[j])) for j, target in enumerate(facts.names)}
        for i, source in enumerate(facts.names)
    }


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


# --- measures.json ----------------------------------------------------------------------------------------------------


def records_of(role: Role, seed: int, facts: Facts, metrics: Mapping[str, Any]) -> Iterator[DictionaryRecord]:
    """The figures of one dictionary, with intervals over images where figures are sums over images."""

    def record(metric: str, estimate: Estimate, **about: str) -> DictionaryRecord:
        return DictionaryRecord(role=role, metric=metric, seed=seed, estimate=estimate, **about)

    reading, n = facts.reading, facts.counts.n_rows
    for i, source in enumerate(facts.names):
        for j, target in enumerate(facts.names):
            for metric, spread in (("r2", reading.spread), ("r2_global", reading.spread_global)):
                estimate = r_squared_estimate(reading.errors[i, j], spread[j], facts.images)
                yield record(metric, estimate, source=source, target=target)
        yield record("l0", _mean_firings(facts, i), source=source)
        shares = facts.counts.per_model[i]
        live = shares[~np.isnan(shares)]
        mean = float(live.mean()) if len(live) else None
        yield record("co_firing", bare(mean, len(live), ONE_SEED), source=source)
    whose = {} if len(facts.names) > 1 else {"source": facts.names[0]}
    yield record("loss", bare(metrics["loss"], n, ONE_SEED), **whose)
    if len(facts.names) > 1:
        for metric in NUMBERS:
            yield record(metric, bare(float(metrics[metric]), n, ONE_SEED))
        yield record("co_firing_proportion", _proportion(facts))
        yield record("co_firing_chance", bare(metrics["co_firing_chance"], n, ONE_SEED))


def _mean_firings(facts: Facts, model: int) -> Estimate:
    fired = np.diff(facts.reading.codes[model].indptr).astype(np.float64)
    per_image = np.bincount(facts.images, weights=fired).astype(np.float64)
    return ratio_estimate(per_image, np.bincount(facts.images).astype(np.float64))


def _proportion(facts: Facts) -> Estimate:
    """Common firings over all firings, image by image."""
    fired = [(one > 0).astype(np.int8) for one in facts.reading.codes]
    together, either = fired[0], fired[0]
    for one in fired[1:]:
        together, either = together.multiply(one), either.maximum(one)
    sums = [np.asarray(one.sum(axis=1, dtype=np.int64)).ravel() for one in (together, either)]
    parts, wholes = (np.bincount(facts.images, weights=one).astype(np.float64) for one in sums)
    return ratio_estimate(parts, wholes)


def over_seeds(records: Iterable[DictionaryRecord]) -> Iterator[DictionaryRecord]:
    """For every figure its mean over seeds, ± Student's t; one seed gives no record (its own has an interval)."""
    groups: dict[tuple[str, ...], list[DictionaryRecord]] = defaultdict(list)
    for one in records:
        groups[(one.role, one.metric, one.source or "", one.target or "", one.factor or "")].append(one)
    for group in groups.values():
        values = [one.estimate.mean for one in group if one.estimate.mean is not None]
        if len(group) > 1 and len(values) == len(group):
            yield group[0].model_copy(update={"seed": None, "estimate": seeds_estimate(values)})


def seeds_estimate(values: Sequence[float]) -> Estimate:
    """Mean ± t(n − 1, 0.975) s / √n over n seeds."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return bare(mean, n, ONE_SEED)
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    if error == 0.0:
        return bare(mean, n, f"all {n} seeds alike")
    half = float(stdtrit(n - 1, 0.975)) * error
    method = f"95% Student's t over {n} seeds"
    return Estimate(mean=mean, low=mean - half, high=mean + half, n=n, n_clusters=n, method=method)


# --- Against independent dictionaries ---------------------------------------------------------------------------------


class SelfR2(NamedTuple):
    """How well a model's own dictionary explains it."""

    equal_steps: float | None
    equal_updates: float | None


def tax_records(seed: int, facts: Facts, alone: Mapping[str, SelfR2]) -> Iterator[DictionaryRecord]:
    """What sharing costs each model: the independent dictionary's R² less the shared one's."""
    for i, name in enumerate(facts.names):
        own = r_squared(facts.reading.errors[i, i], facts.reading.spread[i])
        for suffix, independent in zip(("", "_equal_updates"), alone.get(name, SelfR2(None, None)), strict=True):
            if independent is not None:
                for metric, value in (
                    (f"alignment_tax{suffix}", independent - own),
                    (f"r2_independent{suffix}", independent),
                ):
                    estimate = bare(value, facts.counts.n_rows, ONE_SEED)
                    yield DictionaryRecord(role="universal", metric=metric, seed=seed, source=name, estimate=estimate)


def matching_records(
    seed: int, facts: Facts, sae: UniversalSAE, alone: Mapping[str, UniversalSAE]
) -> Iterator[DictionaryRecord]:
    """How far a model's live latents are those that its own dictionary finds."""
    for i, name in enumerate(facts.names):
        live = facts.counts.fires[i] > 0
        if name not in alone or not live.any():
            continue
        own = sae.coder(name).decoder_weight.detach()[np.flatnonzero(live)]
        cosines = match(own.cpu(), alone[name].coder(name).decoder_weight.detach().cpu()).cosines
        for metric, values in (("matching_cosine", cosines), ("matched", cosines > MATCHED)):
            estimate = bare(float(np.mean(values)), len(cosines), ONE_SEED)
            yield DictionaryRecord(role="universal", metric=metric, seed=seed, source=name, estimate=estimate)


# --- Agreement with labels --------------------------------------------------------------------------------------------


class Label(NamedTuple):
    """What a latent is about, as far as labels tell."""

    text: str
    auroc: float


class Agreement(NamedTuple):
    """How well latents rank the values of one factor: [models, latents, values]."""

    factor: str
    values: tuple[str, ...]
    chosen_on: FloatArray
    """AUROC on the even images, on which the best latent is chosen."""
    scored_on: FloatArray
    """On the odd images: the best of many latents would flatter itself on its own."""


def agreements(facts: Facts, factors: Mapping[str, Factor], images: IntArray) -> list[Agreement]:
    """For every factor; `images` are the set's numbers of the images that rows are of, in order."""
    codes = [by_image(one, facts.images) for one in facts.reading.codes]
    found = []
    for name, factor in factors.items():
        values = factor.of[images].astype(np.int64)
        halves = []
        for half in (0, 1):
            seen = values.copy()
            seen[np.arange(len(seen)) % 2 != half] = -1
            halves.append(np.stack([auroc(one, seen, len(factor.values)) for one in codes]))
        found.append(Agreement(name, factor.values, halves[0], halves[1]))
    return found


def agreement_records(role: Role, seed: int, facts: Facts, found: Sequence[Agreement]) -> Iterator[DictionaryRecord]:
    """The best universal and the best specific latent of every value, a mean over a factor's values.

    Of a universal latent the mean AUROC over models counts, of a specific one that of its own model.
    """
    owner = facts.kinds.shares.argmax(0)
    universal, specific = facts.kinds.kind == "universal", facts.kinds.kind == "specific"
    for one in found:
        shared = (universal, one.chosen_on.mean(0), one.scored_on.mean(0))
        own = (specific, _of_owner(one.chosen_on, owner), _of_owner(one.scored_on, owner))
        for kind, (among, chosen, scored) in (("universal", shared), ("specific", own)):
            best = best_latents(chosen, among)
            values = [scored[b.latent, v] for v, b in enumerate(best) if b is not None]
            usable = [value for value in values if not math.isnan(value)]
            mean = float(np.mean(usable)) if usable else None
            estimate = bare(mean, len(usable), ONE_SEED)
            yield DictionaryRecord(role=role, metric=f"auroc_{kind}", seed=seed, factor=one.factor, estimate=estimate)


def _of_owner(aurocs: FloatArray, owner: npt.NDArray[np.intp]) -> FloatArray:
    found: FloatArray = np.take_along_axis(aurocs, owner[None, :, None], axis=0)[0]
    return found


def labels_of(facts: Facts, found: Sequence[Agreement]) -> list[Label | None]:
    """The value that each latent ranks best, where that is worth saying: chosen and scored on different images."""
    owner = facts.kinds.shares.argmax(0)
    chosen = [(one, _of_owner(one.chosen_on, owner), _of_owner(one.scored_on, owner)) for one in found]
    labels: list[Label | None] = []
    for latent, dead in enumerate(facts.kinds.kind == "dead"):
        best: tuple[float, str, float] | None = None
        for one, on, score in chosen if not dead else []:
            if np.isnan(on[latent]).all():
                continue
            value = int(np.nanargmax(on[latent]))
            if best is None or on[latent, value] > best[0]:
                best = (on[latent, value], f"{one.factor} = {one.values[value]}", score[latent, value])
        is_known = best is not None and best[2] >= LABELLED
        labels.append(Label(best[1], float(best[2])) if best is not None and is_known else None)
    return labels


def agreement_table(facts: Facts, found: Sequence[Agreement]) -> pa.Table:
    """AUROCs on the odd images: one row a live latent, model, factor and value above chance by 0.1."""
    rows: dict[str, list[Any]] = {"latent": [], "model": [], "factor": [], "value": [], "auroc": []}
    for one in found:
        for m, l, v in zip(*np.nonzero(one.scored_on >= 0.6), strict=True):  # noqa: E741 - as in the equation
            rows["latent"].append(int(l))
            rows["model"].append(facts.names[m])
            rows["factor"].append(one.factor)
            rows["value"].append(one.values[v])
            rows["auroc"].append(float(one.scored_on[m, l, v]))
    types = {"latent": pa.int32(), "auroc": pa.float32()}
    return pa.table({name: pa.array(column, types.get(name, pa.string())) for name, column in rows.items()})
