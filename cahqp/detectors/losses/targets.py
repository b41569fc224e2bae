"""Padded targets of a batch, and the check of their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cahqp.detectors.losses.boxes import xyxy_to_cxcywh
from cahqp.errors import DataError
from cahqp.structures import Targets


@dataclass(frozen=True)
class PaddedTargets:
    """Boxes of a batch in tensors of one length.

    Attributes:
        labels: (B, M) class indices.
        boxes: (B, M, 4) cxcywh in 0..1.
        weights: (B, M), zero in empty slots.
        counts: Number of boxes per image.
        objects: Weight of all boxes, and expected number of objects in ignored regions.
    """

    labels: Tensor
    boxes: Tensor
    weights: Tensor
    counts: list[int]
    objects: Tensor


def pad_targets(
    targets: Sequence[Targets], sizes: Tensor, slots: int | None = None, empty_label: int = 0
) -> PaddedTargets:
    """Return the targets of a batch padded to one length, as cxcywh in 0..1.

    Args:
        targets: One per image, boxes xyxy in pixels of the batch.
        sizes: (B, 2) height and width of the valid parts.
        slots: Length M; the largest number of boxes in an image by default.
        empty_label: Label of empty slots.
    """
    counts = [len(t) for t in targets]
    slots = max(counts, default=0) if slots is None else slots
    labels = torch.full((len(targets), slots), empty_label, device=sizes.device)
    boxes = torch.zeros(len(targets), slots, 4, device=sizes.device)
    weights = torch.zeros(len(targets), slots, device=sizes.device)
    for row, target in enumerate(targets):
        labels[row, : counts[row]] = target.labels
        boxes[row, : counts[row]] = target.boxes
        weights[row, : counts[row]] = target.weights
    expected = [target.ignore_weights.sum() for target in targets if len(target.ignore)]
    objects = weights.sum() + torch.stack(expected).sum() if expected else weights.sum()
    return PaddedTargets(labels, xyxy_to_cxcywh(boxes / sizes[:, None, [1, 0, 1, 0]]), weights, counts, objects)


def check_labels(targets: Sequence[Targets], classes: int) -> None:
    """Check that the detector has a class for every label.

    Args:
        targets: One per image.
        classes: Number of the detector's classes.

    Raises:
        DataError: A label is negative, or not below `classes`.
    """
    labels = torch.cat([target.labels for target in targets]) if targets else torch.zeros(0)
    if len(labels) and not bool(((labels >= 0) & (labels < classes)).all()):
        wrong = sorted({int(label) for label in labels if not 0 <= int(label) < classes})
        message = (
            f"Targets have the labels {wrong}, but the detector has {classes} classes, 0 to {classes - 1}. "
            "Read the targets with the class names of the detector."
        )
        raise DataError(message)
