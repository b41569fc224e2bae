"""The command lines of this room, and those of the gate and the registry, which take lists in the same way."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from jsonargparse import auto_cli


def export(arguments: list[str]) -> None:
    """Run `cahqp export`."""
    from cahqp.edge.export.command import export as command

    given = with_lists(arguments[1:], ("frames", "calibration", "labelled", "frame_size"))
    auto_cli(command, args=given, exit_on_error=False, prog="cahqp export", as_positional=False)


def detect(arguments: list[str]) -> None:
    """Run `cahqp detect`."""
    from cahqp.edge.detect import detect as command

    given = with_lists(arguments[1:], ("providers",))
    auto_cli(command, args=given, exit_on_error=False, prog="cahqp detect", as_positional=False)


def keygen(arguments: list[str]) -> None:
    """Run `cahqp keygen`."""
    from cahqp.edge.signing import keygen as command

    auto_cli(command, args=arguments[1:], exit_on_error=False, prog="cahqp keygen", as_positional=False)


def gate(arguments: list[str]) -> None:
    """Run `cahqp gate`."""
    from cahqp.gate.command import gate as command

    given = with_lists(arguments[1:], ("source", "replay", "canary"))
    auto_cli(command, args=given, exit_on_error=False, prog="cahqp gate", as_positional=False)


def benchmark_gate(arguments: list[str]) -> None:
    """Run `cahqp benchmark gate`."""
    from cahqp.benchmarks.gate import gate as command

    auto_cli(command, args=arguments[1:], exit_on_error=False, prog="cahqp benchmark gate", as_positional=False)


def registry(arguments: list[str]) -> None:
    """Run `cahqp registry list|show|promote|rollback|verify|gc|push`."""
    from cahqp.registry import command as door

    commands: dict[str, Any] = {
        "list": door.list_versions, "show": door.show, "promote": door.promote, "rollback": door.rollback,
        "verify": door.verify, "gc": door.gc, "push": door.push,
    }  # fmt: skip
    given = with_lists(arguments[1:], ("parents", "data"))
    auto_cli(commands, args=given, exit_on_error=False, prog="cahqp registry", as_positional=False)


def with_lists(arguments: list[str], names: Collection[str]) -> list[str]:
    """Return the arguments with `--name A B` as the JSON list that the parser wants where a list is optional.

    Args:
        arguments: What was typed.
        names: Options that take lists.
    """
    out: list[str] = []
    values: list[str] | None = None
    numbers = False
    for text in [*arguments, "--"]:
        if text.startswith("--"):
            if values is not None:
                out[-1] += f"={_as_list(values, numbers)}"
            name, sign, value = text.removeprefix("--").partition("=")
            values = ([value] if sign else []) if name in names else None
            numbers = name == "frame_size"  # a folder may be called 20240105, and is a text still
            out.append(f"--{name}" if name in names else text)
        elif values is None:
            out.append(text)
        else:
            values.append(text)
    return out[:-1]


def _as_list(values: list[str], numbers: bool) -> str:
    if len(values) == 1 and values[0].startswith("["):
        return values[0]
    return json.dumps([int(value) if numbers and value.isdecimal() else value for value in values])
