"""Perplexity and KL from read tokens: by hand, and the noise that a damaged policy shows."""

import math
from typing import Any

import numpy as np
import pytest

from triptych.auditing.divergence import MOVED_TOKENS, divergence, own_kl, position_range
from triptych.auditing.records import BASE


def test_perplexity_by_hand(rows: Any) -> None:
    # Two prompts, three tokens: exp((1 + 2 + 3) / 3) = e² for the base; each token 0.5 nats worse for the policy.
    given = [("p", 1.0), ("p", 2.0), ("q", 3.0)]
    tokens = [rows.token(BASE, prompt, -nll, -nll) for prompt, nll in given]
    tokens += [rows.token("worse", prompt, -nll - 0.5, -nll, kl=0.1) for prompt, nll in given]
    records = divergence(tokens, seed=0)
    assert rows.value(records, BASE, "perplexity") == pytest.approx(math.exp(2.0))
    assert rows.value(records, "worse", "perplexity") == pytest.approx(math.exp(2.5))
    assert rows.value(records, "worse", "perplexity_ratio", against=BASE) == pytest.approx(math.exp(0.5))
    assert rows.value(records, "worse", "nll", against=BASE) == pytest.approx(0.5)
    assert rows.value(records, "worse", "kl_chosen") == pytest.approx(0.1)
    estimate = rows.find(records, BASE, "perplexity").estimate
    assert (estimate.n, estimate.n_clusters) == (3, 2)


def test_the_base_against_itself_differs_by_exactly_nothing(rows: Any) -> None:
    tokens = [
        rows.token(model, f"p{i % 5}", -0.1 * i, -0.1 * i, text=text, position=i)
        for model in (BASE, "same")
        for text in ("chosen", "own")
        for i in range(40)
    ]
    records = divergence(tokens, seed=0)
    for metric, expected in {"nll": 0.0, "perplexity_ratio": 1.0}.items():
        assert rows.value(records, "same", metric, against=BASE) == expected
    for metric in ("kl_chosen", "kl_own", "k1_own", "k3_own"):
        assert rows.value(records, "same", metric) == 0.0
    assert not [record for record in records if record.metric.endswith("by_token")]


def test_k1_and_k3_by_hand(rows: Any) -> None:
    # log π - log π_ref = 1 and -1: k1 = 0; k3 = (e^-1 - 1 + 1 + e - 1 - 1) / 2 = (e^-1 + e - 2) / 2.
    tokens = [rows.token("m", "p", -1.0, -2.0, text="own"), rows.token("m", "q", -2.0, -1.0, text="own")]
    records = divergence(tokens, seed=0)
    assert rows.value(records, "m", "k1_own") == pytest.approx(0.0)
    assert rows.value(records, "m", "k3_own") == pytest.approx((math.exp(-1) + math.e - 2) / 2)


def test_k1_and_k3_agree_with_the_exact_kl_within_their_errors(rows: Any) -> None:
    # 20,000 tokens drawn from 200 fixed contexts of a policy near its base: exact KL by its formula, in double precision.
    rng = np.random.default_rng(0)
    tokens = []
    for context in range(200):
        base = rng.normal(0.0, 2.0, 50)
        policy = base + rng.normal(0.0, 0.7, 50)
        p, q = (np.exp(x - np.logaddexp.reduce(x)) for x in (policy, base))
        kl = float(np.sum(p * np.log(p / q)))
        for token in rng.choice(50, size=100, p=p):
            logs = float(np.log(p[token])), float(np.log(q[token]))
            tokens.append(rows.token("m", f"p{context}", *logs, kl, text="own"))
    records = divergence(tokens, seed=0)
    exact = rows.value(records, "m", "kl_own")
    for metric in ("k1_own", "k3_own"):
        # Draws of one context are independent here, so that the plain standard error is the right one.
        ratios = np.array([t.reference_logprob - t.logprob for t in tokens])
        values = -ratios if metric == "k1_own" else np.expm1(ratios) - ratios
        error = float(values.std(ddof=1)) / math.sqrt(len(values))
        found = rows.value(records, "m", metric)
        assert abs(found - exact) < 2.5 * error, metric
        assert error < 0.02


@pytest.mark.parametrize(
    ("position", "expected"),
    [(0, "0"), (1, "1"), (2, "2–3"), (3, "2–3"), (4, "4–7"), (127, "64–127"), (128, "128–255")],
)
def test_ranges_of_positions(position: int, expected: str) -> None:
    assert position_range(position) == expected


def test_ranges_come_in_order_and_hold_their_own_tokens(rows: Any) -> None:
    tokens = [rows.token("m", "p", -1.0, -1.0, kl=float(i), position=i, text="own") for i in (9, 0, 3, 2)]
    records = [r for r in divergence(tokens, seed=0) if r.metric == "kl_own_by_position"]
    assert [(r.category, r.estimate.mean) for r in records] == [("0", 0.0), ("2–3", 2.5), ("8–15", 9.0)]


def test_the_tokens_that_moved_come_gravest_first(rows: Any) -> None:
    # "end" carries 3 x 2 = 6 of 7.2 nats; "rare" occurs too seldom to be listed.
    tokens = [rows.token("m", f"p{i}", -1.0, -3.0, kl=2.0, text="own", piece="end") for i in range(3)]
    tokens += [rows.token("m", f"p{i}", -1.0, -1.0, kl=0.1, text="own", piece="the") for i in range(3)]
    tokens += [rows.token("m", "p9", -1.0, -1.0, kl=0.9, text="own", piece="rare")]
    records = divergence(tokens, seed=0)
    shares = [r for r in records if r.metric == "kl_own_share_by_token"]
    assert [r.category for r in shares] == ["end", "the"]
    assert shares[0].estimate.mean == pytest.approx(6.0 / 7.2)
    assert rows.value(records, "m", "log_ratio_by_token", "end") == pytest.approx(2.0)
    assert MOVED_TOKENS >= 2
    assert own_kl(tokens)["m", "p9"] == pytest.approx(0.9)


def test_one_prompt_has_no_interval_and_says_so(rows: Any) -> None:
    records = divergence([rows.token(BASE, "p", -1.0, -1.0)], seed=0)
    estimate = rows.find(records, BASE, "perplexity").estimate
    assert (estimate.low, estimate.method) == (None, "no interval: one prompt, of logarithms")


def test_intervals_of_a_perplexity_cover(rows: Any) -> None:
    """A simulated population: 40 prompts, each with its own level, 1 … 20 tokens each; the true mean is known."""
    rng, hits, trials = np.random.default_rng(3), 0, 300
    for trial in range(trials):
        tokens = []
        for prompt in range(40):
            level = rng.gamma(4.0, 0.5)
            for nll in level * rng.gamma(4.0, 0.25, int(rng.integers(1, 21))):
                tokens.append(rows.token(BASE, f"p{prompt}", -nll, -nll))
        (record,) = [r for r in divergence(tokens, seed=trial) if r.metric == "nll"]
        assert record.estimate.low is not None
        assert record.estimate.high is not None
        hits += record.estimate.low <= 2.0 <= record.estimate.high
    # 95 % of 300 is 285; two binomial standard errors are 7.5.
    assert 0.93 <= hits / trials <= 0.97
