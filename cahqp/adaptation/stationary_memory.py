"""What stands at one place of a camera's picture: lamps and windows that look like road users, and never move."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cahqp.adaptation.all_gather import gathered
from cahqp.association import LEAST_FRAMES, places_taken, stationary_factor
from cahqp.frame import Frame

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Seen:
    """What one frame showed: its part of the original image, and the boxes there."""

    region: NDArray[np.float64]
    boxes: NDArray[np.float64]


class StationaryMemory(nn.Module):
    """Remembers where boxes were in each frame of a recording, and says which places are always taken.

    The rule is that of `cahqp.association.standing_factor`. Frames are read with `factors` and written with `note`,
    which takes effect with `commit`, from all processes in the same order.

    Args:
        stationary_weight: What a score counts whose place is always taken, 0..1.
        max_frames: Frames remembered of each recording; those not seen for longest are forgotten first.
        most: Frames remembered in all; recordings not seen for longest are forgotten first.
    """

    def __init__(self, stationary_weight: float = 0.5, max_frames: int = 64, most: int = 8192) -> None:
        super().__init__()
        self.stationary_weight, self.max_frames, self.most = stationary_weight, max_frames, most
        self._recordings: dict[str, dict[int, _Seen]] = {}
        self._pending: list[tuple[str, int, _Seen]] = []
        self._warned = False

    def __len__(self) -> int:
        """Return the number of frames."""
        return sum(map(len, self._recordings.values()))

    def factors(self, frame: Frame, boxes: Tensor) -> Tensor:
        """Return (N,) what the scores of a frame's boxes count, `stationary_weight`..1.

        It is 1 where fewer than five other frames show that place, or the frame's recording is not known.

        Args:
            frame: Where the boxes were found.
            boxes: (N, 4) xyxy in pixels of the original image.
        """
        others = [seen for id_, seen in self._recordings.get(_key(frame), {}).items() if id_ != frame.id]
        if not others or not len(boxes):
            return torch.ones(len(boxes), device=boxes.device)
        places = boxes.detach().cpu().double().numpy()
        centres = (places[:, None, :2] + places[:, None, 2:]) / 2
        regions = np.stack([seen.region for seen in others])
        inside = ((centres >= regions[:, :2]) & (centres < regions[:, 2:])).all(2)
        visible = inside.sum(1)
        taken = (inside & places_taken(places, [seen.boxes for seen in others])).sum(1)
        shares = np.where(visible >= LEAST_FRAMES, taken / np.maximum(visible, 1), 0.0)
        return torch.from_numpy(stationary_factor(shares, self.stationary_weight)).to(boxes)

    def note(self, frame: Frame, boxes: Tensor) -> None:
        """Note for `commit` what a frame showed; without camera and recording, which is logged once, it is left out.

        Args:
            frame: As it was seen.
            boxes: (N, 4) xyxy in pixels of the original image, the doubtful ones too.
        """
        if not _key(frame):
            self._warn(frame)
            return
        view, (height, width) = frame.view, frame.size
        region = (0, 0, width, height) if view is None else (view.left, view.top, view.right, view.bottom)
        places = boxes.detach().cpu().double().numpy()
        self._pending.append((_key(frame), frame.id, _Seen(np.array(region, np.float64), places)))

    def commit(self) -> None:
        """Write what was noted since the last time. Every process must call this equally often."""
        pending, self._pending = gathered(self._pending), []
        for key, id_, seen in sorted(pending, key=lambda noted: noted[:2]):
            # What is seen again goes to the end of the line of the forgotten.
            recording = self._recordings[key] = self._recordings.pop(key, {})
            recording.pop(id_, None)
            recording[id_] = seen
            while len(recording) > self.max_frames:
                del recording[next(iter(recording))]
        while len(self) > self.most:
            del self._recordings[next(iter(self._recordings))]

    def _warn(self, frame: Frame) -> None:
        if not self._warned:
            _log.warning(
                "%r names no camera and no recording: whether something always stands at a place of such frames is not "
                "known (pseudo_labels.stationary_weight). Give them a `recording`, or their folder.",
                frame.name,
            )
        self._warned = True

    def get_extra_state(self) -> dict[str, Any]:
        """Return everything remembered for the checkpoint, as plain values and tensors: a resumed run knows as much."""
        return {
            key: {
                "ids": list(frames),
                "regions": torch.from_numpy(np.stack([seen.region for seen in frames.values()])),
                "counts": [len(seen.boxes) for seen in frames.values()],
                "boxes": torch.from_numpy(np.concatenate([seen.boxes for seen in frames.values()])),
            }
            for key, frames in self._recordings.items()
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from what `get_extra_state` returned."""
        self._recordings, self._pending = {}, []
        for key, told in state.items():
            parts = told["boxes"].cpu().split(told["counts"])
            seen = zip(told["ids"], told["regions"].cpu(), parts, strict=True)
            self._recordings[key] = {id_: _Seen(region.numpy(), boxes.numpy()) for id_, region, boxes in seen}


def _key(frame: Frame) -> str:
    # Frames of another size have other pixels.
    return f"{frame.camera}/{frame.recording}/{frame.size}" if frame.camera or frame.recording else ""
