"""One frame's labels as one line of a shard: COCO in all but the ids that only the whole file can give."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from cahqp.errors import RunError

if TYPE_CHECKING:
    from cahqp.frame import Frame
    from cahqp.labels.select import Selection
    from cahqp.structures import Detections

_ENCODER = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(", ", ": "))  # kept: one is dear to make
PIXEL_DECIMALS = 2
SCORE_DECIMALS = 4


def encode(position: int, frame: Frame, selection: Selection) -> bytes:
    """Return the line, newline included. Equal labels give equal bytes.

    Raises:
        RunError: A box or a score is not a finite number.
    """
    rejected = zip(_boxes(selection.rejected), selection.reasons, strict=True)
    record = {
        "position": position,
        "image": image_entry(frame),
        "kept": _boxes(selection.kept),
        "rejected": [box | {"reason": reason} for box, reason in rejected],
    }
    try:
        return dumps(record).encode() + b"\n"
    except ValueError as error:
        message = f"A label of {frame.name} is not a finite number. Check the weights, or run in float32."
        raise RunError(message) from error


def decode(line: bytes) -> dict[str, Any]:
    """Return what `encode` was given, as plain JSON values."""
    record: dict[str, Any] = json.loads(line)
    return record


def dumps(value: Any) -> str:
    """Return `value` as JSON on one line; NaN and infinity are refused."""
    return _ENCODER.encode(value)


def image_entry(frame: Frame) -> dict[str, Any]:
    """Return the COCO image of a frame; `timestamp` only where it is known."""
    height, width = frame.size
    entry: dict[str, Any] = {"id": frame.id, "file_name": frame.name, "width": width, "height": height}
    entry |= {"camera": frame.camera, "recording": frame.recording or frame.camera, "frame": frame.index}
    return entry if frame.timestamp is None else entry | {"timestamp": frame.timestamp}


def _boxes(detections: Detections) -> list[dict[str, Any]]:
    # Corners are rounded before sides are taken, so that a box at the frame's edge does not reach over it.
    pixel, point = 10**PIXEL_DECIMALS, 10**SCORE_DECIMALS
    corners = np.rint(detections.boxes.numpy().astype(np.float64) * pixel)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1) / pixel
    scores = np.rint(detections.scores.numpy().astype(np.float64) * point) / point
    rows = zip(detections.labels.tolist(), boxes.tolist(), scores.tolist(), strict=True)
    return [{"label": label, "bbox": bbox, "score": score} for label, bbox, score in rows]
