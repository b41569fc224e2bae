"""A detector from Python: `cahqp.load("model.safetensors").predict(images)`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cahqp.data.datasets import as_tensor
from cahqp.data.images import BrokenImageError, read_image
from cahqp.data.transforms import plain
from cahqp.detectors.base import Detector
from cahqp.detectors.model_file import load as load_detector
from cahqp.structures import Detections, Targets, collate


class Predictor:
    """A model file, ready to detect.

    Args:
        detector: In eval mode.
    """

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self._resize = plain(detector.preprocessing)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels."""
        return self.detector.classes

    @torch.no_grad()
    def predict(self, images: Sequence[NDArray[np.uint8] | Path | str], threshold: float = 0.0) -> list[Detections]:
        """Return each image's detections in its own pixels, best first.

        Args:
            images: (H, W, 3) uint8 RGB, of any sizes, or image files.
            threshold: Lowest score that is returned.

        Raises:
            ValueError: An image has another shape or type.
            BrokenImageError: A file cannot be read as an image.
        """
        if isinstance(images, (str, Path)):
            message = f"predict takes a list of images: predict([{str(images)!r}])."
            raise TypeError(message)
        pixels = [_read(Path(image)) if isinstance(image, (str, Path)) else image for image in images]
        for number, image in enumerate(pixels):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                message = f"images[{number}] must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}."
                raise ValueError(message)
        if not pixels:
            return []
        device = next(self.detector.parameters()).device
        views = [as_tensor(self._resize(image, Targets.empty(), 0)[0]) for image in pixels]
        batch = collate([(view, Targets.empty(), None) for view in views]).to(device)  # type: ignore[misc]
        normalised = self.detector.preprocessing.normalise(batch.images, batch.padding_mask)
        sizes = torch.tensor([image.shape[:2] for image in pixels], device=device)
        found = self.detector.decode(self.detector(normalised, batch.padding_mask), sizes)
        return [detections[detections.scores >= threshold] for detections in found]


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        return read_image(path)
    except BrokenImageError as error:
        message = f"{path}: {error}"
        raise BrokenImageError(message) from error


def load(path: Path | str) -> Predictor:
    """Return the detector of a model file, on the CPU.

    Raises:
        WeightsError: The file is missing, damaged or not one of ours.
    """
    return Predictor(load_detector(Path(path)))
