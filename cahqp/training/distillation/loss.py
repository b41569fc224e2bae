"""Distillation losses on soft labels: class probabilities and boxes of all queries of the teacher.

The class heads are sigmoids, so each class is a binary problem (BCKD, arXiv 2308.14286). Quality focal loss
(arXiv 2006.04388) is the focal loss for probabilities as targets.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from cahqp.detectors.base import Detector, Output
from cahqp.detectors.losses.boxes import cxcywh_to_xyxy, iou_and_giou
from cahqp.detectors.losses.distributed import sum_over_ranks, world_size
from cahqp.errors import ConfigError
from cahqp.structures import Batch


@dataclass(frozen=True)
class SoftTargets:
    """Soft labels of a batch.

    Attributes:
        probs: (B, N, C) class probabilities in 0..1 of every query of the teacher.
        boxes: (B, N, 4) cxcywh in 0..1 of each image's valid part.
    """

    probs: Tensor
    boxes: Tensor

    def to(self, device: torch.device | str) -> SoftTargets:
        """Return the same on another device."""
        return SoftTargets(self.probs.to(device), self.boxes.to(device))


@dataclass
class DistillationSettings:
    """Settings of distillation.

    Attributes:
        weight: Weight of all distillation losses, beside the loss on labelled frames.
        floor: Lowest probability of the best class at which a teacher's query is an object. Below it, the target of
            the student is background.
        gamma: Exponent of the quality focal loss.
        class_weight: Weight of the class loss, and of the classes in the matching.
        bbox_weight: Weight of the L1 loss, and of L1 in the matching.
        giou_weight: Weight of the generalised IoU loss, and of it in the matching.
    """

    weight: float = 1.0
    floor: float = 0.05
    gamma: float = 2.0
    class_weight: float = 2.0
    bbox_weight: float = 5.0
    giou_weight: float = 2.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: Settings are out of range. The message lists all of them.
        """
        wrong = [f"distillation.{f.name} must not be negative." for f in fields(self) if not getattr(self, f.name) >= 0]
        if not self.floor < 1:
            wrong.append(f"distillation.floor must lie in 0..1, got {self.floor}.")
        if wrong:
            raise ConfigError("\n".join(wrong))


@dataclass(frozen=True)
class DistillationCriterion:
    """Losses between the queries of student and teacher, on every decoder layer and the encoder's proposals.

    Hungarian matching assigns a query of the student to each object of the teacher. Objects are weighted by their
    highest class probability: in the matching, in the box losses, and in the normaliser of all sums. So no threshold
    is needed. The target of an unmatched query of the student is background.

    Attributes:
        settings: Weights of the losses.
    """

    settings: DistillationSettings

    def __call__(self, output: Output, soft: SoftTargets) -> dict[str, Tensor]:
        """Return weighted losses by name: `soft_class`, `soft_bbox`, `soft_giou`, each (L + 1,).

        Args:
            output: Output of the student.
            soft: Soft labels of the same images and classes.
        """
        with torch.autocast(output.pred_logits.device.type, enabled=False):
            logits, boxes = output.layers()
            soft = best_queries(soft, min(logits.shape[2], soft.probs.shape[1]))
            weights = soft.probs.amax(-1)
            weights = weights * (weights >= self.settings.floor)
            normaliser = sum_over_ranks(weights.sum()).clamp(min=1) / world_size() * output.groups
            layer, image, query, target = self._match(logits, boxes, soft, weights)
            matched = (layer, image, query)
            return self._losses(logits, boxes, soft, weights[image, target], matched, target, normaliser)

    def _losses(
        self,
        logits: Tensor,
        boxes: Tensor,
        soft: SoftTargets,
        weights: Tensor,
        matched: tuple[Tensor, Tensor, Tensor],
        target: Tensor,
        normaliser: Tensor,
    ) -> dict[str, Tensor]:
        layer, image, _ = matched
        class_targets = torch.zeros_like(logits)
        class_targets[matched] = soft.probs[image, target]
        focus = (class_targets - logits.sigmoid()).abs() ** self.settings.gamma
        classes = focus * functional.binary_cross_entropy_with_logits(logits, class_targets, reduction="none")
        predicted, box_targets = boxes[matched], soft.boxes[image, target]
        _, giou = iou_and_giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(box_targets))

        def per_layer(values: Tensor) -> Tensor:
            return values.new_zeros(len(logits)).index_add(0, layer, values * weights) / normaliser

        return {
            "soft_class": self.settings.class_weight * classes.sum((1, 2, 3)) / normaliser,
            "soft_bbox": self.settings.bbox_weight * per_layer((predicted - box_targets).abs().sum(-1)),
            "soft_giou": self.settings.giou_weight * per_layer(1 - giou),
        }

    @torch.no_grad()
    def _match(self, logits: Tensor, boxes: Tensor, soft: SoftTargets, weights: Tensor) -> tuple[Tensor, ...]:
        """Return layer, image, query of the student and query of the teacher for every matched pair."""
        if not (logits.isfinite().all() & boxes.isfinite().all()):
            message = "The predictions are not finite. Lower the learning rate, or train in bf16 instead of fp16."
            raise FloatingPointError(message)
        cost = self.cost(logits, boxes, soft, weights).cpu().numpy()
        objects = [np.flatnonzero(row) for row in weights.cpu().numpy()]
        pairs = []
        for layer, image in np.ndindex(cost.shape[:2]):
            query, column = linear_sum_assignment(cost[layer, image][:, objects[image]])
            target = objects[image][column]
            pairs.append(np.stack([np.full_like(query, layer), np.full_like(query, image), query, target]))
        return tuple(torch.from_numpy(np.concatenate(pairs, 1).astype(np.int64)).to(logits.device))

    def cost(self, logits: Tensor, boxes: Tensor, soft: SoftTargets, weights: Tensor) -> Tensor:
        """Return DETR's matching cost, (L, B, Q, N): focal class cost by probability, box cost by `weights`."""
        prob = logits.sigmoid()
        positive = 0.25 * (1 - prob) ** 2 * -(prob + 1e-8).log()
        negative = 0.75 * prob**2 * -(1 - prob + 1e-8).log()
        classes = torch.einsum("lbqc,bnc->lbqn", positive - negative, soft.probs)
        distance = (boxes[:, :, :, None] - soft.boxes[None, :, None]).abs().sum(-1)
        _, giou = iou_and_giou(cxcywh_to_xyxy(boxes)[:, :, :, None], cxcywh_to_xyxy(soft.boxes)[None, :, None])
        box_cost = self.settings.bbox_weight * distance - self.settings.giou_weight * giou
        return self.settings.class_weight * classes + weights[None, :, None] * box_cost


def best_queries(soft: SoftTargets, count: int) -> SoftTargets:
    """Return `count` queries of each image, with the highest class probabilities, in the teacher's order."""
    if count == soft.probs.shape[1]:
        return soft
    rows = soft.probs.amax(-1).topk(count, 1).indices.sort(1).values[..., None]
    return SoftTargets(
        soft.probs.gather(1, rows.expand(-1, -1, soft.probs.shape[-1])), soft.boxes.gather(1, rows.expand(-1, -1, 4))
    )


def soft_targets(teacher: Detector, batch: Batch) -> SoftTargets:
    """Return the teacher's soft labels of a batch."""
    images = teacher.preprocessing.normalise(batch.images, batch.padding_mask)
    return as_soft_targets(teacher(images, batch.padding_mask))


def as_soft_targets(output: Output) -> SoftTargets:
    """Return class probabilities and boxes of all queries of a teacher's output."""
    return SoftTargets(output.pred_logits.detach().float().sigmoid(), output.pred_boxes.detach().float())
