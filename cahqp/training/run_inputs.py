"""Identity of a fit: its settings, and the content of the files that they name."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

from cahqp.errors import DataError

Hints = dict[str, Any]
"""Type annotations by argument name."""


def split_inputs(config: str, left_out: Collection[str]) -> tuple[dict[str, Any], dict[str, Path]]:
    """Split a configuration into settings and the files it names.

    A setting names files if its constructor annotates it with `Path`. A string setting that is the path of an existing
    file counts too, such as a folder with a model of `transformers`.

    Args:
        config: The configuration as JSON; classes are dictionaries with `class_path` and `init_args`.
        left_out: Keys, at any depth, that do not decide the result.

    Returns:
        The settings, with `input` in place of every path, and the paths by their key.

    Raises:
        DataError: Files are missing; the message lists all of them.
    """
    inputs: dict[str, Path] = {}
    missing: list[str] = []

    def walk(value: Any, hint: Any, role: str) -> Any:
        if isinstance(value, dict):
            hints = _hints_of(value, hint)
            fixed = None if hints else hint  # a plain mapping, such as dict[str, Path]
            return {
                key: walk(item, hints.get(key, fixed), f"{role}.{key}" if role else key)
                for key, item in value.items()
                if key not in left_out
            }
        if isinstance(value, list):
            return [walk(item, hint, f"{role}.{number}") for number, item in enumerate(value)]
        if isinstance(value, str) and (Path in _flatten(hint) or _is_existing_path(value)):
            if not _exists(value):
                missing.append(f"  {role.replace('init_args.', '')}: {value} does not exist.")
            inputs[role] = Path(value)
            return "input"
        return value

    settings: dict[str, Any] = walk(json.loads(config), None, "")
    if missing:
        raise DataError("\n".join(["Files are missing:", *missing, "A relative path starts where the command is run."]))
    return settings, inputs


def _hints_of(value: dict[str, Any], hint: Any) -> Hints:
    """Return the annotations of a dictionary's keys; empty for a plain mapping."""
    if isinstance(class_path := value.get("class_path"), str):
        module, _, name = class_path.rpartition(".")
        return {"init_args": _constructor_hints(getattr(import_module(module), name))}
    if isinstance(hint, dict):
        return hint
    return next((get_type_hints(part) for part in _flatten(hint) if is_dataclass(part)), {})


def _constructor_hints(kind: type) -> Hints:
    """Return the annotations of a constructor and, for its `**settings`, of those of its bases."""
    hints: Hints = {}
    for base in reversed(kind.__mro__):
        try:
            hints |= get_type_hints(base.__init__)  # type: ignore[misc]
        except NameError:  # imports for type checkers only, in a class of another package
            continue
    return hints


def _flatten(hint: Any) -> list[Any]:
    """Return an annotation and all its arguments, at any depth."""
    return [hint, *(part for argument in get_args(hint) for part in _flatten(argument))]


def _is_existing_path(value: str) -> bool:
    return ("/" in value or bool(Path(value).suffix)) and _exists(value)


def _exists(value: str) -> bool:
    return len(value) < 4096 and Path(value).exists()
