"""From which score a box is a label, per class, and the band below in which it is neither object nor background."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cahqp.errors import ConfigError

Floats = NDArray[np.float64]

NEVER = 1.01
"""A threshold that no score reaches."""

LEAST = 1e-3
"""The lowest threshold: scores are compared as multiples of theirs, and none is a multiple of nothing."""

BINS = 1000


@dataclass(frozen=True)
class Bands:
    """Where a class's labels begin and where its doubtful boxes do.

    Attributes:
        keep: Boxes with at least this score are labels.
        ignore: Boxes from here up to `keep` count neither as objects nor as background; below they are dropped.
    """

    keep: float
    ignore: float


def bands(thresholds: Mapping[str, float], ignore_share: float = 1.0) -> dict[str, Bands]:
    """Return the bands of each class.

    Args:
        thresholds: Least score of a label by class.
        ignore_share: From this share of the threshold on a box is doubtful; 1 knows no doubt.
    """
    return {name: Bands(value, min(value, 1.0) * ignore_share) for name, value in thresholds.items()}


def for_precision(scores: Floats, hits: NDArray[np.bool_], precision: float) -> float:
    """Return the lowest threshold from which on at least this share of labelled detections hit.

    Args:
        scores: (N,) of one class.
        hits: (N,) whether each found an object.
        precision: Share asked for, 0..1.

    Returns:
        `NEVER` where no threshold gives it.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    reached = np.cumsum(hits[order]) / np.arange(1, len(order) + 1)
    whole = np.append(ranked[:-1] != ranked[1:], True)[: len(ranked)]  # all detections of one score, or none of them
    good = np.flatnonzero((reached >= precision) & whole)
    return float(ranked[good[-1]]) if len(good) else NEVER


class Histogram:
    """The scores of all boxes of one class, counted into a thousand bins: as small for a million frames as for one."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS + 1, np.int64)

    def add(self, scores: Floats) -> None:
        """Count scores in 0..1."""
        np.add.at(self.counts, np.clip((scores * BINS).astype(np.int64), 0, BINS), 1)

    def top_share(self, share: float) -> float:
        """Return the threshold above which about this share of the boxes lies; `NEVER` where there are none."""
        total = int(self.counts.sum())
        if not total:
            return NEVER
        above = np.cumsum(self.counts[::-1])[::-1]
        return float(np.flatnonzero(above >= share * total)[-1]) / BINS

    def mean_above(self, score: float) -> float | None:
        """Return the mean score of the boxes from `score` on, `None` where there are none."""
        rows = np.arange(BINS + 1) / BINS
        own = np.where(rows >= score, self.counts, 0)
        return float((own * rows).sum() / own.sum()) if own.sum() else None


def dynamic(
    thresholds: Mapping[str, float], target: Mapping[str, Histogram], source: Mapping[str, float], least: float = 0.5
) -> dict[str, float]:
    """Return thresholds that follow how sure the model is of the target, class by class.

    A class's threshold moves by the ratio of the mean scores that the model gives on target and source to its boxes
    from half the threshold on, as curriculum thresholds do (FlexMatch, Zhang et al. 2021), but never below `least` of
    what it was, nor above it.

    Args:
        thresholds: By class, as measured on the source.
        target: Scores on the target by class.
        source: By class, the mean score on the source of the boxes from half the threshold on.
        least: Least share of a threshold that is left.
    """
    moved = {}
    for name, value in thresholds.items():
        now, before = target[name].mean_above(0.5 * value), source.get(name)
        ratio = 1.0 if now is None or not before else now / before
        moved[name] = value * float(np.clip(ratio, least, 1.0))
    return moved


def check_rules(given: Mapping[str, object]) -> None:
    """Refuse two rules for the thresholds at once.

    Args:
        given: By flag; `None` where not given.

    Raises:
        ConfigError: More than one is given.
    """
    asked = [flag for flag, value in given.items() if value]
    if len(asked) > 1:
        message = f"{' and '.join(asked)} each say where labels begin. Give one of them."
        raise ConfigError(message)
