"""One set of boxes from several looks at a frame: other views, other teachers.

Every method works class by class and gives the same answer in whichever order the boxes come: equal scores are parted
by the boxes themselves. A box's confidence is its score times the share of the looks that could see it and found it, as
weighted box fusion has it (Solovyev et al., arXiv 1910.13302), so what one look alone claims counts for less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cahqp.association import pairwise_iou

Method = Literal["nms", "soft-nms", "wbf"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ViewPredictions:
    """What one teacher says of one view of a frame, in pixels of the original frame.

    Attributes:
        boxes: (N, 4) xyxy.
        scores: (N,) in 0..1.
        labels: (N,) class indices.
        region: xyxy of what the view shows; the whole frame where `None`.
        weight: How much its word counts in a fused box.
    """

    boxes: Floats
    scores: Floats
    labels: NDArray[np.int64]
    region: tuple[float, float, float, float] | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Fused:
    """Boxes after fusion, best confidence first.

    Attributes:
        boxes: (N, 4) xyxy in pixels of the original frame.
        scores: (N,) confidence in 0..1, agreement included.
        labels: (N,) class indices.
        agreement: (N,) share of the looks that could see the box and found it, 0..1.
    """

    boxes: Floats
    scores: Floats
    labels: NDArray[np.int64]
    agreement: Floats


def fuse(looks: Sequence[ViewPredictions], method: Method = "wbf", iou: float = 0.55, sigma: float = 0.5) -> Fused:
    """Fuse the looks at one frame.

    Args:
        looks: One for each view and teacher, also where it found nothing: its silence counts.
        method: `nms` keeps the best box of those that overlap; `soft-nms` lowers the others' scores by how much they
            overlap (Bodla et al., arXiv 1704.04503, Gaussian); `wbf` averages them, weighted by score.
        iou: Overlap from which two boxes are one object.
        sigma: Width of the Gaussian of `soft-nms`.
    """
    boxes = np.concatenate([np.zeros((0, 4)), *(np.asarray(look.boxes, np.float64).reshape(-1, 4) for look in looks)])
    scores = np.concatenate([np.zeros(0), *(look.scores for look in looks)]).astype(np.float64)
    labels = np.concatenate([np.zeros(0, np.int64), *(look.labels for look in looks)]).astype(np.int64)
    counts = [len(look.scores) for look in looks]
    origin = np.repeat(np.arange(len(looks)), counts)
    weights = np.repeat([look.weight for look in looks], counts)
    parts = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        own = own[_order(boxes[own], scores[own])]
        found = _one_class(boxes[own], scores[own], weights[own], method, iou, sigma)
        seen = [_agreement(box, boxes[own], origin[own], looks, iou) for box in found[0]]
        agreement = np.array(seen, np.float64)
        parts.append((found[0], found[1] * agreement, np.full(len(agreement), label), agreement))
    if not parts:
        return Fused(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), np.zeros(0))
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = _order(joined[0], joined[1], joined[2])
    return Fused(*(column[order] for column in joined))


def _one_class(
    boxes: Floats, scores: Floats, weights: Floats, method: Method, iou: float, sigma: float
) -> tuple[Floats, Floats]:
    if method == "wbf":
        return weighted_fusion(boxes, scores, weights, iou)
    if method == "soft-nms":
        return soft_nms(boxes, scores, sigma)
    kept = nms(boxes, scores, iou)
    return boxes[kept], scores[kept]


def nms(boxes: Floats, scores: Floats, iou: float) -> NDArray[np.int64]:
    """Return the indices of the boxes that no better one overlaps by more than `iou`, best first."""
    order = _order(boxes, scores)
    overlap = pairwise_iou(boxes[order], boxes[order])
    alive, kept = np.ones(len(order), np.bool_), []
    for row in range(len(order)):
        if alive[row]:
            kept.append(row)
            alive &= overlap[row] <= iou
    return np.asarray(order[kept], np.int64)


def soft_nms(boxes: Floats, scores: Floats, sigma: float = 0.5, floor: float = 0.001) -> tuple[Floats, Floats]:
    """Return boxes and lowered scores, best first: each takes `exp(-iou^2 / sigma)` of those it overlaps.

    Args:
        boxes: (N, 4) xyxy of one class.
        scores: (N,) in 0..1.
        sigma: Width of the Gaussian.
        floor: Boxes whose score falls below it are gone.
    """
    order = _order(boxes, scores)
    boxes, scores = boxes[order], scores[order].copy()
    overlap = pairwise_iou(boxes, boxes)
    left, kept = np.arange(len(boxes)), []
    while len(left):
        # The first of equals: the order of `left` is that of the boxes themselves.
        best = left[int(scores[left].argmax())]
        kept.append(int(best))
        left = left[left != best]
        scores[left] *= np.exp(-(overlap[best, left] ** 2) / sigma)
        left = left[scores[left] >= floor]
    return boxes[kept], scores[kept]


def weighted_fusion(boxes: Floats, scores: Floats, weights: Floats, iou: float) -> tuple[Floats, Floats]:
    """Return the clusters of boxes of one class: the mean box, weighted by score and weight, and the mean score.

    Boxes go from the best score down; each joins the cluster whose mean box overlaps it most, if by more than `iou`,
    or starts one.

    Args:
        boxes: (N, 4) xyxy of one class.
        scores: (N,) in 0..1.
        weights: (N,) of the looks that the boxes come from.
        iou: Overlap above which a box joins a cluster.
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
    box: Floats, boxes: Floats, origin: NDArray[np.int64], looks: Sequence[ViewPredictions], iou: float
) -> float:
    """Return the share of the looks whose view shows the middle of a box that have a box there."""
    x, y = (box[:2] + box[2:]) / 2
    found = set(origin[pairwise_iou(box[None], boxes)[0] >= iou].tolist())
    able = {
        number
        for number, look in enumerate(looks)
        if look.region is None
        or (look.region[0] <= x <= look.region[2] and look.region[1] <= y <= look.region[3])
        or number in found
    }
    return max(1, len(found)) / max(1, len(able))


def _order(boxes: Floats, scores: Floats, labels: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Return what sorts by score, best first, and equal scores by their boxes, so that no order of input shows."""
    keys = [boxes[:, column] for column in (3, 2, 1, 0)] + ([] if labels is None else [labels]) + [-scores]
    return np.asarray(np.lexsort(keys), np.int64)
