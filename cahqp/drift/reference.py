"""Which frames of a known domain a camera is compared with."""

from __future__ import annotations

from cahqp.drift.signals import Signals


def of_camera(signals: Signals, camera: str, min_frames: int) -> Signals:
    """Return the camera's own frames where there are enough of them, else those of all cameras.

    Args:
        signals: Of a known domain.
        camera: Whose frames are to be compared.
        min_frames: Readable frames that a reference needs.
    """
    rows = [row for row, name in enumerate(signals.cameras) if name == camera and signals.readable[row]]
    return signals.take(rows) if len(rows) >= min_frames else signals


def long_enough(known: dict[str, Signals], min_frames: int) -> tuple[dict[str, Signals], list[str]]:
    """Return the domains that windows can be compared with, and the names of those that are too short.

    A round of few frames is no reason for the next one to fail: without it as a reference its conditions count as new.
    Where all are too short all are returned, for whoever uses the first one to refuse it by its number of frames.

    Args:
        known: Signals of each known domain.
        min_frames: Readable frames that a reference needs.
    """
    short = [name for name, signals in known.items() if int(signals.readable.sum()) < min_frames]
    if len(short) == len(known):
        return known, []
    return {name: signals for name, signals in known.items() if name not in short}, short
