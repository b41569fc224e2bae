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


def _run(function: Callable[..., Any], arguments: list[str], lists: dict[str, type]) -> None:
    """Run a command whose `lists` take several values after one flag, as shells expand them."""
    parser = ArgumentParser(
        prog=f"cahqp {arguments[0]}", exit_on_error=False, description=(function.__doc__ or "").partition("\n")[0]
    )
    parser.add_function_arguments(function, skip=set(lists), as_group=False)
    said = {p.arg_name: p.description for p in docstring_parser.parse(function.__doc__ or "").params}
    for name, kind in lists.items():
        parser.add_argument(f"--{name}", nargs="+", type=kind, required=True, help=said.get(name) or "")
    function(**parser.parse_args(arguments[1:]).as_dict())
