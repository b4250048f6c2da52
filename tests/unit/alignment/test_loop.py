"""Every field of the training configurations is read: changing it changes what a run does, or is an error."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from triptych.alignment.adapters import LoraConfig
from triptych.alignment.backends import fused
from triptych.alignment.backends.fused import FusedTrunk
from triptych.alignment.dpo import DpoConfig
from triptych.alignment.grpo import GrpoConfig
from triptych.alignment.loop import TrainingConfig
from triptych.alignment.optimisation import OptimiserConfig
from triptych.alignment.reward_model import RewardConfig
from triptych.checkpoints import Checkpoints
from triptych.errors import ModelError

CONFIGS: dict[str, type[TrainingConfig]] = {"dpo": DpoConfig, "reward": RewardConfig, "grpo": GrpoConfig}

SHARED: dict[str, Any] = {
    "lora.rank": 3,
    "lora.alpha": 64.0,
    "lora.dropout": 0.5,
    "lora.targets": ("o_proj",),
    "optimiser.learning_rate": 3e-3,
    "optimiser.schedule": "cosine",
    "optimiser.warmup": 0.5,
    "optimiser.betas": (0.5, 0.9),
    "optimiser.epsilon": 0.1,
    "optimiser.weight_decay": 0.5,
    "optimiser.clip": 1e-3,
    "max_length": 28,
    "micro_batch_tokens": 10,
    "micro_batch_size": 1,
    "gradient_checkpointing": True,
    "share_prefix": False,
    "path": "generic",
    "eval_every": 1,
    "checkpoint_every": 1,
}
OWN: dict[str, dict[str, Any]] = {
    "dpo": {"loss": {"name": "ipo"}, "batch_size": 2, "epochs": 2, "max_steps": 2},
    "reward": {"model": "OTHER", "centring": 5.0, "batch_size": 2, "epochs": 2, "max_steps": 2},
    "grpo": {
        "loss": {"name": "dr_grpo"},
        "advantage": "leave_one_out",
        "rewards": ["brevity"],
        "gold": "repetition",
        "prompts": "OTHER",
        "only_checked": True,
        "prompts_per_step": 3,
        "group_size": 2,
        "max_new_tokens": 4,
        "temperature": 0.5,
        "steps": 2,
        "iterations": 2,
        "importance_sampling": {"mode": "token_mask", "clip_max": 0.5},
        "mask_truncated": True,
        "eval_prompts": 1,
        "watch": {"baseline_steps": 1, "window": 1, "entropy_high": {"warn_at": 0.1, "stop_at": 100.0}},
    },
}
# Fields of how, not of what: another way of computing gives the same weights, to rounding.
WAYS = {"micro_batch_tokens", "micro_batch_size", "gradient_checkpointing", "share_prefix", "path", "eval_every"}
WAYS |= {"checkpoint_every", "gold", "eval_prompts", "watch"}
# Nothing happens unless it is also long enough to matter: epochs without max_steps.
WITH = {"epochs": {"max_steps": None}}
ELSEWHERE = {"quantisation"}


class Done(NamedTuple):
    """What can be seen of a run."""

    weights: dict[str, torch.Tensor]
    metrics: Any
    warnings: Any
    path: str
    passes: int
    layers: int
    """Layers computed by the fused path: more where they are computed again."""
    saves: int

    def differs(self, other: "Done") -> bool:
        return self[1:] != other[1:] or not same_bits(self.weights, other.weights)


def same_bits(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return set(some) == set(others) and all(
        tensor.shape == others[name].shape and torch.equal(tensor, others[name]) for name, tensor in some.items()
    )


class Counted:
    def __init__(self, world: Any) -> None:
        self.world = world
        self.counts = dict.fromkeys(("passes", "layers", "saves"), 0)
        self.plain: dict[str, Done] = {}

    def run(self, method: str, **options: Any) -> Done:
        self.counts.update(dict.fromkeys(self.counts, 0))
        # References lie in the cache after the first run: no pass of theirs must be counted once and not again.
        for path in Path(self.world.folder / "cache").rglob("*.safetensors"):
            path.unlink()
        folder = self.world.train(method, **options)
        state = self.world.state(folder)
        return Done(
            load_file(folder / "adapter_model.safetensors"),
            self.world.metrics(folder),
            state["warnings"],
            state["path"],
            **self.counts,
        )

    def base(self, method: str) -> Done:
        if method not in self.plain:
            self.plain[method] = self.run(method)
        return self.plain[method]


@pytest.fixture(scope="module")
def counted(world: Any) -> Iterator[Counted]:
    counted = Counted(world)
    hidden, forward, save = FusedTrunk.hidden, fused._forward, Checkpoints.save

    def count(name: str, function: Any) -> Any:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            counted.counts[name] += 1
            return function(*arguments, **options)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FusedTrunk, "hidden", count("passes", hidden))
        patch.setattr(fused, "_forward", count("layers", forward))
        patch.setattr(Checkpoints, "save", count("saves", save))
        yield counted


def nested(world: Any, method: str, field: str, value: Any) -> dict[str, Any]:
    """The options of a run with one field changed."""
    if value == "OTHER":
        value = world.other_prompts if field == "prompts" else world.other_model
    if "." not in field:
        return {field: value, **WITH.get(field, {})}
    group, _, name = field.partition(".")
    own: dict[str, Any] = {"learning_rate": 1e-2}
    if group == "optimiser" and method == "grpo":
        own["schedule"] = "linear"
    return {group: ({"rank": 2} if group == "lora" else own) | {name: value}}


def leaves(config: Any) -> set[str]:
    """Names of fields; those of the groups that all share one by one."""
    found = set()
    for name in config.model_fields:
        inner: Any = {"lora": LoraConfig, "optimiser": OptimiserConfig}.get(name)
        found |= {name} if inner is None else {f"{name}.{key}" for key in inner.model_fields}
    return found


@pytest.mark.parametrize("method", CONFIGS)
def test_no_field_is_forgotten_here(method: str) -> None:
    assert leaves(CONFIGS[method]) == {*SHARED, *OWN[method], *ELSEWHERE}


# LoRA and optimiser are put together by one piece of code for all methods, so that one shows it.
CASES = [
    (method, field)
    for method in CONFIGS
    for field in (*SHARED, *OWN[method])
    if method == "dpo" or not field.startswith(("lora.", "optimiser."))
]


@pytest.mark.parametrize(("method", "field"), CASES)
def test_every_field_is_read(counted: Counted, method: str, field: str) -> None:
    value = {**SHARED, **OWN[method]}[field]
    expected = counted.base(method)
    found = counted.run(method, **nested(counted.world, method, field, value))
    assert found.differs(expected)
    same_shapes = {name: t.shape for name, t in found.weights.items()} == {
        name: t.shape for name, t in expected.weights.items()
    }
    if field in WAYS:
        assert same_shapes
        # AdamW divides by the size of a gradient, so that the rounding of a tiny one shows in single entries.
        for name, tensor in expected.weights.items():
            assert (found.weights[name] - tensor).abs().mean() < 1e-3 * tensor.abs().mean() + 1e-9, name
    elif not (field == "max_length" and method == "grpo"):
        # GRPO's max_length is that of the held-out pairs, which it is measured on.
        assert not same_bits(found.weights, expected.weights)


@pytest.mark.parametrize("method", CONFIGS)
def test_a_run_repeats_itself(counted: Counted, method: str) -> None:
    # Else all of the above would prove nothing.
    assert not counted.run(method).differs(counted.base(method))


@pytest.mark.parametrize("method", CONFIGS)
def test_eight_bits_need_their_package(world: Any, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr("triptych.models.loading.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="in 8 bit needs bitsandbytes"):
        world.train(method, quantisation="8bit")
