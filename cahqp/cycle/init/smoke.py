"""Small parts of the user's frames, for a plan that runs within a minute."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from cahqp.coco.decoding import read_image
from cahqp.coco.document import read_document
from cahqp.coco.image_folder import image_root
from cahqp.coco.sources import image_names, source_kind
from cahqp.coco.subset import build_document
from cahqp.cycle.init.survey import video_properties
from cahqp.files import write_json

T = TypeVar("T")

FRAMES = 8
"""Frames of each source."""


def shrink(paths: Sequence[Path], folder: Path, name: str) -> list[Path]:
    """Write COCO files with a few frames of each source, and return them; videos are returned unchanged.

    Args:
        paths: Folders, images, videos or COCO files.
        folder: Folder for the COCO files; the images stay where they are.
        name: Role of the sources, the first part of the folder's name.
    """
    return [_shrink(path, folder / f"{name}-{number}") for number, path in enumerate(paths, 1)]


def interval(paths: Sequence[Path], given: float) -> float:
    """Return the seconds between frames that take a few frames of each video, and at least `given`."""
    videos = [path for path in paths if source_kind(path) == "video"]
    return max([given, *(round(video_properties(path)[1] / FRAMES, 3) for path in videos)])


def _shrink(path: Path, folder: Path) -> Path:
    kind = source_kind(path)
    if kind in ("video", "image"):
        return path
    if kind == "folder":
        root = path
        names = _spread(image_names(path))
        # The recording of an image in a folder is its sub-folder, or the folder itself.
        default = path.resolve().name
        images = [
            {"id": number, "file_name": name, "recording": name.rpartition("/")[0] or default, **_size(path / name)}
            for number, name in enumerate(names, 1)
        ]
        document = {"images": images, "annotations": [], "categories": []}
    else:
        root, document = image_root(path), read_document(path)
        labelled = {box["image_id"] for box in document.get("annotations", [])}
        images = [image for image in document["images"] if image["id"] in labelled] or document["images"]
        document = build_document(_spread(images), document.get("annotations", []), document.get("categories", []))
    write_json(folder / "annotations.json", document)
    write_json(folder / "source.json", {"root": Path(os.path.relpath(root, folder)).as_posix()})
    return folder / "annotations.json"


def _size(image: Path) -> dict[str, int]:
    height, width = read_image(image).shape[:2]
    return {"height": height, "width": width}


def _spread(items: Sequence[T]) -> list[T]:
    """Return up to `FRAMES` items at equal distances."""
    step = max(1.0, len(items) / FRAMES)
    return [items[int(position * step)] for position in range(min(FRAMES, len(items)))]
