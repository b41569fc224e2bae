"""Which of a detector's boxes become labels, and why the others do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image, nms

from cahqp.errors import ConfigError, RunError
from cahqp.structures import Detections

BELOW_THRESHOLD = "below threshold"
OUTSIDE = "outside the frame"
OVERLAP = "overlaps a better box"
TOO_MANY = "over max_boxes"


@dataclass(frozen=True)
class Selection:
    """The boxes of one frame, parted.

    Attributes:
        kept: Best score first.
        rejected: Best score first.
        reasons: One for each rejected box.
    """

    kept: Detections
    rejected: Detections
    reasons: list[str]


def select(
    detections: Detections,
    size: tuple[int, int],
    classes: tuple[str, ...],
    *,
    thresholds: float | Mapping[str, float] = 0.3,
    nms_iou: float | None = 0.7,
    max_boxes: int = 100,
    floor: float = 0.05,
) -> Selection:
    """Part a frame's detections into labels and rejected boxes.

    A box below its class's threshold cannot suppress another one; suppression does not look at the class, because a
    van found as car and as truck is one van.

    Args:
        detections: Boxes in pixels of the original frame.
        size: Height and width of the original frame; boxes are clipped to it.
        classes: The detector's class names.
        thresholds: Lowest score of a label, for all classes or by class name.
        nms_iou: Overlap above which the lower-scored of two labels is rejected; `None` keeps both.
        max_boxes: Most labels of a frame.
        floor: Boxes below it, and below every threshold, are no candidates and are not recorded as rejected either: a
            detector answers with hundreds of near-zero scores on every frame.

    Raises:
        ConfigError: A class has no threshold, or a threshold no class.
        RunError: A box or a score is not a finite number.
    """
    limits = resolve_thresholds(thresholds, classes)
    candidates = _candidates(detections.to("cpu"), min(floor, float(limits.min())))
    boxes = clip_boxes_to_image(candidates.boxes, size)
    candidates = Detections(boxes, candidates.scores, candidates.labels)
    reasons: list[str | None] = [None] * len(candidates)
    alive = torch.arange(len(candidates))
    for reason, survives in (
        (OUTSIDE, lambda c: ((c.boxes[:, 2:] - c.boxes[:, :2]) >= 1).all(1)),
        (BELOW_THRESHOLD, lambda c: c.scores >= limits[c.labels]),
        (OVERLAP, lambda c: _not_suppressed(c, nms_iou)),
        (TOO_MANY, lambda c: torch.arange(len(c)) < max_boxes),
    ):
        mask = survives(candidates[alive])
        for row in alive[~mask].tolist():
            reasons[row] = reason
        alive = alive[mask]
    kept = torch.tensor([reason is None for reason in reasons], dtype=torch.bool)
    return Selection(candidates[kept], candidates[~kept], [reason for reason in reasons if reason is not None])


def resolve_thresholds(thresholds: float | Mapping[str, float], classes: tuple[str, ...]) -> Tensor:
    """Return (C,) float thresholds in the order of the classes.

    Raises:
        ConfigError: A class has no threshold, a threshold no class, or one lies outside 0..1.
    """
    by_name = dict(thresholds) if isinstance(thresholds, Mapping) else dict.fromkeys(classes, thresholds)
    problems = [f"class {name!r} has none" for name in classes if name not in by_name]
    problems += [f"{name!r} is no class of the model" for name in by_name if name not in classes]
    problems += [f"{value} for {name!r} is not in 0..1" for name, value in by_name.items() if not 0 <= value <= 1]
    if problems:
        message = f"Thresholds: {'; '.join(problems)}. Give one number, or one for each of {', '.join(classes)}."
        raise ConfigError(message)
    return torch.tensor([by_name[name] for name in classes], dtype=torch.float32)


def _candidates(detections: Detections, floor: float) -> Detections:
    if not (detections.boxes.isfinite().all() and detections.scores.isfinite().all()):
        message = (
            "The detector answered with a box or score that is not a number. Its weights or its precision are at "
            "fault: run with --trainer.precision 32-true, or use other weights."
        )
        raise RunError(message)
    order = detections.scores.argsort(descending=True, stable=True)
    return detections[order[detections.scores[order] >= floor]]


def _not_suppressed(detections: Detections, iou: float | None) -> Tensor:
    if iou is None:
        return torch.ones(len(detections), dtype=torch.bool)
    mask = torch.zeros(len(detections), dtype=torch.bool)
    mask[nms(detections.boxes.float(), detections.scores.float(), iou)] = True
    return mask
