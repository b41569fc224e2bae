"""Video files as frames, identified by their time stamps."""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from cahqp.coco.video import Video, VideoFrame
from cahqp.data.sources import FrameSource
from cahqp.errors import DataError
from cahqp.frame import Frame

# Videos of a parent process. Closing one waits for threads that a fork leaves behind, and so for ever.
_inherited: list[Any] = []


class VideoFrames(FrameSource):
    """Frames of a video.

    Opening decodes all frames, without converting them. So all times are known before any work, problems of the file
    are reported once, and the frames do not depend on the order of reading.

    Args:
        path: Video file.
        frame_interval: Seconds between frames: the first frame at or after each multiple. `None` takes all.

    Attributes:
        frames: One per frame taken; `timestamp` is that of `cahqp.coco.video`, `name` contains it to the millisecond.

    Raises:
        DataError: The file cannot be opened, or contains no frames; or `frame_interval` is not positive.
    """

    def __init__(self, path: Path, frame_interval: float | None = None) -> None:
        if frame_interval is not None and not frame_interval > 0:
            message = f"`frame_interval` must be above 0 seconds, got {frame_interval}."
            raise DataError(message)
        self._file = path
        with Video(path) as video:
            scanned = [(frame.seconds, frame.decoded.pts, frame.decoded.key_frame) for frame in video]
        self._stamps = [pts for _, pts, _ in scanned]
        self._keys = [0, *(index for index, (_, _, key) in enumerate(scanned) if key)]  # an edit list may begin later
        self._taken = _thin([seconds for seconds, _, _ in scanned], frame_interval)
        self.location = path.resolve()
        self.frames = [self._frame(number, scanned[index][0]) for number, index in enumerate(self._taken)]
        self._video: Video | None = None
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._current: Any = None
        self._owner = self._next = 0

    def read(self, position: int) -> NDArray[np.uint8]:
        """Return the frame at a position as (H, W, 3) uint8 RGB. Reading forward is fast, going back has to seek.

        Raises:
            DataError: The frame is missing or cannot be decoded.
        """
        index, seconds = self._taken[position], self.frames[position].timestamp or 0.0
        if not (self._go_to(index, seek=True) or self._go_to(index, seek=False)):
            message = f"{self._file} no longer has a frame at {seconds:.3f} s. Restore the file as it was opened."
            raise DataError(message)
        return VideoFrame(str(self._file), index, seconds, self._current).pixels("rgb24")

    def read_at(self, seconds: float) -> NDArray[np.uint8]:
        """Return the frame nearest to a time as (H, W, 3) uint8 RGB.

        Args:
            seconds: Time since the first frame.
        """
        times = [frame.timestamp or 0.0 for frame in self.frames]
        return self.read(int(np.argmin(np.abs(np.asarray(times) - seconds))))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open file when a worker process gets a copy."""
        return {**self.__dict__, "_video": None, "_frames": None, "_current": None, "_owner": 0}

    def _frame(self, index: int, time: float) -> Frame:
        seconds = round(time, 6)
        name = f"{self._file.name}@{seconds:.3f}s"
        return Frame(index + 1, name, (0, 0), recording=self._file.stem, index=index, timestamp=seconds)

    def _go_to(self, index: int, seek: bool) -> bool:
        """Decode the frame at an index of the file; return whether the file has it.

        Args:
            index: Position in the file.
            seek: Continue at the current frame or begin at the key frame before, instead of at the start. Some
                containers jump too far, which their time stamps show.
        """
        if self._owner != os.getpid():  # a forked worker shares the file position of its parent, so it opens its own
            _inherited.append((self._video, self._frames, self._current))
            self._video = self._current = None
            self._owner = os.getpid()
        if self._current is not None and index == self._next - 1 and seek:
            return True
        key = self._keys[bisect_right(self._keys, index) - 1]
        if not seek or self._video is None or not max(key, 1) <= self._next <= index:
            self._begin(key if seek else 0)
        for frame in self._frames:
            if frame.pts != self._stamps[self._next]:
                if frame.pts is None or frame.pts < (self._stamps[self._next] or 0):
                    continue  # before the key frame
                break
            self._current, self._next = frame, self._next + 1
            if self._next > index:
                return True
        self._video = self._current = None
        return False

    def _begin(self, key: int) -> None:
        """Continue at a key frame. Where time stamps are missing or repeated, only the start of the file is certain."""
        if self._video is not None:
            self._video.close()
        self._video, self._current = Video(self._file), None
        start = self._stamps[key]
        unique = key > 0 and start is not None and self._stamps.count(start) == 1
        self._next = key if unique else 0
        self._frames = self._video.decode(start if unique else None)


def _thin(times: Sequence[float], frame_interval: float | None) -> list[int]:
    """Return the positions of the first time at or after each multiple of the interval, in seconds."""
    if frame_interval is None:
        return list(range(len(times)))
    kept, last = [], -math.inf
    for position, time in enumerate(times):
        # A thousandth of the interval absorbs the rounding of time stamps such as 399.99999 for 0.4 s.
        multiple = math.floor(time / frame_interval + 1e-3)
        if multiple > last:
            kept.append(position)
            last = multiple
    return kept
