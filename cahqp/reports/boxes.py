"""Pseudo-labels drawn on their frames. Boxes are SVG over one embedded picture: sharp at any size, in any script."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cahqp.errors import DataError
from cahqp.reports.html import Markup, element
from cahqp.reports.style import CLASS_COLOURS

_LONGEST_SIDE = 960
_JPEG_QUALITY = 82
# In a dense scene the texts of small boxes hide what they name.
_FEW, _ROOM = 8, 0.06
_VIDEO_FRAME = re.compile(r"(?P<video>.+)@(?P<seconds>\d+(\.\d+)?)s")


@dataclass(frozen=True)
class Picture:
    """A frame, ready to be embedded.

    Attributes:
        data: `data:` URI of a JPEG, at most 960 pixels long.
        width: Of the original, in pixels.
        height: Of the original, in pixels.
    """

    data: str
    width: int
    height: int


def load_picture(roots: Sequence[Path], name: str) -> Picture:
    """Find a frame by the name that it has in a label file, and shrink it for the page.

    Args:
        roots: Folders to look in, or in their `images`; a root may also be the video itself.
        name: Relative path, or `video.mp4@12.400s`.

    Raises:
        DataError: It is in none of the folders, or is no picture.
    """
    found = _VIDEO_FRAME.fullmatch(name)
    path = _find(roots, found["video"] if found else name)
    image = _read_video(path, float(found["seconds"])) if found else cv2.imread(str(path))
    if image is None:
        message = f"{path.name} cannot be read as a picture."
        raise DataError(message)
    height, width = image.shape[:2]
    scale = min(1.0, _LONGEST_SIDE / max(height, width))
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
    _, jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return Picture("data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode(), width, height)


def drawn(
    picture: Picture, boxes: Sequence[Mapping[str, Any]], names: Mapping[int, str], key: str, embed: bool
) -> Markup:
    """Return a picture with boxes. Class and score stand on each one that has the room, and show on hovering.

    Args:
        picture: The frame.
        boxes: COCO annotations.
        names: Category names by id.
        key: Names the embedded picture within the page.
        embed: Whether to embed the picture; otherwise the one embedded under the same key is shown.
    """
    size = {"width": picture.width, "height": picture.height}
    image = element("image", id=key, href=picture.data, **size) if embed else element("use", href=f"#{key}")
    frames = [_frame(picture, box, names) for box in boxes]
    roomy = [box for box in boxes if len(boxes) <= _FEW or box["bbox"][2] >= _ROOM * picture.width]
    texts = [_text(picture, box, names) for box in roomy]
    view, told = f"0 0 {picture.width} {picture.height}", f"{len(boxes)} labels"
    return element("svg", image, *frames, *texts, class_="picture", viewBox=view, role="img", aria_label=told)


def legend(names: Mapping[int, str]) -> Markup:
    """Return the classes with their colours."""
    squares = {
        number: element("svg", element("rect", width=1, height=1, fill=colour(number, names)), viewBox="0 0 1 1")
        for number in names
    }
    return element("div", *(element("span", squares[n], name) for n, name in names.items()), class_="legend")


def colour(category: int, names: Mapping[int, str]) -> str:
    """Return a category's colour, by its place in the list."""
    return CLASS_COLOURS[list(names).index(category) % len(CLASS_COLOURS)]


def _frame(picture: Picture, box: Mapping[str, Any], names: Mapping[int, str]) -> Markup:
    x, y, width, height = box["bbox"]
    return element(
        "rect",
        element("title", _said(box, names)),
        x=x,
        y=y,
        width=width,
        height=height,
        stroke=colour(box["category_id"], names),
        stroke_width=round(1.5 * _unit(picture), 2),
    )


def _text(picture: Picture, box: Mapping[str, Any], names: Mapping[int, str]) -> Markup:
    x, y, width, _ = box["bbox"]
    unit = _unit(picture)
    # Above the box, or inside where the picture ends.
    baseline = y - 3 * unit if y > 14 * unit else y + 11 * unit
    place: dict[str, str | float] = {"x": round(x, 1), "y": round(baseline, 1), "text_anchor": "start"}
    if x > 0.8 * picture.width:
        place |= {"x": round(x + width, 1), "text_anchor": "end"}
    size = {"font_size": round(10 * unit, 2), "stroke_width": round(2.2 * unit, 2)}
    return element("text", _said(box, names), fill=colour(box["category_id"], names), **place, **size)


def _said(box: Mapping[str, Any], names: Mapping[int, str]) -> str:
    return names[box["category_id"]] + (f" {box['score']:.2f}" if "score" in box else "")


def _unit(picture: Picture) -> float:
    """Return what a pixel of the page is in pixels of the picture, about."""
    return max(picture.width, picture.height) / 480


def _find(roots: Sequence[Path], name: str) -> Path:
    for root in roots:
        if root.is_file() and root.name == name:
            return root
        for folder in (root / "images", root):
            path = folder / name
            if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
                return path
    places = ", ".join(str(root) for root in roots)
    message = f"{name} is not in {places}." if places else "The relabelling does not say where its frames are."
    raise DataError(message)


def _read_video(path: Path, seconds: float) -> NDArray[np.uint8] | None:
    video = cv2.VideoCapture(str(path))
    try:
        video.set(cv2.CAP_PROP_POS_MSEC, 1000 * seconds)
        read, image = video.read()
    finally:
        video.release()
    return np.asarray(image, np.uint8) if read else None
