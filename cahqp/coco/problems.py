"""Problems of one file, collected and told together."""

from __future__ import annotations

from pathlib import Path

from cahqp.errors import DataError

_SHOWN = 20


class Problems:
    """What is wrong with one file, row by row.

    Args:
        path: The file that every message names.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: list[tuple[str, str]] = []

    def __len__(self) -> int:
        """Return the number of problems so far."""
        return len(self._found)

    def add(self, where: str, what: str) -> None:
        """Note a problem.

        Args:
            where: The row, such as `annotations[17]`.
            what: What is wrong there and what would be right.
        """
        self._found.append((where, what))

    def tell(self, remedy: str) -> None:
        """Raise everything noted as one error, if there is anything.

        Args:
            remedy: What to do about it.

        Raises:
            DataError: There is a problem; the first 20 are listed, the rest counted.
        """
        if not self._found:
            return
        count = len(self._found)
        lines = [f"{self._path} has {count} problem{'s' if count > 1 else ''}:"]
        lines += [f"  {where}: {what}" for where, what in self._found[:_SHOWN]]
        if count > _SHOWN:
            lines.append(f"  ... and {count - _SHOWN} more")
        lines.append(remedy)
        raise DataError("\n".join(lines))
