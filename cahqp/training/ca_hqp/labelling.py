"""Pseudo-labels of a batch by the averaged teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cahqp.adaptation.pseudo_labels import select_pseudo_labels
from cahqp.adaptation.soft_targets import class_scores
from cahqp.adaptation.stationary_memory import StationaryMemory
from cahqp.association import DOUBTFUL_SHARE
from cahqp.detectors.base import Detector, Output
from cahqp.detectors.losses.criterion import SetCriterion
from cahqp.detectors.losses.targets import pad_targets
from cahqp.frame import Frame
from cahqp.structures import Batch, Detections, Targets
from cahqp.training.ca_hqp.domain_passes import DomainPass
from cahqp.training.ca_hqp.factory import build_thresholds
from cahqp.training.ca_hqp.settings import PseudoLabelSettings


@dataclass(frozen=True)
class PseudoLabels:
    """Labels of one batch of weak views.

    Attributes:
        targets: One per image, in pixels of the batch; the weights are the scores.
        class_scores: (N, C) scores of all classes for the boxes of each image; `None` unless targets are soft.
    """

    targets: list[Targets]
    class_scores: list[Tensor] | None = None


class PseudoLabeller(nn.Module):
    """Selection of the averaged teacher's detections that train the learner.

    Args:
        detector: Teacher; its operating thresholds are the default thresholds.
        settings: Settings of the pseudo-labels.

    Attributes:
        thresholds: Lowest score per class that trains.
        stationary: Memory of the boxes in each recording; `None` if stationary boxes keep their score.
    """

    def __init__(self, detector: Detector, settings: PseudoLabelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.thresholds = build_thresholds(detector, settings)
        weight = settings.stationary_weight
        self.stationary = StationaryMemory(weight) if weight < 1 else None

    @torch.no_grad()
    def label(self, teacher: Detector, batch: Batch) -> PseudoLabels:
        """Return the teacher's labels for weak views.

        Args:
            teacher: Averaged teacher, in evaluation mode.
            batch: Weak views.
        """
        settings, thresholds = self.settings, self.thresholds.values
        images = teacher.preprocessing.normalise(batch.images, batch.padding_mask)
        output: Output = teacher(images, batch.padding_mask)
        detections = teacher.decode(output, output.sizes)
        targets = [
            select_pseudo_labels(
                self._down_weight_stationary(found, frame, size),
                thresholds,
                settings.nms_iou,
                settings.class_agnostic,
                settings.max_boxes,
                thresholds * settings.ignore_share,
                weight_by_score=True,
            )
            for found, frame, size in zip(detections, batch.frames, output.sizes, strict=True)
        ]
        return PseudoLabels(targets, class_scores(output, targets) if settings.targets == "soft" else None)

    def _down_weight_stationary(self, detections: Detections, frame: Frame, size: Tensor) -> Detections:
        """Down-weight detections at positions occupied in most other frames of the recording.

        A box that would otherwise train stays in the ignored band, if there is one: it may be a parked car.
        """
        if self.stationary is None:
            return detections
        boxes = detections.boxes if frame.view is None else frame.view.to_original(detections.boxes, size)
        scores, limits = detections.scores, self.thresholds.values[detections.labels]
        self.stationary.note(frame, boxes[scores >= DOUBTFUL_SHARE * limits])
        band = self.settings.ignore_share * limits
        candidates = scores >= band  # boxes below the band train nothing either way
        weighted = scores.clone()
        weighted[candidates] *= self.stationary.factors(frame, boxes[candidates])
        if self.settings.ignore_share < 1:
            weighted = torch.where(scores >= limits, torch.maximum(weighted, band), weighted)
        return replace(detections, scores=weighted)

    @torch.no_grad()
    def observe(self, source: DomainPass, criterion: SetCriterion) -> None:
        """Record the learner's confidence on source objects for the dynamic thresholds.

        Args:
            source: Pass of the source frames.
            criterion: Criterion whose matcher assigns queries to boxes.
        """
        output = source.output
        padded = pad_targets(source.batch.targets, output.sizes)
        logits = output.pred_logits[None].float()
        matches = criterion.matcher(logits, output.pred_boxes[None].float(), padded)
        labels = padded.labels[matches.image, matches.target]
        self.thresholds.observe(logits.sigmoid()[0, matches.image, matches.query, labels], labels)

    def commit(self) -> None:
        """Store the boxes of the step in the memory. Every process must call this once a step."""
        if self.stationary is not None:
            self.stationary.commit()
