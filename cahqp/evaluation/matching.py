"""Matches of detections with objects: computed once by pycocotools, then counted for any subset of images."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cahqp.errors import DataError
from cahqp.evaluation.ground_truth import GroundTruth, Predictions

DETECTIONS_PER_IMAGE = 100
"""COCO's limit. As in pycocotools, it applies to each class."""

RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class ClassMatches:
    """Detections of one class at IoU 0.5, best score first, without those on ignored regions.

    Attributes:
        scores: (D,) scores.
        hits: (D,) bool, whether the detection matches an object.
        images: (D,) indices of the images.
        objects: (I,) number of objects in each image.
    """

    scores: NDArray[np.float64]
    hits: NDArray[np.bool_]
    images: NDArray[np.int64]
    objects: NDArray[np.int64]


@dataclass(frozen=True)
class Matches:
    """Matches of a model on a set of frames.

    Attributes:
        classes: Class names.
        per_class: Matches of each class.
    """

    classes: tuple[str, ...]
    per_class: tuple[ClassMatches, ...]


def evaluate_boxes(ground_truth: GroundTruth, predictions: Predictions) -> tuple[NDArray[np.float64], Matches]:
    """Run pycocotools over all box sizes.

    Returns:
        Precision of each IoU from 0.5 to 0.95, recall and class, NaN for classes without objects; matches at IoU 0.5.

    Raises:
        DataError: An image has no predictions, or the classes differ.
    """
    _check(ground_truth, predictions)
    objects, detections = [], []
    for number, image in enumerate(ground_truth.images):
        objects += _annotations(number, image.boxes, image.labels, "iscrowd", image.ignore)
        boxes, scores, labels = predictions.images[image.id]
        detections += _annotations(number, boxes, labels, "score", scores)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_coco(ground_truth, objects), _coco(ground_truth, detections), iouType="bbox")
        evaluation.params.maxDets = [DETECTIONS_PER_IMAGE]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 0]
    count = len(ground_truth.images)
    by_class = (evaluation.evalImgs[row * count : (row + 1) * count] for row in range(len(ground_truth.classes)))
    matches = Matches(ground_truth.classes, tuple(_class_matches(images) for images in by_class))
    return np.where(precision > -1, precision, np.nan), matches  # pycocotools writes -1 for a class without objects


def average_precisions(matches: Matches, times: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    """Return (C,) COCO AP50 of each class; NaN for a class without objects.

    Args:
        matches: Matches of a model.
        times: (I,) number of times each image counts; `None` counts each once.
    """
    return np.array([_average_precision(own, times) for own in matches.per_class])


def _average_precision(own: ClassMatches, times: NDArray[np.int64] | None) -> float:
    counts = np.ones(len(own.objects), np.int64) if times is None else times
    total = int(counts @ own.objects)
    if total == 0:
        return float("nan")
    weights = counts[own.images]
    hits = np.cumsum(weights * own.hits)[own.hits].astype(float)
    # Precision has its maxima at hits, so the misses between two hits need no points.
    detections = np.cumsum(weights)[own.hits]
    precision = np.maximum.accumulate((hits / (detections + np.spacing(1)))[::-1])[::-1]
    reached = np.searchsorted(hits / total, RECALLS, side="left")
    return float(np.append(precision, 0.0)[reached].mean())


def _check(ground_truth: GroundTruth, predictions: Predictions) -> None:
    if ground_truth.classes != predictions.classes:
        predicted, annotated = ", ".join(predictions.classes), ", ".join(ground_truth.classes)
        message = f"Predictions of {predicted} cannot be measured on {annotated}. Use the same classes in this order."
        raise DataError(message)
    missing = [image.name for image in ground_truth.images if image.id not in predictions.images]
    if missing:
        message = (
            f"{len(missing)} of {len(ground_truth.images)} images were not predicted, the first is {missing[0]}. "
            "Fix them, or remove them from the annotation file."
        )
        raise DataError(message)


def _coco(ground_truth: GroundTruth, annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(len(ground_truth.images))],
        "categories": [{"id": number, "name": name} for number, name in enumerate(ground_truth.classes)],
        # From 1, because pycocotools treats a match with id 0 as no match.
        "annotations": [annotation | {"id": number} for number, annotation in enumerate(annotations, start=1)],
    }
    coco.createIndex()
    return coco


def _annotations(
    image: int, boxes: NDArray[Any], labels: NDArray[Any], key: str, values: NDArray[Any]
) -> list[dict[str, Any]]:
    """Return (N, 4) xyxy boxes as COCO annotations with one more value each."""
    rows = zip(boxes.tolist(), labels.tolist(), values.tolist(), strict=True)
    annotations = []
    for (x1, y1, x2, y2), label, value in rows:
        width, height = x2 - x1, y2 - y1
        box = {"bbox": [x1, y1, width, height], "area": width * height}
        annotations.append({"image_id": image, "category_id": label, **box, key: value})
    return annotations


def _class_matches(images: Sequence[dict[str, Any] | None]) -> ClassMatches:
    objects = [0 if image is None else int(np.count_nonzero(image["gtIgnore"] == 0)) for image in images]
    matched = [(row, image) for row, image in enumerate(images) if image is not None]
    scores = _joined([image["dtScores"] for _, image in matched])
    hits = _joined([image["dtMatches"][0] for _, image in matched]) > 0
    ignored = _joined([image["dtIgnore"][0] for _, image in matched]) > 0
    rows = np.repeat([row for row, _ in matched], [len(image["dtScores"]) for _, image in matched]).astype(np.int64)
    order = np.argsort(-scores, kind="stable")
    order = order[~ignored[order]]
    return ClassMatches(scores[order], hits[order], rows[order], np.array(objects, np.int64))


def _joined(parts: Sequence[Any]) -> NDArray[np.float64]:
    return np.concatenate([np.zeros(0), *(np.asarray(part, np.float64) for part in parts)])
