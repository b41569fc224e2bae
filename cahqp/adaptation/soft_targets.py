"""Soft targets: a pseudo-box trains towards the teacher's scores of all classes instead of the best class alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cahqp.detectors.base import Output
from cahqp.detectors.losses.boxes import cxcywh_to_xyxy, iou_and_giou
from cahqp.detectors.losses.criterion import SetCriterion
from cahqp.detectors.losses.distributed import sum_over_ranks, world_size
from cahqp.detectors.losses.targets import pad_targets
from cahqp.structures import Targets


@torch.no_grad()
def class_scores(output: Output, targets: Sequence[Targets]) -> list[Tensor]:
    """Return per image (N, C) scores of the query that each pseudo-box came from.

    Args:
        output: Output of the teacher.
        targets: Pseudo-labels in pixels of the batch.
    """
    sizes = output.sizes[:, None, [1, 0, 1, 0]]
    boxes = cxcywh_to_xyxy(output.pred_boxes.float()) * sizes
    origin = [torch.cdist(target.boxes, row, p=1).argmin(1) for target, row in zip(targets, boxes, strict=True)]
    scores = output.pred_logits.float().sigmoid()
    return [row[index] for row, index in zip(scores, origin, strict=True)]


def soften(
    losses: Tensor, criterion: SetCriterion, output: Output, targets: Sequence[Targets], scores: Sequence[Tensor]
) -> Tensor:
    """Return the class loss of every layer with soft targets instead of hard ones.

    The hard loss of a matched query is replaced by the quality focal loss `|y - p|^gamma BCE(p, y)` (Li et al. 2020)
    towards the teacher's scores y. Unmatched and ignored queries keep their loss.

    Args:
        losses: (K,) losses `class` of the criterion.
        criterion: Criterion that returned them.
        output: Output of the learner.
        targets: Pseudo-labels of the same images.
        scores: (N, C) per image, from `class_scores`.
    """
    with torch.autocast(losses.device.type, enabled=False):
        padded = pad_targets(targets, output.sizes)
        normaliser = sum_over_ranks(padded.objects).clamp(min=1) / world_size() * output.groups
        logits, boxes = output.layers()
        matches = criterion.matcher(logits, boxes, padded)
        starts = torch.tensor([0, *padded.counts], device=losses.device).cumsum(0)
        teacher_scores = torch.cat(list(scores))[starts[matches.image] + matches.target]
        matched, target = (matches.layer, matches.image, matches.query), (matches.image, matches.target)
        rows = logits[matched]
        iou, _ = iou_and_giou(cxcywh_to_xyxy(boxes[matched]), cxcywh_to_xyxy(padded.boxes[target]))
        hard = criterion.class_losses_of(rows, padded.labels[target], iou.detach())
        change = _quality_focal(rows, teacher_scores, criterion.gamma) - hard
        change = criterion.class_weight * change * padded.weights[target] / normaliser
        return losses.index_add(0, matches.layer, change)


def _quality_focal(logits: Tensor, teacher_scores: Tensor, gamma: float) -> Tensor:
    """Return (K,) losses of (K, C) logits."""
    distance = (teacher_scores - logits.sigmoid()).abs() ** gamma
    return (distance * F.binary_cross_entropy_with_logits(logits, teacher_scores, reduction="none")).sum(-1)
