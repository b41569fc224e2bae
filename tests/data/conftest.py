import json
from pathlib import Path

import pytest


@pytest.fixture
def image_of():
    """Return the image file at a position of a file that `write_coco` wrote."""

    def find(path: Path, position: int) -> Path:
        entry = json.loads(path.read_text())["images"][position]
        return path.parent / "images" / entry["file_name"]

    return find
