"""Decoding of a model's raw output into detections, in NumPy alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class EdgeDetections(NamedTuple):
    """Detections of one frame, best score first.

    Attributes:
        boxes: (N, 4) float32 xyxy in pixels of the frame.
        scores: (N,) float32 in 0..1.
        labels: (N,) int64 class indices.
    """

    boxes: Floats
    scores: Floats
    labels: NDArray[np.int64]

    def select(self, rows: NDArray[Any]) -> EdgeDetections:
        """Return the detections at these row indices, or where a boolean mask is true."""
        return EdgeDetections(self.boxes[rows], self.scores[rows], self.labels[rows])

    def filter_by_score(self, thresholds: Floats) -> EdgeDetections:
        """Return the detections whose score reaches the threshold of their class.

        Args:
            thresholds: (C,) scores in 0..1, one per class.
        """
        return self.select(self.scores >= thresholds[self.labels])


def decode(
    logits: Floats,
    boxes: Floats,
    size: tuple[int, int],
    max_detections: int,
    nms_iou: float | None = None,
    thresholds: Floats | None = None,
) -> EdgeDetections:
    """Return the query-class pairs of a frame with the best scores, best first.

    Args:
        logits: (Q, C) before the sigmoid.
        boxes: (Q, 4) cxcywh in 0..1.
        size: Height and width in pixels to scale the boxes to.
        max_detections: Number of pairs before filtering.
        nms_iou: IoU above which the lower-scored of two boxes of one class is dropped. `None` keeps both.
        thresholds: (C,) minimum score per class. `None` keeps all scores.
    """
    flat = logits.reshape(-1)
    best = np.argsort(-flat, kind="stable")[:max_detections]
    query, labels = np.divmod(best, logits.shape[1])
    centre, half = boxes[query, :2], boxes[query, 2:] * np.float32(0.5)
    scale = np.array([size[1], size[0], size[1], size[0]], np.float32)
    scores = (1 / (1 + np.exp(-flat[best].astype(np.float64)))).astype(np.float32)
    found = EdgeDetections(np.concatenate([centre - half, centre + half], 1) * scale, scores, labels)
    if thresholds is not None:  # before suppression: a low score suppresses only lower ones, so the result is the same
        found = found.filter_by_score(thresholds)
    return found if nms_iou is None else _suppress(found, nms_iou)


def _suppress(found: EdgeDetections, nms_iou: float) -> EdgeDetections:
    """Apply class-wise non-maximum suppression as torchvision does; OpenCV's version returns other boxes."""
    left, top, right, bottom = found.boxes.astype(np.float64).T
    areas = (right - left) * (bottom - top)
    width = np.minimum(right, right[:, None]) - np.maximum(left, left[:, None])
    height = np.minimum(bottom, bottom[:, None]) - np.maximum(top, top[:, None])
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    overlaps = intersection > nms_iou * (areas + areas[:, None] - intersection)
    suppresses = np.triu(overlaps & (found.labels == found.labels[:, None]), 1)
    kept = np.ones(len(areas), np.bool_)
    for row in np.flatnonzero(suppresses.any(1)):
        if kept[row]:
            kept &= ~suppresses[row]
    return found.select(kept)
