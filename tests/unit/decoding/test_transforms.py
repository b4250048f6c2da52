import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import (
    EtaLogitsWarper,
    LogitsProcessor,
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from triptych.decoding.head import Head, Kept, read_by_sort
from triptych.decoding.strategies import STRATEGIES, Sampler
from triptych.decoding.transforms import TRUNCATIONS, ancestral, eta, min_p, top_k, top_nsigma, top_p, typical


def head_of(logits: Tensor, m: int | None = None, temperature: float = 1.0) -> Head:
    """The `m` (all) most probable tokens of some rows."""
    n, vocabulary = logits.shape
    source = read_by_sort(logits, torch.full((n,), temperature))
    return source.take(torch.arange(n), vocabulary if m is None else m)


def head_with(probabilities: list[float], m: int | None = None, temperature: float = 1.0) -> Head:
    """The head of one row with these probabilities at T = 1."""
    return head_of(torch.tensor([probabilities]).log(), m, temperature)


def one(value: float) -> Tensor:
    return torch.tensor([value])


def kept_ids(head: Head, kept: Kept) -> list[int]:
    """The tokens kept of a head of one row, most probable first."""
    return [int(token) for token in head.ids[0, kept.mask[0]]]


# --- Numbers by hand --------------------------------------------------------------------------------------------------

# In order 2, 0, 3, 1; cumulative 0.5, 0.75, 0.9, 1. Entropy: -(.25 ln .25 + .1 ln .1 + .5 ln .5 + .15 ln .15) = 1.20797.
FOUR = [0.25, 0.1, 0.5, 0.15]


def test_the_head_is_in_order() -> None:
    head = head_with(FOUR)
    assert head.ids.tolist() == [[2, 0, 3, 1]]
    assert head.logp.exp()[0].tolist() == pytest.approx([0.5, 0.25, 0.15, 0.1])
    assert head.entropy.item() == pytest.approx(1.20797, abs=1e-5)
    # The logits are already log-probabilities.
    assert head.log_normaliser.item() == pytest.approx(0.0, abs=1e-6)
    assert head.complete


@pytest.mark.parametrize(
    ("truncate", "value", "ids", "total"),
    [
        (top_k, 1, [2], 0.5),
        (top_k, 3, [2, 0, 3], 0.9),
        (top_k, 99, [2, 0, 3, 1], 1.0),
        # 0.5 does not exceed 0.6, 0.75 does: the token that crosses is kept.
        (top_p, 0.6, [2, 0], 0.75),
        (top_p, 0.4, [2], 0.5),
        (top_p, 0.8, [2, 0, 3], 0.9),
        (top_p, 1.0, [2, 0, 3, 1], 1.0),
        (top_p, 1e-6, [2], 0.5),
        # At least 0.2, 0.3 and 0.6 times 0.5: 0.1, 0.15 and 0.3.
        (min_p, 0.19, [2, 0, 3, 1], 1.0),
        (min_p, 0.29, [2, 0, 3], 0.9),
        (min_p, 0.6, [2], 0.5),
        (min_p, 1.0, [2], 0.5),
        # Surprisals 0.693, 1.386, 1.897, 2.303 lie 0.515, 0.178, 0.689, 1.095 from the entropy: the order is
        # 0, 2, 3, 1 and the cumulative mass 0.25, 0.75, 0.9, 1. The most probable token need not be among them.
        (typical, 0.2, [0], 0.25),
        (typical, 0.7, [2, 0], 0.75),
        (typical, 0.8, [2, 0, 3], 0.9),
        (typical, 1.0, [2, 0, 3, 1], 1.0),
        # exp(-entropy) = 0.29880. Thresholds: min(0.3, 0.1637) and min(0.9, 0.2835); min(0.01, 0.0299) = 0.01.
        (eta, 0.3, [2, 0], 0.75),
        (eta, 0.9, [2], 0.5),
        (eta, 0.01, [2, 0, 3, 1], 1.0),
    ],
)
def test_truncations_by_hand(truncate: Callable[..., Kept], value: float, ids: list[int], total: float) -> None:
    head = head_with(FOUR)
    kept = truncate(head, one(value))
    assert kept_ids(head, kept) == ids
    assert kept.total.item() == pytest.approx(total, abs=1e-6)
    assert kept.total.dtype == torch.float64


def test_ancestral_keeps_everything() -> None:
    assert ancestral(head_with(FOUR)).mask.all()
    assert ancestral(head_with(FOUR, m=1)).total.item() == 1.0


def test_top_k_breaks_a_tie_at_the_last_place_by_the_lower_id() -> None:
    head = head_of(torch.tensor([[0.0, 1.0, 0.0, 2.0, 0.0, 1.0]]))
    assert kept_ids(head, top_k(head, torch.tensor([2]))) == [3, 1]
    assert kept_ids(head, top_k(head, torch.tensor([4]))) == [3, 1, 5, 0]


def test_top_k_keeps_exactly_k_where_bf16_logits_tie() -> None:
    generator = torch.Generator().manual_seed(0)
    head = head_of((torch.randn(50, 2000, generator=generator) * 0.1).bfloat16())
    # In half of the rows the fiftieth ties with the next, which transformers would keep too.
    assert int((head.logits[:, 49] == head.logits[:, 50]).sum()) == 25
    assert top_k(head, torch.full((50,), 50)).mask.sum(-1).tolist() == [50] * 50


def test_top_p_with_a_mass_equal_to_p_keeps_one_more() -> None:
    # Four equal probabilities: the cumulative mass before the second is p to the last bit, so it does not exceed p.
    head = head_with([0.25, 0.25, 0.25, 0.25])
    p = head.logp[:, 0].double().exp()
    assert kept_ids(head, top_p(head, p)) == [0, 1]
    assert kept_ids(head, top_p(head, p * (1 - 1e-15))) == [0]


def test_min_p_keeps_what_ties_with_the_most_probable() -> None:
    head = head_of(torch.tensor([[1.0, 3.0, 3.0, 2.999]]))
    assert kept_ids(head, min_p(head, one(1.0))) == [1, 2]


def test_typical_keeps_ties_at_the_radius() -> None:
    # Uniform: every surprisal is the entropy.
    head = head_of(torch.zeros(1, 8))
    assert kept_ids(head, typical(head, one(0.3))) == list(range(8))


def test_eta_always_keeps_the_most_probable() -> None:
    # Entropy 0.3 · 1.204 + 0.7 · 2.996 = 2.458; threshold min(0.9, 0.9487 · 0.0856 = 0.0812): only the first is above.
    peaked = head_with([0.3, *[0.05] * 14])
    assert kept_ids(peaked, eta(peaked, one(0.9))) == [0]
    # exp(-entropy) never exceeds the largest probability; at epsilon = 1 of two equal tokens, rounding alone decides.
    assert eta(head_of(torch.zeros(1, 2)), one(1.0)).mask[0, 0]
    assert eta(head_of(torch.zeros(1, 2)), one(0.99)).mask.all()


def test_top_nsigma_by_hand() -> None:
    # Mean 2, squared distances 4, 1, 0, 1, 4: sample variance 10 / 4, standard deviation 1.5811.
    head = head_of(torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]]))
    assert head.deviation.item() == pytest.approx(1.5811388)
    assert kept_ids(head, top_nsigma(head, one(0.5))) == [4]
    assert kept_ids(head, top_nsigma(head, one(1.0))) == [4, 3]
    assert kept_ids(head, top_nsigma(head, one(1.3))) == [4, 3, 2]
    assert kept_ids(head, top_nsigma(head, one(9.0))) == [4, 3, 2, 1, 0]


@pytest.mark.parametrize("name", TRUNCATIONS)
def test_the_set_depends_on_temperature_but_for_top_k_ancestral_and_top_nsigma(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 300, generator=generator) * 3
    sets = [
        TRUNCATIONS[name](head_of(logits, temperature=t), *PARAMETERS[name]).mask.sum().item() for t in (0.3, 1.0, 2.0)
    ]
    assert len(set(sets)) == (1 if name in ("top_k", "ancestral", "top_nsigma") else 3)


def test_temperature_comes_before_truncation() -> None:
    # At T = 0.5 the probabilities are squared: 0.5, 0.25, 0.15, 0.1 → 0.25, 0.0625, 0.0225, 0.01 of 0.345,
    # i.e. 0.7246, 0.1812, 0.0652, 0.0290. A nucleus of 0.7 is one token instead of two.
    head = head_with(FOUR, temperature=0.5)
    kept = top_p(head, one(0.7))
    assert kept_ids(head, kept) == [2]
    assert kept.total.item() == pytest.approx(0.25 / 0.345, abs=1e-6)
    assert kept_ids(head_with(FOUR), top_p(head_with(FOUR), one(0.7))) == [2, 0]


def test_rows_have_their_own_parameters() -> None:
    head = head_of(torch.tensor([FOUR, FOUR, FOUR]).log())
    assert top_p(head, torch.tensor([0.4, 0.6, 1.0])).mask.sum(-1).tolist() == [1, 2, 4]
    assert top_k(head, torch.tensor([3, 1, 2])).mask.sum(-1).tolist() == [3, 1, 2]


# --- Heads of any length ----------------------------------------------------------------------------------------------

# Of each truncation the parameters, such that it keeps a few dozen of `LOGITS`.
PARAMETERS: dict[str, list[Tensor]] = {
    "ancestral": [],
    "top_k": [torch.tensor([30])],
    "top_p": [one(0.8)],
    "min_p": [one(0.02)],
    "typical": [one(0.7)],
    "eta": [one(0.02)],
    "top_nsigma": [one(1.5)],
}


def test_every_truncation_has_a_strategy() -> None:
    samplers = {name for name, cls in STRATEGIES.items() if issubclass(cls, Sampler)}
    assert set(TRUNCATIONS) == samplers == set(PARAMETERS)


@pytest.mark.parametrize("name", sorted(set(TRUNCATIONS) - {"ancestral"}))
def test_a_head_that_is_too_short_says_so(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(1, 400, generator=generator) * 2
    whole = TRUNCATIONS[name](head_of(logits), *PARAMETERS[name])
    last = int(whole.mask[0].nonzero().max())
    assert 4 < whole.mask.sum() < 200
    undecided = decided = 0
    for m in range(1, 400):
        kept = TRUNCATIONS[name](head_of(logits, m), *PARAMETERS[name])
        if math.isnan(kept.total.item()):
            undecided += 1
            continue
        decided += 1
        # What is decided is right.
        assert m > last
        assert kept.mask[0].tolist() == whole.mask[0, :m].tolist()
        assert kept.total.item() == pytest.approx(whole.total.item(), abs=1e-9)
    assert undecided >= last
    # Truncations by a threshold need to see the first token that is cut; a typical set the far end of its window.
    assert decided >= 398 - last


@pytest.mark.parametrize("name", sorted(set(TRUNCATIONS) - {"ancestral"}))
def test_the_total_is_the_mass_kept(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(20, 1000, generator=generator) * 3
    head = head_of(logits, temperature=0.7)
    kept = TRUNCATIONS[name](head, *(column.expand(20) for column in PARAMETERS[name]))
    exact = (logits.double() / torch.tensor(0.7).double()).softmax(-1).gather(1, head.ids)
    assert torch.allclose(kept.total, (exact * kept.mask).sum(-1), atol=1e-5)


def test_a_complete_head_decides_even_where_nothing_is_cut() -> None:
    head = head_of(torch.randn(1, 50, generator=torch.Generator().manual_seed(4)))
    loose = {"top_k": 50, "top_p": 0.9999999, "min_p": 1e-30, "typical": 1.0, "eta": 1e-9, "top_nsigma": 1e3}
    for name, value in loose.items():
        assert TRUNCATIONS[name](head, torch.tensor([value])).total.item() == pytest.approx(1.0, abs=1e-6)


# --- Transformers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "warper"),
    [
        ("top_k", 1, TopKLogitsWarper(1)),
        ("top_k", 50, TopKLogitsWarper(50)),
        ("top_p", 0.5, TopPLogitsWarper(0.5)),
        ("top_p", 0.95, TopPLogitsWarper(0.95)),
        ("min_p", 0.02, MinPLogitsWarper(0.02)),
        ("min_p", 0.3, MinPLogitsWarper(0.3)),
        ("typical", 0.3, TypicalLogitsWarper(0.3)),
        ("typical", 0.9, TypicalLogitsWarper(0.9)),
        ("eta", 0.0009, EtaLogitsWarper(0.0009)),
        ("eta", 0.05, EtaLogitsWarper(0.05)),
    ],
)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_the_sets_are_those_of_transformers(
    name: str, value: float, warper: LogitsProcessor, temperature: float
) -> None:
    generator = torch.Generator().manual_seed(5)
    # From flat rows to peaked ones; few enough tokens that none lies within rounding of a threshold (of 200 rows of 1500
    # one did: 2.7e-8 above it, in relative terms).
    logits = torch.randn(60, 300, generator=generator) * torch.linspace(0.5, 8.0, 60)[:, None]
    head = head_of(logits, temperature=temperature)
    ours = torch.zeros(60, 300, dtype=torch.bool)
    ours.scatter_(1, head.ids, TRUNCATIONS[name](head, torch.tensor([value] * 60)).mask)
    theirs = warper(torch.empty(60, 0, dtype=torch.int64), logits / temperature).isfinite()
    assert torch.equal(ours, theirs)
