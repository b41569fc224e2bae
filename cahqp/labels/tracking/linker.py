"""Linking of the boxes of a recording into tracks, by Hungarian matching with motion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cahqp.association import match_boxes

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MIN_IOU = 0.25
NEAR = 0.6
"""Distance of centres, in mean diagonals, up to which boxes match: small objects move further than their own width."""

FIRST_STRENGTH = 0.6
"""Strength from which a box is matched first, as in ByteTrack (Zhang et al., arXiv 2110.06864)."""

_PROBES = 60


@dataclass
class Sightings:
    """Boxes of one frame for tracking.

    Attributes:
        time: Seconds from the start of the recording.
        boxes: (N, 4) xyxy in pixels of the original frame.
        strength: (N,) score as a multiple of the threshold of its class; 1 and more would be a label.
        labels: (N,) class indices.
        tracks: (N,) track numbers, set by `link`.
    """

    time: float
    boxes: Floats
    strength: Floats
    labels: Integers
    tracks: Integers = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass
class _ActiveTrack:
    number: int
    box: Floats
    label: int
    time: float
    velocity: Floats
    length: int = 1

    def predict(self, time: float) -> Floats:
        """Return the expected box."""
        shift = self.velocity * (time - self.time)
        moved: Floats = self.box + np.concatenate([shift, shift])
        return moved

    def update(self, box: Floats, label: int, time: float) -> None:
        """Add a box. The second box sets the velocity; later ones only adjust it, because boxes jitter."""
        measured = ((box[:2] + box[2:]) - (self.box[:2] + self.box[2:])) / 2 / max(time - self.time, 1e-6)
        share = 1.0 if self.length == 1 else 0.4
        self.velocity = share * measured + (1 - share) * self.velocity
        self.box, self.label, self.time, self.length = box, label, time, self.length + 1


def link(frames: Sequence[Sightings], max_gap: float) -> int:
    """Set the track number of every box, and return the number of tracks.

    In each frame, strong boxes are matched first, and in both groups boxes of the track's class before others.

    Args:
        frames: Frames in order of time.
        max_gap: Longest time in seconds that a track continues without a box.
    """
    active: list[_ActiveTrack] = []
    count = 0
    for frame in frames:
        active = [track for track in active if frame.time - track.time <= max_gap]
        frame.tracks = np.full(len(frame.boxes), -1, np.int64)
        free = list(range(len(active)))
        strong = frame.strength >= FIRST_STRENGTH
        for rows, same_class in ((strong, True), (strong, False), (~strong, True), (~strong, False)):
            free = _assign(frame, np.flatnonzero(rows & (frame.tracks < 0)), active, free, same_class)
        for row in np.flatnonzero(frame.tracks < 0):
            frame.tracks[row] = count
            active.append(_ActiveTrack(count, frame.boxes[row], int(frame.labels[row]), frame.time, np.zeros(2)))
            count += 1
    return count


def _assign(
    frame: Sightings, rows: Integers, active: list[_ActiveTrack], free: list[int], same_class: bool
) -> list[int]:
    """Match rows of a frame with free tracks, and return the remaining free tracks."""
    if not len(rows) or not free:
        return free
    expected = np.array([active[number].predict(frame.time) for number in free])
    own = np.array([active[number].label for number in free]) if same_class else None
    pairs = match_boxes(frame.boxes[rows], frame.labels[rows] if same_class else None, expected, own, MIN_IOU, NEAR)
    taken = set()
    for here, there in pairs.tolist():
        row, number = int(rows[here]), free[there]
        frame.tracks[row] = active[number].number
        active[number].update(frame.boxes[row], int(frame.labels[row]), frame.time)
        taken.add(number)
    return [number for number in free if number not in taken]


def linked_share(frames: Sequence[Sightings]) -> float | None:
    """Return the share of moving boxes that are found again in the next frame; `None` with fewer than ten boxes.

    Stationary boxes are found in any other frame, so the share found in a distant frame is subtracted first. The share
    is near zero if frames are too far apart, or not in order of time.

    Args:
        frames: Frames in order of time.
    """
    steps = np.unique(np.linspace(0, len(frames) - 2, min(_PROBES, max(0, len(frames) - 1))).astype(int))
    near, far, total = 0, 0, 0
    for step in steps.tolist():
        distant = (step + len(frames) // 2) % len(frames)
        boxes = frames[step].boxes[frames[step].strength >= FIRST_STRENGTH]
        total += len(boxes)
        near += len(match_boxes(boxes, None, frames[step + 1].boxes, None, MIN_IOU))
        far += len(match_boxes(boxes, None, frames[distant].boxes, None, MIN_IOU)) if distant != step else 0
    if total < 10:
        return None
    still = far / total
    return 1.0 if still > 0.9 else (near / total - still) / (1 - still)
