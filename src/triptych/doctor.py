"""What this machine offers and what the recipes will cost on it.

The rate is an estimate: what the matrix products of a step of the model allow, measured for two seconds, times the
share of it that decoding reached where both were measured. Not here: detecting hardware (`triptych.models.hardware`).
"""

import os
import shutil
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from huggingface_hub import constants
from torch.nn import functional

from triptych.alignment.plan import AlignmentConfig
from triptych.auditing.plan import AuditingConfig
from triptych.data.images import STARTER
from triptych.decoding.plan import DecodingConfig, Request, plan_requests, planned_rows
from triptych.dictionaries.arms import arms
from triptych.dictionaries.matrix_stores import header_sizes
from triptych.dictionaries.plan import DictionariesConfig
from triptych.environment import package_versions
from triptych.models.cache import cache_root
from triptych.models.hardware import Hardware, detect_hardware
from triptych.models.hub import hub_is_reachable
from triptych.models.loading import resolve_device, resolve_dtype
from triptych.models.starter import starter_is_cached
from triptych.records import Record
from triptych.study import StudyConfig, load_recipe, recipe_names

LAYERS, ROWS = 30, 256
PRODUCTS = ((576, 960), (576, 576), (576, 3072), (1536, 576))
"""Width in and out of one layer of SmolLM2-135M, the model of every recipe: attention in and out, gate and up, down."""
HEAD = (576, 49152)

PARAMETERS = 134.5e6
"""Of that model: two floating-point operations each per token."""

DECODING_SHARE = 0.5
"""Of the rate that matrix products allow: attention, norms and sampling take the rest. Measured: 0.52."""

LENGTH_SHARE = 0.5
"""Tokens of a completion as a share of the limit: many end before it. Measured: 0.50 in the starter recipe."""

FIXED_SECONDS = 20.0
"""Importing, loading the model, measures and report."""

REWARD_PARAMETERS = 435e6
"""Of the paper's reward model."""

REWARD_TOKENS = 200
"""Question and answer, on average."""

REWARD_SHARE = 0.5

TRAINING_SHARE = 0.6
"""Of the rate that matrix products allow, for forward passes and for backward passes of frozen weights."""

GPU_OPERATIONS = 20e12
"""Assumed, not measured: floating-point operations a second that the products of so small a model reach on one
data-centre GPU, where starting kernels takes most of the time."""

STARTER_PROMPTS, STARTER_PAIRS = 240, 252
"""Held-out prompts and pairs to train on of the starter sets. Taken where a configuration sets no limit, as well: how
many a file holds is not known here."""

PAIR_TOKENS, PROMPT_TOKENS = 160, 60
"""Of a pair, its prompt counted once; of a prompt."""

MAX_PROMPTS = 500
"""Of an audit, where a recipe sets no lower limit."""

ADDED_TOKENS = 15
"""By a perturbation, on average."""

READING_SHARE = 0.35
"""Of the rate that matrix products allow, for reading short texts packed in passes, two heads included."""

BACKBONE_SECONDS, PASS_OPERATIONS = 90.0, 18e9
"""Of training both small backbones on starter images; floating-point operations of a named model on an image (between
ResNet-18's 3.6e9 and ViT-B/16's 35e9)."""

STARTER_IMAGES, OTHER_IMAGES, FEATURES = 8_000, 50_000, 512
"""Training images, where no limit is set, and the width of a model's activations."""

DICTIONARY_SHARE = 0.1
"""Of the rate that matrix products allow, counting those of the encoder alone."""

PROBE_SECONDS = 2.0


class CacheState(Record):
    """A folder of what was downloaded or built."""

    name: str
    path: str
    bytes: int
    note: str


class RecipeCost(Record):
    """What a recipe will take here: an estimate."""

    recipe: str
    rows: int
    """Rows that the model steps, beams and candidates included."""
    tokens: int
    seconds: float
    scoring_seconds: float | None
    """None without a reward model."""
    training_seconds: float | None = None
    """Of the alignment panel; None without one."""
    auditing_seconds: float | None = None
    """Of the auditing panel; None without one."""
    dictionaries_seconds: float | None = None
    """Of the interpretation panel; None without one."""


class Diagnosis(Record):
    """All that `triptych doctor` says."""

    device: str
    dtype: str
    cpu: str
    cores: float
    features: tuple[str, ...]
    """Instructions that matter here."""
    memory_bytes: int
    gpus: tuple[str, ...]
    free_disk_bytes: int
    hub: str
    hub_reachable: bool
    caches: tuple[CacheState, ...]
    products_per_second: float
    """Measured: tokens a second that the model's matrix products alone would allow, in `dtype` on `device`."""
    tokens_per_second: float
    """Estimated for decoding with many rows in flight."""
    recipes: tuple[RecipeCost, ...]
    packages: dict[str, str]


def diagnose(probe_seconds: float = PROBE_SECONDS) -> Diagnosis:
    """Looks at this machine; takes a few seconds, and five more where the hub does not answer."""
    hardware = detect_hardware()
    device = resolve_device("auto")
    dtype = resolve_dtype("auto", device)
    allowed = product_rate(device, dtype, probe_seconds)
    configs = {name: load_recipe(name) for name in recipe_names()}
    return Diagnosis(
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        cpu=hardware.cpu,
        cores=hardware.cores,
        features=features_of(hardware),
        memory_bytes=hardware.memory_bytes,
        gpus=tuple(f"{gpu.name} ({gpu.memory_bytes / 1e9:.0f} GB)" for gpu in hardware.gpus),
        free_disk_bytes=shutil.disk_usage(Path.cwd()).free,
        hub=constants.ENDPOINT,
        hub_reachable=hub_is_reachable(),
        caches=tuple(_caches()),
        products_per_second=round(allowed, 1),
        tokens_per_second=round(DECODING_SHARE * allowed, 1),
        recipes=tuple(recipe_cost(name, config, allowed) for name, config in configs.items()),
        packages=package_versions(),
    )


def product_rate(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """Tokens a second that the matrix products of one step allow: the best of the steps that fit into `seconds`.

    The best, because whatever else runs here can only slow a step down.
    """
    layers = [[_weight(*shape, device, dtype) for shape in PRODUCTS] for _ in range(LAYERS)]
    head = _weight(*HEAD, device, dtype)
    inputs = {width: torch.ones(ROWS, width, dtype=dtype, device=device) for width in {w for w, _ in PRODUCTS}}
    best, deadline = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < deadline:
        started = time.perf_counter()
        for layer in layers:
            for weight in layer:
                functional.linear(inputs[weight.shape[1]], weight)
        # Reading one number waits for a GPU to finish.
        functional.linear(inputs[HEAD[0]], head)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return ROWS / best


def _weight(width: int, out: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.ones(out, width, dtype=dtype, device=device)


def recipe_cost(name: str, config: StudyConfig, allowed: float) -> RecipeCost:
    """What a recipe will take where matrix products allow so many tokens a second: an estimate."""
    decoding = config.decoding
    requests = [] if decoding is None else planned_requests(decoding)
    rows = planned_rows(requests)
    tokens = 0 if decoding is None else int(rows * decoding.max_new_tokens * LENGTH_SHARE)
    scored = sum(request.sample == 0 for own in requests for request in own)
    return RecipeCost(
        recipe=name,
        rows=rows,
        tokens=tokens,
        seconds=round(FIXED_SECONDS + tokens / (DECODING_SHARE * allowed), 1),
        scoring_seconds=None if decoding is None else _scoring_seconds(decoding, scored, allowed),
        training_seconds=None if config.alignment is None else _training_seconds(config.alignment, allowed),
        auditing_seconds=None if config.auditing is None else _auditing_seconds(config, config.auditing, allowed),
        dictionaries_seconds=None
        if config.dictionaries is None
        else _dictionaries_seconds(config.dictionaries, allowed),
    )


@lru_cache(maxsize=8)
def planned_requests(decoding: DecodingConfig) -> list[list[Request]]:
    """The completions of every prompt; kept, for several figures are read off them."""
    return plan_requests(decoding, decoding.limit or STARTER_PROMPTS)


def training_pairs(alignment: AlignmentConfig) -> int:
    """How many pairs are trained on, about."""
    return STARTER_PAIRS if alignment.limit is None else round(alignment.limit * (1.0 - alignment.validation))


def _training_seconds(alignment: AlignmentConfig, allowed: float) -> float:
    """Reward model, DPO and GRPO; how many pairs a file holds is not known here, and taken as the starter set's."""
    pairs = training_pairs(alignment)
    passes = 0.0
    if alignment.reward is not None:
        passes += 2.0 * (alignment.reward.epochs if alignment.reward.max_steps is None else 1)
    if alignment.dpo is not None:
        # The reference's pass comes on top of forward and backward.
        passes += 1.0 + 2.0 * (alignment.dpo.epochs if alignment.dpo.max_steps is None else 1)
    tokens = passes * pairs * PAIR_TOKENS
    if (grpo := alignment.grpo) is not None:
        group = PROMPT_TOKENS + grpo.group_size * grpo.max_new_tokens
        # Written once by the engine, which costs thrice a pass, then reference, forward and backward.
        tokens += grpo.steps * grpo.prompts_per_step * group * (3.0 / grpo.iterations + 3.0)
    return round(FIXED_SECONDS + tokens / (TRAINING_SHARE * allowed), 1)


def _auditing_seconds(config: StudyConfig, auditing: AuditingConfig, allowed: float) -> float:
    """Base, own policies, named adapters and the nulls of both; the sweep, which reads few prompts, is left out.

    How many prompts a file holds is not known here.
    """
    own = () if config.alignment is None else (config.alignment.dpo, config.alignment.grpo)
    adapters = len(auditing.adapters) + sum(policy is not None for policy in own)
    checkpoints = 1 + adapters * (1 + auditing.nulls)
    length = auditing.max_new_tokens * LENGTH_SHARE
    prompts = min(auditing.verbosity_prompts, MAX_PROMPTS)
    written = checkpoints * 2 * prompts * length
    group = PROMPT_TOKENS + (1 + len(auditing.perturbations)) * (length + ADDED_TOKENS)
    perturbed = min(auditing.hacking_prompts, prompts) * group
    own_texts = 2 * min(auditing.divergence_prompts, prompts) * (PROMPT_TOKENS + length)
    chosen = min(auditing.perplexity_prompts, prompts) * PAIR_TOKENS
    read = checkpoints * (perturbed + own_texts + chosen)
    scored = len(auditing.scorers) * (perturbed + checkpoints * prompts * (PROMPT_TOKENS + length))
    return round(FIXED_SECONDS + written / (DECODING_SHARE * allowed) + (read + scored) / (READING_SHARE * allowed), 1)


def _dictionaries_seconds(dictionaries: DictionariesConfig, allowed: float) -> float:
    """Backbones, activations and all dictionaries; how large models and image sets are is not known here."""
    images = dictionaries.limit or (STARTER_IMAGES if dictionaries.images == STARTER else OTHER_IMAGES)
    if dictionaries.matrices is not None and (sizes := header_sizes(dictionaries)) is not None:
        images = sizes.train
    rate = 2.0 * PARAMETERS * allowed
    trained = BACKBONE_SECONDS * images / STARTER_IMAGES if dictionaries.backbones is not None else 0.0
    passes = len(dictionaries.models) * images * PASS_OPERATIONS / (TRAINING_SHARE * rate)
    rows = sum(
        arm.config.epochs * images * (len(arm.reads) if arm.config.sources == "every" else 1)
        for arm in arms(dictionaries)
    )
    products = 2.0 * FEATURES * dictionaries.universal.coder.latents * rows
    return round(FIXED_SECONDS + trained + passes + products / (DICTIONARY_SHARE * rate), 1)


def _scoring_seconds(decoding: DecodingConfig, completions: int, allowed: float) -> float | None:
    if decoding.reward_model is None:
        return None
    # What a study trains itself has the size of its model.
    size = 1.0 if decoding.reward_model == "trained" else REWARD_PARAMETERS / PARAMETERS
    tokens = completions * REWARD_TOKENS * size
    return round(tokens / (REWARD_SHARE * allowed), 1)


def features_of(hardware: Hardware) -> tuple[str, ...]:
    """The instructions that matter for the CPU's rate, by their usual names."""
    has = {
        "AVX2": hardware.has_avx2,
        "AVX-512": hardware.has_avx512,
        "AVX-512 bf16": hardware.has_avx512_bf16,
        "AMX bf16": hardware.has_amx_bf16,
    }
    return tuple(name for name, there in has.items() if there)


def _caches() -> Iterator[CacheState]:
    ours, hub = cache_root(), Path(constants.HF_HUB_CACHE)
    starter = "starter model ready" if starter_is_cached() else "starter model not there yet: 93 MB at the first study"
    yield CacheState(name="triptych", path=str(ours), bytes=folder_bytes(ours), note=starter)
    n_models = len(list(hub.glob("models--*")))
    yield CacheState(name="hub", path=str(hub), bytes=folder_bytes(hub), note=f"{n_models} models")


def folder_bytes(folder: Path) -> int:
    """Bytes of the files below a folder, links left out (the hub's cache is full of them); 0 where there is none."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            total += 0 if path.is_symlink() else path.stat().st_size
    return total


# --- for people -------------------------------------------------------------------------------------------------------


def report_lines(diagnosis: Diagnosis) -> Iterator[str]:
    """The diagnosis as text."""
    d = diagnosis
    yield f"processor   {d.cpu}, {d.cores:g} cores, {', '.join(d.features) or 'no wide vectors known'}"
    yield f"memory      {size(d.memory_bytes)}; free disk here {size(d.free_disk_bytes)}"
    yield f"GPU         {', '.join(d.gpus) or 'none'}"
    yield f"arithmetic  {d.dtype} on {d.device}"
    yield f"hub         {d.hub} {'answers' if d.hub_reachable else 'does not answer: use what is cached, or starter'}"
    for cache in d.caches:
        yield f"cache       {cache.name}: {size(cache.bytes)} in {cache.path} ({cache.note})"
    yield f"packages    {', '.join(f'{name} {version}' for name, version in d.packages.items())}"
    measured = f"measured: matrix products alone allow {d.products_per_second:,.0f}"
    yield f"decoding    about {d.tokens_per_second:,.0f} tokens/s (an estimate, as are all times below; {measured})"
    for cost in d.recipes:
        training = "" if cost.training_seconds is None else f", and {duration(cost.training_seconds)} of training"
        scoring = "" if cost.scoring_seconds is None else f", and {duration(cost.scoring_seconds)} of scoring"
        audits = "" if cost.auditing_seconds is None else f", and {duration(cost.auditing_seconds)} of audits"
        shared = (
            "" if cost.dictionaries_seconds is None else f", and {duration(cost.dictionaries_seconds)} of dictionaries"
        )
        about = f"{cost.tokens:,} tokens, about {duration(cost.seconds)}"
        yield f"recipe      {cost.recipe}: {about}{training}{scoring}{audits}{shared}"


def size(n_bytes: int) -> str:
    """Bytes as people say them."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
