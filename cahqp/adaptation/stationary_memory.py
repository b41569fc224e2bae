"""Memory of the positions of boxes in a recording: lamps and windows look like road users, and never move."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cahqp.adaptation.all_gather import gathered
from cahqp.adaptation.track_bank import visible_region
from cahqp.association import LEAST_FRAMES, places_taken, stationary_factor
from cahqp.frame import Frame

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Entry:
    """Boxes of one frame, and the visible part of the original image."""

    region: NDArray[np.float64]
    boxes: NDArray[np.float64]


class StationaryMemory(nn.Module):
    """Memory of the boxes in each frame of a recording, which down-weights boxes at stationary positions.

    The rule is `cahqp.association.stationary_factor`. `factors` reads the memory. `note` adds a frame, which takes
    effect with `commit`, from all processes in the same order.

    Args:
        stationary_weight: Score multiplier of a box whose position is always occupied, 0..1.
        max_frames: Frames stored per recording; the frames not seen for longest are dropped first.
        max_total: Frames stored in all; the recordings not seen for longest are dropped first.
    """

    def __init__(self, stationary_weight: float = 0.5, max_frames: int = 64, max_total: int = 8192) -> None:
        super().__init__()
        self.stationary_weight, self.max_frames, self.max_total = stationary_weight, max_frames, max_total
        self._recordings: dict[str, dict[int, _Entry]] = {}
        self._pending: list[tuple[str, int, _Entry]] = []
        self._warned = False

    def __len__(self) -> int:
        """Return the number of frames."""
        return sum(map(len, self._recordings.values()))

    def factors(self, frame: Frame, boxes: Tensor) -> Tensor:
        """Return (N,) score multipliers, `stationary_weight`..1, for the boxes of a frame.

        The multiplier is 1 if fewer than five other frames show the position, or the recording is unknown.

        Args:
            frame: Frame of the boxes.
            boxes: (N, 4) xyxy in pixels of the original image.
        """
        others = [entry for id_, entry in self._recordings.get(recording_key(frame), {}).items() if id_ != frame.id]
        if not others or not len(boxes):
            return torch.ones(len(boxes), device=boxes.device)
        places = boxes.detach().cpu().double().numpy()
        centres = (places[:, None, :2] + places[:, None, 2:]) / 2
        regions = np.stack([entry.region for entry in others])
        inside = ((centres >= regions[:, :2]) & (centres < regions[:, 2:])).all(2)
        visible = inside.sum(1)
        taken = (inside & places_taken(places, [entry.boxes for entry in others])).sum(1)
        shares = np.where(visible >= LEAST_FRAMES, taken / np.maximum(visible, 1), 0.0)
        return torch.from_numpy(stationary_factor(shares, self.stationary_weight)).to(boxes)

    def note(self, frame: Frame, boxes: Tensor) -> None:
        """Add a frame's boxes for `commit`; a frame without camera and recording is left out, with one warning.

        Args:
            frame: Frame of the boxes.
            boxes: (N, 4) xyxy in pixels of the original image, uncertain ones too.
        """
        if not recording_key(frame):
            self._warn(frame)
            return
        entry = _Entry(np.array(visible_region(frame), np.float64), boxes.detach().cpu().double().numpy())
        self._pending.append((recording_key(frame), frame.id, entry))

    def commit(self) -> None:
        """Store the frames added since the last call. Every process must call this equally often."""
        pending, self._pending = gathered(self._pending), []
        for key, id_, entry in sorted(pending, key=lambda noted: noted[:2]):
            # Removed and inserted again, so that the dictionaries are in the order of the last sighting.
            recording = self._recordings[key] = self._recordings.pop(key, {})
            recording.pop(id_, None)
            recording[id_] = entry
            while len(recording) > self.max_frames:
                del recording[next(iter(recording))]
        while len(self) > self.max_total:
            del self._recordings[next(iter(self._recordings))]

    def _warn(self, frame: Frame) -> None:
        if not self._warned:
            _log.warning(
                "%r has no camera and no recording, so stationary positions in such frames are unknown "
                "(pseudo_labels.stationary_weight). Set their `recording`, or put them in a folder.",
                frame.name,
            )
        self._warned = True

    def get_extra_state(self) -> dict[str, Any]:
        """Return the memory for the checkpoint, as plain values and tensors."""
        return {
            key: {
                "ids": list(frames),
                "regions": torch.from_numpy(np.stack([entry.region for entry in frames.values()])),
                "counts": [len(entry.boxes) for entry in frames.values()],
                "boxes": torch.from_numpy(np.concatenate([entry.boxes for entry in frames.values()])),
            }
            for key, frames in self._recordings.items()
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the result of `get_extra_state`."""
        self._recordings, self._pending = {}, []
        for key, saved in state.items():
            parts = saved["boxes"].cpu().split(saved["counts"])
            rows = zip(saved["ids"], saved["regions"].cpu(), parts, strict=True)
            self._recordings[key] = {id_: _Entry(region.numpy(), boxes.numpy()) for id_, region, boxes in rows}


def recording_key(frame: Frame) -> str:
    """Return the name of a frame's recording and size, because other sizes have other pixels; empty if unknown."""
    return f"{frame.camera}/{frame.recording}/{frame.size}" if frame.camera or frame.recording else ""
