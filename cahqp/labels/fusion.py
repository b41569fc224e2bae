"""Fusion of the boxes from several views and teachers into one set of boxes.

All methods work class by class, and do not depend on the order of the input: the coordinates of boxes decide between
equal scores. The confidence of a box is its score times the share of the views that contain its place and detect it,
as in weighted box fusion (Solovyev et al., arXiv 1910.13302).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cahqp.association import pairwise_iou
from cahqp.labels.candidates import Candidates

Method = Literal["nms", "soft-nms", "wbf"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ViewPredictions:
    """Predictions of one teacher on one view of a frame, in pixels of the original frame.

    Attributes:
        boxes: (N, 4) xyxy.
        scores: (N,) in 0..1.
        labels: (N,) class indices.
        region: xyxy of the part that the view contains; `None` for the whole frame.
        weight: Weight of the view in the mean of fused boxes.
    """

    boxes: Floats
    scores: Floats
    labels: NDArray[np.int64]
    region: tuple[float, float, float, float] | None = None
    weight: float = 1.0


def fuse(views: Sequence[ViewPredictions], method: Method = "wbf", iou: float = 0.55, sigma: float = 0.5) -> Candidates:
    """Return the fused boxes of a frame, highest confidence first, with `agreement`.

    Args:
        views: One entry for each view and teacher. Views without boxes count for the agreement.
        method: `nms` keeps the best of overlapping boxes. `soft-nms` lowers the scores of the others by their overlap
            (Bodla et al., arXiv 1704.04503, Gaussian). `wbf` averages overlapping boxes, weighted by score.
        iou: Lowest IoU at which two boxes are one object.
        sigma: Width of the Gaussian of `soft-nms`.
    """
    boxes = np.concatenate([np.zeros((0, 4)), *(np.asarray(view.boxes, np.float64).reshape(-1, 4) for view in views)])
    scores = np.concatenate([np.zeros(0), *(view.scores for view in views)]).astype(np.float64)
    labels = np.concatenate([np.zeros(0, np.int64), *(view.labels for view in views)]).astype(np.int64)
    counts = [len(view.scores) for view in views]
    origin = np.repeat(np.arange(len(views)), counts)
    weights = np.repeat([view.weight for view in views], counts)
    parts = [Candidates(boxes[:0], scores[:0], labels[:0], np.zeros(0))]
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rows = rows[_order(boxes[rows], scores[rows])]
        fused, confidence = _fuse_class(boxes[rows], scores[rows], weights[rows], method, iou, sigma)
        shares = [_agreement(box, boxes[rows], origin[rows], views, iou) for box in fused]
        agreement = np.array(shares, np.float64)
        parts.append(Candidates(fused, confidence * agreement, np.full(len(fused), label), agreement))
    columns = ("boxes", "scores", "labels", "agreement")
    joined = Candidates(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))
    return joined[_order(joined.boxes, joined.scores, joined.labels)]


def _fuse_class(
    boxes: Floats, scores: Floats, weights: Floats, method: Method, iou: float, sigma: float
) -> tuple[Floats, Floats]:
    if method == "wbf":
        return weighted_fusion(boxes, scores, weights, iou)
    if method == "soft-nms":
        return soft_nms(boxes, scores, sigma)
    kept = nms(boxes, scores, iou)
    return boxes[kept], scores[kept]


def nms(boxes: Floats, scores: Floats, iou: float) -> NDArray[np.int64]:
    """Return the indices of the boxes that no better box overlaps by more than `iou`, best first."""
    order = _order(boxes, scores)
    overlap = pairwise_iou(boxes[order], boxes[order])
    alive, kept = np.ones(len(order), np.bool_), []
    for row in range(len(order)):
        if alive[row]:
            kept.append(row)
            alive &= overlap[row] <= iou
    return np.asarray(order[kept], np.int64)


def soft_nms(boxes: Floats, scores: Floats, sigma: float = 0.5, floor: float = 0.001) -> tuple[Floats, Floats]:
    """Return boxes and lowered scores, best first. Each box multiplies overlapping scores by `exp(-iou^2 / sigma)`.

    Args:
        boxes: (N, 4) xyxy of one class.
        scores: (N,) in 0..1.
        sigma: Width of the Gaussian.
        floor: Boxes whose score falls below it are dropped.
    """
    order = _order(boxes, scores)
    boxes, scores = boxes[order], scores[order].copy()
    overlap = pairwise_iou(boxes, boxes)
    left, kept = np.arange(len(boxes)), []
    while len(left):
        # `argmax` takes the first of equal scores, and `left` is in the order of the boxes.
        best = left[int(scores[left].argmax())]
        kept.append(int(best))
        left = left[left != best]
        scores[left] *= np.exp(-(overlap[best, left] ** 2) / sigma)
        left = left[scores[left] >= floor]
    return boxes[kept], scores[kept]


def weighted_fusion(boxes: Floats, scores: Floats, weights: Floats, iou: float) -> tuple[Floats, Floats]:
    """Return clusters of boxes of one class: mean boxes, weighted by score and weight, and mean scores.

    Boxes are taken from the highest score down. Each box joins the cluster whose mean box overlaps it most, if by more
    than `iou`, or starts a new cluster.

    Args:
        boxes: (N, 4) xyxy of one class.
        scores: (N,) in 0..1.
        weights: (N,) weights of the views that the boxes come from.
        iou: IoU above which a box joins a cluster.
    """
    means: list[Floats] = []
    members: list[list[int]] = []
    for row in _order(boxes, scores).tolist():
        overlap = pairwise_iou(boxes[row][None], np.array(means))[0] if means else np.zeros(0)
        best = int(overlap.argmax()) if len(overlap) else -1
        if best >= 0 and overlap[best] > iou:
            members[best].append(row)
            share = scores[members[best]] * weights[members[best]]
            means[best] = share @ boxes[members[best]] / max(float(share.sum()), 1e-12)
        else:
            members.append([row])
            means.append(boxes[row])
    score = [float(np.average(scores[rows], weights=weights[rows])) for rows in members]
    return np.array(means, np.float64).reshape(-1, 4), np.array(score, np.float64)


def _agreement(
    box: Floats, boxes: Floats, origin: NDArray[np.int64], views: Sequence[ViewPredictions], iou: float
) -> float:
    """Return the share of the views containing the centre of a box that detect the box."""
    x, y = (box[:2] + box[2:]) / 2
    detecting = set(origin[pairwise_iou(box[None], boxes)[0] >= iou].tolist())
    containing = {
        number
        for number, view in enumerate(views)
        if view.region is None
        or (view.region[0] <= x <= view.region[2] and view.region[1] <= y <= view.region[3])
        or number in detecting
    }
    return max(1, len(detecting)) / max(1, len(containing))


def _order(boxes: Floats, scores: Floats, labels: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Return indices that sort by score, highest first, and equal scores by label and coordinates."""
    keys = [boxes[:, column] for column in (3, 2, 1, 0)] + ([] if labels is None else [labels]) + [-scores]
    return np.asarray(np.lexsort(keys), np.int64)
