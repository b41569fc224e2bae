"""The memory of TIAFA: running values per track, carried from frame to neighbouring frame of one recording."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cahqp.adaptation.all_gather import gathered
from cahqp.association import match_boxes
from cahqp.frame import Frame

_log = logging.getLogger(__name__)
_LOOKED_AT = 4  # remembered frames in which an instance is looked for: the frame itself, and a miss or two beside it


@dataclass(frozen=True)
class _Sighting:
    """The instances of one view of a frame; values and boxes are copies on the CPU."""

    recording: str
    timestamp: float
    region: tuple[float, float, float, float]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    values: Tensor


@dataclass(frozen=True)
class _Remembered:
    """Where the tracks were in one frame."""

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    tracks: list[int]


class TrackBank:
    """An exponential moving average of each instance's values along its track.

    A frame's instances are matched with those of the remembered frames of its recording that lie nearest in time,
    before or after, so the frames may come in any order: a frame that comes again finds itself first, and what it did
    not show last time is looked for in the next ones. What a view does not show stays remembered as it was. Frames are
    read with `blend` and written together with `commit`, in the order of their time stamps and from all processes, so
    what a step computes depends neither on the order in a batch nor on the number of processes.

    What a frame takes was measured at 20 boxes: 17 KB with one value per box (`unit: token`), 97 KB with the 1025 of
    `unit: instance` on 4 levels of 256 channels; 5 and 23 KB where frames share their tracks. So 4096 frames take 70 or
    400 MB of memory in each process at most, and 4 or 340 MB in a checkpoint.

    Args:
        momentum: Share of the past in a blended value, 0..1; the gradient into the present shrinks by the rest.
        min_iou: Least overlap of an instance with its past.
        max_distance: Distance of centres, in mean diagonals, that matches without overlap; 0 is off.
        max_gap: Longest time between neighbouring frames in seconds.
        max_frames: Frames remembered; those not seen for longest are forgotten first.
    """

    def __init__(
        self,
        momentum: float = 0.5,
        min_iou: float = 0.3,
        max_distance: float = 0.5,
        max_gap: float = 2.0,
        max_frames: int = 4096,
    ) -> None:
        self.momentum = momentum
        self.min_iou = min_iou
        self.max_distance = max_distance
        self.max_gap = max_gap
        self.max_frames = max_frames
        self._frames: dict[tuple[str, float], _Remembered] = {}
        self._times: dict[str, set[float]] = {}  # of `_frames`, by recording
        self._tracks: dict[int, Tensor] = {}
        self._uses: Counter[int] = Counter()  # frames that show a track; a track that none shows is forgotten
        self._next = 0
        self._pending: list[_Sighting] = []
        self._warned = False

    def __len__(self) -> int:
        """Return the number of tracks."""
        return len(self._tracks)

    def has_neighbour(self, frame: Frame) -> bool | None:
        """Return whether another frame near in time is remembered; `None` for a frame without time or recording."""
        if frame.timestamp is None or not frame.recording:
            return None
        times = self._times.get(_recording(frame), ())
        return any(0 < abs(time - frame.timestamp) <= self.max_gap for time in times)

    def blend(self, frame: Frame | None, boxes: Tensor, labels: Tensor, values: Tensor) -> Tensor:
        """Return the values, those of known tracks drawn towards their past; notes the frame for `commit`.

        Args:
            frame: Where the instances were seen. Without a time stamp or recording the values come back as they are,
                which is logged once.
            boxes: (N, 4) xyxy, in coordinates that all frames of the recording share.
            labels: (N,) class indices; a track keeps its class.
            values: (N, K) float32; the past enters without gradient.
        """
        if frame is None or frame.timestamp is None or not frame.recording:
            self._warn(frame)
            return values
        sighting = _Sighting(
            _recording(frame),
            frame.timestamp,
            _region(frame),
            boxes.detach().cpu().double().numpy(),
            labels.detach().cpu().numpy(),
            values.detach().float().cpu(),
        )
        self._pending.append(sighting)
        known = self._match(sighting)
        if not known:
            return values
        past = torch.stack([self._tracks[known[n]] if n in known else row for n, row in enumerate(sighting.values)])
        matched = torch.tensor([[n in known] for n in range(len(values))], device=values.device)
        blended = self.momentum * past.to(values) + (1 - self.momentum) * values
        return torch.where(matched, blended, values)

    def commit(self) -> None:
        """Write the frames that were blended since the last time. Every process must call this equally often."""
        pending, self._pending = gathered(self._pending), []
        for sighting in sorted(pending, key=lambda seen: (seen.recording, seen.timestamp)):
            self._write(sighting)
        while len(self._frames) > self.max_frames:
            self._forget(next(iter(self._frames)))

    def state_dict(self) -> dict[str, Any]:
        """Return everything remembered as plain values and a few tensors, which a weights-only load can read."""
        seen = list(self._frames.values())
        return {
            "frames": list(self._frames),
            "counts": [len(frame.tracks) for frame in seen],
            "boxes": torch.from_numpy(np.concatenate([np.zeros((0, 4)), *(frame.boxes for frame in seen)])),
            "labels": torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *(frame.labels for frame in seen)])),
            "shown": [track for frame in seen for track in frame.tracks],
            "tracks": list(self._tracks),
            "values": torch.stack(list(self._tracks.values())) if self._tracks else torch.zeros(0, 0),
            "next": self._next,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._frames, self._times, self._uses, self._pending = {}, {}, Counter(), []
        self._tracks = dict(zip(state["tracks"], state["values"].cpu().clone(), strict=True))
        self._next = state["next"]
        visible = torch.tensor(state["shown"], dtype=torch.long)
        parts = [part.cpu().split(state["counts"]) for part in (state["boxes"], state["labels"], visible)]
        for (recording, timestamp), boxes, labels, tracks in zip(state["frames"], *parts, strict=True):
            self._keep((recording, timestamp), _Remembered(boxes.numpy(), labels.numpy(), tracks.tolist()))

    def _keep(self, key: tuple[str, float], seen: _Remembered) -> None:
        """Put a frame at the end of the line of the forgotten."""
        self._uses.update(seen.tracks)
        if key in self._frames:
            self._forget(key)
        self._frames[key] = seen
        self._times.setdefault(key[0], set()).add(key[1])

    def _forget(self, key: tuple[str, float]) -> None:
        """Drop a frame, and the tracks that no other frame shows."""
        for track in self._frames.pop(key).tracks:
            self._uses[track] -= 1
            if not self._uses[track]:
                del self._uses[track], self._tracks[track]
        self._times[key[0]].remove(key[1])
        if not self._times[key[0]]:
            del self._times[key[0]]

    def _near(self, recording: str, timestamp: float) -> list[_Remembered]:
        """Return the remembered frames that lie nearest, of two alike the earlier first."""
        near = [(abs(time - timestamp), time) for time in self._times.get(recording, ())]
        chosen = nsmallest(_LOOKED_AT, (pair for pair in near if pair[0] <= self.max_gap))
        return [self._frames[recording, time] for _, time in chosen]

    def _match(self, sighting: _Sighting) -> dict[int, int]:
        """Return the track of each instance that has one; no two have the same."""
        known: dict[int, int] = {}
        for seen in self._near(sighting.recording, sighting.timestamp):
            here = np.setdiff1d(np.arange(len(sighting.boxes)), list(known))
            if not here.size:
                break
            there = np.flatnonzero(~np.isin(seen.tracks, list(known.values())))
            first = sighting.boxes[here], sighting.labels[here]
            pairs = match_boxes(*first, seen.boxes[there], seen.labels[there], self.min_iou, self.max_distance)
            known |= {int(here[row]): seen.tracks[there[column]] for row, column in pairs.tolist()}
        return known

    def _not_shown(self, sighting: _Sighting, tracks: list[int]) -> _Remembered:
        """Return what is remembered of the frame and lies outside this view of it."""
        old = self._frames.get((sighting.recording, sighting.timestamp))
        if old is None:
            return _Remembered(sighting.boxes[:0], sighting.labels[:0], [])
        centres = (old.boxes[:, :2] + old.boxes[:, 2:]) / 2
        left_top, right_bottom = sighting.region[:2], sighting.region[2:]
        visible = ((centres >= left_top) & (centres < right_bottom)).all(1) | np.isin(old.tracks, tracks)
        kept = np.flatnonzero(~visible)
        return _Remembered(old.boxes[kept], old.labels[kept], [old.tracks[row] for row in kept])

    def _write(self, sighting: _Sighting) -> None:
        known = self._match(sighting)
        tracks = []
        for index, value in enumerate(sighting.values):
            track = known.get(index)
            if track is None:
                track, self._next = self._next, self._next + 1
                self._tracks[track] = value.clone()  # a row of the frame's values would keep all of them
            else:
                self._tracks[track] = self.momentum * self._tracks[track] + (1 - self.momentum) * value
            tracks.append(track)
        rest = self._not_shown(sighting, tracks)
        boxes = np.concatenate([sighting.boxes, rest.boxes])
        labels = np.concatenate([sighting.labels, rest.labels])
        self._keep((sighting.recording, sighting.timestamp), _Remembered(boxes, labels, tracks + rest.tracks))

    def _warn(self, frame: Frame | None) -> None:
        if self._warned:
            return
        self._warned = True
        name = "Frames come without their origin" if frame is None else f"{frame.name!r} has no time stamp or recording"
        _log.warning("%s: TIAFA treats such frames one by one, without the bank of tracks.", name)


def _region(frame: Frame) -> tuple[float, float, float, float]:
    """Return what is seen of the frame, xyxy in its own pixels."""
    view, (height, width) = frame.view, frame.size
    return (0, 0, width, height) if view is None else (view.left, view.top, view.right, view.bottom)


def _recording(frame: Frame) -> str:
    return f"{frame.camera}/{frame.recording}"
