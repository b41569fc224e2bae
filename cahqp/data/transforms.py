"""Augmentation, and the final resizing of every image. The only module that uses albumentations.

Geometry is implemented here, because weights and ignored regions move with the boxes, and the teacher's and the
student's view of a frame share it. albumentations changes the colours. Everything random is a function of the given
seed, so it does not depend on the worker or the order.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import irfft2, rfft2

from cahqp.frame import View
from cahqp.structures import Preprocessing, Targets

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # otherwise it queries PyPI for a newer version on import

import albumentations as A

Image = NDArray[np.uint8]
_MIN_VISIBLE_SHARE = 0.3  # a box of which less is left after a crop is not a useful example of its class
_MIN_SIDE = 2.0  # pixels in the batch


class Augmentation:
    """Conversion of an image and its targets to the form in a batch.

    Args:
        preprocessing: Size rule of the detector.
        min_share: Smallest share of the height and width that a random crop keeps; `None` disables cropping and
            mirroring.
        photometric: Also change colours, light, sharpness and noise.

    Attributes:
        restyle: Applied to images before their colours are changed; `None` disables it.
    """

    def __init__(self, preprocessing: Preprocessing, min_share: float | None, photometric: bool) -> None:
        self._preprocessing = preprocessing
        self._min_share = min_share
        self._photometric = _Photometric() if photometric else None
        self.restyle: Restyle | None = None

    def __call__(self, image: Image, targets: Targets, seed: int) -> tuple[Image, Targets]:
        """Return the second image of `views`, and the targets."""
        return self.views(image, targets, seed)[1:]

    def views(self, image: Image, targets: Targets, seed: int) -> tuple[Image, Image, Targets]:
        """Return the resized image without and with the photometric part, in the same geometry, and its targets.

        Args:
            image: (H, W, 3) uint8 RGB.
            targets: Boxes in pixels of that image.
            seed: Seed of everything random.
        """
        rng = np.random.default_rng(seed)
        window = self._window(rng, *image.shape[:2])
        size = self._preprocessing.target_size(window.bottom - window.top, window.right - window.left)
        targets = _move_targets(targets, window, size, drop=self._min_share is not None)
        view = _resize(image, window, size)
        styled = view if self.restyle is None else self.restyle(view, seed)
        return view, self._photometric(styled, rng) if self._photometric else styled, targets

    def view(self, height: int, width: int, seed: int) -> View:
        """Return the part of an image of this height and width that is shown for a seed."""
        return self._window(np.random.default_rng(seed), height, width)

    def _window(self, rng: np.random.Generator, height: int, width: int) -> View:
        if self._min_share is None:
            return View(0, 0, width, height)
        # Half of the images keep their borders, where objects also occur at inference.
        share = rng.uniform(self._min_share, 1) if rng.random() < 0.5 else 1.0
        crop_height, crop_width = max(1, round(height * share)), max(1, round(width * share))
        top = int(rng.integers(0, height - crop_height + 1))
        left = int(rng.integers(0, width - crop_width + 1))
        return View(left, top, left + crop_width, top + crop_height, mirrored=bool(rng.random() < 0.5))


def plain(preprocessing: Preprocessing) -> Augmentation:
    """Return an augmentation that only resizes; every box is kept."""
    return Augmentation(preprocessing, min_share=None, photometric=False)


def weak(preprocessing: Preprocessing) -> Augmentation:
    """Return an augmentation that mirrors and crops slightly."""
    return Augmentation(preprocessing, min_share=0.8, photometric=False)


def strong(preprocessing: Preprocessing) -> Augmentation:
    """Return an augmentation that mirrors, crops, and changes the light as far as from day to night."""
    return Augmentation(preprocessing, min_share=0.6, photometric=True)


def _resize(image: Image, window: View, size: tuple[int, int]) -> Image:
    part: Any = image[window.top : window.bottom, window.left : window.right]
    if part.shape[:2] != size:
        smaller = size[0] <= part.shape[0] and size[1] <= part.shape[1]
        # Averaging keeps far vehicles that point sampling would skip.
        part = cv2.resize(part, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    return np.ascontiguousarray(part[:, ::-1] if window.mirrored else part)


def _move_targets(targets: Targets, window: View, size: tuple[int, int], drop: bool) -> Targets:
    boxes, visible = _move(targets.boxes, window, size)
    ignore, ignore_visible = _move(targets.ignore, window, size)
    kept = ignore_visible > 0
    moved = replace(targets, boxes=boxes, ignore=ignore[kept], ignore_weights=targets.ignore_weights[kept])
    if not drop:
        return moved
    sides = (boxes[:, 2:] - boxes[:, :2]).amin(1)
    return moved[(visible >= _MIN_VISIBLE_SHARE) & (sides >= _MIN_SIDE)]


def _move(boxes: torch.Tensor, window: View, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return boxes in pixels of the resized window, clipped to it, and the share of each that remains."""
    width, height = window.right - window.left, window.bottom - window.top
    moved = boxes - boxes.new_tensor([window.left, window.top] * 2)
    if window.mirrored:
        moved = torch.stack([width - moved[:, 2], moved[:, 1], width - moved[:, 0], moved[:, 3]], 1)
    limit = moved.new_tensor([width, height] * 2)
    clipped = moved.clamp(min=torch.zeros_like(limit), max=limit)
    visible = _area(clipped) / _area(moved).clamp(min=1e-9)
    scaled = clipped * boxes.new_tensor([size[1] / width, size[0] / height] * 2)
    return scaled.clamp(max=boxes.new_tensor([size[1], size[0]] * 2)), visible


def _area(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)


class Restyle:
    """Fourier domain adaptation (Yang and Soatto, arXiv 2004.05498) of labelled images to an unlabelled domain.

    The lowest frequencies of an image's amplitude, which contain its light and colours, are replaced by those of a
    frame of the other domain. The phase, which contains the objects, is unchanged, and so are the boxes. No label of
    the frame is needed. albumentations' version leaves out the mean brightness if few frequencies are taken.

    Args:
        read: Returns the frame of the other domain at an index, (H, W, 3) uint8 RGB.
        count: Number of these frames.
        share: Share of the images to change, 0..1.
        reach: Largest frequency to replace, as a share of the shorter side; drawn per image between 0 and this.
    """

    def __init__(self, read: Callable[[int], Image], count: int, share: float, reach: float = 0.1) -> None:
        self._read, self._count, self._share, self._reach = read, count, share, reach

    def __call__(self, image: Image, seed: int) -> Image:
        """Return the image in the style of the other domain, or unchanged.

        Args:
            image: (H, W, 3) uint8 RGB.
            seed: Seed of everything random.
        """
        rng = np.random.default_rng([seed, 1])
        if rng.random() >= self._share:
            return image
        height, width = image.shape[:2]
        frame = self._read(int(rng.integers(self._count)))
        other: Any = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
        return _with_amplitude(image, other, int(min(height, width) * rng.uniform(0, self._reach)))


def _with_amplitude(image: Image, other: Image, border: int) -> Image:
    """Return the image with the other's amplitude at frequencies up to `border` periods in both directions."""
    spectrum = rfft2(image.astype(np.float32), axes=(0, 1))
    other_spectrum = rfft2(other.astype(np.float32), axes=(0, 1))
    low = np.ix_(np.arange(-border, border + 1), np.arange(border + 1))
    spectrum[low] = np.abs(other_spectrum[low]) * np.exp(1j * np.angle(spectrum[low]))
    changed = irfft2(spectrum, s=image.shape[:2], axes=(0, 1))
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8)


class _Photometric:
    """Wide changes of colours, light, sharpness and noise; half of the images are darkened, down to a seventh."""

    def __init__(self) -> None:
        self._light = A.Compose(
            [
                A.ColorJitter(
                    brightness=(0.7, 1.4), contrast=(0.5, 1.4), saturation=(0.3, 1.5), hue=(-0.05, 0.05), p=0.7
                ),
                A.ToGray(p=0.1),
                A.RandomGamma(gamma_limit=(60, 220), p=0.4),
                A.MultiplicativeNoise(multiplier=(0.15, 1.2), elementwise=False, p=0.5),
                A.PlanckianJitter(p=0.3),
            ]
        )
        self._camera = A.Compose(
            [
                A.OneOf([A.GaussianBlur(blur_limit=(3, 5)), A.MotionBlur(blur_limit=(3, 7))], p=0.3),
                A.GaussNoise(std_range=(0.01, 0.08), p=0.4),
                A.ImageCompression(quality_range=(30, 90), p=0.2),
                A.CoarseDropout(
                    num_holes_range=(1, 4), hole_height_range=(0.05, 0.2), hole_width_range=(0.03, 0.12), p=0.3
                ),
            ]
        )

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Return the image as on another day or night, or from another camera."""
        python_rng = random.Random(int(rng.integers(2**63)))
        self._light.set_random_state(rng, python_rng)
        self._camera.set_random_state(rng, python_rng)
        image = self._light(image=image)["image"]
        if rng.random() < 0.3:
            image = _add_lamps(image, rng)
        return np.ascontiguousarray(self._camera(image=image)["image"])


def _add_lamps(image: Image, rng: np.random.Generator) -> Image:
    """Add up to six round glows, like headlights and street lamps in the dark."""
    height, width = image.shape[:2]
    lit = image.astype(np.float32)
    for _ in range(rng.integers(1, 7)):
        radius = rng.uniform(0.01, 0.06) * height
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        left, right = max(0, int(x - 3 * radius)), min(width, int(x + 3 * radius) + 1)
        top, bottom = max(0, int(y - 3 * radius)), min(height, int(y + 3 * radius) + 1)
        across = np.exp(-((np.arange(left, right) - x) ** 2) / (2 * radius**2))
        down = np.exp(-((np.arange(top, bottom) - y) ** 2) / (2 * radius**2))
        colour = rng.uniform([200, 150, 80], [300, 290, 280])
        lit[top:bottom, left:right] += down[:, None, None] * across[None, :, None] * colour
    return np.clip(lit, 0, 255).astype(np.uint8)
