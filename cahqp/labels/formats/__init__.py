"""Label formats by name."""

from __future__ import annotations

from pathlib import Path

from cahqp.labels.formats import cvat, label_studio, yolo
from cahqp.labels.formats.coco import Labels, read_label_file
from cahqp.labels.formats.options import Format

WRITERS = {"yolo": yolo.write, "cvat": cvat.write, "label-studio": label_studio.write}


def write_format(labels: Path, kind: str, folder: Path) -> None:
    """Write a COCO file of labels in another format.

    Args:
        labels: COCO file.
        kind: `yolo`, `cvat` or `label-studio`.
        folder: Folder to write.
    """
    WRITERS[kind](read_label_file(labels), folder)


def read_format(path: Path, kind: Format, like: Labels | None) -> Labels:
    """Read labels of any format.

    Args:
        path: File or folder.
        kind: Format of the labels.
        like: Labels of the same images; YOLO needs them for image sizes.
    """
    if kind == "yolo":
        return yolo.read(path, like)
    readers = {"coco": read_label_file, "cvat": cvat.read, "label-studio": label_studio.read}
    return readers[kind](path)
