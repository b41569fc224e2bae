"""COCO files of images that lie in files, read and written without a detector: what stages hand to each other."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cahqp.errors import DataError
from cahqp.files import read_json, sync_directory, writing

Image = dict[str, Any]


def read_coco(path: Path) -> dict[str, Any]:
    """Return a COCO document that has at least `images`.

    Raises:
        DataError: It has none.
    """
    document = read_json(path)
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        message = f"{path} is no COCO file: it has no `images`. Give what `cahqp relabel` or `cahqp fetch` wrote."
        raise DataError(message)
    return document


def folder_of(path: Path) -> Path:
    """Return the folder that a COCO file's names are relative to; the same rule as in `cahqp.coco.image_folder`."""
    said = path.parent / "source.json"
    if said.is_file():
        return path.parent / str(read_json(said)["root"])
    return path.parent / "images" if (path.parent / "images").is_dir() else path.parent


def boxes_of(document: dict[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """Return the annotations by image id."""
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for box in document.get("annotations", []):
        found[box["image_id"]].append(box)
    return found


def camera_of(image: Image) -> str:
    """Return an image's camera; the recording, or the folder, where none is said."""
    return str(image.get("camera") or recording_of(image))


def recording_of(image: Image) -> str:
    """Return an image's recording; the camera, or the folder of its file, where none is said."""
    named = image.get("recording") or image.get("camera") or str(image["file_name"]).rpartition("/")[0]
    return str(named or "recording")


def coco(images: Iterable[Image], boxes: Iterable[dict[str, Any]], categories: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a COCO document whose images and boxes are numbered from 1.

    Args:
        images: Each with an id that its boxes name.
        boxes: Annotations of these images.
        categories: As they are.
    """
    numbers: dict[int, int] = {}
    listed = []
    for number, image in enumerate(images, 1):
        numbers[image["id"]] = number
        listed.append({**image, "id": number})
    kept = [box for box in boxes if box["image_id"] in numbers]
    annotations = [{**box, "id": i, "image_id": numbers[box["image_id"]]} for i, box in enumerate(kept, 1)]
    return {"images": listed, "annotations": annotations, "categories": categories}


def place(source: Path, target: Path, link: bool = False) -> None:
    """Put a copy of a file at `target`, whole or not at all.

    Args:
        source: The file.
        target: Its new place.
        link: Both may be one file on the disk: for files of finished runs, which nobody writes again.

    Raises:
        DataError: There is no such file.
        RunError: The disk is full, or `target` cannot be written.
    """
    if not source.is_file():
        message = f"{source} is gone. Give the frames back to where they were when their features or labels were made."
        raise DataError(message)
    temporary = target.with_name(f".{target.name}.tmp")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        try:
            if not (link and _linked(source.resolve(), temporary)):
                shutil.copyfile(source, temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(target.parent)


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        return False
    return True
