"""Plan files: YAML that pydantic validates into frozen dataclasses, with all errors in one message."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError, WrapValidator
from pydantic_core import ErrorDetails

from cahqp.errors import ConfigError
from cahqp.yaml_policy import read_yaml

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def _as_value_error(value: Any, validate: Any) -> Any:
    try:
        return validate(value)
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _check_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        message = f"must consist of letters, digits, `-`, `_` and `.`, got {value!r}."
        raise ValueError(message)
    return value


def _check_file(value: str) -> str:
    if not Path(value).is_file():
        message = f"{value} does not exist. Relative paths start at the working directory."
        raise ValueError(message)
    return value


Section = Annotated[T, WrapValidator(_as_value_error)]
"""A section whose dataclass checks itself in `__post_init__`: `--option` in its messages becomes the key path."""

Name = Annotated[str, AfterValidator(_check_name)]
"""A name that is also a directory's name."""

ExistingFile = Annotated[str, AfterValidator(_check_file)]
"""The path of a file."""


def parse(path: Path) -> dict[str, Any]:
    """Return the mapping in a plan file.

    Raises:
        ConfigError: The file is missing, not YAML, or not a mapping.
    """
    try:
        parsed = read_yaml(path)
    except FileNotFoundError as error:
        message = f"The plan {path} does not exist. Copy one from configs/."
        raise ConfigError(message) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        message = f"{path} is not readable YAML: {error}"
        raise ConfigError(message) from error
    if not isinstance(parsed, dict):
        message = f"{path} is not a plan: it must be a mapping of keys and values."
        raise ConfigError(message)
    return parsed


def check_folder(path: Path, values: Any) -> None:
    """Refuse a plan that is used in another folder than the one its relative paths start in.

    Args:
        path: The plan's file.
        values: Content of the plan.

    Raises:
        ConfigError: None of the files in the plan exist here, and they exist from a folder above the plan.
    """
    files = [text for text in _texts(values) if "://" not in text and Path(text).suffix and "/" in text]
    files = [text for text in files if not Path(text).is_absolute()]
    if not files or any(Path(text).exists() for text in files):
        return
    for folder in path.resolve().parents:
        if all((folder / text).exists() for text in files):
            message = (
                f"{path} names files such as {files[0]}, which do not exist here. Relative paths start in the working "
                f"directory. Run the command in the folder of the plan's paths:\n  cd {folder}"
            )
            raise ConfigError(message)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for child in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(child)


def validate(kind: type[T], values: Mapping[str, Any], path: Path) -> T:
    """Return a plan's values as a dataclass. Unknown keys are errors, and types are not converted.

    Validators receive `values` as `info.context`.

    Args:
        kind: Dataclass of the plan.
        values: Mapping from `parse`.
        path: The plan's file, for the message.

    Raises:
        ConfigError: Values are invalid. The message lists all of them with their key paths.
    """
    refuse(path, [f"{place} is empty. Give a value, or remove the key." for place in _empty(values, "")])
    # The configuration of the list reaches all plain dataclasses below it.
    adapter = TypeAdapter(list[kind], config=ConfigDict(extra="forbid", strict=True))  # type: ignore[valid-type]
    try:
        # Strict JSON accepts mappings for dataclasses and texts for paths and enums, and nothing else.
        plans: list[T] = adapter.validate_json(json.dumps([values], default=str), context=values)
    except ValidationError as error:
        refuse(path, [line for details in error.errors() for line in _describe(kind, details)])
        raise
    return plans[0]


def _empty(value: Any, place: str) -> Iterator[str]:
    """Yield the key of each empty text: as a path it would be the working directory."""
    if isinstance(value, str) and not value.strip():
        yield place
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from _empty(child, f"{place}.{key}" if place else str(key))
    if isinstance(value, list):
        for number, child in enumerate(value):
            yield from _empty(child, f"{place}[{number}]")


def refuse(path: Path, problems: Sequence[str]) -> None:
    """Raise one error for all problems of a plan.

    Raises:
        ConfigError: There are problems.
    """
    if problems:
        lines = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(problems, 1))
        message = f"{path} has {len(problems)} problem{'s' * (len(problems) > 1)}; nothing was started:\n{lines}"
        raise ConfigError(message)


def unknown(where: str, name: str, allowed: Iterable[str], what: str) -> str:
    """Return a message that `name` is not among `allowed`, with the nearest allowed name."""
    allowed = list(allowed)
    nearest = difflib.get_close_matches(name, allowed, n=1)
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    return f"{where} is not a known {what}.{hint} Allowed: {', '.join(allowed) or 'none'}."


def _describe(kind: Any, details: ErrorDetails) -> list[str]:
    """Return the lines of one pydantic error; the first part of its location is the position in the list."""
    *parents, last = details["loc"][1:] or ("plan",)
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in (*parents, last)).lstrip(".")
    if details["type"] == "unexpected_keyword_argument":
        return [unknown(where, str(last), _fields(kind, parents), "key")]
    if details["type"] in ("missing", "too_short"):
        return [f"{where} {'is missing' if details['type'] == 'missing' else 'must not be empty'}."]
    if details["type"] == "value_error":
        lines = str(details["ctx"]["error"]).splitlines()
        return [_as_keys(where, line) if "--" in line else _join(where, line) for line in lines]
    if details["type"] == "literal_error":
        choices = re.findall("'([^']*)'", details["ctx"]["expected"])
        return [unknown(f"{where}: {details['input']}", str(details["input"]), choices, "value")]
    text = details["msg"].replace("Input should", "must", 1).replace("an object", "a mapping").replace("array", "list")
    return [f"{where} {text}, got {details['input']!r}."]


def _as_keys(where: str, line: str) -> str:
    """Return a message about options as one about keys: `--nms-iou` becomes `relabel.nms_iou`."""
    return re.sub(r"--([a-z][\w-]*)", lambda option: f"{where}.{option[1].replace('-', '_')}", line)


def _join(where: str, line: str) -> str:
    return f"{where} {line}" if line.startswith("must ") else f"{where}: {line}"


def _fields(kind: Any, location: Sequence[int | str]) -> list[str]:
    """Return the field names of the dataclass at a location below `kind`."""
    for part in location:
        is_section = is_dataclass(_required(kind))
        kind = get_type_hints(_required(kind))[str(part)] if is_section else get_args(_required(kind))[-1]
    return [field.name for field in fields(_required(kind))]


def _required(kind: Any) -> Any:
    """Return X for a type `X | None`, else the type itself."""
    return get_args(kind)[0] if NoneType in get_args(kind) else kind
