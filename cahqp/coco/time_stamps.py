"""Time stamps that a video must have: one policy for training and for edge packages, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cahqp.errors import DataError

TOLERANCE = 0.5  # milliseconds within which two time stamps are equal


class SteadyClock:
    """Times of consecutive frames that never go back: joined streams restart their clock, and single stamps are wrong.

    Attributes:
        restarts: Number of frames at which the given time went back. Later times continue after the frame before.
    """

    def __init__(self) -> None:
        self.restarts = 0
        self._offset = 0.0
        self._step = 0.0
        self._last: float | None = None

    def correct(self, seconds: float) -> float:
        """Return the time of the next frame in seconds, not before that of the last one."""
        time = seconds + self._offset
        if self._last is not None:
            if time < self._last - TOLERANCE / 1000:
                self.restarts += 1
                self._offset += self._last + self._step - time
                time = self._last + self._step
            elif time > self._last:
                self._step = min(self._step or time - self._last, time - self._last)
        self._last = time
        return time


def check_times(path: Path, times: Sequence[float], rate: float, count: float) -> list[float]:
    """Return the strictly increasing time stamps of a video.

    Args:
        path: Video file, for messages.
        times: Time stamp of each frame that was read, in milliseconds.
        rate: Frames per second in the header; 0 if unknown.
        count: Number of frames in the header.

    Raises:
        DataError: The video contains no frame, ends early, or has no usable time stamps.
    """
    kept = list(times[:1])
    for time in times:
        if time > kept[-1] + TOLERANCE:
            kept.append(time)
    if not kept:
        message = f"{path} contains no frame that can be decoded. Copy or encode the file again."
        raise DataError(message)
    if len(kept) < 0.99 * len(times):
        message = (
            f"{path} has no usable time stamps: {len(times) - len(kept)} of {len(times)} frames are not later than the "
            f"frame before. Copy it into another container, such as `ffmpeg -i {path.name} -c copy new.mp4`."
        )
        raise DataError(message)
    length = count / rate if rate > 0 else 0.0
    # Counts and rates in the header of a file can be estimates; the file is cut only where both fall short.
    if len(times) < 0.95 * count and kept[-1] / 1000 < 0.95 * length - 1:
        message = f"{path} ends at {kept[-1] / 1000:.1f} s of {length:.1f} s. Copy the file again, or cut it there."
        raise DataError(message)
    return kept
