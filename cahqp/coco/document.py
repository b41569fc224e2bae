"""JSON documents made by other programs, and their rows, which report their own problems."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cahqp.coco.problems import Problems
from cahqp.coco.sources import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from cahqp.coco.values import as_flag, as_integer, as_number
from cahqp.errors import DataError
from cahqp.files import MAX_TABLE_BYTES, read_limited
from cahqp.json_policy import parse_json


def read_external(path: Path) -> Any:
    """Return the value in a JSON file of another program, by `cahqp.json_policy`.

    Raises:
        DataError: The file is missing, unreadable or not JSON, or repeats a key.
    """
    try:
        return parse_json(read_limited(Path(path), MAX_TABLE_BYTES), finite=False)
    except OSError as error:
        message = f"{path} cannot be read ({error.strerror}). Relative paths start in the working directory."
        raise DataError(message) from error
    except ValueError as error:
        if Path(path).suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
            message = f"{path} is an image or a video, and labels are expected. Give a JSON file, such as a COCO file."
            raise DataError(message) from error
        message = f"{path} is not readable JSON ({error}). Write it again, or restore it from a copy."
        raise DataError(message) from error


def read_document(path: Path, lists: Sequence[str] = ()) -> dict[str, Any]:
    """Return the JSON object in a file, by `cahqp.json_policy`; a reader checks the numbers of its rows.

    Args:
        path: JSON file.
        lists: Keys that must contain lists.

    Raises:
        DataError: The file is missing, unreadable or not JSON, repeats a key, is not an object, or lacks a list.
    """
    document = read_external(path)
    if not isinstance(document, dict):
        message = f"{path} contains a JSON {type(document).__name__}, but a COCO file is an object with `images`."
        raise DataError(message)
    missing = [key for key in lists if not isinstance(document.get(key), list)]
    if missing:
        message = f"{path} is not a COCO file: it has no list of {', '.join(missing)}. Give a COCO file."
        raise DataError(message)
    return document


class Row:
    """Object in a list of a document.

    Args:
        where: Name of the row in messages, such as `images[3]`.
        entry: The JSON object.
        problems: Collects the row's problems.
    """

    __slots__ = ("_problems", "entry", "where")

    def __init__(self, where: str, entry: dict[str, Any], problems: Problems) -> None:
        self.where = where
        self.entry = entry
        self._problems = problems

    def add_problem(self, problem: str) -> None:
        """Note a problem of this row."""
        self._problems.add(self.where, problem)

    def has(self, key: str) -> bool:
        """Return whether a key exists and is not null."""
        return self.entry.get(key) is not None

    def integer(self, key: str) -> int | None:
        """Return a whole number, also one written as 3.0; note any other value as a problem and return `None`."""
        value = as_integer(self.entry.get(key))
        if value is None:
            large = type(self.entry.get(key)) is int
            self._refuse(key, "a whole number of at most 64 bits" if large else "a whole number")
        return value

    def flag(self, key: str) -> bool:
        """Return a flag, false for a missing key; note any other value than 0, 1, true and false as a problem."""
        if not self.has(key):
            return False
        value = as_flag(self.entry[key])
        if value is None:
            self._refuse(key, "0 or 1")
        return bool(value)

    def text(self, key: str) -> str:
        """Return a non-empty text; note any other value as a problem and return an empty text."""
        value = self.entry.get(key)
        if isinstance(value, str) and value:
            return value
        self._refuse(key, "a text")
        return ""

    def number(self, key: str) -> float | None:
        """Return a finite number; note any other value as a problem and return `None`."""
        value = as_number(self.entry.get(key))
        if value is None:
            self._refuse(key, "a finite number")
        return value

    def share(self, key: str, required: bool = False) -> float | None:
        """Return a number in 0..1, or `None` for a missing key; note any other value as a problem.

        Args:
            key: Key of the value.
            required: Note a missing key as a problem.
        """
        if not (required or self.has(key)):
            return None
        value = self.number(key)
        if value is not None and not 0 <= value <= 1:
            self.add_problem(f"`{key}` must be in 0..1, got {value}")
        return value

    def _refuse(self, key: str, allowed: str) -> None:
        value = self.entry.get(key)
        given = f"lacks `{key}`, {allowed}" if value is None else f"`{key}` must be {allowed}, not {str(value)[:60]!r}"
        self.add_problem(given)


def rows(document: dict[str, Any], key: str, problems: Problems) -> Iterator[Row]:
    """Yield the objects in a list of the document.

    Args:
        document: Result of `read_document`.
        key: Name of the list.
        problems: Collects a missing list and entries that are not objects.
    """
    entries = document.get(key)
    if not isinstance(entries, list):
        problems.add(key, "is missing" if entries is None else "is not a list")
        return
    for position, entry in enumerate(entries):
        row = Row(f"{key}[{position}]", entry, problems)
        if not isinstance(entry, dict):
            row.add_problem("is not an object")
            continue
        yield row


def identified(document: dict[str, Any], key: str, problems: Problems) -> Iterator[tuple[Row, int | None]]:
    """Yield the rows of a list with their ids; note missing and repeated ids as problems.

    Args:
        document: Result of `read_document`.
        key: Name of the list.
        problems: Collects the problems of the list.
    """
    owners: dict[int, str] = {}
    for row in rows(document, key, problems):
        identifier = row.integer("id")
        if identifier is not None and owners.setdefault(identifier, row.where) != row.where:
            row.add_problem(f"id {identifier} is already that of {owners[identifier]}")
        yield row, identifier
