"""Detections and targets of one image, batches of padded images, and preprocessing."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, cast

import torch
from torch import Tensor

from cahqp.frame import Frame


def _check_boxes(boxes: Tensor, name: str) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        message = f"{name} must be (N, 4) xyxy pixels, got shape {tuple(boxes.shape)}."
        raise ValueError(message)
    if not torch.is_floating_point(boxes):
        message = f"{name} must be floating point, got {boxes.dtype}."
        raise TypeError(message)


def _check_length(values: Tensor, count: int, name: str) -> None:
    if values.shape != (count,):
        message = f"{name} must be ({count},) like the boxes, got shape {tuple(values.shape)}."
        raise ValueError(message)


class _PerBox:
    """Base of dataclasses with one tensor row per box."""

    def to(self, device: torch.device | str) -> Self:
        """Return a copy on another device."""
        return replace(self, **{k: v.to(device) for k, v in self._tensors().items()})  # type: ignore[type-var]

    def _tensors(self) -> dict[str, Tensor]:
        named = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class Detections(_PerBox):
    """Detections in one image.

    Attributes:
        boxes: (N, 4) float32 xyxy in pixels.
        scores: (N,) float32 in [0, 1].
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
        """Return an instance without detections."""
        zeros = torch.zeros(0, device=device)
        return cls(zeros.reshape(0, 4), zeros, zeros.long())


@dataclass(frozen=True)
class Targets(_PerBox):
    """Training targets of one image.

    Attributes:
        boxes: (N, 4) float32 xyxy in pixels of the batch image.
        labels: (N,) int64 contiguous class indices.
        weights: (N,) float32 in [0, 1], loss weight of each box; defaults to ones.
        ignore: (K, 4) float32 xyxy regions that are neither object nor background; defaults to none.
        seed: Seed of the denoising noise of this image; `None` uses the global generator.
        ignore_weights: (K,) float32 in [0, 1], expected number of objects in each ignored region; defaults to zeros.
    """

    boxes: Tensor
    labels: Tensor
    weights: Tensor = field(default=None)  # type: ignore[assignment]
    ignore: Tensor = field(default=None)  # type: ignore[assignment]
    seed: int | None = None
    ignore_weights: Tensor = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Fill in defaults and check shapes."""
        if cast("Tensor | None", self.weights) is None:
            object.__setattr__(self, "weights", self.boxes.new_ones(len(self.boxes)))
        if cast("Tensor | None", self.ignore) is None:
            object.__setattr__(self, "ignore", self.boxes.new_zeros((0, 4)))
        if cast("Tensor | None", self.ignore_weights) is None:
            object.__setattr__(self, "ignore_weights", self.ignore.new_zeros(len(self.ignore)))
        _check_boxes(self.boxes, "boxes")
        _check_boxes(self.ignore, "ignore")
        _check_length(self.labels, len(self.boxes), "labels")
        _check_length(self.weights, len(self.boxes), "weights")
        _check_length(self.ignore_weights, len(self.ignore), "ignore_weights")

    def __len__(self) -> int:
        """Return the number of boxes, excluding ignored regions."""
        return len(self.boxes)

    def __getitem__(self, index: Tensor | slice) -> Targets:
        """Return the selected boxes, with all ignored regions and the seed."""
        return replace(self, boxes=self.boxes[index], labels=self.labels[index], weights=self.weights[index])

    @classmethod
    def empty(cls, device: torch.device | str = "cpu") -> Targets:
        """Return an instance without boxes and ignored regions."""
        zeros = torch.zeros(0, device=device)
        return cls(zeros.reshape(0, 4), zeros.long())


@dataclass
class Batch:
    """Images padded at the right and bottom to a common size.

    Attributes:
        images: (B, 3, H, W) uint8 RGB; the detector's `Preprocessing` normalises them on the device.
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
        """Return a copy on another device; Lightning calls this to move batches."""
        targets = [t.to(device) for t in self.targets]
        return Batch(self.images.to(device), self.padding_mask.to(device), targets, self.frames)

    def pin_memory(self) -> Batch:
        """Return a copy with images in page-locked memory, for fast transfer to a GPU."""
        return replace(self, images=self.images.pin_memory(), padding_mask=self.padding_mask.pin_memory())


def valid_sizes(padding_mask: Tensor) -> Tensor:
    """Return (B, 2) float heights and widths of the unpadded top-left parts.

    Args:
        padding_mask: (B, H, W) bool, true where padded.
    """
    heights = (~padding_mask[:, :, 0]).sum(1)
    widths = (~padding_mask[:, 0, :]).sum(1)
    return torch.stack([heights, widths], 1).float()


def collate(samples: list[tuple[Tensor, Targets, Frame]]) -> Batch:
    """Pad images to the largest height and width among them.

    Args:
        samples: (3, h, w) uint8 images with their targets and frames.
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
    """Size rule and normalisation of a detector.

    Set either `size` (fixed, changes the aspect ratio) or `short_side` with `max_side` (keeps it).

    Attributes:
        size: Height and width in pixels.
        short_side: Length of the shorter side in pixels, reduced if the longer side would exceed `max_side`.
        max_side: Maximum length of the longer side in pixels.
        mean: RGB mean, in [0, 1].
        std: RGB standard deviation, in [0, 1].
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
        """Return height and width after resizing an image of the given height and width, all in pixels.

        With `short_side` this follows official DINO: the short side is rounded, the long side is truncated and may
        exceed `max_side` by a few pixels. detrex rounds both sides.
        """
        if self.size is not None:
            return self.size
        assert self.short_side is not None
        short, (low, high) = self.short_side, sorted((height, width))
        if self.max_side is not None and high / low * short > self.max_side:
            short = round(self.max_side * low / high)
            if short < 1:  # a sliver: only the long side decides
                return (1, self.max_side) if height <= width else (self.max_side, 1)
        long = int(short * high / low)
        return (short, long) if height <= width else (long, short)

    def normalise(self, images: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Return (B, 3, H, W) float32 from uint8 RGB; padding is zero after normalisation, as in DINO."""
        mean = torch.tensor(self.mean, device=images.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(3, 1, 1)
        normalised = (images.float() / 255 - mean) / std
        if padding_mask is not None:
            normalised = normalised.masked_fill(padding_mask[:, None], 0.0)
        return normalised
