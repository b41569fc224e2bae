"""Frames at the edge: folders, COCO files, videos and streams, read by OpenCV alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cahqp.coco.reader import read_coco_frames
from cahqp.coco.sources import image_names, source_kind
from cahqp.errors import DataError
from cahqp.files import redact_url

_OPEN_MILLISECONDS = 10_000  # a camera that answers at all answers within ten seconds
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 10.0  # seconds between two tries to reach a camera; each waits twice as long


@dataclass(frozen=True)
class EdgeFrame:
    """One frame.

    Attributes:
        id: Unique within its source; in COCO files the image id.
        name: File name, or `video.mp4@12.400s`.
        image: (H, W, 3) uint8 in OpenCV's order BGR; `None` where it cannot be decoded.
        timestamp: Seconds from the start of a video, seconds since 1970 of a stream, `None` of images.
        told: Height and width that a COCO file says, whose boxes are in those pixels; `None` where nothing does.
    """

    id: int
    name: str
    image: NDArray[np.uint8] | None
    timestamp: float | None = None
    told: tuple[int, int] | None = None


def is_stream(source: str) -> bool:
    """Say whether a source is a URL, such as rtsp://camera/1, rather than a path."""
    return "://" in source


def read_frames(source: str, patience: float = 60.0, tell: Callable[[str], None] = print) -> Iterator[EdgeFrame]:
    """Go through the frames of a folder, an image, a COCO file, a video or a stream.

    Args:
        source: Path or URL.
        patience: Seconds without a frame after which a stream is given up.
        tell: Gets a line whenever a stream breaks and comes back.

    Raises:
        DataError: There is no such source, it holds no frames, or a stream stays silent.
    """
    if is_stream(source):
        return _stream(source, patience, tell)
    path = Path(source)
    kind = source_kind(path)
    if kind == "folder":
        return _images(path, [(number, name, None) for number, name in enumerate(image_names(path), start=1)])
    if kind == "coco":
        return _images(*_coco(path))
    return _video(path) if kind == "video" else _images(path.parent, [(1, path.name, None)])


def read_picture(path: Path) -> NDArray[np.uint8] | None:
    """Return an image as (H, W, 3) uint8 BGR, as it is stored; `None` where it cannot be decoded."""
    # An EXIF orientation is not applied, for COCO's boxes are drawn on the stored pixels.
    image: Any = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if image is None else np.asarray(image, np.uint8)


def _images(root: Path, names: list[tuple[int, str, tuple[int, int] | None]]) -> Iterator[EdgeFrame]:
    for number, name, told in names:
        yield EdgeFrame(number, name, read_picture(root / name), told=told)


def _coco(path: Path) -> tuple[Path, list[tuple[int, str, tuple[int, int] | None]]]:
    file = read_coco_frames(path, sizes=False)
    if not file.frames:
        message = f"{path} contains no images."
        raise DataError(message)
    return file.root, [(frame.id, frame.name, frame.size if all(frame.size) else None) for frame in file.frames]


def _video(path: Path) -> Iterator[EdgeFrame]:
    capture: Any = cv2.VideoCapture(str(path))
    number = 0
    try:
        while True:
            good, image = capture.read()
            if not good:
                break
            number += 1
            seconds = round(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, 6)
            yield EdgeFrame(number, f"{path.name}@{seconds:.3f}s", image, seconds)
    finally:
        capture.release()
    if number == 0:
        message = f"{path} holds no frame that can be decoded. Copy it again, or encode it anew."
        raise DataError(message)


def _stream(url: str, patience: float, tell: Callable[[str], None]) -> Iterator[EdgeFrame]:
    """Yield a stream's frames for as long as it lives, opening it anew whenever it breaks."""
    number, wait, last = 0, _FIRST_WAIT, time.monotonic()
    while True:
        capture: Any = cv2.VideoCapture(
            url, cv2.CAP_FFMPEG, [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_MILLISECONDS,
                                  cv2.CAP_PROP_READ_TIMEOUT_MSEC, _OPEN_MILLISECONDS]
        )  # fmt: skip
        try:
            good, image = capture.read()
            while good:
                number, wait, last = number + 1, _FIRST_WAIT, time.monotonic()
                now = round(time.time(), 3)
                yield EdgeFrame(number, f"{number:08d}@{now:.3f}s", image, now)
                good, image = capture.read()
        finally:
            capture.release()
        silent = time.monotonic() - last
        if silent >= patience:
            message = f"{redact_url(url)} sent no frame for {silent:.0f} s. Check the camera, or raise --patience."
            raise DataError(message)
        tell(f"{redact_url(url)} broke off after {number} frames: trying again in {wait:g} s.")
        time.sleep(wait)
        wait = min(2 * wait, _LONGEST_WAIT)
