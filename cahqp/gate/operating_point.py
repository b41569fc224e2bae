"""Comparison of the F1 of two edge packages at their own thresholds, with an upper bound from a paired bootstrap."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cahqp.evaluation.bootstrap import Groups
from cahqp.evaluation.matching import Matches
from cahqp.evaluation.metrics import at_thresholds
from cahqp.gate.decision import CONFIDENCE, OperatingEvidence, upper_bound


def compare_f1(
    candidate: Matches, running: Matches, candidate_thresholds: Mapping[str, float],
    running_thresholds: Mapping[str, float], groups: Groups, *, seed: int, resamples: int,
) -> OperatingEvidence:  # fmt: skip
    """Compare the F1 of two packages at their own thresholds.

    Args:
        candidate: Matches of the candidate, down to its thresholds.
        running: Matches of the running package on the same ground truth.
        candidate_thresholds: Minimum score in 0..1 of a detection by class.
        running_thresholds: Minimum score in 0..1 of a detection by class.
        groups: Resampling units from `group_frames`.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap resamples.
    """
    candidate_f1, running_f1 = (
        float(np.mean([point.f1 for point in at_thresholds(matches, thresholds).values()]))
        for matches, thresholds in ((candidate, candidate_thresholds), (running, running_thresholds))
    )
    random = np.random.default_rng(seed)
    counts = random.multinomial(groups.count, np.full(groups.count, 1 / groups.count), size=resamples)
    differences = _resampled_f1(candidate, candidate_thresholds, groups, counts) - _resampled_f1(
        running, running_thresholds, groups, counts
    )
    valid = ~np.isnan(differences)  # a class without an object in a resample is excluded there for both packages
    rows = valid.any(1)
    means = np.where(valid, differences, 0).sum(1)[rows] / valid.sum(1)[rows]
    high = upper_bound(candidate_f1 - running_f1, float(np.quantile(means, CONFIDENCE)), groups.count)
    return OperatingEvidence(candidate_f1, running_f1, high)


def _resampled_f1(
    matches: Matches, thresholds: Mapping[str, float], groups: Groups, counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return (R, C) F1 of each class in each resample, NaN where a resample has no object of the class.

    Args:
        matches: Matches of one package.
        thresholds: Minimum score by class.
        groups: Resampling units of the frames.
        counts: (R, G) number of draws of each group in each resample.
    """
    columns = []
    for name, found in zip(matches.classes, matches.per_class, strict=True):
        kept = found.scores >= thresholds[name]
        detected = groups.rows[found.images[kept]]
        hits, detections, objects = (
            counts @ np.bincount(rows, weights, minlength=groups.count)
            for rows, weights in ((detected, found.hits[kept]), (detected, None), (groups.rows, found.objects))
        )
        columns.append(np.where(objects > 0, 2 * hits / np.maximum(detections + objects, 1), np.nan))
    return np.stack(columns, 1)
