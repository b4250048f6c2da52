"""Truth that is known: two models made of common and private concepts, each with a known dictionary of its own.

Everything runs at shipped defaults but for the numbers of latents, on generators that no default was chosen on (those
are in `benchmarks/which_dictionary.py`), and is measured on rows that were not trained on.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from triptych.dictionaries.coder import CoderConfig
from triptych.dictionaries.codes import read_rows
from triptych.dictionaries.measures import Facts, facts_of, metrics_of
from triptych.dictionaries.rows import PairedRows
from triptych.dictionaries.settings import UniversalConfig
from triptych.dictionaries.sparsifiers import TopK
from triptych.dictionaries.training import train_universal_sae

TRAIN, TEST = 6000, 1500
RIGHT = 0.9
"""Cosine of decoder rows from which a latent is a planted concept."""


class Generator(NamedTuple):
    shared: int
    private: int
    widths: tuple[int, int]
    active: tuple[float, float]
    """Shared and private concepts in a row of a model, on average."""
    noise: float
    seed: int

    @property
    def k(self) -> int:
        return round(sum(self.active)) + 1

    @property
    def latents(self) -> int:
        return 2 * (self.shared + 2 * self.private)


GENERATORS = {
    "few rare": Generator(72, 24, (128, 144), (3.0, 1.2), 0.03, 11),
    "many private": Generator(64, 48, (160, 136), (2.5, 2.5), 0.01, 12),
}


class Planted(NamedTuple):
    generator: Generator
    activations: dict[str, Tensor]
    """[TRAIN + TEST, width]."""
    concepts: dict[str, Tensor]
    """[concepts, width]: the common ones first."""


class Found(NamedTuple):
    facts: Facts
    cosines: dict[str, npt.NDArray[np.float64]]
    """[latents, concepts] by model."""


def plant(generator: Generator) -> Planted:
    """Strengths of 0.4 … 1.6, rates that differ tenfold between concepts."""
    stream = torch.Generator().manual_seed(generator.seed)
    rows = TRAIN + TEST

    def strengths(count: int, active: float) -> Tensor:
        rates = torch.logspace(-0.5, 0.5, count)
        present = torch.rand(rows, count, generator=stream) < rates / rates.sum() * active
        return present * (0.4 + 1.2 * torch.rand(rows, count, generator=stream))

    common = strengths(generator.shared, generator.active[0])
    activations, concepts = {}, {}
    for name, width in zip("ab", generator.widths, strict=True):
        count = generator.shared + generator.private
        concepts[name] = functional.normalize(torch.randn(count, width, generator=stream), dim=1)
        codes = torch.cat([common, strengths(generator.private, generator.active[1])], dim=1)
        activations[name] = codes @ concepts[name] + generator.noise * torch.randn(rows, width, generator=stream)
    return Planted(generator, activations, concepts)


@pytest.fixture(scope="module", params=GENERATORS)
def planted(request: pytest.FixtureRequest) -> Planted:
    return plant(GENERATORS[request.param])


def shipped(generator: Generator, times_k: float = 1.0, **changes: object) -> UniversalConfig:
    coder = CoderConfig(latents=generator.latents, sparsifier=TopK(k=round(generator.k * times_k)))
    return UniversalConfig(coder=coder).model_copy(update=changes)


def apart(settings: UniversalConfig, init: str) -> UniversalConfig:
    return settings.model_copy(update={"coder": settings.coder.model_copy(update={"init": init})})


def measure(
    activations: dict[str, Tensor], settings: UniversalConfig, *, shuffled: bool = False
) -> tuple[Facts, dict[str, Tensor]]:
    """Facts on unseen rows, and decoder rows."""
    train, test = (
        {name: rows[part] for name, rows in activations.items()} for part in (slice(TRAIN), slice(TRAIN, None))
    )
    stream = torch.Generator().manual_seed(2)
    orders = [{"b": torch.randperm(n, generator=stream)} if shuffled else None for n in (TRAIN, TEST)]
    sae = train_universal_sae(train, settings, seed=1, device="cpu", pairing=orders[0]).sae
    reading = read_rows(sae, PairedRows(test, pairing=orders[1]))
    return facts_of(sae, reading, np.arange(TEST), threshold=0.0), {
        name: functional.normalize(sae.coder(name).decoder_weight.detach(), dim=1) for name in sae.names
    }


def find(planted: Planted, settings: UniversalConfig) -> Found:
    facts, rows = measure(planted.activations, settings)
    return Found(facts, {name: (rows[name] @ planted.concepts[name].T).double().numpy() for name in rows})


def shared_kinds(found: Found, planted: Planted) -> npt.NDArray[np.str_]:
    """The kind of the latent that is each common concept in both decoders; empty where none is."""
    both = np.minimum(*found.cosines.values())[:, : planted.generator.shared]
    return np.where(both.max(0) > RIGHT, found.facts.kinds.kind[both.argmax(0)], "")


def private_latents(found: Found, planted: Planted, name: str) -> npt.NDArray[np.intp]:
    """The latents that are private concepts of a model, one for each concept that has one."""
    own = found.cosines[name][:, planted.generator.shared :]
    best: npt.NDArray[np.intp] = own.argmax(0)[own.max(0) > RIGHT]
    return best


@pytest.mark.parametrize("times_k", [1.0, 1.25])
def test_common_concepts_are_universal_and_private_ones_specific(planted: Planted, times_k: float) -> None:
    found = find(planted, shipped(planted.generator, times_k))
    assert np.mean(shared_kinds(found, planted) == "universal") >= 0.95
    kinds = found.facts.kinds
    for place, name in enumerate(planted.concepts):
        private = private_latents(found, planted, name)
        right = (kinds.kind[private] == "specific") & (kinds.specific_to[private] == place)
        assert right.sum() >= 0.8 * planted.generator.private
        assert not found.facts.is_confirmed[private].any()


def test_by_counts_private_concepts_are_hardly_ever_specific(planted: Planted) -> None:
    """Why the definition is by what latents explain: TopK fills its places with small values."""
    found = find(planted, shipped(planted.generator, 1.25))
    private = np.concatenate([private_latents(found, planted, name) for name in planted.concepts])
    assert np.mean(found.facts.entropy[private] < 0.1) < 0.5


def test_with_the_pairing_shuffled_nothing_is_confirmed(planted: Planted) -> None:
    facts, _ = measure(planted.activations, shipped(planted.generator), shuffled=True)
    metrics = metrics_of(facts, loss=0.0)
    assert metrics["confirmed"] == 0
    assert metrics["universal"] == 0
    # Which is no matter of course: by counts many are universal.
    assert metrics["universal_by_counts"] > 0.1 * planted.generator.latents
    assert metrics["co_firing_proportion"] == pytest.approx(metrics["co_firing_chance"], abs=0.01)
    assert metrics["r2"]["a"]["b"] < 0.02


@pytest.mark.parametrize("init", ["own_samples", "random"])
def test_a_model_against_itself_from_other_starts_is_universal(planted: Planted, init: str) -> None:
    again = {"a": planted.activations["a"], "a again": planted.activations["a"]}
    facts, _ = measure(again, apart(shipped(planted.generator), init))
    live = facts.kinds.kind != "dead"
    assert live.sum() >= 0.9 * (planted.generator.shared + planted.generator.private)
    assert np.mean(facts.kinds.kind[live] == "universal") >= 0.9


def test_the_null_of_a_model_against_itself_can_fail(planted: Planted) -> None:
    """Without matching, both find the same concepts apart and keep a latent each for many of them."""
    again = {"a": planted.activations["a"], "a again": planted.activations["a"]}
    facts, _ = measure(again, apart(shipped(planted.generator, match=False), "own_samples"))
    live = facts.kinds.kind != "dead"
    assert np.mean(facts.kinds.kind[live] == "universal") < 0.9
    # Reconstruction does not tell: every decoder has learnt from both codes.
    r2 = metrics_of(facts, 0.0)["r2"]
    assert r2["a"]["a again"] == pytest.approx(r2["a"]["a"], abs=0.02)


def test_updating_the_source_alone_explains_less_across_models(planted: Planted) -> None:
    """The official code's update: decoder j never learns from the codes of i."""
    ours, theirs = (
        metrics_of(find(planted, shipped(planted.generator, update=update)).facts, 0.0)["r2"]
        for update in ("all", "source")
    )
    assert ours["a"]["b"] + ours["b"]["a"] > theirs["a"]["b"] + theirs["b"]["a"]
