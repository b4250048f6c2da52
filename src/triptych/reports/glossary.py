"""Every measure of the decoding panel, every value of the training logs: name, unit and exact definition, in one place.

Tables take their column heads from here and the page its methods section, so that what is shown and what is explained
cannot drift apart. Not here: the computations (`triptych.metrics` and the panels themselves).
"""

import re
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from triptych.alignment.state import Method

Topic = Literal["likelihood", "diversity", "matched diversity", "length", "repetition", "other"]
Scope = Literal["across", "within", "arm"]

SCOPES: dict[Scope, str] = {
    "across": "across prompts: one sample of every prompt, pooled",
    "within": "within a prompt: all samples of one prompt, then the mean over prompts",
    "arm": "where nothing is said: every completion; those of one prompt are averaged first, then the prompts",
}


class TermInfo(NamedTuple):
    """What one figure of an audit, or one value of a training log, means."""

    label: str
    """Short, for titles and keys."""
    unit: str
    definition: str

    @property
    def axis(self) -> str:
        """Label and unit, for an axis."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


class MeasureInfo(NamedTuple):
    """How one measure is shown and what it means."""

    label: str
    """Short, for column heads and axes."""
    unit: str
    decimals: int
    topic: Topic
    definition: str

    @property
    def axis(self) -> str:
        """Label and unit, for an axis."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


_RAW = (
    "The model's own log-softmax in single precision at temperature 1, before any temperature or truncation, averaged "
    "over the tokens of a completion, the end-of-sequence token included. It says how likely the model finds the text, "
    "not how good the text is."
)
_SAMPLER = (
    "The same average under the distribution that was actually sampled from, after temperature, truncation and "
    "renormalisation. Searches draw from none."
)
_DISTINCT = (
    "Unique n-grams of words over all of them in the pooled texts; words are split at white space and lower-cased, "
    "n-grams never cross texts. (Li et al. 2016 divide by the number of tokens instead.) It falls as texts grow "
    "longer or more numerous, so figures compare only at equal amounts of text."
)
_EAD = (
    "Distinct words over the number expected of as many uniform draws from a vocabulary of V: "
    "N / (V · (1 − ((V − 1) / V)^C)) with N distinct among C in total (Liu et al. 2022). V is one number for all arms, "
    "the word types in all their texts; the method of each figure states it. It corrects Distinct-1 for the amount of "
    "text and is not bounded by 1."
)
_STOPS = {
    "eos": "the model ended the text itself with an end-of-sequence token",
    "length": "the limit on new tokens was reached",
    "repeat": "an n-gram of tokens had occurred more often than the repetition rule allows",
    "marker": "the model began to echo a prompt marker such as “### Response”; the text is cut before it",
}

FIXED: dict[str, MeasureInfo] = {
    "mean_logprob": MeasureInfo("mean log-probability", "nats per token", 3, "likelihood", _RAW),
    "sampler_mean_logprob": MeasureInfo("sampler's mean log-probability", "nats per token", 3, "likelihood", _SAMPLER),
    "reward": MeasureInfo(
        "reward",
        "reward model's score",
        2,
        "likelihood",
        "Mean score that the named reward model gives to prompt and completion. Completions without a score are "
        "counted as unscored and never as zero.",
    ),
    "self_bleu": MeasureInfo(
        "Self-BLEU",
        "",
        3,
        "diversity",
        "BLEU of each text against the other texts of its group, averaged (Zhu et al. 2018): 1 where all are the same, "
        "lower is more varied. A group is the samples of one prompt, or about ten prompts' texts: Self-BLEU rises with "
        "the size of the group.",
    ),
    "tokens": MeasureInfo(
        "length", "tokens", 1, "length", "Generated tokens of a completion, the end-of-sequence token included."
    ),
    "words": MeasureInfo("length", "words", 1, "length", "Words of the post-processed text, split at white space."),
    "seq_rep_3": MeasureInfo(
        "seq-rep-3",
        "",
        3,
        "repetition",
        "Share of a completion's token 3-grams that repeat an earlier one (Welleck et al. 2020), averaged over "
        "completions.",
    ),
    "max_ngram_count": MeasureInfo(
        "most frequent 3-gram",
        "occurrences",
        2,
        "repetition",
        "How often the most frequent token 3-gram of a completion occurs in it, averaged over completions.",
    ),
}


_EXACT_KL = (
    "Σ π (log π − log π_ref) over the whole vocabulary, averaged over the tokens of the held-out chosen answers. 0 "
    "before training."
)
_SAMPLE_KL = (
    "Distance to the reference on the policy's own completions, averaged over tokens: the mean of r − 1 − log r with "
    "r = π_ref / π (Schulman's k3), which is never negative; on held-out prompts the exact KL."
)
_PERPLEXITY = (
    "exp of the mean negative log-probability of {answers}, over tokens, the end-of-sequence token included. Dashed: "
    "the reference's, on the same tokens."
)
_WITHOUT_EOS = "Tokens of a completion, the end-of-sequence token not counted; an empty completion has 0."

TRAINING: dict[Method, dict[str, TermInfo]] = {
    "reward": {
        "loss": TermInfo(
            "loss",
            "nats",
            "−log σ(score of the chosen answer − score of the rejected one), Bradley and Terry, averaged over pairs; "
            "ln 2 for a model that scores both alike.",
        ),
        "accuracy": TermInfo(
            "accuracy", "share of pairs", "Share of pairs whose chosen answer scores higher; 0.5 is chance."
        ),
        "margin": TermInfo("margin", "score", "Score of the chosen answer minus that of the rejected one."),
    },
    "dpo": {
        "loss": TermInfo(
            "loss",
            "",
            "The preference loss, averaged over pairs. Of DPO it is ln 2 = 0.693 nats where policy and reference are "
            "the same, which is where training starts.",
        ),
        "accuracy": TermInfo(
            "accuracy",
            "share of pairs",
            "Share of pairs whose chosen answer has the higher implicit reward; 0.5 is chance. Before the first step "
            "all rewards are 0 and there is none.",
        ),
        "margin": TermInfo("margin", "", "Implicit reward of the chosen answer minus that of the rejected one."),
        "reward_chosen": TermInfo(
            "chosen",
            "",
            "Implicit reward: β (log π − log π_ref) of an answer given its prompt, of DPO in nats. That of chosen "
            "answers may fall while the margin grows.",
        ),
        "reward_rejected": TermInfo("rejected", "", "The same of the rejected answers."),
        "perplexity": TermInfo("perplexity", "", _PERPLEXITY.format(answers="the held-out chosen answers")),
        "kl": TermInfo("KL from the reference", "nats per token", _EXACT_KL),
    },
    "grpo": {
        "reward": TermInfo("reward", "", "Mean of the weighted sum of all reward functions, over completions."),
        "gold": TermInfo(
            "gold score",
            "",
            "Mean score by a scorer that training never sees. Where it falls while the reward rises, the policy has "
            "learnt the reward's faults.",
        ),
        "kl": TermInfo("KL from the reference", "nats per token", _SAMPLE_KL),
        "length_median": TermInfo("length", "tokens", _WITHOUT_EOS),
        "empty_rate": TermInfo("empty", "% of completions", "Completions that hold no token but the end of sequence."),
        "eos_first": TermInfo(
            "end of text as first token",
            "%",
            "Mean probability of the end-of-sequence token as the first one: what empty completions are drawn from. It "
            "moves before they do.",
        ),
        "truncated_rate": TermInfo("cut off", "% of completions", "Completions that the token limit cut."),
        "entropy": TermInfo(
            "entropy", "nats per token", "Entropy of the policy's next-token distribution along its own completions."
        ),
        "zero_variance": TermInfo(
            "groups of one reward",
            "% of groups",
            "Groups whose completions all got the same reward: nothing is learnt from them.",
        ),
        "clip_fraction": TermInfo(
            "clipped", "% of tokens", "Tokens whose gradient the clip range of the importance ratio cut off."
        ),
        "perplexity": TermInfo("perplexity", "", _PERPLEXITY.format(answers="held-out answers")),
    },
}
"""By method and name in `metrics.jsonl`. The loss of GRPO is not shown: it is about 0, rightly, and says nothing."""


def describe_curve(method: Method, name: str) -> TermInfo:
    """The description of a value in the training log; one that is not known keeps its name."""
    known = TRAINING[method].get(name)
    return known or TermInfo(name.replace("_", " "), "", "Not described by this version of the report.")


def in_order(metrics: Iterable[tuple[str, Scope]]) -> list[tuple[str, Scope]]:
    """Metrics with their scopes in the order of tables: by what is measured, then across before within, then n."""
    scopes = list(SCOPES)
    return sorted(set(metrics), key=lambda pair: (_rank(pair[0]), scopes.index(pair[1]), pair[0]))


def describe(metric: str) -> MeasureInfo:
    """The description of a metric; one that is not known keeps its name and says that it is undescribed."""
    if metric in FIXED:
        return FIXED[metric]
    for pattern, build in _PATTERNS:
        if match := re.fullmatch(pattern, metric):
            return build(match)
    return MeasureInfo(metric.replace("_", " "), "", 3, "other", "Not described by this version of the report.")


def _distinct(match: re.Match[str]) -> MeasureInfo:
    return MeasureInfo(f"Distinct-{match['n']}", "", 3, "diversity", _DISTINCT)


def _distinct_at(match: re.Match[str]) -> MeasureInfo:
    definition = (
        f"Distinct-n on the first {match['length']} words of every text that has as many; shorter texts are left out "
        "and counted. It takes the length of the single text out of Distinct-n."
    )
    return MeasureInfo(f"Distinct-{match['n']} at {match['length']} words", "", 3, "matched diversity", definition)


def _ead(match: re.Match[str]) -> MeasureInfo:
    return MeasureInfo("EAD-1", "", 3, "matched diversity", _EAD)


def _stop(match: re.Match[str]) -> MeasureInfo:
    meaning = _STOPS.get(match["reason"], "not described by this version of the report")
    definition = f"Share of completions that stopped because {meaning}."
    return MeasureInfo(f"stopped: {match['reason']}", "share", 3, "length", definition)


def _rank(metric: str) -> int:
    """Place of the first of `_ORDER` that the metric matches as a whole; unknown metrics come last."""
    return next((place for place, pattern in enumerate(_ORDER) if re.fullmatch(pattern, metric)), len(_ORDER))


_ORDER = (
    "mean_logprob",
    "sampler_mean_logprob",
    "reward",
    r"distinct_\d+",
    r"distinct_\d+_at_\d+",
    "ead_1",
    "self_bleu",
    "tokens",
    "words",
    "stop_eos",
    "stop_length",
    "stop_repeat",
    "stop_marker",
    r"stop_\w+",
    "seq_rep_3",
    "max_ngram_count",
)

_PATTERNS: tuple[tuple[str, Callable[[re.Match[str]], MeasureInfo]], ...] = (
    (r"distinct_(?P<n>\d+)", _distinct),
    (r"distinct_(?P<n>\d+)_at_(?P<length>\d+)", _distinct_at),
    (r"ead_1", _ead),
    (r"stop_(?P<reason>\w+)", _stop),
)
