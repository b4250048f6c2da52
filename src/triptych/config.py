"""Configurations: YAML in, frozen pydantic models out, and every mistake told in one line.

A recipe is read (`load_yaml`), changed (`apply_overrides`), checked (`parse_config`), hashed (`config_hash`) and
written (`dump_yaml`). Not here: any panel's fields; each variant has its own small config beside its function.

YAML means its core schema of version 1.2, as people read it: `1e-5` is a number, `no` and `12:30` are texts, and a key
that stands twice is an error.
"""

import hashlib
import json
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar, get_args

import annotated_types
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from triptych.errors import ConfigError, MissingInputError, suggestion


class Config(BaseModel):
    """Base of all configurations: frozen, unknown keys refused, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def parse_config(cls: type[ConfigT], mapping: Mapping[str, Any], *, where: str) -> ConfigT:
    """The mapping as a `cls`; the first mistake is a one-line ConfigError that starts with `where` (a file, `--set`).

    Types are strict, as in JSON: `true` is no number and `"3"` no integer, but an integer passes for a float and a
    list for a tuple.
    """
    try:
        # NaN and infinity pass here, so that the model refuses them by name.
        return cls.model_validate_json(json.dumps(mapping, default=to_plain), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_describe(cls, mapping, error)}") from None
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; an empty file is an empty mapping.

    Raises MissingInputError where there is no such file, ConfigError naming file and line where it is no YAML mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingInputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a text: {error}") from None
    loaded = _parse_yaml(text, where=str(path))
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected keys and values (`seed: 0`), got {_shown(loaded)}")
    return loaded


def apply_overrides(mapping: Mapping[str, Any], items: Sequence[str]) -> dict[str, Any]:
    """A copy of the mapping with `a.b=c` applied in order; c is read as YAML, so lists and mappings work.

    A number as a part of the key picks an entry of a list: `strategies.0.temperature=0.5`. Groups that do not exist
    are made: `parse_config` catches an unknown key. Raises ConfigError naming the item where it cannot be applied.
    """
    changed: dict[str, Any] = json.loads(json.dumps(mapping, default=to_plain))
    for item in items:
        key, equals, text = item.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise ConfigError(f"override '{item}' is not of the form key.subkey=value")
        _assign(changed, parts, _parse_yaml(text, where=f"override '{item}'"), item)
    return changed


def canonical_json(obj: object) -> str:
    """One text for equal contents: keys sorted, no blanks. NaN and infinity raise a ValueError."""
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=to_plain)


def config_hash(config: BaseModel | Mapping[str, Any]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()[:16]


def dump_yaml(obj: BaseModel | Mapping[str, Any]) -> str:
    """YAML that `load_yaml` reads back as the same contents, keys in their own order.

    Whatever an older reader (YAML 1.1) would take for something else is quoted, so other programs read the same.
    """
    contents = json.loads(json.dumps(obj, allow_nan=False, default=to_plain))
    text: str = yaml.dump(contents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def to_plain(obj: object) -> Any:
    """What JSON holds of models, mappings and paths: the `default` of `json.dumps` for configurations and records."""
    if isinstance(obj, BaseModel):
        return obj.model_dump(mode="json")
    if isinstance(obj, Mapping):
        return dict(obj)
    if isinstance(obj, Path):
        return obj.as_posix()
    raise TypeError(f"{obj!r} is nothing that JSON or a configuration can hold")


# --- YAML -------------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """The core schema of YAML 1.2; keys must be texts and stand once."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is no text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' stands twice", key_node.start_mark)
            seen.add(key)
        merged: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return merged


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes what either version of YAML would take for a number, a boolean or a date."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # PyYAML writes the line breaks of Unicode as blanks, unless they stand in double quotes.
        style = '"' if re.search("[\x85\u2028\u2029]", data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+")

for _tag, _pattern, _first in (
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    # No leading zero: the constructor, of version 1.1, would take 010 for 8.
    ("int", re.compile(r"[-+]?(0|[1-9][0-9]*)"), list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("merge", re.compile(r"<<"), ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern.pattern})$"), _first)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"^(?:{_FLOAT.pattern})$"), list("-+.0123456789"))


def _parse_yaml(text: str, *, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{where}{line}: {error.problem or 'not valid YAML'}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from None


def _assign(group: dict[str, Any], parts: Sequence[str], value: Any, item: str) -> None:
    holder: Any = group
    for depth, part in enumerate(parts):
        is_last = depth == len(parts) - 1
        if isinstance(holder, list):
            if not (part.isdecimal() and int(part) < len(holder)):
                raise ConfigError(
                    f"override '{item}': {'.'.join(parts[:depth])} is a list of {len(holder)}, has no entry '{part}'"
                )
            step: Any = int(part)
        elif isinstance(holder, dict):
            step = part
            if not is_last and holder.get(part) is None:
                holder[part] = {}
        else:
            raise ConfigError(f"override '{item}': {'.'.join(parts[:depth])} is {_shown(holder)}, not a group of keys")
        if is_last:
            holder[step] = value
        else:
            holder = holder[step]


# --- pydantic's errors in one line ------------------------------------------------------------------------------------


class _Mistake(NamedTuple):
    error: ErrorDetails
    path: str
    """Dotted, as the user wrote it; empty for the whole."""
    owner: type[BaseModel]
    """The config that holds the key."""

    @property
    def key(self) -> str:
        return str(self.error["loc"][-1]) if self.error["loc"] else ""


def _describe(cls: type[BaseModel], mapping: Mapping[str, Any], error: ValidationError) -> str:
    errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = errors[0]
    mistake = _Mistake(first, ".".join(_path_as_written(first, mapping)), _owner(cls, first["loc"]))
    line = _MESSAGES.get(first["type"], _wrong_value)(mistake)
    return line if len(errors) == 1 else f"{line} (and {len(errors) - 1} more)"


def _unknown_key(mistake: _Mistake) -> str:
    is_nested = len(mistake.error["loc"]) > 1
    return (
        f"{_at(mistake) if is_nested else ''}unknown key '{mistake.key}' in {mistake.owner.__name__}"
        f"{suggestion(mistake.key, mistake.owner.model_fields)}"
    )


def _missing_key(mistake: _Mistake) -> str:
    return f"key '{mistake.path}' is missing in {mistake.owner.__name__}"


def _unknown_variant(mistake: _Mistake) -> str:
    context = mistake.error["ctx"]
    key, expected = context["discriminator"].strip("'"), re.findall(r"'([^']*)'", context["expected_tags"])
    return f"{_at(mistake)}unknown {key} '{context['tag']}'{suggestion(context['tag'], expected)}"


def _no_variant(mistake: _Mistake) -> str:
    return f"{_at(mistake)}the key {mistake.error['ctx']['discriminator']}, which says which variant it is, is missing"


def _own_check(mistake: _Mistake) -> str:
    """A validator of ours, which has said it all."""
    return f"{_at(mistake)}{mistake.error['ctx']['error']}"


def _wrong_value(mistake: _Mistake) -> str:
    field = mistake.owner.model_fields.get(mistake.key)
    bounds = [] if field is None else [text for part in field.metadata for text in _bounds(part)]
    problem = mistake.error["msg"].removeprefix("Input should be ")
    problem = {"an object": "a group of keys", "a valid array": "a list"}.get(problem, problem)
    must = " and ".join(bounds) if bounds and mistake.error["type"] in _BOUND_ERRORS else problem
    return f"{mistake.path or 'the whole'} is {_shown(mistake.error['input'])} but must be {must}"


_MESSAGES: dict[str, Callable[[_Mistake], str]] = {
    "extra_forbidden": _unknown_key,
    "missing": _missing_key,
    "union_tag_invalid": _unknown_variant,
    "union_tag_not_found": _no_variant,
    "value_error": _own_check,
}

_BOUND_ERRORS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


def _bounds(constraint: object) -> list[str]:
    match constraint:
        case annotated_types.Gt(gt=bound):
            return [f"> {bound}"]
        case annotated_types.Ge(ge=bound):
            return [f">= {bound}"]
        case annotated_types.Lt(lt=bound):
            return [f"< {bound}"]
        case annotated_types.Le(le=bound):
            return [f"<= {bound}"]
        case _:
            return []


def _at(mistake: _Mistake) -> str:
    return f"{mistake.path}: " if mistake.path else ""


def _shown(value: object, limit: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else f"{text[:limit]}…"


def _path_as_written(error: ErrorDetails, mapping: Mapping[str, Any]) -> list[str]:
    """The location without what pydantic adds to it: tags of unions, names of validators."""
    written: list[str] = []
    holder: Any = mapping
    for step in error["loc"]:
        is_key = isinstance(holder, Mapping) and step in holder
        is_entry = isinstance(holder, Sequence) and isinstance(step, int) and step < len(holder)
        if is_key or is_entry:
            holder = holder[step]
            written.append(str(step))
    if error["type"] == "missing":
        written.append(str(error["loc"][-1]))
    return written


def _owner(cls: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel]:
    """The config class in which the last key of a location stands."""
    owners = [cls]
    for step in location[:-1]:
        fields = [owner.model_fields[step] for owner in owners if step in owner.model_fields]
        inner = [model for field in fields for model in _models_in(field.annotation)]
        tagged = [owner for owner in owners if step == owner.__name__ or step in _tags(owner)]
        owners = inner or tagged or owners
    return owners[0]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _tags(model: type[BaseModel]) -> list[object]:
    return [tag for field in model.model_fields.values() for tag in get_args(field.annotation)]
