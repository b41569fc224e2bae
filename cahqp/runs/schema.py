"""Dataclasses from parsed YAML, with every problem told and none thrown."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeVar

T = TypeVar("T")

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
    known = {f.name: f for f in _fields(kind)}
    if not isinstance(value, dict):
        problems.append(f"{where or 'It'} must hold {_list_of(known)}, got {value!r}.")
        return build(kind, {}, where, [])
    hints = typing.get_type_hints(kind)
    problems += [unknown(_join(where, str(key)), str(key), known, "key") for key in value if key not in known]
    found = {}
    for name, field in known.items():
        inner = _join(where, name)
        required = field.default is MISSING and field.default_factory is MISSING
        converted = _convert(hints[name], value[name], inner, problems) if name in value else _WRONG
        if name not in value and required:
            problems.append(f"{inner} is missing: give {describe(hints[name])}.")
        if converted is not _WRONG:
            found[name] = converted
        elif required:
            found[name] = _empty(hints[name])
    return kind(**found)


def unknown(where: str, name: str, allowed: Iterable[str], what: str) -> str:
    """Say that `name` is none of `allowed`, with the nearest that is."""
    allowed = list(allowed)
    nearest = difflib.get_close_matches(name, allowed, n=1)
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    return f"{where} is no known {what}.{hint} Allowed: {_list_of(allowed) or 'none'}."


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
        pairs = {str(k): _convert(arguments[1], item, _join(where, str(k)), problems) for k, item in value.items()}
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


def _fields(kind: Any) -> tuple[Field[Any], ...]:
    return fields(kind)


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _list_of(names: Iterable[str]) -> str:
    return ", ".join(names)
