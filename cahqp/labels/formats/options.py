"""Options of `cahqp reformat`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Format = Literal["coco", "yolo", "cvat", "label-studio"]


@dataclass(frozen=True, kw_only=True)
class ReformatOptions:
    """Convert labels to another format, and read corrected labels back as ground truth.

    Attributes:
        labels: File or folder of labels.
        to: Format to write.
        output: New directory for the result. It is never overwritten.
        source: Format of `labels`.
        like: The `labels.json` that was sent out for review. Images that did not come back keep their labels, and all
            images keep their ids, cameras and timestamps.
        reviewed: Take all boxes and images that came back as accepted by a person. Otherwise only boxes that the format
            marks as drawn or changed by hand become ground truth.
    """

    labels: Path
    to: Format
    output: Path
    source: Format = "coco"
    like: Path | None = None
    reviewed: bool = False
