"""Judgement of boxes by their tracks: reject flicker, fill gaps, vote on classes, find lamps and signs.

An object that is detected well from time to time was also there in between. A box that appears for a frame or two in
the middle of a recording is a false alarm. Scores are given as strength: multiples of the threshold of a class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cahqp.association import pairwise_iou
from cahqp.labels.tracking.linker import Floats, Integers, Sightings, link, linked_share

# Values of `reason` in label files.
FLICKER, WEAK_TRACK, STANDING, STATIC = "flicker", "weak track", "stands still, unsure", "static false alarm"
FILLED = "filled gap"

MIN_LINKED = 0.1
"""Smallest share of a recording's moving boxes that must be found again in the next frame for tracking."""

MIN_LINKED_MEDIAN = 0.25
"""Smallest median of that share over recordings with the same time between frames. On synthetic nights the median is
0.44 to 0.50 at 0.2 seconds, 0.2 at 0.4 and near zero at one second, where single recordings reach 0.38 by chance."""

BLOCK = 1000
"""Largest number of frames that are tracked together, so that memory does not grow with the recording."""

_BEST_SHARE = 0.5
"""Share of a track's boxes, the strongest, whose mean is the strength of the track."""

_REACH = 1.5
"""Width in frames of the smoothing of boxes along a track; twice as many already cut corners."""


@dataclass(frozen=True)
class TemporalSettings:
    """Requirements for tracks. The values were chosen on synthetic nights with five frames a second.

    Attributes:
        max_gap: Longest time without a detection in seconds; at least two and a half frame intervals.
        min_length: Tracks with fewer boxes are flicker, unless they begin or end with the recording.
        short_strength: Strength from which a short track is kept.
        static_seconds: Duration from which a weak box that never moves is a lamp or a sign; 0 turns this off.
        static_strength: Strength below which a box is weak for that.
        stationary_weight: Factor on the strength of tracks that do not move: lamps, signs and reflections stand still.
            A track that only this factor keeps below its threshold is ignored in training: it may be a waiting car.
        moving: Factor for tracks that move further than the diagonal of their box; in between it is interpolated.
    """

    max_gap: float = 0.5
    min_length: int = 3
    short_strength: float = 2.0
    static_seconds: float = 30.0
    static_strength: float = 1.5
    stationary_weight: float = 0.5
    moving: float = 1.1


@dataclass(frozen=True)
class TrackedBoxes:
    """Boxes of one frame after tracking.

    Attributes:
        boxes: (N, 4) xyxy, smoothed along the track.
        strength: (N,) strength of the track.
        labels: (N,) class indices, voted along the track.
        tracks: (N,) track numbers.
        rows: (N,) rows of the boxes in the frame; -1 for a box that fills a gap.
        steady: (N,) share of the track's frames with a detection, 0..1.
        reasons: Why a box is no label, or how it was made; empty for a detected label.
    """

    boxes: Floats
    strength: Floats
    labels: Integers
    tracks: Integers
    rows: Integers
    steady: Floats
    reasons: tuple[str, ...]


class _Box(NamedTuple):
    """One row of `TrackedBoxes`."""

    box: Floats
    strength: float
    label: int
    track: int
    row: int
    steady: float
    reason: str


@dataclass
class _Track:
    """Detections of one object: frame numbers, times, rows, boxes, strength, and strength of each class."""

    number: int
    frames: Integers
    times: Floats
    rows: Integers
    boxes: Floats
    strength: Floats
    classes: Floats


def why_not(frames: Sequence[tuple[float | None, tuple[int, int]]]) -> str | None:
    """Return why a recording cannot be tracked, `None` if its times and sizes allow it.

    Args:
        frames: Timestamp and size of each frame, in order of time.
    """
    times = [time for time, _ in frames]
    if any(time is None for time in times):
        return "frames without a time stamp"
    if len(set(times)) < len(times):
        return "several frames with one time stamp"
    if len(frames) < 5:
        return "fewer than five frames"
    return "frames of several sizes" if len({size for _, size in frames}) > 1 else None


def too_sparse(frames: Sequence[Sightings], median: float | None) -> str | None:
    """Return why boxes cannot be tracked from frame to frame, `None` if they can.

    Args:
        frames: Frames in order of time.
        median: Median of `linked_share` over recordings with the same time between frames; `None` if unknown.
    """
    share = linked_share(frames)
    if share is None or median is None:
        return "too few boxes to tell whether frames follow each other"
    if share < MIN_LINKED or median < MIN_LINKED_MEDIAN:
        apart = track_interval([frame.time for frame in frames])
        return f"frames too far apart, or in no order: {apart:g} s, and boxes are not in the next one"
    return None


def track_interval(times: Sequence[float]) -> float:
    """Return the median time between frames in seconds."""
    return float(np.median(np.diff(times))) if len(times) > 1 else 0.0


def smooth(
    frames: Sequence[Sightings], classes: Sequence[Floats], settings: TemporalSettings, first_track: int = 0
) -> tuple[list[TrackedBoxes], int]:
    """Track the boxes of a recording, and judge them by their tracks.

    Args:
        frames: Frames in order of time; sets their `tracks`.
        classes: For each frame, (N, C) strength of each class at each box.
        settings: Requirements for tracks.
        first_track: Number of the first track.

    Returns:
        The boxes of each frame, and the first unused track number.
    """
    times = [frame.time for frame in frames]
    usual = track_interval(times)
    gap = max(settings.max_gap, 2.5 * usual)
    count = link(frames, gap)
    tracks = _collect(frames, classes)
    runs = _runs(np.array(times), gap)
    static = _static_tracks(tracks, settings)
    boxes: dict[int, list[_Box]] = defaultdict(list)
    for track in tracks:
        static_reason = STATIC if track.number in static else ""
        for frame, box in _judge(track, times, settings, static_reason, runs, usual or 1.0):
            boxes[frame].append(box._replace(track=box.track + first_track))
    return [_stack(boxes[number]) for number in range(len(frames))], first_track + count


def _stack(rows: Sequence[_Box]) -> TrackedBoxes:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(_Box._fields)
    kinds = (np.float64, np.float64, np.int64, np.int64, np.int64, np.float64)
    values: list[Any] = [np.array(column, kind) for column, kind in zip(columns, kinds, strict=False)]
    boxes, strength, labels, tracks, numbers, steady = values
    return TrackedBoxes(boxes.reshape(-1, 4), strength, labels, tracks, numbers, steady, tuple(columns[-1]))


def _collect(frames: Sequence[Sightings], classes: Sequence[Floats]) -> list[_Track]:
    places: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, frame in enumerate(frames):
        for row, track in enumerate(frame.tracks.tolist()):
            places[track].append((number, row))
    return [
        _Track(
            number,
            np.array([frame for frame, _ in rows]),
            np.array([frames[frame].time for frame, _ in rows]),
            np.array([row for _, row in rows]),
            np.array([frames[frame].boxes[row] for frame, row in rows]),
            np.array([frames[frame].strength[row] for frame, row in rows]),
            np.array([classes[frame][row] for frame, row in rows]),
        )
        for number, rows in sorted(places.items())
    ]


def _judge(
    track: _Track,
    times: Sequence[float],
    settings: TemporalSettings,
    static_reason: str,
    runs: Integers,
    usual: float,
) -> list[tuple[int, _Box]]:
    """Return the boxes of a track, each with the number of its frame."""
    label = int((track.classes**2).sum(0).argmax())
    strength = track.classes[:, label]
    if len(track.frames) < settings.min_length:
        first, last = int(track.frames[0]), int(track.frames[-1])
        at_border = first - runs[first, 0] < settings.min_length - 1 or runs[last, 1] - last < settings.min_length
        if at_border:  # too short to know more than the scores of its boxes
            return _detected(track, track.boxes, strength, label, 1.0, "")
        if track.strength.max() < settings.short_strength:
            return _detected(track, track.boxes, strength, label, 0.0, FLICKER)
    best = np.sort(strength)[::-1][: max(1, int(np.ceil(len(strength) * _BEST_SHARE)))]
    boxes = _smooth_boxes(track, usual)
    seen = float(best.mean())
    still, moving = settings.stationary_weight, settings.moving
    reached = seen * (still + (moving - still) * min(1.0, _distance(boxes)))
    reason = static_reason or ("" if reached >= 1 else (STANDING if seen >= 1 else WEAK_TRACK))
    steady = len(strength) / float(track.frames[-1] - track.frames[0] + 1)
    detected = _detected(track, boxes, np.full(len(boxes), reached), label, steady, reason)
    return detected if reason else detected + _fill_gaps(track, boxes, times, detected[0][1])


def _distance(boxes: Floats) -> float:
    """Return the distance from the first box of a track to the last, in mean diagonals."""
    first, last = ((box[:2] + box[2:]) / 2 for box in (boxes[0], boxes[-1]))
    return float(np.linalg.norm(last - first)) / _diagonal(boxes)


def _diagonal(boxes: Floats) -> float:
    """Return the mean diagonal in pixels."""
    return max(float(np.linalg.norm(boxes[:, 2:] - boxes[:, :2], axis=1).mean()), 1e-9)


def _detected(
    track: _Track, boxes: Floats, strength: Floats, label: int, steady: float, reason: str
) -> list[tuple[int, _Box]]:
    columns = zip(track.frames.tolist(), track.rows.tolist(), boxes, strength.tolist(), strict=True)
    return [(frame, _Box(box, own, label, track.number, row, steady, reason)) for frame, row, box, own in columns]


def _fill_gaps(track: _Track, boxes: Floats, times: Sequence[float], like: _Box) -> list[tuple[int, _Box]]:
    """Return boxes like another one for the frames between detections, linearly interpolated in time."""
    filled = []
    for n in np.flatnonzero(np.diff(track.frames) > 1):
        for frame in range(int(track.frames[n]) + 1, int(track.frames[n + 1])):
            share = (times[frame] - track.times[n]) / (track.times[n + 1] - track.times[n])
            box = (1 - share) * boxes[n] + share * boxes[n + 1]
            filled.append((frame, like._replace(box=box, row=-1, reason=FILLED)))
    return filled


def _runs(times: Floats, gap: float) -> Integers:
    """Return (N, 2): for each frame, first and end of the run of frames around it without a gap."""
    edges = np.concatenate([[0], np.flatnonzero(np.diff(times) > gap) + 1, [len(times)]])
    run = np.searchsorted(edges, np.arange(len(times)), side="right") - 1
    return np.stack([edges[run], edges[run + 1]], 1)


def _smooth_boxes(track: _Track, usual: float) -> Floats:
    """Return the boxes on lines fitted to neighbouring boxes, weighted by strength."""
    boxes = track.boxes.copy()
    for n, time in enumerate(track.times):
        away = (track.times - time) / usual  # in intervals, because frames may be missing
        if np.count_nonzero(np.abs(away) <= 2 * _REACH + 1e-6) < 3:
            continue
        weight = np.exp(-((away / _REACH) ** 2)) * track.strength
        zero, one, two = weight.sum(), (weight * away).sum(), (weight * away**2).sum()
        spread = zero * two - one**2
        if spread > 1e-6 * zero**2:
            boxes[n] = (two * (weight @ track.boxes) - one * ((weight * away) @ track.boxes)) / spread
    return boxes


def _static_tracks(tracks: Sequence[_Track], settings: TemporalSettings) -> set[int]:
    """Return the tracks that together stay at one position for long, and are weak: lamps, signs, shadows."""
    still = [track for track in tracks if settings.static_seconds and _is_still(track)]
    if not still:
        return set()
    means = np.array([track.boxes.mean(0) for track in still])
    static: set[int] = set()
    for mean in means:  # row by row, because a long recording has thousands
        group = [still[column] for column in np.flatnonzero(pairwise_iou(mean[None], means)[0] >= 0.6)]
        times = np.concatenate([track.times for track in group])
        strength = np.concatenate([track.strength for track in group])
        if np.ptp(times) >= settings.static_seconds and strength.mean() < settings.static_strength:
            static |= {track.number for track in group}
    return static


def _is_still(track: _Track) -> bool:
    centres = (track.boxes[:, :2] + track.boxes[:, 2:]) / 2
    return len(track.frames) >= 3 and bool(np.ptp(centres, axis=0).max() < 0.15 * _diagonal(track.boxes))
