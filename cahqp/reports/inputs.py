"""Optional JSON files of a cycle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cahqp.files import read_json


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; return an empty one where the file is missing."""
    return dict(read_json(path)) if path.is_file() else {}
