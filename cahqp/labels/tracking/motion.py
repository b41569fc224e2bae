"""Motion in the frames of a recording that is relabelled, from thumbnails in the shards of candidates."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cahqp.labels.options import LabelOptions
from cahqp.motion import MAX_FRAMES, Motion, median_background

MotionOf = Callable[[Mapping[str, Any]], Motion | None]


def encode_thumbnail(image: NDArray[np.uint8]) -> str:
    """Return an (h, w, 3) uint8 image as text, without loss."""
    return base64.b64encode(cv2.imencode(".png", image)[1].tobytes()).decode()


def decode_thumbnail(text: str) -> NDArray[np.uint8]:
    """Return the image of `encode_thumbnail`."""
    data = np.frombuffer(base64.b64decode(text), np.uint8)
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


class RecordingMotion:
    """Motion in the frames of a recording, from the background of each frame size.

    Args:
        frames: Row and size of each frame, in order of time.
        read: Returns the record of a row, with its thumbnail.
    """

    def __init__(self, frames: Sequence[tuple[int, tuple[int, int]]], read: Callable[[int], Mapping[str, Any]]) -> None:
        by_size: dict[tuple[int, int], list[int]] = {}
        for row, size in frames:
            by_size.setdefault(size, []).append(row)
        self._backgrounds: dict[tuple[int, int], NDArray[np.float32] | None] = {}
        for size, rows in by_size.items():
            spread = np.unique(np.linspace(0, len(rows) - 1, min(MAX_FRAMES, len(rows))).round().astype(int)).tolist()
            thumbnails = [decode_thumbnail(read(rows[number])["thumbnail"]) for number in spread]
            self._backgrounds[size] = median_background(thumbnails)

    def __call__(self, record: Mapping[str, Any]) -> Motion | None:
        """Return the motion in the frame of a record; `None` without a background."""
        size = (record["image"]["height"], record["image"]["width"])
        background = self._backgrounds[size]
        return None if background is None else Motion(decode_thumbnail(record["thumbnail"]), background, size)


def ignore_shares(options: LabelOptions, motion: Motion | None, boxes: NDArray[Any]) -> NDArray[np.float64]:
    """Return (N,) shares of the threshold from which (N, 4) boxes are ignored instead of rejected."""
    shares = np.full(len(boxes), options.ignore_share)
    if motion is not None and options.moving_ignore_share is not None:
        shares[motion.moving(boxes)] = min(options.moving_ignore_share, options.ignore_share)
    return shares
