"""Positions of a recording that are occupied in most frames, such as lamps and lit windows. Needs no tracks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cahqp.association import DOUBTFUL_SHARE, LEAST_FRAMES, places_taken, stationary_factor
from cahqp.labels.candidates import Candidates
from cahqp.labels.options import LabelOptions

PROBES = 64
"""Largest number of frames of a recording in which positions are looked up."""


def probes(frames: Sequence[int]) -> list[int]:
    """Return up to `PROBES` frames, evenly spread.

    Args:
        frames: Frames of a recording in order of time, or in their own order without time stamps.
    """
    spread = np.linspace(0, len(frames) - 1, min(PROBES, len(frames)))
    return [frames[number] for number in np.unique(spread.round().astype(int)).tolist()]


class OccupiedPositions:
    """Positions of the boxes in some frames of a recording.

    Args:
        candidates: Candidates of each of these frames, by any number that identifies the frame.
        limits: (C,) threshold of each class.
    """

    def __init__(self, candidates: Mapping[int, Candidates], limits: NDArray[np.float64]) -> None:
        self._limits = limits
        self._boxes = {
            number: frame.boxes[frame.scores >= DOUBTFUL_SHARE * limits[frame.labels]]
            for number, frame in candidates.items()
        }

    def reweight(self, number: int, candidates: Candidates, options: LabelOptions) -> Candidates:
        """Return the candidates of a frame with lower scores at stationary positions, highest score first.

        Boxes below the band of their class keep their score, because they cannot become labels.

        Args:
            number: Number of the frame; its own boxes do not count as occupied.
            candidates: Boxes of the frame.
            options: `stationary_weight` and `ignore_share`.
        """
        others = [boxes for key, boxes in self._boxes.items() if key != number]
        if len(others) < LEAST_FRAMES or not len(candidates):
            return candidates
        rows = np.flatnonzero(candidates.scores >= options.ignore_share * self._limits[candidates.labels])
        scores = candidates.scores.copy()
        shares = places_taken(candidates.boxes[rows], others).mean(1)
        scores[rows] *= stationary_factor(shares, options.stationary_weight)
        reweighted = replace(candidates, scores=scores, detector_scores=candidates.scores)
        return reweighted[np.argsort(-scores, kind="stable")]
