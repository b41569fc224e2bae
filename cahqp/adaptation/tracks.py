"""The memory of TIAFA: running values per track, carried from frame to neighbouring frame of one recording."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cahqp.adaptation.gathering import gathered
from cahqp.association import match_boxes
from cahqp.structures import Frame

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Sighting:
    """The instances of one frame; values and boxes are copies on the CPU."""

    recording: str
    timestamp: float
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

    A frame's instances are matched with those of the frame of its recording that lies nearest in time, before or
    after, so the frames may come in any order; a frame that comes again finds itself. Frames are read with `blend` and
    written together with `commit`, in the order of their time stamps and from all processes, so what a step computes
    depends neither on the order in a batch nor on the number of processes.

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
        max_frames: int = 256,
    ) -> None:
        self.momentum = momentum
        self.min_iou = min_iou
        self.max_distance = max_distance
        self.max_gap = max_gap
        self.max_frames = max_frames
        self._frames: dict[tuple[str, float], _Remembered] = {}
        self._tracks: dict[int, Tensor] = {}
        self._next = 0
        self._pending: list[_Sighting] = []
        self._warned = False

    def __len__(self) -> int:
        """Return the number of tracks."""
        return len(self._tracks)

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
            f"{frame.camera}/{frame.recording}",
            frame.timestamp,
            boxes.detach().cpu().double().numpy(),
            labels.detach().cpu().numpy(),
            values.detach().float().cpu(),
        )
        self._pending.append(sighting)
        known = dict(self._match(sighting))
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
            del self._frames[next(iter(self._frames))]
        alive = {track for frame in self._frames.values() for track in frame.tracks}
        self._tracks = {track: value for track, value in self._tracks.items() if track in alive}

    def state_dict(self) -> dict[str, Any]:
        """Return everything remembered as plain values and tensors, which a weights-only load can read."""
        frames = [
            (recording, timestamp, torch.from_numpy(seen.boxes), torch.from_numpy(seen.labels), list(seen.tracks))
            for (recording, timestamp), seen in self._frames.items()
        ]
        return {"frames": frames, "tracks": dict(self._tracks), "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._frames = {
            (recording, timestamp): _Remembered(boxes.cpu().numpy(), labels.cpu().numpy(), list(tracks))
            for recording, timestamp, boxes, labels, tracks in state["frames"]
        }
        self._tracks = {track: value.cpu() for track, value in state["tracks"].items()}
        self._next = state["next"]
        self._pending = []

    def _match(self, sighting: _Sighting) -> Iterator[tuple[int, int]]:
        """Yield an index of an instance and its track."""
        near = [
            (abs(timestamp - sighting.timestamp), timestamp)
            for recording, timestamp in self._frames
            if recording == sighting.recording and abs(timestamp - sighting.timestamp) <= self.max_gap
        ]
        if not near:
            return
        seen = self._frames[sighting.recording, min(near)[1]]
        pairs = match_boxes(sighting.boxes, sighting.labels, seen.boxes, seen.labels, self.min_iou, self.max_distance)
        for here, there in pairs.tolist():
            yield here, seen.tracks[there]

    def _write(self, sighting: _Sighting) -> None:
        known = dict(self._match(sighting))
        tracks = []
        for index, value in enumerate(sighting.values):
            track = known.get(index)
            if track is None:
                track, self._next = self._next, self._next + 1
                self._tracks[track] = value
            else:
                self._tracks[track] = self.momentum * self._tracks[track] + (1 - self.momentum) * value
            tracks.append(track)
        key = (sighting.recording, sighting.timestamp)
        self._frames.pop(key, None)  # A frame seen again goes to the end of the line of the forgotten.
        self._frames[key] = _Remembered(sighting.boxes, sighting.labels, tracks)

    def _warn(self, frame: Frame | None) -> None:
        if self._warned:
            return
        self._warned = True
        name = "Frames come without their origin" if frame is None else f"{frame.name!r} has no time stamp or recording"
        _log.warning("%s: TIAFA treats such frames one by one, without the bank of tracks.", name)
