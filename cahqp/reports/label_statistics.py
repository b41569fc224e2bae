"""Statistics of pseudo-labels: counts, class balance, accuracy and estimated calibration drift."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from cahqp.errors import DataError
from cahqp.evaluation.errors import count_f1, error_table
from cahqp.evaluation.ground_truth import GroundTruth, Predictions
from cahqp.evaluation.metrics import at_thresholds, average_precision
from cahqp.evaluation.supervision import supervision_roles
from cahqp.labels.calibration.curves import estimated_drift, reliability
from cahqp.labels.calibration.file import read_calibration
from cahqp.labels.formats.coco import HUMAN, Labels
from cahqp.labels.ground_truth import as_predictions, corners, labelled_ground_truth, used_boxes
from cahqp.reports.inputs import read_object, read_rejected
from cahqp.reports.records import DecisionsRecord, ManifestRecord
from cahqp.runs.directory import content_hash


def count_labels(labels: Labels) -> dict[str, Any]:
    """Return the numbers of images, labels, tracks and disagreements, and the percentiles of the scores."""
    names = list(labels.categories.values())
    boxes = [box for image in labels.images for box in image.boxes]
    kept = [box for box in boxes if not box.ignored]
    lengths = list(Counter(box.track for box in kept if box.track is not None).values())
    agreement = [float(box.more["agreement"]) for box in kept if "agreement" in box.more]
    scores = {name: [b.score for b in kept if b.name == name and b.score is not None] for name in names}
    return {
        "images": len(labels.images),
        "empty_images": sum(not used_boxes(image) for image in labels.images),
        "reviewed_images": sum(image.reviewed for image in labels.images),
        "labels": {name: sum(box.name == name for box in kept) for name in names},
        "doubtful": {name: sum(box.name == name and box.ignored for box in boxes) for name in names},
        "by_person": sum(box.origin == HUMAN for box in kept),
        "scores": {name: _percentiles(values) for name, values in scores.items()},
        "uncertainty": _percentiles([float(b.more["uncertainty"]) for b in kept if "uncertainty" in b.more]),
        "tracks": {"count": len(lengths), "median_length": float(np.median(lengths)) if lengths else 0.0},
        "filled": sum(box.more.get("reason") == "filled gap" for box in kept),
        "disagreements": {"boxes": sum(value < 1 for value in agreement), "of": len(agreement)},
    }


def _percentiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {f"p{share}": round(float(np.percentile(values, share)), 4) for share in (5, 25, 50, 75, 95)}


def class_balance(labels: Labels, source: GroundTruth) -> dict[str, dict[str, float]]:
    """Return each class's share of the boxes and boxes per image, in the labels and in the source."""
    names = list(labels.categories.values())
    counts = {
        "labels": Counter(box.name for image in labels.images for box in used_boxes(image)),
        "source": Counter(source.classes[int(n)] for image in source.images for n in image.labels[~image.ignore]),
    }
    images = {"labels": max(1, len(labels.images)), "source": max(1, len(source.images))}
    sums = {part: max(1, sum(count[name] for name in names)) for part, count in counts.items()}
    return {
        name: {part: round(count[name] / sums[part], 6) for part, count in counts.items()}
        | {f"{part}_per_image": round(count[name] / images[part], 6) for part, count in counts.items()}
        for name in names
    }


def measure_labels(labels: Labels, ground_truth: GroundTruth, unreadable: Collection[str] = ()) -> dict[str, Any]:
    """Return precision, recall, F1 and AP50 of the labels by class and together, error types and supervision.

    Doubtful boxes are left out. See `error_table` and `supervision_roles`.

    Args:
        labels: The labels.
        ground_truth: Ground truth of the same images.
        unreadable: Names of images that could not be read during relabelling. They are left out and counted.

    Raises:
        DataError: The ground truth has other images that are not in the labels.
    """
    by_name = {image.name: image for image in labels.images}
    count = len(ground_truth.images)
    ground_truth = labelled_ground_truth(labels, ground_truth, unreadable)
    images = {image.id: by_name[image.name] for image in ground_truth.images}
    predictions = Predictions(
        ground_truth.classes, {key: as_predictions(image, ground_truth.classes) for key, image in images.items()}
    )
    regions = {key: corners([box for box in image.boxes if box.ignored]) for key, image in images.items()}
    metrics = average_precision(ground_truth, predictions)
    per_class = metrics.matches.per_class
    hits = sum(int(own.hits.sum()) for own in per_class)
    detections = sum(len(own.hits) for own in per_class)
    objects = sum(int(own.objects.sum()) for own in per_class)
    return {
        "ap50": metrics.ap50,
        "precision": hits / detections if detections else None,
        "recall": hits / objects if objects else None,
        "f1": count_f1(metrics),
        "objects": objects,
        "unreadable": count - len(ground_truth.images),
        "errors": error_table(ground_truth, predictions),
        "supervision": supervision_roles(ground_truth, predictions, regions),
        "per_class": {
            name: {"precision": p.precision, "recall": p.recall, "f1": p.f1, "ap50": metrics.per_class[name].ap50}
            for name, p in at_thresholds(metrics.matches, 0.0).items()
        },
    }


def estimate_drift(labels: Labels, folder: Path, calibration_path: Path) -> dict[str, dict[str, float]]:
    """Return the estimated calibration drift by class; see `estimated_drift`.

    Only scores that can become doubtful boxes count, on both sides. Below them, several unsuppressed boxes cover each
    object.

    Args:
        labels: The labels.
        folder: Directory of `cahqp relabel` that contains them.
        calibration_path: The calibration that they were made with.

    Raises:
        DataError: The labels were made without this calibration.
    """
    names = labels.categories
    calibration = read_calibration(calibration_path, None, tuple(names.values()))
    min_scores = _min_scores(folder, calibration_path)
    scores: dict[str, list[float]] = {name: [] for name in names.values()}
    for box in (box for image in labels.images for box in image.boxes):
        if box.score is not None:
            scores[box.name].append(float(box.more.get("detector_score", box.score)))
    for annotation in read_rejected(folder):
        if annotation.get("reason") != "overlaps a better box":
            scores[names[annotation["category_id"]]].append(annotation.get("detector_score", annotation["score"]))
    drift: dict[str, dict[str, float]] = {}
    for name, values in scores.items():
        target, (source, hits) = np.array(values, np.float64), calibration.after_nms[name]
        counted = source >= min_scores[name]
        bins = reliability(source[counted], hits[counted])
        estimate = estimated_drift(bins, target[target >= min_scores[name]])
        drift[name] = {key: round(value, 6) for key, value in estimate.items()}
    return drift


def _min_scores(folder: Path, calibration: Path) -> dict[str, float]:
    """Return the minimum score of a doubtful box by class, after a check that the labels were made with a calibration.

    Raises:
        DataError: They were made without it.
    """
    manifest = read_object(folder / "manifest.json", ManifestRecord)
    used = manifest.get("inputs", {}).get("calibration", {}).get("sha256")
    directory = calibration if calibration.is_dir() else calibration.parent
    candidates = (calibration, directory, directory / "calibration.json")
    if used not in {content_hash(path, "calibration") for path in candidates if path.exists()}:
        message = (
            f"The labels in {folder} were not made with {calibration}. "
            "Give --calibration with the file that `cahqp relabel` used."
        )
        raise DataError(message)
    share = float(manifest["settings"].get("ignore_share", 1.0))
    thresholds = read_object(folder / "decisions.json", DecisionsRecord).get("thresholds", {})
    return {name: share * limit for name, limit in thresholds.items()}
