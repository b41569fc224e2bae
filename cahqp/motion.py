"""Motion in frames of a fixed camera: difference from the median of the recording's other frames, at low resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]

LONGEST_SIDE = 128
"""Longer side of a thumbnail in pixels."""

MIN_FRAMES, MAX_FRAMES = 5, 24
"""Frames of a recording that a background needs, and the largest number that it is the median of."""

MIN_CHANGE = 12
"""Smallest change of a moving pixel, of 255. Noise of synthetic nights changes a pixel by 4."""

MOVING_SHARE = 0.2
"""Share of moving pixels from which a box moves. On synthetic nights 99 % of the objects move, and 27 % of all pixels,
because headlights light the road."""

_MIN_PIXELS, _MAX_REGION = 12, 0.2
"""Smallest number of pixels of a moving region, and largest share of the frame. Larger changes are of light."""


def thumbnail_size(height: int, width: int) -> tuple[int, int]:
    """Return height and width of the thumbnail of a frame."""
    scale = LONGEST_SIDE / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def reduce(image: Image, size: tuple[int, int]) -> Image:
    """Return an (H, W, 3) uint8 image averaged to another height and width."""
    return np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def median_background(thumbnails: Sequence[Image], visible: Sequence[Mask] | None = None) -> NDArray[np.float32] | None:
    """Return the (h, w, 3) median of a recording's thumbnails; NaN where fewer than `MIN_FRAMES` show a pixel.

    Args:
        thumbnails: At most `MAX_FRAMES` are used, evenly spread.
        visible: (h, w) mask of the valid pixels of each; by default all are valid.

    Returns:
        `None` for fewer than `MIN_FRAMES` thumbnails.
    """
    if len(thumbnails) < MIN_FRAMES:
        return None
    rows = np.unique(np.linspace(0, len(thumbnails) - 1, min(MAX_FRAMES, len(thumbnails))).round().astype(int))
    stack = np.stack([thumbnails[row] for row in rows]).astype(np.float32)
    if visible is None:
        return np.asarray(np.median(stack, 0), np.float32)
    shown = np.stack([visible[row] for row in rows])
    stack[~shown] = np.inf  # sorted behind the visible values, whose median is then by rank
    ordered, counts = np.sort(stack, 0), shown.sum(0)
    middle = np.broadcast_to(((counts - 1).clip(0) // 2)[None, ..., None], (1, *stack.shape[1:]))
    background = np.take_along_axis(ordered, middle, 0)[0]
    background[counts < MIN_FRAMES] = np.nan
    return np.asarray(background, np.float32)


class Motion:
    """Moving pixels of a frame.

    Args:
        thumbnail: (h, w, 3) uint8 thumbnail of the frame.
        background: (h, w, 3) background of its recording; NaN where it is unknown.
        size: Height and width of the frame in pixels.
        visible: (h, w) mask of the pixels that the thumbnail shows; by default all.

    Attributes:
        mask: (h, w) whether a pixel moves. If most pixels change, the camera moves or its light changes, and `mask` is
            empty.
    """

    def __init__(
        self, thumbnail: Image, background: NDArray[np.float32], size: tuple[int, int], visible: Mask | None = None
    ) -> None:
        change = np.abs(thumbnail - background).max(-1)
        known = np.isfinite(change) if visible is None else np.isfinite(change) & visible
        usual = float(np.median(change[known])) if known.any() else np.inf
        limit = max(MIN_CHANGE, 4 * usual) if usual <= MIN_CHANGE else np.inf
        self.mask: Mask = known & (np.where(known, change, 0) > limit)
        height, width = self.mask.shape
        self._scale = np.array([width / size[1], height / size[0]] * 2)

    def moving(self, boxes: NDArray[Any]) -> Mask:
        """Return (N,) whether at least `MOVING_SHARE` of the pixels of each (N, 4) xyxy box move."""
        sums = cv2.integral(self.mask.astype(np.uint8))
        x1, y1, x2, y2 = self._cells(boxes).T
        moving = sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1]
        pixels = (x2 - x1) * (y2 - y1)
        return np.asarray((pixels > 0) & (moving >= MOVING_SHARE * pixels), np.bool_)

    def regions(self, covered: NDArray[Any]) -> NDArray[np.float64]:
        """Return (K, 4) xyxy boxes around the moving regions outside the (N, 4) boxes in `covered`."""
        mask = self.mask.astype(np.uint8)
        for x1, y1, x2, y2 in self._cells(covered).tolist():
            mask[y1:y2, x1:x2] = 0
        mask = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)), np.uint8)
        _, _, found, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        x, y, width, height, pixels = found[1:].T
        kept = (pixels >= _MIN_PIXELS) & (width * height <= _MAX_REGION * mask.size)
        corners = np.stack([x, y, x + width, y + height], 1)[kept].astype(np.float64)
        return np.asarray(corners / self._scale, np.float64)

    def _cells(self, boxes: NDArray[Any]) -> NDArray[np.int64]:
        """Return the corners of the pixels that (N, 4) boxes touch, inside the thumbnail."""
        scaled = np.asarray(boxes, np.float64).reshape(-1, 4) * self._scale
        corners = np.concatenate([np.floor(scaled[:, :2]), np.ceil(scaled[:, 2:])], 1)
        height, width = self.mask.shape
        return np.asarray(np.clip(corners, 0, [width, height, width, height]), np.int64)
