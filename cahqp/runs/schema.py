"""Plan files: YAML that pydantic validates into frozen dataclasses, with all errors in one message."""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError, WrapValidator
from pydantic_core import ErrorDetails

from cahqp.errors import ConfigError

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def _as_value_error(value: Any, validate: Any) -> Any:
    try:
        return validate(value)
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _check_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        message = f"must consist of letters, digits, `-`, `_` and `.`, got {value!r}."
        raise ValueError(message)
    return value


def _check_file(value: str) -> str:
    if not Path(value).is_file():
        message = f"{value} does not exist. Relative paths start at the working directory."
        raise ValueError(message)
    return value


Section = Annotated[T, WrapValidator(_as_value_error)]
"""A section whose dataclass checks itself in `__post_init__`: `--option` in its messages becomes the key path."""

Name = Annotated[str, AfterValidator(_check_name)]
"""A name that is also a directory's name."""

ExistingFile = Annotated[str, AfterValidator(_check_file)]
"""The path of a file."""


def parse(path: Path) -> dict[str, Any]:
    """Return the mapping in a plan file.

    Raises:
        ConfigError: The file is missing, not YAML, or not a mapping.
    """
    try:
        parsed = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        message = f"The plan {path} does not exist. Copy one from configs/."
        raise ConfigError(message) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        message = f"{path} is not readable YAML: {error}"
        raise ConfigError(message) from error
    if not isinstance(parsed, dict):
        message = f"{path} is not a plan: it must be a mapping of keys and values."
        raise ConfigError(message)
    return parsed


def validate(kind: type[T], values: Mapping[str, Any], path: Path) -> T:
    """Return a plan's values as a dataclass. Unknown keys are errors, and types are not converted.

    Validators receive `values` as `info.context`.

    Args:
        kind: Dataclass of the plan.
        values: Mapping from `parse`.
        path: The plan's file, for the message.

    Raises:
        ConfigError: Values are invalid. The message lists all of them with their key paths.
    """
    # The configuration of the list reaches all plain dataclasses below it.
    adapter = TypeAdapter(list[kind], config=ConfigDict(extra="forbid", strict=True))  # type: ignore[valid-type]
    try:
        # Strict JSON accepts mappings for dataclasses and texts for paths and enums, and nothing else.
        plans: list[T] = adapter.validate_json(json.dumps([values], default=str), context=values)
    except ValidationError as error:
        refuse(path, [line for details in error.errors() for line in _describe(kind, details)])
        raise
    return plans[0]


def refuse(path: Path, problems: Sequence[str]) -> None:
    """Raise one error for all problems of a plan.

    Raises:
        ConfigError: There are problems.
    """
    if problems:
        lines = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(problems, 1))
        message = f"{path} has {len(problems)} problem{'s' * (len(problems) > 1)}; nothing was started:\n{lines}"
        raise ConfigError(message)


def unknown(where: str, name: str, allowed: Iterable[str], what: str) -> str:
    """Return a message that `name` is not among `allowed`, with the nearest allowed name."""
    allowed = list(allowed)
    nearest = difflib.get_close_matches(name, allowed, n=1)
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    return f"{where} is not a known {what}.{hint} Allowed: {', '.join(allowed) or 'none'}."


def _describe(kind: Any, details: ErrorDetails) -> list[str]:
    """Return the lines of one pydantic error; the first part of its location is the position in the list."""
    *parents, last = details["loc"][1:] or ("plan",)
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in (*parents, last)).lstrip(".")
    if details["type"] == "unexpected_keyword_argument":
        return [unknown(where, str(last), _fields(kind, parents), "key")]
    if details["type"] == "missing":
        return [f"{where} is missing."]
    if details["type"] == "value_error":
        lines = str(details["ctx"]["error"]).splitlines()
        return [line.replace("--", f"{where}.") if "--" in line else _join(where, line) for line in lines]
    if details["type"] == "literal_error":
        choices = re.findall("'([^']*)'", details["ctx"]["expected"])
        return [unknown(f"{where}: {details['input']}", str(details["input"]), choices, "value")]
    text = details["msg"].replace("Input should", "must", 1).replace("an object", "a mapping")
    return [f"{where} {text}, got {details['input']!r}."]


def _join(where: str, line: str) -> str:
    return f"{where} {line}" if line.startswith("must ") else f"{where}: {line}"


def _fields(kind: Any, location: Sequence[int | str]) -> list[str]:
    """Return the field names of the dataclass at a location below `kind`."""
    for part in location:
        is_section = is_dataclass(_required(kind))
        kind = get_type_hints(_required(kind))[str(part)] if is_section else get_args(_required(kind))[-1]
    return [field.name for field in fields(_required(kind))]


def _required(kind: Any) -> Any:
    """Return X for a type `X | None`, else the type itself."""
    return get_args(kind)[0] if NoneType in get_args(kind) else kind


_WRONG = object()
_SCALARS: dict[type, str] = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def build(kind: type[T], value: Any, where: str, problems: list[str]) -> T:
    """Build a dataclass from a mapping, as well as it can be.

    What is wrong is told and takes its default, or an empty value, so that what else is wrong can be told as well.

    Args:
        kind: The dataclass. Its fields are texts, numbers, lists, mappings and dataclasses, optional or not.
        value: What the YAML holds.
        where: Dotted name of `value`, for messages; empty at the top.
        problems: Receives one line for each thing that is wrong, each beginning with its dotted name.
    """
    known = {f.name: f for f in fields(typing.cast(Any, kind))}
    if not isinstance(value, dict):
        problems.append(f"{where or 'It'} must hold {', '.join(known)}, got {value!r}.")
        return build(kind, {}, where, [])
    hints = get_type_hints(kind)
    problems += [unknown(_join_path(where, str(key)), str(key), known, "key") for key in value if key not in known]
    found = {}
    for name, field in known.items():
        inner = _join_path(where, name)
        required = field.default is MISSING and field.default_factory is MISSING
        converted = _convert(hints[name], value[name], inner, problems) if name in value else _WRONG
        if name not in value and required:
            problems.append(f"{inner} is missing: give {describe(hints[name])}.")
        if converted is not _WRONG:
            found[name] = converted
        elif required:
            found[name] = _empty(hints[name])
    return kind(**found)


def describe(hint: Any) -> str:
    """Return a type in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if _is_union(origin):
        return " or ".join("nothing" if a is type(None) else describe(a) for a in arguments)
    if origin is list:
        return f"a list, each {describe(arguments[0])}"
    if origin is dict:
        return "a mapping of names"
    return "a section" if is_dataclass(hint) else _SCALARS.get(hint, "a value")


def _convert(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if _is_union(origin):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where, problems)
    if is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, where, problems)
    if origin is list and isinstance(value, list):
        items = [_convert(arguments[0], item, f"{where}[{index}]", problems) for index, item in enumerate(value)]
        return [item for item in items if item is not _WRONG]
    if origin is dict and isinstance(value, dict):
        pairs = {str(k): _convert(arguments[1], item, _join_path(where, str(k)), problems) for k, item in value.items()}
        return {name: item for name, item in pairs.items() if item is not _WRONG}
    if hint is Any or _is_scalar(hint, value):
        return value
    problems.append(f"{where} must be {describe(hint)}, got {value!r}.")
    return _WRONG


def _empty(hint: Any) -> Any:
    if is_dataclass(hint) and isinstance(hint, type):
        return build(hint, {}, "", [])
    return (typing.get_origin(hint) or hint)()


def _is_scalar(hint: Any, value: Any) -> bool:
    if isinstance(value, bool) or hint is bool:
        return hint is bool and isinstance(value, bool)
    return isinstance(value, int | float) if hint is float else hint in _SCALARS and isinstance(value, hint)


def _is_union(origin: Any) -> bool:
    return origin in (typing.Union, types.UnionType)


def _join_path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
