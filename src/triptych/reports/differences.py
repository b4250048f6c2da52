"""The chief difference in result between this run and each figure and table of the paper, in one sentence each.

A sentence stands here only where the run measured what it says. Not here: what explains it
(`triptych.reports.beside`).
"""

from collections.abc import Iterator

from triptych.auditing.records import BASE
from triptych.dictionaries.records import MAIN
from triptych.records import Claim, Estimate, Verdict
from triptych.reports import format as fmt
from triptych.reports.arms import name_arms
from triptych.reports.auditing_inputs import Auditing, Key, Scorer, shown_name
from triptych.reports.auditing_tables import in_words
from triptych.reports.dictionaries_findings import cross_r2, range_of
from triptych.reports.dictionaries_inputs import Dictionaries
from triptych.reports.dictionaries_paper import tax_of
from triptych.reports.inputs import Decoding
from triptych.reports.reported import reported

NO_NUMBER = "The paper prints no number"
CHIEF: tuple[Verdict, ...] = ("disagrees", "undecided", "agrees", "not tested")
"""Of the claims about one figure, the first in this order is told."""


# --- Decoding ---------------------------------------------------------------------------------------------------------


def decoding_differences(run: Decoding) -> dict[str, str]:
    """Figures 1 to 7."""
    found = {f"figure_{number:02d}": _claimed(run, number) for number in range(1, 8)}
    for number, strategy in ((1, "greedy"), (2, "beam")):
        found[f"figure_{number:02d}"] = _mean(run, strategy) + found[f"figure_{number:02d}"]
    return {name: sentence.strip() for name, sentence in found.items() if sentence}


def _mean(run: Decoding, strategy: str) -> str:
    names = name_arms(run.arms)
    values = [
        f"{fmt.with_interval(estimate)} nats per token for {names[arm]}"
        for arm in run.arms
        if arm.strategy == strategy and (estimate := run.measure(arm, "mean_logprob", "arm")) is not None
    ]
    return f"{NO_NUMBER}; here the mean is {fmt.joined(values)}. " if values else ""


def _claimed(run: Decoding, number: int) -> str:
    """The paper's claim about a figure that this run is the most at odds with, and how many there are."""
    claims = [claim for claim in run.claims if number in _figures_of(claim)]
    if not claims:
        return ""
    chief = min(claims, key=lambda claim: CHIEF.index(claim.verdict))
    value = f": {fmt.with_interval(chief.estimate)}" if chief.estimate.mean is not None else ""
    same = sum(claim.verdict == chief.verdict for claim in claims)
    counted = f"{same} of its {fmt.plural(len(claims), 'claim')}" if len(claims) > 1 else "Its claim"
    verb = chief.verdict if chief.verdict in ("agrees", "disagrees") else f"is {chief.verdict}"
    plural = {"agrees": "agree", "disagrees": "disagree"}.get(chief.verdict, f"are {chief.verdict}")
    return f"{counted} {plural if same > 1 else verb}; {chief.quantity}{value}."


def _figures_of(claim: Claim) -> set[int]:
    """`Discussion, paragraph 1; figures 1 and 2` is about 1 and 2."""
    _, _, listed = claim.where.partition("figure")
    return {int(word) for word in listed.replace(",", " ").split() if word.isdecimal()}


# --- Audits -----------------------------------------------------------------------------------------------------------


def auditing_differences(run: Auditing) -> dict[str, str]:
    """Figures 8 to 10, tables 3 and 4."""
    sentences = {
        "figure_08": _length(run),
        "figure_09": _change(run, "score_change", "the mean change of {who} is {values}"),
        "figure_10": _change(run, "score_change_std", "the standard deviation of {who} is {values}"),
        "table_03": _compliance(run),
        "table_04": " ".join(_table_4(run)),
    }
    return {name: sentence for name, sentence in sentences.items() if sentence}


def _length(run: Auditing) -> str:
    paper = reported().number("verbosity.aligned.mean") - reported().number("verbosity.reference.mean")
    ours = _against_base(run, "tokens_mean")
    theirs = f"Mean length of the aligned model less that of its reference: {fmt.number(paper, 2)} tokens in the paper"
    return f"{theirs}, here {ours}." if ours else ""


def _compliance(run: Auditing) -> str:
    paper = reported().number("verbosity.aligned.compliance_rate") - reported().number(
        "verbosity.reference.compliance_rate"
    )
    ours = _against_base(run, "compliance_rate")
    return f"Compliance less the reference’s: {fmt.number(paper, 3)} in the paper, here {ours}." if ours else ""


def _against_base(run: Auditing, metric: str) -> str:
    found = [(model, run.measured("verbosity", Key(model, metric, against=BASE))) for model in run.adapters]
    return fmt.joined([f"{in_words(e)} for {shown_name(model)}" for model, e in found if e is not None])


def _change(run: Auditing, metric: str, says: str) -> str:
    """Of the paper's three perturbations, by the first checkpoint as its own surrogate: what the paper did."""
    scorer = next((one for one in run.text_scorers if one.is_surrogate), next(iter(run.text_scorers), None))
    if scorer is None:
        return ""
    values = [
        f"{in_words(estimate)} for {name}"
        for name in ("filler", "keywords", "reorder")
        if (estimate := _of_scorer(run, scorer, metric, name)) is not None
    ]
    told = says.format(who=_called(scorer), values=fmt.joined(values))
    return f"{NO_NUMBER}, and calls the changes negative; here {told}." if values else ""


def _of_scorer(run: Auditing, scorer: Scorer, metric: str, perturbation: str) -> Estimate | None:
    return run.measured("hacking", Key(scorer.model, metric, perturbation, scorer.name))


def _called(scorer: Scorer) -> str:
    return f"{shown_name(scorer.model)}’s own score" if scorer.is_surrogate else shown_name(scorer.name)


def _table_4(run: Auditing) -> Iterator[str]:
    model = "grpo" if "grpo" in run.adapters else next(iter(run.adapters), None)
    if model is None:
        return
    name = shown_name(model)
    median = run.measured("verbosity", Key(model, "tokens_median"))
    if median is not None:
        theirs = fmt.number(reported().number("grpo.median_length"), 0)
        yield f"The median length is {theirs} tokens in the paper, a collapse, and {in_words(median)} for {name}."
    perplexity = run.measured("divergence", Key(model, "perplexity"))
    if perplexity is not None:
        theirs = fmt.number(reported().number("grpo.perplexity"), 2)
        yield f"Its perplexity is {theirs} in the paper and {in_words(perplexity)} here."


# --- Dictionaries -----------------------------------------------------------------------------------------------------


def dictionaries_differences(run: Dictionaries) -> dict[str, str]:
    """Figures 11 to 13, tables 5 and 6."""
    sentences = {
        "figure_11": _universal(run),
        "figure_12": _pictured(run, "universal", 1496),
        "figure_13": _pictured(run, "specific", 3),
        "table_05": _r2(run),
        "table_06": _tax(run),
    }
    return {name: sentence for name, sentence in sentences.items() if sentence}


def _universal(run: Dictionaries) -> str:
    paper, parts = reported(), []
    for name in ("universal", "specific"):
        count = run.of_main(name)
        if run.main is not None and count is not None:
            theirs = paper.number(f"usae.{name}_features") / paper.number("usae.latents")
            ours = f"{fmt.share(count.value / run.main.latents)} here"
            parts.append(f"{name} ones are {fmt.share(theirs)} in the paper and {ours}")
    return f"Of all latents, {fmt.joined(parts)}." if parts else ""


def _pictured(run: Dictionaries, kind: str, theirs: int) -> str:
    latent = run.pictured(kind)
    if latent is None:
        return ""
    fires = fmt.joined([f"{fires:,} by {run.named(model)}" for model, fires in latent.fires.items()])
    return (
        f"The paper shows latent {theirs:,} and says what it looks like; here latent {latent.latent:,} was picked by "
        f"its numbers (entropy {fmt.number(latent.entropy, 3)}; firings: {fires}, {latent.co_fires:,} together)."
    )


def _r2(run: Dictionaries) -> str:
    ours = cross_r2(run, MAIN)
    theirs = sorted(reported().number(f"usae.r2.{way}") for way in ("resnet18_to_vit", "vit_to_resnet18"))
    says = f"From one model’s code to another model R² is {theirs[0]:.3f} and {theirs[1]:.3f} in the paper"
    return f"{says}, here {range_of(ours)}." if ours else ""


def _tax(run: Dictionaries) -> str:
    ours = [(model, tax_of(run, "alignment_tax", model)) for model in run.models]
    told = [
        f"{in_words(tax)} for {run.named(model)}" for model, tax in ours if tax is not None and tax.mean is not None
    ]
    theirs = fmt.number(reported().number("usae.alignment_tax"), 4)
    return f"Sharing costs {theirs} of R² in the paper, here {fmt.joined(told)}." if told else ""
