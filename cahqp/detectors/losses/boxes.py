"""Box arithmetic. Boxes are xyxy unless a name contains cxcywh."""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Return xyxy corners for (..., 4) cxcywh boxes."""
    centre, side = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - side / 2, centre + side / 2], -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Return cxcywh boxes for (..., 4) xyxy corners."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def area(boxes: Tensor) -> Tensor:
    """Return (...) areas; zero for inverted boxes."""
    side = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return side[..., 0] * side[..., 1]


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection areas of boxes that broadcast against each other."""
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    side = (high - low).clamp(min=0)
    return side[..., 0] * side[..., 1]


def iou_and_giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and generalised IoU (arXiv 1902.09630) of boxes that broadcast against each other."""
    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    iou = shared / union.clamp(min=1e-12)
    low = torch.minimum(a[..., :2], b[..., :2])
    high = torch.maximum(a[..., 2:], b[..., 2:])
    hull = ((high - low)[..., 0] * (high - low)[..., 1]).clamp(min=1e-12)
    return iou, iou - (hull - union) / hull
