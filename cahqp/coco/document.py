"""Reading a JSON file from a stranger: what is wrong with it is said row by row, never guessed over."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cahqp.coco.problems import Problems
from cahqp.errors import DataError


class RepeatedKeys(dict[str, Any]):
    """A JSON object in which keys stand more than once; holds the last value of each, as `json` does."""

    repeated: list[str]


def read_document(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. A byte order mark is passed over; repeated keys are marked, not lost.

    Args:
        path: The file.

    Raises:
        DataError: The file is missing, unreadable, no JSON, or its top level is no object.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        document = json.loads(text, object_pairs_hook=_object)
    except OSError as error:
        message = f"{path} cannot be read ({error.strerror}). Relative paths start where the command is run."
        raise DataError(message) from error
    except (ValueError, RecursionError) as error:
        message = f"{path} is not readable JSON ({error}). Write it again, or restore it from a copy."
        raise DataError(message) from error
    if not isinstance(document, dict):
        message = f"{path} holds a JSON {type(document).__name__}, but a COCO file is an object with `images`."
        raise DataError(message)
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) == len(pairs):
        return plain
    marked = RepeatedKeys(plain)
    keys = [key for key, _ in pairs]
    marked.repeated = sorted({key for key in keys if keys.count(key) > 1})
    return marked


class Row:
    """One object in a list of a document, which notes what is wrong with it.

    Args:
        where: What the row is called in messages, such as `images[3]`.
        entry: The object.
        problems: Where problems are noted.
    """

    __slots__ = ("_problems", "entry", "where")

    def __init__(self, where: str, entry: dict[str, Any], problems: Problems) -> None:
        self.where = where
        self.entry = entry
        self._problems = problems

    def complain(self, what: str) -> None:
        """Note a problem of this row."""
        self._problems.add(self.where, what)

    def whole(self, key: str) -> int | None:
        """Return a whole number, also one written as 3.0; complain where it is something else or missing."""
        value = self.entry.get(key)
        if type(value) is int:
            return value
        if type(value) is float and value.is_integer():
            return int(value)
        self.complain(_wrong(key, value, "a whole number"))
        return None

    def text(self, key: str) -> str:
        """Return a text that is not empty; complain and return an empty one where it is something else or missing."""
        value = self.entry.get(key)
        if isinstance(value, str) and value:
            return value
        self.complain(_wrong(key, value, "a text"))
        return ""

    def number(self, key: str) -> float | None:
        """Return a finite number; complain where it is something else or missing."""
        value = self.entry.get(key)
        result = to_number(value)
        if result is None or not math.isfinite(result):
            self.complain(_wrong(key, value, "a finite number"))
            return None
        return result

    def has(self, key: str) -> bool:
        """Say whether a key is there and not null."""
        return self.entry.get(key) is not None


def _wrong(key: str, value: Any, wanted: str) -> str:
    return f"lacks `{key}`, {wanted}" if value is None else f"`{key}` must be {wanted}, not {str(value)[:60]!r}"


def to_number(value: Any) -> float | None:
    """Return a JSON number as a float, which may be NaN or infinite; `None` for anything else."""
    if type(value) is float:
        return value
    if type(value) is not int:
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def rows(document: dict[str, Any], key: str, problems: Problems) -> Iterator[Row]:
    """Go through the objects in a list of the document.

    Args:
        document: What `read_document` returned.
        key: The list's name.
        problems: Notes a list that is missing or repeated, and entries that are no objects or repeat a key.
    """
    if isinstance(document, RepeatedKeys) and key in document.repeated:
        problems.add(key, "stands more than once; keep one of them")
    entries = document.get(key)
    if not isinstance(entries, list):
        problems.add(key, "is missing" if entries is None else "is not a list")
        return
    for position, entry in enumerate(entries):
        row = Row(f"{key}[{position}]", entry, problems)
        if not isinstance(entry, dict):
            row.complain("is not an object")
            continue
        if isinstance(entry, RepeatedKeys):
            row.complain(f"key {entry.repeated[0]!r} stands more than once")
        yield row


def read_categories(document: dict[str, Any], problems: Problems) -> dict[int, str]:
    """Return the names of a document's categories by id, and note what is wrong with them."""
    categories: dict[int, str] = {}
    for row in rows(document, "categories", problems):
        identifier, name = row.whole("id"), row.text("name")
        if identifier is None:
            continue
        if identifier in categories:
            row.complain(f"id {identifier} is already that of {categories[identifier]!r}")
        if name and name in categories.values():
            row.complain(f"name {name!r} is already that of another category")
        categories.setdefault(identifier, name)
    return categories
