"""Application of the rules to a tracked recording: candidates become detections, tracks, and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahqp.association import pairwise_iou
from cahqp.labels.candidates import Candidates, shortest_sides
from cahqp.labels.fusion import nms
from cahqp.labels.rules import (
    BELOW,
    DOUBTFUL,
    OVERLAP,
    TOO_MANY,
    Rules,
    box_entry,
    complete_record,
    moving_regions,
)  # fmt: skip
from cahqp.labels.shards.records import SCORE_DECIMALS
from cahqp.labels.tracking.linker import Sightings
from cahqp.labels.tracking.motion import ignore_shares
from cahqp.labels.tracking.temporal import FILLED, STANDING, STATIC, WEAK_TRACK, TemporalSettings, TrackedBoxes, smooth
from cahqp.motion import Motion

Floats = NDArray[np.float64]

MIN_STRENGTH = 0.7
"""Multiple of the threshold below which a box joins no track, because noise makes tracks. Of the values 0.4 to 0.7, the
highest gained most on synthetic nights of seeds 5 and 6, with a detector that detects nothing twice."""

SAME_OBJECT_IOU = 0.5
"""IoU above which the boxes of two tracks in one frame are one object. Smoothed boxes jitter less than raw boxes."""

_BELOW_ONE = float(np.nextafter(1.0, 0.0))


@dataclass(frozen=True)
class PreparedFrame:
    """A frame ready for tracking.

    Attributes:
        record: Line of the frame in its shard.
        candidates: All boxes of the frame.
        rows: (K,) rows of the boxes that may join tracks.
        sightings: Boxes of these rows.
        classes: (K, C) strength for each class at each of them, as multiples of the thresholds.
        motion: Moving pixels of the frame, if known.
    """

    record: Mapping[str, Any]
    candidates: Candidates
    rows: NDArray[np.int64]
    sightings: Sightings
    classes: Floats
    motion: Motion | None = None


def prepare(
    record: Mapping[str, Any], candidates: Candidates, rules: Rules, motion: Motion | None = None
) -> PreparedFrame:
    """Choose the boxes of a frame that may join tracks: one at each position, with enough strength."""
    rows, classes = _distinct(candidates, rules)
    strength = classes.max(1, initial=0.0)
    strong = strength >= MIN_STRENGTH
    rows, classes, strength = rows[strong], classes[strong], strength[strong]
    time = float(record["image"].get("timestamp") or 0.0)
    sightings = Sightings(time, candidates.boxes[rows], strength, candidates.labels[rows])
    return PreparedFrame(record, candidates, rows, sightings, classes, motion)


def _distinct(candidates: Candidates, rules: Rules) -> tuple[NDArray[np.int64], Floats]:
    """Return one row for each position, and the strength for every class at that position.

    A detector without suppression reports one object several times, with several classes. The box with the highest
    multiple of its threshold is kept. Evidence of the other boxes counts in the class vote of the track.

    Returns:
        (K,) rows, strongest first, and (K, C) multiples of the thresholds.
    """
    strength = candidates.scores / rules.limits[candidates.labels]
    rows = nms(candidates.boxes, strength, rules.options.nms_iou)
    classes = np.zeros((len(rows), len(rules.limits)))
    overlap = pairwise_iou(candidates.boxes[rows], candidates.boxes)
    positions, others = np.nonzero(overlap > rules.options.nms_iou)
    np.maximum.at(classes, (positions, candidates.labels[others]), strength[others])
    return rows, classes


def label_recording(
    frames: Sequence[PreparedFrame], rules: Rules, first_track: int
) -> tuple[list[dict[str, Any]], int]:
    """Return the label records of a recording's frames, and the first unused track number.

    Args:
        frames: Frames in order of time.
        rules: Rules to apply.
        first_track: Number of the first track.
    """
    sightings, classes = [frame.sightings for frame in frames], [frame.classes for frame in frames]
    tracked, next_track = smooth(sightings, classes, TemporalSettings(), first_track)
    return [_label_frame(frame, boxes, rules) for frame, boxes in zip(frames, tracked, strict=True)], next_track


def _label_frame(frame: PreparedFrame, tracked: TrackedBoxes, rules: Rules) -> dict[str, Any]:
    # A threshold above 1 excludes a class. Moving tracks gain strength, but must not reach such a threshold.
    excluded = rules.limits[tracked.labels] > 1
    tracked = replace(tracked, strength=np.where(excluded, np.minimum(tracked.strength, _BELOW_ONE), tracked.strength))
    height, width = frame.record["image"]["height"], frame.record["image"]["width"]
    boxes = np.clip(tracked.boxes, 0, [width, height, width, height])
    inside = shortest_sides(boxes) >= 1
    in_band = np.asarray(tracked.strength >= ignore_shares(rules.options, frame.motion, boxes))
    eligible = np.array([reason in ("", FILLED, WEAK_TRACK) for reason in tracked.reasons], np.bool_)
    alive = np.flatnonzero(inside & in_band & eligible)
    unsuppressed = set(alive[nms(boxes[alive], tracked.strength[alive], SAME_OBJECT_IOU)].tolist())
    parts: dict[str, list[dict[str, Any]]] = {"kept": [], "ignored": [], "rejected": []}
    for number in np.argsort(-tracked.strength, kind="stable").tolist():
        if not inside[number]:
            continue
        part, reason = _decide(tracked, number, number in unsuppressed, bool(in_band[number]))
        if part == "kept" and len(parts["kept"]) >= rules.options.max_boxes:
            part, reason = "rejected", TOO_MANY
        box = _entry(frame, tracked, number, boxes[number], rules)
        parts[part].append(box | ({"reason": reason} if reason else {}))
    for part, box in _untracked(frame, rules):
        parts[part].append(box)
    parts["ignored"] += moving_regions(frame.motion, parts["kept"])
    return complete_record(frame.record, parts, rules)


def _decide(tracked: TrackedBoxes, number: int, unsuppressed: bool, in_band: bool) -> tuple[str, str]:
    """Return the part of the record that a box belongs to, and the reason."""
    reason = tracked.reasons[number]
    if reason in (STATIC, STANDING):
        return "ignored", reason
    if reason and reason not in (FILLED, WEAK_TRACK):
        return "rejected", reason
    if not in_band:
        return "rejected", reason or BELOW
    if not unsuppressed:
        return "rejected", OVERLAP
    return ("kept", reason) if tracked.strength[number] >= 1 else ("ignored", reason or DOUBTFUL)


def _entry(frame: PreparedFrame, tracked: TrackedBoxes, number: int, box: Floats, rules: Rules) -> dict[str, Any]:
    label, row = int(tracked.labels[number]), int(tracked.rows[number])
    entry = box_entry(label, box, tracked.strength[number] * rules.limits[label])
    entry["track_id"] = int(tracked.tracks[number])
    entry["steady"] = round(float(tracked.steady[number]), SCORE_DECIMALS)
    if row >= 0:
        candidate = int(frame.rows[row])
        entry["detector_score"] = round(float(frame.candidates.scores[candidate]), SCORE_DECIMALS)
        entry |= frame.candidates.optional_values(candidate)
    return entry


def _untracked(frame: PreparedFrame, rules: Rules) -> list[tuple[str, dict[str, Any]]]:
    """Return part and entry of the candidates that joined no track: they overlap a tracked box, or lack strength.

    Those that move are ignored from `moving_ignore_share` of their threshold on.
    """
    candidates = frame.candidates
    others = np.setdiff1d(np.arange(len(candidates)), frame.rows)
    overlap = pairwise_iou(candidates.boxes[others], frame.sightings.boxes).max(1, initial=0.0)
    doubtful = np.zeros(len(others), np.bool_)
    if frame.motion is not None:
        shares = ignore_shares(rules.options, frame.motion, candidates.boxes[others])
        enough = candidates.scores[others] >= shares * rules.limits[candidates.labels[others]]
        doubtful = enough & frame.motion.moving(candidates.boxes[others])
    return [
        (
            "ignored" if ignored and near <= SAME_OBJECT_IOU else "rejected",
            box_entry(candidates.labels[row], candidates.boxes[row], candidates.scores[row])
            | {"reason": OVERLAP if near > SAME_OBJECT_IOU else DOUBTFUL if ignored else BELOW},
        )
        for row, near, ignored in zip(others.tolist(), overlap, doubtful.tolist(), strict=True)
    ]
