"""Images that Python code gives to a model: files, folders, videos, streams, PIL images and arrays."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cahqp.coco.decoding import BrokenImageError, pixels_of, read_image
from cahqp.coco.sources import source_kind
from cahqp.edge.capture import EdgeFrame, read_frames
from cahqp.edge.streams import is_stream
from cahqp.errors import DataError
from cahqp.files import redact_url

Pixels: TypeAlias = NDArray[np.uint8]
Source: TypeAlias = Path | str | Image.Image | Pixels
"""Path of an image, folder, video or COCO file, URL of a stream, PIL image, or (H, W, 3) uint8 RGB array."""

_log = logging.getLogger(__name__)


class Input(NamedTuple):
    """Image with its origin.

    Attributes:
        name: File name relative to its folder, `video.mp4@12.400s` for a video frame, empty for an image in memory.
        pixels: (H, W, 3) uint8 RGB.
        timestamp: Seconds from the start of a video, seconds since 1970 in a stream, `None` for images.
    """

    name: str
    pixels: Pixels
    timestamp: float | None = None


def read_inputs(source: Source, label: str = "The image") -> Iterator[Input]:
    """Return the images of one source; folders, videos and streams are read as the iterator advances.

    Unreadable images of a folder or COCO file are left out, with a warning for each.

    Args:
        source: The source.
        label: Name of an image in memory for error messages.

    Raises:
        BrokenImageError: The source is an image file that cannot be decoded.
        DataError: The source does not exist, contains no readable image, or is of another kind.
    """
    given: object = source  # callers without a type checker can give anything
    if not isinstance(given, (Image.Image, np.ndarray, str, Path)):
        allowed = "a path, a PIL image, a (H, W, 3) uint8 RGB array, or a list of these"
        message = f"{label} is a {type(given).__name__}. Give {allowed}."
        raise DataError(message)
    if isinstance(source, Image.Image):
        return iter([Input("", pixels_of(source))])
    if isinstance(source, np.ndarray):
        return iter([Input("", _check(source, label))])
    if is_single(source):
        return _single(Path(source))
    return _readable(str(source), read_frames(str(source), report=_log.warning))


def is_single(source: Source) -> bool:
    """Return whether a source is one image.

    Raises:
        DataError: A path does not exist, or is of another kind.
    """
    if isinstance(source, (str, Path)):
        return not is_stream(str(source)) and source_kind(Path(source)) == "image"
    return True


def _single(path: Path) -> Iterator[Input]:
    try:
        yield Input(path.name, read_image(path))
    except BrokenImageError as error:
        message = f"{path}: {error}. Restore the file, or leave it out."
        raise BrokenImageError(message) from error


def _check(image: NDArray[np.generic], label: str) -> Pixels:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        message = f"{label} must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}."
        raise DataError(message)
    return np.array(image, np.uint8)  # a copy: video readers reuse their arrays


def _readable(source: str, frames: Iterator[EdgeFrame]) -> Iterator[Input]:
    count = broken = 0
    for frame in frames:
        count += 1
        if frame.image is None:
            broken += 1
            _log.warning("%s in %s cannot be decoded and is left out.", frame.name, redact_url(source))
        else:
            yield Input(frame.name, np.ascontiguousarray(frame.image[:, :, ::-1]), frame.timestamp)
    if broken == count:
        message = f"None of the {count} frames of {redact_url(source)} can be decoded. Restore the files."
        raise DataError(message)
