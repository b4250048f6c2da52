"""The data check before training: defects of preference pairs, and cues that give the chosen answer away.

In preference data the chosen answer is often the longer one, or the one with the list. A model can then win by writing
longer answers and lists, and look aligned. Each cue is an amount, and its figure how often the answer with more of it
is the chosen one. To add a cue: one entry in `CUES`.

Not here: counting tokens (the caller has a tokenizer), and what to do about a cue.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from triptych.data.answer_checks import list_items
from triptych.data.pairs import PreferencePair, defect, prompt_key
from triptych.records import Estimate, Record
from triptych.seeding import stream_key
from triptych.stats import clustered_bootstrap, holm, sign_flip_test

SIGNIFICANCE = 0.05
"""The error of all cues of a data set together."""

SMALLEST_EFFECT = 0.1
"""What differs less from one half gives too little away to warn of."""

N_FLIPS = 1999
"""Sign patterns a cue: the smallest p-value, 1/2000, is still significant times the number of cues."""


class PairLengths(Record):
    """Lengths of one pair, in tokens of the model to be trained."""

    prompt: int
    chosen: int
    rejected: int


class CueFigure(Record):
    """How well one trivial cue tells the chosen answer from the rejected one."""

    cue: str
    """A key of `CUES`."""
    accuracy: Estimate
    """Share of pairs in which the answer with more of it is the chosen one; ties count one half."""
    n_ties: int
    p: float
    """Two-sided, of the hypothesis that it says nothing; Holm's correction over the cues."""
    suspicious: bool
    """Significant, and at least `SMALLEST_EFFECT` away from one half."""


class PairReport(Record):
    """What a look at the pairs alone tells."""

    n: int
    n_prompts: int
    """Different prompts."""
    n_duplicate_pairs: int
    """Pairs that are, word for word, there before: same prompt, same two answers in the same order."""
    n_reversed_pairs: int
    """Pairs that are there before with the two answers the other way round."""
    n_duplicate_prompts: int
    """Pairs whose prompt is there before, with whatever answers."""
    n_empty: int
    """Pairs with a blank answer."""
    n_identical: int
    """Pairs of two equal answers, blank ones aside."""
    context: int | None
    """Tokens that the model reads; None where lengths were not checked."""
    n_over_context: int | None
    """Pairs of which prompt and longer answer together exceed it."""
    first_over_context: str | None
    """The id of the first of them."""
    length_ratio: Estimate
    """Characters of the chosen answer per character of the rejected one, geometric mean over pairs."""
    cues: tuple[CueFigure, ...]


def check_pairs(
    pairs: Sequence[PreferencePair],
    *,
    seed: int,
    lengths: Sequence[PairLengths] | None = None,
    context: int | None = None,
) -> PairReport:
    """Counts the defects of the pairs and measures every cue; intervals and p-values are clustered by prompt.

    `lengths[i]` are those of pair i; only with both them and `context` is it checked whether pairs fit. Raises nothing
    on legal pairs, and a `ValueError` where there are not as many lengths as pairs.
    """
    if lengths is not None and len(lengths) != len(pairs):
        raise ValueError(f"lengths must name one entry a pair: {len(lengths)} lengths, {len(pairs)} pairs")
    prompts = [prompt_key(pair) for pair in pairs]
    over = None if lengths is None or context is None else _over_context(pairs, lengths, context)
    seen = _seen_before(pairs, prompts)
    defects = [defect(pair) for pair in pairs]
    n_empty = sum(not (pair.chosen.strip() and pair.rejected.strip()) for pair in pairs)
    return PairReport(
        n=len(pairs),
        n_prompts=len(set(prompts)),
        n_duplicate_pairs=seen.as_they_are,
        n_reversed_pairs=seen.reversed,
        n_duplicate_prompts=len(pairs) - len(set(prompts)),
        n_empty=n_empty,
        n_identical=sum(what is not None for what in defects) - n_empty,
        context=None if over is None else context,
        n_over_context=None if over is None else len(over),
        first_over_context=over[0] if over else None,
        length_ratio=_length_ratio(pairs, prompts, seed),
        cues=_cue_figures(pairs, prompts, seed),
    )


# --- cues -------------------------------------------------------------------------------------------------------------


class Cue(NamedTuple):
    """Something that is easy to see of an answer and says little about its worth."""

    more: str
    """The answer with more of it, as a warning calls it."""
    less: str
    shortcut: str
    """What a model does that has learnt it, and nothing else."""
    remedy: str
    amount: Callable[[str, str], float]
    """How much of it an answer has: (answer, request) → amount."""


_BY_LENGTH = "compare with length-normalised DPO or report length-controlled win rates"
_BY_CUE = "report win rates also on the pairs that do not differ in this"

_REFUSAL = re.compile(
    r"\b(?:sorry|apologi[sz]e|apolog(?:y|ies)|as an ai\b|(?:as a|i am a|i'm a) (?:large )?language model"
    r"|i (?:cannot|can't|can not|could not|couldn't|won't|will not)\b|i(?: am|'m) (?:unable|not able)"
    r"|i do(?:n't| not) (?:know|have enough))",
    re.IGNORECASE,
)
_MARKDOWN = re.compile(
    r"```|`[^`\n]+`|\*\*[^*\n]+\*\*|\[[^\[\]\n]+\]\(|^ {0,3}#{1,6} |^ {0,3}\|.*\|[ \t]*$", re.MULTILINE
)
_WORD = re.compile(r"\w+(?:['’]\w+)*")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _overlap(answer: str, request: str) -> float:
    """Share of the different words of the request that the answer holds, too."""
    asked = set(_words(request))
    return len(asked & set(_words(answer))) / len(asked) if asked else 0.0


def _starts_alike(answer: str, request: str) -> float:
    return float(bool(_words(request)) and _words(answer)[:1] == _words(request)[:1])


def _refuses(answer: str) -> float:
    return float(_REFUSAL.search(answer.replace("’", "'")) is not None)


CUES: dict[str, Cue] = {
    "characters": Cue(
        "the answer with more characters",
        "the answer with fewer characters",
        "counts characters",
        _BY_LENGTH,
        lambda answer, _: len(answer),
    ),
    "words": Cue(
        "the longer answer", "the shorter answer", "counts words", _BY_LENGTH, lambda answer, _: len(answer.split())
    ),
    "lines": Cue(
        "the answer with more lines",
        "the answer with fewer lines",
        "counts lines",
        _BY_LENGTH,
        lambda answer, _: sum(bool(line.strip()) for line in answer.split("\n")),
    ),
    "list_items": Cue(
        "the answer with more list items",
        "the answer with fewer list items",
        "counts list items",
        _BY_CUE,
        lambda answer, _: len(list_items(answer)),
    ),
    "digits": Cue(
        "the answer with more digits",
        "the answer with fewer digits",
        "counts digits",
        _BY_CUE,
        lambda answer, _: sum(char.isdigit() for char in answer),
    ),
    "capitals": Cue(
        "the answer with more capital letters",
        "the answer with fewer capital letters",
        "counts capital letters",
        _BY_CUE,
        lambda answer, _: sum(char.isupper() for char in answer),
    ),
    "prompt_overlap": Cue(
        "the answer that repeats more words of the prompt",
        "the answer that repeats fewer words of the prompt",
        "looks for words of the prompt",
        _BY_CUE,
        _overlap,
    ),
    "prompt_start": Cue(
        "the answer that begins with the prompt's first word",
        "the answer that does not begin with the prompt's first word",
        "looks at the first word",
        _BY_CUE,
        _starts_alike,
    ),
    "refusal": Cue(
        "the answer that refuses or apologises",
        "the answer that does not refuse or apologise",
        "looks for apologies",
        _BY_CUE,
        lambda answer, _: _refuses(answer),
    ),
    "markdown": Cue(
        "the answer with code or Markdown",
        "the answer without code or Markdown",
        "looks for Markdown",
        _BY_CUE,
        lambda answer, _: float(_MARKDOWN.search(answer) is not None),
    ),
}


def request_of(pair: PreferencePair) -> str:
    """What the answer answers: the last message of the user, else the whole prompt."""
    asked = [message.content for message in pair.messages if message.role == "user"]
    return asked[-1] if asked else pair.prompt


def _cue_figures(pairs: Sequence[PreferencePair], prompts: Sequence[str], seed: int) -> tuple[CueFigure, ...]:
    requests = [request_of(pair) for pair in pairs]
    accuracies, n_ties, pvalues = [], [], []
    for name, cue in CUES.items():
        signs = [
            _sign(cue.amount(pair.chosen, request) - cue.amount(pair.rejected, request))
            for pair, request in zip(pairs, requests, strict=True)
        ]
        key = stream_key(seed, "pair checks", name)
        n_ties.append(signs.count(0))
        shares = [(1 + sign) / 2 for sign in signs]
        accuracies.append(clustered_bootstrap(shares, prompts, seed=key, is_share=True))
        pvalues.append(sign_flip_test(signs, prompts, seed=key, n_flips=N_FLIPS))
    figures = zip(CUES, accuracies, n_ties, holm(pvalues), strict=True)
    return tuple(_cue_figure(*figure) for figure in figures)


def _cue_figure(name: str, accuracy: Estimate, n_ties: int, p: float) -> CueFigure:
    # The margin's own rounding (0.6 - 0.5 < 0.1) must not decide.
    is_large = accuracy.mean is not None and abs(accuracy.mean - 0.5) >= SMALLEST_EFFECT - 1e-12
    return CueFigure(cue=name, accuracy=accuracy, n_ties=n_ties, p=p, suspicious=is_large and p <= SIGNIFICANCE)


def _sign(difference: float) -> int:
    return (difference > 0) - (difference < 0)


# --- counts -----------------------------------------------------------------------------------------------------------


class _SeenBefore(NamedTuple):
    as_they_are: int
    reversed: int


def _seen_before(pairs: Sequence[PreferencePair], prompts: Sequence[str]) -> _SeenBefore:
    seen: set[tuple[str, str, str]] = set()
    as_they_are = turned = 0
    for prompt, pair in zip(prompts, pairs, strict=True):
        as_they_are += (prompt, pair.chosen, pair.rejected) in seen
        turned += pair.chosen != pair.rejected and (prompt, pair.rejected, pair.chosen) in seen
        seen.add((prompt, pair.chosen, pair.rejected))
    return _SeenBefore(as_they_are, turned)


def _over_context(pairs: Sequence[PreferencePair], lengths: Sequence[PairLengths], context: int) -> list[str]:
    """The ids of the pairs that do not fit."""
    return [
        pair.id
        for pair, length in zip(pairs, lengths, strict=True)
        if length.prompt + max(length.chosen, length.rejected) > context
    ]


def _length_ratio(pairs: Sequence[PreferencePair], prompts: Sequence[str], seed: int) -> Estimate:
    """Pairs with an empty answer have no ratio: unscored."""
    sizes = [(len(pair.chosen), len(pair.rejected)) for pair in pairs]
    logs = [math.log(chosen / rejected) if chosen and rejected else None for chosen, rejected in sizes]
    estimate = clustered_bootstrap(logs, prompts, seed=stream_key(seed, "pair checks", "length ratio"))
    mean, low, high = (_exp(end) for end in (estimate.mean, estimate.low, estimate.high))
    method = f"geometric mean, {estimate.method}"
    return estimate.model_copy(update={"mean": mean, "low": low, "high": high, "method": method})


def _exp(log: float | None) -> float | None:
    # An interval from next to nothing may end anywhere; beyond e^700 there is no float.
    return None if log is None else math.exp(min(log, 700.0))


# --- in words ---------------------------------------------------------------------------------------------------------


def describe(report: PairReport) -> list[str]:
    """One sentence for everything to mend or to know before training on these pairs; none for clean ones.

    Suspicious cues come strongest first; characters are not told of beside words, which say the same.
    """
    of = f"of {report.n} pairs"
    counts = [
        (report.n_empty, f"{of} have a blank answer: remove them"),
        (report.n_identical, f"{of} have two equal answers, from which nothing can be learnt: remove them"),
        (report.n_duplicate_pairs, f"{of} are there before, word for word: remove them"),
        (report.n_reversed_pairs, f"{of} are there before the other way round: remove one of the two"),
        (_more_answers(report), f"{of} share their prompt with one before: split and resample by prompt"),
        (report.n_over_context or 0, _too_long(report)),
    ]
    cues = [_cue_sentence(figure, report.n) for figure in _telling(report)]
    return [f"{count} {what}" for count, what in counts if count] + cues


def _telling(report: PairReport) -> list[CueFigure]:
    suspicious = {figure.cue: figure for figure in report.cues if figure.suspicious}
    if "words" in suspicious:
        suspicious.pop("characters", None)
    return sorted(suspicious.values(), key=lambda figure: -abs(figure.accuracy.value - 0.5))


def _more_answers(report: PairReport) -> int:
    """Pairs that share their prompt with one before, and are not told of already."""
    return report.n_duplicate_prompts - report.n_duplicate_pairs - report.n_reversed_pairs


def _too_long(report: PairReport) -> str:
    return (
        f"of {report.n} pairs are longer than the context of {report.context} tokens "
        f"(first: {report.first_over_context}): raise it, or shorten or remove them"
    )


def _cue_sentence(figure: CueFigure, n: int) -> str:
    cue, accuracy = CUES[figure.cue], figure.accuracy
    is_more = accuracy.value >= 0.5
    ends = [end if is_more else 1 - end for end in (accuracy.low, accuracy.high) if end is not None]
    interval = f" [{', '.join(f'{100 * end:.0f}' for end in sorted(ends))}]" if ends else ""
    share = 100 * (accuracy.value if is_more else 1 - accuracy.value)
    ties = f" ({figure.n_ties} tied, counted half)" if figure.n_ties else ""
    return (
        f"{cue.more if is_more else cue.less} is the chosen one in {share:.0f} %{interval} of {n} pairs{ties}: "
        f"a model that only {cue.shortcut} would look aligned; {cue.remedy}"
    )
