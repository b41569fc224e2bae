"""What two packages are worth at the thresholds that they run with: F1, with a bound from a paired bootstrap."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cahqp.evaluation.bootstrap import Groups
from cahqp.evaluation.matching import Matches
from cahqp.evaluation.metrics import at_thresholds
from cahqp.gate.decision import CONFIDENCE, Operating, lower_bound


def operating(
    candidate: Matches, running: Matches, candidate_thresholds: Mapping[str, float],
    running_thresholds: Mapping[str, float], groups: Groups, *, seed: int, resamples: int,
) -> Operating:  # fmt: skip
    """Compare two packages at their own thresholds, on matches of the same truth.

    Args:
        candidate: Matches of the candidate, down to its thresholds.
        running: The same of the running package.
        candidate_thresholds: Scores in 0..1 from which a detection is believed, by class.
        running_thresholds: The same of the running package.
        groups: From `group_frames`.
        seed: Of the bootstrap.
        resamples: Draws of the bootstrap.
    """
    ours, theirs = (
        float(np.mean([point.f1 for point in at_thresholds(matches, limits).values()]))
        for matches, limits in ((candidate, candidate_thresholds), (running, running_thresholds))
    )
    random = np.random.default_rng(seed)
    drawn = random.multinomial(groups.count, np.full(groups.count, 1 / groups.count), size=resamples)
    apart = _f1(candidate, candidate_thresholds, groups, drawn) - _f1(running, running_thresholds, groups, drawn)
    known = ~np.isnan(apart)  # a class without an object in a draw does not count in that draw, for either package
    means = np.where(known, apart, 0).sum(1)[known.any(1)] / known.sum(1)[known.any(1)]
    difference, high = ours - theirs, float(np.quantile(means, CONFIDENCE))
    # The upper bound is widened like a lower one: mirrored, it is a lower bound.
    return Operating(ours, theirs, -lower_bound(-difference, -high, groups.count))


def _f1(
    matches: Matches, thresholds: Mapping[str, float], groups: Groups, drawn: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return (R, C) F1 of each class in each of R draws, NaN where a draw has no object of it.

    Args:
        matches: Of a package.
        thresholds: By class.
        groups: Of the frames.
        drawn: (R, G) how often each group counts.
    """
    columns = []
    for name, found in zip(matches.classes, matches.per_class, strict=True):
        taken = found.scores >= thresholds[name]
        detected = groups.rows[found.images[taken]]
        hits, detections, objects = (
            drawn @ np.bincount(rows, weights, minlength=groups.count)
            for rows, weights in ((detected, found.hits[taken]), (detected, None), (groups.rows, found.objects))
        )
        columns.append(np.where(objects > 0, 2 * hits / np.maximum(detections + objects, 1), np.nan))
    return np.stack(columns, 1)
