"""Option dataclasses as command lines of subprocess stages."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from cahqp.errors import option


def flags(options: Any, prefix: str = "", kind: type[Any] | None = None) -> list[str]:
    """Return the command line of a dataclass: its fields that differ from their defaults.

    A boolean becomes `--name` or `--no-name`, a list `--name A B`, a nested dataclass `--outer.name=value`.

    Args:
        options: An instance of a dataclass of options.
        prefix: Path of the dataclass within its command's options, such as `soft_store.`.
        kind: Base class of the options whose fields and defaults count. Default: their own class.
    """
    arguments: list[str] = []
    for field in dataclasses.fields(kind or options):
        value, name = getattr(options, field.name), option(prefix + field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if value is None or value == default:
            continue
        if isinstance(value, bool) and not prefix:
            arguments.append(name if value else option(f"no_{field.name}"))
        elif dataclasses.is_dataclass(value):
            arguments += flags(value, f"{prefix}{field.name}.")
        elif isinstance(value, list):
            arguments += [name, *map(str, value)] if value else []
        else:
            arguments.append(f"{name}={json.dumps(value) if isinstance(value, bool | tuple) else value}")
    return arguments
