"""Hour of the day at which an image was taken, as far as a file contains it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from cahqp.coco.exif import read_exif_time
from cahqp.frame import Frame

_NAME = re.compile(r"(?<!\d)20\d\d[-_]?[01]\d[-_]?[0-3]\d[T_\- /](?P<hour>[0-2]\d)(?:[-_.:]?[0-5]\d)")
_EPOCH = 1e9  # seconds; smaller times count from the start of a recording


def capture_hour(frame: Frame, path: Path) -> int | None:
    """Return the hour, 0 to 23: of the name, of a time since 1970 in UTC, else of EXIF; `None` if unknown."""
    match = _NAME.search(frame.name)
    if match and int(match["hour"]) < 24:
        return int(match["hour"])
    if frame.timestamp is not None and frame.timestamp >= _EPOCH:
        return datetime.fromtimestamp(frame.timestamp, UTC).hour
    moment = read_exif_time(path)
    return None if moment is None else moment.hour
