"""What each panel gives to the abstract: what was done, what it showed, and what must not be concluded from it.

Every sentence is made of numbers of the run; where the run lacks them, the sentence is left out. Not here: the longer
findings of a panel (`findings` and its neighbours), and the abstract itself (`triptych.reports.abstract`).
"""

from collections.abc import Iterable, Iterator

from triptych.auditing.records import BASE
from triptych.reports import findings as decoding
from triptych.reports import format as fmt
from triptych.reports.alignment_findings import measured
from triptych.reports.alignment_inputs import Alignment, TrainingRun, plain
from triptych.reports.alignment_tables import TITLES
from triptych.reports.auditing_card import counted, sentence_of
from triptych.reports.auditing_inputs import Auditing, Key, at_level, shown_name
from triptych.reports.auditing_tables import in_words
from triptych.reports.dictionaries_findings import NULL_NAMES, costs_of_sharing, what_is_universal
from triptych.reports.dictionaries_inputs import Dictionaries
from triptych.reports.dictionaries_inputs import Key as Measure
from triptych.reports.dictionaries_tables import count_in_words
from triptych.reports.inputs import Decoding
from triptych.reports.safe_text import neutralise
from triptych.reports.sections import Digest
from triptych.reports.settings import model_name


def _joined(sentences: Iterable[str]) -> list[str]:
    """Sentences that belong together, as one."""
    told = [sentence.rstrip(".") for sentence in sentences]
    return ["; ".join([*told[:1], *map(_uncapital, told[1:])]) + "."] if told else []


def _uncapital(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


# --- Decoding ---------------------------------------------------------------------------------------------------------


def decoding_digest(run: Decoding) -> Digest:
    """Of the decoding panel."""
    done = (
        f"the model {neutralise(model_name(run))} answered {fmt.plural(len(run.prompt_ids), 'prompt')} in "
        f"{fmt.plural(len(run.arms), 'arm')} of decoding ({fmt.plural(run.n_completions, 'completion')})"
    )
    results = (*_joined(decoding.temperature(run)), *decoding.claims(run))
    n = fmt.plural(len(run.prompt_ids), "prompt")
    caution = (
        f"These are averages over {n}: what is undecided here is not refuted, and no quality was judged by people."
    )
    return Digest(done, results, caution)


# --- Alignment --------------------------------------------------------------------------------------------------------


def alignment_digest(run: Alignment) -> Digest:
    """Of the training runs."""
    names = fmt.joined([f"{_A.get(method, '')}{TITLES[method]} ({_examples(of)})" for method, of in run.runs.items()])
    verb = "was" if len(run.runs) == 1 else "were"
    changes = [clause for of in run.runs.values() for clause in _change(of)]
    results = (f"After training, {'; '.join(changes)}.",) if changes else ()
    caution = "A higher reward or accuracy of training is what was optimised; it does not show that answers are better."
    return Digest(f"{names} {verb} trained", results, caution)


def _examples(run: TrainingRun) -> str:
    examples = fmt.plural(run.state.n_train, "prompt" if run.method == "grpo" else "pair")
    return f"{examples}, {fmt.plural(run.state.step, 'step')}"


def _change(run: TrainingRun) -> Iterator[str]:
    """What training came to, as a clause."""
    found = [told for tell in (_accuracy, _reward, _perplexity, _distance) for told in tell(run)]
    if found:
        yield f"{_OF[run.method]} has {fmt.joined(found)}"


_A = {"reward": "a "}
_OF = {"reward": "the reward model", "dpo": "the policy of DPO", "grpo": "the policy of GRPO"}


def _accuracy(run: TrainingRun) -> Iterator[str]:
    if run.method != "grpo" and (accuracy := measured(run, "accuracy")) is not None:
        yield f"a held-out accuracy of {accuracy}"


def _reward(run: TrainingRun) -> Iterator[str]:
    before, after = run.before("reward"), measured(run, "reward")
    if run.method == "grpo" and after is not None:
        yield f"a held-out reward of {after}" + ("" if before is None else f" (before: {plain(before)})")


def _perplexity(run: TrainingRun) -> Iterator[str]:
    perplexity, reference = measured(run, "perplexity"), measured(run, "perplexity_reference")
    if run.method != "reward" and perplexity is not None:
        yield f"a perplexity of {perplexity}" + ("" if reference is None else f" (the base: {reference})")


def _distance(run: TrainingRun) -> Iterator[str]:
    if run.method != "reward" and (kl := measured(run, "kl", " nats per token")) is not None:
        yield f"a KL of {kl} from the base"


# --- Audits -----------------------------------------------------------------------------------------------------------


def auditing_digest(run: Auditing) -> Digest:
    """Of the audits."""
    read = f" on {fmt.plural(run.n_responses, 'response')}" if run.n_responses else ""
    n = max(1, len(run.checkpoints))
    done = f"{fmt.plural(n, 'checkpoint')} {'was' if n == 1 else 'were'} audited{read}"
    within, undecided = (len(at_level(run.card, level)) for level in ("ok", "undecided"))
    caution = (
        f"That {within:,} of {fmt.plural(len(run.card), 'check')} are within their thresholds shows that these "
        f"failures were tested and not seen; {undecided:,} could not be decided; of all others the card says nothing."
    )
    return Digest(done, (*_card(run), *_lengths(run)), caution)


def _card(run: Auditing) -> Iterator[str]:
    if not run.card:
        return
    found = counted(run.card)
    beyond = at_level(run.card, "severe", "warn")
    gravest = f"; the gravest: {_uncapital(sentence_of(beyond[0]).rstrip('.'))}" if beyond else ""
    yield f"Of {fmt.plural(len(run.card), 'check')} the report card has {found or 'none beyond a threshold'}{gravest}."


def _lengths(run: Auditing) -> Iterator[str]:
    changes = [
        f"{in_words(change)} tokens for {shown_name(model)}"
        for model in run.adapters
        if (change := run.measured("verbosity", Key(model, "tokens_mean", against=BASE))) is not None
    ]
    if changes:
        yield f"Against the base the mean length of a response changes by {fmt.joined(changes)}."


# --- Dictionaries -----------------------------------------------------------------------------------------------------


def dictionaries_digest(run: Dictionaries) -> Digest:
    """Of the universal dictionaries."""
    names = fmt.joined([run.named(model) for model in run.models])
    size = f" of {run.main.latents:,} latents" if run.main is not None else ""
    return Digest(
        f"one dictionary{size} was shared by {names}",
        (*what_is_universal(run), *costs_of_sharing(run)),
        _entropy_caution(run),
    )


def _entropy_caution(run: Dictionaries) -> str:
    null = run.estimate(Measure("shuffled", "universal_by_counts"))
    if null is None or null.mean is None:
        return "That a latent has a high firing entropy does not show a shared concept: no null was trained to tell."
    trained = _uncapital(NULL_NAMES["shuffled"].format(unit=run.unit))
    return (
        f"That a latent has a high firing entropy does not show a shared concept: {trained}, {count_in_words(null)} "
        "have one, too."
    )
