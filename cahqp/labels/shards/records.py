"""Lines of shards. A line is one frame as JSON, with the boxes as in COCO except for the ids of the whole file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cahqp.frame import Frame

_ENCODER = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(", ", ": "))  # kept: slow to construct
PIXEL_DECIMALS = 2
SCORE_DECIMALS = 4


def decode(line: bytes) -> dict[str, Any]:
    """Return the JSON values of a line."""
    record: dict[str, Any] = json.loads(line)
    return record


def dumps(value: Any) -> str:
    """Return `value` as JSON on one line; NaN and infinity raise ValueError."""
    return _ENCODER.encode(value)


def image_entry(frame: Frame) -> dict[str, Any]:
    """Return the COCO image of a frame, with `timestamp` if it is known."""
    height, width = frame.size
    entry: dict[str, Any] = {"id": frame.id, "file_name": frame.name, "width": width, "height": height}
    entry |= {"camera": frame.camera, "recording": frame.recording or frame.camera, "frame": frame.index}
    return entry if frame.timestamp is None else entry | {"timestamp": frame.timestamp}
