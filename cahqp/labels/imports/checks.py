"""Checks that every imported image and box passes, whatever its layout."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

from cahqp.coco.decoding import BrokenImageError, Header, read_header
from cahqp.labels.imports.findings import Findings
from cahqp.labels.imports.orientation import Corners, to_stored
from cahqp.labels.imports.records import FoundBox, FoundImage

_ROUNDING = 0.5  # pixels over the border that are rounding in the labelling tool


class CheckedBox(NamedTuple):
    """Valid box.

    Attributes:
        xywh: x, y, width and height in stored pixels, inside the image.
        box: The box as found.
    """

    xywh: tuple[float, float, float, float]
    box: FoundBox


class CheckedImage(NamedTuple):
    """Valid image.

    Attributes:
        image: The image as found.
        size: Height and width of the stored pixels.
        boxes: Valid boxes.
    """

    image: FoundImage
    size: tuple[int, int]
    boxes: tuple[CheckedBox, ...]


class Checker:
    """Check of images and boxes against the image files.

    Args:
        findings: Collects invalid and odd rows.
        oriented: View of the boxes where only the EXIF orientation leaves a doubt.
    """

    def __init__(self, findings: Findings, oriented: Literal["stored", "upright"] | None) -> None:
        self._findings = findings
        self._oriented = oriented

    def check(self, image: FoundImage) -> CheckedImage | None:
        """Return an image with its valid boxes in stored pixels, without repeated ones; `None` if it is invalid."""
        if not image.path.is_file():
            self._findings.invalid("image is missing", image.where, f"{image.path}; --images gives another folder")
            return None
        try:
            header = read_header(image.path)
        except BrokenImageError as error:
            self._findings.invalid("image cannot be read", image.where, f"{image.path} {error}")
            return None
        upright = self._is_upright(image, header)
        if upright is None:
            return None
        boxes: dict[tuple[Any, ...], CheckedBox] = {}
        for found in image.boxes:
            checked = self._check_box(found, image, header, upright)
            if checked is None:
                continue
            key = (found.name, found.ignored, found.more.get("track_id"), *(round(side, 2) for side in checked.xywh))
            if boxes.setdefault(key, checked) is not checked:
                self._findings.left_out("box that repeats another box", found.where)
        return CheckedImage(image, header.size, tuple(boxes.values()))

    def _is_upright(self, image: FoundImage, header: Header) -> bool | None:
        """Return whether boxes are drawn on the upright view; `None` for an image that the labels do not fit."""
        if image.size is not None and image.size not in (header.size, header.upright_size):
            height, width = image.size
            stored = f"labels are for {width}x{height}, the file has {header.size[1]}x{header.size[0]}"
            self._findings.invalid("image has another size than its labels", image.where, stored)
            return None
        if header.orientation == 1 or not image.boxes:
            return False
        decided = image.size is not None and header.size != header.upright_size
        if decided:
            upright = image.size == header.upright_size
        elif self._oriented is not None:
            upright = self._oriented == "upright"
        else:
            advice = f"orientation {header.orientation}; give --oriented upright or --oriented stored"
            self._findings.invalid("image has an EXIF orientation, and its boxes fit both views", image.where, advice)
            return None
        view = "turned to stored pixels" if upright else "kept as drawn on stored pixels"
        self._findings.odd(f"image with an EXIF orientation, boxes {view}", image.where)
        return upright

    def _check_box(self, found: FoundBox, image: FoundImage, header: Header, upright: bool) -> CheckedBox | None:
        height, width = header.upright_size if upright else header.size
        box = found.xyxy
        if not all(map(math.isfinite, box)):
            self._findings.invalid("box is not finite", found.where, str(box))
            return None
        if image.shares:
            box = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
        if box[2] <= box[0] or box[3] <= box[1]:
            self._findings.invalid("box has no area", found.where, _shown(box))
            return None
        inside = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height)))
        if inside[2] - inside[0] < 1e-3 or inside[3] - inside[1] < 1e-3:
            outside = box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0
            kind = "box lies outside its image" if outside else "box has no area"
            self._findings.invalid(kind, found.where, f"{_shown(box)} in {width}x{height}")
            return None
        self._note_oddities(found, box, inside)
        x1, y1, x2, y2 = (round(side, 3) for side in (to_stored(inside, header) if upright else inside))
        return CheckedBox((x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)), found)

    def _note_oddities(self, found: FoundBox, box: Corners, inside: Corners) -> None:
        if max(abs(a - b) for a, b in zip(box, inside, strict=True)) > _ROUNDING:
            self._findings.odd("box clipped to its image", found.where)
        if min(inside[2] - inside[0], inside[3] - inside[1]) < 1:
            self._findings.odd("box under one pixel", found.where)


def _shown(box: Corners) -> str:
    return ", ".join(f"{side:g}" for side in box)
