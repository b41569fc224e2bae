"""Boxes of one recording linked over time, by Hungarian matching with motion; and whether that can be done at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cahqp.association import match_boxes

Floats = NDArray[np.float64]

MIN_IOU = 0.25
NEAR = 0.6
"""Distance of centres, in mean diagonals, up to which boxes still match: small things leap over their own width."""

LEAST_LINKED = 0.1
"""Share of a recording's moving boxes that must be found again in the next frame for its time to mean anything."""

LEAST_TYPICAL = 0.25
"""The same for the median of the recordings that have frames as far apart. On synthetic nights it is 0.44 to 0.50 at
0.2 seconds, 0.2 at 0.4 and near zero at one second, where single recordings still come to 0.38 by chance."""

_PROBES = 60


@dataclass
class Sightings:
    """The boxes of one frame.

    Attributes:
        time: Seconds from the start of the recording.
        boxes: (N, 4) xyxy in pixels of the original frame.
        sure: (N,) score as a multiple of the box's own threshold; 1 and more would be a label.
        labels: (N,) class indices.
        tracks: (N,) number of each box's track; filled by `link`.
    """

    time: float
    boxes: Floats
    sure: Floats
    labels: NDArray[np.int64]
    tracks: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass
class _Active:
    number: int
    box: Floats
    label: int
    time: float
    velocity: Floats
    length: int = 1

    def predicted(self, time: float) -> Floats:
        shift = self.velocity * (time - self.time)
        moved: Floats = self.box + np.concatenate([shift, shift])
        return moved

    def moved(self, box: Floats, label: int, time: float) -> None:
        passed = max(time - self.time, 1e-6)
        seen = ((box[:2] + box[2:]) - (self.box[:2] + self.box[2:])) / 2 / passed
        # The second sighting gives the speed; later ones steady it, because boxes tremble.
        share = 1.0 if self.length == 1 else 0.4
        self.velocity = share * seen + (1 - share) * self.velocity
        self.box, self.label, self.time, self.length = box, label, time, self.length + 1


def link(frames: Sequence[Sightings], max_gap: float, sure: float = 0.6) -> int:
    """Give every box the number of its track and return how many tracks there are.

    In each frame the surer boxes choose first, then the others take what is left, as in ByteTrack (Zhang et al., arXiv
    2110.06864); among them those of the track's class come before those of another one.

    Args:
        frames: In the order of time.
        max_gap: Longest time that a track may go unseen, in seconds.
        sure: Multiple of the threshold from which on a box chooses first.
    """
    active: list[_Active] = []
    count = 0
    for frame in frames:
        active = [track for track in active if frame.time - track.time <= max_gap]
        frame.tracks = np.full(len(frame.boxes), -1, np.int64)
        free = list(range(len(active)))
        first = frame.sure >= sure
        for rows, same_class in ((first, True), (first, False), (~first, True), (~first, False)):
            free = _assign(frame, np.flatnonzero(rows & (frame.tracks < 0)), active, free, same_class)
        for row in np.flatnonzero(frame.tracks < 0):
            frame.tracks[row] = count
            active.append(_Active(count, frame.boxes[row], int(frame.labels[row]), frame.time, np.zeros(2)))
            count += 1
    return count


def _assign(
    frame: Sightings, rows: NDArray[np.int64], active: list[_Active], free: list[int], same_class: bool
) -> list[int]:
    """Match rows of a frame with free tracks, and return the tracks that are still free."""
    if not len(rows) or not free:
        return free
    expected = np.array([active[number].predicted(frame.time) for number in free])
    own = np.array([active[number].label for number in free]) if same_class else None
    pairs = match_boxes(frame.boxes[rows], frame.labels[rows] if same_class else None, expected, own, MIN_IOU, NEAR)
    taken = set()
    for here, there in pairs.tolist():
        row, number = int(rows[here]), free[there]
        frame.tracks[row] = active[number].number
        active[number].moved(frame.boxes[row], int(frame.labels[row]), frame.time)
        taken.add(number)
    return [number for number in free if number not in taken]


def linked_share(frames: Sequence[Sightings], sure: float = 0.6) -> float | None:
    """Return the share of moving boxes that the next frame shows again; `None` where too few boxes tell.

    What stands still is found in any other frame too, so the share found in frames far away is taken out first. Frames
    that lie too far apart in time, or in the wrong order, come out near zero.

    Args:
        frames: In the order of time.
        sure: Multiple of the threshold from which on a box counts.
    """
    steps = np.unique(np.linspace(0, len(frames) - 2, min(_PROBES, max(0, len(frames) - 1))).astype(int))
    near, far, total = 0, 0, 0
    for step in steps.tolist():
        distant = (step + len(frames) // 2) % len(frames)
        boxes = frames[step].boxes[frames[step].sure >= sure]
        total += len(boxes)
        near += len(match_boxes(boxes, None, frames[step + 1].boxes, None, MIN_IOU))
        far += len(match_boxes(boxes, None, frames[distant].boxes, None, MIN_IOU)) if distant != step else 0
    if total < 10:
        return None
    still = far / total
    return 1.0 if still > 0.9 else (near / total - still) / (1 - still)
