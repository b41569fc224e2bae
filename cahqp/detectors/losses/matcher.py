"""Hungarian matching of predictions to boxes (DETR, arXiv 2005.12872, section 3.1), all layers at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cahqp.detectors.losses.distributed import maximum_over_ranks
from cahqp.detectors.losses.targets import PaddedTargets


@dataclass(frozen=True)
class Assignments:
    """Indices of K assigned pairs of query and box. All (K,) int64."""

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor


@dataclass(frozen=True)
class HungarianMatcher:
    """One-to-one assignment of the lowest total cost.

    Attributes:
        class_cost: Weight of the focal class cost.
        bbox_cost: Weight of the L1 distance of cxcywh boxes.
        giou_cost: Weight of the negative generalised IoU.
        alpha: Balance factor of the focal cost.
        gamma: Focusing exponent of the focal cost.
    """

    class_cost: float = 2.0
    bbox_cost: float = 5.0
    giou_cost: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0

    @torch.no_grad()
    def __call__(self, logits: Tensor, boxes: Tensor, targets: PaddedTargets) -> Assignments:
        """Match the queries of every layer and image to its boxes.

        Args:
            logits: (L, B, Q, C).
            boxes: (L, B, Q, 4) cxcywh in 0..1.
            targets: Boxes of the same B images.

        Raises:
            FloatingPointError: A prediction is not finite on any rank. All ranks raise, so that none waits for another.
        """
        finite = bool(logits.isfinite().all() & boxes.isfinite().all())
        if maximum_over_ranks(int(not finite), logits.device):
            message = "The predictions are not finite. Lower the learning rate, or train in bf16 instead of fp16."
            raise FloatingPointError(message)
        cost = self.cost(logits, boxes, targets).cpu().numpy()
        pairs = []
        for layer, image in np.ndindex(cost.shape[:2]):
            query, target = linear_sum_assignment(cost[layer, image, :, : targets.counts[image]])
            pairs.append(np.stack([np.full_like(query, layer), np.full_like(query, image), query, target]))
        return Assignments(*torch.from_numpy(np.concatenate(pairs, 1).astype(np.int64)).to(logits.device))

    def cost(self, logits: Tensor, boxes: Tensor, targets: PaddedTargets) -> Tensor:
        """Return (L, B, Q, M) costs; columns beyond an image's count are meaningless."""
        layers, _, queries, _ = logits.shape
        index = targets.labels[None, :, :, None].expand(layers, -1, -1, queries)
        prob = logits.transpose(2, 3).contiguous().gather(2, index).sigmoid()
        positive = self.alpha * (1 - prob) ** self.gamma * -(prob + 1e-8).log()
        negative = (1 - self.alpha) * prob**self.gamma * -(1 - prob + 1e-8).log()
        distance, giou = distance_and_giou(boxes, targets.boxes[None])
        cost = self.class_cost * (positive - negative) + self.bbox_cost * distance - self.giou_cost * giou
        return cost.transpose(2, 3)


def distance_and_giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the L1 distance and the generalised IoU of all pairs, (..., M, Q) each.

    Equal to `iou_and_giou`, but computed per coordinate with the longer axis last, so that a CPU vectorises over
    queries instead of the two coordinates of a corner.

    Args:
        a: (..., Q, 4) cxcywh.
        b: (..., M, 4) cxcywh; leading axes broadcast.
    """
    (x, y, w, h), (x2, y2, w2, h2) = _unbind(a, -2), _unbind(b, -1)
    distance = (x - x2).abs() + (y - y2).abs() + (w - w2).abs() + (h - h2).abs()
    left, right, left2, right2 = x - w / 2, x + w / 2, x2 - w2 / 2, x2 + w2 / 2
    top, bottom, top2, bottom2 = y - h / 2, y + h / 2, y2 - h2 / 2, y2 + h2 / 2
    shared = (torch.minimum(right, right2) - torch.maximum(left, left2)).clamp_(min=0)
    shared *= (torch.minimum(bottom, bottom2) - torch.maximum(top, top2)).clamp_(min=0)
    area = (right - left).clamp(min=0) * (bottom - top).clamp(min=0)
    union = (area + (right2 - left2).clamp(min=0) * (bottom2 - top2).clamp(min=0)) - shared
    hull = torch.maximum(right, right2) - torch.minimum(left, left2)
    hull *= torch.maximum(bottom, bottom2) - torch.minimum(top, top2)
    hull = hull.clamp_(min=1e-12)
    return distance, shared / union.clamp(min=1e-12) - (hull - union) / hull


def _unbind(boxes: Tensor, axis: int) -> list[Tensor]:
    """Return the four coordinates of (..., N, 4) boxes, each with one more axis to broadcast along."""
    return [side.contiguous().unsqueeze(axis) for side in boxes.unbind(-1)]
