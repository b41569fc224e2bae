"""The data type that every stage speaks: boxes of one image, and batches of images with their padding."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, cast

import torch
from torch import Tensor

from cahqp.frame import Frame


def _check_boxes(boxes: Tensor, what: str) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        message = f"{what} must be (N, 4) xyxy pixels, got shape {tuple(boxes.shape)}."
        raise ValueError(message)
    if not torch.is_floating_point(boxes):
        message = f"{what} must be floating point, got {boxes.dtype}."
        raise TypeError(message)


def _check_length(values: Tensor, count: int, what: str) -> None:
    if values.shape != (count,):
        message = f"{what} must be ({count},) like the boxes, got shape {tuple(values.shape)}."
        raise ValueError(message)


class _PerBox:
    """Moving and selecting for a dataclass of tensors."""

    def to(self, device: torch.device | str) -> Self:
        """Return the same on another device."""
        return replace(self, **{k: v.to(device) for k, v in self._tensors().items()})  # type: ignore[type-var]

    def _tensors(self) -> dict[str, Tensor]:
        named = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class Detections(_PerBox):
    """What a detector says of one image.

    Attributes:
        boxes: (N, 4) float32 xyxy in pixels.
        scores: (N,) float32 in 0..1.
        labels: (N,) int64 contiguous class indices.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        """Check shapes."""
        _check_boxes(self.boxes, "boxes")
        _check_length(self.scores, len(self.boxes), "scores")
        _check_length(self.labels, len(self.boxes), "labels")

    def __len__(self) -> int:
        """Return the number of boxes."""
        return len(self.boxes)

    def __getitem__(self, index: Tensor | slice) -> Detections:
        """Return the boxes that a boolean mask, an index tensor or a slice selects."""
        return Detections(self.boxes[index], self.scores[index], self.labels[index])

    @classmethod
    def empty(cls, device: torch.device | str = "cpu") -> Detections:
        """Return no detections."""
        zeros = torch.zeros(0, device=device)
        return cls(zeros.reshape(0, 4), zeros, zeros.long())


@dataclass(frozen=True)
class Targets(_PerBox):
    """What one image is trained towards.

    Attributes:
        boxes: (N, 4) float32 xyxy in pixels of the image as it is in the batch.
        labels: (N,) int64 contiguous class indices.
        weights: (N,) float32 in 0..1, the share with which each box counts; ones where not given.
        ignore: (K, 4) float32 xyxy regions that are neither object nor background; none where not given.
        seed: Seeds this image's denoising noise; `None` draws from the global generator.
    """

    boxes: Tensor
    labels: Tensor
    weights: Tensor = field(default=None)  # type: ignore[assignment]
    ignore: Tensor = field(default=None)  # type: ignore[assignment]
    seed: int | None = None

    def __post_init__(self) -> None:
        """Fill in the defaults and check shapes."""
        if cast("Tensor | None", self.weights) is None:
            object.__setattr__(self, "weights", self.boxes.new_ones(len(self.boxes)))
        if cast("Tensor | None", self.ignore) is None:
            object.__setattr__(self, "ignore", self.boxes.new_zeros((0, 4)))
        _check_boxes(self.boxes, "boxes")
        _check_boxes(self.ignore, "ignore")
        _check_length(self.labels, len(self.boxes), "labels")
        _check_length(self.weights, len(self.boxes), "weights")

    def __len__(self) -> int:
        """Return the number of boxes, ignored regions not counted."""
        return len(self.boxes)

    def __getitem__(self, index: Tensor | slice) -> Targets:
        """Return the boxes that a mask selects; ignored regions and the seed stay."""
        return replace(self, boxes=self.boxes[index], labels=self.labels[index], weights=self.weights[index])

    @classmethod
    def empty(cls, device: torch.device | str = "cpu") -> Targets:
        """Return no boxes and no ignored regions."""
        zeros = torch.zeros(0, device=device)
        return cls(zeros.reshape(0, 4), zeros.long())


@dataclass
class Batch:
    """Images of one step, padded at the right and the bottom to a common size.

    Attributes:
        images: (B, 3, H, W) uint8 RGB, not normalised; the detector's `Preprocessing` does that on the device.
        padding_mask: (B, H, W) bool, true where padded.
        targets: One per image.
        frames: One per image.
    """

    images: Tensor
    padding_mask: Tensor
    targets: list[Targets]
    frames: list[Frame]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def to(self, device: torch.device | str, **_: Any) -> Batch:
        """Return the same on another device. Lightning moves batches by calling this."""
        targets = [t.to(device) for t in self.targets]
        return Batch(self.images.to(device), self.padding_mask.to(device), targets, self.frames)

    def pin_memory(self) -> Batch:
        """Return the same with the images in page-locked memory, for fast copies to a GPU."""
        return replace(self, images=self.images.pin_memory(), padding_mask=self.padding_mask.pin_memory())


def valid_sizes(padding_mask: Tensor) -> Tensor:
    """Return (B, 2) float heights and widths of the unpadded parts, which lie at the top left.

    Args:
        padding_mask: (B, H, W) bool, true where padded.
    """
    heights = (~padding_mask[:, :, 0]).sum(1)
    widths = (~padding_mask[:, 0, :]).sum(1)
    return torch.stack([heights, widths], 1).float()


def collate(samples: list[tuple[Tensor, Targets, Frame]]) -> Batch:
    """Pad images to the largest height and width among them.

    Args:
        samples: Each a (3, h, w) uint8 image, its targets and its frame.
    """
    height = max(image.shape[1] for image, _, _ in samples)
    width = max(image.shape[2] for image, _, _ in samples)
    images = torch.zeros(len(samples), 3, height, width, dtype=torch.uint8)
    mask = torch.ones(len(samples), height, width, dtype=torch.bool)
    for row, (image, _, _) in enumerate(samples):
        images[row, :, : image.shape[1], : image.shape[2]] = image
        mask[row, : image.shape[1], : image.shape[2]] = False
    return Batch(images, mask, [t for _, t, _ in samples], [f for _, _, f in samples])


@dataclass(frozen=True)
class Preprocessing:
    """How a detector wants its images: a size rule and a normalisation.

    Either `size` is set (both sides fixed, the aspect ratio is not kept), or `short_side` with `max_side` (kept).

    Attributes:
        size: Height and width in pixels.
        short_side: Length of the shorter side in pixels, unless the longer one would pass `max_side`.
        max_side: Longest length allowed for the longer side in pixels.
        mean: Subtracted from RGB in 0..1.
        std: What the difference is divided by.
    """

    size: tuple[int, int] | None = None
    short_side: int | None = None
    max_side: int | None = None
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        """Check that exactly one size rule is given."""
        if (self.size is None) == (self.short_side is None):
            message = f"Give either size or short_side, got size={self.size} and short_side={self.short_side}."
            raise ValueError(message)

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that an image of this height and width is resized to.

        Where the aspect ratio is kept, as official DINO does it: the short side is rounded and the long one follows it,
        cut off, so that it may pass `max_side` by a few pixels. detrex rounds both sides.
        """
        if self.size is not None:
            return self.size
        assert self.short_side is not None
        short, (low, high) = self.short_side, sorted((height, width))
        if self.max_side is not None and high / low * short > self.max_side:
            short = round(self.max_side * low / high)
            if short < 1:  # a sliver: the long side decides alone
                return (1, self.max_side) if height <= width else (self.max_side, 1)
        long = int(short * high / low)
        return (short, long) if height <= width else (long, short)

    def normalise(self, images: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Return (B, 3, H, W) float32 from uint8 RGB; padding becomes zero after normalisation, as DINO has it."""
        mean = torch.tensor(self.mean, device=images.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(3, 1, 1)
        normalised = (images.float() / 255 - mean) / std
        if padding_mask is not None:
            normalised = normalised.masked_fill(padding_mask[:, None], 0.0)
        return normalised
