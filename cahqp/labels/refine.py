"""From candidates to labels, one recording after the other: bands, tracks, weights, and what a person should see.

Reads the shards of a labelling and writes another set of shards that `merge` makes into files. Recordings are read in
blocks, so memory does not grow with the number of frames, and the same candidates give the same bytes.
"""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cahqp.association import LEAST_FRAMES
from cahqp.labels.calibration import Curve
from cahqp.labels.candidates import Candidates, calibrated, from_record
from cahqp.labels.decide import Rules, by_frame
from cahqp.labels.fusion import nms
from cahqp.labels.over_time import decide, prepare
from cahqp.labels.records import decode, dumps
from cahqp.labels.review import Review
from cahqp.labels.shards import ShardIndex, index_shards
from cahqp.labels.standing import Places, probes
from cahqp.labels.temporal import BLOCK, interval, too_sparse, why_not
from cahqp.labels.thresholds import Histogram, dynamic
from cahqp.labels.tracks import linked_share

_PROBED, _PROBED_FRAMES = 32, 120
"""Recordings, and frames of each, that tell whether boxes can be followed at all."""


@dataclass
class Refined:
    """What `refine` found.

    Attributes:
        tracks: Number of tracks.
        recordings: Number of recordings that time was used in.
        left: Why time was not used, with the number of recordings.
        thresholds: Least score of a label by class, as they were used.
        review: The frames most worth a person's look.
        reasons: How many boxes met which fate, by reason.
    """

    tracks: int = 0
    recordings: int = 0
    left: Counter[str] = field(default_factory=Counter)
    thresholds: dict[str, float] = field(default_factory=dict)
    review: Review = field(default_factory=Review)
    reasons: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "thresholds": {name: round(value, 6) for name, value in self.thresholds.items()},
            "temporal": {"recordings": self.recordings, "tracks": self.tracks, "left_alone": dict(self.left)},
            "reasons": dict(sorted(self.reasons.items())),
        }


@dataclass(frozen=True)
class _Place:
    """Where a frame's line stands, and what decides its place in time."""

    row: int
    order: tuple[float, int, int]
    time: float | None
    size: tuple[int, int]


@dataclass(frozen=True)
class _Read:
    """A frame as its shard has it."""

    place: _Place
    record: dict[str, Any]
    candidates: Candidates


Recordings = dict[tuple[str, str], list[_Place]]


def refine(shards: Path, output: Path, rules: Rules) -> Refined:
    """Decide over every candidate.

    Args:
        shards: Directory of the candidates' shards.
        output: Directory for the labels' shard; made anew.
        rules: How to decide.

    Raises:
        RunError: A shard is damaged.
    """
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    index = index_shards(shards)
    with ExitStack() as stack:
        reader = _Reader(stack, index, rules.curves)
        recordings, histograms = _survey(reader, rules)
        rules = rules.with_thresholds(_thresholds(rules, histograms))
        found = Refined(thresholds=dict(zip(rules.classes, rules.limits.tolist(), strict=True)))
        file = stack.enter_context((output / "rank-00000.jsonl").open("wb"))
        typical = _typical(recordings, reader, rules) if rules.temporal else {}
        for name, places in recordings.items():
            for record in _recording(name, places, reader, rules, typical, found):
                found.review.add(record)
                found.reasons.update(box["reason"] for box in record["rejected"] + record["ignored"])
                file.write(dumps(record).encode() + b"\n")
    return found


class _Reader:
    """Frames of the shards by their row in the index, scores calibrated."""

    def __init__(self, stack: ExitStack, index: ShardIndex, curves: Sequence[Curve] | None) -> None:
        self.index, self.curves = index, curves
        self._files = [stack.enter_context(path.open("rb")) for path in index.paths]

    def __len__(self) -> int:
        return len(self.index.positions)

    def __call__(self, row: int) -> tuple[dict[str, Any], Candidates]:
        file = self._files[self.index.shards[row]]
        file.seek(self.index.offsets[row])
        record = decode(file.readline())
        return record, calibrated(from_record(record), self.curves)

    def rows(self) -> Iterator[int]:
        """Yield one row for each position: a frame that two ranks labelled is read once."""
        positions = self.index.positions
        yield from np.flatnonzero(np.diff(positions, prepend=-1) != 0).tolist()


def _survey(reader: _Reader, rules: Rules) -> tuple[Recordings, dict[str, Histogram]]:
    """Return the frames of each recording in the order of time, and every class's scores."""
    recordings: Recordings = {}
    histograms = {name: Histogram() for name in rules.classes}
    for row in reader.rows():
        record, candidates = reader(row)
        image = record["image"]
        time = image.get("timestamp")
        order = (0.0 if time is None else float(time), int(image["frame"]), row)
        place = _Place(row, order, time, (image["height"], image["width"]))
        recordings.setdefault((image["camera"], image["recording"]), []).append(place)
        if rules.source_means is not None:  # which are of what suppression keeps, too
            candidates = candidates[nms(candidates.boxes, candidates.scores, rules.nms_iou)]
        for label in np.unique(candidates.labels).tolist():
            histograms[rules.classes[label]].add(candidates.scores[candidates.labels == label])
    return {name: sorted(places, key=lambda p: p.order) for name, places in recordings.items()}, histograms


def _thresholds(rules: Rules, histograms: Mapping[str, Histogram]) -> dict[str, float]:
    given = dict(zip(rules.classes, rules.limits.tolist(), strict=True))
    if rules.top_share is not None:
        return {name: max(rules.floor, histograms[name].top_share(rules.top_share)) for name in given}
    return dynamic(given, histograms, rules.source_means) if rules.source_means is not None else given


def _recording(
    name: tuple[str, str],
    places: list[_Place],
    reader: _Reader,
    rules: Rules,
    typical: Mapping[str, float],
    found: Refined,
) -> Iterator[dict[str, Any]]:
    """Yield the frames of a recording as they will stand in the labels."""
    count = -(-len(places) // BLOCK)  # of even length: two frames left over would be too few to follow anything
    edges = [len(places) * number // count for number in range(count + 1)]
    blocks = [places[start:end] for start, end in itertools.pairwise(edges)]
    reason = _unordered(places) if rules.temporal else None
    usual = typical.get(_apart(places))
    taken = _taken(places, reader, rules) if rules.standing < 1 and any(name) else {}
    for number, block in enumerate(blocks):
        frames = [_Read(place, *reader(place.row)) for place in block]
        yield from _block(frames, reason, usual, number == 0, taken, rules, found)


def _typical(recordings: Recordings, reader: _Reader, rules: Rules) -> dict[str, float]:
    """Return by time between frames how many moving boxes the next frame usually shows again.

    One recording alone tells that badly, but all that are as far apart have the same answer.
    """
    shares: dict[str, list[float]] = {}
    ordered = [places for places in recordings.values() if _unordered(places) is None]
    for number in np.unique(np.linspace(0, len(ordered) - 1, min(_PROBED, len(ordered))).astype(int)).tolist():
        places = ordered[number]
        frames = [prepare(*reader(place.row), rules).sightings for place in places[:_PROBED_FRAMES]]
        share = linked_share(frames)
        if share is not None:
            shares.setdefault(_apart(places), []).append(share)
    return {apart: float(np.median(own)) for apart, own in shares.items()}


def _unordered(places: Sequence[_Place]) -> str | None:
    return why_not([(place.time, place.size) for place in places])


def _apart(places: Sequence[_Place]) -> str:
    """Return the usual time between frames to one digit: recordings of one sampling vary a little."""
    return f"{interval([place.order[0] for place in places]):.1g}"


def _taken(places: Sequence[_Place], reader: _Reader, rules: Rules) -> dict[tuple[int, int], Places]:
    """Return by frame size which places are taken: frames of other sizes have other pixels."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for place in places:
        by_size.setdefault(place.size, []).append(place.row)
    return {
        size: Places({row: reader(row)[1] for row in probes(rows)}, rules.limits)
        for size, rows in by_size.items()
        if len(rows) > LEAST_FRAMES
    }


def _block(
    frames: list[_Read],
    reason: str | None,
    typical: float | None,
    first: bool,
    taken: Mapping[tuple[int, int], Places],
    rules: Rules,
    found: Refined,
) -> Iterator[dict[str, Any]]:
    if rules.temporal is not None and reason is None:
        prepared = [prepare(frame.record, frame.candidates, rules) for frame in frames]
        reason = too_sparse([frame.sightings for frame in prepared], typical)
        if reason is None:
            found.recordings += first
            records, found.tracks = decide(prepared, rules, found.tracks)
            yield from records
            return
    if reason is not None:
        found.left.update([reason] * first)
    for frame in frames:
        candidates, known = frame.candidates, taken.get(frame.place.size)
        if known is not None:
            candidates = known.counted(frame.place.row, candidates, rules.standing, rules.ignore_share)
        yield by_frame(frame.record, candidates, rules)
