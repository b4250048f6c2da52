"""What this machine offers and what the recipes will cost on it.

The rate is an estimate: two seconds of matrix products of the model's shapes, times the share of them that decoding
reaches on machines where both were measured. Not here: detecting hardware (`triptych.models.hardware`).
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import constants

from triptych.decoding.plan import DecodingConfig, plan_requests, planned_rows
from triptych.environment import package_versions
from triptych.models.cache import cache_root
from triptych.models.hardware import Hardware, detect_hardware
from triptych.models.hub import hub_is_reachable
from triptych.models.loading import resolve_device, resolve_dtype
from triptych.models.starter import starter_is_cached
from triptych.records import Record
from triptych.study import StudyConfig, load_recipe, recipe_names

PARAMETERS = 134.5e6
"""Of SmolLM2-135M, the model of every recipe; two floating-point operations each per token."""

REWARD_PARAMETERS = 435e6
"""Of the paper's reward model."""

REWARD_TOKENS = 200
"""Question and answer, on average."""

DECODING_SHARE = 0.3
"""Of the rate of matrix products: what the rest (attention, norms, sampling) leaves. Measured 0.25 to 0.5."""

REWARD_SHARE = 0.5

LENGTH_SHARE = 0.7
"""Tokens of a completion as a share of the limit: many end before it."""

FIXED_SECONDS = 20.0
"""Importing, loading the model, measures and report."""

PROBE_SECONDS = 2.0
PROBE_SHAPE = (256, 576, 1536)
"""Rows in flight, and the shape of the model's gate and up projections."""


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
    gflops: float
    """Measured: matrix products of the model's shapes in `dtype` on `device`."""
    tokens_per_second: float
    """Estimated for decoding SmolLM2-135M with many rows in flight."""
    recipes: tuple[RecipeCost, ...]
    packages: dict[str, str]


def diagnose(probe_seconds: float = PROBE_SECONDS) -> Diagnosis:
    """Looks at this machine; takes a few seconds, and five more where the hub does not answer."""
    hardware = detect_hardware()
    device = resolve_device("auto")
    dtype = resolve_dtype("auto", device)
    flops = matmul_flops(device, dtype, probe_seconds)
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
        gflops=round(flops / 1e9, 1),
        tokens_per_second=round(decoding_rate(flops), 1),
        recipes=tuple(recipe_cost(name, config, flops) for name, config in configs.items()),
        packages=package_versions(),
    )


def matmul_flops(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """Floating-point operations a second of products of `PROBE_SHAPE`."""
    rows, width, out = PROBE_SHAPE
    x = torch.ones(rows, width, dtype=dtype, device=device)
    weight = torch.ones(width, out, dtype=dtype, device=device)
    n_products, batch = 0, 8
    _products(x, weight, batch)  # the first ones set things up
    started = time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds:
        _products(x, weight, batch)
        n_products += batch
    return 2.0 * rows * width * out * n_products / max(spent, 1e-9)


def _products(x: torch.Tensor, weight: torch.Tensor, count: int) -> None:
    for _ in range(count):
        product = x @ weight
    # Reading one number waits for a GPU to finish.
    product[0, 0].item()


def decoding_rate(flops: float) -> float:
    """Tokens a second that decoding is likely to reach: an estimate."""
    return DECODING_SHARE * flops / (2.0 * PARAMETERS)


def recipe_cost(name: str, config: StudyConfig, flops: float) -> RecipeCost:
    """What a recipe will take at this rate of matrix products: an estimate."""
    decoding = config.decoding
    requests = plan_requests(decoding, decoding.limit or 1)
    rows = planned_rows(requests)
    tokens = int(rows * decoding.max_new_tokens * LENGTH_SHARE)
    scored = sum(request.sample == 0 for own in requests for request in own)
    return RecipeCost(
        recipe=name,
        rows=rows,
        tokens=tokens,
        seconds=round(FIXED_SECONDS + tokens / decoding_rate(flops), 1),
        scoring_seconds=_scoring_seconds(decoding, scored, flops),
    )


def _scoring_seconds(decoding: DecodingConfig, completions: int, flops: float) -> float | None:
    if decoding.reward_model is None:
        return None
    return round(completions * REWARD_TOKENS * 2.0 * REWARD_PARAMETERS / (REWARD_SHARE * flops), 1)


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
    yield f"memory      {_size(d.memory_bytes)}; free disk here {_size(d.free_disk_bytes)}"
    yield f"GPU         {', '.join(d.gpus) or 'none'}"
    yield f"arithmetic  {d.dtype} on {d.device}, {d.gflops:,.0f} GFLOP/s measured"
    yield f"hub         {d.hub} {'answers' if d.hub_reachable else 'does not answer: use what is cached, or starter'}"
    for cache in d.caches:
        yield f"cache       {cache.name}: {_size(cache.bytes)} in {cache.path} ({cache.note})"
    yield f"packages    {', '.join(f'{name} {version}' for name, version in d.packages.items())}"
    yield f"decoding    about {d.tokens_per_second:,.0f} tokens/s (an estimate, as are all times below)"
    for cost in d.recipes:
        scoring = "" if cost.scoring_seconds is None else f", and {_duration(cost.scoring_seconds)} of scoring"
        yield f"recipe      {cost.recipe}: {cost.tokens:,} tokens, about {_duration(cost.seconds)}{scoring}"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
