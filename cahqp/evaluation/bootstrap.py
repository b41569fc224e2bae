"""Paired bootstrap of the AP50 difference of two models, over groups of dependent frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cahqp.errors import DataError
from cahqp.evaluation.ground_truth import GroundTruth
from cahqp.evaluation.matching import Matches, average_precisions
from cahqp.evaluation.metrics import macro

MIN_RECORDINGS = 10
MAX_BLOCKS = 20
MIN_BLOCK_FRAMES = 4
"""Neighbouring shorter blocks show the same vehicles, so an interval would treat them as independent."""


@dataclass(frozen=True)
class Groups:
    """Groups of frames that are resampled together.

    Attributes:
        unit: `recordings`, or `blocks` of consecutive frames with too few recordings.
        rows: (I,) group of each image.
        count: Number of groups.
    """

    unit: Literal["recordings", "blocks"]
    rows: NDArray[np.int64]
    count: int

    def resample(self, random: np.random.Generator, resamples: int) -> Iterator[NDArray[np.int64]]:
        """Yield (I,) how often each image is drawn, once per resample."""
        for times in random.multinomial(self.count, np.full(self.count, 1 / self.count), size=resamples):
            yield times[self.rows]


@dataclass(frozen=True)
class Difference:
    """Lead of a model over a baseline in AP50.

    Attributes:
        ap50: Difference on all frames.
        low: Lower end of the interval.
        high: Upper end of the interval.
        ahead: Share of the resamples in which the model is ahead.
        level: Share of the resamples inside the interval.
        unit: Unit of the groups.
        groups: Number of groups.
        resamples: Number of resamples with objects.
    """

    ap50: float
    low: float
    high: float
    ahead: float
    level: float
    unit: str
    groups: int
    resamples: int


def within_chance(low: float, high: float) -> bool:
    """Return whether an interval of a difference contains zero, so that the difference may be chance."""
    return low <= 0 <= high


def group_frames(ground_truth: GroundTruth) -> Groups:
    """Group frames by recording, or by blocks within each recording if there are fewer than ten recordings.

    Neighbouring frames show the same vehicles; resampled one by one, they make any difference look certain. A block has
    at least four frames, or all frames of a shorter recording. There are at most about twenty blocks.
    """
    recordings = [image.recording for image in ground_truth.images]
    names = list(dict.fromkeys(recordings))
    if len(names) >= MIN_RECORDINGS:
        numbers = {name: number for number, name in enumerate(names)}
        return Groups("recordings", np.array([numbers[r] for r in recordings], np.int64), len(names))
    rows, count = np.zeros(len(recordings), np.int64), 0
    for name in names:
        frames = [row for row, recording in enumerate(recordings) if recording == name]
        frames.sort(key=lambda row: ground_truth.images[row].index)
        blocks = max(1, min(len(frames) // MIN_BLOCK_FRAMES, -(-MAX_BLOCKS // len(names))))
        for block in np.array_split(frames, blocks):
            rows[block] = count
            count += 1
    return Groups("blocks", rows, count)


def paired_bootstrap(
    model: Matches, baseline: Matches, groups: Groups, *, seed: int, resamples: int = 1000, level: float = 0.95
) -> Difference:
    """Compare two models on the same resamples of groups of frames.

    A class without objects in a resample does not count in it, for either model.

    Args:
        model: Matches of the model.
        baseline: Matches of the baseline on the same ground truth.
        groups: Groups from `group_frames`.
        seed: Seed of the resamples.
        resamples: Number of resamples.
        level: Share of the resamples inside the interval.

    Raises:
        DataError: The models were measured on different ground truth, or it contains no objects.
    """
    _check(model, baseline, groups)
    observed = _difference(model, baseline, None)
    if observed is None:
        message = "The ground truth contains no objects, so AP50 is undefined. Give frames with objects."
        raise DataError(message)
    draws = groups.resample(np.random.default_rng(seed), resamples)
    differences = [_difference(model, baseline, times) for times in draws]
    values = np.array([value for value in differences if value is not None])
    low, high = -1.0, 1.0  # nothing is known from a single group
    if groups.count > 1:
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Difference(observed, low, high, float((values > 0).mean()), level, groups.unit, groups.count, len(values))


def _check(model: Matches, baseline: Matches, groups: Groups) -> None:
    objects, expected = ([own.objects.tolist() for own in each.per_class] for each in (model, baseline))
    if model.classes != baseline.classes or objects != expected:
        message = "Two models can be compared on the same frames and classes only. Evaluate both on the same file."
        raise DataError(message)
    if any(len(own.objects) != len(groups.rows) for own in model.per_class):
        message = f"The groups have {len(groups.rows)} frames, unlike the matches. Group the measured frames."
        raise DataError(message)


def _difference(model: Matches, baseline: Matches, times: NDArray[np.int64] | None) -> float | None:
    return macro(average_precisions(model, times) - average_precisions(baseline, times))
