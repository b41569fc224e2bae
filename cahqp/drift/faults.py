"""Camera faults. They are detected before drift, because a broken camera is not a changed scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cahqp.drift.signals import PLAIN, Signals, interval

MIN_SHARE = 0.5
"""Share of faulty frames above which a window counts as faulty."""

_BLACK_MEAN, _BLACK_SPREAD = 12.0, 6.0  # grey values of 0..255; a lens cap with sensor noise stays below both
_FLAT_SPREAD = 2.0  # uniform colour, as a video server sends for a lost camera
_STILL = 0.02  # grey values; codec noise on a repeated image stays below, sensor noise does not
_STILL_SHARE = 0.1  # of the reference's usual change
_MAX_INTERVAL_RATIO = 2.0  # largest ratio of two frame intervals whose changes are comparable


@dataclass(frozen=True)
class Usual:
    """Usual change between frames of a working camera.

    Attributes:
        change: Mean difference in grey values from the frame before; 95 % of the frames exceed it.
        interval: Seconds between the frames; `None` if unknown.
    """

    change: float
    interval: float | None


def fault(window: Signals, usual: Sequence[Usual] = ()) -> str | None:
    """Return the fault of a camera in a window.

    Args:
        window: Consecutive frames of one camera.
        usual: Usual changes of working cameras. Only those with about the window's frame interval count, because
            frames further apart change more.

    Returns:
        `unreadable`, `black`, `flat` (uniform colour), `frozen` (a repeated image), or `None`.
    """
    own = interval(window)
    comparable = [
        u.change for u in usual if own and u.interval and max(own / u.interval, u.interval / own) <= _MAX_INTERVAL_RATIO
    ]
    still = max(_STILL, _STILL_SHARE * min(comparable, default=0.0))
    faulty = {
        "unreadable": ~window.readable,
        "black": _below(window, "brightness", _BLACK_MEAN) & _below(window, "contrast", _BLACK_SPREAD),
        "flat": _below(window, "contrast", _FLAT_SPREAD),
        "frozen": _below(window, "change", still),
    }
    return next((name for name, frames in faulty.items() if frames.mean() > MIN_SHARE), None)


def usual_change(reference: Signals) -> Usual | None:
    """Return the usual change in a reference; `None` if no change is known."""
    change = reference.plain[:, PLAIN.index("change")]
    finite = change[np.isfinite(change)]
    return Usual(float(np.quantile(finite, 0.05)), interval(reference)) if len(finite) else None


def _below(window: Signals, name: str, limit: float) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    values = window.plain[:, PLAIN.index(name)]
    return np.isfinite(values) & (np.nan_to_num(values, nan=np.inf) < limit)
