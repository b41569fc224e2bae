"""Bank of tracks of TIAFA: running values per track over the neighbouring frames of a recording."""

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
_NEAREST = 4  # stored frames in which an instance is searched: the frame itself, and one or two missed detections


@dataclass(frozen=True)
class _Sighting:
    """Instances of one view of a frame; values and boxes are copies on the CPU."""

    recording: str
    timestamp: float
    region: tuple[float, float, float, float]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    values: Tensor


@dataclass(frozen=True)
class _Entry:
    """Positions of the tracks in one frame."""

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    tracks: list[int]


class TrackBank:
    """Exponential moving average of each instance's values along its track.

    A frame's instances are matched with those of the stored frames of its recording that are nearest in time, before or
    after, so frames may come in any order. A frame that comes again matches itself first, and instances that are new in
    it are searched in the next frames. Instances outside a view stay stored unchanged. `blend` reads the bank. `commit`
    stores the frames of all processes together, in the order of their time stamps. So a step depends neither on the
    order in a batch nor on the number of processes.

    Measured at 20 boxes, a frame takes 17 KB with one value per box (`unit: token`), and 97 KB with the 1025 values of
    `unit: instance` on 4 levels of 256 channels; 5 and 23 KB if frames share their tracks. So 4096 frames take at most
    70 or 400 MB of memory in each process, and 4 or 340 MB in a checkpoint.

    Args:
        momentum: Share of the past in a blended value, 0..1; the gradient of the present value has the other share.
        min_iou: Minimum IoU of an instance with its past.
        max_distance: Distance of centres, in mean diagonals, that matches without overlap; 0 is off.
        max_gap: Longest time between neighbouring frames in seconds.
        max_frames: Stored frames; the frames not seen for longest are dropped first.
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
        self._frames: dict[tuple[str, float], _Entry] = {}
        self._times: dict[str, set[float]] = {}  # of `_frames`, by recording
        self._tracks: dict[int, Tensor] = {}
        self._uses: Counter[int] = Counter()  # number of stored frames per track; a track without frames is dropped
        self._next = 0
        self._pending: list[_Sighting] = []
        self._warned = False

    def __len__(self) -> int:
        """Return the number of tracks."""
        return len(self._tracks)

    def has_neighbour(self, frame: Frame) -> bool | None:
        """Return whether another frame near in time is stored; `None` for a frame without time or recording."""
        if frame.timestamp is None or not frame.recording:
            return None
        times = self._times.get(_recording(frame), ())
        return any(0 < abs(time - frame.timestamp) <= self.max_gap for time in times)

    def blend(self, frame: Frame | None, boxes: Tensor, labels: Tensor, values: Tensor) -> Tensor:
        """Return the values, those of stored tracks blended with their past, and add the frame for `commit`.

        Args:
            frame: Origin of the instances. Without a time stamp or recording the values are returned unchanged, with
                one warning.
            boxes: (N, 4) xyxy, in coordinates that all frames of the recording share.
            labels: (N,) class indices; a track has one class.
            values: (N, K) float32; the past has no gradient.
        """
        if frame is None or frame.timestamp is None or not frame.recording:
            self._warn(frame)
            return values
        sighting = _Sighting(
            _recording(frame),
            frame.timestamp,
            visible_region(frame),
            boxes.detach().cpu().double().numpy(),
            labels.detach().cpu().numpy(),
            values.detach().float().cpu(),
        )
        self._pending.append(sighting)
        matches = self._match(sighting)
        if not matches:
            return values
        rows = enumerate(sighting.values)
        past = torch.stack([self._tracks[matches[n]] if n in matches else row for n, row in rows])
        matched = torch.tensor([[n in matches] for n in range(len(values))], device=values.device)
        blended = self.momentum * past.to(values) + (1 - self.momentum) * values
        return torch.where(matched, blended, values)

    def commit(self) -> None:
        """Store the frames blended since the last call. Every process must call this equally often."""
        pending, self._pending = gathered(self._pending), []
        for sighting in sorted(pending, key=lambda item: (item.recording, item.timestamp)):
            self._store(sighting)
        while len(self._frames) > self.max_frames:
            self._drop(next(iter(self._frames)))

    def state_dict(self) -> dict[str, Any]:
        """Return the bank as plain values and a few tensors, which a weights-only load can read."""
        entries = list(self._frames.values())
        return {
            "frames": list(self._frames),
            "counts": [len(frame.tracks) for frame in entries],
            "boxes": torch.from_numpy(np.concatenate([np.zeros((0, 4)), *(frame.boxes for frame in entries)])),
            "labels": torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *(frame.labels for frame in entries)])),
            "shown": [track for frame in entries for track in frame.tracks],
            "tracks": list(self._tracks),
            "values": torch.stack(list(self._tracks.values())) if self._tracks else torch.zeros(0, 0),
            "next": self._next,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self._frames, self._times, self._uses, self._pending = {}, {}, Counter(), []
        self._tracks = dict(zip(state["tracks"], state["values"].cpu().clone(), strict=True))
        self._next = state["next"]
        shown = torch.tensor(state["shown"], dtype=torch.long)
        parts = [part.cpu().split(state["counts"]) for part in (state["boxes"], state["labels"], shown)]
        for (recording, timestamp), boxes, labels, tracks in zip(state["frames"], *parts, strict=True):
            self._keep((recording, timestamp), _Entry(boxes.numpy(), labels.numpy(), tracks.tolist()))

    def _keep(self, key: tuple[str, float], entry: _Entry) -> None:
        """Store a frame as the last to be dropped."""
        self._uses.update(entry.tracks)
        if key in self._frames:
            self._drop(key)
        self._frames[key] = entry
        self._times.setdefault(key[0], set()).add(key[1])

    def _drop(self, key: tuple[str, float]) -> None:
        """Drop a frame, and the tracks without other frames."""
        for track in self._frames.pop(key).tracks:
            self._uses[track] -= 1
            if not self._uses[track]:
                del self._uses[track], self._tracks[track]
        self._times[key[0]].remove(key[1])
        if not self._times[key[0]]:
            del self._times[key[0]]

    def _near(self, recording: str, timestamp: float) -> list[_Entry]:
        """Return the stored frames nearest in time, the earlier of two first."""
        near = [(abs(time - timestamp), time) for time in self._times.get(recording, ())]
        chosen = nsmallest(_NEAREST, (pair for pair in near if pair[0] <= self.max_gap))
        return [self._frames[recording, time] for _, time in chosen]

    def _match(self, sighting: _Sighting) -> dict[int, int]:
        """Return the track of each matched instance; every track occurs once."""
        matches: dict[int, int] = {}
        for entry in self._near(sighting.recording, sighting.timestamp):
            here = np.setdiff1d(np.arange(len(sighting.boxes)), list(matches))
            if not here.size:
                break
            there = np.flatnonzero(~np.isin(entry.tracks, list(matches.values())))
            first = sighting.boxes[here], sighting.labels[here]
            pairs = match_boxes(*first, entry.boxes[there], entry.labels[there], self.min_iou, self.max_distance)
            matches |= {int(here[row]): entry.tracks[there[column]] for row, column in pairs.tolist()}
        return matches

    def _outside_view(self, sighting: _Sighting, tracks: list[int]) -> _Entry:
        """Return the stored tracks of the frame that lie outside this view of it."""
        old = self._frames.get((sighting.recording, sighting.timestamp))
        if old is None:
            return _Entry(sighting.boxes[:0], sighting.labels[:0], [])
        centres = (old.boxes[:, :2] + old.boxes[:, 2:]) / 2
        left_top, right_bottom = sighting.region[:2], sighting.region[2:]
        visible = ((centres >= left_top) & (centres < right_bottom)).all(1) | np.isin(old.tracks, tracks)
        kept = np.flatnonzero(~visible)
        return _Entry(old.boxes[kept], old.labels[kept], [old.tracks[row] for row in kept])

    def _store(self, sighting: _Sighting) -> None:
        matches = self._match(sighting)
        tracks = []
        for index, value in enumerate(sighting.values):
            track = matches.get(index)
            if track is None:
                track, self._next = self._next, self._next + 1
                self._tracks[track] = value.clone()  # without a copy, all values of the frame would stay in memory
            else:
                self._tracks[track] = self.momentum * self._tracks[track] + (1 - self.momentum) * value
            tracks.append(track)
        rest = self._outside_view(sighting, tracks)
        boxes = np.concatenate([sighting.boxes, rest.boxes])
        labels = np.concatenate([sighting.labels, rest.labels])
        self._keep((sighting.recording, sighting.timestamp), _Entry(boxes, labels, tracks + rest.tracks))

    def _warn(self, frame: Frame | None) -> None:
        if self._warned:
            return
        self._warned = True
        name = "Frames have no origin" if frame is None else f"{frame.name!r} has no time stamp or recording"
        _log.warning("%s: TIAFA treats such frames one by one, without the bank of tracks.", name)


def visible_region(frame: Frame) -> tuple[float, float, float, float]:
    """Return the part of the frame that its view shows, xyxy in pixels of the original image."""
    view, (height, width) = frame.view, frame.size
    return (0, 0, width, height) if view is None else (view.left, view.top, view.right, view.bottom)


def _recording(frame: Frame) -> str:
    return f"{frame.camera}/{frame.recording}"
