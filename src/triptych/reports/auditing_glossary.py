"""Every figure of the audits: name, unit and exact definition, in one place, as `triptych.reports.glossary` has them of
the other panels.

Tables take their heads from here and the page its methods, so that what is shown and what is explained cannot drift
apart. Not here: the computations (`triptych.auditing`).
"""

from triptych.reports.glossary import TermInfo
from triptych.reports.safe_text import neutralise

PERTURBATIONS = {
    "filler": "filler",
    "keywords": "keywords",
    "reorder": "reordered",
    "safety_prefix": "safety prefix",
    "repetition": "repetition",
    "flattery": "flattery",
    "formatting": "formatting",
    "neutral": "neutral control",
}
"""What the perturbations are called."""
SCORERS = {"implicit_reward": "implicit reward", "mean_logprob": "mean log-probability"}


_SAMPLED = "Of a checkpoint's responses, drawn from itself at temperature 1, one a prompt."
_LENGTH = "{what} of the lengths of responses to plain prompts, in {unit}; {counting}{cut}"
_COUNTING = {
    "tokens": "the end-of-sequence token is not counted, and an empty response has 0 tokens.",
    "words": "words are split at white space.",
}
_CUT = {
    "mean": " Where the token limit cuts a response, it is a lower bound (≥), and its interval that of the mean within "
    "the limit; differences and ratios are of means within the limit, and bounds where it cuts one side alone.",
    "median": " A lower bound (≥) without an interval where the token limit cuts so many that it is among them; "
    "a difference is then a bound too, or unknown where both medians are cut.",
    "std": " Of the lengths within the token limit.",
    "skew": " Of the lengths within the token limit.",
}
_SPREAD = {
    "mean": "Mean",
    "median": "Median",
    "std": "Standard deviation (with n − 1)",
    "skew": "Skewness (Fisher and Pearson’s g₁, the third central moment over the cube of the standard deviation)",
}


def _lengths() -> dict[str, TermInfo]:
    """The four statistics of both units."""
    labels = {"mean": "mean length", "median": "median length", "std": "standard deviation of length", "skew": "skew"}
    return {
        f"{unit}_{name}": TermInfo(
            labels[name],
            "" if name == "skew" else unit,
            _LENGTH.format(what=what, unit=unit, counting=counting, cut=_CUT[name]),
        )
        for unit, counting in _COUNTING.items()
        for name, what in _SPREAD.items()
    }


_BY_POSITION = "The exact KL of the tokens at a position of the answer, counted from 0: a range such as 4–7 pools them."
_DISTINCT = (
    "Unique n-grams of words over all of them in the pooled responses to plain prompts. It falls as texts grow longer: "
    "a checkpoint that says less scores higher."
)

AUDIT_TERMS: dict[str, TermInfo] = {
    # Divergence
    "perplexity": TermInfo(
        "perplexity",
        "",
        "exp of the mean negative log-probability of the held-out chosen answers, over tokens, the end-of-sequence "
        "token included.",
    ),
    "perplexity_ratio": TermInfo(
        "perplexity ratio", "", "Perplexity of the checkpoint over the base's on the same tokens; 1 is no change."
    ),
    "nll": TermInfo(
        "negative log-likelihood (NLL)",
        "nats per token",
        "Mean negative log-probability of the held-out chosen answers, over tokens: the logarithm of the perplexity. "
        "Its difference from the base is that of the same tokens.",
    ),
    "kl_chosen": TermInfo(
        "KL on chosen answers",
        "nats per token",
        "Σ π (log π − log π_base) over the whole vocabulary, averaged over the tokens of the held-out chosen answers.",
    ),
    "kl_floor": TermInfo(
        "KL floor",
        "nats per token",
        "The base's KL to itself on the chosen answers, each read in a pass of its own: rounding, and nothing else. "
        "A KL of less than three times this says little.",
    ),
    "kl_own": TermInfo(
        "KL on own responses",
        "nats per token",
        "The exact KL over the tokens of the checkpoint's own responses to plain prompts: the distance where it goes.",
    ),
    "k1_own": TermInfo(
        "k1 on own responses",
        "nats per token",
        "Mean of log π − log π_base of the tokens drawn: an estimate of the same KL from samples alone, which may be "
        "negative.",
    ),
    "k3_own": TermInfo(
        "k3 on own responses",
        "nats per token",
        "Mean of r − 1 − log r with r = π_base / π (Schulman's k3): never negative. Where k1 and k3 are far from the "
        "exact KL, the samples are too few or the log-probabilities are wrong.",
    ),
    "kl_chosen_by_position": TermInfo("KL on chosen answers by position", "nats per token", _BY_POSITION),
    "kl_own_by_position": TermInfo("KL on own responses by position", "nats per token", _BY_POSITION),
    "kl_own_by_token": TermInfo(
        "KL at a token",
        "nats per token",
        "Mean exact KL of the predictions at which the token was written, on own responses.",
    ),
    "kl_own_share_by_token": TermInfo(
        "share of the KL", "", "The share of all the KL on own responses that falls on these predictions."
    ),
    "log_ratio_by_token": TermInfo(
        "log ratio at a token",
        "nats",
        "Mean of log π − log π_base where the token was written: positive where the checkpoint likes it more than the "
        "base does.",
    ),
    "sqrt_kl": TermInfo("√KL", "", "Square root of the KL on own responses."),
    # Verbosity
    **_lengths(),
    "words_ratio": TermInfo("length ratio", "", "Mean words of the checkpoint’s responses over those of the base’s."),
    "tokens_ratio": TermInfo("ratio of tokens", "", "Mean tokens of the checkpoint’s responses over the base’s."),
    "compliance_rate": TermInfo(
        "compliance",
        "share",
        "Share of responses to prompts behind a limit of words (50 in the paper) that keep it. An empty response "
        "neither keeps nor breaks it, and of one that the token limit cut below it nobody knows: both are unscored.",
    ),
    "limited_empty_rate": TermInfo(
        "empty", "share", "Share of responses to prompts behind a limit of words that hold nothing but white space."
    ),
    "limited_truncated_rate": TermInfo(
        "cut off", "share", "Share of responses to prompts behind a limit of words that the limit of new tokens cut."
    ),
    "deviation_mean": TermInfo(
        "mean deviation",
        "words",
        "Mean of the words over the limit, over violators alone: of a checkpoint and of the base, each its own.",
    ),
    "deviation_std": TermInfo(
        "standard deviation of deviations", "words", "Of the words over the limit, over violators (with n − 1)."
    ),
    "absolute_deviation_mean": TermInfo(
        "absolute deviation", "words", "Mean of |words − limit|, over the responses whose compliance is known."
    ),
    "agreement": TermInfo(
        "agreement of the classifier",
        "share",
        "Share of the starter prompts written after the classifier whose own category it finds; of a category, its "
        "recall.",
    ),
    "kappa": TermInfo(
        "kappa of the classifier", "", "Cohen's κ of the classifier and the same prompts: agreement beyond chance."
    ),
    # Hacking
    "score": TermInfo("mean score", "", "Mean of the scores; a text without a score is unscored, never zero."),
    "score_std": TermInfo(
        "standard deviation of scores", "", "Of the scores of the base's texts as they are (with n − 1)."
    ),
    "score_change": TermInfo(
        "change of the score",
        "",
        "Mean of the score of the perturbed text minus that of the text, over the base's responses to plain prompts; a "
        "text that a perturbation leaves as it is has none. "
        "p is of a two-sided sign-flip test, corrected over the perturbations of a scorer (Holm).",
    ),
    "score_change_in_sd": TermInfo(
        "scaled change",
        "standard deviations",
        "The change over the standard deviation of the scores of the base’s own texts, which is taken as known.",
    ),
    "score_change_std": TermInfo("standard deviation of changes", "", "Of the changes of single texts (with n − 1)."),
    "share_positive": TermInfo("share that rises", "share", "Share of texts whose score rises."),
    "change_over_control": TermInfo(
        "change over the control",
        "",
        "The change minus that by the neutral control, which adds as many words without a claim to anything.",
    ),
    "words_added": TermInfo("words added", "words", "Mean of the words that a perturbation adds to a text."),
    "implicit_reward": TermInfo(
        "implicit reward",
        "nats",
        "Score of a text by a checkpoint as its own surrogate: β (log π − log π_base) of the text given its prompt.",
    ),
    "mean_logprob": TermInfo(
        "mean log-probability",
        "nats per token",
        "Score of a text by a checkpoint as its own surrogate, as in the paper: its mean log-probability, over tokens.",
    ),
    "normal_score": TermInfo(
        "normal score",
        "",
        "Mean score of the responses as they are, of those that came to their end and are not empty, to prompts whose "
        f"response of the base did so too. {_SAMPLED}",
    ),
    "hacked_score": TermInfo("hacked score", "", "Mean score of the same responses behind the safety prefix."),
    "hack_delta": TermInfo("score delta", "", "Hacked minus normal score, response by response."),
    "length_correlation": TermInfo(
        "correlation of score and length",
        "",
        "Spearman's ρ of the score and the words of a response, over a checkpoint's own responses that came to their "
        "end: behind those that the token limit cut no end is read, and their length is not known.",
    ),
    # Collapse
    "empty_rate": TermInfo("empty", "share", "Share of responses that hold nothing but white space."),
    "truncated_rate": TermInfo("cut off", "share", "Share of responses that the limit of new tokens cut."),
    "distinct_1": TermInfo("Distinct-1", "", _DISTINCT),
    "distinct_2": TermInfo("Distinct-2", "", _DISTINCT),
    "distinct_3": TermInfo("Distinct-3", "", _DISTINCT),
    "matched_distinct_2": TermInfo(
        "Distinct-2 at equal amounts of text",
        "",
        "Distinct-2 of a checkpoint and of the base, both on as many 2-grams as the side with fewer has: the mean over "
        "all draws without replacement, which is computed exactly (rarefaction, Hurlbert 1971). Who only says less "
        "does not score lower.",
    ),
    "self_bleu": TermInfo(
        "Self-BLEU",
        "",
        "BLEU of each response against the others of a group of about ten prompts, averaged: 1 where all are the same.",
    ),
    "repetition": TermInfo(
        "repetition", "share", "Share of a response's token 3-grams that repeat an earlier one, averaged."
    ),
    "accuracy": TermInfo(
        "accuracy",
        "share",
        "Share of factual prompts whose most likely response holds an accepted answer; other prompts are unscored.",
    ),
    "checks": TermInfo("checks passed", "share", "Share of a prompt's own checks that its response passes, averaged."),
    "entropy": TermInfo(
        "entropy", "nats per token", "Mean of −log π of the tokens of a response, averaged over responses."
    ),
    "entropy_ratio": TermInfo("entropy ratio", "", "Entropy of the checkpoint over the base’s."),
    # Comparison, lineage, costs
    "win_rate": TermInfo(
        "win rate",
        "share of prompts",
        "Share of prompts on which the checkpoint's response scores higher than the base's; ties count one half. What "
        "the token limit cut is scored as it stands.",
    ),
    "win_rate_finished": TermInfo(
        "win rate, both finished",
        "share of prompts",
        "The win rate over the prompts to which both sides came to their end; the others are unscored.",
    ),
    "win_rate_length_controlled": TermInfo(
        "win rate, length-controlled",
        "share of prompts",
        "The win rate if both wrote equally much: σ(θ) of a logistic regression of the win on the difference in "
        "words, P = σ(θ + φ tanh(d / s)) with Firth’s penalty (Dubois et al. 2024, without their terms of prompts).",
    ),
    "relative_change": TermInfo(
        "relative change", "", "‖W − W_base‖ / ‖W_base‖ over all weights together (Frobenius norm)."
    ),
    "unchanged_share": TermInfo("unchanged", "share", "Share of the weights that equal the base's bit for bit."),
    "declared_base": TermInfo(
        "names another base", "", "1 where the adapter names another base than the one it was audited on, else 0."
    ),
    "seen_in_training": TermInfo(
        "seen in training",
        "share",
        "Share of the audited prompts and answers that the run of the checkpoint or reward model trained on, where its "
        "files tell.",
    ),
    "random_changes": TermInfo(
        "random changes",
        "",
        "LoRAs of the audited one’s targets and rank with random directions, the update of every module as large as "
        "there (Frobenius norm), audited in the same way. A finding is beyond one if it is worse by its rule; z is its "
        "distance from their mean in their standard deviations. Of K random changes the smallest p-value is "
        "1/(K + 1).",
    ),
    "lambda": TermInfo(
        "λ", "", "What the adapter’s own scale is multiplied by: 0 is the base, 1 the adapter as it was audited."
    ),
    "load_seconds": TermInfo("loading", "", "Time to load the model."),
    "generation_seconds": TermInfo("generation", "", "Time to write the responses."),
    "reading_seconds": TermInfo("reading", "", "Time to read texts for their log-probabilities."),
    "scoring_seconds": TermInfo("scoring", "", "Time of the scorers."),
    "generated_tokens": TermInfo("tokens generated", "", "Tokens of all responses."),
    "read_tokens": TermInfo("tokens read", "", "Tokens whose log-probabilities were computed."),
    "peak_bytes": TermInfo("peak memory", "", "The most memory that the process held."),
}
"""By metric, and by the surrogate scorers, in the order of the methods."""


def describe_audit(metric: str) -> TermInfo:
    """The description of a metric; one that is not known keeps its name and says that it is undescribed."""
    known = AUDIT_TERMS.get(metric)
    return known or TermInfo(metric.replace("_", " "), "", "Not described by this version of the report.")


def perturbation_name(perturbation: str) -> str:
    """What a perturbation is called; one that is not known keeps its name."""
    return PERTURBATIONS.get(perturbation) or neutralise(perturbation).replace("_", " ")
