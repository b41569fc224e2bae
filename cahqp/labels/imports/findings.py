"""Counts of what an import dropped, changed or noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from cahqp.coco.problems import Problems

_EXAMPLES = 10
_REMEDY = "Fix these rows, or leave them out with --on-invalid drop."


class Findings:
    """Invalid, left out and odd rows by kind.

    Args:
        path: Source named in the error.
        on_invalid: Whether `check` refuses invalid rows.
    """

    def __init__(self, path: Path, on_invalid: Literal["refuse", "drop"]) -> None:
        self._problems = Problems(path, _REMEDY)
        self._on_invalid = on_invalid
        self._kinds: dict[str, dict[str, dict[str, Any]]] = {"invalid": {}, "left_out": {}, "odd": {}}

    def invalid(self, kind: str, where: str, detail: str = "") -> None:
        """Note a row that cannot be used, and is dropped or refused."""
        self._problems.add(where, f"{kind}{detail and f' ({detail})'}")
        self._add("invalid", kind, where)

    def left_out(self, kind: str, where: str) -> None:
        """Note a valid row that the options or the format leave out."""
        self._add("left_out", kind, where)

    def odd(self, kind: str, where: str) -> None:
        """Note an unusual row that is kept."""
        self._add("odd", kind, where)

    def _add(self, group: str, kind: str, where: str) -> None:
        entry = self._kinds[group].setdefault(kind, {"count": 0, "examples": []})
        entry["count"] += 1
        if entry["count"] <= _EXAMPLES:
            entry["examples"].append(where)

    def check(self) -> None:
        """Refuse invalid rows, unless they are dropped.

        Raises:
            DataError: There are invalid rows.
        """
        if self._on_invalid == "refuse":
            self._problems.check()

    def as_dict(self) -> dict[str, Any]:
        """Return counts and examples by group and kind."""
        return {group: dict(sorted(kinds.items())) for group, kinds in self._kinds.items()}

    def lines(self) -> list[str]:
        """Return one line for each kind."""
        heads = {"invalid": "dropped", "left_out": "left out", "odd": "kept"}
        return [
            f"  {heads[group]}: {entry['count']} x {kind}, such as {entry['examples'][0]}"
            for group, kinds in self.as_dict().items()
            for kind, entry in kinds.items()
        ]
