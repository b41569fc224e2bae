"""Recording of a stream or webcam: chosen frames as images, with their times, in a bounded folder."""

from __future__ import annotations

import json
import re
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from cahqp.coco.subset import Image
from cahqp.cycle.fetch.options import FetchOptions
from cahqp.cycle.fetch.videos import encode_jpeg
from cahqp.edge.streams import StreamFrame, is_webcam, read_stream
from cahqp.errors import DataError
from cahqp.files import atomic_write, redact_url
from cahqp.motion import MIN_CHANGE, reduce, thumbnail_size

INDEX = Path("checkpoints/recording.jsonl")
"""Start of a recording, then one line for each frame, so that an interrupted recording continues."""

_OVER = "its time is over"
_MIN_PIXELS = 12  # pixels of a thumbnail that a changed region has, as a moving one in `cahqp.motion`


class Recording:
    """Frames of a stream on disk.

    Args:
        options: Options of the command.
        work: Directory of the run. Frames of an interrupted recording in it are kept.

    Attributes:
        images: COCO entries of the frames on disk, in order of time.
        counts: Number of frames that were not kept, by reason.
        received: Number of received frames.
        broken: Number of lost connections.
    """

    def __init__(self, options: FetchOptions, work: Path) -> None:
        self._options, self._work = options, work
        self.camera = _portable(options.camera or _camera_name(options.frames))
        self.images: deque[Image] = deque()
        self.counts: Counter[str] = Counter()
        self.received = self.broken = 0
        self._bytes, self._due = 0, 0.0
        self._last: NDArray[np.uint8] | None = None
        self._connection, self._recording = 0, ""
        self._index = work / INDEX
        self._index.parent.mkdir(parents=True, exist_ok=True)
        self._start = self._resume()

    def _resume(self) -> float:
        """Return the start of the recording; read the frames of an interrupted one, without a line torn by a crash."""
        lines = self._index.read_text(encoding="utf-8").split("\n")[:-1] if self._index.is_file() else []
        if not lines:
            self._append({"start": time.time()})
            return time.time()
        for line in lines[1:]:
            image = json.loads(line)
            if (path := self._work / "images" / image["file_name"]).is_file():
                self.images.append(image)
                self._bytes += path.stat().st_size
        return float(json.loads(lines[0])["start"])

    def record(self) -> str:
        """Record until the end, a limit, the end of the stream or an interruption; return the reason.

        Raises:
            DataError: The stream was given up before the end.
        """
        end = self._options.end(self._start)
        try:
            with closing(read_stream(self._options.frames, self._options.patience, self._report_broken)) as frames:
                return self._record_until(end, frames)
        except KeyboardInterrupt:
            return "it was interrupted"
        except DataError as error:
            if time.time() >= end and self.images:
                return _OVER
            kept = f" {len(self.images)} frames are kept: rerun the same command to continue." if self.images else ""
            message = f"{error}{kept}"
            raise DataError(message) from error

    def _record_until(self, end: float, frames: Iterator[StreamFrame]) -> str:
        if time.time() >= end:
            return _OVER
        for frame in frames:
            if frame.time >= end:
                return _OVER
            self.received += 1
            if frame.time < self._due:
                self.counts["between the intervals"] += 1
                continue
            interval = self._options.frame_interval
            self._due = (frame.time // interval + 1) * interval if interval else 0.0
            pixels = self._changed_pixels(frame)
            if pixels is None:
                continue
            jpeg = encode_jpeg(pixels)
            if self._options.when_full == "end" and self._is_full(len(jpeg)):
                return f"the limit of {self._options.max_megabytes:g} MB is reached"
            self._write(frame, jpeg, (pixels.shape[0], pixels.shape[1]))
            if self._options.when_full == "end" and len(self.images) == self._options.limit:
                return f"the limit of {self._options.limit} frames is reached"
        return "the stream ended"

    def _changed_pixels(self, frame: StreamFrame) -> NDArray[np.uint8] | None:
        """Return the pixels of a frame to keep, `None` for one that has not changed or cannot be decoded."""
        try:
            pixels = frame.pixels()
        except DataError:
            self.counts["that cannot be decoded"] += 1
            return None
        if self._options.when == "changed":
            thumbnail = reduce(pixels, thumbnail_size(*pixels.shape[:2]))
            if self._last is not None and not has_changed(thumbnail, self._last):
                self.counts["without a change"] += 1
                return None
            self._last = thumbnail
        return pixels

    def _is_full(self, size: int) -> bool:
        """Return whether another frame of `size` bytes exceeds a limit."""
        limit = self._options.limit
        too_large = self._bytes + size > 1e6 * self._options.max_megabytes
        return too_large or (limit is not None and len(self.images) >= limit)

    def _write(self, frame: StreamFrame, jpeg: bytes, size: tuple[int, int]) -> None:
        while self.images and self._is_full(len(jpeg)):
            oldest = self._work / "images" / self.images.popleft()["file_name"]
            self._bytes -= oldest.stat().st_size
            oldest.unlink()
            self.counts["removed as the oldest"] += 1
        if frame.connection != self._connection:
            self._connection, self._recording = frame.connection, f"{self.camera}/{_stamp(frame.time)}"
        image: Image = {
            "file_name": f"{self.camera}/{_stamp(frame.time)}.jpg",
            "height": size[0],
            "width": size[1],
            "camera": self.camera,
            "recording": self._recording,
            "timestamp": round(frame.time, 3),
        }
        path = self._work / "images" / image["file_name"]
        with atomic_write(path, "wb") as file:
            file.write(jpeg)
        self._bytes += len(jpeg)
        self.images.append(image)
        self._append(image)

    def _append(self, entry: dict[str, Any]) -> None:
        with self._index.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _report_broken(self, line: str) -> None:
        self.broken += 1
        print(line)

    def summary(self, reason: str) -> str:
        """Return one line with the number of frames, kept and not kept, and the reason of the end."""
        left = [f"{count} {kind}" for kind, count in sorted(self.counts.items())]
        left += [f"{self.broken} lost connections"] if self.broken else []
        return (
            f"{len(self.images)} frames of {self.camera}, of {self.received} received ({', '.join([reason, *left])})."
        )


def has_changed(thumbnail: NDArray[np.uint8], last: NDArray[np.uint8]) -> bool:
    """Return whether a region or the light differs between two thumbnails of a camera, beyond noise.

    Args:
        thumbnail: (h, w, 3) uint8 thumbnail; see `cahqp.motion`.
        last: (h, w, 3) uint8 thumbnail of the last kept frame. Another size is a change.
    """
    if thumbnail.shape != last.shape:
        return True
    change = np.abs(thumbnail.astype(np.int16) - last).max(-1)
    usual = float(np.median(change))
    return usual > MIN_CHANGE or int((change > max(MIN_CHANGE, 4 * usual)).sum()) >= _MIN_PIXELS


def _stamp(seconds: float) -> str:
    """Return a time in UTC to the millisecond as part of a file name."""
    time_stamp = datetime.fromtimestamp(round(seconds, 3), UTC)
    return f"{time_stamp:%Y%m%dT%H%M%S}.{time_stamp.microsecond // 1000:03d}Z"


def _camera_name(source: str) -> str:
    """Return a name from the host of a URL without user and password, or from a webcam, usable as a folder."""
    name = Path(source).name if is_webcam(source) else urlsplit(redact_url(source)).hostname or "camera"
    return f"webcam-{name}" if name.isdigit() else name


def _portable(name: str) -> str:
    """Return a name that is also a folder."""
    return re.sub(r"[^\w.-]+", "-", name).strip(".") or "camera"
