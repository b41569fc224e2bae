"""How far a difference between two models can be trusted: paired bootstrap over what is independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cahqp.errors import DataError
from cahqp.evaluation.ground_truth import GroundTruth
from cahqp.evaluation.matching import Matches, average_precisions
from cahqp.evaluation.metrics import macro

FEWEST_RECORDINGS = 10
BLOCKS = 20
SHORTEST_BLOCK = 4
"""Frames: of shorter blocks neighbours show the same vehicles, and an interval takes them for independent."""


@dataclass(frozen=True)
class Groups:
    """Frames that are drawn together.

    Attributes:
        unit: `recordings`, or `blocks` of following frames where there are too few recordings.
        rows: (I,) group of each image.
        count: Number of groups.
    """

    unit: Literal["recordings", "blocks"]
    rows: NDArray[np.int64]
    count: int


@dataclass(frozen=True)
class Difference:
    """How much a model is ahead of another one in AP50.

    Attributes:
        ap50: The difference on all frames.
        low: Lower end of the interval.
        high: Upper end of the interval.
        ahead: Share of the resamples in which the model is ahead.
        level: Share of the resamples that the interval holds.
        unit: What was drawn.
        groups: How many of them there are.
        resamples: How often they were drawn.
    """

    ap50: float
    low: float
    high: float
    ahead: float
    level: float
    unit: str
    groups: int
    resamples: int


def group_frames(ground_truth: GroundTruth) -> Groups:
    """Group frames by recording, or by blocks within each recording where there are fewer than ten.

    Neighbouring frames show the same vehicles; drawn one by one they would make any difference look certain. So a block
    has at least four frames, or all of a shorter recording, and there are about twenty blocks at most.
    """
    recordings = [image.recording for image in ground_truth.images]
    names = list(dict.fromkeys(recordings))
    if len(names) >= FEWEST_RECORDINGS:
        numbers = {name: number for number, name in enumerate(names)}
        return Groups("recordings", np.array([numbers[r] for r in recordings], np.int64), len(names))
    rows, count = np.zeros(len(recordings), np.int64), 0
    for name in names:
        frames = [row for row, recording in enumerate(recordings) if recording == name]
        frames.sort(key=lambda row: ground_truth.images[row].index)
        for block in np.array_split(frames, max(1, min(len(frames) // SHORTEST_BLOCK, -(-BLOCKS // len(names))))):
            rows[block] = count
            count += 1
    return Groups("blocks", rows, count)


def paired_bootstrap(
    model: Matches, baseline: Matches, groups: Groups, *, seed: int, resamples: int = 1000, level: float = 0.95
) -> Difference:
    """Compare two models on the same draws of groups of frames.

    A class without an object in a draw does not count in that draw, for either model.

    Args:
        model: Matches of the model in question.
        baseline: Matches of the model that it is compared with, on the same truth.
        groups: From `group_frames`.
        seed: Seeds the draws.
        resamples: Number of draws.
        level: Share of the draws that the interval holds.

    Raises:
        DataError: The two were not measured on the same truth, or it has no object.
    """
    _check(model, baseline, groups)
    everything = np.ones(len(groups.rows), np.int64)
    observed = _difference(model, baseline, everything)
    if observed is None:
        message = "There is no object in the truth, so there is no AP50 to compare. Give frames with objects."
        raise DataError(message)
    random = np.random.default_rng(seed)
    drawn = random.multinomial(groups.count, np.full(groups.count, 1 / groups.count), size=resamples)
    values = [_difference(model, baseline, times[groups.rows]) for times in drawn]
    known = np.array([value for value in values if value is not None])
    low, high = _interval(known, level) if groups.count > 1 else (-1.0, 1.0)  # one group: nothing is known
    ahead = float((known > 0).mean())
    return Difference(observed, low, high, ahead, level, groups.unit, groups.count, len(known))


def _check(model: Matches, baseline: Matches, groups: Groups) -> None:
    def objects(matches: Matches) -> list[Sequence[int]]:
        return [found.objects.tolist() for found in matches.per_class]

    if model.classes != baseline.classes or objects(model) != objects(baseline):
        message = "Two models can be compared on the same frames and classes only. Evaluate both on the same file."
        raise DataError(message)
    if any(len(found.objects) != len(groups.rows) for found in model.per_class):
        message = f"The groups are of {len(groups.rows)} frames, which are not those that the models were measured on."
        raise DataError(message)


def _difference(model: Matches, baseline: Matches, times: NDArray[np.int64]) -> float | None:
    return macro(average_precisions(model, times) - average_precisions(baseline, times))


def _interval(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
