"""A camera that is broken is no camera whose world has changed: faults are looked for before drift."""

from __future__ import annotations

import numpy as np

from cahqp.cycle.signals import PLAIN, Signals

MOST = 0.5
"""Share of a window's frames that show a fault for the window to be called faulty."""

_BLACK_MEAN, _BLACK_SPREAD = 12.0, 6.0  # grey values of 0..255; a lens cap with sensor noise stays below both
_FLAT_SPREAD = 2.0  # one colour all over: what a video server sends for a camera that it has lost
_STILL = 0.02  # grey values; a coder's noise on one repeated picture stays below, sensor noise of a real one does not
_STILL_SHARE = 0.1  # of the reference's usual change


def fault(window: Signals, usual_change: float | None = None) -> str | None:
    """Name what is wrong with a camera in a window of its frames.

    Args:
        window: Following frames of one camera.
        usual_change: Low end of the change between frames that this camera shows when it works, in grey values.

    Returns:
        `unreadable`, `black`, `flat` (one colour), `frozen` (the same picture again and again), or `None`.
    """
    found = {
        "unreadable": ~window.readable,
        "black": _less(window, "brightness", _BLACK_MEAN) & _less(window, "contrast", _BLACK_SPREAD),
        "flat": _less(window, "contrast", _FLAT_SPREAD),
        "frozen": _less(window, "change", max(_STILL, _STILL_SHARE * (usual_change or 0.0))),
    }
    return next((name for name, frames in found.items() if frames.mean() > MOST), None)


def usual_change(reference: Signals) -> float | None:
    """Return the change that all but one in twenty frames of a working camera exceed; `None` where none is known."""
    change = reference.plain[:, PLAIN.index("change")]
    known = change[np.isfinite(change)]
    return float(np.quantile(known, 0.05)) if len(known) else None


def _less(window: Signals, name: str, limit: float) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    values = window.plain[:, PLAIN.index(name)]
    return np.isfinite(values) & (np.nan_to_num(values, nan=np.inf) < limit)
