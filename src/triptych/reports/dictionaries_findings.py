"""What the dictionaries show, in sentences made of this run's own numbers, for the summary on top of the page.

A sentence says what was measured; where two pictures look alike is not measured, and no sentence speaks of it.
"""

from collections.abc import Iterator

from triptych.dictionaries.records import MAIN
from triptych.records import Estimate
from triptych.reports import format as fmt
from triptych.reports.auditing_tables import in_words
from triptych.reports.dictionaries_inputs import Dictionaries, Key
from triptych.reports.dictionaries_paper import ways
from triptych.reports.dictionaries_tables import count_in_words

NULL_NAMES = {"shuffled": "Trained on {unit}s that do not correspond", "same": "Of a model and itself"}


def findings(run: Dictionaries) -> tuple[str, ...]:
    """Sentences, in order; at least the first."""
    sentences = [_what_it_explains(run), *costs_of_sharing(run), *what_is_universal(run), *_what_nulls_say(run)]
    return (*sentences, *_what_the_update_does(run), *_what_brackets_are(run))


def _what_it_explains(run: Dictionaries) -> str:
    main = run.main
    size = f" of {main.latents:,} latents, {main.k} active," if main is not None else ""
    names = fmt.joined([run.named(model) for model in run.models])
    own = [f"{in_words(e)} of {run.named(m)}" for m in run.models if (e := _r2(run, MAIN, m, m)) is not None]
    if not own:
        return f"A dictionary{size} is shared by {names}; how much it explains was not measured."
    # Where there are two updates, a sentence of its own compares them.
    cross = "" if len(_by_update(run)) > 1 else range_of(cross_r2(run, MAIN))
    read = f"; read from another model’s code {cross}" if cross else ""
    return f"One dictionary{size} shared by {names} explains (R², held-out) {fmt.joined(own)}{read}."


def _r2(run: Dictionaries, role: str, source: str, target: str) -> Estimate | None:
    found = run.estimate(Key(role, "r2", source, target))
    return None if found is None or found.mean is None else found


def cross_r2(run: Dictionaries, role: str) -> list[Estimate]:
    """R² of every model from every other's code, as far as it was measured."""
    found = (_r2(run, role, *way) for way in ways(run) if way.source != way.target)
    return [estimate for estimate in found if estimate is not None]


def range_of(estimates: list[Estimate]) -> str:
    """`0.62 [0.61, 0.63]`, of two the lower and the higher, of more the ends without intervals."""
    ordered = sorted(estimates, key=lambda estimate: estimate.value)
    if len(ordered) > 2:
        return f"{fmt.number(ordered[0].value, 3)} to {fmt.number(ordered[-1].value, 3)}"
    return " and ".join(in_words(estimate) for estimate in ordered)


def costs_of_sharing(run: Dictionaries) -> Iterator[str]:
    costs = [(run.named(model), _tax(run, "alignment_tax", model)) for model in run.models]
    told = [f"{in_words(tax)} for {name}" for name, tax in costs if tax is not None]
    if not told:
        yield "What sharing costs was not measured: this run has no independent dictionaries."
        return
    equal = [(run.named(model), _tax(run, "alignment_tax_equal_updates", model)) for model in run.models]
    again = [f"{in_words(tax)} for {name}" for name, tax in equal if tax is not None]
    updates = f"; against ones of equal updates it costs {fmt.joined(again)}" if again else ""
    yield f"Sharing costs, in R² against independent dictionaries of equal steps, {fmt.joined(told)}{updates}."


def _tax(run: Dictionaries, metric: str, model: str) -> Estimate | None:
    found = run.of_model(metric, model)
    return None if found is None or found.mean is None else found


def what_is_universal(run: Dictionaries) -> Iterator[str]:
    counts = {name: run.of_main(name) for name in ("universal", "partial", "specific", "dead")}
    universal = counts["universal"]
    if universal is None:
        return
    others = [f"{fmt.number(e.value, 0)} {name}" for name, e in counts.items() if name != "universal" and e is not None]
    size = f" of {run.main.latents:,}" if run.main is not None else ""
    listed = f", {fmt.joined(others)}" if others else ""
    classic = run.of_main("universal_by_counts")
    paper = (
        f"; by firing entropy, the paper’s definition, {fmt.number(classic.value, 0)} would be universal"
        if classic is not None
        else ""
    )
    n = fmt.number(universal.value, 0)
    yield f"By what they explain {n} latents{size} are universal and confirmed{listed}{paper}{_co_firing(run)}."


def _co_firing(run: Dictionaries) -> str:
    proportion, chance = (_value(run, MAIN, f"co_firing_{name}") for name in ("proportion", "chance"))
    if proportion is None:
        return ""
    by_chance = f", where chance alone gives {in_words(chance)}" if chance is not None else ""
    return f". The co-firing proportion is {in_words(proportion)}{by_chance}"


def _value(run: Dictionaries, role: str, metric: str) -> Estimate | None:
    found = run.estimate(Key(role, metric))
    return None if found is None or found.mean is None else found


def _what_nulls_say(run: Dictionaries) -> Iterator[str]:
    told = [sentence for role in NULL_NAMES for sentence in _null(run, role)]
    if told:
        yield " ".join(told)
    else:
        yield "No null was trained: how many latents look universal without any correspondence is not known."


def _null(run: Dictionaries, role: str) -> Iterator[str]:
    universal, classic = _value(run, role, "universal"), _value(run, role, "universal_by_counts")
    if universal is None:
        return
    by_counts = f", by firing entropy {count_in_words(classic)}" if classic is not None else ""
    trained = NULL_NAMES[role].format(unit=run.unit)
    yield f"{trained}, {count_in_words(universal)} latents are universal and confirmed{by_counts}."


def _what_the_update_does(run: Dictionaries) -> Iterator[str]:
    told = [f"{cross} with update = {update}" for update, cross in _by_update(run).items()]
    if len(told) > 1:
        yield f"From one model’s code to another model R² is {fmt.joined(told)}."


def _by_update(run: Dictionaries) -> dict[str, str]:
    """R² between models of each update, in words."""
    found = {update: range_of(cross_r2(run, role)) for role, update in run.updates() if update}
    return {update: cross for update, cross in found.items() if cross}


def _what_brackets_are(run: Dictionaries) -> Iterator[str]:
    if any(row.estimate.low is not None for row in run.measures):
        over = (
            f"over {len(run.seeds):,} seeds"
            if len(run.seeds) > 1
            else f"over held-out {run.unit}s (this run has one seed)"
        )
        yield f"Brackets are 95{fmt.NBSP}% intervals {over}."
