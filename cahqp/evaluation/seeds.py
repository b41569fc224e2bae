"""Intervals over seeds and recordings: Student's t over seeds, bootstrap over recordings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from cahqp.evaluation.bootstrap import Groups
from cahqp.evaluation.matching import Matches, average_precisions
from cahqp.evaluation.metrics import macro

DRAWS = 400
MIN_SEEDS = 3
"""With fewer seeds an interval is no evidence: the spread over seeds is unknown or almost unknown."""

_TAIL = 0.975  # upper end of a two-sided interval of 95 %
_ONE_SIDED = 0.95  # of each of the two tests of equivalence

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval: AP50 in 0..1, or a share of a gap, which may lie outside 0..1.

    Attributes:
        value: The value.
        low: Lower end.
        high: Upper end.
        seeds: Number of seeds.
        half_90: Half the width of the 90 % interval.
    """

    value: float
    low: float
    high: float
    seeds: int
    half_90: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero and has enough seeds to be evidence."""
        return self.seeds >= MIN_SEEDS and (self.low > 0 or self.high < 0)

    def equivalent(self, margin: float) -> bool:
        """Return whether two one-sided tests at 5 % place the value within a margin of zero (TOST, Schuirmann 1987).

        They do so if the 90 % interval lies within -margin..margin.
        """
        return self.seeds >= MIN_SEEDS and abs(self.value) + self.half_90 <= margin


class Draws:
    """AP50 of arms over seeds, and over resamples of the recordings.

    Arms share every resample, so that their differences are paired. A bootstrap over three seeds would end its interval
    at the smallest of them and call one difference in six significant without any; so the spread over seeds enters by
    Student's t. If each seed has recordings of its own, that spread includes theirs, and the interval is at least as
    wide as the bootstrap's over recordings. If all seeds are measured on the same frames, the two add up.

    Args:
        matches: Matches by arm, one for each seed, on the same ground truth for all arms of a seed.
        groups: Groups of frames, one for each seed.
        shared: Whether all seeds are measured on the same frames.
        seed: Seed of the resamples.
    """

    def __init__(
        self, matches: Mapping[str, Sequence[Matches]], groups: Sequence[Groups], shared: bool, seed: int = 0
    ) -> None:
        self.arms, self.shared = list(matches), shared
        self.min_count = min_count = min(each.count for each in groups)
        self._freedom = min_count - 1 if shared else sum(each.count - 1 for each in groups)
        # A bootstrap divides the variance of n groups by n instead of n - 1.
        self._widening = (min_count / (min_count - 1)) ** 0.5 if min_count > 1 else math.nan
        streams = [np.random.default_rng([seed, 0 if shared else number]) for number in range(len(groups))]
        times = [list(each.resample(stream, DRAWS)) for each, stream in zip(groups, streams, strict=True)]
        self._observed = {arm: np.array([_ap50(own, None) for own in each]) for arm, each in matches.items()}
        self._drawn = {
            arm: _mean_over_seeds([[_ap50(own, row) for row in times[n]] for n, own in enumerate(each)])
            for arm, each in matches.items()
        }

    def per_seed(self, arm: str) -> list[float]:
        """Return an arm's AP50 of each seed, 0..1."""
        return [float(value) for value in self._observed[arm]]

    def difference(self, arm: str, baseline: str) -> Interval | None:
        """Return the lead of an arm's mean over another's; `None` if it is unknown."""
        each = self._observed[arm] - self._observed[baseline]
        return self._interval(_mean(each), each, self._drawn[arm] - self._drawn[baseline])

    def closed(self, arm: str, start: str, end: str) -> Interval | None:
        """Return the share of the gap from `start` to `end` that an arm closes, as the ratio of mean gains.

        Return `None` if `end` is not ahead of `start`: a share of a loss would be read as a share of a gain. The
        interval belongs to the ratio's linear part, which a resample without a gap cannot distort.
        """
        gain, gap = (self._observed[name] - self._observed[start] for name in (arm, end))
        mean_gap = _mean(gap)
        if not mean_gap > 0:
            return None
        value = _mean(gain) / mean_gap
        drawn_gain, drawn_gap = (self._drawn[name] - self._drawn[start] for name in (arm, end))
        return self._interval(value, (gain - value * gap) / mean_gap, (drawn_gain - value * drawn_gap) / mean_gap)

    def _interval(self, value: float, each: Values, drawn: Values) -> Interval | None:
        """Return the interval of a value from its values for each seed and for each resample."""
        known = each[~np.isnan(each)]
        # A single group has no spread, but the spread over seeds includes it if each seed has frames of its own.
        if not len(known) or (self.min_count < 2 and (self.shared or len(known) < 2)):
            return None
        by_recordings = self._widening * np.nanstd(drawn) if self.min_count > 1 else 0.0
        by_seeds = np.std(known, ddof=1) / len(known) ** 0.5 if len(known) > 1 else 0.0

        def half(tail: float) -> float:
            of_recordings = by_recordings * t.ppf(tail, self._freedom) if by_recordings else 0.0
            of_seeds = by_seeds * t.ppf(tail, len(known) - 1) if by_seeds else 0.0
            return float(np.hypot(of_seeds, of_recordings) if self.shared else max(of_seeds, of_recordings))

        return Interval(value, value - half(_TAIL), value + half(_TAIL), len(known), half(_ONE_SIDED))


def _mean_over_seeds(drawn: Sequence[Sequence[float]]) -> Values:
    """Return the mean of each resample; NaN if no seed had an object."""
    values = np.array(drawn)
    known = ~np.isnan(values)
    means: Values = np.where(known, values, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)
    return means


def _mean(values: Values) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else math.nan


def _ap50(matches: Matches, times: NDArray[np.int64] | None) -> float:
    value = macro(average_precisions(matches, times))
    return math.nan if value is None else value
