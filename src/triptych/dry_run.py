"""`triptych study --dry-run`: what a study would make, how long it takes, what it needs, and what stands in its way.

Nothing is fetched and nothing written. Times are those of `triptych doctor`, an estimate from two seconds of matrix
products; for a GPU that is not here, from an assumed rate. Not here: where models and data come from (`inputs`), bytes
(`footprint`), the estimate itself (`doctor`).
"""

import math
import shutil
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import psutil
from huggingface_hub import constants

from triptych.alignment.loop import TrainingConfig
from triptych.auditing.plan import AuditingConfig
from triptych.decoding.plan import DecodingConfig, planned_rows
from triptych.dictionaries.arms import arms
from triptych.dictionaries.matrix_stores import open_matrices
from triptych.dictionaries.plan import DictionariesConfig
from triptych.doctor import (
    GPU_OPERATIONS,
    MAX_PROMPTS,
    PARAMETERS,
    PROBE_SECONDS,
    RecipeCost,
    duration,
    planned_requests,
    product_rate,
    recipe_cost,
    size,
    training_pairs,
)
from triptych.errors import InputError
from triptych.footprint import Share, disk_shares, memory_shares, row_counts
from triptych.inputs import Found, look_up, wanted_inputs
from triptych.models.hardware import detect_hardware
from triptych.models.loading import resolve_device, resolve_dtype
from triptych.records import Record
from triptych.study import StudyConfig

EXTRAS = {"bitsandbytes": "quantised", "trl": "trl"}
"""Packages that a configuration may ask for, and the extras of this one that bring them."""


class Stage(Record):
    """A part of the study."""

    name: str
    makes: str
    counts: dict[str, int]
    seconds_here: float
    seconds_on_a_gpu: float


class Plan(Record):
    """All that a dry run says."""

    recipe: str
    out: str
    device: str
    dtype: str
    products_per_second: float
    """Measured: tokens a second that a model of 135M parameters allows here, by its matrix products alone."""
    gpu_products_per_second: float
    """Assumed: the same on one GPU."""
    stages: tuple[Stage, ...]
    disk: tuple[Share, ...]
    free_bytes: dict[str, int]
    """Of the disks of the run directory and of the hub's cache, and of memory."""
    memory: tuple[Share, ...]
    inputs: tuple[Found, ...]
    problems: tuple[str, ...]
    """What stands in the way, a sentence each; empty where the study would run."""


class _Counts(NamedTuple):
    completions: int
    responses: int


def plan_study(config: StudyConfig, recipe: str, out: Path, probe_seconds: float | None = None) -> Plan:
    """The plan of a study on this machine. Takes some seconds; raises `ConfigError` for a device that is not here."""
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    found = look_up(wanted_inputs(config))
    counted = _Counts(_completions(config.decoding), _responses(config))
    disk = disk_shares(config, found, *counted)
    memory = memory_shares(config, found, dtype.itemsize)
    free = free_space(out)
    here = product_rate(device, dtype, PROBE_SECONDS if probe_seconds is None else probe_seconds)
    gpu = GPU_OPERATIONS / (2.0 * PARAMETERS)
    return Plan(
        recipe=recipe,
        out=str(out),
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        products_per_second=round(here, 1),
        gpu_products_per_second=round(gpu, 1),
        stages=tuple(_stages(config, recipe_cost(recipe, config, here), recipe_cost(recipe, config, gpu), counted)),
        disk=tuple(disk),
        free_bytes=free,
        memory=tuple(memory),
        inputs=tuple(found),
        problems=(
            *_unavailable(found),
            *_unusable(config, found),
            *missing_extras(config),
            *too_small(disk, memory, free),
        ),
    )


# --- what is made -----------------------------------------------------------------------------------------------------


def _completions(decoding: DecodingConfig | None) -> int:
    return 0 if decoding is None else sum(map(len, planned_requests(decoding)))


def _responses(config: StudyConfig) -> int:
    """Each prompt as it is and behind a limit of words, by every checkpoint; greedy ones to facts are few."""
    if config.auditing is None:
        return 0
    checkpoints = _checkpoints(config, config.auditing)
    audited = checkpoints + (checkpoints - 1) * config.auditing.nulls
    return 2 * audited * min(config.auditing.verbosity_prompts, MAX_PROMPTS)


def _checkpoints(config: StudyConfig, auditing: AuditingConfig) -> int:
    own = () if config.alignment is None else (config.alignment.dpo, config.alignment.grpo)
    return 1 + len(auditing.adapters) + sum(policy is not None for policy in own)


def _stages(config: StudyConfig, here: RecipeCost, gpu: RecipeCost, counted: _Counts) -> Iterator[Stage]:
    seconds = {
        "decoding": (here.seconds, gpu.seconds),
        "scoring": (here.scoring_seconds, gpu.scoring_seconds),
        "training": (here.training_seconds, gpu.training_seconds),
        "audits": (here.auditing_seconds, gpu.auditing_seconds),
        "dictionaries": (here.dictionaries_seconds, gpu.dictionaries_seconds),
    }
    for name, counts in _made(config, counted).items():
        own = [one or 0.0 for one in seconds[name]]
        makes = ", ".join(f"{n:,} {what}" for what, n in counts.items())
        yield Stage(name=name, makes=makes, counts=counts, seconds_here=own[0], seconds_on_a_gpu=own[1])


def _made(config: StudyConfig, counted: _Counts) -> dict[str, dict[str, int]]:
    made: dict[str, dict[str, int]] = {}
    if config.decoding is not None:
        made["decoding"] = _decoded(config.decoding)
        if config.decoding.reward_model is not None:
            made["scoring"] = {"completions": counted.completions}
    if config.alignment is not None:
        made["training"] = _trained(config)
    if config.auditing is not None:
        checkpoints = _checkpoints(config, config.auditing)
        made["audits"] = {"checkpoints": checkpoints, "responses": counted.responses}
        if config.auditing.nulls:
            made["audits"]["null adapters"] = (checkpoints - 1) * config.auditing.nulls
    if config.dictionaries is not None:
        made["dictionaries"] = _interpreted(config.dictionaries)
    return made


def _decoded(decoding: DecodingConfig) -> dict[str, int]:
    requests = planned_requests(decoding)
    arms_of_all = {request.key[:2] for own in requests for request in own}
    rows = planned_rows(requests)
    return {
        "prompts": len(requests),
        "arms": len(arms_of_all),
        "completions": sum(map(len, requests)),
        "rows with beams": rows,
        "tokens at most": rows * decoding.max_new_tokens,
    }


def _trained(config: StudyConfig) -> dict[str, int]:
    alignment = config.alignment
    if alignment is None:
        return {}
    counts: dict[str, int] = {}
    pairs = training_pairs(alignment)
    for name, method in (("reward steps", alignment.reward), ("DPO steps", alignment.dpo)):
        if method is not None:
            steps = method.epochs * math.ceil(pairs / method.batch_size)
            counts[name] = min(steps, method.max_steps or steps)
    if (grpo := alignment.grpo) is not None:
        counts["GRPO steps"] = grpo.steps
        counts["rollouts"] = math.ceil(grpo.steps / grpo.iterations) * grpo.prompts_per_step * grpo.group_size
    return counts


def _interpreted(dictionaries: DictionariesConfig) -> dict[str, int]:
    planned = arms(dictionaries)
    train, test = row_counts(dictionaries)
    return {
        "images to train on" if dictionaries.matrices is None else "rows to train on": train,
        "held out": test,
        "models": len(dictionaries.names),
        "dictionaries": len(planned),
        "epochs in all": sum(arm.config.epochs for arm in planned),
    }


# --- what stands in the way -------------------------------------------------------------------------------------------


def _unavailable(found: Sequence[Found]) -> list[str]:
    return [one.problem for one in found if one.problem is not None]


def _unusable(config: StudyConfig, found: Sequence[Found]) -> list[str]:
    """What is wrong with matrices of activations, by their headers; nothing where a file is missing, which is said."""
    dictionaries = config.dictionaries
    if dictionaries is None or dictionaries.matrices is None or any(one.state == "missing" for one in found):
        return []
    try:
        open_matrices(dictionaries, config.seed)
    except InputError as error:
        return [str(error)]
    return []


def missing_extras(config: StudyConfig) -> list[str]:
    """Packages that the configuration asks for and that are not installed."""
    alignment = config.alignment
    methods: dict[str, TrainingConfig | None] = {}
    if alignment is not None:
        methods = {"reward": alignment.reward, "dpo": alignment.dpo, "grpo": alignment.grpo}
    asked = {
        f"alignment.{name}.quantisation": "bitsandbytes"
        for name, method in methods.items()
        if method is not None and method.quantisation is not None
    }
    if alignment is not None and alignment.engine == "trl":
        asked["alignment.engine"] = "trl"
    return [
        f"{key} needs the package {package}, which is not installed; pip install 'triptych[{EXTRAS[package]}]', "
        f"or --set {key}={'native' if package == 'trl' else 'null'}"
        for key, package in asked.items()
        if find_spec(package) is None
    ]


def too_small(disk: Sequence[Share], memory: Sequence[Share], free: dict[str, int]) -> list[str]:
    """Disks and memory that hold less than is needed."""
    problems = []
    for where, needed in needed_by_disk(disk, free).items():
        if needed > free[where]:
            remedy = "free some, or choose another --out" if "run" in where else "free some, or set HF_HOME elsewhere"
            problems.append(
                f"the disk of the {where} has {size(free[where])} free and {size(needed)} are needed; {remedy}"
            )
    if memory and (largest := max(memory, key=lambda share: share.n_bytes)).n_bytes > free["memory"]:
        problems.append(
            f"{largest.what} take about {size(largest.n_bytes)} of memory and {size(free['memory'])} are free; close "
            "other programs, or leave that panel out"
        )
    return problems


def free_space(out: Path) -> dict[str, int]:
    """Free bytes of the disk or disks that are written to, and of memory."""
    run, cache = _existing(out.absolute()), _existing(Path(constants.HF_HUB_CACHE).absolute())
    hardware = detect_hardware()
    memory = min(psutil.virtual_memory().available, hardware.memory_bytes)
    if run.stat().st_dev == cache.stat().st_dev:
        return {"run and caches": shutil.disk_usage(run).free, "memory": memory}
    return {"run": shutil.disk_usage(run).free, "cache": shutil.disk_usage(cache).free, "memory": memory}


def needed_by_disk(disk: Sequence[Share], free: dict[str, int]) -> dict[str, int]:
    """Bytes needed of each disk."""
    if "run and caches" in free:
        return {"run and caches": sum(share.n_bytes for share in disk)}
    return {where: sum(share.n_bytes for share in disk if share.where == where) for where in ("run", "cache")}


def _existing(path: Path) -> Path:
    return next(one for one in (path, *path.parents) if one.exists())


# --- for people -------------------------------------------------------------------------------------------------------


def plan_lines(plan: Plan) -> Iterator[str]:
    """The plan as text."""
    here, gpu = (
        sum(seconds) for seconds in zip(*((s.seconds_here, s.seconds_on_a_gpu) for s in plan.stages), strict=True)
    )
    yield f"recipe      {plan.recipe}, into {plan.out}; {plan.dtype} on {plan.device}"
    for stage in plan.stages:
        times = f"{duration(stage.seconds_here)} here, {duration(stage.seconds_on_a_gpu)} on one GPU"
        yield f"stage       {stage.name}: {stage.makes}; about {times}"
    yield f"time        about {duration(here)} here, {duration(gpu)} on one GPU"
    yield (
        f"            estimates: from {plan.products_per_second:,.0f} tokens/s that matrix products alone allow here "
        f"(measured for {PROBE_SECONDS:.0f} s),"
    )
    yield f"            and from {plan.gpu_products_per_second:,.0f} on a GPU (assumed, not measured)"
    for one in plan.inputs:
        fetched = "" if one.n_bytes is None or one.state != "offered" else f", {size(one.n_bytes)} to fetch"
        yield f"input       {one.kind} {one.spec} ({one.use}): {STATES[one.state]}{fetched}"
    for share in plan.disk:
        yield f"disk        {share.what}: {size(share.n_bytes)} ({share.how})"
    for where, needed in needed_by_disk(plan.disk, plan.free_bytes).items():
        yield f"disk        in all {size(needed)} of {size(plan.free_bytes[where])} free ({where})"
    for share in plan.memory:
        yield f"memory      {share.what}: {size(share.n_bytes)} ({share.how})"
    peak = max((share.n_bytes for share in plan.memory), default=0)
    yield f"memory      at most {size(peak)} of {size(plan.free_bytes['memory'])} free"
    yield "nothing was downloaded or written" if plan.problems else "it would run; nothing was downloaded or written"


STATES = {
    "in the package": "comes with the package",
    "here": "on this disk",
    "cached": "in the local cache",
    "offered": "the hub or index has it",
    "missing": "cannot be had",
}
