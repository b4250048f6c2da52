import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, logit

from triptych.auditing.win_rates import length_controlled_win_rate, win_shares
from triptych.records import Estimate

PROPERTY = settings(deadline=None, max_examples=100)

FloatArray = npt.NDArray[np.float64]


def rate(
    shares: Sequence[float | None], differences: Sequence[float], clusters: Sequence[int] | None = None
) -> Estimate:
    return length_controlled_win_rate(shares, differences, range(len(shares)) if clusters is None else clusters)


def bounds(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


def simulated(
    rng: np.random.Generator, n: int, theta: float, phi: float, mean: float
) -> tuple[list[float], list[float]]:
    """Wins with P = σ(θ + φ tanh d), d normal with deviation 1."""
    d = rng.normal(mean, 1.0, n)
    return (rng.random(n) < expit(theta + phi * np.tanh(d))).astype(float).tolist(), d.tolist()


# --- shares -----------------------------------------------------------------------------------------------------------


def test_win_shares() -> None:
    scores = [2.0, 1.0, 0.0, None, 1.0, math.nan, 0.0]
    assert win_shares(scores, [1.0, 1.0, 0.5, 1.0, None, 1.0, -0.0]) == [1.0, 0.5, 0.0, None, None, None, 0.5]


def test_scores_must_pair_up() -> None:
    with pytest.raises(ValueError, match="2 scores against 1"):
        win_shares([1.0, 2.0], [1.0])


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wins", "n"), [(0, 1), (1, 1), (0, 5), (3, 4), (5, 5), (7, 20)])
@pytest.mark.parametrize("difference", [0.0, 0.1, -120.0])
def test_equal_differences_leave_firths_share(wins: int, n: int, difference: float) -> None:
    # The intercept alone: all leverages add up to 1, so U* = k - n p + ½ - p = 0 and p = (k + ½) / (n + 1).
    estimate = rate([1.0] * wins + [0.0] * (n - wins), [difference] * n)
    assert estimate.mean == pytest.approx((wins + 0.5) / (n + 1), rel=1e-9)


def test_the_jackknife_by_hand() -> None:
    # 3 wins of 4 at equal lengths. Without a win: (2 + ½)/(3 + 1) = 5/8, logit ln(5/3), three times; without the loss:
    # 7/8, logit ln 7. With δ = ln 7 - ln(5/3) = ln(21/5): Σ(θ - mean)² = 3 (δ/4)² + (3δ/4)² = 12 δ²/16, times (K - 1)/K
    # = 3/4 gives se = (3/4) δ. t(0.975; 3) = 3.182446. θ = logit(0.7).
    estimate = rate([1.0, 1.0, 0.0, 1.0], [0.0] * 4)
    half = 3.182446 * 0.75 * math.log(21 / 5)
    assert estimate.mean == pytest.approx(0.7)
    assert bounds(estimate) == pytest.approx((expit(logit(0.7) - half), expit(logit(0.7) + half)), rel=1e-6)
    assert (estimate.n, estimate.n_clusters, estimate.n_unscored) == (4, 4, 0)
    assert estimate.method == "95% delete-a-prompt jackknife on the logit scale, Firth's logistic regression"


def test_prompts_are_left_out_whole() -> None:
    # p: 1, 1; q: 1, 0; θ = logit(3.5/5). Without p: 1.5/3, logit 0; without q: 2.5/3, logit ln 5.
    # se² = 1/2 · 2 · (ln 5 / 2)²; t(0.975; 1) = 12.706205.
    half = 12.706205 * math.log(5) / 2
    estimate = rate([1.0, 1.0, 1.0, 0.0], [0.0] * 4, [0, 0, 1, 1])
    assert bounds(estimate) == pytest.approx((expit(logit(0.7) - half), expit(logit(0.7) + half)), rel=1e-6)
    assert estimate.n_clusters == 2


def test_ties_alone_are_one_half() -> None:
    estimate = rate([0.5] * 5, [1.0, 2.0, 30.0, -4.0, 5.0])
    assert estimate.mean == 0.5
    assert (estimate.low, estimate.high, estimate.method) == (None, None, "no interval: all shares alike")


def test_mirrored_lengths_and_wins_are_one_half() -> None:
    assert rate([1.0, 0.0, 1.0, 0.0, 1.0, 0.0], [3.0, -3.0, 1.0, -1.0, -2.0, 2.0]).mean == pytest.approx(0.5, abs=1e-9)


# --- no interval ------------------------------------------------------------------------------------------------------


def test_unscored_is_counted_and_left_out() -> None:
    with_gaps = rate([1.0, None, 1.0, 0.0, math.nan, 1.0], [0.0, 900.0, 0.0, 0.0, 5.0, 0.0])
    assert with_gaps.mean == pytest.approx(0.7)
    assert (with_gaps.n, with_gaps.n_clusters, with_gaps.n_unscored) == (4, 4, 2)


def test_nothing_scored_has_no_mean() -> None:
    estimate = rate([None, None], [1.0, 2.0])
    assert (estimate.mean, estimate.n, estimate.n_unscored) == (None, 0, 2)
    assert estimate.method == "no estimate: nothing was scored"


def test_one_prompt_has_no_interval() -> None:
    estimate = rate([1.0, 0.0, 1.0], [1.0, 2.0, 3.0], [7, 7, 7])
    assert estimate.mean is not None
    assert (estimate.low, estimate.method) == (None, "no interval: one prompt")


@pytest.mark.parametrize("shares", [[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.5, 1.0]])
def test_separated_wins_have_an_estimate_and_no_interval(shares: list[float]) -> None:
    estimate = rate(shares, [-2.0, -1.0, 1.0, 2.0])
    assert estimate.mean is not None
    assert 0.0 < estimate.mean < 1.0
    assert (estimate.low, estimate.method) == (None, "no interval: lengths separate wins from losses")


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="2 shares, 1 length differences, 2 clusters"):
        length_controlled_win_rate([1.0, 0.0], [1.0], [0, 1])
    with pytest.raises(ValueError, match="shares must lie in"):
        rate([1.5], [0.0])
    with pytest.raises(ValueError, match="must be finite"):
        rate([1.0], [math.inf])
    assert rate([1.0, None], [0.0, math.nan]).n_unscored == 1


# --- against an independent fit ---------------------------------------------------------------------------------------


def penalised_by_scipy(y: FloatArray, d: FloatArray) -> float:
    """σ(θ) at the maximum of the penalised log-likelihood, written down as in the docstring, without derivatives."""
    x = np.stack([np.ones_like(d), np.tanh(d / d.std(ddof=1))], axis=1)

    def loss(beta: FloatArray) -> float:
        p = expit(x @ beta)
        likelihood = np.sum(y * np.log(p) + (1 - y) * np.log1p(-p))
        return float(-likelihood - 0.5 * np.linalg.slogdet(x.T @ (x * (p * (1 - p))[:, None]))[1])

    found = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 4000})
    return float(expit(found.x[0]))


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_a_direct_maximisation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    d = rng.normal(30.0, 50.0, 25)
    y = rng.choice([0.0, 0.5, 1.0], 25, p=[0.3, 0.2, 0.5])
    assert rate(y.tolist(), d.tolist()).mean == pytest.approx(penalised_by_scipy(y, d), abs=1e-6)


@pytest.mark.parametrize("wins", [[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]])
def test_agrees_where_the_plain_likelihood_has_no_maximum(wins: list[int]) -> None:
    y, d = np.array(wins, dtype=np.float64), np.array([-5.0, -4.0, -1.0, 2.0, 3.0, 8.0])
    assert rate(y.tolist(), d.tolist()).mean == pytest.approx(penalised_by_scipy(y, d), abs=1e-6)


# --- what holds of any data -------------------------------------------------------------------------------------------

OBSERVATIONS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0, None]), st.integers(-400, 400).map(float), st.integers(0, 6)), max_size=20
)


@PROPERTY
@given(OBSERVATIONS)
def test_any_data_give_a_share_within_its_interval(observations: list[tuple[float | None, float, int]]) -> None:
    estimate = rate([a for a, _, _ in observations], [b for _, b, _ in observations], [c for _, _, c in observations])
    assert estimate.n + estimate.n_unscored == len(observations)
    assert (estimate.mean is None) == (estimate.n == 0)
    if estimate.low is not None and estimate.high is not None and estimate.mean is not None:
        assert 0.0 <= estimate.low <= estimate.mean <= estimate.high <= 1.0


@PROPERTY
@given(OBSERVATIONS)
def test_the_loser_has_the_rest_and_the_unit_of_length_does_not_matter(
    observations: list[tuple[float | None, float, int]],
) -> None:
    clusters = [c for _, _, c in observations]
    one = rate([a for a, _, _ in observations], [b for _, b, _ in observations], clusters)
    other = rate(
        [None if a is None else 1.0 - a for a, _, _ in observations], [-8.0 * b for _, b, _ in observations], clusters
    )
    assert one.method == other.method
    if one.mean is not None and other.mean is not None:
        assert one.mean == pytest.approx(1.0 - other.mean, abs=1e-6)
    if one.low is not None and other.high is not None:
        assert one.low == pytest.approx(1.0 - other.high, abs=1e-4)


@pytest.mark.parametrize("offset", [1e-320, 1e-4, 1e300])
def test_extreme_lengths_do_not_break_it(offset: float) -> None:
    estimate = rate([1.0, 0.0, 1.0, 1.0], [7.0 + offset, 7.0, 7.0 + 2 * offset, 7.0 - offset])
    assert estimate.mean is not None
    assert 0.0 <= estimate.mean <= 1.0


# --- planted ----------------------------------------------------------------------------------------------------------


def test_a_planted_bias_for_length_is_taken_out() -> None:
    # The longer response wins, always; d ~ N(1.28, 1) is above 0 in 90 % of cases.
    d = np.random.default_rng(3).normal(1.28, 1.0, 300)
    shares = (d > 0.0).astype(float)
    estimate = rate(shares.tolist(), d.tolist())
    assert 0.85 < shares.mean() < 0.95
    assert estimate.mean == pytest.approx(0.5, abs=0.08)


def test_a_planted_bias_with_noise_is_taken_out_and_its_interval_holds_one_half() -> None:
    # At equal lengths a coin; the longer one wins with probability up to σ(4).
    shares, d = simulated(np.random.default_rng(5), 300, 0.0, 4.0, 1.5)
    estimate = rate(shares, d)
    low, high = bounds(estimate)
    assert np.mean(shares) > 0.85
    assert low < 0.5 < high < np.mean(shares)


def test_a_better_model_of_equal_length_keeps_its_rate() -> None:
    shares, d = simulated(np.random.default_rng(1), 400, 1.0, 0.0, 0.0)
    assert rate(shares, d).mean == pytest.approx(np.mean(shares), abs=0.01)


def test_the_interval_covers() -> None:
    # 400 data sets of 84 prompts: a coverage of 95 % is seen as 93 … 97 % with probability 0.94.
    rng = np.random.default_rng(2024)
    hits = []
    for _ in range(400):
        low, high = bounds(rate(*simulated(rng, 84, 0.7, 1.0, 0.3)))
        hits.append(low <= expit(0.7) <= high)
    assert 0.93 <= np.mean(hits) <= 0.97
