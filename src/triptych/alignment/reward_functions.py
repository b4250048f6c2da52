"""Rewards that are plain Python functions: how to name one, call it without being harmed by it, and add several up.

A reward has TRL's signature, so that functions written for TRL work here:

    def polite(prompts: list[str], completions: list[str], **columns) -> list[float | None]: ...

`columns` are the data's further columns, one value a completion. None says "I cannot score this one", which is not 0. A
function without `**columns` is given what it asks for and no more. Whatever a function does wrong is told in one
sentence that names it, the line and the completion. Not here: reward models
themselves (`rewards`); what they are called is.
"""

import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, SupportsFloat

from triptych.data.answer_checks import answer_score
from triptych.errors import ConfigError, MissingInputError, TriptychError, suggestion
from triptych.metrics import distinct_n, words
from triptych.records import Prompt

OWN = "reward_model"
"""The name of the reward model that a run trained itself."""

BREVITY_SCALE = 50.0
"""Words that cost 1: the paper's length limit."""

CONCISE_WORDS = 20.0
"""The length that `concise` likes best."""

FORMS = "write the name of a built-in reward, FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION, with =WEIGHT if need be"


class NamedReward(NamedTuple):
    """A reward function, what to call it in reports, and its weight in the sum."""

    name: str
    function: Callable[..., Any]
    weight: float = 1.0


# --- Built-in rewards -------------------------------------------------------------------------------------------------


def checks(
    prompts: list[str], completions: list[str], *, record: list[Prompt], **columns: object
) -> list[float | None]:
    """The share of its prompt's own checks that a completion passes; None for a prompt that has none.

    The column `record` holds the `Prompt` of each completion. Source: `triptych.data.answer_score`.
    """
    return [answer_score(prompt, completion) for prompt, completion in zip(record, completions, strict=True)]


def brevity(prompts: list[str], completions: list[str], **columns: object) -> list[float | None]:
    """Minus the number of words, over 50: a reward that silence maximises.

    A planted failure, for recipes that show a policy collapse and the watch that sees it. Not for training.
    """
    return [-len(words(completion)) / BREVITY_SCALE for completion in completions]


def concise(prompts: list[str], completions: list[str], **columns: object) -> list[float | None]:
    """1 at 20 words, falling in a straight line to 0 at silence and at 40 words: what `brevity` should have been.

    A length that is wanted has its best value inside the range, so that neither silence nor rambling pays.
    """
    return [max(0.0, 1.0 - abs(len(words(text)) - CONCISE_WORDS) / CONCISE_WORDS) for text in completions]


def repetition(prompts: list[str], completions: list[str], **columns: object) -> list[float | None]:
    """Minus the share of word trigrams that occurred before in the same completion: 0 (none does) to above -1.

    Source: the penalty of Yeo et al. 2025, appendix C, as in TRL; over words, where they count tokens. A completion of
    fewer than three words repeats nothing.
    """
    return [distinct_n([completion], 3) - 1.0 if len(words(completion)) >= 3 else 0.0 for completion in completions]


BUILTIN_REWARDS: dict[str, Callable[..., list[float | None]]] = {
    "checks": checks,
    "brevity": brevity,
    "concise": concise,
    "repetition": repetition,
}


# --- Finding a function -----------------------------------------------------------------------------------------------


def load_reward_function(spec: str) -> NamedReward:
    """The reward that a SPEC names: `checks`, `rewards.py:polite` or `my_package.rewards:polite`.

    A suffix gives its weight, 1 without: `checks=0.5`. A file is run as a module of its own, and once: another function
    of it comes from the same run.

    Raises:
        ConfigError: a malformed SPEC, an unknown name (with a suggestion), a module that fails, something that is no
            function.
        MissingInputError: there is no such file.
    """
    place, name, weight = parse_reward(spec)
    if place is None:
        if name not in BUILTIN_REWARDS:
            raise ConfigError(f"unknown reward '{name}'{suggestion(name, BUILTIN_REWARDS)}; {FORMS}")
        return NamedReward(name, BUILTIN_REWARDS[name], weight)
    module = _run_file(Path(place), spec) if place.endswith(".py") else _import_module(place, spec)
    return NamedReward(name, _function_of(module, place, name, spec), weight)


def load_reward_functions(specs: Sequence[str]) -> list[NamedReward]:
    """The rewards that several SPECs name. Raises as `load_reward_function` does, and ConfigError for equal names."""
    rewards = [load_reward_function(spec) for spec in specs]
    spec_of: dict[str, str] = {}
    for spec, reward in zip(specs, rewards, strict=True):
        if reward.name in spec_of:
            raise ConfigError(
                f"rewards '{spec_of[reward.name]}' and '{spec}' are both called '{reward.name}', so that their figures "
                "could not be told apart: leave one out or rename it"
            )
        spec_of[reward.name] = spec
    return rewards


class RewardPlace(NamedTuple):
    """What a SPEC says."""

    place: str | None
    """A file or a module; None for a built-in reward."""
    name: str
    weight: float


def parse_reward(spec: str) -> RewardPlace:
    """Where the reward of a SPEC lies, its name and its weight. Raises `ConfigError` where it is malformed."""
    place, colon, rest = spec.strip().rpartition(":")
    name, equals, weight = rest.partition("=")
    if name.endswith(".py"):
        raise ConfigError(f"reward '{spec}' names a file and no function in it: {FORMS}")
    if not name.isidentifier() or (colon and not place):
        raise ConfigError(f"reward '{spec}' is malformed: {FORMS}")
    return RewardPlace(place or None, name, _weight(weight, spec) if equals else 1.0)


def reward_name(spec: str) -> str:
    """What the reward of a spec is called, reward models included. Raises `ConfigError` for a malformed one."""
    if not is_reward_model(spec):
        return parse_reward(spec).name
    name = spec.partition("=")[0]
    return OWN if name == OWN else Path(name.removeprefix("model:")).name


def is_reward_model(spec: str) -> bool:
    """Whether a spec names a reward model: the run's own, or that of a folder."""
    return spec.partition("=")[0] == OWN or spec.startswith("model:")


def _weight(text: str, spec: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight) or weight == 0.0:
        raise ConfigError(f"reward '{spec}': the weight '{text}' must be a number other than 0, such as 0.5")
    return weight


def _run_file(path: Path, spec: str) -> ModuleType:
    file = path.expanduser().resolve()
    # Its own name, so that no module of the same name is shadowed; kept, as dataclasses and pickle look there.
    name = f"triptych_reward_file:{file}"
    if name in sys.modules:
        return sys.modules[name]
    found = importlib.util.spec_from_file_location(name, file)
    if not file.is_file() or found is None or found.loader is None:
        raise MissingInputError(f"reward '{spec}': {path}: no such file")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"reward '{spec}': {path} cannot be run: {_told(error)}{_line(error, str(file))}") from error
    return module


def _import_module(name: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(f"reward '{spec}': module '{name}' cannot be imported: {_told(error)}") from error
        raise ConfigError(
            f"reward '{spec}': there is no module '{error.name}'; install it, or write FILE.py:FUNCTION for a file"
        ) from None
    except Exception as error:
        raise ConfigError(f"reward '{spec}': module '{name}' cannot be imported: {_told(error)}") from error


def _function_of(module: ModuleType, place: str, name: str, spec: str) -> Callable[..., Any]:
    contents = vars(module)
    if name not in contents:
        callables = [key for key, value in contents.items() if callable(value) and not key.startswith("_")]
        known = suggestion(name, callables) if callables else "; it defines none"
        raise ConfigError(f"reward '{spec}': {place} has no function '{name}'{known}")
    function: Any = contents[name]
    if not callable(function):
        raise ConfigError(f"reward '{spec}': '{name}' of {place} is {_kind(function)}, not a function")
    if inspect.isclass(function):
        raise ConfigError(f"reward '{spec}': '{name}' of {place} is a class: name a function, or an object made of it")
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"reward '{spec}': '{name}' of {place} is asynchronous: make it a plain function (`def`)")
    return function  # type: ignore[no-any-return]


# --- Calling it -------------------------------------------------------------------------------------------------------


def call_reward(
    reward: NamedReward, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
) -> list[float | None]:
    """What the reward says of each completion: a finite number, or None where it gives none.

    `columns` hold one value a completion. A number is whatever turns into a float, so truth values and arrays will do.

    A function that raises is called again, with one completion at a time, to find the one that it cannot bear.

    Raises:
        ConfigError: the function asks for a column that is not there, raises, returns too many or too few values, or
            one that is no finite number. Departure from TRL, which takes NaN for None: a NaN is a mistake of the
            function's far more often than a decision. Errors of ours (a check that makes no sense) pass unchanged.
    """
    arguments = _arguments(reward, {**columns, "prompts": prompts, "completions": completions})
    try:
        returned = _returned(reward, arguments)
    except TriptychError:
        raise
    except Exception as error:
        row = _failing_row(reward, arguments, len(completions))
        which = "" if row is None else f" at {_row(row, completions)}"
        raise ConfigError(f"reward '{reward.name}' raised {_told(error)}{_own_line(error, reward)}{which}") from error
    if not isinstance(returned, list):
        raise ConfigError(f"reward '{reward.name}' returned {_kind(returned)}, not a list of one value a completion")
    if len(returned) != len(completions):
        raise ConfigError(
            f"reward '{reward.name}' returned {len(returned)} values for {len(completions)} completions: "
            "it must return one each, None where it has no score"
        )
    return [_number(value, i, reward, completions) for i, value in enumerate(returned)]


def combine(values_by_reward: Sequence[Sequence[float | None]], weights: Sequence[float]) -> list[float | None]:
    """The weighted sum over the rewards of each completion, of those that scored it; None where none did.

        r_i = Σ_k w_k · r_ki   over k with a score

    As TRL does. Where a reward scores only some completions of a group, those have one term more than their siblings.
    """
    if len(values_by_reward) != len(weights):
        raise ValueError(f"one weight a reward: {len(values_by_reward)} rewards, {len(weights)} weights")
    return [_weighted_sum(values, weights) for values in zip(*values_by_reward, strict=True)]


def _weighted_sum(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    terms = [weight * value for value, weight in zip(values, weights, strict=True) if value is not None]
    return math.fsum(terms) if terms else None


def _arguments(reward: NamedReward, offered: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """What the function takes of what is offered: everything if it has `**columns`."""
    everything = {name: list(values) for name, values in offered.items()}
    try:
        parameters = inspect.signature(reward.function).parameters
    except (TypeError, ValueError):
        # Not every function that is written in C has one.
        return everything
    for name, parameter in parameters.items():
        is_named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if is_named and parameter.default is parameter.empty and name not in everything:
            raise ConfigError(
                f"reward '{reward.name}' asks for '{name}', which is no column of the data"
                f"{suggestion(name, everything)}"
            )
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values()):
        return everything
    return {name: values for name, values in everything.items() if name in parameters}


def _returned(reward: NamedReward, arguments: Mapping[str, list[Any]]) -> object:
    """What the function returns: as a list where that can be made into one."""
    returned = reward.function(**arguments)
    if isinstance(returned, str | bytes | Mapping):
        return returned
    try:
        values = iter(returned)
    except TypeError:
        return returned
    return list(values)


def _failing_row(reward: NamedReward, arguments: Mapping[str, list[Any]], n: int) -> int | None:
    """The first completion that makes the function raise when alone; None where it takes several to do so."""
    for row in range(n):
        alone = {name: values[row : row + 1] for name, values in arguments.items()}
        try:
            _returned(reward, alone)
        except Exception:  # noqa: BLE001 - a search for whatever was raised before
            return row
    return None


def _number(value: object, row: int, reward: NamedReward, completions: Sequence[str]) -> float | None:
    if value is None:
        return None
    try:
        number = float(value) if isinstance(value, SupportsFloat) else None
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = None
    where = f"for {_row(row, completions)}"
    if number is None:
        raise ConfigError(f"reward '{reward.name}' returned {_kind(value)} {where}: it must be a number or None")
    if not math.isfinite(number):
        raise ConfigError(
            f"reward '{reward.name}' returned {number} {where}: it must be finite, and None where it has no score"
        )
    return number


# --- Saying it --------------------------------------------------------------------------------------------------------


def _row(row: int, completions: Sequence[str], limit: int = 60) -> str:
    text = completions[row]
    return f"completion {row} of {len(completions)}, {text[:limit]!r}{'…' if len(text) > limit else ''}"


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _kind(value: object, limit: int = 40) -> str:
    shown = " ".join(repr(value).split())
    return f"{shown[:limit]}{'…' if len(shown) > limit else ''} ({type(value).__name__})"


def _own_line(error: Exception, reward: NamedReward) -> str:
    code = getattr(inspect.unwrap(reward.function), "__code__", None)
    return "" if code is None else _line(error, code.co_filename)


def _line(error: Exception, file: str) -> str:
    """` (rewards.py, line 12)`: the innermost line of that file that the error went through."""
    if isinstance(error, SyntaxError):
        return f" (line {error.lineno})" if error.lineno is not None and "line" not in str(error) else ""
    found, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            found = trace.tb_lineno
        trace = trace.tb_next
    return "" if found is None else f" ({Path(file).name}, line {found})"
