"""Origin of an image: its file, camera, recording and time, and the part shown in training. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class View:
    """Part of an original image that a training view shows.

    Attributes:
        left: First column in pixels of the original image.
        top: First row.
        right: Column after the last.
        bottom: Row after the last.
        mirrored: Whether the view is flipped horizontally.
    """

    left: int
    top: int
    right: int
    bottom: int
    mirrored: bool = False

    def to_original(self, boxes: Tensor, size: Tensor) -> Tensor:
        """Convert boxes from the view to the original image, where neighbouring frames can be compared.

        Args:
            boxes: (N, 4) xyxy in pixels of the view as it is in the batch.
            size: (2,) height and width of the view in the batch.

        Returns:
            (N, 4) xyxy in pixels of the original image.
        """
        sides = boxes.new_tensor([self.right - self.left, self.bottom - self.top] * 2)
        scaled = self._mirror(boxes * (sides / size[[1, 0, 1, 0]]))
        return scaled + boxes.new_tensor([self.left, self.top] * 2)

    def from_original(self, boxes: Tensor, size: Tensor) -> Tensor:
        """Convert boxes from the original image to the view, clipped to its border.

        Args:
            boxes: (N, 4) xyxy in pixels of the original image.
            size: (2,) height and width of the view in the batch.

        Returns:
            (N, 4) xyxy in pixels of the view as it is in the batch.
        """
        sides = boxes.new_tensor([self.right - self.left, self.bottom - self.top] * 2)
        inside = (boxes - boxes.new_tensor([self.left, self.top] * 2)).clamp(min=0).minimum(sides)
        scaled: Tensor = self._mirror(inside) * size[[1, 0, 1, 0]] / sides
        return scaled

    def _mirror(self, boxes: Tensor) -> Tensor:
        """Return boxes in pixels of the window, flipped horizontally where the view is mirrored."""
        if not self.mirrored:
            return boxes
        flipped = boxes.clone()
        flipped[:, [0, 2]] = (self.right - self.left) - boxes[:, [2, 0]]
        return flipped


@dataclass(frozen=True)
class Frame:
    """Origin of an image.

    Attributes:
        id: Unique within its file or folder; in COCO files the image id.
        name: File name relative to the folder of images, or `video.mp4@12.400s` for a video frame.
        size: Height and width of the original image in pixels; (0, 0) where unknown.
        camera: Name of the camera, empty where unknown.
        recording: Name of the recording; by default the camera.
        index: Position in the recording; order only.
        timestamp: Seconds from the start of the recording, or since 1970; `None` where unknown.
        view: Part that a training view shows; `None` for the whole image.
    """

    id: int
    name: str
    size: tuple[int, int]
    camera: str = ""
    recording: str = ""
    index: int = 0
    timestamp: float | None = None
    view: View | None = None
