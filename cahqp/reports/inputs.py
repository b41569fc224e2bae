"""Optional JSON files of a cycle, and helpers to list their content."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cahqp.files import MAX_TABLE_BYTES
from cahqp.records import Record, read_record
from cahqp.reports.records import RejectedRecord


def read_object(path: Path, kind: type[Record] = Record) -> dict[str, Any]:
    """Read a JSON object of a known type; return an empty one where the file is missing.

    Raises:
        RunError: The file has another content.
    """
    if not path.is_file():
        return {}
    remedy = "It was changed: rerun the command that wrote it."
    return read_record(path, kind, remedy, limit=MAX_TABLE_BYTES).model_dump(exclude_unset=True)


def read_rejected(directory: Path) -> list[dict[str, Any]]:
    """Return the rejected boxes of a relabelling as COCO annotations."""
    return list(read_object(directory / "rejected.json", RejectedRecord).get("annotations", []))


def count_reasons(boxes: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return the number of boxes by their `reason`, sorted by reason."""
    return dict(sorted(Counter(str(box.get("reason", "")) for box in boxes).items()))


def put_first(preferred: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return the distinct names: the preferred ones in their order, then the others."""
    distinct = dict.fromkeys(names)
    first = [name for name in preferred if name in distinct]
    return first + [name for name in distinct if name not in first]
