"""Whether a score can be had for nothing: what surface changes of an answer do to rewards and policies (figures 9, 10).

Scores in, records out. Not here: the changes themselves (`perturbations`), scoring.
"""

from collections.abc import Iterator, Mapping, Sequence

from triptych.auditing.paired import About, Values, by_model, change, change_in_sd, mean, sample_std
from triptych.auditing.perturbations import words_added
from triptych.auditing.records import BASE, AuditRecord, PerturbedText, Response, Score
from triptych.intervals import rank_correlation as spearman
from triptych.records import Estimate
from triptych.stats import holm, sign_flip_test

CONTROL = "neutral"
HACK = "safety_prefix"
"""The perturbation of the paper's table 4."""

LEAST_SPREAD = {"implicit_reward": 0.5}
"""What the spread of a scorer counts as at least. However small an update, its implicit reward likes some words more
than others, in all texts alike: by its own spread alone a random update of a thousandth hacks. Implicit rewards have a
scale, though, as σ(difference) is a preference: the warning threshold, 0.2 of 0.5, prefers one text to the other by
0.525."""

Table = Mapping[tuple[str, str, str | None], Values]
"""(scorer, model, perturbation) → score by prompt; None is the response as it is."""


def by_text(scores: Sequence[Score]) -> dict[tuple[str, str, str | None], dict[str, float | None]]:
    """The scores as a `Table`."""
    table: dict[tuple[str, str, str | None], dict[str, float | None]] = {}
    for one in scores:
        table.setdefault((one.scorer, one.model, one.perturbation), {})[one.prompt_id] = one.score
    return table


def hacking(
    scores: Sequence[Score],
    perturbed: Sequence[PerturbedText],
    responses: Sequence[Response],
    *,
    scorers: Mapping[str, About],
    seed: int,
) -> list[AuditRecord]:
    """The records of `hacking.json`; `scorers` says what the records of each scorer are about.

        Δ = score(perturbed) - score(original)

    of responses of the base that are not empty; a text that a perturbation leaves as it is counts as unscored. p is of
    the hypothesis that Δ is as likely to have either sign, two-sided, by sign flips over prompts, with Holm's
    correction over the perturbations of a scorer.

    Of own responses of all checkpoints (table 4), Δ by the safety prefix is of those to the same prompts that are whole
    (finished and not empty); the difference of a checkpoint's Δ from the base's is of the prompts to which both are.
    The correlation of score and length is of finished responses: behind a cut one the scorer reads no EOS, and how
    long it would have become is not known. What is left out is counted in `n_unscored`.
    """
    table = by_text(scores)
    changed = _changed(perturbed)
    names = [name for name in dict.fromkeys(one.perturbation for one in perturbed) if name is not None]
    records = [*_of_words(perturbed, names, seed)]
    for scorer, about in scorers.items():
        originals = {p: s for p, s in table.get((scorer, BASE, None), {}).items() if p in changed[None]}
        changes = {name: differences(table.get((scorer, BASE, name), {}), originals, changed[name]) for name in names}
        records += _of_scorer(about, originals, changes, seed)
    records += _of_own(table, responses, scorers, seed)
    return records


def differences(values: Values, originals: Values, prompts: set[str]) -> dict[str, float | None]:
    """Δ by prompt; unscored where a side is, or where the text was not changed."""
    found: dict[str, float | None] = {}
    for prompt, original in originals.items():
        value = values.get(prompt)
        is_scored = prompt in prompts and value is not None and original is not None
        found[prompt] = value - original if is_scored and value is not None and original is not None else None
    return found


def _changed(perturbed: Sequence[PerturbedText]) -> dict[str | None, set[str]]:
    """Perturbation → prompts whose text it changed."""
    originals = {one.prompt_id: one.text for one in perturbed if one.perturbation is None}
    found: dict[str | None, set[str]] = {None: set(originals)}
    for one in perturbed:
        own = found.setdefault(one.perturbation, set())
        if one.perturbation is not None and one.text != originals[one.prompt_id]:
            own.add(one.prompt_id)
    return found


def _of_words(perturbed: Sequence[PerturbedText], names: Sequence[str], seed: int) -> Iterator[AuditRecord]:
    originals = {one.prompt_id: one.text for one in perturbed if one.perturbation is None}
    for name in names:
        own = [one for one in perturbed if one.perturbation == name]
        added = {one.prompt_id: float(words_added(originals[one.prompt_id], one.text)) for one in own}
        yield About("texts", "words_added", name).record(mean(added, seed=seed))


def _of_scorer(about: About, originals: Values, changes: Mapping[str, Values], seed: int) -> Iterator[AuditRecord]:
    yield about._replace(metric="score").record(mean(originals, seed=seed))
    yield about._replace(metric="score_std").record(_spread(originals))
    ps = {name: _p(values, seed) for name, values in changes.items()}
    tested = [name for name, p in ps.items() if p is not None]
    corrected = dict(zip(tested, holm([ps[name] or 0.0 for name in tested]), strict=True))
    for name, values in changes.items():
        where = about._replace(category=name)
        moved = mean(values, seed=seed)
        yield where._replace(metric="score_change").record(moved, p=corrected.get(name))
        in_sd = change_in_sd(values, originals, least_spread=LEAST_SPREAD.get(about.scorer or "", 0.0))
        yield where._replace(metric="score_change_in_sd").record(in_sd, p=corrected.get(name))
        yield where._replace(metric="score_change_std").record(_spread(values))
        rises = {prompt: None if value is None else float(value > 0.0) for prompt, value in values.items()}
        yield where._replace(metric="share_positive").record(mean(rises, seed=seed, is_share=True))
        if name != CONTROL and CONTROL in changes:
            yield where._replace(metric="change_over_control").record(change(values, changes[CONTROL], seed=seed))


def _p(values: Values, seed: int) -> float | None:
    """None where nothing was scored."""
    known = {prompt: value for prompt, value in values.items() if value is not None}
    return sign_flip_test(list(known.values()), list(known), seed=seed) if known else None


def _spread(values: Values) -> Estimate:
    """The sample standard deviation over prompts."""
    return sample_std.of([value for value in values.values() if value is not None])


def _of_own(
    table: Table, responses: Sequence[Response], scorers: Mapping[str, About], seed: int
) -> Iterator[AuditRecord]:
    """Own responses of every checkpoint: behind the safety prefix, and reward against length."""
    plain = by_model([one for one in responses if one.kind == "plain"], lambda one: one.model)
    for scorer, about in scorers.items():
        if about.model != scorer:
            continue  # a policy as its own surrogate scores the base's texts alone
        asked = list(table.get((scorer, BASE, HACK), {}))
        base_deltas: Values = {}
        for model, own in plain.items():
            normal, hacked = table.get((scorer, model, None), {}), table.get((scorer, model, HACK), {})
            name = About(model, "normal_score", scorer=scorer)
            if asked:
                whole = {one.prompt_id for one in own if one.is_whole}
                # Texts of both columns are the same ones, and so are the prompts of base and checkpoint.
                before, after = ({p: side.get(p) if p in whole else None for p in asked} for side in (normal, hacked))
                deltas = differences(after, before, set(asked))
                base_deltas = base_deltas if model != BASE else deltas
                yield name.record(mean(_where(deltas, before), seed=seed))
                yield name._replace(metric="hacked_score").record(mean(_where(deltas, after), seed=seed))
                yield name._replace(metric="hack_delta").record(mean(deltas, seed=seed))
                if model != BASE:
                    delta = change(deltas, base_deltas, seed=seed)
                    yield name._replace(metric="hack_delta").record(delta, against=BASE)
            words = {one.prompt_id: None if one.is_truncated else float(one.n_words) for one in own}
            yield name._replace(metric="length_correlation").record(rank_correlation(normal, words))


def _where(known: Values, values: Values) -> dict[str, float | None]:
    """The values of those prompts that are known in another column."""
    return {prompt: None if known[prompt] is None else value for prompt, value in values.items()}


def rank_correlation(values: Values, others: Values) -> Estimate:
    """Spearman's ρ over the prompts with both values, the rest counted as unscored."""
    return spearman(list(values.values()), [others.get(prompt) for prompt in values])
