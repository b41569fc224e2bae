"""Thresholds per class: for a precision, for a share of boxes, and adjusted to the target's scores."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NEVER = 1.01
"""Threshold that no score reaches."""

MIN_THRESHOLD = 1e-3
"""Lowest threshold. Scores are compared as multiples of their threshold, so it must not be zero."""

BINS = 1000


def for_precision(scores: Floats, hits: NDArray[np.bool_], precision: float) -> float:
    """Return the lowest threshold at which detections reach a precision; `NEVER` if there is none.

    Args:
        scores: (N,) scores of one class.
        hits: (N,) whether each detection matches an object.
        precision: Required share of matching detections, 0..1.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    reached = np.cumsum(hits[order]) / np.arange(1, len(order) + 1)
    last_of_score = np.append(ranked[:-1] != ranked[1:], True)[: len(ranked)]  # equal scores stay together
    good = np.flatnonzero((reached >= precision) & last_of_score)
    return float(ranked[good[-1]]) if len(good) else NEVER


def for_f1(scores: Floats, hits: NDArray[np.bool_], objects: int) -> float:
    """Return the threshold with the best F1; `NEVER` if no detection matches an object.

    Args:
        scores: (N,) scores of one class.
        hits: (N,) whether each detection matches an object.
        objects: Number of objects.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    f1 = 2 * np.cumsum(hits[order]) / (np.arange(1, len(order) + 1) + objects)
    f1[:-1][ranked[:-1] == ranked[1:]] = -1  # equal scores stay together
    return float(ranked[f1.argmax()]) if hits.any() else NEVER


class Histogram:
    """Histogram of the scores of one class, in bins of a thousandth; its size is constant."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS + 1, np.int64)

    def add(self, scores: Floats) -> None:
        """Count scores in 0..1."""
        np.add.at(self.counts, np.clip((scores * BINS).astype(np.int64), 0, BINS), 1)

    def top_share(self, share: float) -> float:
        """Return the threshold that about this share of the boxes reaches; `NEVER` if there are no boxes."""
        total = int(self.counts.sum())
        if not total:
            return NEVER
        above = np.cumsum(self.counts[::-1])[::-1]
        return float(np.flatnonzero(above >= share * total)[-1]) / BINS

    def mean_above(self, score: float) -> float | None:
        """Return the mean of the scores from `score` on, `None` if there are none."""
        rows = np.arange(BINS + 1) / BINS
        counts = np.where(rows >= score, self.counts, 0)
        return float((counts * rows).sum() / counts.sum()) if counts.sum() else None


def dynamic(
    thresholds: Mapping[str, float],
    target: Mapping[str, Histogram],
    source: Mapping[str, float],
    min_factor: float = 0.5,
) -> dict[str, float]:
    """Return thresholds multiplied by the ratio of mean scores on target and source, by class.

    The mean is taken over boxes from half the threshold on, as in curriculum thresholds (FlexMatch, Zhang et al. 2021).

    Args:
        thresholds: Thresholds by class on the source.
        target: Scores on the target by class.
        source: Mean score on the source by class, of boxes from half the threshold on.
        min_factor: Smallest factor; the largest is 1.
    """
    adjusted = {}
    for name, value in thresholds.items():
        mean, source_mean = target[name].mean_above(0.5 * value), source.get(name)
        ratio = 1.0 if mean is None or not source_mean else mean / source_mean
        adjusted[name] = value * float(np.clip(ratio, min_factor, 1.0))
    return adjusted
