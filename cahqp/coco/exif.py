"""Time at which a picture was taken, by its EXIF data."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

from PIL import Image

_FOLDER = 0x8769
# DateTimeOriginal and OffsetTimeOriginal, then DateTime and OffsetTime, of EXIF 2.32
_TAGS = ((0x9003, 0x9011), (0x0132, 0x9010))
_SUBSECONDS = 0x9291


def read_exif_time(path: Path) -> datetime | None:
    """Return the time at which an image was taken, with its offset if known; `None` without a valid time."""
    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP")) as image:
            exif = image.getexif()
            tags = {**exif, **exif.get_ifd(_FOLDER)}
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    for name, offset in _TAGS:
        text = _text(tags.get(name))
        fraction = _text(tags.get(_SUBSECONDS)) if name == _TAGS[0][0] else ""
        zone = _text(tags.get(offset))
        zone = zone if re.fullmatch(r"[+-]\d\d:\d\d", zone) else ""
        try:
            moment = datetime.strptime(text, "%Y:%m:%d %H:%M:%S")
            moment = datetime.fromisoformat(f"{moment.isoformat()}{zone}")
        except ValueError:
            continue
        digits = fraction if re.fullmatch(r"[0-9]{1,6}", fraction) else "0"
        return moment.replace(microsecond=int(digits.ljust(6, "0")))
    return None


def _text(value: object) -> str:
    return value.strip("\0 ") if isinstance(value, str) else ""
