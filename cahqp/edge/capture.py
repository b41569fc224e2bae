"""Frames of folders, COCO files, videos and streams, read without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cahqp.coco.decoding import BrokenImageError, read_image
from cahqp.coco.naming import Naming
from cahqp.coco.reader import read_coco_frames
from cahqp.coco.sources import image_names, source_kind
from cahqp.coco.video import Video
from cahqp.edge.streams import is_stream, read_stream
from cahqp.errors import DataError


class _Row(NamedTuple):
    """Image id, file name, and height and width where the COCO file contains them."""

    id: int
    name: str
    size: tuple[int, int] | None


@dataclass(frozen=True)
class EdgeFrame:
    """One frame.

    Attributes:
        id: Unique within its source; the image id in a COCO file.
        name: File name, or `video.mp4@12.400s`.
        image: (H, W, 3) uint8 in OpenCV's order BGR, not to be written to. `None` if the frame cannot be decoded.
        timestamp: Seconds from the start of a video; seconds since 1970 in a stream, or by `--name-pattern`. `None` for
            other images.
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


def read_frames(
    source: str, patience: float = 60.0, report: Callable[[str], None] = print, naming: Naming | None = None
) -> Iterator[EdgeFrame]:
    """Return the frames of a folder, an image, a COCO file, a video, a stream or a webcam.

    Args:
        source: Path, URL, or webcam: its number, or /dev/video0.
        patience: Seconds without a frame after which a stream is given up.
        report: Receives one line whenever a stream breaks.
        naming: Rule for the times of images and the start of a video. Streams have their own times.

    Raises:
        DataError: The source does not exist, contains no frames, or is a stream that sends nothing.
    """
    if is_stream(source):
        return _stream(source, patience, report)
    path = Path(source)
    kind = source_kind(path)
    if kind == "video":
        return _video(path, naming)
    root, rows = path.parent, [_Row(1, path.name, None)]
    if kind == "folder":
        root, rows = path, [_Row(number, name, None) for number, name in enumerate(image_names(path), start=1)]
    elif kind == "coco":
        root, rows = _coco(path)
    names = [row.name for row in rows]
    times = naming.times(names, [root / name for name in names], source) if naming else [None] * len(rows)
    return _images(root, rows, times)


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


def _images(root: Path, rows: Sequence[_Row], times: Sequence[float | None]) -> Iterator[EdgeFrame]:
    for row, time in zip(rows, times, strict=True):
        yield EdgeFrame(row.id, row.name, read_bgr(root / row.name), time, labelled_size=row.size)


def _coco(path: Path) -> tuple[Path, list[_Row]]:
    file = read_coco_frames(path, sizes=False)
    if not file.frames:
        message = f"{path} contains no images."
        raise DataError(message)
    return file.root, [_Row(frame.id, frame.name, frame.size if all(frame.size) else None) for frame in file.frames]


def _video(path: Path, naming: Naming | None) -> Iterator[EdgeFrame]:
    """Yield the frames of a video, with the times that training gives them."""
    start = naming.times([path.as_posix()], [path], str(path))[0] if naming else None
    with Video(path) as video:
        for frame in video:
            seconds = round(frame.seconds, 6)
            yield EdgeFrame(frame.index + 1, f"{path.name}@{seconds:.3f}s", frame.pixels(), seconds + (start or 0.0))


def _stream(source: str, patience: float, report: Callable[[str], None]) -> Iterator[EdgeFrame]:
    for number, frame in enumerate(read_stream(source, patience, report), 1):
        now = round(frame.time, 3)
        yield EdgeFrame(number, f"{number:08d}@{now:.3f}s", frame.pixels(), now)
