"""Sampling is exact: what is drawn has the distribution that the definitions give, computed here once more in float64."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats
from torch import Tensor

from triptych.decoding import (
    Ancestral,
    Eta,
    MinP,
    Sampler,
    TopK,
    TopNSigma,
    TopP,
    Typical,
    sampling,
    transforms,
)
from triptych.decoding.head import HeadSource, read_by_sort, read_heads
from triptych.decoding.sampling import Drawn, draw
from triptych.seeding import generator, stream_key, uniforms

Floats = npt.NDArray[np.float64]
Reader = Callable[[Tensor, Tensor], HeadSource]

READERS: dict[str, Reader] = {"kernels": read_heads, "sort": read_by_sort}
VOCABULARY = 3000
DRAWS = 20_000
CHUNK = 2_000

# Some keep fewer tokens than the first head holds, some hundreds more.
SAMPLERS: list[Sampler] = [
    Ancestral(temperature=0.8),
    TopK(k=7),
    TopK(k=200, temperature=1.3),
    TopP(p=0.5, temperature=0.9),
    TopP(p=0.9),
    TopP(p=1.0, temperature=0.8),
    MinP(p=0.05, temperature=1.2),
    MinP(p=0.002),
    Typical(mass=0.3),
    Typical(mass=0.7, temperature=0.9),
    Eta(epsilon=0.0009),
    Eta(epsilon=0.02, temperature=1.1),
    TopNSigma(n=1.0),
    TopNSigma(n=4.0, temperature=1.5),
]
EACH_SAMPLER = pytest.mark.parametrize("strategy", SAMPLERS, ids=lambda strategy: strategy.label)
EACH_READER = pytest.mark.parametrize("reader", READERS)


def zipf_logits() -> Tensor:
    """One row: Zipf's law with an exponent of 1.2, disturbed, in no order."""
    rng = generator(0, "zipf")
    logits = -1.2 * np.log(np.arange(1, VOCABULARY + 1)) + rng.normal(0.0, 0.2, VOCABULARY)
    return torch.from_numpy(rng.permutation(logits)).float()[None]


LOGITS = zipf_logits()


def kept(strategy: Sampler, logits: Floats, p: Floats) -> npt.NDArray[np.int64]:
    """The tokens that a strategy keeps, by definition; `p` are the probabilities at its temperature."""
    order = np.argsort(-p, kind="stable")
    entropy = -float(np.sum(p * np.log(p)))
    if isinstance(strategy, TopK):
        return order[: strategy.k]
    if isinstance(strategy, TopP):
        return order[: 1 + int(np.searchsorted(np.cumsum(p[order]), strategy.p, side="right"))]
    if isinstance(strategy, MinP):
        return np.flatnonzero(p >= strategy.p * p.max())
    if isinstance(strategy, Typical):
        nearest = np.argsort(np.abs(-np.log(p) - entropy), kind="stable")
        return nearest[: 1 + int(np.searchsorted(np.cumsum(p[nearest]), strategy.mass))]
    if isinstance(strategy, Eta):
        return np.flatnonzero(p > min(strategy.epsilon, strategy.epsilon**0.5 * np.exp(-entropy)))
    if isinstance(strategy, TopNSigma):
        return np.flatnonzero(logits >= logits.max() - strategy.n * logits.std(ddof=1))
    return order


def exact_distribution(strategy: Sampler) -> Floats:
    """The probability of every token under a strategy, given `LOGITS`."""
    logits = LOGITS[0].double().numpy()
    scaled = np.exp((logits - logits.max()) / strategy.temperature)
    p = scaled / scaled.sum()
    out = np.zeros_like(p)
    tokens = kept(strategy, logits, p)
    out[tokens] = p[tokens]
    total: Floats = out / out.sum()
    return total


def sample(reader: str, strategies: Sequence[Sampler], at: Floats) -> Drawn:
    """One draw from `LOGITS` for each of `strategies`, which share a temperature, at the uniforms `at`."""
    source = READERS[reader](LOGITS, torch.tensor([strategies[0].temperature]))
    parts = []
    for first in range(0, len(at), CHUNK):
        some = slice(first, first + CHUNK)
        rows = torch.zeros(len(at[some]), dtype=torch.int64)
        parts.append(draw(source, rows, list(strategies[some]), torch.from_numpy(at[some])))
    return Drawn(*(torch.cat(column) for column in zip(*parts, strict=True)))


@functools.cache
def sampled(strategy: Sampler, reader: str) -> Drawn:
    """20,000 draws with the noise that the engine would use."""
    return sample(reader, [strategy] * DRAWS, noise(strategy.label))


def p_value(tokens: Tensor, expected: Floats) -> float:
    """Of Pearson's chi-square test, with cells of fewer than five expected draws merged into one."""
    counts = np.bincount(tokens.numpy(), minlength=VOCABULARY).astype(float)
    means = expected * len(tokens)
    if counts[expected == 0].any():
        return 0.0
    large = means >= 5
    observed, wanted = counts[large], means[large]
    if means[~large].sum() >= 5:
        observed, wanted = np.append(observed, counts[~large].sum()), np.append(wanted, means[~large].sum())
    else:
        smallest = int(np.argmin(wanted))
        observed[smallest] += counts[~large].sum()
        wanted[smallest] += means[~large].sum()
    assert len(wanted) > 1
    return float(stats.chisquare(observed, wanted).pvalue)


def noise(name: str) -> Floats:
    """Uniforms as the engine draws them: a stream for every completion, a counter for every token."""
    streams, steps = DRAWS // 50, 50
    keys = np.array([stream_key(1, name, sample) for sample in range(streams)], np.uint64)
    return uniforms(np.repeat(keys, steps), np.tile(np.arange(steps), streams))


@EACH_READER
@EACH_SAMPLER
def test_draws_follow_the_exact_distribution(strategy: Sampler, reader: str) -> None:
    drawn = sampled(strategy, reader)
    assert p_value(drawn.tokens, exact_distribution(strategy)) > 1e-3


@EACH_READER
@EACH_SAMPLER
def test_evenly_spread_uniforms_give_every_token_its_share(strategy: Sampler, reader: str) -> None:
    # Without noise: the inverse of the cumulative distribution at n evenly spaced points hits a token's interval of
    # length p between floor and ceil of n p times.
    n = 4_000
    drawn = sample(reader, [strategy] * n, (np.arange(n) + 0.5) / n)
    counts = np.bincount(drawn.tokens.numpy(), minlength=VOCABULARY)
    assert np.abs(counts - n * exact_distribution(strategy)).max() < 1.01


@EACH_READER
@EACH_SAMPLER
def test_log_probabilities_of_the_draws(strategy: Sampler, reader: str) -> None:
    drawn = sampled(strategy, reader)
    exact = torch.from_numpy(exact_distribution(strategy)).log()
    assert torch.allclose(drawn.sampler_logprobs.double(), exact[drawn.tokens], atol=1e-5)
    # The raw one knows of no temperature and no truncation.
    assert torch.allclose(drawn.logprobs.double(), LOGITS[0].double().log_softmax(0)[drawn.tokens], atol=1e-5)


@EACH_READER
@pytest.mark.parametrize(
    ("drawn_from", "claimed"),
    [
        (TopP(p=0.9), "without the crossing token"),
        (TopK(k=200), "one token fewer"),
        (MinP(p=0.05), "not renormalised to the temperature"),
    ],
    ids=["top_p", "top_k", "min_p"],
)
def test_a_wrong_distribution_is_noticed(drawn_from: Sampler, claimed: str, reader: str) -> None:
    """The planted failures of the chi-square test itself."""
    wrong = exact_distribution(drawn_from)
    if claimed == "not renormalised to the temperature":
        wrong = exact_distribution(drawn_from.model_copy(update={"temperature": 1.1}))
    else:
        wrong[np.argmin(np.where(wrong > 0, wrong, np.inf))] = 0.0
    drawn = sampled(drawn_from, reader)
    assert p_value(drawn.tokens, wrong / wrong.sum()) < 1e-3


def test_a_truncation_with_a_fault_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted in the code: a nucleus that stops before the token that crosses p."""
    right = transforms.TRUNCATIONS["top_p"]

    def before_crossing(head, p):  # type: ignore[no-untyped-def]
        found = right(head, p)
        last = found.mask.sum(-1) - 1
        mask = found.mask.scatter(1, last[:, None], False)
        return found._replace(mask=mask, total=(head.logp.double().exp() * mask).sum(-1) + 0 * found.total)

    monkeypatch.setitem(transforms.TRUNCATIONS, "top_p", before_crossing)
    strategy = TopP(p=0.5)
    drawn = sample("kernels", [strategy] * DRAWS, noise(strategy.label))
    assert p_value(drawn.tokens, exact_distribution(strategy)) < 1e-3


@EACH_READER
@EACH_SAMPLER
def test_uniforms_at_the_ends_give_the_first_and_the_last_token_kept(strategy: Sampler, reader: str) -> None:
    p = exact_distribution(strategy)
    at = np.array([5e-324, 2.0**-54, 1 - 2.0**-53])
    drawn = sample(reader, [strategy] * 3, at)
    assert drawn.tokens[0] == drawn.tokens[1] == int(np.argmax(p))
    assert drawn.tokens[2] == int(np.argmin(np.where(p > 0, p, np.inf)))


@EACH_SAMPLER
@pytest.mark.parametrize("first", [1, 7, 5000])
def test_the_length_of_the_first_head_changes_nothing(
    strategy: Sampler, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = noise(strategy.label)[:500]
    usual = sample("kernels", [strategy] * 500, at)
    monkeypatch.setattr(sampling, "FIRST_HEAD", first)
    other = sample("kernels", [strategy] * 500, at)
    assert torch.equal(usual.tokens, other.tokens)
    assert torch.allclose(usual.sampler_logprobs, other.sampler_logprobs, atol=1e-6)


@EACH_READER
@EACH_SAMPLER
def test_rows_of_one_call_do_not_see_each_other(strategy: Sampler, reader: str) -> None:
    rng = generator(2, "rows")
    logits = torch.from_numpy(rng.normal(0.0, 3.0, (12, 800))).float()
    temperature = torch.from_numpy(rng.uniform(0.3, 2.0, 12)).float()
    at = torch.from_numpy(rng.uniform(size=12))
    # Parameters differ from row to row, too.
    field = next((name for name in type(strategy).model_fields if name != "temperature"), "temperature")
    value = getattr(strategy, field)
    strategies = [strategy.model_copy(update={field: type(value)(value * share / 12)}) for share in range(1, 13)]
    strategies = [one.model_copy(update={"k": max(1, one.k)}) if isinstance(one, TopK) else one for one in strategies]
    rows = torch.from_numpy(rng.permutation(12))
    together = draw(READERS[reader](logits, temperature), rows, strategies, at)
    for i, row in enumerate(rows.tolist()):
        source = READERS[reader](logits[row : row + 1], temperature[row : row + 1])
        alone = draw(source, torch.tensor([0]), [strategies[i]], at[i : i + 1])
        assert alone.tokens[0] == together.tokens[i]
        assert torch.allclose(alone.logprobs[0], together.logprobs[i], atol=1e-6)


@EACH_READER
@pytest.mark.parametrize("temperature", [1e-2, 1e-20, 1e-40, 1e-300])
def test_cold_is_greedy(temperature: float, reader: str) -> None:
    strategy = Ancestral(temperature=temperature)
    drawn = sample(reader, [strategy] * 100, (np.arange(100) + 0.5) / 100)
    assert set(drawn.tokens.tolist()) == {int(LOGITS[0].argmax())}
    assert torch.allclose(drawn.sampler_logprobs, torch.zeros(100), atol=1e-3)


@EACH_READER
def test_masked_logits_are_never_drawn(reader: str) -> None:
    logits = LOGITS.clone()
    logits[0, 1::2] = -torch.inf
    at = torch.from_numpy((np.arange(1000) + 0.5) / 1000)
    for strategy in SAMPLERS:
        source = READERS[reader](logits, torch.tensor([strategy.temperature]))
        drawn = draw(source, torch.zeros(1000, dtype=torch.int64), [strategy] * 1000, at)
        assert (drawn.tokens % 2 == 0).all(), strategy.label
        assert drawn.sampler_logprobs.isfinite().all(), strategy.label
