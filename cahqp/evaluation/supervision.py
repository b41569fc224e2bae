"""Role of each true object in training on pseudo-labels: positive, ignored or background."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahqp.association import pairwise_iou
from cahqp.evaluation.errors import CORRECT, MATCH_IOU, find_errors, shares_inside
from cahqp.evaluation.ground_truth import GroundTruth, GroundTruthImage, ImagePredictions, Predictions

ROLES = ("positive", "other_class", "ignored", "background")
IGNORE_OVERLAP = 0.5
"""Share of a box inside one ignored region from which the detection loss ignores it; see `SetCriterion`."""


def supervision_roles(
    ground_truth: GroundTruth, predictions: Predictions, ignored: Mapping[int, NDArray[Any]]
) -> dict[str, float]:
    """Return the share of true objects in each role, and their number as `objects`.

    An object is `positive` if a label of its class matches it, else `other_class` if another label overlaps it with an
    IoU of at least 0.5, else `ignored` if at least half of it lies in one ignored region. Otherwise training treats it
    as `background`.

    Args:
        ground_truth: True objects.
        predictions: Labels that train.
        ignored: (K, 4) xyxy regions that training ignores, by image id.
    """
    counts = Counter[str]()
    for image in ground_truth.images:
        counts.update(_roles(image, predictions.images[image.id], ignored[image.id]))
    total = counts.total()
    return {role: counts[role] / total if total else 0.0 for role in ROLES} | {"objects": total}


def _roles(image: GroundTruthImage, labels: ImagePredictions, regions: NDArray[Any]) -> list[str]:
    errors = find_errors(image, labels)
    matched = set(errors.objects[errors.rows(CORRECT)].tolist())
    overlap = pairwise_iou(image.boxes, labels.boxes).max(1, initial=0) >= MATCH_IOU
    doubtful = shares_inside(image.boxes, regions).max(1, initial=0) >= IGNORE_OVERLAP
    roles = []
    for row in np.flatnonzero(~image.ignore).tolist():
        if row in matched:
            roles.append("positive")
        else:
            roles.append("other_class" if overlap[row] else "ignored" if doubtful[row] else "background")
    return roles
