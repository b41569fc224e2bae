"""Times of consecutive frames: one policy for files and streams, in training and on the edge, without torch."""

from __future__ import annotations

MILLISECOND = 0.001  # names of frames contain their time to the millisecond
_JUMP = 10.0  # seconds; a longer step, and one of a hundred times the step before, is reported
_UNKNOWN_STEP = 0.04  # seconds between frames without time stamps and without a frame rate


class SteadyClock:
    """Times of consecutive frames that increase by a millisecond or more. No frame is dropped.

    Joined streams restart their clock: later times then continue after the frame before. A single time that does not
    fit between those of its neighbours is replaced by their mean. A missing time continues at the step before.

    Args:
        step: Seconds between frames by the header; 0 if unknown.

    Attributes:
        restarts: Number of frames at which the given time goes back.
        wrong: Number of frames whose time was replaced, because it does not fit between its neighbours.
        missing: Number of frames without a time.
        jumps: Number of steps above 10 s and above a hundred times the step before. Their times are kept.
        longest: The longest of these steps in seconds.
    """

    def __init__(self, step: float = 0.0) -> None:
        self.restarts = self.wrong = self.missing = self.jumps = 0
        self.longest = 0.0
        self._offset = 0.0
        self._header_step = step
        self._step = 0.0
        self._last: float | None = None
        self._given = 0.0  # time of the last frame before it was moved behind the frame before it

    def correct(self, seconds: float | None, following: float | None = None) -> float:
        """Return the time of the next frame in seconds, above that of the last one.

        Args:
            seconds: Time of the frame; `None` if it has none.
            following: Time of the frame after it; `None` if there is none, or if it is unknown yet.
        """
        if self._last is None:
            self._last = self._given = 0.0 if seconds is None else seconds
            self.missing += seconds is None
            return self._last
        after = None if following is None else following + self._offset
        self._given, time = self._next(self._last, seconds, after)
        step = time - self._last
        if step > max(_JUMP, 100 * (self._step or step)):
            self.jumps, self.longest = self.jumps + 1, max(self.longest, step)
        self._step = min(self._step or step, step)
        self._last = time
        return time

    def _next(self, last: float, seconds: float | None, after: float | None) -> tuple[float, float]:
        """Return the time of a frame that has `seconds`, and `after` behind it: as given, and above `last`."""
        if seconds is None:
            self.missing += 1
            return (last + self._usual_step(),) * 2
        time = seconds + self._offset
        fits = after is not None and last + MILLISECOND < after < last + max(_JUMP, 100 * self._usual_step())
        if after is not None and fits and not last < time <= after:
            self.wrong += 1
            return (max((last + after) / 2, last + MILLISECOND),) * 2
        if time < self._given - MILLISECOND:
            self.restarts += 1
            self._offset += last + self._usual_step() - time
            return (last + self._usual_step(),) * 2
        if time < last + MILLISECOND * 0.999:
            self.wrong += 1
            return time, last + MILLISECOND
        return time, time

    def _usual_step(self) -> float:
        return self._step or self._header_step or _UNKNOWN_STEP

    def problems(self) -> list[str]:
        """Return one sentence part for each kind of correction."""
        step = 1000 * self._usual_step()
        texts = {
            f"the clock goes back at {self.restarts} frames; times continue after the frame before": self.restarts,
            f"{self.wrong} frames have a time that does not fit between their neighbours; it was replaced": self.wrong,
            f"{self.missing} frames have no time stamp; they are {step:.0f} ms apart": self.missing,
            f"the clock jumps ahead {self.jumps} times, by up to {self.longest:.0f} s; the times are kept": self.jumps,
        }
        return [text for text, count in texts.items() if count]
