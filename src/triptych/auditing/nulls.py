"""Null adapters: random LoRAs as large as an audited one, and where its findings stand among theirs.

Any change of weights moves figures. A null adapter has the targets, the rank and the norm of the audited adapter and
random directions; it is audited like it, against the same base. A finding that is no worse than theirs says nothing
that a random change of this size does not.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from triptych.auditing.card import RULES, Rule
from triptych.auditing.checkpoints import Checkpoint
from triptych.auditing.records import AuditRecord, Finding, NullFigure, NullSpread
from triptych.errors import ModelError
from triptych.models import LanguageModel
from triptych.models.language import is_plain_lora
from triptych.models.sources import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_json
from triptych.seeding import generator

NO_DRAWS = "random changes are made of the same size, and were not trained on anything"
"""Why findings about weights and training have no spread."""


def null_checkpoints(adapters: Sequence[Checkpoint], n: int, *, seed: int) -> list[Checkpoint]:
    """The null adapters of every LoRA among `adapters`: n of each."""
    return [
        adapter._replace(
            name=null_name(adapter.name, number), change=partial(randomise, seed=seed, number=number, name=adapter.name)
        )
        for adapter in adapters
        if why_no_lora(adapter) is None
        for number in range(n)
    ]


def null_name(adapter: str, number: int) -> str:
    """What a null adapter is called in `auditing/nulls/`, where no other checkpoint is."""
    return json.dumps(["null", adapter, number], ensure_ascii=False)


def why_no_lora(checkpoint: Checkpoint) -> str | None:
    """Why there are no random changes of a checkpoint's kind, as far as its files tell; None for a plain LoRA."""
    if checkpoint.folder is None or not checkpoint.is_adapter:
        return "it is a whole model, not a LoRA"
    config = read_json(checkpoint.folder / ADAPTER_CONFIG)
    kind = str(config.get("peft_type"))
    if kind != "LORA":
        return f"it is an adapter of the kind {kind}, not a LoRA"
    try:
        with safe_open(checkpoint.folder / ADAPTER_WEIGHTS, framework="pt") as file:
            others = [key for key in file.keys() if not key.endswith((".lora_A.weight", ".lora_B.weight"))]  # noqa: SIM118
    except (SafetensorError, OSError):
        # Loading it says what is wrong.
        return None
    return f"it has weights beside its LoRA ({others[0]})" if others else None


def require_loras(adapters: Sequence[Checkpoint], option: str) -> None:
    """Raises `ModelError` where none of the checkpoints is a LoRA: then `option` would do nothing."""
    reasons = {adapter.name: why_no_lora(adapter) for adapter in adapters}
    if all(reason is not None for reason in reasons.values()):
        why = "; ".join(f"'{name}': {reason}" for name, reason in reasons.items()) or "no adapter is audited"
        raise ModelError(f"{option} needs a LoRA among the audited adapters ({why}); name one, or leave {option} out")


def lora_layers(lm: LanguageModel, name: str) -> list[tuple[str, Any]]:
    """The LoRA layers of a loaded adapter by name of their module. Raises `ModelError` where there are none."""
    if not is_plain_lora(lm.model):
        raise ModelError(f"adapter '{name}' is more than a LoRA; leave nulls and sweep out, or audit it without them")
    return [(module, layer) for module, layer in lm.base.named_modules() if hasattr(layer, "lora_A")]


def update_norm(layer: Any, adapter: str) -> float:
    """‖ΔW‖_F of ΔW = scale · B · A, from products of rank by rank: ‖BA‖² = Σ (AAᵀ) ∘ (BᵀB)."""
    a, b = (part[adapter].weight.detach().double() for part in (layer.lora_A, layer.lora_B))
    return abs(float(layer.scaling[adapter])) * float(((a @ a.T) * (b.T @ b)).sum().clamp(min=0.0).sqrt())


@torch.no_grad()
def randomise(lm: LanguageModel, *, seed: int, number: int, name: str) -> None:
    """Puts random directions into a loaded LoRA, in place: A and B standard normal, B rescaled.

    The norm ‖ΔW‖_F of every module's update stays what it was. Draws belong to (seed, number, module, matrix), so that
    two adapters of the same shape have the same directions, however they are called.
    """
    for module, layer in lora_layers(lm, name):
        for adapter in layer.active_adapters:
            norm = update_norm(layer, adapter)
            for matrix in ("lora_A", "lora_B"):
                weight: Tensor = getattr(layer, matrix)[adapter].weight
                drawn = generator(seed, "null", number, module, matrix).standard_normal(weight.shape, dtype=np.float32)
                weight.copy_(torch.from_numpy(drawn))
            layer.lora_B[adapter].weight.mul_(norm / update_norm(layer, adapter) if norm else 0.0)


# --- Beside the card --------------------------------------------------------------------------------------------------

FigureKey = tuple[str, str, str, str | None, str | None, str | None]
"""Model, rule, metric, category, scorer, against."""


def null_figures(name: str, findings: Sequence[Finding]) -> Iterator[NullFigure]:
    """The figures of the null adapter of this `null_name`, from a card that has it as a checkpoint."""
    _, adapter, number = json.loads(name)
    for finding in findings:
        if finding.model == name:
            fields = {key: getattr(finding, key) for key in AuditRecord.model_fields}
            yield NullFigure(**{**fields, "model": adapter}, null=number, rule=finding.rule)


def beside_nulls(
    findings: Sequence[Finding], figures: Sequence[NullFigure], reasons: Mapping[str, str | None]
) -> list[Finding]:
    """The findings, each beside the spread of its adapter's nulls; `reasons` by adapter, None for a LoRA.

    Findings about the base or a reward have neither a spread nor a reason: no adapter is their subject.
    """
    values: dict[FigureKey, list[float]] = {}
    for figure in figures:
        if figure.estimate.mean is not None:
            values.setdefault(_key(figure), []).append(figure.estimate.mean)
    return [
        finding.model_copy(update=_standing(finding, values.get(_key(finding), []), reasons[finding.model]))
        if finding.model in reasons
        else finding
        for finding in findings
    ]


def _key(figure: Finding | NullFigure) -> FigureKey:
    return figure.model, figure.rule, figure.metric, figure.category, figure.scorer, figure.against


def _standing(finding: Finding, values: Sequence[float], reason: str | None) -> dict[str, object]:
    if reason is None and finding.audit == "lineage":
        reason = NO_DRAWS
    if reason is None and finding.estimate.mean is None:
        reason = "the figure has no value"
    if reason is None and not values:
        reason = "no random change has this figure"
    if reason is not None or finding.estimate.mean is None:
        return {"no_nulls": reason}
    return {"nulls": spread(finding.estimate.mean, values, RULES[finding.rule])}


def spread(value: float, nulls: Sequence[float], rule: Rule) -> NullSpread:
    """Where a value stands among those of nulls (at least one), in the direction that is wrong by its rule."""
    n = len(nulls)
    beyond = sum(badness(value, rule) > badness(null, rule) for null in nulls)
    sd = float(np.std(nulls, ddof=1)) if n > 1 else None
    mean = float(np.mean(nulls))
    return NullSpread(
        n=n,
        beyond=beyond,
        percentile=100.0 * beyond / n,
        p=(1 + n - beyond) / (1 + n),
        mean=mean,
        sd=sd,
        z=(value - mean) / sd if sd else None,
    )


def badness(value: float, rule: Rule) -> float:
    """What is worse is larger: the value, its opposite, its size, or by what factor it is off 1."""
    if rule.direction == "factor":
        return np.inf if value <= 0.0 else max(value, 1.0 / value)
    if rule.as_size:
        return abs(value)
    return value if rule.direction == "above" else -value
