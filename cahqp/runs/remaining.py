"""Estimated time until the last stage ends."""

from __future__ import annotations

from collections.abc import Mapping


class Remaining:
    """Estimate from the expected cost of each stage, scaled by the time that finished stages took.

    Args:
        costs: Expected seconds by stage. Their ratios count; the unit is corrected by the stages that end.
    """

    def __init__(self, costs: Mapping[str, float]) -> None:
        self._left = dict(costs)
        self._cost = self._seconds = 0.0

    def end(self, stage: str, seconds: float = 0.0) -> None:
        """Take a finished stage out. A stage that did not run, with 0 seconds, does not count for the speed."""
        cost = self._left.pop(stage, 0.0)
        if seconds > 0:
            self._cost += cost
            self._seconds += seconds

    def seconds(self, running: str = "", elapsed: float = 0.0) -> float | None:
        """Return the estimated seconds, `None` without costs.

        Args:
            running: Stage that runs now.
            elapsed: Seconds since its start.
        """
        if not self._left:
            return None
        factor = self._seconds / self._cost if self._cost > 0 else 1.0
        own = self._left.get(running, 0.0) * factor
        others = sum(cost for name, cost in self._left.items() if name != running) * factor
        return others + max(0.0, own - elapsed)
