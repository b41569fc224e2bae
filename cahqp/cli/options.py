"""Command lines built from option dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
import types
import typing
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import docstring_parser
import yaml
from jsonargparse import ActionYesNo, ArgumentParser
from jsonargparse.typing import register_type

from cahqp.errors import ConfigError, option
from cahqp.yaml_policy import read_yaml


def _path(text: str) -> Path:
    """Return a path. `Path("")` would be the working directory.

    Raises:
        ValueError: The text is empty.
    """
    if not str(text).strip():
        message = "it is empty; give a path, such as `.` for the working directory"
        raise ValueError(message)
    return Path(text)


register_type(Path, str, _path, type_check=isinstance)  # for every path of every command, training included


def parse(
    options: type[Any], arguments: Sequence[str], prog: str, description: str = "", positional: Sequence[str] = ()
) -> Any:
    """Return an options dataclass filled from a command line.

    A list takes several values after one flag, a boolean is a flag (`--draw`, `--no-draw`), and `--config` reads a YAML
    file with any of the options. Options have dashes; keys of the YAML file, and dotted options, have underscores.

    Args:
        options: The dataclass; the `Attributes` of its docstring are the help.
        arguments: The command line after the command's name.
        prog: Name of the command in help and errors.
        description: First line of the help.
        positional: Fields that may be given without their flag, in this order.

    Raises:
        ArgumentError: An option is unknown, missing or of a wrong type.
        ConfigError: A config is not YAML, or the values contradict each other.
    """
    check_configs(arguments)
    fields = dataclasses.fields(options)
    parser = _build_parser(options, prog, description)
    _check_lists(arguments, options)
    tokens = _join_tuples(_name_positionals(arguments, positional), options)
    try:
        values = parser.instantiate(parser.parse_args(tokens))
    except ArgumentError as error:
        raise _explained(error, _spellings(parser)) from error
    empty = [option(field.name) for field in fields if _is_empty(values[field.name])]
    if empty:
        message = f"{', '.join(empty)}: a value is empty. Give a value, or leave the option out."
        raise ConfigError(message)
    return options(**{field.name: values[field.name] for field in fields})


def _is_empty(value: Any) -> bool:
    return "" in value if isinstance(value, list) else isinstance(value, str) and value == ""


def check_configs(arguments: Sequence[str]) -> None:
    """Refuse config files that are not YAML; jsonargparse's message would not name the file.

    Raises:
        ConfigError: A file cannot be read.
    """
    tokens = [part for text in arguments for part in (text.split("=", 1) if text.startswith("--config=") else [text])]
    for flag, value in itertools.pairwise(tokens):
        if flag in ("--config", "-c") and Path(value).is_file():
            try:
                read_yaml(Path(value))
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
                message = f"{value} is not readable YAML: {error}"
                raise ConfigError(message) from error


def _build_parser(options: type[Any], prog: str, description: str) -> ArgumentParser:
    parser = ArgumentParser(prog=prog, exit_on_error=False, description=description, print_config="--print-%s")
    parser.add_argument("--config", action="config", help="YAML file with any of these options.")
    hints = typing.get_type_hints(options)
    documented = [docstring_parser.parse(kind.__doc__ or "").params for kind in reversed(options.__mro__)]
    help_texts = {entry.arg_name: entry.description or "" for entries in documented for entry in entries}
    for field in dataclasses.fields(options):
        settings: dict[str, Any] = {"type": hints[field.name], "help": help_texts.get(field.name, "")}
        if hints[field.name] is bool:
            settings = {"action": ActionYesNo(no_prefix="no-"), "help": settings["help"]}
        elif (item := _list_item(hints[field.name])) is not None:
            settings |= {"nargs": "+", "type": item}
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        required = default is dataclasses.MISSING
        settings |= {"required": True} if required else {"default": default}
        parser.add_argument(option(field.name), **settings)
    return parser


def _list_item(hint: Any) -> Any:
    """Return the element type of `list[T]` or `list[T] | None`; `None` for other types."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    lists = [option for option in options if typing.get_origin(option) is list]
    return typing.get_args(lists[0])[0] if lists else None


def _check_lists(arguments: Sequence[str], options: type[Any]) -> None:
    """Refuse a list that is given twice, since the parser would drop the values of the first.

    Raises:
        ConfigError: A flag of a list, or an abbreviation of it, occurs more than once.
    """
    hints = {option(name): hint for name, hint in typing.get_type_hints(options).items()}
    flags = [text.partition("=")[0] for text in arguments if text.startswith("--")]
    lists = [name for name, hint in hints.items() if _list_item(hint) is not None]
    repeated = [
        name
        for name in lists
        if sum(flag == name or (flag not in hints and name.startswith(flag)) for flag in flags) > 1
    ]
    if repeated:
        message = f"{repeated[0]} is given more than once. Give all its values after one flag: {repeated[0]} A B."
        raise ConfigError(message)


def _join_tuples(arguments: Sequence[str], options: type[Any]) -> list[str]:
    """Return the arguments with the values of tuples joined: `--size 720 1280` becomes `--size=[720,1280]`."""
    hints = typing.get_type_hints(options)
    lengths = {option(name): _tuple_length(hint) for name, hint in hints.items()}
    joined, rest = [], list(arguments)
    while rest:
        flag = rest.pop(0)
        values = list(itertools.takewhile(lambda text: not text.startswith("--"), rest))[: lengths.get(flag, 0)]
        if len(values) > 1:
            flag, rest = f"{flag}=[{','.join(values)}]", rest[len(values) :]
        joined.append(flag)
    return joined


def _tuple_length(hint: Any) -> int:
    """Return the length of `tuple[X, Y]` or `tuple[X, Y] | None`; 0 for other types."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    tuples = [option for option in options if typing.get_origin(option) is tuple]
    return len(typing.get_args(tuples[0])) if tuples else 0


def _name_positionals(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the arguments with a flag before each bare value; every option must take exactly one value."""
    left, named, is_value = list(names), [], False
    for text in arguments:
        if not text.startswith("-") and not is_value and left:
            named.append(option(left.pop(0)))
        is_value = text.startswith("--") and "=" not in text and text != "--help"
        named.append(text)
    return named


def _spellings(parser: ArgumentParser) -> list[str]:
    return [text for action in parser._actions for text in action.option_strings]


def _explained(error: ArgumentError, known: Sequence[str]) -> ArgumentError:
    """Return the error, with the closest option where one was misspelt, or the two forms of a flag."""
    if flag := re.match(r"argument (--\S+)/(--no-\S+): ignored explicit argument", str(error)):
        return ArgumentError(None, f"{flag[1]} takes no value. Give {flag[1]} or {flag[2]}.")
    if key := re.match(r'Parser key "(\w+)"', str(error)):
        return ArgumentError(None, str(error).replace(key[0], option(key[1]), 1))
    misspelt = re.search(r"nrecognized arguments: (--[^\s=]+)", str(error))
    close = difflib.get_close_matches(misspelt[1], known, n=1) if misspelt else []
    return ArgumentError(None, f"{error}. Did you mean {close[0]}?") if close else error
