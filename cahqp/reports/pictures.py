"""Frames with their boxes, drawn as SVG over one embedded JPEG."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cahqp.data.videos import VideoFrames
from cahqp.errors import DataError
from cahqp.labels.formats.coco import LabelBox

CLASS_COLOURS = ("#ffb000", "#38b6ff", "#ff5f87", "#4ddc8b", "#c58bff", "#ff8a3d", "#f4f06a", "#7de3e1")
"""Colours that stay distinct on asphalt by day and night and for most colour-blind readers. They repeat after eight."""

_MAX_SIDE = 960
_JPEG_QUALITY = 82
# With more boxes than `_ALWAYS_TEXT`, the texts of boxes narrower than this share of the frame would hide the objects.
_ALWAYS_TEXT, _MIN_WIDTH_SHARE = 8, 0.06
_VIDEO_FRAME = re.compile(r"(?P<video>.+)@(?P<seconds>\d+(\.\d+)?)s")


@dataclass(frozen=True)
class Picture:
    """Frame that is ready to be embedded in a page.

    Attributes:
        data: `data:` URI of a JPEG, at most 960 pixels long.
        width: Width of the original frame in pixels.
        height: Height of the original frame in pixels.
    """

    data: str
    width: int
    height: int


def load_picture(roots: Sequence[Path], name: str) -> Picture:
    """Find a frame by its name in a label file and shrink it for the page.

    Args:
        roots: Folders that contain the frame, directly or in `images`. A root may also be the video itself.
        name: Relative path, or `video.mp4@12.400s`.

    Raises:
        DataError: No folder contains the frame, or it is not a readable image.
    """
    match = _VIDEO_FRAME.fullmatch(name)
    path = _find(roots, match["video"] if match else name)
    image = _read_video(path, float(match["seconds"])) if match else cv2.imread(str(path))
    if image is None:
        message = f"{path.name} is not a readable image."
        raise DataError(message)
    height, width = image.shape[:2]
    scale = min(1.0, _MAX_SIDE / max(height, width))
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
    _, jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return Picture("data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode(), width, height)


def draw_boxes(picture: Picture, boxes: Sequence[LabelBox], classes: Iterable[str]) -> list[dict[str, Any]]:
    """Return position, colour and text (class and score) of each box for the template's `picture`.

    `labelled` is false for a small box in a crowded frame, whose text appears only as a tooltip.

    Args:
        picture: The frame.
        boxes: Boxes of the frame.
        classes: All class names.
    """
    colours = class_colours(classes)
    return [
        {
            "bbox": dict(zip(("x", "y", "width", "height"), box.bbox, strict=True)),
            "colour": colours[box.name],
            "text": box.name if box.score is None else f"{box.name} {box.score:.2f}",
            "labelled": len(boxes) <= _ALWAYS_TEXT or box.bbox[2] >= _MIN_WIDTH_SHARE * picture.width,
        }
        for box in boxes
    ]


def class_colours(classes: Iterable[str]) -> dict[str, str]:
    """Return the colour of each class."""
    return {name: CLASS_COLOURS[number % len(CLASS_COLOURS)] for number, name in enumerate(classes)}


def _find(roots: Sequence[Path], name: str) -> Path:
    for root in roots:
        if root.is_file() and root.name == name:
            return root
        for folder in (root / "images", root):
            path = folder / name
            if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
                return path
    searched = ", ".join(str(root) for root in roots)
    message = f"{name} is not in {searched}." if searched else "No source.json names the folder of the frames."
    raise DataError(message)


def _read_video(path: Path, seconds: float) -> NDArray[np.uint8]:
    return np.ascontiguousarray(_open_video(path).read_at(seconds)[:, :, ::-1])


@lru_cache(maxsize=2)
def _open_video(path: Path) -> VideoFrames:
    """Return an open video; a report shows several of its frames."""
    return VideoFrames(path)
