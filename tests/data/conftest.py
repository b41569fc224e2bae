import json
from pathlib import Path

import cv2
import numpy as np
import pytest


@pytest.fixture
def write_coco(tmp_path):
    """Write a COCO file of small images, one car in each, and return its path.

    Each recording is a grey of its own, each frame a little brighter than the last; `change(document)` may break it.
    """

    def write(name="a", frames=4, recording="north", first=0, size=(24, 32), change=None, grey=50, suffix=".png"):
        folder = tmp_path / name
        images, annotations = [], []
        for number in range(frames):
            file_name = f"{recording}/{first + number:03d}{suffix}"
            path = folder / "images" / file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((*size, 3), (grey + 3 * (first + number)) % 256, np.uint8))
            entry = {"id": number + 1, "file_name": file_name, "height": size[0], "width": size[1]}
            images.append({**entry, "camera": recording, "frame": first + number})
            box = {"id": number + 1, "image_id": number + 1, "category_id": 7, "bbox": [4, 6, 10, 8]}
            annotations.append({**box, "area": 80, "iscrowd": 0})
        document = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "car"}]}
        if change is not None:
            change(document)
        path = folder / "annotations.json"
        path.write_text(json.dumps(document))
        return path

    return write


@pytest.fixture
def image_of():
    """Return the image file at a position of a file that `write_coco` wrote."""

    def find(path: Path, position: int) -> Path:
        entry = json.loads(path.read_text())["images"][position]
        return path.parent / "images" / entry["file_name"]

    return find
