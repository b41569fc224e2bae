"""The words for further views of a frame."""

from __future__ import annotations

import re

_SCALE, _TILES = re.compile(r"scale:(\d+(?:\.\d+)?)"), re.compile(r"tiles:(\d+)x(\d+)")
_LEAST_SCALE, _MOST_SCALE, _MOST_TILES = 0.25, 4.0, 64


def view_scale(text: str) -> float | None:
    """Return S of `scale:S` with S in 0.25..4, `None` for anything else."""
    found = _SCALE.fullmatch(text)
    return float(found[1]) if found and _LEAST_SCALE <= float(found[1]) <= _MOST_SCALE else None


def view_tiles(text: str) -> tuple[int, int] | None:
    """Return C and R of `tiles:CxR` with 2 to 64 tiles, `None` for anything else."""
    found = _TILES.fullmatch(text)
    columns, rows = (int(found[1]), int(found[2])) if found else (0, 0)
    return (columns, rows) if 1 < columns * rows <= _MOST_TILES else None


def unknown_view(text: str) -> str | None:
    """Return what is wrong with the word for a view, `None` where nothing is."""
    if text == "flip" or view_scale(text) is not None or view_tiles(text) is not None:
        return None
    return f"{text!r} is unknown. Allowed: flip, scale:S with S in 0.25..4, tiles:CxR such as 2x2."
