"""Memory of thumbnails per recording, for the detection of motion against their median."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cahqp.adaptation.all_gather import gathered
from cahqp.adaptation.stationary_memory import recording_key
from cahqp.adaptation.track_bank import visible_region
from cahqp.frame import Frame
from cahqp.motion import MAX_FRAMES, Motion, median_background, reduce, thumbnail_size


@dataclass(frozen=True)
class _Thumbnail:
    """(h, w, 3) uint8 image of a frame, and its part that the view shows, xyxy."""

    image: NDArray[np.uint8]
    window: tuple[int, int, int, int]

    @property
    def visible(self) -> NDArray[np.bool_]:
        """(h, w) whether the view shows a pixel."""
        mask = np.zeros(self.image.shape[:2], np.bool_)
        left, top, right, bottom = self.window
        mask[top:bottom, left:right] = True
        return mask


class BackgroundMemory(nn.Module):
    """Memory of thumbnails of each recording, for cameras that stand still.

    `motion` reads the memory. `note` adds a frame, which takes effect with `commit`, from all processes in the same
    order.

    Args:
        max_frames: Thumbnails stored per recording; the frames not seen for longest are dropped first.
        max_total: Thumbnails stored in all, 30 KB each; the recordings not seen for longest are dropped first.
    """

    def __init__(self, max_frames: int = MAX_FRAMES, max_total: int = 2048) -> None:
        super().__init__()
        self.max_frames, self.max_total = max_frames, max_total
        self._recordings: dict[str, dict[int, _Thumbnail]] = {}
        self._backgrounds: dict[str, NDArray[np.float32] | None] = {}
        self._pending: list[tuple[str, int, _Thumbnail]] = []

    def __len__(self) -> int:
        """Return the number of thumbnails."""
        return sum(map(len, self._recordings.values()))

    def motion(self, frame: Frame, image: Tensor) -> Motion | None:
        """Return the moving pixels of a frame, and add it for `commit`.

        Args:
            frame: Frame of the image.
            image: (3, h, w) uint8 RGB: the view without padding.

        Returns:
            `None` if the recording is unknown or too few of its frames are stored.
        """
        if not recording_key(frame):
            return None
        thumbnail, key = _thumbnail(frame, image), recording_key(frame)
        self._pending.append((key, frame.id, thumbnail))
        background = self._background(key)
        return None if background is None else Motion(thumbnail.image, background, frame.size, thumbnail.visible)

    def _background(self, key: str) -> NDArray[np.float32] | None:
        if key not in self._backgrounds:
            stored = list(self._recordings.get(key, {}).values())
            self._backgrounds[key] = median_background([one.image for one in stored], [one.visible for one in stored])
        return self._backgrounds[key]

    def commit(self) -> None:
        """Store the frames added since the last call. Every process must call this equally often."""
        pending, self._pending = gathered(self._pending), []
        for key, id_, thumbnail in sorted(pending, key=lambda noted: noted[:2]):
            # Removed and inserted again, so that the dictionaries are in the order of the last sighting.
            recording = self._recordings[key] = self._recordings.pop(key, {})
            recording.pop(id_, None)
            recording[id_] = thumbnail
            self._backgrounds.pop(key, None)
            while len(recording) > self.max_frames:
                del recording[next(iter(recording))]
        while len(self) > self.max_total:
            oldest = next(iter(self._recordings))
            del self._recordings[oldest]
            self._backgrounds.pop(oldest, None)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the memory for the checkpoint, as plain values and tensors."""
        return {
            key: {
                "ids": list(frames),
                "images": torch.from_numpy(np.stack([one.image for one in frames.values()])),
                "windows": torch.tensor([one.window for one in frames.values()]),
            }
            for key, frames in self._recordings.items()
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the result of `get_extra_state`."""
        self._recordings, self._backgrounds, self._pending = {}, {}, []
        for key, saved in state.items():
            rows = zip(saved["ids"], saved["images"].cpu().numpy(), saved["windows"].tolist(), strict=True)
            self._recordings[key] = {id_: _Thumbnail(image, tuple(window)) for id_, image, window in rows}


def _thumbnail(frame: Frame, image: Tensor) -> _Thumbnail:
    """Return the thumbnail of the original frame, black where the view does not show it."""
    height, width = thumbnail_size(*frame.size)
    scale = np.array([width / frame.size[1], height / frame.size[0]] * 2)
    left, top, right, bottom = np.rint(np.array(visible_region(frame)) * scale).astype(int).tolist()
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
    if frame.view is not None and frame.view.mirrored:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    whole = np.zeros((max(height, bottom), max(width, right), 3), np.uint8)
    whole[top:bottom, left:right] = reduce(pixels, (bottom - top, right - left))
    return _Thumbnail(whole[:height, :width], (left, top, right, bottom))
