"""What the gate decides from: two packages on the same frames, on the runtime that will run them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahqp.edge.latency import answers, milliseconds
from cahqp.edge.runtime import Runtime
from cahqp.errors import WeightsError
from cahqp.evaluation.bootstrap import Groups, group_frames, paired_bootstrap
from cahqp.evaluation.ground_truth import GroundTruth, ImagePredictions, Predictions, read_ground_truth
from cahqp.evaluation.matching import ClassMatches, Matches, average_precisions
from cahqp.evaluation.metrics import at_thresholds, average_precision
from cahqp.gate.decision import CONFIDENCE, Role, RuntimeCost, SetEvidence, lower_bound
from cahqp.gate.operating_point import operating

_LEVEL = 2 * CONFIDENCE - 1  # a two-sided interval whose ends are one-sided bounds
_FAINT = 0.01  # a score that is lower than any threshold in use
_SAME = 0.3  # IoU above which two boxes of neighbouring frames are one object


def collect(
    candidate: Runtime,
    running: Runtime,
    role: Role,
    name: str,
    paths: Sequence[Path],
    *,
    min_objects: int,
    seed: int,
    resamples: int,
) -> SetEvidence | None:
    """Measure both packages on COCO files that are one set; `None` where no class has enough objects to judge.

    Of four buses each that is missed takes 25 points from its class, and five from the mean over five classes. So a
    class of fewer than `fewest` objects is left out.

    Args:
        candidate: The candidate's runtime.
        running: The running package's runtime.
        role: What kind of set it is.
        name: Of the set.
        paths: COCO files with truth.
        min_objects: Objects that a class must have to count.
        seed: Of the bootstrap.
        resamples: Draws of the bootstrap.

    Raises:
        WeightsError: The candidate fails, or says numbers that are none.
    """
    ground_truth = _joined([read_ground_truth(path, running.classes) for path in paths])
    said, running_said = (_all_answers(runtime, paths) for runtime in (candidate, running))
    _check_finite(said, candidate)
    ours, theirs = (
        average_precision(ground_truth, _filter_by_score(found, runtime)).matches
        for found, runtime in ((said, candidate), (running_said, running))
    )
    objects = {c: int(found.objects.sum()) for c, found in zip(ground_truth.classes, ours.per_class, strict=True)}
    judged = [c for c, count in objects.items() if count >= min_objects]
    if not judged:
        return None
    mine, other, groups = _only(ours, judged), _only(theirs, judged), group_frames(ground_truth)
    evidence = weigh(role, name, _audible(mine), _audible(other), groups, seed=seed, resamples=resamples)
    at_work = operating(mine, other, _limits(candidate), _limits(running), groups, seed=seed, resamples=resamples)
    return replace(evidence, too_few=tuple(c for c in objects if c not in judged), operating=at_work)


def _only(matches: Matches, classes: Sequence[str]) -> Matches:
    rows = [matches.classes.index(name) for name in classes]
    return Matches(tuple(classes), tuple(matches.per_class[row] for row in rows))


def _joined(ground_truths: Sequence[GroundTruth]) -> GroundTruth:
    """Return several files as one set; image ids and recordings of different files are different ones."""
    images = [
        replace(image, id=_id(number, image.id), recording=f"{number}/{image.recording}")
        for number, ground_truth in enumerate(ground_truths)
        for image in ground_truth.images
    ]
    return replace(ground_truths[0], images=tuple(images))


def _all_answers(runtime: Runtime, paths: Sequence[Path]) -> Predictions:
    images = {
        _id(number, id_): found
        for number, path in enumerate(paths)
        for id_, found in answers(runtime, path).images.items()
    }
    return Predictions(runtime.classes, images)


def _id(number: int, image: int) -> int:
    return (number << 48) + image  # ids of COCO files are far smaller


def weigh(
    role: Role, name: str, candidate: Matches, running: Matches, groups: Groups, *, seed: int, resamples: int
) -> SetEvidence:
    """Return the evidence of matches on the same truth."""

    def compare(ours: Matches, theirs: Matches) -> tuple[float, float, float]:
        found = paired_bootstrap(ours, theirs, groups, seed=seed, resamples=resamples, level=_LEVEL)
        return found.ap50, found.low, found.high

    difference, low, _ = compare(candidate, running)
    apart = average_precisions(candidate) - average_precisions(running)
    classes = {}
    for row, class_name in enumerate(running.classes):
        if np.isnan(apart[row]):
            continue
        high = float("inf")
        if apart[row] < 0:  # else there is no loss that might be an accident
            high = compare(*(Matches((class_name,), (m.per_class[row],)) for m in (candidate, running)))[2]
            # The upper bound is widened like the lower one: mirrored, it is a lower bound.
            high = -lower_bound(-float(apart[row]), -high, groups.count)
        classes[class_name] = (float(apart[row]), high)
    baseline = _macro(running)
    return SetEvidence(
        name, role, baseline + difference, baseline, lower_bound(difference, low, groups.count), groups.unit,
        groups.count, classes,
    )  # fmt: skip


def costs(candidate: Runtime, running: Runtime) -> tuple[RuntimeCost, RuntimeCost]:
    """Return what both packages cost on this machine, timed in turn."""
    times = milliseconds([candidate, running])
    sizes = [runtime.package.bytes / 1e6 for runtime in (candidate, running)]
    ours, theirs = (RuntimeCost(*pair) for pair in zip(times, sizes, strict=True))
    return ours, theirs


def advise(candidate: Runtime, running: Runtime, labels: Path) -> dict[str, Any] | None:
    """Return signals that need no truth. They advise and do not decide: a teacher that is wrong is agreed with, too.

    Args:
        candidate: The candidate.
        running: The running package.
        labels: COCO file of the adapted teacher's labels on target frames that were held out.

    Returns:
        By package `agreement` (F1 with the teacher's labels, mean over classes) and `stability` (mean IoU of the boxes
        that neighbouring frames share; higher is steadier), `None` where nothing can be said. `None` as a whole where
        no frame was held out.
    """
    teacher = read_ground_truth(labels, running.classes)
    if not teacher.images:
        return None
    advice = {}
    for name, runtime in (("candidate", candidate), ("running", running)):
        said = answers(runtime, labels)
        points = at_thresholds(average_precision(teacher, said).matches, _limits(runtime))
        agreement = float(np.mean([point.f1 for point in points.values()])) if points else None
        advice[name] = {"agreement": _rounded(agreement), "stability": _rounded(_stability(said, teacher, runtime))}
    return advice


def _stability(said: Predictions, ground_truth: GroundTruth, runtime: Runtime) -> float | None:
    overlaps: list[float] = []
    order = sorted(ground_truth.images, key=lambda image: (image.recording, image.index))
    for first, second in pairwise(order):
        if first.recording == second.recording:
            here, there = (_believed(said.images[image.id], runtime) for image in (first, second))
            overlap = _overlaps(here, there)
            best = overlap.max(1, initial=0.0) if len(overlap) else np.zeros(0)
            overlaps += best[best > _SAME].tolist()
    return float(np.mean(overlaps)) if overlaps else None


def _believed(found: ImagePredictions, runtime: Runtime) -> tuple[NDArray[Any], NDArray[Any]]:
    kept = found.scores >= runtime.thresholds[found.labels]
    return found.boxes[kept], found.labels[kept]


def _overlaps(
    first: tuple[NDArray[Any], NDArray[Any]], second: tuple[NDArray[Any], NDArray[Any]]
) -> NDArray[np.float64]:
    """Return (N, M) IoU of boxes of the same class, 0 for others."""
    a, b = first[0][:, None].astype(np.float64), second[0][None].astype(np.float64)
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    shared = sides.prod(-1)
    areas = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    return np.where(first[1][:, None] == second[1][None], shared / np.maximum(areas - shared, 1e-9), 0.0)


def _limits(runtime: Runtime) -> dict[str, float]:
    return dict(zip(runtime.classes, runtime.thresholds.tolist(), strict=True))


def _filter_by_score(said: Predictions, runtime: Runtime) -> Predictions:
    """Return the answers without those that neither count in AP50 nor reach the package's own thresholds."""
    limits = np.minimum(runtime.thresholds, np.float32(_FAINT))
    images = {}
    for number, found in said.images.items():
        kept = found.scores >= limits[found.labels]
        images[number] = ImagePredictions(found.boxes[kept], found.scores[kept], found.labels[kept])
    return Predictions(said.classes, images)


def _audible(matches: Matches) -> Matches:
    """Return the matches of scores that some threshold may let through.

    Average precision looks at the order of scores alone: a class whose scores all fell to nothing keeps its AP50.
    """

    def kept(one: ClassMatches) -> ClassMatches:
        loud = one.scores >= np.float32(_FAINT)  # scores are of that kind
        return ClassMatches(one.scores[loud], one.hits[loud], one.images[loud], one.objects)

    return Matches(matches.classes, tuple(kept(one) for one in matches.per_class))


def _check_finite(said: Predictions, runtime: Runtime) -> None:
    for found in said.images.values():
        if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
            message = f"{runtime.package.path} says boxes or scores that are not finite."
            raise WeightsError(message)


def _macro(matches: Matches) -> float:
    return float(np.nanmean(average_precisions(matches)))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
