"""Learning from a teacher's soft answers: every query of the teacher says how likely each class is, and where.

The class heads are sigmoids, so each class is a binary problem of its own (BCKD, arXiv 2308.14286), and quality focal
loss (arXiv 2006.04388) is the focal loss that takes a probability for an answer.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from cahqp.detectors.base import Output
from cahqp.detectors.losses.boxes import cxcywh_to_xyxy, iou_and_giou
from cahqp.detectors.losses.distributed import sum_over_ranks, world_size
from cahqp.errors import ConfigError


@dataclass(frozen=True)
class SoftTargets:
    """What the teacher said of a batch.

    Attributes:
        probs: (B, N, C) in 0..1 of every query of the teacher.
        boxes: (B, N, 4) cxcywh in 0..1 of each image's valid part.
    """

    probs: Tensor
    boxes: Tensor

    def to(self, device: torch.device | str) -> SoftTargets:
        """Return the same on another device."""
        return SoftTargets(self.probs.to(device), self.boxes.to(device))


@dataclass
class DistillationSettings:
    """How a student learns from soft answers.

    Attributes:
        weight: Of the whole, beside the loss on labelled frames.
        floor: A teacher's query whose surest class is less likely than this is no object: what the student says there
            should be nothing.
        gamma: Of the quality focal loss.
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
        """Check the ranges, all together."""
        wrong = [f"distillation.{f.name} must not be negative." for f in fields(self) if not getattr(self, f.name) >= 0]
        if not self.floor < 1:
            wrong.append(f"distillation.floor must lie in 0..1, got {self.floor}.")
        if wrong:
            raise ConfigError("\n".join(wrong))


@dataclass(frozen=True)
class DistillationCriterion:
    """Losses between a student's queries and a teacher's, on every decoder layer and the encoder's proposals.

    The queries of both are sets. Hungarian matching finds, for each of the teacher's objects, the student's query that
    answers it at least cost; an object counts with its surest probability, in the matching, in the box losses, and in
    the number that all sums are divided by. So nothing needs a threshold: what the teacher half believes, half counts.
    A student's query without a partner is to say nothing.

    Attributes:
        settings: Weights.
    """

    settings: DistillationSettings

    def __call__(self, output: Output, soft: SoftTargets) -> dict[str, Tensor]:
        """Return weighted losses by name: `soft_class`, `soft_bbox`, `soft_giou`, each (L + 1,).

        Args:
            output: Of the student, for the images that the teacher saw.
            soft: Of as many images, and of as many classes.
        """
        with torch.autocast(output.pred_logits.device.type, enabled=False):
            logits, boxes = output.layers()
            soft = surest(soft, min(logits.shape[2], soft.probs.shape[1]))
            sure = soft.probs.amax(-1)
            sure = sure * (sure >= self.settings.floor)
            normaliser = sum_over_ranks(sure.sum()).clamp(min=1) / world_size() * output.groups
            layer, image, query, target = self._match(logits, boxes, soft, sure)
            return self._losses(logits, boxes, soft, sure[image, target], (layer, image, query), target, normaliser)

    def _losses(
        self,
        logits: Tensor,
        boxes: Tensor,
        soft: SoftTargets,
        weights: Tensor,
        place: tuple[Tensor, Tensor, Tensor],
        target: Tensor,
        normaliser: Tensor,
    ) -> dict[str, Tensor]:
        layer, image, _ = place
        wanted = torch.zeros_like(logits)
        wanted[place] = soft.probs[image, target]
        focus = (wanted - logits.sigmoid()).abs() ** self.settings.gamma
        classes = focus * functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        predicted, ground_truth = boxes[place], soft.boxes[image, target]
        _, giou = iou_and_giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(ground_truth))

        def per_layer(values: Tensor) -> Tensor:
            return values.new_zeros(len(logits)).index_add(0, layer, values * weights) / normaliser

        return {
            "soft_class": self.settings.class_weight * classes.sum((1, 2, 3)) / normaliser,
            "soft_bbox": self.settings.bbox_weight * per_layer((predicted - ground_truth).abs().sum(-1)),
            "soft_giou": self.settings.giou_weight * per_layer(1 - giou),
        }

    @torch.no_grad()
    def _match(self, logits: Tensor, boxes: Tensor, soft: SoftTargets, sure: Tensor) -> tuple[Tensor, ...]:
        """Return layer, image, student's query and teacher's query of every pair."""
        if not (logits.isfinite().all() & boxes.isfinite().all()):
            message = "The predictions are not finite. Lower the learning rate, or train in bf16 instead of fp16."
            raise FloatingPointError(message)
        cost = self.cost(logits, boxes, soft, sure).cpu().numpy()
        objects = [np.flatnonzero(row) for row in sure.cpu().numpy()]
        found = []
        for layer, image in np.ndindex(cost.shape[:2]):
            query, column = linear_sum_assignment(cost[layer, image][:, objects[image]])
            target = objects[image][column]
            found.append(np.stack([np.full_like(query, layer), np.full_like(query, image), query, target]))
        return tuple(torch.from_numpy(np.concatenate(found, 1).astype(np.int64)).to(logits.device))

    def cost(self, logits: Tensor, boxes: Tensor, soft: SoftTargets, sure: Tensor) -> Tensor:
        """Return (L, B, Q, N): DETR's cost (focal form), classes by their probability, boxes by the surest one."""
        prob = logits.sigmoid()
        positive = 0.25 * (1 - prob) ** 2 * -(prob + 1e-8).log()
        negative = 0.75 * prob**2 * -(1 - prob + 1e-8).log()
        classes = torch.einsum("lbqc,bnc->lbqn", positive - negative, soft.probs)
        distance = (boxes[:, :, :, None] - soft.boxes[None, :, None]).abs().sum(-1)
        _, giou = iou_and_giou(cxcywh_to_xyxy(boxes)[:, :, :, None], cxcywh_to_xyxy(soft.boxes)[None, :, None])
        places = self.settings.bbox_weight * distance - self.settings.giou_weight * giou
        return self.settings.class_weight * classes + sure[None, :, None] * places


def surest(soft: SoftTargets, count: int) -> SoftTargets:
    """Return the queries whose surest class is most likely, `count` of each image, in the teacher's order."""
    if count == soft.probs.shape[1]:
        return soft
    rows = soft.probs.amax(-1).topk(count, 1).indices.sort(1).values[..., None]
    return SoftTargets(
        soft.probs.gather(1, rows.expand(-1, -1, soft.probs.shape[-1])), soft.boxes.gather(1, rows.expand(-1, -1, 4))
    )


def answers(output: Output) -> SoftTargets:
    """Return a teacher's output as soft targets."""
    return SoftTargets(output.pred_logits.detach().float().sigmoid(), output.pred_boxes.detach().float())
