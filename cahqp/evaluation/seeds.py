"""How far figures over seeds and recordings can be trusted: a bootstrap that draws both, the same for all arms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cahqp.evaluation.bootstrap import Groups
from cahqp.evaluation.matching import Matches, average_precisions
from cahqp.evaluation.metrics import macro

LEVEL = 0.95
RECORDING_DRAWS, SEED_DRAWS = 200, 4000

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A figure with the range that holds 95 % of its draws."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


class Draws:
    """AP50 of arms over seeds, drawn again and again: seeds first, then the recordings of each drawn seed.

    Arms share every draw, so that their differences are paired. Where each seed has recordings of its own these are
    drawn for each seed apart; where all seeds are measured on the same frames, one draw of them holds for all seeds.

    Args:
        matches: Of each arm, one per seed, on the same truth for all arms of a seed.
        groups: What is drawn together, one per seed.
        shared: All seeds are measured on the same frames.
        seed: Of the draws.
    """

    def __init__(
        self, matches: Mapping[str, Sequence[Matches]], groups: Sequence[Groups], shared: bool, seed: int = 0
    ) -> None:
        self.arms = list(matches)
        counts = [_recordings(found, 0 if shared else number, seed) for number, found in enumerate(groups)]
        self._observed = {arm: np.array([_ap50(m, None) for m in each]) for arm, each in matches.items()}
        tables = {
            arm: np.array([[_ap50(found, row) for row in counts[number]] for number, found in enumerate(each)])
            for arm, each in matches.items()
        }
        random = np.random.default_rng([seed, len(groups)])
        seeds = random.integers(len(groups), size=(SEED_DRAWS, len(groups)))
        columns = random.integers(RECORDING_DRAWS, size=(SEED_DRAWS, 1 if shared else len(groups)))
        self._drawn = {arm: np.nanmean(table[seeds, columns], axis=1) for arm, table in tables.items()}

    def per_seed(self, arm: str) -> list[float]:
        """Return an arm's AP50 of each seed, 0..1."""
        return [float(value) for value in self._observed[arm]]

    def difference(self, arm: str, baseline: str) -> Interval:
        """Return how much the mean of an arm is ahead of another one's."""
        return self._interval(lambda mean: mean[arm] - mean[baseline])

    def closed(self, arm: str, start: str, end: str) -> Interval:
        """Return the share of the gap from `start` to `end` that an arm closes, as the ratio of mean gains."""
        return self._interval(lambda mean: (mean[arm] - mean[start]) / (mean[end] - mean[start]))

    def _interval(self, figure: Callable[[Mapping[str, Values]], Values]) -> Interval:
        observed = figure({arm: np.array([np.nanmean(values)]) for arm, values in self._observed.items()})
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = figure(self._drawn)
        low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Interval(float(observed[0]), float(low), float(high))


def _recordings(groups: Groups, stream: int, seed: int) -> NDArray[np.int64]:
    """Return (draws, images): how often each image counts."""
    random = np.random.default_rng([seed, stream])
    drawn = random.multinomial(groups.count, np.full(groups.count, 1 / groups.count), size=RECORDING_DRAWS)
    return np.asarray(drawn[:, groups.rows], np.int64)


def _ap50(matches: Matches, times: NDArray[np.int64] | None) -> float:
    value = macro(average_precisions(matches, times))
    return float("nan") if value is None else value
