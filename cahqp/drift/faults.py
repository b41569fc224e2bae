"""A camera that is broken is no camera whose world has changed: faults are looked for before drift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cahqp.drift.signals import PLAIN, Signals, interval

MOST = 0.5
"""Share of a window's frames that show a fault for the window to be called faulty."""

_BLACK_MEAN, _BLACK_SPREAD = 12.0, 6.0  # grey values of 0..255; a lens cap with sensor noise stays below both
_FLAT_SPREAD = 2.0  # one colour all over: what a video server sends for a camera that it has lost
_STILL = 0.02  # grey values; a coder's noise on one repeated picture stays below, sensor noise of a real one does not
_STILL_SHARE = 0.1  # of the reference's usual change
_ALIKE = 2.0  # times that the seconds between frames may differ for changes between them to be compared


@dataclass(frozen=True)
class Usual:
    """How much a working camera's picture changes.

    Attributes:
        change: Grey values that all but one in twenty frames differ by from the one before.
        interval: Seconds between those frames; `None` where unknown.
    """

    change: float
    interval: float | None


def fault(window: Signals, usual: Sequence[Usual] = ()) -> str | None:
    """Name what is wrong with a camera in a window of its frames.

    Args:
        window: Following frames of one camera.
        usual: What is known of working cameras. Frames further apart change more, so only those count whose frames
            are known to be about as far apart as the window's.

    Returns:
        `unreadable`, `black`, `flat` (one colour), `frozen` (the same picture again and again), or `None`.
    """
    found = {
        "unreadable": ~window.readable,
        "black": _less(window, "brightness", _BLACK_MEAN) & _less(window, "contrast", _BLACK_SPREAD),
        "flat": _less(window, "contrast", _FLAT_SPREAD),
        "frozen": _less(window, "change", max(_STILL, _STILL_SHARE * _least(window, usual))),
    }
    return next((name for name, frames in found.items() if frames.mean() > MOST), None)


def usual_change(reference: Signals) -> Usual | None:
    """Return how much a working camera changes; `None` where nothing is known."""
    change = reference.plain[:, PLAIN.index("change")]
    known = change[np.isfinite(change)]
    return Usual(float(np.quantile(known, 0.05)), interval(reference)) if len(known) else None


def _least(window: Signals, usual: Sequence[Usual]) -> float:
    """Return the least change of those cameras whose frames are as far apart as the window's, 0 where none is."""
    apart = interval(window)
    if not apart:
        return 0.0
    alike = [u.change for u in usual if u.interval and max(apart / u.interval, u.interval / apart) <= _ALIKE]
    return min(alike, default=0.0)


def _less(window: Signals, name: str, limit: float) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    values = window.plain[:, PLAIN.index(name)]
    return np.isfinite(values) & (np.nan_to_num(values, nan=np.inf) < limit)
