"""From a command line to a function's arguments, for commands that take several values after one flag."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docstring_parser
import yaml
from jsonargparse import ArgumentParser

from cahqp.errors import ConfigError


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


def check_configs(arguments: list[str]) -> None:
    """Refuse config files that are no YAML; jsonargparse would not say which of them it is.

    Raises:
        ConfigError: One cannot be read.
    """
    split = [part for text in arguments for part in (text.split("=", 1) if text.startswith("--config=") else [text])]
    for flag, value in itertools.pairwise(split):
        if flag in ("--config", "-c") and Path(value).is_file():
            try:
                yaml.safe_load(Path(value).read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
                message = f"{value} is not readable YAML: {error}"
                raise ConfigError(message) from error


def with_flags(arguments: list[str], flags: tuple[str, ...]) -> list[str]:
    """Return the arguments with the bare ones among them, in order, named by `flags`; all options take a value."""
    left, found, value = list(flags), [], False
    for text in arguments:
        if not text.startswith("-") and not value and left:
            found.append(left.pop(0))
        value = text.startswith("--") and "=" not in text and text != "--help"
        found.append(text)
    return found


def switched(arguments: list[str], *names: str) -> list[str]:
    """Return the arguments with `--name` as `--name=true` where no value follows it."""
    following = [*arguments[1:], ""]
    return [
        f"{text}=true" if text in names and after.lower() not in ("true", "false") else text
        for text, after in zip(arguments, following, strict=True)
    ]
