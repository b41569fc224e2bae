"""How far figures over seeds and recordings can be trusted: Student's t over seeds, a bootstrap over recordings."""

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

LEVEL = 0.95
DRAWS = 400
FEWEST_SEEDS = 3
"""Seeds below which an interval is no evidence: of one nothing is known of their spread, of two next to nothing."""

_TAIL = (1 + LEVEL) / 2

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A figure with its range of 95 %: AP50 in 0..1, or a share of a gap, which may lie outside 0..1.

    Attributes:
        value: The figure.
        low: Lower end.
        high: Upper end.
        seeds: How many it is of.
    """

    value: float
    low: float
    high: float
    seeds: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero, and is evidence at all."""
        return self.seeds >= FEWEST_SEEDS and (self.low > 0 or self.high < 0)


class Draws:
    """AP50 of arms over seeds, and how it varies with the recordings that are drawn.

    Arms share every draw, so that their differences are paired. A bootstrap of three seeds would take the least of
    them for the end of the interval and call one difference in six proven where there is none; so the spread of seeds
    enters by Student's t. Where each seed has recordings of its own, that spread holds theirs, and the interval is
    no narrower than the bootstrap over recordings makes it; where all are measured on the same frames, the two add up.

    Args:
        matches: Of each arm, one per seed, on the same truth for all arms of a seed.
        groups: What is drawn together, one per seed.
        shared: All seeds are measured on the same frames.
        seed: Of the draws.
    """

    def __init__(
        self, matches: Mapping[str, Sequence[Matches]], groups: Sequence[Groups], shared: bool, seed: int = 0
    ) -> None:
        self.arms, self.shared = list(matches), shared
        self.min_count = min_count = min(found.count for found in groups)
        freedom = min_count - 1 if shared else sum(found.count - 1 for found in groups)
        # A bootstrap's spread is that of the groups divided by their number, not by one less.
        self._widened = t.ppf(_TAIL, freedom) * (min_count / (min_count - 1)) ** 0.5 if min_count > 1 else math.nan
        counts = [_recordings(found, 0 if shared else number, seed) for number, found in enumerate(groups)]
        self._observed = {arm: np.array([_ap50(m, None) for m in each]) for arm, each in matches.items()}
        self._drawn = {
            arm: _over_seeds([[_ap50(found, row) for row in counts[n]] for n, found in enumerate(each)])
            for arm, each in matches.items()
        }

    def per_seed(self, arm: str) -> list[float]:
        """Return an arm's AP50 of each seed, 0..1."""
        return [float(value) for value in self._observed[arm]]

    def difference(self, arm: str, baseline: str) -> Interval | None:
        """Return how much the mean of an arm is ahead of another one's; `None` where nothing is known of it."""
        each = self._observed[arm] - self._observed[baseline]
        return self._interval(_mean(each), each, self._drawn[arm] - self._drawn[baseline])

    def closed(self, arm: str, start: str, end: str) -> Interval | None:
        """Return the share of the gap from `start` to `end` that an arm closes, as the ratio of mean gains.

        `None` where `end` is not ahead of `start`: a share of a loss would be read as one of a gain. The interval is
        that of the ratio's linear part, which no draw without a gap can throw off.
        """
        gain, gap = (self._observed[name] - self._observed[start] for name in (arm, end))
        whole = _mean(gap)
        if not whole > 0:
            return None
        value = _mean(gain) / whole
        drawn = (self._drawn[name] - self._drawn[start] for name in (arm, end))
        return self._interval(value, *((of_arm - value * of_end) / whole for of_arm, of_end in ((gain, gap), drawn)))

    def _interval(self, value: float, each: Values, drawn: Values) -> Interval | None:
        known = each[~np.isnan(each)]
        # Of one group no spread is known, but seeds with frames of their own hold it in theirs.
        if not len(known) or (self.min_count < 2 and (self.shared or len(known) < 2)):
            return None
        of_recordings = self._widened * np.nanstd(drawn) if self.min_count > 1 else 0.0
        of_seeds = t.ppf(_TAIL, len(known) - 1) * np.std(known, ddof=1) / len(known) ** 0.5 if len(known) > 1 else 0.0
        half = float(np.hypot(of_seeds, of_recordings) if self.shared else max(of_seeds, of_recordings))
        return Interval(value, value - half, value + half, len(known))


def _over_seeds(drawn: Sequence[Sequence[float]]) -> Values:
    """Return the mean of each draw, NaN where no seed had an object to find."""
    values = np.array(drawn)
    known = ~np.isnan(values)
    found: Values = np.where(known, values, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)
    return found


def _mean(values: Values) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else math.nan


def _recordings(groups: Groups, stream: int, seed: int) -> NDArray[np.int64]:
    """Return (draws, images): how often each image counts."""
    random = np.random.default_rng([seed, stream])
    drawn = random.multinomial(groups.count, np.full(groups.count, 1 / groups.count), size=DRAWS)
    return np.asarray(drawn[:, groups.rows], np.int64)


def _ap50(matches: Matches, times: NDArray[np.int64] | None) -> float:
    value = macro(average_precisions(matches, times))
    return float("nan") if value is None else value
