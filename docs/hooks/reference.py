"""Reference pages: commands, config keys and plan keys as Markdown, made from the code that defines them."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

import docstring_parser

from cahqp.cli.commands import COMMANDS, Command, load_object
from cahqp.cli.training import COMMON
from cahqp.errors import option

_NONE = type(None)


def command_pages() -> dict[str, str]:
    """Return a page for each group of commands, by file name below `reference/`."""
    groups = dict.fromkeys(command.group for command in COMMANDS.values())
    return {f"{slug(group)}.md": _group_page(group) for group in groups}


def index_page() -> str:
    """Return the list of all commands."""
    lines = [
        "# Commands",
        "",
        "For users of the command line. These pages are made from the code of this version; "
        "`cahqp COMMAND --help` prints the same options.",
        "",
        "- Options have dashes; keys of `--config` files have underscores.",
        "- A list takes several values after one flag: `--frames A B`.",
        "- A boolean is a flag: `--draw`, `--no-draw`.",
        "- Every command takes `--help`, `--quiet` (warnings and errors) and `--verbose` (log and tracebacks too).",
        "",
        "| command | task |",
        "|---|---|",
    ]
    for name, command in COMMANDS.items():
        lines.append(f"| [`cahqp {name}`]({slug(command.group)}.md#{slug('cahqp ' + name)}) | {command.help} |")
    return "\n".join([*lines, ""])


def slug(text: str) -> str:
    """Return the anchor that a heading gets."""
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-")


def _group_page(group: str) -> str:
    parts = [f"# {group}", ""]
    for name, command in COMMANDS.items():
        if command.group == group:
            parts += [f"## cahqp {name}", "", *_command(name, command), ""]
    return "\n".join(parts)


def _command(name: str, command: Command) -> Iterator[str]:
    yield f"{command.help[0].upper()}{command.help[1:]}."
    yield ""
    if command.options is None:
        yield from _training(name)
        return
    options = load_object(command.options)
    fields = dataclasses.fields(options)
    positional = "".join(f" {field.upper()}" for field in command.positional)
    required = "".join(
        f" {option(field.name)} {field.name.upper()}"
        for field in fields
        if _default(field) is dataclasses.MISSING and field.name not in command.positional
    )
    yield f"```\ncahqp {name}{positional}{required} [options]\n```"
    yield ""
    yield from table(rows_of(options, option), "option")


def _training(name: str) -> Iterator[str]:
    yield f"```\ncahqp {name} --config FILE [--config FILE ...] [options]\n```"
    yield ""
    yield "Dotted options are [keys of a config](config.md) and are spelt like them."
    yield f"`cahqp {name} --help-all` lists all options, those of Lightning's Trainer included."
    for section, entries in COMMON.items():
        yield ""
        yield f"| {section.lower()} | meaning |"
        yield "|---|---|"
        for spelling, text in entries:
            yield f"| `{_cell(spelling)}` | {_cell(text)} |"


Row = tuple[str, str, str, str]
"""Name, type, default and meaning."""


def rows_of(options: type[Any], spell: Any = str) -> list[Row]:
    """Return a row for each field of a dataclass.

    Args:
        options: The dataclass.
        spell: Function from the name of a field to its spelling.
    """
    hints = typing.get_type_hints(options)
    texts = described(options)
    return [
        (spell(field.name), type_name(hints[field.name]), default_text(_default(field)), texts.get(field.name, ""))
        for field in dataclasses.fields(options)
    ]


def described(owner: type[Any]) -> dict[str, str]:
    """Return the documented fields or arguments of a class and of its bases."""
    documented = [docstring_parser.parse(kind.__doc__ or "").params for kind in reversed(owner.__mro__)]
    return {entry.arg_name: entry.description or "" for entries in documented for entry in entries}


def table(rows: Iterable[Row], title: str) -> Iterator[str]:
    """Return the lines of a table of settings."""
    yield f"| {title} | meaning | type | default |"
    yield "|---|---|---|---|"
    for name, kind, default, text in rows:
        yield f"| `{name}` | {_cell(text)} | {_cell(kind)} | {f'`{_cell(default)}`' if default else ''} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def default_text(value: Any) -> str:
    """Return a default as it stands in a config; empty for a required setting, and for one without a value."""
    if value in (dataclasses.MISSING, inspect.Parameter.empty, None) or dataclasses.is_dataclass(value):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(default_text, value))}]"
    return f"{value}"


def type_name(hint: Any) -> str:
    """Return a type in the words of a user."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_name(each) for each in arguments if each is not _NONE))
    if origin is tuple:
        return f"{len(arguments)} values ({type_name(arguments[0])})"
    if origin is dict or hint is dict:
        return f"map to {type_name(arguments[1])}" if arguments else "map"
    if getattr(origin, "__name__", "") in ("list", "Sequence"):
        return f"list ({type_name(arguments[0])})"
    return _PLAIN.get(getattr(hint, "__name__", ""), getattr(hint, "__name__", str(hint)))


_PLAIN = {"str": "text", "int": "integer", "float": "number", "bool": "flag", "Path": "path", "Any": "any value"}
