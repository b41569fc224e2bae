"""Pseudo-labels of a batch by the averaged teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cahqp.adaptation.background_memory import BackgroundMemory
from cahqp.adaptation.pseudo_labels import select_pseudo_labels
from cahqp.adaptation.soft_targets import class_scores
from cahqp.adaptation.stationary_memory import StationaryMemory
from cahqp.association import DOUBTFUL_SHARE
from cahqp.detectors.base import Detector, Output
from cahqp.detectors.losses.criterion import SetCriterion
from cahqp.detectors.losses.targets import pad_targets
from cahqp.frame import Frame
from cahqp.motion import Motion
from cahqp.structures import Batch, Detections, Targets
from cahqp.training.ca_hqp.domain_passes import DomainPass
from cahqp.training.ca_hqp.factory import build_thresholds
from cahqp.training.ca_hqp.settings import PseudoLabelSettings
from cahqp.training.distillation.loss import SoftTargets, as_soft_targets


@dataclass(frozen=True)
class PseudoLabels:
    """Labels of one batch of weak views.

    Attributes:
        targets: One per image, in pixels of the batch; the weights are the scores.
        class_scores: (N, C) scores of all classes for the boxes of each image; `None` unless targets are soft.
        soft: Class probabilities and boxes of all queries; `None` unless targets are dense.
    """

    targets: list[Targets]
    class_scores: list[Tensor] | None = None
    soft: SoftTargets | None = None


class PseudoLabeller(nn.Module):
    """Selection of the averaged teacher's detections that train the learner.

    Args:
        detector: Teacher; its operating thresholds are the default thresholds.
        settings: Settings of the pseudo-labels.

    Attributes:
        thresholds: Lowest score per class that trains.
        stationary: Memory of the boxes in each recording; `None` if stationary boxes keep their score.
        background: Memory of the backgrounds; `None` if motion changes nothing.
    """

    def __init__(self, detector: Detector, settings: PseudoLabelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.thresholds = build_thresholds(detector, settings)
        weight = settings.stationary_weight
        self.stationary = StationaryMemory(weight) if weight < 1 else None
        self.background = BackgroundMemory() if settings.moving_ignore_share is not None else None

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
        targets = []
        for found, frame, image, size in zip(detections, batch.frames, batch.images, output.sizes, strict=True):
            motion = self._motion(frame, image, size)
            selected = select_pseudo_labels(
                self._keep_moving(self._down_weight_stationary(found, frame, size), motion, frame, size),
                thresholds,
                settings.nms_iou,
                settings.class_agnostic,
                settings.max_boxes,
                thresholds * settings.ignore_share,
                weight_by_score=True,
                count_ignored=settings.count_ignored,
            )
            targets.append(_ignore_moving_regions(selected, motion, frame, size))
        scores = class_scores(output, targets) if settings.targets == "soft" else None
        return PseudoLabels(targets, scores, as_soft_targets(output) if settings.targets == "dense" else None)

    def _motion(self, frame: Frame, image: Tensor, size: Tensor) -> Motion | None:
        if self.background is None:
            return None
        height, width = size.int().tolist()
        return self.background.motion(frame, image[:, :height, :width])

    def _keep_moving(self, detections: Detections, motion: Motion | None, frame: Frame, size: Tensor) -> Detections:
        """Raise doubtful detections that move to the ignored band, from `moving_ignore_share` of the threshold on."""
        share = self.settings.moving_ignore_share
        if motion is None or share is None:
            return detections
        limits = self.thresholds.values[detections.labels]
        band = self.settings.ignore_share * limits
        rows = ((detections.scores >= share * limits) & (detections.scores < band)).nonzero()[:, 0]
        moving = torch.from_numpy(motion.moving(_original(detections.boxes[rows], frame, size).cpu().numpy()))
        rows = rows[moving.to(rows.device)]
        return replace(detections, scores=detections.scores.index_put((rows,), band[rows].to(detections.scores)))

    def _down_weight_stationary(self, detections: Detections, frame: Frame, size: Tensor) -> Detections:
        """Down-weight detections at positions occupied in most other frames of the recording.

        A box that would otherwise train stays in the ignored band, if there is one: it may be a parked car.
        """
        if self.stationary is None:
            return detections
        boxes = _original(detections.boxes, frame, size)
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
        """Store boxes and thumbnails of the step in the memories. Every process must call this once a step."""
        for memory in (self.stationary, self.background):
            if memory is not None:
                memory.commit()


def _original(boxes: Tensor, frame: Frame, size: Tensor) -> Tensor:
    """Return boxes of a view in pixels of the original image."""
    return boxes if frame.view is None else frame.view.to_original(boxes, size)


def _ignore_moving_regions(targets: Targets, motion: Motion | None, frame: Frame, size: Tensor) -> Targets:
    """Return targets that also ignore the moving regions that no label covers."""
    if motion is None:
        return targets
    found = motion.regions(_original(targets.boxes, frame, size).cpu().numpy())
    regions = torch.from_numpy(found).to(targets.boxes)
    if frame.view is not None:
        regions = frame.view.from_original(regions, size)
    expected = torch.cat([targets.ignore_weights, targets.ignore_weights.new_zeros(len(regions))])
    return replace(targets, ignore=torch.cat([targets.ignore, regions]), ignore_weights=expected)
