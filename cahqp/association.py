"""Matching the boxes of one frame with those of another. NumPy and SciPy only, so that every room may use it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]


def pairwise_iou(boxes_a: Floats, boxes_b: Floats) -> NDArray[np.float64]:
    """Return (N, M) intersections over unions of (N, 4) and (M, 4) xyxy boxes; boxes without area overlap nothing."""
    a, b = _as_boxes(boxes_a)[:, None], _as_boxes(boxes_b)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    intersection = np.prod(np.clip(sides, 0, None), -1)
    union = _areas(a) + _areas(b) - intersection
    iou: NDArray[np.float64] = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return iou


def match_boxes(
    boxes_a: Floats,
    labels_a: Integers | None,
    boxes_b: Floats,
    labels_b: Integers | None,
    min_iou: float = 0.3,
    max_distance: float = 0.0,
) -> NDArray[np.int64]:
    """Match boxes one to one so that the sum of affinities is largest (Hungarian method).

    Boxes that overlap count more than boxes that are merely near each other; ties fall to the lower indices, so equal
    input gives equal pairs.

    Args:
        boxes_a: (N, 4) xyxy.
        labels_a: (N,) class indices; boxes of different classes never match. `None` for both leaves classes aside.
        boxes_b: (M, 4) xyxy, in the same coordinates.
        labels_b: (M,) class indices.
        min_iou: Least overlap of a pair, above 0.
        max_distance: Pairs below `min_iou` still match while the distance of their centres is below this many mean
            diagonals of the two boxes: small things move further than their own width from frame to frame. 0 is off.

    Returns:
        (K, 2) rows of an index into a and one into b, ascending in a.

    Raises:
        ValueError: Labels are given for one side only, or `min_iou` is not above 0.
    """
    if (labels_a is None) != (labels_b is None):
        message = "Give labels for both sides or for neither."
        raise ValueError(message)
    if min_iou <= 0:
        message = f"min_iou must be above 0, got {min_iou}: boxes that do not touch would match."
        raise ValueError(message)
    affinity = _affinity(_as_boxes(boxes_a), _as_boxes(boxes_b), min_iou, max_distance)
    if labels_a is not None and labels_b is not None:
        affinity[np.asarray(labels_a)[:, None] != np.asarray(labels_b)[None]] = 0
    rows, columns = linear_sum_assignment(affinity, maximize=True)
    pairs = np.stack([rows, columns], 1).astype(np.int64)
    return pairs[affinity[rows, columns] > 0]


def _affinity(a: NDArray[np.float64], b: NDArray[np.float64], min_iou: float, max_distance: float) -> Floats:
    """Return (N, M): 1 + IoU where boxes overlap enough, below 1 where only their centres are near, else 0."""
    iou = pairwise_iou(a, b)
    affinity = np.where(iou >= min_iou, 1 + iou, 0.0)
    if max_distance > 0:
        centres_a, centres_b = (a[:, :2] + a[:, 2:]) / 2, (b[:, :2] + b[:, 2:]) / 2
        distance = np.linalg.norm(centres_a[:, None] - centres_b[None], axis=-1)
        diagonal = (
            np.linalg.norm(a[:, 2:] - a[:, :2], axis=-1)[:, None] + np.linalg.norm(b[:, 2:] - b[:, :2], axis=-1)
        ) / 2
        nearness = 1 - distance / np.maximum(max_distance * diagonal, 1e-9)
        affinity = np.maximum(affinity, nearness.clip(0))
    return affinity


def _as_boxes(boxes: Floats) -> NDArray[np.float64]:
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


def _areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    areas: NDArray[np.float64] = np.prod(np.clip(boxes[..., 2:] - boxes[..., :2], 0, None), -1)
    return areas
