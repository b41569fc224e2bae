"""Hour of the day at which an image was taken, as far as a file contains it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image

from cahqp.frame import Frame

_NAME = re.compile(r"(?<!\d)20\d\d[-_]?[01]\d[-_]?[0-3]\d[T_\- /](?P<hour>[0-2]\d)(?:[-_.:]?[0-5]\d)")
_EXIF_TIMES = (0x9003, 0x0132)  # DateTimeOriginal and DateTime of EXIF 2.32
_EXIF_FOLDER = 0x8769
_EPOCH = 1e9  # seconds; smaller times count from the start of a recording


def capture_hour(frame: Frame, path: Path) -> int | None:
    """Return the hour, 0 to 23: of the name, of a time since 1970 in UTC, else of EXIF; `None` if unknown."""
    match = _NAME.search(frame.name)
    if match and int(match["hour"]) < 24:
        return int(match["hour"])
    if frame.timestamp is not None and frame.timestamp >= _EPOCH:
        return datetime.fromtimestamp(frame.timestamp, UTC).hour
    return _exif_hour(path)


def _exif_hour(path: Path) -> int | None:
    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP")) as image:
            exif = image.getexif()
            texts = [exif.get_ifd(_EXIF_FOLDER).get(_EXIF_TIMES[0]), exif.get(_EXIF_TIMES[1])]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    for text in texts:
        match = re.fullmatch(r"\d{4}:\d\d:\d\d (\d\d):\d\d:\d\d", text.strip("\0 ")) if isinstance(text, str) else None
        if match and int(match[1]) < 24:
            return int(match[1])
    return None
