"""The commands that the cycle's own stages are: what they read stands in files, so none but `features` needs torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import docstring_parser
from jsonargparse import ArgumentParser


def features(arguments: list[str]) -> None:
    """Run `cahqp features`."""
    from cahqp.training.features import features as command

    _run(command, arguments, {"frames": Path})


def drift(arguments: list[str]) -> None:
    """Run `cahqp drift`."""
    from cahqp.cycle.drift import drift as command

    _run(command, arguments, {"reference": str, "frames": Path})


def sample(arguments: list[str]) -> None:
    """Run `cahqp sample`."""
    from cahqp.cycle.sample import sample as command

    _run(command, arguments, {"features": Path}, {"cameras": str, "known": Path})


def fetch(arguments: list[str]) -> None:
    """Run `cahqp fetch`."""
    from cahqp.cycle.fetch import fetch as command

    _run(command, arguments, {}, {"after": Path})


def remember(arguments: list[str]) -> None:
    """Run `cahqp remember`."""
    from cahqp.cycle.replay import remember as command

    _run(command, arguments, {}, {})


def adopt(arguments: list[str]) -> None:
    """Run `cahqp adopt`."""
    from cahqp.cycle.adopt import adopt as command

    _run(command, arguments, {}, {})


def _run(
    function: Callable[..., Any], arguments: list[str], lists: dict[str, type], others: dict[str, type] | None = None
) -> None:
    """Run a command.

    Args:
        function: Does it; its signature says the options.
        arguments: Of the command line, its name first.
        lists: Required options that take several values after one flag, as shells expand them.
        others: The same, not required.
    """
    others = others or {}
    parser = ArgumentParser(
        prog=f"cahqp {arguments[0]}", exit_on_error=False, description=(function.__doc__ or "").partition("\n")[0]
    )
    parser.add_function_arguments(function, skip={*lists, *others}, as_group=False)
    said = {p.arg_name: p.description for p in docstring_parser.parse(function.__doc__ or "").params}
    for name, kind in {**lists, **others}.items():
        given = {"required": True} if name in lists else {"default": None}
        parser.add_argument(f"--{name}", nargs="+", type=kind, help=said.get(name) or "", **given)
    function(**parser.parse_args(arguments[1:]).as_dict())
