"""Video files as frames, each known by its time stamp."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cahqp.data.sources import FrameSource
from cahqp.errors import DataError
from cahqp.frame import Frame

_NEAR = 2000.0  # milliseconds that are decoded forward rather than sought: about one group of pictures
_SAME = 0.5  # milliseconds within which two time stamps are the same
# Captures of a parent process. To close one waits for threads that a fork leaves behind, and so for ever.
_inherited: list[Any] = []


class VideoFrames(FrameSource):
    """The frames of a video.

    The whole file is gone through once on opening, without converting pictures, so that a damaged one is found before
    any work is done on it and the frames are the same however they are read afterwards.

    Args:
        path: The file.
        frame_interval: Seconds between frames; all of them where `None`. Taken is the first frame at or after each
            multiple.

    Raises:
        DataError: It cannot be opened, breaks off, or has no time stamps.
    """

    def __init__(self, path: Path, frame_interval: float | None = None) -> None:
        self._file = path
        if frame_interval is not None and not frame_interval > 0:
            message = f"`frame_interval` is a number of seconds above 0, got {frame_interval}."
            raise DataError(message)
        self._times = _thinned(_scan(path), frame_interval)
        self._frames = [self._frame(index, milliseconds) for index, milliseconds in enumerate(self._times)]
        self._capture: Any = None
        self._owner = 0
        self._now = math.inf

    @property
    def frames(self) -> Sequence[Frame]:
        """Where each frame comes from; `timestamp` is the container's, `name` holds it to the millisecond."""
        return self._frames

    @property
    def place(self) -> Path:
        """The video file."""
        return self._file.resolve()

    def read(self, position: int) -> NDArray[np.uint8]:
        """Return the frame at a position as (H, W, 3) uint8 RGB. Reading forward is fast, going back has to seek."""
        wanted = self._times[position]
        if not (self._go_to(wanted, seek=True) or self._go_to(wanted, seek=False)):
            message = f"{self._file} has no frame at {wanted / 1000:.3f} s any more. Has the file changed?"
            raise DataError(message)
        good, image = self._capture.retrieve()
        if not good:
            message = (
                f"{self._file}: the frame at {wanted / 1000:.3f} s cannot be decoded. Copy or encode the file again."
            )
            raise DataError(message)
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open file behind when a worker process gets a copy."""
        return {**self.__dict__, "_capture": None, "_owner": 0}

    def _frame(self, index: int, milliseconds: float) -> Frame:
        seconds = round(milliseconds / 1000, 6)
        name = f"{self._file.name}@{seconds:.3f}s"
        recording = self._file.stem
        return Frame(index + 1, name, (0, 0), recording=recording, index=index, timestamp=seconds)

    def _go_to(self, wanted: float, seek: bool) -> bool:
        """Grab the frame with a time stamp; say whether it was found.

        Args:
            wanted: Time stamp in milliseconds.
            seek: Jump near it where it is not just ahead, rather than go through the file from its start. Some
                containers jump too far, which their time stamps tell.
        """
        if not seek or self._capture is None or self._owner != os.getpid():
            # A forked worker shares the file position of its parent's capture, so it opens its own.
            if self._owner != os.getpid():
                _inherited.append(self._capture)
            self._capture, self._owner, self._now = _open(self._file), os.getpid(), -math.inf
        if abs(self._now - wanted) < _SAME:
            return True
        if seek and not 0 < wanted - self._now < _NEAR and wanted > _NEAR:
            self._capture.set(cv2.CAP_PROP_POS_MSEC, wanted)
        elif self._now > wanted:
            self._capture, self._now = _open(self._file), -math.inf
        while self._capture.grab():
            self._now = self._capture.get(cv2.CAP_PROP_POS_MSEC)
            if self._now > wanted - _SAME:
                return abs(self._now - wanted) < _SAME
        self._capture = None
        return False


def _open(path: Path) -> Any:
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        message = f"{path} cannot be opened as a video. Copy it again, or encode it anew."
        raise DataError(message)
    return capture


def _scan(path: Path) -> list[float]:
    """Return the time stamps of a video in milliseconds, strictly increasing."""
    capture = _open(path)
    times = list(_time_stamps(capture))
    rate, stated = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    kept = [times[0]] if times else []
    for time in times:
        if time > kept[-1] + _SAME:
            kept.append(time)
    if not kept:
        message = f"{path} holds no frame that can be decoded. Copy it again, or encode it anew."
        raise DataError(message)
    if len(kept) < 0.99 * len(times):
        message = (
            f"{path} has no usable time stamps: {len(times) - len(kept)} of {len(times)} frames come no later than the "
            f"one before. Write it into a container that has them, such as `ffmpeg -i {path.name} -c copy new.mp4`."
        )
        raise DataError(message)
    length = stated / rate if rate > 0 else 0.0
    # Counts and rates in the head of a file can be estimates; only where both fall short is the file cut.
    if len(times) < 0.95 * stated and kept[-1] / 1000 < 0.95 * length - 1:
        message = f"{path} breaks off at {kept[-1] / 1000:.1f} s of {length:.1f} s. Copy it again, or cut it there."
        raise DataError(message)
    return kept


def _time_stamps(capture: Any) -> Iterator[float]:
    while capture.grab():
        yield float(capture.get(cv2.CAP_PROP_POS_MSEC))


def _thinned(times: Sequence[float], frame_interval: float | None) -> list[float]:
    if frame_interval is None:
        return list(times)
    kept, due = [], -math.inf
    for time in times:
        # A thousandth of the step absorbs the rounding of time stamps such as 399.99999 for 0.4 s.
        steps = math.floor(time / 1000 / frame_interval + 1e-3)
        if steps > due:
            kept.append(time)
            due = steps
    return kept
