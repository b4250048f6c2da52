"""What a study needs of disk and memory: estimates, each with how it was reckoned.

Widths and sizes of models that are not on this disk are assumed, at the upper end, and said to be. Not here: what is
fetched and made (`triptych.inputs`, `triptych.dry_run`), what this machine has (`triptych.models.hardware`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from triptych.alignment.plan import AlignmentConfig
from triptych.data.images import STARTER
from triptych.data.starter_images import DEFAULT_IMAGES
from triptych.dictionaries.arms import Arm, arms
from triptych.dictionaries.matrix_stores import header_sizes
from triptych.dictionaries.plan import DictionariesConfig
from triptych.doctor import OTHER_IMAGES, PARAMETERS, REWARD_PARAMETERS
from triptych.inputs import DATA, MODELS, Found
from triptych.records import Record
from triptych.study import StudyConfig

VISION_PARAMETERS = 86_600_000
"""Of ViT-B/16, taken for any vision model whose size is not known."""

VISION_WIDTH = 768
"""Likewise: of its activations."""

DATA_BYTES = 150_000_000
"""Of a data set whose size is not known: the files of CIFAR-10."""

OTHER_TEST_IMAGES = 10_000
"""Where no limit is set: of CIFAR-10."""

FLOAT = 4
TOKEN_BYTES = 22
"""Of a generated token in Parquet, at most: its id, two log-probabilities, five characters in each of two texts."""

ADAPTER_PARAMETERS = 57_600
"""Of LoRA on q and v of SmolLM2-135M, for each unit of rank: 30 layers x (576 + 576 + 576 + 192)."""

ADAPTER_COPIES = 7
"""The adapter, and two checkpoints of weights and two moments."""

REPORT_BYTES = 20_000_000
"""Report, figures and tables, at most; measured: 7 MB in the starter recipe."""

WORKING_BYTES = {
    "decoding": 1_700_000_000,
    "training": 1_600_000_000,
    "audits": 2_100_000_000,
    "scoring": 1_700_000_000,
    "dictionaries": 900_000_000,
}
"""The process, its libraries, and what a panel holds besides weights: peaks of `triptych bench`, less the weights."""

COPIES = 2
"""Of a language model's weights: as the modules have them, and packed for the matrix library."""

ALL_ACTIVATIONS = 4 * 2**30
"""Up to so many bytes, activations are held in memory while dictionaries are trained; above, they are read in turn."""

TRAINED_COPIES = 4
"""Of a dictionary in training: weights, two moments, gradients."""


class Share(Record):
    """A part of what is needed."""

    what: str
    n_bytes: int
    how: str
    where: Literal["run", "cache", "memory"]


# --- disk -------------------------------------------------------------------------------------------------------------


def disk_shares(config: StudyConfig, found: Sequence[Found], completions: int, responses: int) -> list[Share]:
    """What a study writes: into the caches, and into its run directory."""
    models = [one for one in found if one.is_to_be_fetched and one.kind in MODELS]
    data = [one for one in found if one.is_to_be_fetched and one.kind in DATA]
    shares = [
        Share(
            what="models",
            n_bytes=sum(one.n_bytes or FLOAT * parameters_of(one) for one in models),
            how=_how(models, "4 bytes a parameter"),
            where="cache",
        ),
        Share(
            what="data sets",
            n_bytes=sum(2 * (one.n_bytes or DATA_BYTES) for one in data),
            how=f"{_how(data, f'{DATA_BYTES // 10**6} MB')}, twice: as they come, and as they are kept",
            where="cache",
        ),
        *_generated(config, completions, responses),
        *([] if config.alignment is None else [_checkpoints(config.alignment)]),
        *([] if config.dictionaries is None else _of_dictionaries(config.dictionaries)),
        Share(what="report", n_bytes=REPORT_BYTES, how="report, figures and tables", where="run"),
    ]
    return [share for share in shares if share.n_bytes]


def parameters_of(one: Found) -> int:
    """Known, or assumed by the kind of model."""
    assumed = {"language model": PARAMETERS, "reward model": REWARD_PARAMETERS, "vision model": VISION_PARAMETERS}
    return one.parameters or int(assumed[one.kind])


def _how(found: Sequence[Found], rule: str) -> str:
    guessed = sum(one.n_bytes is None for one in found)
    return f"{len(found)} to fetch" + (f", {guessed} of unknown size taken for {rule}" if guessed else "")


def _generated(config: StudyConfig, completions: int, responses: int) -> Iterator[Share]:
    if config.decoding is not None:
        length = config.decoding.max_new_tokens
        how = f"{completions:,} completions x {length} tokens x {TOKEN_BYTES} bytes, at most"
        yield Share(what="completions", n_bytes=completions * length * TOKEN_BYTES, how=how, where="run")
    if config.auditing is not None:
        length = config.auditing.max_new_tokens
        how = f"{responses:,} responses x {length} tokens x {TOKEN_BYTES} bytes, at most"
        yield Share(what="responses", n_bytes=responses * length * TOKEN_BYTES, how=how, where="run")


def _checkpoints(alignment: AlignmentConfig) -> Share:
    methods = [one for one in (alignment.reward, alignment.dpo, alignment.grpo) if one is not None]
    ranks = [one.lora.rank for one in methods if one.lora is not None]
    whole = sum(one.lora is None for one in methods)
    parameters = sum(ranks) * ADAPTER_PARAMETERS + whole * int(PARAMETERS)
    how = f"{parameters:,} trained parameters (LoRA on q and v of a model of 135M) x {FLOAT} bytes x {ADAPTER_COPIES}"
    return Share(what="checkpoints", n_bytes=parameters * FLOAT * ADAPTER_COPIES, how=how, where="run")


def _of_dictionaries(config: DictionariesConfig) -> Iterator[Share]:
    n_images, width = sum(row_counts(config)), widths(config)
    rows = n_images * (config.grid or 1) ** 2
    total = sum(width.values())
    how = f"{rows:,} rows x {total:,} features ({_listed(width)}) x {FLOAT} bytes"
    yield Share(what="activations", n_bytes=rows * total * FLOAT, how=how, where="run")
    planned = arms(config)
    parameters = [dictionary_parameters(arm, width) for arm in planned]
    how = f"{len(planned)} dictionaries of {config.universal.coder.latents:,} latents, and the state of one in training"
    n_bytes = FLOAT * (sum(parameters) + 3 * max(parameters))
    yield Share(what="dictionaries", n_bytes=n_bytes, how=how, where="run")


def row_counts(config: DictionariesConfig) -> tuple[int, int]:
    """Images or rows to train on and held out: by limits and files, else as the starter set or CIFAR-10 has them."""
    if config.matrices is not None:
        sizes = header_sizes(config)
        return (config.limit or OTHER_IMAGES, OTHER_TEST_IMAGES) if sizes is None else (sizes.train, sizes.test)
    is_starter = config.images == STARTER
    train = config.limit or (DEFAULT_IMAGES["train"] if is_starter else OTHER_IMAGES)
    test = config.test_limit or (DEFAULT_IMAGES["test"] if is_starter else OTHER_TEST_IMAGES)
    return train, test


def widths(config: DictionariesConfig) -> dict[str, int]:
    """Features of every model: of backbones as configured, of matrices as their files say, of others assumed."""
    if config.matrices is not None:
        sizes = header_sizes(config)
        return dict.fromkeys(config.names, VISION_WIDTH) if sizes is None else sizes.widths
    own = config.backbones
    trained = {} if own is None else {"resnet": own.resnet.hidden_sizes[-1], "vit": own.vit.hidden_size}
    return {**trained, **dict.fromkeys(config.models, VISION_WIDTH)}


def dictionary_parameters(arm: Arm, width: Mapping[str, int]) -> int:
    """Encoder and decoder of every model [latents, width], with their offsets."""
    latents = arm.config.coder.latents
    return sum(2 * latents * width[model] + latents + width[model] for model in arm.reads)


def _listed(width: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {features}" for name, features in width.items())


# --- memory -----------------------------------------------------------------------------------------------------------


def memory_shares(config: StudyConfig, found: Sequence[Found], weight_bytes: int) -> list[Share]:
    """What each panel holds at its height; panels come one after the other, so that the largest counts."""
    language = sum(parameters_of(one) for one in found if one.kind == "language model" and one.use.startswith("model"))
    rewards = [parameters_of(one) for one in found if one.kind == "reward model"]
    needed = {
        "decoding": language if config.decoding is not None else None,
        "training": 2 * language if config.alignment is not None else None,
        "audits": 2 * language if config.auditing is not None else None,
        "scoring": max(rewards) if rewards else None,
    }
    shares = [
        Share(
            what=panel,
            n_bytes=WORKING_BYTES[panel] + parameters * weight_bytes * COPIES,
            how=f"{parameters:,} parameters x {weight_bytes} bytes x {COPIES}, and the work itself",
            where="memory",
        )
        for panel, parameters in needed.items()
        if parameters is not None
    ]
    return shares if config.dictionaries is None else [*shares, _dictionaries_in_memory(config.dictionaries)]


def _dictionaries_in_memory(config: DictionariesConfig) -> Share:
    width = widths(config)
    rows = row_counts(config)[0] * (config.grid or 1) ** 2
    activations = min(rows * sum(width.values()) * FLOAT, ALL_ACTIVATIONS)
    largest = max(dictionary_parameters(arm, width) for arm in arms(config))
    trained = largest * FLOAT * TRAINED_COPIES
    how = f"activations {activations:,} bytes, a dictionary in training {trained:,}, and the work itself"
    return Share(
        what="dictionaries", n_bytes=WORKING_BYTES["dictionaries"] + activations + trained, how=how, where="memory"
    )
