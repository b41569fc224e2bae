"""Set criterion of DINO and RT-DETR: focal or varifocal class loss, L1 and generalised IoU, denoising.

Equals the published losses if all weights are one, nothing is ignored, the batch has a box and there is one rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from cahqp.detectors.base import DenoisingOutput, Output
from cahqp.detectors.losses.boxes import area, cxcywh_to_xyxy, intersection, iou_and_giou
from cahqp.detectors.losses.distributed import sum_over_ranks, world_size
from cahqp.detectors.losses.matcher import Assignments, HungarianMatcher
from cahqp.detectors.losses.targets import PaddedTargets, check_labels, pad_targets
from cahqp.structures import Targets


@dataclass
class SetCriterion:
    """Weighted losses of all decoder layers, the encoder's proposals and the denoising queries.

    Each box counts with its weight. An unmatched query that lies mostly in an ignored region counts as neither object
    nor background. Sums are divided by the weight of all boxes and the expected number of objects in ignored regions
    (`Targets.ignore_weights`), over all ranks. So several processes have the gradient of one with the whole batch.

    Attributes:
        class_loss: `focal` (arXiv 1708.02002) or `varifocal` (arXiv 2008.13367).
        class_weight: Weight of the class loss.
        bbox_weight: Weight of the L1 loss.
        giou_weight: Weight of the generalised IoU loss.
        alpha: Balance factor of the class loss; by default 0.25 for focal, 0.75 for varifocal.
        gamma: Focusing exponent of the class loss.
        ignore_overlap: Share of a prediction inside ignored regions from which it is ignored, in 0..1.
        matcher: Assigns predictions to boxes.
    """

    class_loss: str = "focal"
    class_weight: float = 1.0
    bbox_weight: float = 5.0
    giou_weight: float = 2.0
    alpha: float | None = None
    gamma: float = 2.0
    ignore_overlap: float = 0.5
    matcher: HungarianMatcher = field(default_factory=HungarianMatcher)

    def __post_init__(self) -> None:
        """Check the name of the class loss."""
        if self.class_loss not in ("focal", "varifocal"):
            message = f"class_loss must be focal or varifocal, got {self.class_loss!r}."
            raise ValueError(message)

    def __call__(self, output: Output, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Return weighted losses by name; their total is the training loss.

        Returns:
            `class`, `bbox`, `giou`: (K,) of the decoder layers in order, then of the encoder's proposals if any;
            `dn_class`, `dn_bbox`, `dn_giou`: (L,) if there are denoising queries.

        Raises:
            DataError: The detector has no class for a label.
        """
        check_labels(targets, output.pred_logits.shape[-1])
        with torch.autocast(output.pred_logits.device.type, enabled=False):
            padded = pad_targets(targets, output.sizes)
            normaliser = sum_over_ranks(padded.objects).clamp(min=1) / world_size() * output.groups
            logits, boxes = output.layers()
            weights = self._query_weights(boxes, targets, output.sizes)
            losses = self._losses(logits, boxes, padded, self.matcher(logits, boxes, padded), weights, normaliser)
            if (denoising := output.denoising) is not None:
                assignments = denoising_assignments(denoising, padded)
                logits, boxes = denoising.logits.float(), denoising.boxes.float()
                weights, total = self._query_weights(boxes, targets, output.sizes), normaliser * denoising.groups
                denoised = self._losses(logits, boxes, padded, assignments, weights, total)
                losses |= {f"dn_{name}": value for name, value in denoised.items()}
        return losses

    def _losses(
        self,
        logits: Tensor,
        boxes: Tensor,
        padded: PaddedTargets,
        assignments: Assignments,
        query_weights: Tensor,
        normaliser: Tensor,
    ) -> dict[str, Tensor]:
        matched = (assignments.layer, assignments.image, assignments.query)
        target = (assignments.image, assignments.target)
        weights = padded.weights[target]
        predicted, expected = boxes[matched], padded.boxes[target]
        iou, giou = iou_and_giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(expected))
        query_weights = query_weights.index_put(matched, weights)
        classes = self._class_loss(logits, matched, padded.labels[target], iou.detach()) * query_weights[..., None]

        def per_layer(values: Tensor) -> Tensor:
            return values.new_zeros(len(logits)).index_add(0, assignments.layer, values * weights)

        return {
            "class": self.class_weight * classes.sum((1, 2, 3)) / normaliser,
            "bbox": self.bbox_weight * per_layer((predicted - expected).abs().sum(-1)) / normaliser,
            "giou": self.giou_weight * per_layer(1 - giou) / normaliser,
        }

    def class_losses_of(self, logits: Tensor, labels: Tensor, iou: Tensor) -> Tensor:
        """Return (N,) class losses, without weights, of (N, C) matched logits; `iou` (N,) is that of their boxes."""
        rows = torch.arange(len(logits), device=logits.device)
        first = torch.zeros_like(rows)
        return self._class_loss(logits[None, None], (first, first, rows), labels, iou)[0, 0].sum(-1)

    def _class_loss(self, logits: Tensor, matched: tuple[Tensor, ...], labels: Tensor, iou: Tensor) -> Tensor:
        """Return the (L, B, Q, C) losses of every query and class."""
        prob = logits.sigmoid()
        if self.class_loss == "focal":
            alpha = 0.25 if self.alpha is None else self.alpha
            loss = (1 - alpha) * prob**self.gamma * functional.softplus(logits)
            positive = logits[(*matched, labels)]
            loss[(*matched, labels)] = alpha * (1 - positive.sigmoid()) ** self.gamma * functional.softplus(-positive)
            return loss
        alpha = 0.75 if self.alpha is None else self.alpha
        score = torch.zeros_like(logits)
        weight = alpha * prob.detach() ** self.gamma
        score[(*matched, labels)] = iou
        weight[(*matched, labels)] = iou
        return functional.binary_cross_entropy_with_logits(logits, score, weight, reduction="none")

    def _query_weights(self, boxes: Tensor, targets: Sequence[Targets], sizes: Tensor) -> Tensor:
        """Return (L, B, Q) weights: zero for a prediction mostly in an ignored region, else one."""
        weights = boxes.new_ones(boxes.shape[:3])
        for image, target in enumerate(targets):
            if len(target.ignore):
                corners = cxcywh_to_xyxy(boxes[:, image].detach())[:, :, None]
                regions = target.ignore / sizes[image, [1, 0, 1, 0]]
                inside = intersection(corners, regions).amax(-1) / area(corners[:, :, 0]).clamp(min=1e-12)
                weights[:, image] = (inside < self.ignore_overlap).to(weights)
        return weights


def denoising_assignments(denoising: DenoisingOutput, targets: PaddedTargets) -> Assignments:
    """Return the assignments of the positive denoising queries of every layer and group to their boxes."""
    device = denoising.logits.device
    layers, groups = len(denoising.logits), denoising.groups
    counts = torch.tensor(targets.counts, device=device)
    image = torch.repeat_interleave(torch.arange(len(counts), device=device), counts)
    target = torch.cat([torch.arange(count, device=device) for count in targets.counts])
    start = torch.arange(groups, device=device) * 2 * denoising.slots
    query = (start[:, None] + target[None]).flatten()
    layer = torch.arange(layers, device=device).repeat_interleave(len(query))
    return Assignments(layer, image.repeat(layers * groups), query.repeat(layers), target.repeat(layers * groups))
