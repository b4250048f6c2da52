"""The kernels of a training step on a CPU say what autograd says."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from triptych.dictionaries.backends.base import Backend
from triptych.dictionaries.backends.fused import Fused
from triptych.dictionaries.backends.generic import Generic
from triptych.dictionaries.coder import CoderConfig, UniversalSAE, initialise
from triptych.dictionaries.settings import UniversalConfig
from triptych.dictionaries.sparsifiers import TopK
from triptych.dictionaries.training import learning_rate

WIDTHS = {"a": 9, "b": 6, "c": 4}
LATENTS, K = 24, 3
BATCHES = (17, 32, 2, 31, 5, 16, 1)
"""Rows of the steps."""

WAYS = [
    {"update": update, "sources": sources, "code": code, "decoder_norm": norm}
    for update, (sources, code), norm in itertools.product(
        ("source", "all"), (("one", "own"), ("every", "own"), ("every", "summed")), ("unit", "free")
    )
]
EACH = pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(way.values()))


def config(way: dict[str, Any], **settings: Any) -> UniversalConfig:
    coder = CoderConfig(latents=LATENTS, sparsifier=TopK(k=settings.pop("k", K)), decoder_norm=way["decoder_norm"])
    rest = {name: value for name, value in way.items() if name != "decoder_norm"}
    return UniversalConfig(**{"coder": coder, "learning_rate": 0.02} | rest | settings)


def some_batch(n: int, step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    shared = torch.randn(n, 5, generator=generator)
    mixing = torch.Generator().manual_seed(99)
    return [
        shared @ torch.randn(5, w, generator=mixing) / 2 + 0.3 * torch.randn(n, w, generator=generator)
        for w in WIDTHS.values()
    ]


def begun(settings: UniversalConfig) -> UniversalSAE:
    sae = UniversalSAE(settings.coder, WIDTHS)
    initialise(sae, some_batch(LATENTS, -1), 0)
    if settings.coder.decoder_norm == "free":
        with torch.no_grad():
            for name in WIDTHS:
                sae.coder(name).decoder_weight.mul_(torch.linspace(0.5, 1.5, LATENTS)[:, None])
    return sae


def sources_of(settings: UniversalConfig, step: int) -> list[int]:
    return [0, 1, 2] if settings.sources == "every" else [(step * 2) % 3]


def train(backend: Backend, settings: UniversalConfig, sizes: tuple[int, ...] = BATCHES) -> list[float]:
    losses = []
    for step, n in enumerate(sizes):
        rate = learning_rate(settings, step, len(sizes))
        losses.append(float(backend.step(some_batch(n, step), sources_of(settings, step), rate)))
    return losses


def pair(
    settings: UniversalConfig, dtype: torch.dtype = torch.float32
) -> tuple[Generic, Fused, tuple[UniversalSAE, UniversalSAE]]:
    saes = begun(settings), begun(settings)
    return Generic(saes[0], settings, torch.float32), Fused(saes[1], settings, dtype), saes


def assert_close(one: UniversalSAE, other: UniversalSAE, tolerance: float = 2e-5) -> None:
    weights, others = one.state_dict(), other.state_dict()
    assert set(weights) == set(others)
    for name, tensor in weights.items():
        close = torch.allclose(others[name], tensor, atol=tolerance, rtol=1e-4)
        assert close, f"{name} differs by {float((others[name] - tensor).abs().max()):.2g}"


@EACH
def test_weights_losses_and_firing_after_several_steps(way: dict[str, Any]) -> None:
    settings = config(way, weight_decay=0.2, warm_up=0.3, final_learning_rate=1e-4)
    assert settings.is_plain
    generic, fused, saes = pair(settings)
    start = copy.deepcopy(saes[0])
    assert train(fused, settings) == pytest.approx(train(generic, settings), rel=2e-5)
    assert_close(*saes)
    assert torch.equal(fused.fired(), generic.fired())
    assert not torch.allclose(start.coder("a").decoder_weight, saes[1].coder("a").decoder_weight, atol=1e-2)
    if way["decoder_norm"] == "unit":
        for name in WIDTHS:
            torch.testing.assert_close(saes[1].coder(name).decoder_weight.norm(dim=1), torch.ones(LATENTS))


@EACH
@pytest.mark.parametrize("k", [1, LATENTS])
def test_extreme_numbers_of_latents(way: dict[str, Any], k: int) -> None:
    settings = config(way, k=k)
    generic, fused, saes = pair(settings)
    assert train(fused, settings) == pytest.approx(train(generic, settings), rel=2e-5)
    assert_close(*saes)


@EACH
def test_moments_are_the_same(way: dict[str, Any]) -> None:
    """Of what has been stepped; autograd knows nothing yet of what has not, kernels know zeros."""
    settings = config(way)
    generic, fused, _ = pair(settings)
    train(generic, settings, (17, 9))
    train(fused, settings, (17, 9))
    known, mine = generic.moments(), fused.moments()
    known.pop("idle")
    assert set(known) <= set(mine)
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, known.get(name, torch.zeros_like(tensor)), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("way", [WAYS[0], WAYS[-1]], ids=["first", "last"])
def test_latents_that_begin_again_are_the_same(way: dict[str, Any]) -> None:
    """Their moments are zero and everything else goes on; kernels in bfloat16 see the new weights, too."""
    settings = config(way)
    generic, fused, saes = pair(settings)
    chosen = torch.arange(LATENTS) % 5 == 2
    backends: tuple[Backend, Backend] = (generic, fused)
    for backend, sae in zip(backends, saes, strict=True):
        train(backend, settings)
        with torch.no_grad():
            for name, w in WIDTHS.items():
                coder = sae.coder(name)
                new = torch.randn(int(chosen.sum()), w, generator=torch.Generator().manual_seed(4))
                coder.decoder_weight[chosen] = torch.nn.functional.normalize(new, dim=1)
                coder.encoder_weight[chosen] = new
                coder.encoder_bias[chosen] = 0.0
        backend.forget(chosen)
        backend.reload()
        for name, tensor in backend.moments().items():
            if ("weight" in name or "encoder_bias" in name) and "exp_avg" in name:
                assert not tensor[chosen].any()
                assert tensor[~chosen].any()
        train(backend, settings)
    assert_close(*saes, tolerance=1e-4)


@pytest.mark.parametrize("way", [WAYS[0], WAYS[-1]], ids=["first", "last"])
def test_a_batch_that_fires_nothing(way: dict[str, Any]) -> None:
    """Rows of zeros with biases of 0: pre-activations are exactly 0, which do not fire and have no gradient."""
    settings = config(way, weight_decay=0.1)
    generic, fused, saes = pair(settings)
    for step in range(3):
        batch = [torch.zeros(4, w) + (0.5 if step == 2 else 0.0) for w in WIDTHS.values()]
        losses = [float(backend.step(batch, sources_of(settings, step), 0.01)) for backend in (generic, fused)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5, abs=1e-12)
        fired = [backend.fired() for backend in (generic, fused)]
        assert torch.equal(*fired)
        assert bool(fired[0].any()) == (step == 2)
    assert_close(*saes)


@pytest.mark.parametrize("one", ["source", "all"])
def test_one_model_alone(one: str) -> None:
    settings = config({"update": one, "sources": "every", "code": "summed", "decoder_norm": "unit"})
    saes = UniversalSAE(settings.coder, {"a": 9}), UniversalSAE(settings.coder, {"a": 9})
    for sae in saes:
        initialise(sae, some_batch(LATENTS, -1)[:1], 0)
    for step, n in enumerate(BATCHES):
        for backend in (Generic(saes[0], settings, torch.float32), Fused(saes[1], settings, torch.float32)):
            backend.step(some_batch(n, step)[:1], [0], 0.01)
    assert_close(*saes)


# --- bfloat16 ---------------------------------------------------------------------------------------------------------


@EACH
def test_kernels_in_bfloat16_are_close_to_float32(way: dict[str, Any]) -> None:
    """It only chooses latents; where it chooses the same, codes and steps are those of float32.

    Choices differ where two pre-activations are nearly equal, so that the loss is near and not equal.
    """
    settings = config(way, learning_rate=0.005)
    _, exact, _ = pair(settings)
    _, rounded, _ = pair(settings, torch.bfloat16)
    sizes = (64,) * 12
    losses, others = train(exact, settings, sizes), train(rounded, settings, sizes)
    assert others == pytest.approx(losses, rel=0.05)
    assert others != losses


def test_kernels_in_bfloat16_are_exact_where_all_latents_are_chosen() -> None:
    """k = latents: only signs are chosen by rounded products."""
    settings = config(WAYS[-2], k=LATENTS)
    (_, exact, saes), (_, rounded, others) = pair(settings), pair(settings, torch.bfloat16)
    batch = some_batch(32, 0)
    losses = [float(backend.step(batch, [0, 1, 2], 0.001)) for backend in (exact, rounded)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert_close(saes[1], others[1], tolerance=2.1e-3)


def test_autograd_in_bfloat16_is_close_to_float32() -> None:
    settings = config(WAYS[-2], learning_rate=0.005)
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        sae = begun(settings)
        losses.append(train(Generic(sae, settings, dtype), settings, (64,) * 12))
        assert all(parameter.dtype == torch.float32 for parameter in sae.parameters())
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]


@EACH
def test_latents_in_another_order_take_everything_along(way: dict[str, Any]) -> None:
    """A model's own reconstruction stays, and the next steps are the same in both backends."""
    settings = config(way)
    generic, fused, saes = pair(settings)
    train(generic, settings, (17, 9))
    train(fused, settings, (17, 9))
    order = torch.randperm(LATENTS, generator=torch.Generator().manual_seed(0))
    rows = some_batch(40, 7)[1]
    before = saes[1].eval()("b", "b", rows)
    for backend in (generic, fused):
        backend.reorder(1, order)
        backend.reload()
    torch.testing.assert_close(saes[1].eval()("b", "b", rows), before)
    saes[0].train()
    assert train(fused, settings, (16, 31)) == pytest.approx(train(generic, settings, (16, 31)), rel=2e-5)
    assert_close(*saes)
