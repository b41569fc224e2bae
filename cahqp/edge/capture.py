"""Frames of folders, COCO files, videos and streams, read without torch."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cahqp.coco.decoding import BrokenImageError, read_image
from cahqp.coco.reader import read_coco_frames
from cahqp.coco.sources import image_names, source_kind
from cahqp.coco.video import Video
from cahqp.errors import DataError
from cahqp.files import redact_url

_TIMEOUT_MILLISECONDS = 10_000  # for opening a stream and for one frame
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 10.0  # seconds before a stream is reopened; doubled after each failure

_WHOLE = 0.95  # share of the frames in a header that a whole file has: the count can be an estimate

_Row = tuple[int, str, tuple[int, int] | None]
"""Image id, file name, and height and width where the COCO file contains them."""


@dataclass(frozen=True)
class EdgeFrame:
    """One frame.

    Attributes:
        id: Unique within its source; the image id in a COCO file.
        name: File name, or `video.mp4@12.400s`.
        image: (H, W, 3) uint8 in OpenCV's order BGR, not to be written to. `None` if the frame cannot be decoded.
        timestamp: Seconds from the start of a video; seconds since 1970 in a stream. `None` for images.
        labelled_size: Height and width in the COCO file, to which its boxes refer. `None` if missing.
    """

    id: int
    name: str
    image: NDArray[np.uint8] | None
    timestamp: float | None = None
    labelled_size: tuple[int, int] | None = None

    def pixels(self) -> NDArray[np.uint8]:
        """Return the image.

        Raises:
            DataError: The frame cannot be decoded.
        """
        if self.image is None:
            message = f"{self.name} cannot be decoded. Restore the file, or remove it from the frames."
            raise DataError(message)
        return self.image

    def digest(self) -> str:
        """Return the SHA-256 of the decoded pixels, so that a copy in another file or format is recognised.

        Raises:
            DataError: The frame cannot be decoded.
        """
        image = self.pixels()
        return hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()


def is_stream(source: str) -> bool:
    """Return whether a source is a URL, such as rtsp://camera/1, and not a path."""
    return "://" in source


def read_frames(source: str, patience: float = 60.0, report: Callable[[str], None] = print) -> Iterator[EdgeFrame]:
    """Return the frames of a folder, an image, a COCO file, a video or a stream.

    Args:
        source: Path or URL.
        patience: Seconds without a frame after which a stream is given up.
        report: Receives one line whenever a stream breaks.

    Raises:
        DataError: The source does not exist, contains no frames, or is a stream that sends nothing.
    """
    if is_stream(source):
        return _stream(source, patience, report)
    path = Path(source)
    kind = source_kind(path)
    if kind == "folder":
        return _images(path, [(number, name, None) for number, name in enumerate(image_names(path), start=1)])
    if kind == "coco":
        return _images(*_coco(path))
    return _video(path) if kind == "video" else _images(path.parent, [(1, path.name, None)])


def read_valid_frames(source: str) -> Iterator[EdgeFrame]:
    """Yield the frames of a source.

    Raises:
        DataError: A frame cannot be decoded.
    """
    for frame in read_frames(source):
        frame.pixels()
        yield frame


def read_bgr(path: Path) -> NDArray[np.uint8] | None:
    """Return an image file as stored, (H, W, 3) uint8 BGR, read-only; `None` if training cannot decode it."""
    try:
        return read_image(path, bgr=True)
    except BrokenImageError:
        return None


def _images(root: Path, rows: list[_Row]) -> Iterator[EdgeFrame]:
    for number, name, size in rows:
        yield EdgeFrame(number, name, read_bgr(root / name), labelled_size=size)


def _coco(path: Path) -> tuple[Path, list[_Row]]:
    file = read_coco_frames(path, sizes=False)
    if not file.frames:
        message = f"{path} contains no images."
        raise DataError(message)
    return file.root, [(frame.id, frame.name, frame.size if all(frame.size) else None) for frame in file.frames]


def _video(path: Path) -> Iterator[EdgeFrame]:
    """Yield the frames of a video, with the times that training gives them."""
    with Video(path) as video:
        for frame in video:
            seconds = round(frame.seconds, 6)
            yield EdgeFrame(frame.index + 1, f"{path.name}@{seconds:.3f}s", frame.pixels(), seconds)


def _stream(url: str, patience: float, report: Callable[[str], None]) -> Iterator[EdgeFrame]:
    """Yield the frames of a stream; reopen it whenever it breaks. A file on a server ends after its last frame."""
    number, wait, last = 0, _FIRST_WAIT, time.monotonic()
    timeouts = [
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _TIMEOUT_MILLISECONDS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _TIMEOUT_MILLISECONDS,
    ]  # fmt: skip
    while True:
        count = 0.0
        for image, capture in _captured(url, cv2.CAP_FFMPEG, timeouts):
            number, wait, last = number + 1, _FIRST_WAIT, time.monotonic()
            count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
            now = round(time.time(), 3)
            yield EdgeFrame(number, f"{number:08d}@{now:.3f}s", image, now)
        if count > 0:  # a file on a server; a live stream has no count
            _check_whole(url, number, count)
            return
        silence = time.monotonic() - last
        if silence >= patience:
            message = f"{redact_url(url)} sent no frame for {silence:.0f} s. Check the camera, or raise --patience."
            raise DataError(message)
        report(f"{redact_url(url)} broke off after {number} frames. Next attempt in {wait:g} s.")
        time.sleep(wait)
        wait = min(2 * wait, _LONGEST_WAIT)


def _check_whole(url: str, frames: int, count: float) -> None:
    """Check that a file on a server was read to its end; reopening it would begin again at its first frame.

    Raises:
        DataError: The connection broke off.
    """
    if frames < _WHOLE * count:
        message = f"{redact_url(url)} broke off after {frames} of {count:.0f} frames. Copy the file, and detect on it."
        raise DataError(message)


def _captured(*arguments: Any) -> Iterator[tuple[NDArray[np.uint8], Any]]:
    """Yield the images of a `cv2.VideoCapture` with the capture itself, and release it at the end."""
    capture: Any = cv2.VideoCapture(*arguments)
    try:
        while (result := _read(capture))[0]:
            yield result[1], capture
    finally:
        capture.release()


def _read(capture: Any) -> tuple[bool, Any]:
    try:
        result: tuple[bool, Any] = capture.read()
    except cv2.error as error:  # such as a frame that is too large to convert
        message = f"A frame of the video cannot be decoded ({error.err}). Copy or encode the file again."
        raise DataError(message) from error
    return result
