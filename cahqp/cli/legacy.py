"""Commands that are not yet built from an options dataclass."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection
from typing import Any

import docstring_parser
from jsonargparse import ArgumentParser, auto_cli

from cahqp.cli.options import check_configs


def run_with_lists(
    function: Callable[..., Any],
    arguments: list[str],
    lists: dict[str, type],
    optional: dict[str, Any] | None = None,
) -> None:
    """Run a command.

    Args:
        function: Does it; its signature says the options, its docstring the help.
        arguments: Of the command line, its name first.
        lists: Required options that take several values after one flag, as shells expand them.
        optional: The same, not required. Those that the function does not have are left out.
    """
    more = {name: kind for name, kind in (optional or {}).items() if name in inspect.signature(function).parameters}
    check_configs(arguments)
    parser = ArgumentParser(
        prog=f"cahqp {arguments[0]}", exit_on_error=False, description=(function.__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these options.")
    parser.add_function_arguments(function, skip={*lists, *more}, as_group=False)
    said = {p.arg_name: p.description for p in docstring_parser.parse(function.__doc__ or "").params}
    for name, kind in {**lists, **more}.items():
        text = said.get(name) or ""
        parser.add_argument(f"--{name}", nargs="+", type=kind, required=name in lists, default=None, help=text)
    given = parser.instantiate_classes(parser.parse_args(arguments[1:])).as_dict()
    given.pop("config", None)
    function(**given)


def switched(arguments: list[str], *names: str) -> list[str]:
    """Return the arguments with `--name` as `--name=true` where no value follows it."""
    following = [*arguments[1:], ""]
    return [
        f"{text}=true" if text in names and after.lower() not in ("true", "false") else text
        for text, after in zip(arguments, following, strict=True)
    ]


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
