"""COCO average precision, and precision and recall at a threshold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahqp.evaluation.ground_truth import GroundTruth, Predictions
from cahqp.evaluation.matching import ClassMatches, Matches, collect_matches, evaluate_boxes


@dataclass(frozen=True)
class ClassMetrics:
    """One class's figures, `None` where it has no object.

    Attributes:
        ap50: Average precision at IoU 0.5.
        ap: Average precision over IoU 0.5 to 0.95.
        objects: Number of objects, ignored regions not counted.
    """

    ap50: float | None
    ap: float | None
    objects: int


@dataclass(frozen=True)
class Metrics:
    """A model's figures on a set of frames.

    Attributes:
        ap50: Mean over the classes that have objects; `None` where none has.
        map: The same over IoU 0.5 to 0.95.
        per_class: By class name.
        images: Number of images.
        matches: Which detections hit, for thresholds and intervals.
    """

    ap50: float | None
    map: float | None
    per_class: dict[str, ClassMetrics]
    images: int
    matches: Matches


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold gives at IoU 0.5.

    Attributes:
        threshold: Detections with at least this score are taken.
        precision: Share of the taken detections that hit; 0 where none was taken.
        recall: Share of the objects that were found.
        f1: Harmonic mean of the two.
    """

    threshold: float
    precision: float
    recall: float
    f1: float


def average_precision(ground_truth: GroundTruth, predictions: Predictions) -> Metrics:
    """Measure predictions as COCO does: 101 points, 100 detections an image, macro over the classes with objects.

    Raises:
        DataError: An image of the truth has no predictions, or the classes differ.
    """
    evaluation = evaluate_boxes(ground_truth, predictions)
    matches = collect_matches(evaluation, ground_truth)
    # (IoU, recall, class); pycocotools writes -1 for a class without objects.
    precision = evaluation.eval["precision"][:, :, :, 0, 0]
    precision = np.where(precision > -1, precision, np.nan)
    ap50, ap = precision[0].mean(0), precision.mean((0, 1))
    per_class = {
        name: ClassMetrics(_number(ap50[row]), _number(ap[row]), int(matches.per_class[row].objects.sum()))
        for row, name in enumerate(ground_truth.classes)
    }
    return Metrics(macro(ap50), macro(ap), per_class, len(ground_truth.images), matches)


def macro(values: NDArray[Any]) -> float | None:
    """Return the mean of the values that are not NaN, `None` where all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def at_thresholds(matches: Matches, thresholds: float | Mapping[str, float]) -> dict[str, OperatingPoint]:
    """Return precision, recall and F1 of each class that has objects.

    Args:
        matches: The matches of a model, as `Metrics.matches`.
        thresholds: One for all classes, or one for each by name.
    """
    points = {}
    for name, found in zip(matches.classes, matches.per_class, strict=True):
        threshold = thresholds[name] if isinstance(thresholds, Mapping) else thresholds
        if found.objects.sum():
            points[name] = _point(found, threshold, int(np.count_nonzero(found.scores >= threshold)))
    return points


def best_f1(matches: Matches) -> dict[str, OperatingPoint]:
    """Return the threshold with the best F1 of each class that has both objects and a hit."""
    points = {}
    for name, found in zip(matches.classes, matches.per_class, strict=True):
        if not (found.objects.sum() and found.hits.any()):
            continue
        taken = np.arange(1, len(found.scores) + 1)
        f1 = 2 * np.cumsum(found.hits) / (taken + found.objects.sum())
        # A threshold takes all detections of one score or none.
        f1[:-1][found.scores[:-1] == found.scores[1:]] = -1
        best = int(f1.argmax())
        points[name] = _point(found, float(found.scores[best]), best + 1)
    return points


def _point(found: ClassMatches, threshold: float, taken: int) -> OperatingPoint:
    hits, objects = int(np.count_nonzero(found.hits[:taken])), int(found.objects.sum())
    precision = hits / taken if taken else 0.0
    return OperatingPoint(float(threshold), precision, hits / objects, 2 * hits / (taken + objects))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
