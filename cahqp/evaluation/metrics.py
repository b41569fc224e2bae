"""COCO average precision, and precision and recall at a threshold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahqp.evaluation.ground_truth import GroundTruth, Predictions
from cahqp.evaluation.matching import ClassMatches, Matches, evaluate_boxes


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one class; average precision is `None` without objects.

    Attributes:
        ap50: Average precision at IoU 0.5.
        ap: Average precision over IoU 0.5 to 0.95.
        objects: Number of objects without ignored regions.
    """

    ap50: float | None
    ap: float | None
    objects: int


@dataclass(frozen=True)
class Metrics:
    """Metrics of a model on a set of frames.

    Attributes:
        ap50: Mean AP50 over the classes with objects; `None` without any.
        map: Mean average precision over IoU 0.5 to 0.95, over the same classes.
        per_class: Metrics by class name.
        images: Number of images.
        matches: Matches of detections and objects, for thresholds and intervals.
    """

    ap50: float | None
    map: float | None
    per_class: dict[str, ClassMetrics]
    images: int
    matches: Matches


@dataclass(frozen=True)
class OperatingPoint:
    """Precision and recall at a score threshold and IoU 0.5.

    Attributes:
        threshold: Minimum score of a detection.
        precision: Share of the detections that match an object; 0 without detections.
        recall: Share of the objects that are matched.
        f1: Harmonic mean of precision and recall.
    """

    threshold: float
    precision: float
    recall: float
    f1: float


def average_precision(ground_truth: GroundTruth, predictions: Predictions) -> Metrics:
    """Return COCO's metrics: 101 points, 100 detections per image and class, mean over the classes with objects.

    Raises:
        DataError: An image has no predictions, or the classes differ.
    """
    precision, matches = evaluate_boxes(ground_truth, predictions)
    ap50, ap = precision[0].mean(0), precision.mean((0, 1))
    per_class = {
        name: ClassMetrics(macro(ap50[[row]]), macro(ap[[row]]), int(matches.per_class[row].objects.sum()))
        for row, name in enumerate(ground_truth.classes)
    }
    return Metrics(macro(ap50), macro(ap), per_class, len(ground_truth.images), matches)


def macro(values: NDArray[Any]) -> float | None:
    """Return the mean of the values that are not NaN; `None` if all are NaN."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def at_thresholds(matches: Matches, thresholds: float | Mapping[str, float]) -> dict[str, OperatingPoint]:
    """Return precision, recall and F1 of each class with objects.

    Args:
        matches: Matches of a model, as in `Metrics.matches`.
        thresholds: One threshold for all classes, or thresholds by class name.
    """
    points = {}
    for name, own in zip(matches.classes, matches.per_class, strict=True):
        threshold = thresholds[name] if isinstance(thresholds, Mapping) else thresholds
        if own.objects.sum():
            points[name] = _point(own, threshold, int(np.count_nonzero(own.scores >= threshold)))
    return points


def best_f1(matches: Matches) -> dict[str, OperatingPoint]:
    """Return the threshold with the best F1 of each class with objects and at least one matched object."""
    points = {}
    for name, own in zip(matches.classes, matches.per_class, strict=True):
        if not (own.objects.sum() and own.hits.any()):
            continue
        f1 = 2 * np.cumsum(own.hits) / (np.arange(1, len(own.scores) + 1) + own.objects.sum())
        # A threshold keeps all detections of one score or none.
        f1[:-1][own.scores[:-1] == own.scores[1:]] = -1
        best = int(f1.argmax())
        points[name] = _point(own, float(own.scores[best]), best + 1)
    return points


def _point(own: ClassMatches, threshold: float, count: int) -> OperatingPoint:
    """Return the operating point of the first `count` detections of a class."""
    hits, objects = int(np.count_nonzero(own.hits[:count])), int(own.objects.sum())
    precision = hits / count if count else 0.0
    return OperatingPoint(float(threshold), precision, hits / objects, 2 * hits / (count + objects))
