"""Rules of CONTRIBUTING that the linter cannot check."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "triptych"
DRAWS = {
    *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "multinomial", "bernoulli"),
    *("normal_", "uniform_", "exponential_", "bernoulli_", "random_", "geometric_", "log_normal_", "cauchy_"),
}


def draws_without_a_generator(source: str) -> Iterator[str]:
    """`name:line` of torch's random functions and methods that are called without `generator=`.

    numpy's Generator has none of these names but `multinomial`, and the linter bans numpy's global functions.
    """
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in DRAWS):
            continue
        if all(keyword.arg != "generator" for keyword in node.keywords):
            yield f"{node.func.attr}:{node.lineno}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("torch.rand(3)", ["rand:1"]),
        ("torch.rand(3, generator=g)", []),
        ("\nx.uniform_(0, 1)", ["uniform_:2"]),
        ("torch.nn.init.normal_(w, generator=g)", []),
        ("rng.normal(0, 1)", []),
    ],
)
def test_the_search_finds_planted_draws(source: str, expected: list[str]) -> None:
    assert list(draws_without_a_generator(source)) == expected


def test_randomness_is_passed() -> None:
    found = [
        f"{path.relative_to(SOURCE)}: {draw}"
        for path in sorted(SOURCE.rglob("*.py"))
        for draw in draws_without_a_generator(path.read_text())
    ]
    assert found == []
