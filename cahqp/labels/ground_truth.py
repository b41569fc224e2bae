"""Labels beside the ground truth of the same images."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahqp.errors import DataError
from cahqp.evaluation.ground_truth import GroundTruth, ImagePredictions
from cahqp.labels.formats.coco import LabelBox, LabelImage, Labels


def used_boxes(image: LabelImage) -> list[LabelBox]:
    """Return the labels of an image, without the boxes that training ignores."""
    return [box for box in image.boxes if not box.ignored]


def corners(boxes: Sequence[LabelBox]) -> NDArray[Any]:
    """Return (N, 4) xyxy in pixels."""
    xyxy = np.array([box.bbox for box in boxes], np.float64).reshape(-1, 4)
    xyxy[:, 2:] += xyxy[:, :2]
    return xyxy


def as_predictions(image: LabelImage, classes: Sequence[str]) -> ImagePredictions:
    """Return the labels of an image, without ignored boxes; a person's boxes have score 1."""
    kept = used_boxes(image)
    scores = np.array([1.0 if box.score is None else box.score for box in kept])
    return ImagePredictions(corners(kept), scores, np.array([classes.index(box.name) for box in kept], np.int64))


def labelled_ground_truth(labels: Labels, ground_truth: GroundTruth, unreadable: Collection[str] = ()) -> GroundTruth:
    """Return the ground truth without images that could not be read during relabelling.

    Args:
        labels: The labels.
        ground_truth: Ground truth of the same images, matched by name.
        unreadable: Names of images that could not be read.

    Raises:
        DataError: The ground truth has other images that are not in the labels.
    """
    names = {image.name for image in labels.images}
    readable = tuple(image for image in ground_truth.images if image.name in names or image.name not in unreadable)
    missing = [image.name for image in readable if image.name not in names]
    if missing:
        message = (
            f"The labels lack {len(missing)} images of the ground truth, such as {missing[0]!r}. "
            "Give --ground-truth for the labelled images only."
        )
        raise DataError(message)
    return replace(ground_truth, images=readable)
