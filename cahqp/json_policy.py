"""JSON policy for files that other programs may have written, so that no two readers see different content."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

_MAX_LISTED = 5  # repeated keys in a message
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # in pairs, they stand for characters such as emoji


class _Repeated(dict[str, Any]):
    """JSON object with repeated keys; contains the last value of each.

    Attributes:
        key: First repeated key.
    """

    key: str


def parse_json(data: bytes, finite: bool = True) -> Any:
    """Return the value in UTF-8 JSON. A byte order mark is skipped.

    Args:
        data: Content of the file.
        finite: Refuse NaN, infinity and numbers beyond the range of a float.

    Raises:
        ValueError: It is not JSON, is nested too deeply for Python, an object repeats a key, or a text contains half of
            a surrogate pair, which UTF-8 cannot write again.
    """
    numbers: dict[str, Any] = {"parse_constant": _refuse, "parse_float": _finite} if finite else {}
    marked: list[_Repeated] = []

    def build(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        plain = dict(pairs)
        if len(plain) == len(pairs):
            return plain
        keys = [key for key, _ in pairs]
        marked.append(_Repeated(plain))
        marked[-1].key = next(key for number, key in enumerate(keys) if key in keys[:number])
        return marked[-1]

    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=build, **numbers)
        places = list(_repeated(value)) if marked else []
    except RecursionError as error:
        message = "it is nested too deeply"
        raise ValueError(message) from error
    if marked:
        # An object inside the dropped value of a repeated key has no place in the result.
        lines = [f"{place}key {key!r} occurs more than once" for place, key in places[:_MAX_LISTED]]
        more = [f"{len(marked) - len(lines)} more"] if len(marked) > len(lines) else []
        raise ValueError("; ".join([*lines, *more]))
    if _SURROGATE.search(data):
        json.dumps(value, ensure_ascii=False).encode()  # UnicodeEncodeError is a ValueError
    return value


def _repeated(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield place and key of each object with a repeated key."""
    if isinstance(value, _Repeated):
        yield (f"{place}: " if place else ""), value.key
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _repeated(child, f"{place}.{key}" if place else key)
    if isinstance(value, list):
        for position, child in enumerate(value):
            yield from _repeated(child, f"{place}[{position}]")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _refuse(text: str) -> NoReturn:
    message = f"{text[:20]} is not a finite number"
    raise ValueError(message)
