"""Measurements for the gate: two packages on the same frames, on the runtime that will run them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from cahqp.association import pairwise_iou
from cahqp.edge.detections import EdgeDetections, Floats
from cahqp.edge.predictions import measure_milliseconds, predict
from cahqp.edge.runtime import Runtime
from cahqp.errors import WeightsError
from cahqp.evaluation.bootstrap import Groups, group_frames, paired_bootstrap
from cahqp.evaluation.ground_truth import GroundTruth, ImagePredictions, Predictions, read_ground_truth
from cahqp.evaluation.matching import ClassMatches, Matches, average_precisions
from cahqp.evaluation.metrics import at_thresholds, average_precision
from cahqp.gate.decision import CONFIDENCE, Role, RuntimeCost, SetEvidence, lower_bound, upper_bound
from cahqp.gate.operating_point import compare_f1
from cahqp.gate.options import GateOptions

_LEVEL = 2 * CONFIDENCE - 1  # a two-sided interval whose ends are one-sided bounds
_MIN_SCORE = np.float32(0.01)  # below any threshold in use; float32 like the scores
_MIN_IOU = 0.3  # for two boxes of neighbouring frames to be one object


@dataclass(frozen=True)
class LabelledSet:
    """COCO files with ground truth that are judged as one set.

    Attributes:
        role: Role of the set.
        name: Name of the set.
        paths: Files of the set.
    """

    role: Role
    name: str
    paths: list[Path]


def collect(candidate: Runtime, running: Runtime, labelled: LabelledSet, options: GateOptions) -> SetEvidence | None:
    """Measure both packages on one labelled set; return `None` if no class has enough objects.

    One missed object of four lowers the AP50 of its class by 25 points and the mean over five classes by five. Classes
    with fewer than `min_objects` objects are therefore excluded.

    Raises:
        WeightsError: Inference of the candidate fails, or its values are not finite.
    """
    truth = _join([read_ground_truth(path, running.classes) for path in labelled.paths])
    candidate_predictions, running_predictions = (_predict_all(r, labelled.paths) for r in (candidate, running))
    _check_finite(candidate_predictions, candidate)
    candidate_matches, running_matches = (
        average_precision(truth, _filter_by_score(predictions, runtime)).matches
        for predictions, runtime in ((candidate_predictions, candidate), (running_predictions, running))
    )
    objects = [int(found.objects.sum()) for found in candidate_matches.per_class]
    judged = [row for row, count in enumerate(objects) if count >= options.min_objects]
    if not judged:
        return None
    ours, theirs, groups = _select(candidate_matches, judged), _select(running_matches, judged), group_frames(truth)
    draws = {"seed": options.seed, "resamples": options.resamples}
    evidence = compare_ap50(
        labelled.role, labelled.name, _filter_matches_by_score(ours), _filter_matches_by_score(theirs), groups, **draws
    )
    f1 = compare_f1(ours, theirs, _thresholds(candidate), _thresholds(running), groups, **draws)
    too_few = tuple(name for row, name in enumerate(truth.classes) if row not in judged)
    return replace(evidence, too_few=too_few, operating=f1)


def _select(matches: Matches, rows: Sequence[int]) -> Matches:
    return Matches(tuple(matches.classes[row] for row in rows), tuple(matches.per_class[row] for row in rows))


def _join(truths: Sequence[GroundTruth]) -> GroundTruth:
    """Return several files as one set. Equal image ids or recordings of different files stay distinct."""
    images = [
        replace(image, id=_unique_id(number, image.id), recording=f"{number}/{image.recording}")
        for number, truth in enumerate(truths)
        for image in truth.images
    ]
    return replace(truths[0], images=tuple(images))


def _predict_all(runtime: Runtime, paths: Sequence[Path]) -> Predictions:
    images = {
        _unique_id(number, image_id): found
        for number, path in enumerate(paths)
        for image_id, found in predict(runtime, path).images.items()
    }
    return Predictions(runtime.classes, images)


def _unique_id(file_number: int, image_id: int) -> int:
    return (file_number << 48) + image_id  # ids of COCO files are far smaller


def compare_ap50(
    role: Role, name: str, candidate: Matches, running: Matches, groups: Groups, *, seed: int, resamples: int
) -> SetEvidence:
    """Return the evidence on one set.

    Args:
        role: Role of the set.
        name: Name of the set.
        candidate: Matches of the candidate.
        running: Matches of the running package on the same ground truth.
        groups: Resampling units from `group_frames`.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap resamples.
    """

    def compare(rows: Sequence[int]) -> tuple[float, float, float]:
        pair = _select(candidate, rows), _select(running, rows)
        found = paired_bootstrap(*pair, groups, seed=seed, resamples=resamples, level=_LEVEL)
        return found.ap50, found.low, found.high

    rows = range(len(running.classes))
    difference, low, _ = compare(rows)
    running_ap50 = average_precisions(running)
    drops = average_precisions(candidate) - running_ap50
    classes = {}
    for row in rows:
        if np.isnan(drops[row]):
            continue
        # Only a loss can be an accident; a gain needs no bound.
        high = upper_bound(float(drops[row]), compare([row])[2], groups.count) if drops[row] < 0 else inf
        classes[running.classes[row]] = (float(drops[row]), high)
    baseline = float(np.nanmean(running_ap50))
    bound = lower_bound(difference, low, groups.count)
    return SetEvidence(name, role, baseline + difference, baseline, bound, groups.unit, groups.count, classes)


def measure_costs(candidate: Runtime, running: Runtime) -> tuple[RuntimeCost, RuntimeCost]:
    """Return the costs of both packages on this machine, timed in turn."""
    times = measure_milliseconds([candidate, running])
    return (
        RuntimeCost(times[0], candidate.package.bytes / 1e6),
        RuntimeCost(times[1], running.package.bytes / 1e6),
    )


def advise(candidate: Runtime, running: Runtime, labels: Path) -> dict[str, Any] | None:
    """Return signals that need no ground truth. They do not decide, because a teacher may be wrong.

    Args:
        candidate: Candidate package.
        running: Running package.
        labels: COCO file with the adapted teacher's labels on held-out target frames.

    Returns:
        By package `agreement` (mean F1 over classes against the teacher's labels) and `stability` (mean IoU of boxes of
        the same object in neighbouring frames), each `None` if it cannot be computed. `None` without held-out frames.
    """
    teacher = read_ground_truth(labels, running.classes)
    if not teacher.images:
        return None
    advice = {}
    for name, runtime in (("candidate", candidate), ("running", running)):
        predictions = predict(runtime, labels)
        points = at_thresholds(average_precision(teacher, predictions).matches, _thresholds(runtime))
        agreement = _rounded_mean([point.f1 for point in points.values()])
        advice[name] = {"agreement": agreement, "stability": _rounded_mean(_overlaps(predictions, teacher, runtime))}
    return advice


def _overlaps(predictions: Predictions, truth: GroundTruth, runtime: Runtime) -> list[float]:
    """Return the IoU of each detection with the same object in the next frame of its recording."""
    overlaps: list[float] = []
    order = sorted(truth.images, key=lambda image: (image.recording, image.index))
    for first, second in pairwise(order):
        if first.recording == second.recording:
            a, b = (
                EdgeDetections(*predictions.images[image.id]).filter_by_score(runtime.thresholds)
                for image in (first, second)
            )
            iou = np.where(a.labels[:, None] == b.labels[None], pairwise_iou(a.boxes, b.boxes), 0.0)
            best = iou.max(1, initial=0.0)
            overlaps += best[best > _MIN_IOU].tolist()
    return overlaps


def _rounded_mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 6) if values else None


def _thresholds(runtime: Runtime) -> dict[str, float]:
    return dict(zip(runtime.classes, runtime.thresholds.tolist(), strict=True))


def _filter_by_score(predictions: Predictions, runtime: Runtime) -> Predictions:
    """Drop detections that matter neither for AP50 nor at the package's own thresholds."""
    minimum: Floats = np.minimum(runtime.thresholds, _MIN_SCORE)
    images = {
        number: ImagePredictions(*EdgeDetections(*found).filter_by_score(minimum))
        for number, found in predictions.images.items()
    }
    return Predictions(predictions.classes, images)


def _filter_matches_by_score(matches: Matches) -> Matches:
    """Drop matches with scores below any threshold in use.

    Average precision depends on the order of scores alone. A class whose scores all fell to nothing would keep it.
    """

    def filtered(found: ClassMatches) -> ClassMatches:
        kept = found.scores >= _MIN_SCORE
        return ClassMatches(found.scores[kept], found.hits[kept], found.images[kept], found.objects)

    return Matches(matches.classes, tuple(filtered(found) for found in matches.per_class))


def _check_finite(predictions: Predictions, runtime: Runtime) -> None:
    for found in predictions.images.values():
        if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
            message = f"{runtime.package.path} returns boxes or scores that are not finite."
            raise WeightsError(message)
