"""Typed reader of JSON files that others may have written: limits on size, depth and values, and no traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cahqp import json_policy
from cahqp.errors import CahqpError, RunError
from cahqp.files import MAX_BYTES, read_limited

MAX_DEPTH = 32

Sha256 = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
Share = Annotated[float, Field(ge=0, le=1)]
Difference = Annotated[float, Field(ge=-1, le=1)]
Text = Annotated[str, Field(max_length=100_000)]
Name = Annotated[str, Field(min_length=1, max_length=255)]
FileName = Annotated[str, Field(min_length=1, max_length=4096)]


class Record(BaseModel):
    """Base class of typed JSON objects. Types are strict, numbers are finite, further keys are kept."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", allow_inf_nan=False)


Kind = TypeVar("Kind", bound=Record)


def read_record(
    path: Path, kind: type[Kind], remedy: str, error: type[CahqpError] = RunError, limit: int = MAX_BYTES
) -> Kind:  # fmt: skip
    """Read a JSON object of a known type.

    Args:
        path: File to read.
        kind: Type of the object.
        remedy: Sentence that ends the error message.
        error: Class of the error.
        limit: Largest size in bytes.

    Raises:
        CahqpError: The file cannot be read, is too large, or does not contain such an object. Its class is `error`.
    """
    try:
        data = read_limited(path, limit)
    except OSError as problem:
        message = f"{path} cannot be read ({problem.strerror}). {remedy}"
        raise error(message) from problem
    return parse_record(data, path, kind, remedy, error)


def parse_record(
    data: bytes, path: Path, kind: type[Kind], remedy: str, error: type[CahqpError] = RunError
) -> Kind:  # fmt: skip
    """Return the JSON object in the bytes of a file; the arguments are those of `read_record`.

    Raises:
        CahqpError: The bytes do not contain such an object.
    """
    try:
        return kind.model_validate(parse_json(data))
    except ValidationError as problem:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'content'}: {fault['msg']}" for fault in problem.errors()[:5]
        )
        message = f"{path} has invalid entries ({faults[:500]}). {remedy}"
        raise error(message) from problem
    except ValueError as problem:
        message = f"{path} is not readable JSON ({str(problem)[:200]}). {remedy}"
        raise error(message) from problem


def parse_json(data: bytes) -> Any:
    """Return the value in UTF-8 JSON by `cahqp.json_policy`, without NaN and at most `MAX_DEPTH` levels deep.

    Raises:
        ValueError: The text is anything else.
    """
    value = json_policy.parse_json(data)
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            message = f"it is nested deeper than {MAX_DEPTH} levels"
            raise ValueError(message)
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
    return value
