"""The set criterion of DINO and RT-DETR: focal or varifocal class loss, L1 and generalised IoU, denoising.

Equals the published losses when all weights are one, nothing is ignored, the batch has a box and there is one rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from cahqp.detectors.base import DenoisingOutput, Output
from cahqp.detectors.losses.boxes import area, cxcywh_to_xyxy, intersection, iou_and_giou, xyxy_to_cxcywh
from cahqp.detectors.losses.distributed import sum_over_ranks, world_size
from cahqp.detectors.losses.labels import check_labels
from cahqp.detectors.losses.matcher import HungarianMatcher, Matches, PaddedTargets
from cahqp.structures import Targets


def pad_targets(targets: Sequence[Targets], sizes: Tensor) -> PaddedTargets:
    """Put the boxes of a batch side by side, as cxcywh in 0..1.

    Args:
        targets: One per image, boxes xyxy in pixels of the batch.
        sizes: (B, 2) height and width of the valid parts.
    """
    counts = [len(t) for t in targets]
    slots = max(counts, default=0)
    labels = torch.zeros(len(targets), slots, dtype=torch.long, device=sizes.device)
    boxes = torch.zeros(len(targets), slots, 4, device=sizes.device)
    weights = torch.zeros(len(targets), slots, device=sizes.device)
    for row, target in enumerate(targets):
        labels[row, : counts[row]] = target.labels
        boxes[row, : counts[row]] = target.boxes
        weights[row, : counts[row]] = target.weights
    return PaddedTargets(labels, xyxy_to_cxcywh(boxes / sizes[:, None, [1, 0, 1, 0]]), weights, counts)


@dataclass
class SetCriterion:
    """Losses of all layers, the encoder's proposals and the denoising queries, each already weighted.

    A box counts with its weight. A query that matches nothing and lies mostly in an ignored region counts as neither
    object nor background. Sums are divided by the weight of all boxes over all ranks, so that several processes have
    the gradient of one with the whole batch.

    Attributes:
        class_loss: `focal` (arXiv 1708.02002) or `varifocal` (arXiv 2008.13367).
        class_weight: Weight of the class loss.
        bbox_weight: Weight of the L1 loss.
        giou_weight: Weight of the generalised IoU loss.
        alpha: Of the class loss; 0.25 in focal, 0.75 in varifocal where not given.
        gamma: Of the class loss.
        ignore_overlap: Share of a prediction inside ignored regions from which on it is left out.
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
        """Return weighted losses by name.

        Returns:
            `class`, `bbox`, `giou`: (K,) of the decoder layers in order, then of the encoder's proposals if any;
            `dn_class`, `dn_bbox`, `dn_giou`: (L,) where there are denoising queries. Their total is what is minimised.

        Raises:
            DataError: A target has a label that the detector has no class for.
        """
        check_labels(targets, output.pred_logits.shape[-1])
        with torch.autocast(output.pred_logits.device.type, enabled=False):
            padded = pad_targets(targets, output.sizes)
            normaliser = sum_over_ranks(padded.weights.sum()).clamp(min=1) / world_size() * output.groups
            logits, boxes = output.layers()
            matches = self.matcher(logits, boxes, padded)
            losses = self._losses(logits, boxes, padded, matches, targets, output.sizes, normaliser)
            if output.denoising is not None:
                losses |= self._denoising(output.denoising, padded, targets, output.sizes, normaliser)
        return losses

    def _denoising(
        self,
        denoising: DenoisingOutput,
        padded: PaddedTargets,
        targets: Sequence[Targets],
        sizes: Tensor,
        normaliser: Tensor,
    ) -> dict[str, Tensor]:
        matches = denoising_matches(denoising, padded)
        logits, boxes = denoising.logits.float(), denoising.boxes.float()
        losses = self._losses(logits, boxes, padded, matches, targets, sizes, normaliser * denoising.groups)
        return {f"dn_{name}": value for name, value in losses.items()}

    def _losses(
        self,
        logits: Tensor,
        boxes: Tensor,
        padded: PaddedTargets,
        matches: Matches,
        targets: Sequence[Targets],
        sizes: Tensor,
        normaliser: Tensor,
    ) -> dict[str, Tensor]:
        place = (matches.layer, matches.image, matches.query)
        labels = padded.labels[matches.image, matches.target]
        weights = padded.weights[matches.image, matches.target]
        predicted, wanted = boxes[place], padded.boxes[matches.image, matches.target]
        iou, giou = iou_and_giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(wanted))
        share = self._query_weights(boxes, targets, sizes)
        share[place] = weights
        classes = self._class_loss(logits, place, labels, iou.detach()) * share[..., None]

        def per_layer(values: Tensor) -> Tensor:
            return values.new_zeros(len(logits)).index_add(0, matches.layer, values * weights)

        return {
            "class": self.class_weight * classes.sum((1, 2, 3)) / normaliser,
            "bbox": self.bbox_weight * per_layer((predicted - wanted).abs().sum(-1)) / normaliser,
            "giou": self.giou_weight * per_layer(1 - giou) / normaliser,
        }

    def _class_loss(self, logits: Tensor, place: tuple[Tensor, Tensor, Tensor], labels: Tensor, iou: Tensor) -> Tensor:
        """Return (L, B, Q, C) losses of every query and class."""
        prob = logits.sigmoid()
        if self.class_loss == "focal":
            alpha = 0.25 if self.alpha is None else self.alpha
            weight = (1 - alpha) * prob**self.gamma
            loss = weight * functional.softplus(logits)
            matched = logits[(*place, labels)]
            loss[(*place, labels)] = alpha * (1 - matched.sigmoid()) ** self.gamma * functional.softplus(-matched)
            return loss
        alpha = 0.75 if self.alpha is None else self.alpha
        score = torch.zeros_like(logits)
        weight = alpha * prob.detach() ** self.gamma
        score[(*place, labels)] = iou
        weight[(*place, labels)] = iou
        return functional.binary_cross_entropy_with_logits(logits, score, weight, reduction="none")

    def _query_weights(self, boxes: Tensor, targets: Sequence[Targets], sizes: Tensor) -> Tensor:
        """Return (L, B, Q): zero where a prediction lies mostly in an ignored region, else one."""
        weights = boxes.new_ones(boxes.shape[:3])
        for image, target in enumerate(targets):
            if len(target.ignore):
                corners = cxcywh_to_xyxy(boxes[:, image].detach())[:, :, None]
                regions = target.ignore / sizes[image, [1, 0, 1, 0]]
                inside = intersection(corners, regions).amax(-1) / area(corners[:, :, 0]).clamp(min=1e-12)
                weights[:, image] = (inside < self.ignore_overlap).to(weights)
        return weights


def denoising_matches(denoising: DenoisingOutput, targets: PaddedTargets) -> Matches:
    """Return which positive denoising query of every layer and group belongs to which box."""
    device = denoising.logits.device
    layers, groups = len(denoising.logits), denoising.groups
    image = torch.repeat_interleave(
        torch.arange(len(targets.counts), device=device), torch.tensor(targets.counts, device=device)
    )
    target = torch.cat([torch.arange(count, device=device) for count in targets.counts])
    start = torch.arange(groups, device=device) * 2 * denoising.slots
    query = (start[:, None] + target[None]).flatten()
    per_layer = len(query)
    return Matches(
        torch.arange(layers, device=device).repeat_interleave(per_layer),
        image.repeat(layers * groups),
        query.repeat(layers),
        target.repeat(layers * groups),
    )
