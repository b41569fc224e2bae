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
        remedy: Last line of the error.
    """

    def __init__(self, path: Path, remedy: str = _REMEDY) -> None:
        self._path = path
        self._remedy = remedy
        self._found: list[tuple[str, str]] = []

    def add(self, where: str, problem: str) -> None:
        """Note a problem.

        Args:
            where: Row, such as `annotations[17]`.
            problem: Value given and value allowed.
        """
        self._found.append((where, problem))

    def by_row(self) -> dict[str, str]:
        """Return the problems of each row in one text."""
        rows: dict[str, list[str]] = {}
        for where, problem in self._found:
            rows.setdefault(where, []).append(problem)
        return {where: "; ".join(found) for where, found in rows.items()}

    def check(self) -> None:
        """Raise all problems noted so far.

        Raises:
            DataError: There is at least one; the first 20 are listed, the rest counted.
        """
        if not self._found:
            return
        count = len(self._found)
        more = [f"  ... and {count - _LISTED} more"] if count > _LISTED else []
        head = f"{self._path} has {count} problem{'s' if count > 1 else ''}:"
        lines = [f"  {where}: {problem}" for where, problem in self._found[:_LISTED]]
        raise DataError("\n".join([head, *lines, *more, self._remedy]))
