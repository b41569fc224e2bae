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
from cahqp.labels.calibration.curves import Curve
from cahqp.labels.calibration.thresholds import LEAST, Histogram, dynamic
from cahqp.labels.candidates import Candidates, calibrated, from_record
from cahqp.labels.fusion import nms
from cahqp.labels.review import Review
from cahqp.labels.rules import Rules, by_frame
from cahqp.labels.shards.records import decode, dumps
from cahqp.labels.shards.shards import ShardIndex, index_shards
from cahqp.labels.tracking.linker import Sightings, linked_share
from cahqp.labels.tracking.recordings import decide, prepare
from cahqp.labels.tracking.stationary import Places, probes
from cahqp.labels.tracking.temporal import BLOCK, interval, too_sparse, why_not

_PROBED, _LEAST_PROBED, _PROBED_FRAMES = 32, 4, 120
"""Recordings in all, at least of those with frames as far apart, and frames of each, that tell whether boxes can be
followed."""


@dataclass
class Refined:
    """What `refine` found.

    Attributes:
        tracks: Number of tracks.
        recordings: Number of recordings that time was used in.
        left: Why time was not used, with the number of recordings.
        left_parts: Why it was not used in some blocks of a recording, with the number of blocks.
        thresholds: Least score of a label by class, as they were used.
        review: The frames most worth a person's look.
        reasons: How many boxes met which fate, by reason.
    """

    tracks: int = 0
    recordings: int = 0
    left: Counter[str] = field(default_factory=Counter)
    left_parts: Counter[str] = field(default_factory=Counter)
    thresholds: dict[str, float] = field(default_factory=dict)
    review: Review = field(default_factory=Review)
    reasons: Counter[str] = field(default_factory=Counter)

    def note(self, reasons: Sequence[str | None]) -> None:
        """Count a recording by the reasons why time was not used in its blocks, `None` for those where it was."""
        self.recordings += None in reasons
        told = [reason for reason in reasons if reason is not None]
        if len(told) == len(reasons) and len(set(told)) == 1:
            self.left.update(told[:1])
        else:
            self.left_parts.update(told)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "thresholds": {name: round(value, 6) for name, value in self.thresholds.items()},
            "temporal": {
                "recordings": self.recordings,
                "tracks": self.tracks,
                "left_alone": dict(self.left),
                "left_alone_in_part": dict(self.left_parts),
            },
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
        chosen = _thresholds(rules, histograms)
        rules = rules.with_thresholds({name: max(LEAST, value) for name, value in chosen.items()})
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
    """Return the frames of each recording in the order of time, and every class's scores where thresholds need them."""
    recordings: Recordings = {}
    histograms = {name: Histogram() for name in rules.classes}
    for row in reader.rows():
        record, candidates = reader(row)
        image = record["image"]
        time = image.get("timestamp")
        order = (0.0 if time is None else float(time), int(image["frame"]), row)
        place = _Place(row, order, time, (image["height"], image["width"]))
        recordings.setdefault((image["camera"], image["recording"]), []).append(place)
        if rules.source_means is None and rules.top_share is None:
            continue
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
    unordered = _unordered(places)
    followed = rules.temporal is not None and unordered is None
    usual = typical.get(_apart(places))
    taken: dict[tuple[int, int], Places] | None = None if rules.stationary_weight < 1 and any(name) else {}
    reasons = []
    for block in blocks:
        frames = [_Read(place, *reader(place.row)) for place in block]
        prepared = [prepare(frame.record, frame.candidates, rules) for frame in frames] if followed else []
        reasons.append(too_sparse([frame.sightings for frame in prepared], usual) if followed else unordered)
        if followed and reasons[-1] is None:
            records, found.tracks = decide(prepared, rules, found.tracks)
            yield from records
        else:
            taken = _taken(places, reader, rules) if taken is None else taken  # tracks ask for no places
            yield from _frame_by_frame(frames, taken, rules)
    if rules.temporal is not None:
        found.note(reasons)


def _typical(recordings: Recordings, reader: _Reader, rules: Rules) -> dict[str, float]:
    """Return by time between frames how many moving boxes the next frame usually shows again.

    One recording alone tells that badly, but all that are as far apart have the same answer.
    """
    groups: dict[str, list[list[_Place]]] = {}
    for places in recordings.values():
        if _unordered(places) is None:
            groups.setdefault(_apart(places), []).append(places)
    total = sum(map(len, groups.values()))
    found: dict[str, float] = {}
    for apart, group in groups.items():
        wanted = min(len(group), max(_LEAST_PROBED, _PROBED * len(group) // total))
        probed = [group[n] for n in np.unique(np.linspace(0, len(group) - 1, wanted).astype(int)).tolist()]
        shares = [linked_share(_probe(places, reader, rules)) for places in probed]
        told = [share for share in shares if share is not None]
        found |= {apart: float(np.median(told))} if told else {}
    return found


def _probe(places: Sequence[_Place], reader: _Reader, rules: Rules) -> list[Sightings]:
    return [prepare(*reader(place.row), rules).sightings for place in places[:_PROBED_FRAMES]]


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


def _frame_by_frame(
    frames: list[_Read], taken: Mapping[tuple[int, int], Places], rules: Rules
) -> Iterator[dict[str, Any]]:
    """Yield frames that are decided one by one."""
    for frame in frames:
        candidates, known = frame.candidates, taken.get(frame.place.size)
        if known is not None:
            candidates = known.counted(frame.place.row, candidates, rules.stationary_weight, rules.ignore_share)
        yield by_frame(frame.record, candidates, rules)
