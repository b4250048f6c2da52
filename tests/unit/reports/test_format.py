import pytest

from triptych.records import Estimate
from triptych.reports import format as fmt
from triptych.reports.format import NBSP


def estimate(
    mean: float | None, low: float | None = None, high: float | None = None, clusters: int = 9, method: str = "m"
) -> Estimate:
    return Estimate(mean=mean, low=low, high=high, n=10, n_clusters=clusters, n_unscored=0, method=method)


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (-0.5, 2, "−0.50"),
        (1234567.0, 0, "1,234,567"),
        (-0.0004, 2, "0.00"),  # no negative zero
        (-1234.5, 1, "−1,234.5"),
        (0.0, 3, "0.000"),
    ],
)
def test_number(value: float, decimals: int, text: str) -> None:
    assert fmt.number(value, decimals) == text


@pytest.mark.parametrize(
    ("half_width", "decimals"),
    # Two significant digits of the half-width: 0.014 needs 3 decimals, 1.4 needs 1, 14 none.
    [(0.014, 3), (0.14, 2), (1.4, 1), (14.0, 0), (1400.0, 0), (0.00001, 4)],
)
def test_decimals_follow_the_interval(half_width: float, decimals: int) -> None:
    assert fmt.decimals_for(estimate(0.0, -half_width, half_width)) == decimals


@pytest.mark.parametrize(
    ("mean", "decimals", "text"),
    [
        (0.0, None, f"0 [0,{NBSP}0]"),
        (0.0, 3, f"0 [0,{NBSP}0]"),
        (1.0, 4, f"1 [1,{NBSP}1]"),
        (0.25, None, f"0.25 [0.25,{NBSP}0.25]"),
        (1 / 3, 4, f"0.333 [0.333,{NBSP}0.333]"),
    ],
)
def test_an_interval_without_width_has_no_needless_zeros(mean: float, decimals: int | None, text: str) -> None:
    assert fmt.with_interval(estimate(mean, mean, mean), decimals).replace(f"{NBSP}[", " [") == text


def test_an_interval_stays_on_one_line() -> None:
    assert fmt.with_interval(estimate(-0.612, -0.626, -0.598)) == f"−0.612{NBSP}[−0.626,{NBSP}−0.598]"


def test_a_missing_interval_gives_its_reason() -> None:
    alike = "no interval: all prompts alike"
    assert fmt.with_interval(estimate(0.5, clusters=1)) == "0.500 (no interval: one prompt)"
    assert fmt.with_interval(estimate(0.5, method=alike)) == "0.500 (no interval: all prompts alike)"
    paired = f"paired difference, {alike}"
    assert fmt.with_interval(estimate(0.5, method=paired)) == "0.500 (no interval: all prompts alike)"
    once = "no interval: measured once"
    assert fmt.with_interval(estimate(0.5, clusters=1, method=once)) == "0.500 (no interval: measured once)"


@pytest.mark.parametrize(
    ("p", "text"), [(1.0, "1.000"), (0.0124, "0.012"), (0.001, "0.001"), (0.0004, f"<{NBSP}0.001")]
)
def test_small_p_values_are_not_told_apart(p: float, text: str) -> None:
    assert fmt.p_value(p) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("score -2.18 becomes -0.381", "score −2.18 becomes −0.381"),
        ("0.4 [-0.1, -.5]", "0.4 [−0.1, -.5]"),
        ("explanation-005, 1e-5, 2024-01-02", "explanation-005, 1e-5, 2024-01-02"),
    ],
)
def test_only_negative_numbers_get_a_true_minus(text: str, shown: str) -> None:
    assert fmt.with_true_minus(text) == shown


def test_no_value_is_no_zero() -> None:
    assert fmt.with_interval(estimate(None)) == "no value"
    assert fmt.interval(estimate(None, method="no estimate: nothing was scored")) == "no interval: nothing was scored"


def test_counts_say_what_is_unscored() -> None:
    some = Estimate(mean=1.0, low=None, high=None, n=1250, n_clusters=1, n_unscored=3, method="m")
    assert fmt.counts(some) == "n = 1,250 completions of 1 prompt, 3 unscored"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.42, "0.42 s"), (12.34, "12.3 s"), (245.0, "4 min 05 s"), (7380.0, "2 h 03 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert fmt.duration(seconds).replace(NBSP, " ") == text


@pytest.mark.parametrize(("n_bytes", "text"), [(12, "12 B"), (1500, "1.5 kB"), (269e6, "269.0 MB"), (1.61e9, "1.6 GB")])
def test_size(n_bytes: float, text: str) -> None:
    assert fmt.size(n_bytes).replace(NBSP, " ") == text


@pytest.mark.parametrize(
    ("items", "text"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_joined(items: list[str], text: str) -> None:
    assert fmt.joined(items) == text


def test_share() -> None:
    assert fmt.share(0.125) == f"12.5{NBSP}%"
