"""Box matching between frames, with NumPy and SciPy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]


SAME_PLACE = 0.6
"""Minimum IoU of boxes at one position in different frames. On synthetic nights 0.5 affected 5 to 19 % of the correct
boxes, and 0.7 kept more false ones."""

LEAST_FRAMES = 5
"""Minimum number of other frames that show a position before boxes there are down-weighted."""

DOUBTFUL_SHARE = 0.3
"""Share of the threshold above which a box occupies its position: a lamp is not detected as a car in every frame."""


def pairwise_iou(boxes_a: Floats, boxes_b: Floats) -> NDArray[np.float64]:
    """Return the (N, M) pairwise IoU of (N, 4) and (M, 4) xyxy boxes; boxes without area have IoU 0."""
    a, b = _as_boxes(boxes_a)[:, None], _as_boxes(boxes_b)[None]
    # One coordinate at a time: broadcasting over pairs of length-4 rows is slower.
    wide = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    high = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1])
    intersection = np.maximum(wide, 0) * np.maximum(high, 0)
    union = _areas(a) + _areas(b) - intersection
    iou: NDArray[np.float64] = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return iou


def places_taken(boxes: Floats, frames: Sequence[Floats], min_iou: float = SAME_PLACE) -> NDArray[np.bool_]:
    """Return an (N, F) mask: whether frame f contains a box at the position of box n.

    Args:
        boxes: (N, 4) xyxy.
        frames: F arrays of (M, 4) xyxy boxes, in the same coordinates.
        min_iou: Minimum IoU of boxes at one position.
    """
    taken = np.zeros((len(boxes), len(frames)), np.bool_)
    filled = [number for number, others in enumerate(frames) if len(others)]
    if len(boxes) and filled:
        same = pairwise_iou(boxes, np.concatenate([frames[number] for number in filled])) >= min_iou
        starts = np.cumsum([0, *(len(frames[number]) for number in filled[:-1])])
        taken[:, filled] = np.logical_or.reduceat(same, starts, axis=1)
    return taken


def stationary_factor(shares: Floats, stationary_weight: float) -> NDArray[np.float64]:
    """Return (N,) score multipliers for boxes at stationary positions.

    Road users come and go, so their position is empty in other frames. A lit window that looks like a car is detected
    in most frames. Frames need no order and no time stamps, so they may be too far apart for tracking.

    Args:
        shares: (N,) shares of other frames that occupy the position, in [0, 1]. The multiplier is 1 up to a share of
            0.2, `stationary_weight` from 0.6, and linear in between.
        stationary_weight: Multiplier in [0, 1].
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
    """Match boxes one to one with the largest sum of affinities (Hungarian method).

    Overlapping boxes have a higher affinity than boxes with near centres only. Ties go to the lower index.

    Args:
        boxes_a: (N, 4) xyxy.
        labels_a: (N,) class indices; boxes of different classes never match. `None` for both sides ignores classes.
        boxes_b: (M, 4) xyxy, in the same coordinates.
        labels_b: (M,) class indices.
        min_iou: Minimum IoU of a pair, above 0.
        max_distance: Maximum distance of centres for pairs below `min_iou`, in mean diagonals of the two boxes. Small
            objects move further than their own width between frames. 0 requires overlap.

    Returns:
        (K, 2) index pairs into a and b, ascending in a.

    Raises:
        ValueError: Labels are missing on one side, or `min_iou` is not positive.
    """
    if (labels_a is None) != (labels_b is None):
        message = "Give labels for both sides or for neither."
        raise ValueError(message)
    if min_iou <= 0:
        message = f"min_iou must be above 0, got {min_iou}: boxes without overlap would match."
        raise ValueError(message)
    affinity = _affinity(_as_boxes(boxes_a), _as_boxes(boxes_b), min_iou, max_distance)
    if labels_a is not None and labels_b is not None:
        affinity[np.asarray(labels_a)[:, None] != np.asarray(labels_b)[None]] = 0
    rows, columns = linear_sum_assignment(affinity, maximize=True)
    pairs = np.stack([rows, columns], 1).astype(np.int64)
    return pairs[affinity[rows, columns] > 0]


def _affinity(a: NDArray[np.float64], b: NDArray[np.float64], min_iou: float, max_distance: float) -> Floats:
    """Return (N, M) affinities: 1 + IoU for overlapping boxes, below 1 for near centres only, else 0."""
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
