"""Types of detection errors and the gain from repairing each (TIDE, Bolya et al. 2020, arXiv 2008.08115).

Detections match objects as in COCO at IoU 0.5: by class, best score first, one to one. Each unmatched detection has
the first type that applies:

1. `duplicate`: IoU of at least 0.5 with an object of its class, which a better detection matches.
2. `class`: IoU of at least 0.5 with an object of another class.
3. `localisation`: IoU of at least 0.1 with an object of its class.
4. `background`: IoU below 0.1 with every object.
5. `both`: class and position are wrong.

An unmatched object that no class or localisation error points to is `missed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahqp.association import pairwise_iou
from cahqp.evaluation.ground_truth import GroundTruth, GroundTruthImage, ImagePredictions, Predictions
from cahqp.evaluation.metrics import Metrics, average_precision

ERROR_TYPES = ("class", "localisation", "both", "duplicate", "background", "missed")
CORRECT, IGNORED = "correct", "ignored"
MATCH_IOU, BACKGROUND_IOU = 0.5, 0.1


@dataclass(frozen=True)
class ImageErrors:
    """Errors of the detections on one image.

    Attributes:
        types: Type of each detection: `correct`, `ignored` (inside an ignored region of its class), or an error type.
        objects: (N,) row of the object that a detection matches or should match; -1 without one.
        missed: Rows of the missed objects.
    """

    types: tuple[str, ...]
    objects: NDArray[np.int64]
    missed: NDArray[np.int64]

    def rows(self, *types: str) -> NDArray[np.int64]:
        """Return the rows of the detections with one of the types."""
        return np.array([row for row, own in enumerate(self.types) if own in types], np.int64)


def find_errors(image: GroundTruthImage, found: ImagePredictions) -> ImageErrors:
    """Return the error types of an image's detections, and the missed objects."""
    iou = pairwise_iou(found.boxes, image.boxes)
    iou[:, image.ignore] = 0
    same = found.labels[:, None] == image.labels[None]
    objects = _match(np.where(same, iou, 0), found.scores)
    outside = ~_inside_regions(image, found)
    types = [CORRECT if row >= 0 else "" for row in objects]
    for row in np.flatnonzero(objects < 0):
        own, other = np.where(same[row], iou[row], 0), np.where(same[row], 0, iou[row])
        types[row] = _error_type(own.max(initial=0), other.max(initial=0)) if outside[row] else IGNORED
        if types[row] in ("class", "localisation"):
            objects[row] = (other if types[row] == "class" else own).argmax()
    covered = np.isin(np.arange(len(image.labels)), objects) | image.ignore
    return ImageErrors(tuple(types), objects, np.flatnonzero(~covered))


def _match(iou: NDArray[np.float64], scores: NDArray[Any]) -> NDArray[np.int64]:
    """Return (N,) matched columns, -1 for none: best score first, each to the free column with the highest IoU."""
    free, matched = iou.copy(), np.full(len(iou), -1, np.int64)
    for row in np.argsort(-scores, kind="stable"):
        if free.shape[1] and free[row].max() >= MATCH_IOU:
            matched[row] = free[row].argmax()
            free[:, matched[row]] = 0
    return matched


def _error_type(same: float, other: float) -> str:
    """Return the type of an unmatched detection from its highest IoU with objects of its class and of others."""
    if same >= MATCH_IOU:
        return "duplicate"
    if other >= MATCH_IOU:
        return "class"
    if same >= BACKGROUND_IOU:
        return "localisation"
    return "both" if other >= BACKGROUND_IOU else "background"


def _inside_regions(image: GroundTruthImage, found: ImagePredictions) -> NDArray[np.bool_]:
    """Return (N,) whether half of a detection lies in an ignored region of its class, as in COCO."""
    inside = shares_inside(found.boxes, image.boxes[image.ignore]) >= MATCH_IOU
    same = found.labels[:, None] == image.labels[image.ignore][None]
    return np.asarray((inside & same).any(1), np.bool_)


def shares_inside(boxes: NDArray[Any], regions: NDArray[Any]) -> NDArray[np.float64]:
    """Return (N, M) shares of the area of (N, 4) xyxy boxes that lie inside (M, 4) xyxy regions."""
    low = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    areas = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1)
    inside: NDArray[np.float64] = np.clip(high - low, 0, None).prod(-1) / np.maximum(areas, 1e-9)[:, None]
    return inside


def repair(
    image: GroundTruthImage, found: ImagePredictions, errors: ImageErrors, error_type: str
) -> tuple[GroundTruthImage, ImagePredictions]:
    """Return an image's ground truth and detections after the repair of one error type.

    A class or localisation error receives the class or the box of its object; of several detections of one object only
    the best remains. Detections of other types are removed. Missed objects are removed from the ground truth, which
    assumes that they would be found with the same precision as the others.
    """
    if error_type == "missed":
        kept = np.delete(np.arange(len(image.labels)), errors.missed)
        return replace(image, boxes=image.boxes[kept], labels=image.labels[kept], ignore=image.ignore[kept]), found
    rows = errors.rows(error_type)
    if error_type not in ("class", "localisation"):
        kept = np.delete(np.arange(len(found.labels)), rows)
        return image, ImagePredictions(found.boxes[kept], found.scores[kept], found.labels[kept])
    boxes, labels = np.array(found.boxes, np.float64), np.array(found.labels)
    if error_type == "class":
        labels[rows] = image.labels[errors.objects[rows]]
    else:
        boxes[rows] = image.boxes[errors.objects[rows]]
    kept = best_of_each_object(errors, found.scores, (CORRECT, error_type))
    return image, ImagePredictions(boxes[kept], found.scores[kept], labels[kept])


def best_of_each_object(errors: ImageErrors, scores: NDArray[Any], types: Sequence[str]) -> NDArray[np.int64]:
    """Return the rows without those of `types` that share their object with a better one."""
    best: dict[int, int] = {}
    for row in sorted(errors.rows(*types).tolist(), key=lambda row: -scores[row]):
        best.setdefault(int(errors.objects[row]), row)
    others = [row for row, own in enumerate(errors.types) if own not in types]
    return np.array(sorted([*best.values(), *others]), np.int64)


def error_table(ground_truth: GroundTruth, predictions: Predictions) -> dict[str, dict[str, float | None]]:
    """Return count and gains in AP50 and F1 by error type, if errors of this type alone were repaired.

    Gains are differences in 0..1; `None` without objects. F1 counts all detections of all classes together.

    Raises:
        DataError: An image has no predictions, or the classes differ.
    """
    before = average_precision(ground_truth, predictions)
    found = [predictions.images[image.id] for image in ground_truth.images]
    errors = [find_errors(image, own) for image, own in zip(ground_truth.images, found, strict=True)]
    table = {}
    for error_type in ERROR_TYPES:
        repaired = [
            repair(image, own, one, error_type)
            for image, own, one in zip(ground_truth.images, found, errors, strict=True)
        ]
        after = average_precision(
            replace(ground_truth, images=tuple(image for image, _ in repaired)),
            Predictions(predictions.classes, {image.id: own for image, own in repaired}),
        )
        missed = error_type == "missed"
        count = sum(len(one.missed) if missed else len(one.rows(error_type)) for one in errors)
        f1 = [count_f1(metrics) for metrics in (before, after)]
        table[error_type] = {"count": count, "ap50_gain": _ap50_gain(before, after), "f1_gain": _difference(*f1)}
    return table


def _ap50_gain(before: Metrics, after: Metrics) -> float | None:
    """Return the gain in mean AP50; a class without objects after the repair, all of them missed, gains nothing."""
    pairs = [(own.ap50, after.per_class[name].ap50) for name, own in before.per_class.items() if own.ap50 is not None]
    gains = [0.0 if new is None else new - old for old, new in pairs]
    return sum(gains) / len(gains) if gains else None


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def count_f1(metrics: Metrics) -> float | None:
    """Return F1 of all detections of all classes together; `None` without detections and objects."""
    per_class = metrics.matches.per_class
    hits = sum(int(own.hits.sum()) for own in per_class)
    total = sum(len(own.hits) + int(own.objects.sum()) for own in per_class)
    return 2 * hits / total if total else None
