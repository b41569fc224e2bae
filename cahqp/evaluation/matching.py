"""Which detections hit: computed once by pycocotools, kept in a form that is quick to count again."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cahqp.errors import DataError
from cahqp.evaluation.ground_truth import GroundTruth, GroundTruthImage, Predictions

DETECTIONS_PER_IMAGE = 100
"""COCO's limit; as in pycocotools it holds for each class."""

RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class ClassMatches:
    """Detections of one class at IoU 0.5, best score first; those on ignored regions are gone.

    Attributes:
        scores: (D,) scores.
        hits: (D,) bool, whether the detection found an object.
        images: (D,) rows of the truth's images.
        objects: (I,) number of objects of each image.
    """

    scores: NDArray[np.float64]
    hits: NDArray[np.bool_]
    images: NDArray[np.int64]
    objects: NDArray[np.int64]


@dataclass(frozen=True)
class Matches:
    """The matches of a model on a set of frames.

    Attributes:
        classes: Class names.
        per_class: One for each class.
    """

    classes: tuple[str, ...]
    per_class: tuple[ClassMatches, ...]


def evaluate_boxes(ground_truth: GroundTruth, predictions: Predictions) -> COCOeval:
    """Return pycocotools' evaluation, accumulated, over all box sizes. Images and classes are numbered from zero.

    Raises:
        DataError: An image has no predictions, or the classes differ.
    """
    _check(ground_truth, predictions)
    answers = [predictions.images[image.id] for image in ground_truth.images]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            _coco(
                ground_truth, [a for number, image in enumerate(ground_truth.images) for a in _objects(number, image)]
            ),
            _coco(ground_truth, [a for number, answer in enumerate(answers) for a in _detections(number, *answer)]),
            iouType="bbox",
        )
        evaluation.params.maxDets = [DETECTIONS_PER_IMAGE]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def collect_matches(evaluation: COCOeval, ground_truth: GroundTruth) -> Matches:
    """Return the matches at IoU 0.5 of an evaluation by `evaluate_boxes`."""
    count = len(ground_truth.images)
    by_class = (evaluation.evalImgs[row * count : (row + 1) * count] for row in range(len(ground_truth.classes)))
    return Matches(ground_truth.classes, tuple(_class_matches(images) for images in by_class))


def average_precisions(matches: Matches, times: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    """Return (C,) COCO AP50 of each class, NaN where a class has no object.

    Args:
        matches: The matches of a model.
        times: (I,) how often each image counts; `None` counts each once.
    """
    return np.array([_average_precision(found, times) for found in matches.per_class])


def _average_precision(found: ClassMatches, times: NDArray[np.int64] | None) -> float:
    counts = np.ones(len(found.objects), np.int64) if times is None else times
    total = int(counts @ found.objects)
    if total == 0:
        return float("nan")
    weights = counts[found.images]
    hits = np.cumsum(weights * found.hits)[found.hits].astype(float)
    # Precision peaks at hits alone, so the misses between two of them need no points of their own.
    answers = np.cumsum(weights)[found.hits]
    precision = np.maximum.accumulate((hits / (answers + np.spacing(1)))[::-1])[::-1]
    reached = np.searchsorted(hits / total, RECALLS, side="left")
    return float(np.append(precision, 0.0)[reached].mean())


def _check(ground_truth: GroundTruth, predictions: Predictions) -> None:
    if ground_truth.classes != predictions.classes:
        message = (
            f"Predictions of {', '.join(predictions.classes)} cannot be measured on {', '.join(ground_truth.classes)}."
        )
        raise DataError(message)
    missing = [image.name for image in ground_truth.images if image.id not in predictions.images]
    if missing:
        message = (
            f"{len(missing)} of {len(ground_truth.images)} images were not predicted, the first is {missing[0]}. "
            "Mend them, or take them out of the annotation file."
        )
        raise DataError(message)


def _coco(ground_truth: GroundTruth, annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(len(ground_truth.images))],
        "categories": [{"id": number, "name": name} for number, name in enumerate(ground_truth.classes)],
        # From 1: pycocotools takes an annotation whose id is 0 for unmatched.
        "annotations": [annotation | {"id": number} for number, annotation in enumerate(annotations, start=1)],
    }
    coco.createIndex()
    return coco


def _objects(number: int, image: GroundTruthImage) -> Iterator[dict[str, Any]]:
    for box, label, ignore in zip(image.boxes, image.labels, image.ignore, strict=True):
        yield _entry(number, box, label) | {"iscrowd": int(ignore)}


def _detections(
    number: int, boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any]
) -> Iterator[dict[str, Any]]:
    for box, score, label in zip(boxes, scores, labels, strict=True):
        yield _entry(number, box, label) | {"score": float(score), "iscrowd": 0}


def _entry(number: int, box: NDArray[Any], label: Any) -> dict[str, Any]:
    x1, y1, x2, y2 = (float(value) for value in box)
    bbox = [x1, y1, x2 - x1, y2 - y1]
    return {"image_id": number, "category_id": int(label), "bbox": bbox, "area": bbox[2] * bbox[3]}


def _class_matches(images: Sequence[dict[str, Any] | None]) -> ClassMatches:
    objects = [0 if image is None else int(np.count_nonzero(image["gtIgnore"] == 0)) for image in images]
    found = [(row, image) for row, image in enumerate(images) if image is not None]
    scores = _joined([image["dtScores"] for _, image in found])
    hits = _joined([image["dtMatches"][0] for _, image in found]) > 0
    ignored = _joined([image["dtIgnore"][0] for _, image in found]) > 0
    rows = np.repeat([row for row, _ in found], [len(image["dtScores"]) for _, image in found]).astype(np.int64)
    order = np.argsort(-scores, kind="stable")
    order = order[~ignored[order]]
    return ClassMatches(scores[order], hits[order], rows[order], np.array(objects, np.int64))


def _joined(parts: Sequence[Any]) -> NDArray[np.float64]:
    return np.concatenate([np.zeros(0), *(np.asarray(part, np.float64) for part in parts)])
