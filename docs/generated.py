"""Parts of the pages that are made from the code whenever the pages are built, so that they cannot go stale.

A line `<!-- generated: NAME -->` in a page is replaced by what the function of that name in `PARTS` returns. MkDocs
calls `on_page_markdown`. Not here: docstrings (mkdocstrings reads those).
"""

import ast
import inspect
import io
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from functools import lru_cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from triptych.alignment.losses import PreferenceLoss
from triptych.alignment.policy_losses import PolicyLoss
from triptych.alignment.reward_functions import BUILTIN_REWARDS
from triptych.auditing.perturbations import PERTURBATIONS
from triptych.cli import app, run
from triptych.decoding import STRATEGIES
from triptych.dictionaries.sparsifiers import Sparsifier
from triptych.study import RECIPES, StudyConfig, recipe_names

WIDTH = "100"
"""Columns of a help text."""

MARKER = re.compile(r"^<!-- generated: (\w+) -->$", flags=re.M)


def on_page_markdown(markdown: str, **_: object) -> str:
    """What MkDocs calls for every page."""
    return MARKER.sub(lambda found: PARTS[found[1]](), markdown)


# --- the command line -------------------------------------------------------------------------------------------------


@lru_cache
def command_line() -> str:
    """Every command under a heading of its own, with the help text that it prints."""
    sections = [f"## triptych {' '.join(path)}\n\n```text\n{help_of(path)}\n```" for path in paths()]
    return "\n\n".join([f"```text\n{help_of(())}\n```", *sections])


def paths() -> list[tuple[str, ...]]:
    """The words of every command, groups left out."""
    return [*_below(typer.main.get_command(app), ())]


def _below(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    children = getattr(command, "commands", {})
    for name, child in children.items():
        yield from _below(child, (*path, name))
    if not children:
        yield path


def help_of(path: tuple[str, ...]) -> str:
    """What `triptych … --help` prints."""
    text, before = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH
    try:
        with redirect_stdout(text):
            run([*path, "--help"])
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines())


# --- configuration ----------------------------------------------------------------------------------------------------


@lru_cache
def configuration() -> str:
    """A table of keys for every model that a study's configuration is made of."""
    return "\n\n".join(_section(model) for model in models_below(StudyConfig))


def models_below(root: type[BaseModel]) -> list[type[BaseModel]]:
    """The model and all that its fields hold, in the order of first mention."""
    found: dict[type[BaseModel], None] = {}

    def visit(model: type[BaseModel]) -> None:
        if model not in found:
            found[model] = None
            for field in model.model_fields.values():
                for inner in _models_in(field.annotation):
                    visit(inner)

    visit(root)
    return list(found)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _section(model: type[BaseModel]) -> str:
    docs = field_docs(model)
    rows = [
        f"| `{key}` | {_kind(field.annotation)} | {_default(field)} | {_cell(docs.get(key, ''))} |"
        for key, field in model.model_fields.items()
    ]
    table = ["| key | kind | default | |", "|---|---|---|---|", *rows] if rows else ["No keys."]
    return "\n".join([f"## {model.__name__} {{#{model.__name__}}}", "", summary(model), "", *table])


def field_docs(model: type[BaseModel]) -> dict[str, str]:
    """The strings below the fields of a class and of its bases."""
    docs: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            docs |= _docs_in(base)
    return docs


def _docs_in(cls: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    if not isinstance(body, ast.ClassDef):
        return {}
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            found[field.target.id] = str(below.value.value)  # type: ignore[attr-defined]
    return found


def _kind(annotation: Any) -> str:
    """An annotation in words, with links to the models in it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_kind(argument) for argument in arguments))
    if origin is tuple:
        return f"list of {_kind(arguments[0])}"
    if origin in (dict, Mapping):
        return f"{_kind(arguments[0])} → {_kind(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__})"
    return KINDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


KINDS = {str: "text", int: "integer", float: "number", bool: "true or false"}


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return f"[{type(value).__name__}](#{type(value).__name__})"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{'null' if value is None else value}`".replace("True", "true").replace("False", "false")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# --- variants ---------------------------------------------------------------------------------------------------------


def strategies() -> str:
    """The strategies with their parameters and what they do."""
    rows = [f"| `{name}` | {_parameters(strategy)} | {summary(strategy)} |" for name, strategy in STRATEGIES.items()]
    return "\n".join(["| name | parameters | |", "|---|---|---|", *rows])


def _parameters(model: type[BaseModel]) -> str:
    keys = [f"`{key}={field.default}`" for key, field in model.model_fields.items() if key != "name"]
    return ", ".join(keys) or "none"


def losses() -> str:
    """Preference losses, then those of the GRPO family."""
    return "\n\n".join([_choices("loss of align dpo", PreferenceLoss), _choices("loss of align grpo", PolicyLoss)])


def sparsifiers() -> str:
    """How a dictionary's code is made sparse."""
    return _choices("sparsifier", Sparsifier)


def _choices(what: str, union: Any) -> str:
    """The variants of a tagged union of configs."""
    rows = [f"| `{_name(one)}` | {_parameters(one)} | {summary(one)} |" for one in _variants(union)]
    return "\n".join([f"| {what} | parameters | |", "|---|---|---|", *rows])


def _variants(union: Any) -> list[type[BaseModel]]:
    return [*dict.fromkeys(_models_in(union))]


def _name(model: type[BaseModel]) -> str:
    return str(model.model_fields["name"].default)


def rewards() -> str:
    """Rewards that come with the package."""
    return _table("reward", BUILTIN_REWARDS)


def perturbations() -> str:
    """What audits do to an answer."""
    return _table("perturbation", PERTURBATIONS)


def _table(what: str, entries: Mapping[str, Any]) -> str:
    rows = [f"| `{name}` | {summary(entry)} |" for name, entry in entries.items()]
    return "\n".join([f"| {what} | |", "|---|---|", *rows])


def summary(of: Any) -> str:
    """The first paragraph of a docstring, for use in a table."""
    return _cell((inspect.getdoc(of) or "").split("\n\n")[0])


def recipes() -> str:
    """The header of every recipe."""
    headers = [f"## {name}\n\n```text\n{header(name)}\n```" for name in recipe_names()]
    return "\n\n".join(headers)


def header(recipe: str) -> str:
    """The comment at the head of a recipe."""
    lines = (RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8").splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:end])


PARTS: dict[str, Callable[[], str]] = {
    "command_line": command_line,
    "configuration": configuration,
    "strategies": strategies,
    "losses": losses,
    "rewards": rewards,
    "perturbations": perturbations,
    "sparsifiers": sparsifiers,
    "recipes": recipes,
}
