"""What the interpretation panel writes and others read: measures with intervals, picked latents, their pictures.

Files of a run directory, below `dictionaries/`:

    backbones/<model>/          config.json, model.safetensors, preprocessor_config.json, training.json (BackboneRecord)
    activations/<split>/<model>/   store.json and shards (`triptych.dictionaries.store`)
    matrices.json               a list of MatrixRecord, where activations were given as matrices
    <dictionary>/               config.json, model.safetensors, features.parquet, agreement.parquet, metrics.json
    universal/images/           PNG files and index.json (a list of LatentPictures)
    universal/tops.parquet, universal/thumbnails.parquet   what every latent fires on (`triptych.dictionaries.tops`)
    measures.json               a list of DictionaryRecord
    dictionaries.json           a list of TrainedRecord: every dictionary, what it is for, what training it cost
"""

from typing import Literal

from triptych.records import Estimate, Record

FOLDER = "dictionaries"
MEASURES = f"{FOLDER}/measures.json"
TRAINED = f"{FOLDER}/dictionaries.json"
MATRICES = f"{FOLDER}/matrices.json"
MAIN = "universal"
"""The folder of the dictionary that pictures and tables are about."""
TOPS, THUMBNAILS = "tops.parquet", "thumbnails.parquet"
"""In that folder."""
UNIVERSAL, SPECIFIC = 0.9, 0.1
"""Firing entropies above and below which a latent is universal and specific (the paper)."""

Kind = Literal["universal", "partial", "specific", "dead"]
"""What a latent is (`triptych.dictionaries.universality.classify`)."""

Role = Literal[
    "universal",
    "other_update",
    "independent",
    "independent_equal_updates",
    "sparc",
    "shuffled",
    "same",
]
"""What a dictionary is trained for.

`universal` is the one in question; `other_update` differs from it in `update` alone (`source` against `all`);
`independent` has one model and as many steps, `independent_equal_updates` one model and as many updates of its encoder;
`sparc` picks latents by the summed logits of all models; `shuffled` is the null whose images do not correspond, `same`
the null of a model against itself.
"""


class TrainedRecord(Record):
    """One trained dictionary: an entry of `dictionaries/dictionaries.json`."""

    name: str
    """Its folder."""
    role: Role
    seed: int
    models: tuple[str, ...]
    latents: int
    k: int
    update: Literal["source", "all"]
    steps: int
    samples: int
    """Rows that were seen, epochs times rows."""
    loss: float
    """Mean over the last epoch of the training loss (the paper's `final loss`)."""
    seconds: float


class MatrixRecord(Record):
    """A file of activations or labels that was given: an entry of `dictionaries/matrices.json`."""

    name: str
    """Of its model, or of what labels say."""
    part: Literal["train", "test", "labels"]
    """Held-out rows of the same file as those to train on have no entry of their own."""
    file: str
    key: str | None
    """Tensor or column; None where the file holds one matrix without a name."""
    rows: int
    width: int
    dtype: str
    """As in the file."""
    fingerprint: str
    """Of all values."""


class DictionaryRecord(Record):
    """One measure: an entry of `dictionaries/measures.json`.

    Of a role over all its seeds where `seed` is None (the interval is then over seeds), else of the dictionary of one
    seed (the interval is then over held-out images).

    Of a role `universal` are all that compare with independent dictionaries: taxes, `r2_independent…`, matching.

    metric                     source, target, factor
    -------------------------  ------------------------------------------------------------------------------------
    r2, r2_global              source → target model; per-feature mean, and the official code's one global mean
    loss                       source, of a dictionary of one model
    l0                         source: mean number of latents that fire on a row
    universal, partial, specific, dead   –: latents by what they explain (`universality.classify`)
    confirmed                  –: fired together beyond chance, with codes that correlate (`universality.confirmed`)
    universal_by_variance      –: entropy of what they explain > 0.9, confirmed or not
    universal_by_counts, specific_by_counts   –: entropy of firing counts > 0.9 and < 0.1 (the paper)
    co_firing_proportion       –: Σ_k |C_k| / Σ_k |∪_i F_k^i|
    co_firing_chance           –: the same, expected if models fired independently at their own rates
    co_firing                  source: mean over live latents of |C_k| / |F_k^i|
    alignment_tax              source: R² of the independent dictionary of equal steps less that of the universal one
    alignment_tax_equal_updates   source: the same at equal updates
    r2_independent, r2_independent_equal_updates   source
    matching_cosine            source: mean cosine of matched decoder rows, universal against independent
    matched                    source: share of live latents with a matched cosine above 0.7
    auroc_universal, auroc_specific   factor: mean over the factor's values of the best latent's AUROC
    """

    role: Role
    metric: str
    seed: int | None = None
    source: str | None = None
    target: str | None = None
    factor: str | None = None
    estimate: Estimate


class Picture(Record):
    """One PNG of a latent, beside `index.json`."""

    model: str
    kind: Literal["top", "heat", "maximised"]
    """An image of the set on which it fires most, the same with where it fires, or the input that drives it."""
    file: str
    rank: int
    """From 0; 0 for `maximised`."""
    activation: float
    """Of the latent, in this model's code; before the sparsifier for `maximised`."""
    image_id: str | None = None


class LatentPictures(Record):
    """The pictures of one latent: an entry of `images/index.json`."""

    latent: int
    kind: Literal["universal", "specific"]
    model: str | None = None
    """Whose it is, where specific."""
    entropy: float
    fires: dict[str, int]
    """Model → held-out rows on which it fires."""
    co_fires: int
    best: str | None = None
    """What it is about, as far as labels tell: `shape = star (AUROC 0.98)`."""
    pictures: tuple[Picture, ...]


class BackboneRecord(Record):
    """A backbone that was trained on the spot: `training.json`."""

    name: str
    family: Literal["resnet", "vit"]
    parameters: int
    images: int
    epochs: int
    seconds: float
    accuracy: dict[str, Estimate]
    """Factor → share of held-out images whose value was named rightly."""
    chance: dict[str, float]
    """Factor → accuracy of always naming the commonest value."""
