"""Detector of PyTorch on images in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cahqp.data.datasets import as_tensor
from cahqp.data.transforms import plain
from cahqp.detectors.base import Detector
from cahqp.evaluation.ground_truth import ImagePredictions
from cahqp.frame import Frame
from cahqp.inference.frames import as_arrays, detect
from cahqp.structures import Targets, collate


class Predictor:
    """Detector with its preprocessing.

    Args:
        detector: The detector in eval mode.

    Attributes:
        batch: Number of images to detect on at a time. The composition of a batch affects the last digits.
    """

    batch = 1

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self._resize = plain(detector.preprocessing)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels."""
        return self.detector.classes

    @property
    def thresholds(self) -> NDArray[np.float32]:
        """(C,) operating thresholds. A class without a measured threshold gets 0.5."""
        return np.array([self.detector.thresholds.get(name, 0.5) for name in self.classes], np.float32)

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[ImagePredictions]:
        """Return each image's detections in its own pixels, best first, without a score threshold.

        Args:
            images: (H, W, 3) uint8 RGB of any sizes, at least one.
        """
        samples = [
            (as_tensor(self._resize(image, Targets.empty(), 0)[0]), Targets.empty(), Frame(number, "", image.shape[:2]))
            for number, image in enumerate(images)
        ]
        batch = collate(samples).to(next(self.detector.parameters()).device)
        return [as_arrays(own) for own in detect(self.detector, batch)]
