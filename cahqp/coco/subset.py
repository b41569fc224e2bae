"""COCO documents of chosen images, and copies of their files: the form in which stages pass frames on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cahqp.errors import DataError
from cahqp.files import sync_directory, writing

Image = dict[str, Any]


def camera_of(image: Image) -> str:
    """Return an image's camera, by default its recording."""
    return str(image.get("camera") or recording_of_image(image))


def recording_of_image(image: Image) -> str:
    """Return an image's recording, by default its camera, else the folder of its file."""
    named = image.get("recording") or image.get("camera") or str(image["file_name"]).rpartition("/")[0]
    return str(named or "recording")


def build_document(
    images: Iterable[Image], boxes: Iterable[dict[str, Any]], categories: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return a COCO document whose images and boxes are numbered from 1.

    Args:
        images: Each with the id that its boxes refer to.
        boxes: Annotations; those of other images are left out.
        categories: Unchanged.
    """
    numbers: dict[int, int] = {}
    numbered = []
    for number, image in enumerate(images, 1):
        numbers[image["id"]] = number
        numbered.append({**image, "id": number})
    kept = [box for box in boxes if box["image_id"] in numbers]
    annotations = [{**box, "id": i, "image_id": numbers[box["image_id"]]} for i, box in enumerate(kept, 1)]
    return {"images": numbered, "annotations": annotations, "categories": categories}


def copy_file(source: Path, target: Path, link: bool = False) -> None:
    """Copy a file to `target`, whole or not at all.

    Args:
        source: The file.
        target: Path of the copy.
        link: Make a hard link where possible, for files of finished runs, which do not change.

    Raises:
        DataError: `source` does not exist.
        RunError: The disk is full, or `target` cannot be written.
    """
    if not source.is_file():
        message = f"{source} is missing. Restore the frames to where they were when they were labelled or measured."
        raise DataError(message)
    temporary = target.with_name(f".{target.name}.tmp")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        try:
            if not (link and _link(source.resolve(), temporary)):
                shutil.copyfile(source, temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(target.parent)


def _link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        return False
    return True
