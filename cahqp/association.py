"""Matching the boxes of one frame with those of another. NumPy and SciPy only, so that every room may use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]


SAME_PLACE = 0.6
"""Overlap from which on boxes of different frames stand at one place. On synthetic nights 0.5 took 5 to 19 % of the
good boxes with it, and 0.7 left more of the false ones."""

LEAST_FRAMES = 5
"""Other frames that must show a place before anything is said of it."""

DOUBTFUL_SHARE = 0.3
"""Share of its threshold from which on a box says that a place is taken: a lamp is not a car in each frame."""


def pairwise_iou(boxes_a: Floats, boxes_b: Floats) -> NDArray[np.float64]:
    """Return (N, M) intersections over unions of (N, 4) and (M, 4) xyxy boxes; boxes without area overlap nothing."""
    a, b = _as_boxes(boxes_a)[:, None], _as_boxes(boxes_b)[None]
    # Coordinate by coordinate: on pairs of short rows NumPy spends most of its time between them.
    wide = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    high = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1])
    intersection = np.maximum(wide, 0) * np.maximum(high, 0)
    union = _areas(a) + _areas(b) - intersection
    iou: NDArray[np.float64] = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return iou


def places_taken(boxes: Floats, frames: Sequence[Floats], min_iou: float = SAME_PLACE) -> NDArray[np.bool_]:
    """Return (N, F) whether something is at each box's place in each frame.

    Args:
        boxes: (N, 4) xyxy.
        frames: (M, 4) xyxy each, in the same coordinates.
        min_iou: Overlap from which on it is the same place.
    """
    taken = np.zeros((len(boxes), len(frames)), np.bool_)
    filled = [number for number, others in enumerate(frames) if len(others)]
    if len(boxes) and filled:
        same = pairwise_iou(boxes, np.concatenate([frames[number] for number in filled])) >= min_iou
        starts = np.cumsum([0, *(len(frames[number]) for number in filled[:-1])])
        taken[:, filled] = np.logical_or.reduceat(same, starts, axis=1)
    return taken


def stationary_factor(shares: Floats, stationary_weight: float) -> NDArray[np.float64]:
    """Return what scores count whose place is taken in a share of the recording's other frames.

    Road users come and go, and their place is empty in other frames; a lit window that is taken for a car is so in most
    of them. No order and no time is needed, so this works on frames too far apart for tracks.

    Args:
        shares: (N,) shares of the other frames, 0..1. Up to 0.2 a score counts fully, from 0.6 on by
            `stationary_weight`, and
            evenly less in between.
        stationary_weight: 0..1.
    """
    return 1 - (1 - stationary_weight) * np.clip((np.asarray(shares, np.float64) - 0.2) / 0.4, 0, 1)


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
