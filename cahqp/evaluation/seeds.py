"""How far figures over seeds and recordings can be trusted: Student's t over seeds, a bootstrap over recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from cahqp.evaluation.bootstrap import Groups
from cahqp.evaluation.matching import Matches, average_precisions
from cahqp.evaluation.metrics import macro

LEVEL = 0.95
DRAWS = 400
FEWEST_SEEDS = 3
"""Seeds below which an interval is no evidence: of one nothing is known of their spread, of two next to nothing."""

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
        counts = [_recordings(found, 0 if shared else number, seed) for number, found in enumerate(groups)]
        self._observed = {arm: np.array([_ap50(m, None) for m in each]) for arm, each in matches.items()}
        self._drawn = {
            arm: np.nanmean([[_ap50(found, row) for row in counts[n]] for n, found in enumerate(each)], axis=0)
            for arm, each in matches.items()
        }

    def per_seed(self, arm: str) -> list[float]:
        """Return an arm's AP50 of each seed, 0..1."""
        return [float(value) for value in self._observed[arm]]

    def difference(self, arm: str, baseline: str) -> Interval:
        """Return how much the mean of an arm is ahead of another one's."""
        each = self._observed[arm] - self._observed[baseline]
        return self._interval(float(np.nanmean(each)), each, self._drawn[arm] - self._drawn[baseline])

    def closed(self, arm: str, start: str, end: str) -> Interval:
        """Return the share of the gap from `start` to `end` that an arm closes, as the ratio of mean gains."""
        gain, gap = (self._observed[name] - self._observed[start] for name in (arm, end))
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.nanmean(gain) / np.nanmean(gap)
            drawn = (self._drawn[arm] - self._drawn[start]) / (self._drawn[end] - self._drawn[start])
            return self._interval(float(value), (gain - value * gap) / np.nanmean(gap), drawn)  # of a ratio, linearised

    def _interval(self, value: float, each: Values, drawn: Values) -> Interval:
        known, tail = each[~np.isnan(each)], (1 + LEVEL) / 2
        of_recordings = norm.ppf(tail) * np.nanstd(drawn)
        of_seeds = t.ppf(tail, len(known) - 1) * np.std(known, ddof=1) / len(known) ** 0.5 if len(known) > 1 else 0.0
        half = float(np.hypot(of_seeds, of_recordings) if self.shared else max(of_seeds, of_recordings))
        return Interval(value, value - half, value + half, len(known))


def _recordings(groups: Groups, stream: int, seed: int) -> NDArray[np.int64]:
    """Return (draws, images): how often each image counts."""
    random = np.random.default_rng([seed, stream])
    drawn = random.multinomial(groups.count, np.full(groups.count, 1 / groups.count), size=DRAWS)
    return np.asarray(drawn[:, groups.rows], np.int64)


def _ap50(matches: Matches, times: NDArray[np.int64] | None) -> float:
    value = macro(average_precisions(matches, times))
    return float("nan") if value is None else value
