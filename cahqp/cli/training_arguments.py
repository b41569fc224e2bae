"""Lists on the command line of a training, and errors of jsonargparse in the words of the user."""

from __future__ import annotations

import collections.abc
import difflib
import inspect
import itertools
import json
import re
import types
import typing
from argparse import ArgumentError
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

import yaml

from cahqp.errors import shortened


def list_names(classes: Iterable[type[Any]]) -> set[str]:
    """Return the names of constructor arguments that take a list or a tuple."""
    names = set()
    for kind in classes:
        hints = typing.get_type_hints(vars(kind).get("__init__", object.__init__))
        names |= {name for name, hint in hints.items() if _is_list(hint)}
    return names


def all_subclasses(kind: type[Any]) -> list[type[Any]]:
    """Return a class and all its subclasses that are imported."""
    return [kind, *(each for child in kind.__subclasses__() for each in all_subclasses(child))]


def join_lists(arguments: Sequence[str], names: set[str]) -> list[str]:
    """Return the arguments with lists in brackets: `--data.train a.json b.json` becomes `--data.train=["a.json", ...]`.

    Args:
        arguments: The command line.
        names: Last parts of the dotted options that take lists.

    Raises:
        ArgumentError: A list has one of two brackets.
    """
    joined, rest = [], list(arguments)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        values = [value] if equals else list(itertools.takewhile(lambda text: not text.startswith("-"), rest))
        is_list = flag.startswith(("--data.", "--model.")) and flag.rpartition(".")[2] in names
        if not is_list or not values or values == ["null"]:
            joined.append(flag + equals + value)
            continue
        rest = rest if equals else rest[len(values) :]
        joined.append(f"{flag}={_bracketed(flag, values)}")
    return joined


def explained(error: ArgumentError, known: Sequence[str]) -> ArgumentError:
    """Return the error in the words of the user, with the closest option where one was misspelt.

    Args:
        error: Error of the parser.
        known: Option names of the command.
    """
    text = str(error)
    path = ".".join(key for keys in re.findall(r'Parser key "([^"]+)"', text) for key in keys.split("."))
    if unknown := re.search(r"nrecognized arguments: (--[^\s=]+)", text):
        return ArgumentError(None, f"{text}.{_hint(unknown[1], known)}")
    if refused := re.search(r"Option '(\w+)' is not accepted", text):
        kind = re.findall(r"Problem with given class_path '([\w.]+)'", text)[-1]
        name = kind.rpartition(".")[2]
        message = f"--{path}.{refused[1]} is not an option of {name}.{_hint(refused[1], _arguments(kind))}"
        return ArgumentError(None, f"{message} Allowed: {', '.join(_arguments(kind))}.")
    if path:
        lines = [line.strip().removeprefix("- ") for line in shortened(text).splitlines()]
        reasons = [line for line in lines if line and not line.startswith(("Parser key", "Problem with given"))]
        return ArgumentError(None, f"--{path}: {'; '.join(dict.fromkeys(reasons)) or text}")
    return error


def _is_list(hint: Any) -> bool:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return any(typing.get_origin(each) in (list, tuple, collections.abc.Sequence) for each in options)


def _bracketed(flag: str, values: Sequence[str]) -> str:
    """Return the values as one YAML list.

    Raises:
        ArgumentError: There is only one of two brackets.
    """
    if values[0].startswith("[") and values[-1].endswith("]"):
        return " ".join(values)
    if values[0].startswith("[") or values[-1].endswith("]"):
        bare = " ".join(values).strip("[]")
        message = f"{flag} has one bracket: {' '.join(values)}. A list needs none: {flag} {bare}"
        raise ArgumentError(None, message)
    return json.dumps([_number_or_text(text) for text in values])


def _number_or_text(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if type(value) in (int, float) else text


def _hint(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _arguments(path: str) -> list[str]:
    """Return the names of the arguments of a class, also of those that its constructor passes on."""
    module, _, name = path.rpartition(".")
    kinds = inspect.getmro(getattr(import_module(module), name))[:-1]
    signatures = [inspect.signature(vars(kind)["__init__"]).parameters for kind in kinds if "__init__" in vars(kind)]
    names = [name for parameters in signatures[:3] for name in parameters]
    return [each for each in dict.fromkeys(names) if each not in ("self", "args", "kwargs")]
