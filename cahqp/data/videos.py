"""Video files as frames, identified by their time stamps."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cahqp.coco.time_stamps import TOLERANCE, check_times
from cahqp.data.sources import FrameSource
from cahqp.errors import DataError
from cahqp.frame import Frame

_SEEK_ABOVE = 2000.0  # milliseconds ahead up to which frames are decoded instead: about one group of pictures
# Captures of a parent process. Closing one waits for threads that a fork leaves behind, and so for ever.
_inherited: list[Any] = []


class VideoFrames(FrameSource):
    """Frames of a video.

    Opening reads all time stamps, without converting pictures. So a damaged file is refused before any work on it, and
    the frames do not depend on the order of reading.

    Args:
        path: Video file.
        frame_interval: Seconds between frames: the first frame at or after each multiple. `None` takes all.

    Attributes:
        frames: One per frame taken; `timestamp` is the container's, `name` contains it to the millisecond.

    Raises:
        DataError: The file cannot be opened, ends early, or has no time stamps; or `frame_interval` is not positive.
    """

    def __init__(self, path: Path, frame_interval: float | None = None) -> None:
        if frame_interval is not None and not frame_interval > 0:
            message = f"`frame_interval` must be above 0 seconds, got {frame_interval}."
            raise DataError(message)
        self._file = path
        self._times = _thin(_scan(path), frame_interval)
        self.location = path.resolve()
        self.frames = [self._frame(index, milliseconds) for index, milliseconds in enumerate(self._times)]
        self._capture: Any = None
        self._owner = 0
        self._now = math.inf

    def read(self, position: int) -> NDArray[np.uint8]:
        """Return the frame at a position as (H, W, 3) uint8 RGB. Reading forward is fast, going back has to seek.

        Raises:
            DataError: The frame is missing or cannot be decoded.
        """
        time = self._times[position]
        if not (self._go_to(time, seek=True) or self._go_to(time, seek=False)):
            message = f"{self._file} no longer has a frame at {time / 1000:.3f} s. Restore the file as it was opened."
            raise DataError(message)
        try:
            decoded, image = self._capture.retrieve()
        except cv2.error:  # such as a frame that is too large to convert
            decoded, image = False, None
        if not decoded:
            message = (
                f"{self._file}: the frame at {time / 1000:.3f} s cannot be decoded. Copy or encode the file again."
            )
            raise DataError(message)
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open file when a worker process gets a copy."""
        return {**self.__dict__, "_capture": None, "_owner": 0}

    def _frame(self, index: int, milliseconds: float) -> Frame:
        seconds = round(milliseconds / 1000, 6)
        name = f"{self._file.name}@{seconds:.3f}s"
        return Frame(index + 1, name, (0, 0), recording=self._file.stem, index=index, timestamp=seconds)

    def _go_to(self, time: float, seek: bool) -> bool:
        """Grab the frame with a time stamp; return whether the file has it.

        Args:
            time: Time stamp in milliseconds.
            seek: Jump near it where it is not just ahead, instead of decoding the file from its start. Some containers
                jump too far, which their time stamps show.
        """
        if not seek or self._capture is None or self._owner != os.getpid():
            # A forked worker shares the file position of its parent's capture, so it opens its own.
            if self._owner != os.getpid():
                _inherited.append(self._capture)
            self._capture, self._owner, self._now = _open(self._file), os.getpid(), -math.inf
        if abs(self._now - time) < TOLERANCE:
            return True
        if seek and not 0 < time - self._now < _SEEK_ABOVE and time > _SEEK_ABOVE:
            self._capture.set(cv2.CAP_PROP_POS_MSEC, time)
        elif self._now > time:
            self._capture, self._now = _open(self._file), -math.inf
        for stamp in _time_stamps(self._capture):
            self._now = stamp
            if self._now > time - TOLERANCE:
                return abs(self._now - time) < TOLERANCE
        self._capture = None
        return False


def _open(path: Path) -> Any:
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        message = f"{path} cannot be opened as a video. Copy or encode the file again."
        raise DataError(message)
    return capture


def _scan(path: Path) -> list[float]:
    """Return the time stamps of a video in milliseconds, strictly increasing."""
    capture = _open(path)
    times = list(_time_stamps(capture))
    return check_times(path, times, capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT))


def _time_stamps(capture: Any) -> Iterator[float]:
    while capture.grab():
        yield float(capture.get(cv2.CAP_PROP_POS_MSEC))


def _thin(times: Sequence[float], frame_interval: float | None) -> list[float]:
    """Return the first time stamp at or after each multiple of the interval."""
    if frame_interval is None:
        return list(times)
    kept, last = [], -math.inf
    for time in times:
        # A thousandth of the interval absorbs the rounding of time stamps such as 399.99999 for 0.4 s.
        multiple = math.floor(time / 1000 / frame_interval + 1e-3)
        if multiple > last:
            kept.append(time)
            last = multiple
    return kept
