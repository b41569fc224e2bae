"""Places of a recording's picture that are always taken: lamps and lit windows, told from road users without tracks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cahqp.association import DOUBTFUL_SHARE, LEAST_FRAMES, places_taken, stationary_factor
from cahqp.labels.candidates import Candidates

PROBES = 64
"""Frames of a recording that say which places are taken."""


def probes(frames: Sequence[int]) -> list[int]:
    """Return up to `PROBES` of a recording's frames, evenly spread over it.

    Args:
        frames: In the order of time, or of the recording where there is no time.
    """
    spread = np.linspace(0, len(frames) - 1, min(PROBES, len(frames)))
    return [frames[number] for number in np.unique(spread.round().astype(int)).tolist()]


class Places:
    """Where the boxes of some frames of a recording were.

    Args:
        candidates: Of each of these frames, by a number of the caller's.
        limits: (C,) threshold of each class.
    """

    def __init__(self, candidates: dict[int, Candidates], limits: NDArray[np.float64]) -> None:
        self._limits = limits
        self._boxes = {
            number: found.boxes[found.scores >= DOUBTFUL_SHARE * limits[found.labels]]
            for number, found in candidates.items()
        }

    def counted(self, number: int, candidates: Candidates, stationary_weight: float, least: float = 0.0) -> Candidates:
        """Return a frame's candidates, those whose place is always taken with less of their score, best first.

        Args:
            number: Of the frame: it does not speak for itself.
            candidates: Its boxes.
            stationary_weight: What a score counts whose place is always taken, 0..1.
            least: Share of its threshold below which a box is left as it is, for it will be no label anyhow.
        """
        others = [boxes for key, boxes in self._boxes.items() if key != number]
        if len(others) < LEAST_FRAMES or not len(candidates):
            return candidates
        rows = np.flatnonzero(candidates.scores >= least * self._limits[candidates.labels])
        scores = candidates.scores.copy()
        scores[rows] *= stationary_factor(places_taken(candidates.boxes[rows], others).mean(1), stationary_weight)
        counted = replace(candidates, scores=scores, detector_scores=candidates.scores)
        return counted[np.argsort(-scores, kind="stable")]
