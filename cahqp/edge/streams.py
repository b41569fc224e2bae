"""Frames of live streams and webcams, opened again whenever they break off."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cahqp.coco.time_stamps import MILLISECOND, SteadyClock
from cahqp.coco.video import StreamError, Video, VideoFrame
from cahqp.errors import DataError
from cahqp.files import redact_url

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 10.0  # seconds before a stream is reopened; doubled after each failure
_WHOLE = 0.95  # share of the frames in a header that a whole file has: the count can be an estimate
_MAX_DRIFT = 5.0  # seconds between the stream's own clock and the arrival of a frame
_WITHOUT_CLOCK = ("mpjpeg", "mjpeg", "h264", "hevc")  # formats whose times FFmpeg invents from a frame rate
_DEVICE = re.compile(r"/dev/video\d+|\d+")


class StreamFrame(NamedTuple):
    """Frame of a stream.

    Attributes:
        time: Seconds since 1970: the stream's own clock from the arrival of its first frame, or the arrival where the
            stream has no clock, or one that is more than 5 s off. Times increase by a millisecond or more.
        connection: Number of the connection, from 1.
        pixels: Function that returns the frame as (H, W, 3) uint8 BGR.
    """

    time: float
    connection: int
    pixels: Callable[[], NDArray[np.uint8]]


def is_webcam(source: str) -> bool:
    """Return whether a source is a webcam: a number, or /dev/video0."""
    return _DEVICE.fullmatch(source) is not None and not Path(source).is_dir()


def is_stream(source: str) -> bool:
    """Return whether a source is a URL, such as rtsp://camera/1, or a webcam, and not a path."""
    return "://" in source or is_webcam(source)


def read_stream(source: str, patience: float = 60.0, report: Callable[[str], None] = print) -> Generator[StreamFrame]:
    """Yield the frames of a stream; open it again whenever it breaks off. A file on a server ends after its last frame.

    Args:
        source: URL or webcam.
        patience: Seconds without a frame after which the stream is given up.
        report: Receives one line whenever the stream breaks off, without user and password.

    Raises:
        DataError: The stream sends nothing, or a file on a server breaks off.
    """
    shown = redact_url(source)
    number, wait, last, times = 0, _FIRST_WAIT, time.monotonic(), _Times()
    connection = 0
    while True:
        connection += 1
        opened = _Webcam(source) if is_webcam(source) else _Url(source)
        for pixels, seconds in opened.frames():
            number, wait, last = number + 1, _FIRST_WAIT, time.monotonic()
            yield StreamFrame(times.next(connection, seconds, opened.live), connection, pixels)
        if not opened.live:
            _check_whole(shown, number, opened.expected)
            return
        silence = time.monotonic() - last
        if silence >= patience:
            message = (
                f"{shown} sent no frame for {silence:.0f} s{opened.reason}. Check the camera, or raise --patience."
            )
            raise DataError(message)
        report(f"{shown} broke off after {number} frames{opened.reason}. Next attempt in {wait:g} s.")
        time.sleep(wait)
        wait = min(2 * wait, _LONGEST_WAIT)


class _Times:
    """Times of frames in seconds since 1970, over all connections."""

    def __init__(self) -> None:
        self._connection = 0
        self._clock = SteadyClock()
        self._anchor = self._last = 0.0

    def next(self, connection: int, seconds: float | None, live: bool) -> float:
        now = time.time()
        steady = 0.0 if seconds is None else self._clock.correct(seconds)
        if connection != self._connection:
            self._connection, self._clock = connection, SteadyClock()
            steady = 0.0 if seconds is None else self._clock.correct(seconds)
            self._anchor = max(now, self._last + MILLISECOND) - steady
        if seconds is None or (live and abs(self._anchor + steady - now) > _MAX_DRIFT):
            self._anchor = now - steady
        self._last = max(self._anchor + steady, self._last + MILLISECOND)
        return self._last


class _Url:
    """One connection to a URL.

    Attributes:
        live: Whether it has no end of its own.
        expected: Number of frames by the header of a file on a server.
        reason: Reason of its end for messages, such as ` (Connection refused)`.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.live, self.expected, self.reason = True, 0.0, ""

    def frames(self) -> Iterator[tuple[Callable[[], NDArray[np.uint8]], float | None]]:
        """Yield each frame with its time in seconds, `None` if the stream has no clock."""
        try:
            video = Video(self._url, redact_url(self._url))
        except StreamError as error:
            self.reason = str(error)
            return
        with video:
            self.expected = video.header_frames or video.duration * video.rate
            self.live = not self.expected > 0
            timed = video.format not in _WITHOUT_CLOCK
            for index, frame in enumerate(video.decode()):
                seconds = float(frame.pts * video.time_base) if timed and frame.pts is not None else None
                yield VideoFrame(video.shown, index, seconds or 0.0, frame).pixels, seconds
            self.reason = f"{video.stopped}{f'; {video.damaged} packets were damaged' if video.damaged else ''}"


class _Webcam:
    """One connection to a webcam; attributes as those of `_Url`."""

    live, expected = True, 0.0

    def __init__(self, device: str) -> None:
        self._device: int | str = int(device) if device.isdigit() else device
        self.reason = ""

    def frames(self) -> Iterator[tuple[Callable[[], NDArray[np.uint8]], float | None]]:
        """Yield each frame; a webcam has no clock."""
        capture: Any = cv2.VideoCapture(self._device)
        try:
            if not capture.isOpened():
                self.reason = " (it cannot be opened)"
            while (result := capture.read())[0]:
                yield partial(np.asarray, result[1], np.uint8), None
        finally:
            capture.release()


def _check_whole(shown: str, frames: int, expected: float) -> None:
    """Check that a file on a server was read to its end; opening it again would begin at its first frame.

    Raises:
        DataError: The connection broke off.
    """
    if frames < _WHOLE * expected:
        message = f"{shown} broke off after {frames} of {expected:.0f} frames. Copy the file, and read the copy."
        raise DataError(message)
