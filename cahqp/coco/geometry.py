"""Checks of the boxes of a COCO file against their images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cahqp.coco.problems import Problems
from cahqp.coco.tables import BoxRow

_ROUNDING = 0.5
"""Pixels over the border that are rounding in the labelling tool, not worth counting."""

_MIN_SUSPECTS = 5
"""Boxes from which the form of all boxes can be judged."""


class Oddities(NamedTuple):
    """Numbers of unusual boxes.

    Attributes:
        boxes: All boxes.
        clipped: Boxes that crossed the border of their image.
        small: Boxes with a side under one pixel.
        repeated: Boxes equal to another one in image, category and position, which are left out.
    """

    boxes: int
    clipped: int
    small: int
    repeated: int

    def sentence(self) -> str:
        """Return the numbers above zero in one sentence; empty if there are none."""
        parts = [
            f"{self.clipped} clipped to their image" if self.clipped else "",
            f"{self.small} under one pixel" if self.small else "",
            f"{self.repeated} equal to another box and left out" if self.repeated else "",
        ]
        return f"of {self.boxes} boxes, " + ", ".join(filter(None, parts)) if any(parts) else ""


def clip(
    rows: Sequence[BoxRow], sizes: NDArray[np.float64], problems: Problems
) -> tuple[NDArray[np.float64], int, int]:  # fmt: skip
    """Return the boxes as xyxy inside their images, and how many were clipped and have a side under one pixel.

    Rows note impossible boxes. If all boxes look like another form than x, y, width and height, the file has a problem.

    Args:
        rows: N boxes.
        sizes: (N, 2) heights and widths of their images in pixels; 0 where unknown.
        problems: Collects the problem of the whole file.
    """
    xywh = np.array([row.bbox for row in rows], np.float64).reshape(-1, 4)
    with np.errstate(over="ignore"):
        xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
    borders = np.where(sizes > 0, sizes, np.inf)[:, [1, 0, 1, 0]]
    within = np.clip(xyxy, 0, borders)
    positive = np.all(xywh[:, 2:] > 0, axis=1)
    # In float32, because that is the precision of training.
    inside = np.all(within[:, 2:].astype(np.float32) > within[:, :2].astype(np.float32), axis=1)
    for index in np.flatnonzero(~(positive & inside)).tolist():
        row, box, (height, width) = rows[index].row, list(rows[index].bbox), sizes[index].astype(int)
        if not positive[index]:
            row.add_problem(f"`bbox` {box} has no area; width and height must be above 0")
        else:
            row.add_problem(f"`bbox` {box} lies outside its image" + (f" of {width}x{height}" if width else ""))
    moved = (np.abs(within - xyxy) > _ROUNDING).any(1)
    _check_form(xywh, borders, moved, problems)
    small = (within[:, 2:] - within[:, :2]).min(1) < 1 if len(within) else np.zeros(0, bool)
    return within, int(moved.sum()), int(small.sum())


def _check_form(
    xywh: NDArray[np.float64], borders: NDArray[np.float64], moved: NDArray[np.bool_], problems: Problems
) -> None:
    """Note boxes that are two corners, or shares of their image: as x, y, width, height they are silently wrong."""
    if len(xywh) < _MIN_SUSPECTS:
        return
    corners = (xywh[:, 2:] > xywh[:, :2]).all() and (xywh <= borders + _ROUNDING).all()
    if corners and moved.mean() > 0.5:
        problems.add(
            "annotations",
            f"`bbox` looks like two corners, x1, y1, x2, y2: read as x, y, width, height, {int(moved.sum())} of "
            f"{len(xywh)} boxes cross their image. Write x, y, width and height",
        )
    fractions = (xywh[:, :2] >= 0).all() and (xywh[:, 2:] > 0).all() and (xywh % 1 > 0).any()
    if fractions and xywh.max() <= 1 and borders.min() > 2:
        problems.add("annotations", "`bbox` looks like shares of the image: no number is above 1. Write pixels")


def repeated(
    image: NDArray[np.int64], boxes: NDArray[np.float64], *columns: NDArray[np.generic]
) -> NDArray[np.bool_]:  # fmt: skip
    """Return (N,) true for boxes that equal an earlier one.

    Args:
        image: (N,) image of each box.
        boxes: (N, 4) boxes.
        columns: (N,) further values that must be equal.
    """
    keys = [image, *boxes.T, *columns]
    order = np.lexsort(keys[::-1])
    equal = np.ones(max(len(order) - 1, 0), bool)
    for key in keys:
        equal &= key[order][1:] == key[order][:-1]
    marked = np.zeros(len(order), bool)
    marked[order[1:][equal]] = True
    return marked
