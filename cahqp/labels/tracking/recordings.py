"""The rules used on a whole recording: candidates become sightings, sightings tracks, and tracks labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahqp.association import pairwise_iou
from cahqp.labels.candidates import Candidates, distinct
from cahqp.labels.fusion import nms
from cahqp.labels.rules import BELOW, DOUBTFUL, OVERLAP, TOO_MANY, Rules, entry, finished
from cahqp.labels.shards.records import SCORE_DECIMALS
from cahqp.labels.tracking.linker import Sightings
from cahqp.labels.tracking.temporal import FILLED, STANDING, STATIC, WEAK_TRACK, TrackedBoxes, smooth

Floats = NDArray[np.float64]

LEAST_SURE = 0.7
"""Multiple of the threshold below which a box joins no track: lower ones are mostly noise, and noise makes tracks.
Of 0.4 to 0.7 the highest gained most on synthetic nights of seeds 5 and 6, with a detector that names nothing twice."""

SAME_PLACE = 0.5
"""Overlap above which two tracks' boxes in one frame are one object; boxes along tracks tremble less than raw ones."""


_BELOW = float(np.nextafter(1.0, 0.0))


@dataclass(frozen=True)
class Prepared:
    """A frame on its way into tracks.

    Attributes:
        record: Its line in the shards.
        candidates: Its boxes.
        rows: (K,) the boxes that tracks are made of.
        sightings: Those boxes.
        classes: (K, C) how sure the detector was of each class at each of them.
    """

    record: Mapping[str, Any]
    candidates: Candidates
    rows: NDArray[np.int64]
    sightings: Sightings
    classes: Floats


def prepare(record: Mapping[str, Any], candidates: Candidates, rules: Rules) -> Prepared:
    """Choose the boxes of a frame that tracks are made of: one for each place, none that is hopeless."""
    rows, classes = distinct(candidates, rules.limits, rules.nms_iou)
    sure = classes.max(1, initial=0.0)
    good = sure >= LEAST_SURE
    rows, classes, sure = rows[good], classes[good], sure[good]
    time = float(record["image"].get("timestamp") or 0.0)
    sightings = Sightings(time, candidates.boxes[rows], sure, candidates.labels[rows])
    return Prepared(record, candidates, rows, sightings, classes)


def decide(frames: Sequence[Prepared], rules: Rules, first_track: int) -> tuple[list[dict[str, Any]], int]:
    """Return the records of a recording's frames, and the number that the next track may have.

    Args:
        frames: In the order of time.
        rules: How to decide.
        first_track: Number of the first track.
    """
    assert rules.temporal is not None
    sightings, classes = [f.sightings for f in frames], [f.classes for f in frames]
    settled, following = smooth(sightings, classes, rules.temporal, first_track)
    settled = [_none_of_never(found, rules) for found in settled]
    return [_record(frame, found, rules) for frame, found in zip(frames, settled, strict=True)], following


def _none_of_never(settled: TrackedBoxes, rules: Rules) -> TrackedBoxes:
    """Return the boxes, those of a class that is to have no labels below its threshold: moving ones count more."""
    never = rules.limits[settled.labels] > 1
    return replace(settled, sure=np.where(never, np.minimum(settled.sure, _BELOW), settled.sure))


def _record(frame: Prepared, settled: TrackedBoxes, rules: Rules) -> dict[str, Any]:
    height, width = frame.record["image"]["height"], frame.record["image"]["width"]
    boxes = np.clip(settled.boxes, 0, [width, height, width, height])
    inside = np.asarray(((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1))
    doubtful = np.asarray(settled.sure >= rules.ignore_share)
    alive = np.flatnonzero(inside & doubtful & _is_candidate(settled))
    stays = set(alive[nms(boxes[alive], settled.sure[alive], SAME_PLACE)].tolist())
    parts: dict[str, list[dict[str, Any]]] = {"kept": [], "ignored": [], "rejected": []}
    for number in np.argsort(-settled.sure, kind="stable").tolist():
        if not inside[number]:
            continue
        part, reason = _fate(settled, number, number in stays, bool(doubtful[number]))
        if part == "kept" and len(parts["kept"]) >= rules.max_boxes:
            part, reason = "rejected", TOO_MANY
        parts[part].append(_entry(frame, settled, number, boxes[number], reason, rules))
    parts["rejected"] += _untracked(frame)
    return finished(frame.record, parts, rules)


def _is_candidate(settled: TrackedBoxes) -> NDArray[np.bool_]:
    return np.array([reason in ("", FILLED, WEAK_TRACK) for reason in settled.reasons], np.bool_)


def _fate(settled: TrackedBoxes, number: int, stays: bool, doubtful: bool) -> tuple[str, str]:
    reason = settled.reasons[number]
    if reason in (STATIC, STANDING):
        return "ignored", reason
    if reason and reason not in (FILLED, WEAK_TRACK):
        return "rejected", reason
    if not doubtful:
        return "rejected", reason or BELOW
    if not stays:
        return "rejected", OVERLAP
    return ("kept", reason) if settled.sure[number] >= 1 else ("ignored", reason or DOUBTFUL)


def _entry(
    frame: Prepared, settled: TrackedBoxes, number: int, box: Floats, reason: str, rules: Rules
) -> dict[str, Any]:
    label, row = int(settled.labels[number]), int(settled.rows[number])
    found = entry(label, box, settled.sure[number] * rules.limits[label])
    found["track_id"] = int(settled.tracks[number])
    found["steady"] = round(float(settled.steady[number]), SCORE_DECIMALS)
    if row >= 0:
        own = int(frame.rows[row])
        found["detector_score"] = round(float(frame.candidates.scores[own]), SCORE_DECIMALS)
        found |= frame.candidates.known(own)
    return found | ({"reason": reason} if reason else {})


def _untracked(frame: Prepared) -> list[dict[str, Any]]:
    """Return the candidates that no track was made of: they lie on one that was, or were hopeless."""
    candidates = frame.candidates
    others = np.setdiff1d(np.arange(len(candidates)), frame.rows)
    overlap = pairwise_iou(candidates.boxes[others], frame.sightings.boxes).max(1, initial=0.0)
    return [
        entry(candidates.labels[row], candidates.boxes[row], candidates.scores[row])
        | {"reason": OVERLAP if near > SAME_PLACE else BELOW}
        for row, near in zip(others.tolist(), overlap, strict=True)
    ]
