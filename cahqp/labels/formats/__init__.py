"""Labels in the formats that people use, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cahqp.labels.formats import cvat, label_studio, yolo
from cahqp.labels.formats.coco import Labels, read_coco

Format = Literal["coco", "yolo", "cvat", "label-studio"]
WRITERS = {"yolo": yolo.write, "cvat": cvat.write, "label-studio": label_studio.write}


def write_format(labels: Path, kind: str, folder: Path) -> None:
    """Write a COCO file of labels in another format.

    Args:
        labels: The COCO file.
        kind: `yolo`, `cvat` or `label-studio`.
        folder: Where to.
    """
    WRITERS[kind](read_coco(labels), folder)


def read_format(path: Path, kind: Format, like: Labels | None) -> Labels:
    """Read labels of any format.

    Args:
        path: File or folder.
        kind: Its format.
        like: Labels with the same images, for a format that does not hold their sizes.
    """
    if kind == "coco":
        return read_coco(path)
    if kind == "cvat":
        return cvat.read(path)
    return yolo.read(path, like) if kind == "yolo" else label_studio.read(path)
