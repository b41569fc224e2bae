"""JSON values as numbers, integers, flags and boxes; all readers of COCO files use these functions."""

from __future__ import annotations

import math
from typing import Any

_FLAGS = {"0": False, "1": True, "false": False, "true": True}


def as_number(value: Any) -> float | None:
    """Return a finite JSON number as a float, `None` for anything else."""
    if type(value) not in (int, float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def as_integer(value: Any) -> int | None:
    """Return a whole number that fits into 64 bits, also one written as 3.0; `None` for anything else."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and -(2**63) <= value < 2**63 else None


def as_flag(value: Any) -> bool | None:
    """Return true or false for `true`, `false`, 1 and 0, also as text; `None` for anything else."""
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower())
    return bool(value) if type(value) in (bool, int, float) and value in (0, 1) else None


def as_box(value: Any) -> tuple[float, float, float, float] | None:
    """Return four finite numbers, `None` for anything else."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    x, y, width, height = map(as_number, value)
    if x is None or y is None or width is None or height is None:
        return None
    return x, y, width, height
