"""Views of a frame for test-time augmentation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from cahqp.errors import ConfigError

_SCALE, _TILES = re.compile(r"scale:(\d+(?:\.\d+)?)"), re.compile(r"tiles:(\d+)x(\d+)")
_MIN_SCALE, _MAX_SCALE, _MAX_TILES = 0.25, 4.0, 64
_OVERLAP = 0.2
"""Share of a tile that its neighbour contains too, so that an object cut by one tile is whole in the other."""


class ViewSpec(NamedTuple):
    """A view of a frame.

    Attributes:
        part: Left, top, right and bottom as shares of the frame's width and height.
        mirrored: Whether the view is flipped horizontally.
        scale: Size of the view as a multiple of the detector's input size.
    """

    part: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    mirrored: bool = False
    scale: float = 1.0


def parse_views(names: Sequence[str]) -> list[ViewSpec]:
    """Return the unchanged view, followed by the named views.

    Args:
        names: `flip`, `scale:S` with S in 0.25..4, or `tiles:CxR` for C columns and R rows, 2 to 64 tiles.

    Raises:
        ConfigError: A name is unknown. The message has one line for each.
    """
    views, problems = [ViewSpec()], []
    for name in names:
        scale, tiles = _SCALE.fullmatch(name), _TILES.fullmatch(name)
        if name == "flip":
            views.append(ViewSpec(mirrored=True))
        elif scale and _MIN_SCALE <= float(scale[1]) <= _MAX_SCALE:
            views.append(ViewSpec(scale=float(scale[1])))
        elif tiles and 1 < int(tiles[1]) * int(tiles[2]) <= _MAX_TILES:
            columns, rows = _tile_edges(int(tiles[1])), _tile_edges(int(tiles[2]))
            views += [ViewSpec((x[0], y[0], x[1], y[1])) for y, x in product(rows, columns)]
        else:
            problems.append(
                f"--views {name!r} is unknown. Allowed: flip, scale:S with S in 0.25..4, tiles:CxR such as tiles:2x2."
            )
    if problems:
        raise ConfigError("\n".join(problems))
    return views


def _tile_edges(count: int) -> list[tuple[float, float]]:
    """Return start and end of `count` overlapping tiles along one side, as shares of the side."""
    if count == 1:
        return [(0.0, 1.0)]
    size = 1 / (count - (count - 1) * _OVERLAP)
    step = size * (1 - _OVERLAP)
    return [(number * step, min(1.0, number * step + size)) for number in range(count)]
