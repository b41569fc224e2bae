"""Video reader: one for training, labelling, reports, `fetch`, `detect` and the gate, without torch.

PyAV in place of OpenCV: OpenCV cannot decode AV1 without a GPU, and does not report which frames it leaves out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from cahqp.coco.time_stamps import SteadyClock
from cahqp.errors import DataError

_TIMEOUT = (10.0, 10.0)  # seconds for opening a stream and for one packet
_STREAM = {"rtsp_transport": "tcp"}  # over UDP, lost packets damage frames
_MAX_PIXELS = "100000000"  # as for images
_NO_VIDEO = " (no video stream of a known codec)"
_log = logging.getLogger(__name__)


class StreamError(DataError):
    """A stream that cannot be opened. The message is the reason in parentheses, without the address."""


@dataclass(frozen=True)
class VideoFrame:
    """Decoded frame.

    Attributes:
        video: Name of the video in messages.
        index: Position in the order of presentation, from 0.
        seconds: Time since the first frame, increasing; see `SteadyClock`.
        decoded: PyAV's frame.
    """

    video: str
    index: int
    seconds: float
    decoded: av.VideoFrame

    def pixels(self, order: str = "bgr24") -> NDArray[np.uint8]:
        """Return the frame as players show it, (H, W, 3) uint8.

        The rotation of the container is applied. A frame has its own size where the size changes within the video.

        Args:
            order: Order of the channels: `bgr24` or `rgb24`.

        Raises:
            DataError: The frame cannot be converted.
        """
        try:
            pixels = self.decoded.to_ndarray(format=order)
        except (av.FFmpegError, MemoryError, ValueError) as error:
            place = f"{self.video}: the frame at {self.seconds:.3f} s"
            message = f"{place} cannot be decoded ({error}). Copy or encode the file again."
            raise DataError(message) from error
        turns = round(self.decoded.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(pixels, turns), np.uint8) if turns else np.asarray(pixels, np.uint8)


class Video:
    """Frames of a video file in the order of presentation.

    Frames and times are those that `ffprobe -show_frames` prints, counted from the first frame. Iterating to the end
    logs what differs from the header, what cannot be decoded, and which times were corrected; see `problems`.

    Args:
        source: Video file, or the URL of a stream as text.
        shown: Name in messages; by default the source. Remove the password from that of a URL.

    Attributes:
        rate: Frames per second by the header; 0 if unknown.
        time_base: Seconds in a unit of time stamps.
        format: FFmpeg's name of the format.
        damaged: Number of packets until now that cannot be decoded.
        stopped: Reason for which reading ended before the end, such as ` (Connection timed out)`; empty if none.
        duration: Seconds by the header; 0 if unknown.
        header_frames: Number of frames by the header; 0 if unknown.

    Raises:
        DataError: The file or stream cannot be opened, or contains no video stream of a known codec.
    """

    def __init__(self, source: Path | str, shown: str | None = None) -> None:
        self.shown = shown or str(source)
        self._container = self._open(source)
        stream = self._container.streams.best("video")
        if not isinstance(stream, av.VideoStream) or stream.codec_context is None:
            self.close()
            if isinstance(source, str):
                raise StreamError(_NO_VIDEO)
            message = f"{self.shown} cannot be opened as a video{_NO_VIDEO}. Copy or encode the file again."
            raise DataError(message)
        stream.thread_type = "SLICE"  # with threads for frames, PyAV loses the frames after a damaged packet
        stream.codec_context.options = {"max_pixels": _MAX_PIXELS}
        self._stream = stream
        self.header_frames = stream.frames
        self.duration = _duration(self._container, stream)
        self.rate = float(stream.average_rate or 0)
        self.damaged = self._corrupt = self._resized = 0
        self.stopped = ""
        self.time_base = stream.time_base or Fraction(1, 1000)
        self.format = self._container.format.name
        self._others = len(self._container.streams.video) - 1

    def _open(self, source: Path | str) -> av.container.InputContainer:
        try:
            if isinstance(source, str):
                return av.open(source, metadata_errors="replace", options=_STREAM, timeout=_TIMEOUT)
            # The protocol is named: `a:b.mp4` is a file, and a playlist under the name of a video opens no connection.
            return av.open(f"file:{source}", metadata_errors="replace", options={"protocol_whitelist": "file"})
        except (av.FFmpegError, UnicodeEncodeError, MemoryError, OSError, ValueError) as error:
            if isinstance(source, str):
                raise StreamError(_reason(error)) from None  # the error contains the password
            message = f"{self.shown} cannot be opened as a video{_reason(error)}. Copy or encode the file again."
            raise DataError(message) from error

    def close(self) -> None:
        """Close the file. Frames that were read stay valid."""
        self._container.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[VideoFrame]:
        """Yield all frames, and log the problems after the last one.

        Raises:
            DataError: No frame can be decoded.
        """
        clock = SteadyClock(1 / self.rate if self.rate else 0.0)
        frames, seconds, size = self.decode(), 0.0, None
        frame, first, index = next(frames, None), None, 0
        while frame is not None:
            following = next(frames, None)
            first = frame.pts if first is None else first
            seconds = clock.correct(*(self._seconds(each, first) for each in (frame, following)))
            self._resized += size not in (None, (frame.width, frame.height))
            size = (frame.width, frame.height)
            yield VideoFrame(self.shown, index, seconds, frame)
            frame, index = following, index + 1
        if not index:
            message = f"{self.shown} contains no frame that can be decoded{self.stopped}. Copy or encode it again."
            raise DataError(message)
        problems = self._problems(index, seconds) + clock.problems()
        _warn_once(f"{self.shown}: {'; '.join(problems)}." if problems else "")

    def decode(self, start: int | None = None) -> Iterator[av.VideoFrame]:
        """Yield frames as they are decoded, without correcting times.

        Args:
            start: Time stamp of a key frame to begin at, in units of the stream; `None` begins at the current position.
        """
        try:
            if start is not None:
                self._container.seek(start, stream=self._stream)
            for packet in self._container.demux(self._stream):
                yield from self._frames(packet)
        except (av.FFmpegError, MemoryError) as error:
            self.stopped = _reason(error)
            yield from self._frames(None)

    def _frames(self, packet: av.Packet[Any] | None) -> Iterator[av.VideoFrame]:
        """Yield the frames of a packet; without one, the frames that the decoder still holds."""
        try:
            frames: Any = self._stream.codec_context.decode(packet)
        except av.error.EOFError:
            return
        except (av.FFmpegError, MemoryError):
            self.damaged += 1
            return
        self._corrupt += sum(frame.is_corrupt for frame in frames)
        yield from frames

    def _seconds(self, frame: av.VideoFrame | None, first: int | None) -> float | None:
        """Return the time since the first frame; `None` without a time stamp."""
        return None if frame is None or frame.pts is None else float((frame.pts - (first or 0)) * self.time_base)

    def _problems(self, frames: int, seconds: float) -> list[str]:
        """Return one sentence part for each difference between the header and the frames."""
        ends_early = seconds < 0.95 * self.duration - 1
        texts = {
            f"{frames} frames decode of {self.header_frames} in the header": self.header_frames not in (0, frames),
            f"it ends at {seconds:.1f} s of {self.duration:.1f} s": ends_early,
            f"reading ended early{self.stopped}": self.stopped,
            f"{self.damaged} packets cannot be decoded": self.damaged,
            f"{self._corrupt} frames are damaged and kept": self._corrupt,
            f"the size changes {self._resized} times; each frame keeps its own": self._resized,
            f"{self._others} more video streams are not read": self._others,
        }
        return [text for text, applies in texts.items() if applies]


def _reason(error: Exception) -> str:
    """Return the kind of an error for messages. Its full text contains the address with the password."""
    return f" ({error.strerror})" if isinstance(error, av.FFmpegError) else " (out of memory or not an address)"


def _duration(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1_000_000


@lru_cache(maxsize=256)
def _warn_once(text: str) -> None:
    if text:
        _log.warning(text)
