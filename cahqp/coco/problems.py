"""Collection of the problems of one file, raised as one error."""

from __future__ import annotations

from pathlib import Path

from cahqp.errors import DataError

_LISTED = 20
_REMEDY = "Fix these rows, or remove them from the file."


class Problems:
    """Problems of one file, each with its row.

    Args:
        path: File named in the error.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[str] = []

    def add(self, where: str, problem: str) -> None:
        """Note a problem.

        Args:
            where: Row, such as `annotations[17]`.
            problem: Value given and value allowed.
        """
        self._lines.append(f"  {where}: {problem}")

    def check(self) -> None:
        """Raise all problems noted so far.

        Raises:
            DataError: There is at least one; the first 20 are listed, the rest counted.
        """
        if not self._lines:
            return
        count = len(self._lines)
        more = [f"  ... and {count - _LISTED} more"] if count > _LISTED else []
        head = f"{self._path} has {count} problem{'s' if count > 1 else ''}:"
        raise DataError("\n".join([head, *self._lines[:_LISTED], *more, _REMEDY]))
