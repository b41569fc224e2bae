"""What time says of the boxes of a recording: flickers go, gaps are filled, classes are voted, lamps are found.

A box is judged by its track: an object that is seen well now and then was there in between, and what shows up for a
frame or two in the middle of a recording was not. Scores are multiples of the box's own threshold throughout.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cahqp.association import pairwise_iou
from cahqp.labels.tracking.linker import LEAST_LINKED, LEAST_TYPICAL, Floats, Sightings, link, linked_share

FLICKER, WEAK_TRACK, STANDING, STATIC = "flicker", "weak track", "stands still, unsure", "static false alarm"
FILLED = "filled gap"

_BEST_SHARE = 0.5
"""Share of a track's sightings, the surest, whose mean is how sure the track is."""

_REACH = 1.5
"""Frames over which a track's boxes are smoothed; twice as many already cut corners."""

BLOCK = 1000
"""Frames of a recording that are looked at together, so that memory does not grow with its length."""


@dataclass(frozen=True)
class TemporalSettings:
    """How much is asked of a track. The values were chosen on synthetic nights at five frames a second.

    Attributes:
        max_gap: Longest time without a sighting in seconds; never less than two and a half frame intervals.
        shortest: Sightings below which a track is a flicker, unless it begins or ends with the recording.
        alone: Multiple of the threshold from which on a short track is believed all the same.
        static_seconds: Time after which a weak box that never moves is a lamp or a sign; 0 is off.
        static_sure: Multiple of the threshold up to which a box counts as weak for that.
        stationary_weight: What a track that stays where it is counts of how sure it is: lamps, signs and reflections
            stand. One
            that would be a label but for this is ignored in training, for it may be a car that waits.
        moving: What one counts that comes further than its own diagonal; in between it grows evenly.
    """

    max_gap: float = 0.5
    shortest: int = 3
    alone: float = 2.0
    static_seconds: float = 30.0
    static_sure: float = 1.5
    stationary_weight: float = 0.5
    moving: float = 1.1


@dataclass(frozen=True)
class TrackedBoxes:
    """One frame's boxes after its recording was looked at.

    Attributes:
        boxes: (N, 4) xyxy, smoothed along the track.
        sure: (N,) multiple of the threshold that the track reaches there.
        labels: (N,) class indices, voted along the track.
        tracks: (N,) number of the track.
        rows: (N,) which box of the frame it was; -1 for one that fills a gap.
        steady: (N,) share of the track's frames in which it was seen, 0..1.
        reasons: Why a box is no label, or how it came to be; empty for one that was simply seen.
    """

    boxes: Floats
    sure: Floats
    labels: NDArray[np.int64]
    tracks: NDArray[np.int64]
    rows: NDArray[np.int64]
    steady: Floats
    reasons: tuple[str, ...]


@dataclass
class _Track:
    """The sightings of one object: frame numbers, times, rows, boxes, and its sureness of each class."""

    number: int
    frames: NDArray[np.int64]
    times: Floats
    rows: NDArray[np.int64]
    boxes: Floats
    sure: Floats
    classes: Floats


def why_not(frames: Sequence[tuple[float | None, tuple[int, int]]]) -> str | None:
    """Return why a recording cannot be looked at over time, `None` where its times and sizes allow it.

    Args:
        frames: Time stamp and size of each frame, in the order of time.
    """
    times = [time for time, _ in frames]
    if any(time is None for time in times):
        return "frames without a time stamp"
    if len({time for time in times}) < len(times):
        return "several frames with one time stamp"
    if len(frames) < 5:
        return "fewer than five frames"
    if len({size for _, size in frames}) > 1:
        return "frames of several sizes"
    return None


def too_sparse(frames: Sequence[Sightings], typical: float | None) -> str | None:
    """Return why boxes cannot be followed from frame to frame, `None` where they can.

    Args:
        frames: In the order of time.
        typical: Median of `linked_share` over recordings with frames as far apart; `None` where none of them can tell.
    """
    share = linked_share(frames)
    if share is None or typical is None:
        return "too few boxes to tell whether frames follow each other"
    if share < LEAST_LINKED or typical < LEAST_TYPICAL:
        apart = interval([frame.time for frame in frames])
        return f"frames too far apart, or in no order: {apart:g} s, and boxes are not in the next one"
    return None


def interval(times: Sequence[float]) -> float:
    """Return the usual time between frames in seconds."""
    return float(np.median(np.diff(times))) if len(times) > 1 else 0.0


def smooth(
    frames: Sequence[Sightings], classes: Sequence[Floats], settings: TemporalSettings, first_track: int = 0
) -> tuple[list[TrackedBoxes], int]:
    """Judge the boxes of a recording by their tracks.

    Args:
        frames: In the order of time; their `tracks` are filled.
        classes: For each frame (N, C), how sure the detector was of each class at each box.
        settings: How much is asked of a track.
        first_track: Number of the first track.

    Returns:
        The frames, and the number that the next track may have.
    """
    times = [frame.time for frame in frames]
    usual = interval(times)
    gap = max(settings.max_gap, 2.5 * usual)
    count = link(frames, gap)
    tracks = _collect(frames, classes)
    runs = _runs(np.array(times), gap)
    static = _static(tracks, settings)
    parts: dict[int, list[TrackedBoxes]] = defaultdict(list)
    for track in tracks:
        for frame, settled in _judged(track, frames, settings, track.number in static, runs, usual or 1.0):
            parts[frame].append(replace(settled, tracks=settled.tracks + first_track))
    return [_joined(parts[number]) for number in range(len(frames))], first_track + count


def _collect(frames: Sequence[Sightings], classes: Sequence[Floats]) -> list[_Track]:
    places: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, frame in enumerate(frames):
        for row, track in enumerate(frame.tracks.tolist()):
            places[track].append((number, row))
    return [
        _Track(
            number,
            np.array([frame for frame, _ in found]),
            np.array([frames[frame].time for frame, _ in found]),
            np.array([row for _, row in found]),
            np.array([frames[frame].boxes[row] for frame, row in found]),
            np.array([frames[frame].sure[row] for frame, row in found]),
            np.array([classes[frame][row] for frame, row in found]),
        )
        for number, found in sorted(places.items())
    ]


def _judged(
    track: _Track,
    frames: Sequence[Sightings],
    settings: TemporalSettings,
    static: bool,
    runs: NDArray[np.int64],
    usual: float,
) -> list[tuple[int, TrackedBoxes]]:
    """Return the track's boxes, each with the number of its frame."""
    short = len(track.frames) < settings.shortest
    first, last = int(track.frames[0]), int(track.frames[-1])
    at_border = first - runs[first, 0] < settings.shortest - 1 or runs[last, 1] - last < settings.shortest
    label = int((track.classes**2).sum(0).argmax())
    own = track.classes[:, label]
    if short and at_border:  # too little is seen of it to say more than its own score does
        return [_sighting(track, n, track.boxes[n], float(own[n]), label, 1.0, "") for n in range(len(own))]
    if short and track.sure.max() < settings.alone:
        return [_sighting(track, n, track.boxes[n], float(own[n]), label, 0.0, FLICKER) for n in range(len(own))]
    best = np.sort(own)[::-1][: max(1, int(np.ceil(len(own) * _BEST_SHARE)))]
    boxes = _smoothed(track, usual)
    seen = float(best.mean())
    reached = seen * (
        settings.stationary_weight + (settings.moving - settings.stationary_weight) * min(1.0, _way(boxes))
    )
    reason = STATIC if static else ("" if reached >= 1 else (STANDING if seen >= 1 else WEAK_TRACK))
    steady = len(own) / float(track.frames[-1] - track.frames[0] + 1)
    found = [_sighting(track, n, boxes[n], reached, label, steady, reason) for n in range(len(own))]
    return found if reason else found + _filled(track, boxes, frames, reached, label, steady)


def _way(boxes: Floats) -> float:
    """Return how far a track came from its first box to its last, in mean diagonals of its boxes."""
    first, last = ((box[:2] + box[2:]) / 2 for box in (boxes[0], boxes[-1]))
    diagonal = float(np.linalg.norm(boxes[:, 2:] - boxes[:, :2], axis=1).mean())
    return float(np.linalg.norm(last - first)) / max(diagonal, 1e-9)


def _sighting(
    track: _Track, n: int, box: Floats, sure: float, label: int, steady: float, reason: str
) -> tuple[int, TrackedBoxes]:
    return int(track.frames[n]), _one(box, sure, label, track.number, int(track.rows[n]), steady, reason)


def _one(box: Floats, sure: float, label: int, track: int, row: int, steady: float, reason: str) -> TrackedBoxes:
    return TrackedBoxes(
        box[None],
        np.array([sure]),
        np.array([label]),
        np.array([track]),
        np.array([row]),
        np.array([steady]),
        (reason,),
    )


def _filled(
    track: _Track, boxes: Floats, frames: Sequence[Sightings], sure: float, label: int, steady: float
) -> list[tuple[int, TrackedBoxes]]:
    """Return boxes for the frames between sightings, on the straight line in time."""
    found = []
    for n in np.flatnonzero(np.diff(track.frames) > 1):
        for frame in range(int(track.frames[n]) + 1, int(track.frames[n + 1])):
            share = (frames[frame].time - track.times[n]) / (track.times[n + 1] - track.times[n])
            box = (1 - share) * boxes[n] + share * boxes[n + 1]
            found.append((frame, _one(box, sure, label, track.number, -1, steady, FILLED)))
    return found


def _runs(times: Floats, gap: float) -> NDArray[np.int64]:
    """Return (N, 2) for each frame the first and the end of the frames round it between which no gap lies."""
    edges = np.concatenate([[0], np.flatnonzero(np.diff(times) > gap) + 1, [len(times)]])
    run = np.searchsorted(edges, np.arange(len(times)), side="right") - 1
    return np.stack([edges[run], edges[run + 1]], 1)


def _smoothed(track: _Track, usual: float) -> Floats:
    """Return the boxes, each on the line that fits it and its neighbours best, the surer ones counting more."""
    boxes = track.boxes.copy()
    for n, time in enumerate(track.times):
        away = (track.times - time) / usual  # in usual intervals: frames may be missing in between
        if np.count_nonzero(np.abs(away) <= 2 * _REACH + 1e-6) < 3:
            continue
        weight = np.exp(-((away / _REACH) ** 2)) * track.sure
        zero, one, two = weight.sum(), (weight * away).sum(), (weight * away**2).sum()
        spread = zero * two - one**2
        if spread > 1e-6 * zero**2:
            boxes[n] = (two * (weight @ track.boxes) - one * ((weight * away) @ track.boxes)) / spread
    return boxes


def _static(tracks: Sequence[_Track], settings: TemporalSettings) -> set[int]:
    """Return the tracks that together stand at one place for long, and never surely: a lamp, a sign, a shadow."""
    if not settings.static_seconds:
        return set()
    still = [track for track in tracks if _stands(track)]
    if not still:
        return set()
    places = np.array([track.boxes.mean(0) for track in still])
    found: set[int] = set()
    for place in places:  # one row at a time: a long recording has thousands
        group = [still[column] for column in np.flatnonzero(pairwise_iou(place[None], places)[0] >= 0.6)]
        times = np.concatenate([track.times for track in group])
        sure = np.concatenate([track.sure for track in group])
        if np.ptp(times) >= settings.static_seconds and sure.mean() < settings.static_sure:
            found |= {track.number for track in group}
    return found


def _stands(track: _Track) -> bool:
    if len(track.frames) < 3:
        return False
    centres = (track.boxes[:, :2] + track.boxes[:, 2:]) / 2
    diagonal = float(np.linalg.norm(track.boxes[:, 2:] - track.boxes[:, :2], axis=1).mean())
    return bool(np.ptp(centres, axis=0).max() < 0.15 * max(diagonal, 1e-9))


def _joined(parts: Sequence[TrackedBoxes]) -> TrackedBoxes:
    if not parts:
        empty = np.zeros(0, np.int64)
        return TrackedBoxes(np.zeros((0, 4)), np.zeros(0), empty, empty, empty, np.zeros(0), ())
    columns = ("boxes", "sure", "labels", "tracks", "rows", "steady")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in columns}
    return TrackedBoxes(**joined, reasons=tuple(reason for part in parts for reason in part.reasons))
