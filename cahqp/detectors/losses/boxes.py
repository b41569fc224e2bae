"""Box arithmetic. Boxes are xyxy unless a name says cxcywh."""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Return corners for (..., 4) centres and sides."""
    centre, side = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - side / 2, centre + side / 2], -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Return centres and sides for (..., 4) corners."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def area(boxes: Tensor) -> Tensor:
    """Return (...) areas; zero where a box is turned inside out."""
    side = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return side[..., 0] * side[..., 1]


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Return the shared areas of boxes that broadcast against each other."""
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
