import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from triptych.alignment.reward_functions import (
    BUILTIN_REWARDS,
    NamedReward,
    brevity,
    call_reward,
    checks,
    combine,
    load_reward_function,
    load_reward_functions,
    repetition,
)
from triptych.errors import ConfigError, DataError, InputError, MissingInputError
from triptych.records import Prompt

SOURCE = """
import math

LIMIT = 3


def polite(prompts, completions, **columns):
    return [float("please" in text) for text in completions]


def shout(completions):
    return [float(text.isupper()) for text in completions]


async def later(prompts, completions, **columns):
    return []


class Judge:
    def __call__(self, prompts, completions, **columns):
        return [0.5 for _ in completions]


judge = Judge()


def divides(prompts, completions, **columns):
    return [1 / len(text) for text in completions]
"""


@pytest.fixture
def rewards_file(tmp_path: Path) -> Path:
    path = tmp_path / "rewards.py"
    path.write_text(SOURCE)
    return path


def reward(function: Callable[..., Any]) -> NamedReward:
    return NamedReward("mine", function)


def call(function: Callable[..., Any], completions: list[str], **columns: list[Any]) -> list[float | None]:
    return call_reward(reward(function), ["p"] * len(completions), completions, columns)


# --- Built-in ---------------------------------------------------------------------------------------------------------


def test_checks_uses_the_prompts_own() -> None:
    capital = Prompt(id="a", instruction="Capital of France?", answers=("Paris",))
    open_ended = Prompt(id="b", instruction="Write a poem.")
    found = checks(["", "", ""], ["It is Paris.", "Lyon", "Roses"], record=[capital, capital, open_ended])
    assert found == [1.0, 0.0, None]


def test_brevity_by_hand() -> None:
    # Three words and none, over 50.
    assert brevity(["", ""], ["one two three", ""]) == [-0.06, 0.0]


def test_repetition_by_hand() -> None:
    # a b c a b c: trigrams abc bca cab abc, three of four unique; the second has one trigram, the third none.
    found = repetition([""] * 4, ["a b c a b c", "a b c", "a b", ""])
    assert found == [-0.25, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", BUILTIN_REWARDS)
def test_every_built_in_reward_can_be_named_and_called(name: str) -> None:
    loaded = load_reward_function(f"{name}=0.5")
    assert (loaded.name, loaded.weight) == (name, 0.5)
    columns: dict[str, list[Any]] = {
        "record": [Prompt(id="a", instruction="Name a colour.", answers=("blue",))] * 2,
        "other": [1, 2],
    }
    values = call_reward(loaded, ["Name a colour."] * 2, ["blue", ""], columns)
    assert len(values) == 2


# --- Loading ----------------------------------------------------------------------------------------------------------


def test_a_function_of_a_file(rewards_file: Path) -> None:
    loaded = load_reward_function(f"{rewards_file}:polite")
    assert (loaded.name, loaded.weight) == ("polite", 1.0)
    assert call_reward(loaded, ["p", "p"], ["please", "now"], {}) == [1.0, 0.0]
    # The file runs once, and under no name that could shadow a module.
    assert load_reward_function(f"{rewards_file}:polite=-2").function is loaded.function
    assert "rewards" not in sys.modules


def test_an_object_that_can_be_called(rewards_file: Path) -> None:
    assert call_reward(load_reward_function(f"{rewards_file}:judge"), ["p"], ["x"], {}) == [0.5]


def test_a_function_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "triptych_test_rewards.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    loaded = load_reward_function("triptych_test_rewards:shout=0.25")
    assert (loaded.name, loaded.weight) == ("shout", 0.25)
    assert call_reward(loaded, ["p", "p"], ["A", "a"], {}) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("brevitty", r"unknown reward 'brevitty'; did you mean 'brevity'\?; write the name of a built-in"),
        ("rewards.py", "names a file and no function in it"),
        ("", "malformed"),
        (":polite", "malformed"),
        ("rewards.py:", "malformed"),
        ("my.rewards", "malformed"),
        ("checks=much", "the weight 'much' must be a number other than 0"),
        ("checks=", "the weight '' must be"),
        ("checks=0", "the weight '0' must be"),
        ("checks=nan", "the weight 'nan' must be"),
        ("no_such_package.rewards:polite", r"there is no module 'no_such_package'; install it, or write FILE\.py:FUNCTION"),
        ("triptych.no_such:polite", r"there is no module 'triptych\.no_such'"),
        ("{file}:polit", r"rewards\.py has no function 'polit'; did you mean 'polite'\?"),
        ("{file}:LIMIT", r"'LIMIT' of .* is 3 \(int\), not a function"),
        ("{file}:Judge", "'Judge' of .* is a class"),
        ("{file}:later", "'later' of .* is asynchronous"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_spec_is_told(rewards_file: Path, spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_reward_function(spec.format(file=rewards_file))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"absent\.py: no such file"):
        load_reward_function(f"{tmp_path / 'absent.py'}:polite")
    with pytest.raises(MissingInputError, match="no such file"):
        (tmp_path / "folder.py").mkdir()
        load_reward_function(f"{tmp_path / 'folder.py'}:polite")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_module", r"cannot be run: ModuleNotFoundError: No module named 'no_such_module' \(bad\.py, line 1\)"),
        ("x = 1\ny = 1 / 0", r"cannot be run: ZeroDivisionError: division by zero \(bad\.py, line 2\)"),
        ("x = 1\ndef f(:", r"cannot be run: SyntaxError: .*line 2\)$"),
        ("_x = 1", r"has no function 'f'; it defines none"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_run(tmp_path: Path, source: str, message: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(source)
    with pytest.raises(ConfigError, match=message):
        load_reward_function(f"{path}:f")
    if "x = 1\n" in source:
        # Mended, it is run anew.
        path.write_text("def f(prompts, completions): return [0.0 for _ in completions]")
        assert load_reward_function(f"{path}:f").name == "f"


def test_a_module_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "triptych_test_bad.py").write_text("import no_such_module")
    (tmp_path / "triptych_test_worse.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"module 'triptych_test_bad' cannot be imported: .*'no_such_module'"):
        load_reward_function("triptych_test_bad:f")
    with pytest.raises(ConfigError, match="module 'triptych_test_worse' cannot be imported: ZeroDivisionError"):
        load_reward_function("triptych_test_worse:f")


def test_several_need_different_names(rewards_file: Path) -> None:
    specs = ["checks", f"{rewards_file}:polite=0.5"]
    assert [one.name for one in load_reward_functions(specs)] == ["checks", "polite"]
    with pytest.raises(ConfigError, match=r"polite=0\.5' and '.*polite=2' are both called 'polite'"):
        load_reward_functions([*specs, f"{rewards_file}:polite=2"])


# --- Calling ----------------------------------------------------------------------------------------------------------


def test_numbers_of_all_kinds_are_floats_and_none_stays_none() -> None:
    values = [1, 0.5, True, None, np.float32(0.25), np.int64(-3), torch.tensor(2.0)]
    found = call(lambda completions: values, ["x"] * 7)
    assert found == [1.0, 0.5, 1.0, None, 0.25, -3.0, 2.0]
    assert {type(value) for value in found} == {float, type(None)}
    assert call(lambda completions: torch.tensor([1.0, 2.0]), ["x"] * 2) == [1.0, 2.0]
    assert call(lambda completions: np.array([1.0, 2.0]), ["x"] * 2) == [1.0, 2.0]
    assert call(lambda completions: (float(len(text)) for text in completions), ["x", "yy"]) == [1.0, 2.0]


def test_columns_reach_those_who_ask() -> None:
    def everything(prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        assert set(columns) == {"answer", "weight"}
        return [1.0 for _ in completions]

    def one(completions: list[str], answer: list[str], strict: bool = True) -> list[float]:
        return [float(a == b) for a, b in zip(completions, answer, strict=strict)]

    columns: dict[str, list[Any]] = {"answer": ["x", "z"], "weight": [1, 2]}
    assert call(everything, ["x", "y"], **columns) == [1.0, 1.0]
    assert call(one, ["x", "y"], **columns) == [1.0, 0.0]


def test_a_column_that_is_not_there() -> None:
    with pytest.raises(
        ConfigError, match=r"reward 'mine' asks for 'answr', which is no column .* did you mean 'answer'\?"
    ):
        call(lambda completions, answr: [0.0], ["x"], answer=["x"])


def test_a_function_that_raises_is_told_with_its_line_and_the_completion(rewards_file: Path) -> None:
    divides = load_reward_function(f"{rewards_file}:divides")
    line = SOURCE.splitlines().index("    return [1 / len(text) for text in completions]") + 1
    message = rf"^reward 'divides' raised ZeroDivisionError: division by zero \(rewards\.py, line {line}\) at completion 2 of 3, ''$"
    with pytest.raises(ConfigError, match=message) as caught:
        call_reward(divides, ["p"] * 3, ["a", "b", ""], {})
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_where_only_several_together_fail_no_completion_is_blamed() -> None:
    def picky(completions: list[str]) -> list[float]:
        if len(completions) > 1:
            raise RuntimeError("one at a time,\n  please")
        return [0.0]

    with pytest.raises(ConfigError, match=r"raised RuntimeError: one at a time, please \(.*, line \d+\)$"):
        call(picky, ["x", "y"])


def test_a_check_that_makes_no_sense_is_told_in_its_own_words() -> None:
    prompt = Prompt(id="a", instruction="Name a colour.", checks={"max_wrods": 3})
    with pytest.raises(DataError, match="max_wrods"):
        call(checks, ["blue"], record=[prompt])


LONG = "x" * 100


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([0.0, 0.0, 0.0], "returned 3 values for 2 completions: it must return one each"),
        ([], "returned 0 values for 2 completions"),
        (0.5, r"returned 0\.5 \(float\), not a list"),
        (None, r"returned None \(NoneType\), not a list"),
        ("ab", r"returned 'ab' \(str\), not a list"),
        ({"a": 1, "b": 2}, r"returned \{'a': 1, 'b': 2\} \(dict\), not a list"),
        ([0.0, math.nan], r"returned nan for completion 1 of 2, 'x{60}'…: it must be finite, and None where"),
        ([math.inf, 0.0], "returned inf for completion 0 of 2, 'short': it must be finite"),
        ([0.0, "1.0"], r"returned '1\.0' \(str\) for completion 1 of 2, .*: it must be a number or None"),
        ([[1.0], 0.0], r"returned \[1\.0\] \(list\) for completion 0 of 2"),
        ([1j, 0.0], r"returned 1j \(complex\) for completion 0"),
        ([torch.zeros(2), 0.0], r"returned tensor\(\[0\., 0\.\]\) \(Tensor\) for completion 0"),
        ([10**400, 0.0], r"returned 10+… \(int\) for completion 0"),
    ],
)
def test_what_is_no_score_is_refused(returned: object, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^reward 'mine' {message}") as caught:
        call(lambda completions: returned, ["short", LONG])
    # The user can mend it: exit code 2.
    assert isinstance(caught.value, InputError)


# --- Adding up --------------------------------------------------------------------------------------------------------


def test_combine_by_hand() -> None:
    # 1 · 1 + 0.5 · -2 = 0; the second alone: 0.5 · 4; none at all.
    assert combine([[1.0, None, None], [-2.0, 4.0, None]], [1.0, 0.5]) == [0.0, 2.0, None]


def test_combine_wants_a_weight_a_reward() -> None:
    with pytest.raises(ValueError, match="2 rewards, 1 weights"):
        combine([[1.0], [2.0]], [1.0])
    with pytest.raises(ValueError, match="longer"):
        combine([[1.0], [2.0, 3.0]], [1.0, 1.0])


def test_concise_has_its_best_value_inside_the_range() -> None:
    # 20 words are wanted: 1 - |0 - 20| / 20, 1 - |5 - 20| / 20, 1, 1 - |30 - 20| / 20, and no less than 0.
    texts = ["", "word " * 5, "word " * 20, "word " * 30, "word " * 70]
    assert BUILTIN_REWARDS["concise"](texts, texts) == [0.0, 0.25, 1.0, 0.5, 0.0]
