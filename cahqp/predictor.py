"""Detector for Python code: `cahqp.load("model.safetensors").predict(images)`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cahqp.coco.decoding import BrokenImageError, read_image
from cahqp.data.datasets import as_tensor
from cahqp.data.transforms import plain
from cahqp.detectors.base import Detector
from cahqp.detectors.model_file import load as load_detector
from cahqp.frame import Frame
from cahqp.inference.frames import detect
from cahqp.structures import Detections, Targets, collate


class Predictor:
    """Detector with its preprocessing.

    Args:
        detector: The detector in eval mode.
    """

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self._resize = plain(detector.preprocessing)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels."""
        return self.detector.classes

    def predict(self, images: Sequence[NDArray[np.uint8] | Path | str], threshold: float = 0.0) -> list[Detections]:
        """Return each image's detections in its own pixels, best first.

        Args:
            images: (H, W, 3) uint8 RGB arrays of any sizes, or image files.
            threshold: Minimum score, 0..1.

        Raises:
            TypeError: `images` is a single path instead of a list.
            ValueError: An image has another shape or type.
            BrokenImageError: A file is not a readable image.
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
        samples = [
            (as_tensor(self._resize(image, Targets.empty(), 0)[0]), Targets.empty(), Frame(number, "", image.shape[:2]))
            for number, image in enumerate(pixels)
        ]
        batch = collate(samples).to(next(self.detector.parameters()).device)
        return [own[own.scores >= threshold] for own in detect(self.detector, batch)]


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        return read_image(path)
    except BrokenImageError as error:
        message = f"{path}: {error}"
        raise BrokenImageError(message) from error


def load(path: Path | str) -> Predictor:
    """Return the detector of a model file, on the CPU.

    Raises:
        WeightsError: The file is missing, damaged or not a model file of cahqp.
    """
    return Predictor(load_detector(Path(path)))
