"""Images and boxes as the readers of `cahqp import` find them, before any check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class FoundBox:
    """One box.

    Attributes:
        where: Row in messages, such as `a.txt, line 3`.
        name: Class name.
        xyxy: Corners in pixels, or in shares of the image if `FoundImage.shares`.
        ignored: Whether the box is a region to ignore.
        more: Further keys of the annotation, such as `score` and `track_id`.
    """

    where: str
    name: str
    xyxy: tuple[float, float, float, float]
    ignored: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FoundImage:
    """One image.

    Attributes:
        where: Row in messages.
        path: Image file; it may be missing.
        boxes: Boxes on the image.
        size: Height and width that the labels are for; `None` if the file contains none.
        shares: Whether boxes are shares of the image instead of pixels.
        more: Further keys of the COCO image: `camera`, `recording`, `frame`, `timestamp`.
    """

    where: str
    path: Path
    boxes: tuple[FoundBox, ...] = ()
    size: tuple[int, int] | None = None
    shares: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)
