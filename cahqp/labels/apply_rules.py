"""Application of the rules to the candidates of all recordings.

Reads the shards of candidates and writes one shard of labels. Recordings are read in blocks, so memory does not grow
with the number of boxes, and equal candidates give equal bytes.
"""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cahqp.association import LEAST_FRAMES
from cahqp.labels.calibration.curves import Curve
from cahqp.labels.calibration.thresholds import MIN_THRESHOLD, Histogram, dynamic
from cahqp.labels.candidates import Candidates, calibrated, from_record
from cahqp.labels.fusion import nms
from cahqp.labels.review import Review
from cahqp.labels.rules import CANDIDATE_FLOOR, Rules, label_frame
from cahqp.labels.shards.records import decode, dumps
from cahqp.labels.shards.shards import ShardIndex, index_shards
from cahqp.labels.tracking.linker import Sightings, linked_share
from cahqp.labels.tracking.motion import MotionOf, RecordingMotion
from cahqp.labels.tracking.recordings import label_recording, prepare
from cahqp.labels.tracking.stationary import OccupiedPositions, probes
from cahqp.labels.tracking.temporal import BLOCK, too_sparse, track_interval, why_not

_PROBED, _MIN_PROBED, _PROBED_FRAMES = 32, 4, 120
"""Recordings that are probed for whether boxes can be tracked: in all, at least for each time between frames; and the
frames of each."""


@dataclass
class Decisions:
    """Summary of the labels.

    Attributes:
        tracks: Number of tracks.
        recordings: Number of recordings with tracks.
        untracked: Number of recordings without tracks, by reason.
        untracked_blocks: Number of untracked blocks in recordings that have tracks elsewhere, by reason.
        thresholds: Lowest score of a label by class.
        review: Frames to review first.
        reasons: Number of rejected and ignored boxes by reason.
    """

    tracks: int = 0
    recordings: int = 0
    untracked: Counter[str] = field(default_factory=Counter)
    untracked_blocks: Counter[str] = field(default_factory=Counter)
    thresholds: dict[str, float] = field(default_factory=dict)
    review: Review = field(default_factory=Review)
    reasons: Counter[str] = field(default_factory=Counter)

    def add_recording(self, reasons: Sequence[str | None]) -> None:
        """Count a recording.

        Args:
            reasons: For each block, why it was not tracked; `None` if it was.
        """
        self.recordings += None in reasons
        given = [reason for reason in reasons if reason is not None]
        if len(given) == len(reasons) and len(set(given)) == 1:
            self.untracked.update(given[:1])
        else:
            self.untracked_blocks.update(given)

    def add_frame(self, record: Mapping[str, Any]) -> None:
        """Count the boxes of a frame, and rank it for review."""
        self.review.add(record)
        self.reasons.update(box["reason"] for box in record["rejected"] + record["ignored"])

    def to_json(self) -> dict[str, Any]:
        """Return the contents of `decisions.json`."""
        return {
            "thresholds": {name: round(value, 6) for name, value in self.thresholds.items()},
            "temporal": {
                "recordings": self.recordings,
                "tracks": self.tracks,
                "left_alone": dict(self.untracked),
                "left_alone_in_part": dict(self.untracked_blocks),
            },
            "reasons": dict(sorted(self.reasons.items())),
        }


@dataclass(frozen=True)
class _FrameRow:
    """A frame in the index of the shards, with its order in the recording and its height and width."""

    row: int
    order: tuple[float, int, int]
    time: float | None
    size: tuple[int, int]


def apply_rules(shards: Path, output: Path, rules: Rules) -> Decisions:
    """Turn candidates into labels.

    Args:
        shards: Directory of the shards of candidates.
        output: Directory for the shard of labels; it is replaced.
        rules: Rules to apply.

    Raises:
        RunError: A shard is damaged.
    """
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    with ExitStack() as stack:
        reader = _Reader(stack, index_shards(shards), rules.curves)
        recordings, histograms = _survey(reader, rules)
        rules = _with_thresholds(rules, histograms)
        decisions = Decisions(thresholds=rules.by_class)
        file = stack.enter_context((output / "rank-00000.jsonl").open("wb"))
        linked = _linked_shares(recordings, reader, rules) if rules.options.temporal else {}
        for name, frames in recordings.items():
            for record in _label_recording(name, frames, reader, rules, linked, decisions):
                if not rules.plain:
                    decisions.add_frame(record)
                file.write(dumps(record).encode() + b"\n")
    return decisions


class _Reader:
    """Records and calibrated candidates by row of the index."""

    def __init__(self, stack: ExitStack, index: ShardIndex, curves: Sequence[Curve] | None) -> None:
        self.index, self.curves = index, curves
        self._files = [stack.enter_context(path.open("rb")) for path in index.paths]

    def __call__(self, row: int) -> tuple[dict[str, Any], Candidates]:
        file = self._files[self.index.shards[row]]
        file.seek(self.index.offsets[row])
        record = decode(file.readline())
        return record, calibrated(from_record(record), self.curves)

    def rows(self) -> Iterator[int]:
        """Yield one row for each position, also if two ranks labelled the frame."""
        yield from np.flatnonzero(np.diff(self.index.positions, prepend=-1) != 0).tolist()


def _survey(reader: _Reader, rules: Rules) -> tuple[dict[tuple[str, str], list[_FrameRow]], dict[str, Histogram]]:
    """Return the frames of each recording in order of time, and score histograms by class if thresholds need them."""
    recordings: dict[tuple[str, str], list[_FrameRow]] = {}
    histograms = {name: Histogram() for name in rules.classes}
    for row in reader.rows():
        record, candidates = reader(row)
        image = record["image"]
        time = image.get("timestamp")
        order = (0.0 if time is None else float(time), int(image["frame"]), row)
        frame = _FrameRow(row, order, time, (image["height"], image["width"]))
        recordings.setdefault((image["camera"], image["recording"]), []).append(frame)
        if rules.source_means is None and rules.options.top_share is None:
            continue
        if rules.source_means is not None:  # they, too, were taken after suppression
            candidates = candidates[nms(candidates.boxes, candidates.scores, rules.options.nms_iou)]
        for label in np.unique(candidates.labels).tolist():
            histograms[rules.classes[label]].add(candidates.scores[candidates.labels == label])
    return {name: sorted(frames, key=lambda frame: frame.order) for name, frames in recordings.items()}, histograms


def _with_thresholds(rules: Rules, histograms: Mapping[str, Histogram]) -> Rules:
    """Return the rules with the thresholds that follow from the scores on the target."""
    share, limits = rules.options.top_share, rules.by_class
    if rules.plain:
        return rules
    if share is not None:
        limits = {name: max(CANDIDATE_FLOOR, histograms[name].top_share(share)) for name in rules.classes}
    elif rules.source_means is not None:
        limits = dynamic(limits, histograms, rules.source_means)
    return replace(rules, limits=np.array([max(MIN_THRESHOLD, limits[name]) for name in rules.classes], np.float64))


def _label_recording(
    name: tuple[str, str],
    frames: list[_FrameRow],
    reader: _Reader,
    rules: Rules,
    linked: Mapping[str, float],
    decisions: Decisions,
) -> Iterator[dict[str, Any]]:
    """Yield the label records of a recording."""
    count = -(-len(frames) // BLOCK)  # blocks of equal length, because a short last block could not be tracked
    edges = [len(frames) * number // count for number in range(count + 1)]
    unordered = _why_unordered(frames)
    track = rules.options.temporal and unordered is None
    occupied: dict[tuple[int, int], OccupiedPositions] | None = None
    if rules.options.stationary_weight == 1 or not any(name):
        occupied = {}
    motion_of = _motion_of(frames, reader, rules, any(name))
    reasons = []
    for start, end in itertools.pairwise(edges):
        read = [(frame, *reader(frame.row)) for frame in frames[start:end]]
        prepared = (
            [prepare(record, candidates, rules, motion_of(record)) for _, record, candidates in read] if track else []
        )
        reason = too_sparse([one.sightings for one in prepared], linked.get(_spacing(frames))) if track else unordered
        reasons.append(reason)
        if track and reason is None:
            records, decisions.tracks = label_recording(prepared, rules, decisions.tracks)
            yield from records
            continue
        occupied = _occupied_positions(frames, reader, rules) if occupied is None else occupied
        for frame, record, candidates in read:
            if frame.size in occupied:
                candidates = occupied[frame.size].reweight(frame.row, candidates, rules.options)
            yield label_frame(record, candidates, rules, motion_of(record))
    if rules.options.temporal:
        decisions.add_recording(reasons)


def _motion_of(frames: Sequence[_FrameRow], reader: _Reader, rules: Rules, named: bool) -> MotionOf:
    """Return the function from a record to the motion in its frame; without the option it returns `None`."""
    if rules.options.moving_ignore_share is None or not named:
        return lambda record: None
    return RecordingMotion([(frame.row, frame.size) for frame in frames], lambda row: reader(row)[0])


def _linked_shares(
    recordings: Mapping[tuple[str, str], list[_FrameRow]], reader: _Reader, rules: Rules
) -> dict[str, float]:
    """Return, by time between frames, the median share of moving boxes that are found again in the next frame.

    One recording has too few boxes for a reliable share, and recordings with equal spacing have similar shares.
    """
    groups: dict[str, list[list[_FrameRow]]] = {}
    for frames in recordings.values():
        if _why_unordered(frames) is None:
            groups.setdefault(_spacing(frames), []).append(frames)
    total = sum(map(len, groups.values()))
    medians: dict[str, float] = {}
    for spacing, group in groups.items():
        count = min(len(group), max(_MIN_PROBED, _PROBED * len(group) // total))
        probed = [group[n] for n in np.unique(np.linspace(0, len(group) - 1, count).astype(int)).tolist()]
        shares = [linked_share(_probe(frames, reader, rules)) for frames in probed]
        known = [share for share in shares if share is not None]
        medians |= {spacing: float(np.median(known))} if known else {}
    return medians


def _probe(frames: Sequence[_FrameRow], reader: _Reader, rules: Rules) -> list[Sightings]:
    return [prepare(*reader(frame.row), rules).sightings for frame in frames[:_PROBED_FRAMES]]


def _why_unordered(frames: Sequence[_FrameRow]) -> str | None:
    return why_not([(frame.time, frame.size) for frame in frames])


def _spacing(frames: Sequence[_FrameRow]) -> str:
    """Return the median time between frames, rounded to one digit because it varies between recordings."""
    return f"{track_interval([frame.order[0] for frame in frames]):.1g}"


def _occupied_positions(
    frames: Sequence[_FrameRow], reader: _Reader, rules: Rules
) -> dict[tuple[int, int], OccupiedPositions]:
    """Return the occupied positions by frame size; positions in frames of different sizes cannot be compared."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for frame in frames:
        by_size.setdefault(frame.size, []).append(frame.row)
    return {
        size: OccupiedPositions({row: reader(row)[1] for row in probes(rows)}, rules.limits)
        for size, rows in by_size.items()
        if len(rows) > LEAST_FRAMES
    }
