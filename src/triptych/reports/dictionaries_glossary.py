"""Every measure and role of the interpretation panel: name, unit and exact definition, in one place, as
`triptych.reports.glossary` has them of the other panels.

Tables take their heads from here and the page its methods, so that what is shown and what is explained cannot drift
apart. Not here: the computations (`triptych.dictionaries`).
"""

from triptych.reports.glossary import TermInfo
from triptych.reports.safe_text import neutralise

DICTIONARY_TERMS: dict[str, TermInfo] = {
    "r2": TermInfo(
        "R²",
        "per-feature mean",
        "1 − Σ‖a − â‖² / Σ‖a − ā‖² over all held-out rows: a the activations of the target model, â what its decoder "
        "makes of the code of the source model, ā the mean of each feature. Sums run over the whole set; batches are "
        "never averaged. 0 is what the mean alone explains; below 0 is worse than that.",
    ),
    "r2_global": TermInfo(
        "R²",
        "one global mean",
        "The same with one mean over all features in the place of ā, as the official code of Thasarathan et al. (2025) "
        "has it. The denominator can only grow, so that it reads higher.",
    ),
    "r2_independent": TermInfo(
        "R² of an independent dictionary, equal steps",
        "",
        "R² of a dictionary of one model alone, with as many latents, as many active and as many optimizer steps.",
    ),
    "r2_independent_equal_updates": TermInfo(
        "R² of an independent dictionary, equal updates",
        "",
        "The same with as many updates as the model’s encoder got in the shared dictionary, where a step draws one "
        "source model and the others’ encoders wait.",
    ),
    "alignment_tax": TermInfo(
        "alignment tax",
        "equal steps",
        "R² of the independent dictionary of equal steps less R² of the shared one, model to itself. Where there are "
        "several seeds, dictionaries of one seed are subtracted and the interval is over seeds.",
    ),
    "alignment_tax_equal_updates": TermInfo(
        "alignment tax",
        "equal updates",
        "The same against the independent dictionary of equal updates: what sharing itself costs, and not the fewer "
        "updates that an encoder gets.",
    ),
    "universal": TermInfo(
        "universal",
        "latents",
        "Latents that explain about as large a share of every model (entropy of the shares above 0.9), and are "
        "confirmed.",
    ),
    "partial": TermInfo("partial", "latents", "Live latents that are neither universal nor specific."),
    "specific": TermInfo(
        "specific", "latents", "Latents that explain one model almost alone (entropy of the shares below 0.1)."
    ),
    "dead": TermInfo(
        "dead",
        "latents",
        "Latents that explain less than a hundredth of what an average one does, in every model, whether or not they "
        "fire; the official code counts what never fires as specific.",
    ),
    "confirmed": TermInfo(
        "confirmed",
        "latents",
        "Latents that are the same thing in all models: they fire together on more rows than chance would have it "
        "(one-sided hypergeometric test given how often each model fires, binomial for more than two models; false "
        "discovery rate over latents 1 %, Benjamini and Hochberg 1995), and their codes correlate by at least 0.3.",
    ),
    "universal_by_variance": TermInfo(
        "by variance alone",
        "latents",
        "Latents that would be universal if nothing had to be confirmed: entropy of explained shares above 0.9.",
    ),
    "universal_by_counts": TermInfo(
        "universal by counts", "latents", "Latents whose firing entropy is above 0.9: the paper’s definition."
    ),
    "specific_by_counts": TermInfo(
        "specific by counts", "latents", "Latents whose firing entropy is below 0.1: the paper’s definition."
    ),
    "co_firing_proportion": TermInfo(
        "co-firing proportion",
        "",
        "Σ |C| / Σ |∪ F| over latents: C the rows on which all models fire it, ∪ F those on which any does.",
    ),
    "co_firing_chance": TermInfo(
        "co-firing by chance",
        "",
        "The co-firing proportion to be expected if every model fired each latent as often as it does, but on rows of "
        "its own choice.",
    ),
    "co_firing": TermInfo(
        "co-firing of a model",
        "",
        "|C| / |F|, averaged over the latents that the model fires: the share of its firings in which all others join.",
    ),
    "loss": TermInfo(
        "final loss",
        "",
        "Training loss averaged over the last epoch: mean squared error of normalised activations, summed over target "
        "models. It depends on how activations are normalised and how many targets there are.",
    ),
    "l0": TermInfo("L0", "latents", "Latents that fire on a held-out row, averaged."),
    "matching_cosine": TermInfo(
        "matching cosine",
        "",
        "Mean cosine of decoder rows of the shared dictionary and of the independent one, matched one to one so that "
        "the sum is the largest.",
    ),
    "matched": TermInfo("matched", "share of latents", "Share of live latents with a matched cosine above 0.7."),
    "auroc_universal": TermInfo(
        "AUROC of universal latents",
        "",
        "How well one latent’s activation tells images of one value of a factor from the others: the probability that "
        "it ranks an image with the value above one without. Of each value the best universal latent is taken, then "
        "the mean over values. The best of many is above 0.5 even by chance, and the more latents a class has, the "
        "more so.",
    ),
    "auroc_specific": TermInfo("AUROC of specific latents", "", "The same of the best specific latent."),
}
"""By metric, in the order of the methods."""

FEATURE_TERMS: dict[str, str] = {
    "fires": "A latent fires on a row for a model when its code from that model’s encoder is above 0 after the "
    "sparsifier, which keeps the top k unless the run’s configuration says otherwise. A row is an image, or a place in "
    "an image where features are spatial; of activations that were given as matrices, one of their rows.",
    "firing entropy": "−Σ p log p / log M over the M models, p the share that a model has in all firings of the "
    "latent: 1 where all models fire it equally often, 0 where one alone does.",
    "co-fires": "|C|: rows on which every model fires the latent. By chance: rows times the product of the models’ "
    "firing rates.",
    "share explained": "By how much the squared error of a model rises when one latent is taken out of its code, Σ 2 z "
    "⟨a − â, D⟩ + z² ‖D‖², over the sum of all its latents. Small values that only fill the k places explain nothing.",
    "energy": "‖E[z] D‖² of a latent for a model: the squared length of its decoder row, times the squared mean of its "
    "code.",
}
"""What features.parquet and the figures have of each latent."""

ROLE_NAMES: dict[str, str] = {
    "universal": "shared",
    "other_update": "shared, other update",
    "independent": "independent, equal steps",
    "independent_equal_updates": "independent, equal updates",
    "sparc": "shared, joint top k (SPARC)",
    "shuffled": "null: {unit}s shuffled",
    "same": "null: a model and itself",
}
ROLE_TERMS: dict[str, str] = {
    "universal": "One code of m latents for all models: every step draws a source model, encodes its batch, keeps the "
    "top k and reconstructs every model from this code.",
    "other_update": "The same with the other reading of the update. update = source steps only the source model’s "
    "encoder and decoder, as the official code does, so that a decoder never learns from another model’s codes; "
    "update = all steps every weight that the loss reaches.",
    "independent": "A dictionary of one model alone.",
    "sparc": "The top k are chosen once for all models, by their summed logits: models then fire the same latents by "
    "construction, and neither entropy nor co-firing is evidence.",
    "shuffled": "Trained on rows that do not correspond: each model sees images (or rows) in an order of its own. What "
    "is found here is found without any correspondence.",
    "same": "A model and itself as two models that begin apart, one source a step: everything is shared, so that "
    "whatever is not universal is the training’s fault.",
}


def describe_measure(metric: str) -> TermInfo:
    """The description of a metric; one that is not known keeps its name and says that it is undescribed."""
    known = DICTIONARY_TERMS.get(metric)
    return known or TermInfo(metric.replace("_", " "), "", "Not described by this version of the report.")


def role_name(role: str, updates: dict[str, str] | None = None, unit: str = "image") -> str:
    """What a role is called; of the two shared dictionaries with their update, where it is known.

    `unit` is what a held-out row is of.
    """
    update = (updates or {}).get(role)
    if update:
        return f"shared, update = {neutralise(update)}"
    return ROLE_NAMES[role].format(unit=unit) if role in ROLE_NAMES else neutralise(role)
