"""Comparison of a package with its model file, independent of the order of detections.

Queries with nearly equal scores swap places between two runtimes: the tenth detection of one may be the eleventh of the
other although all values agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cahqp.edge.detections import EdgeDetections
from cahqp.errors import WeightsError

SCORE = 0.3
PIXELS = 0.5
SCORES = 1e-3


@dataclass
class Parity:
    """Largest differences over all compared frames.

    Attributes:
        frames: Number of compared frames.
        detections: Number of detections with a score above 0.3 that were compared one by one.
        pixels: Largest difference of a coordinate among them, in pixels of the frame.
        scores: Largest difference of a score among them.
        ranked: Largest difference between the sorted scores of all detections.
        lost: Number of detections clearly above 0.3 on one side without a detection of their class on the other.
    """

    frames: int = 0
    detections: int = 0
    pixels: float = 0.0
    scores: float = 0.0
    ranked: float = 0.0
    lost: int = 0

    def add(self, first: EdgeDetections, second: EdgeDetections) -> None:
        """Compare two results for the same frame, in both directions.

        Raises:
            WeightsError: A score or coordinate is NaN or infinite, which no difference would show.
        """
        self.frames += 1
        if not all(np.isfinite(values).all() for found in (first, second) for values in (found.boxes, found.scores)):
            message = (
                f"The model returns NaN or infinity on frame {self.frames} of the check. Nothing was written. Export "
                "another model file."
            )
            raise WeightsError(message)
        scores_a, scores_b = (np.sort(found.scores)[::-1] for found in (first, second))
        count = min(len(scores_a), len(scores_b))
        self.ranked = max(self.ranked, float(np.abs(scores_a[:count] - scores_b[:count]).max(initial=0.0)))
        self._compare(first, second)
        self._compare(second, first)

    def problems(self) -> list[str]:
        """Return one line for each difference beyond its limit."""
        problems = []
        if self.lost:
            problems.append(f"{self.lost} detections above {SCORE:g} have no counterpart")
        if self.pixels > PIXELS:
            problems.append(f"boxes differ by up to {self.pixels:.2f} px (allowed: {PIXELS:g})")
        if max(self.scores, self.ranked) > SCORES:
            problems.append(f"scores differ by up to {max(self.scores, self.ranked):.4f} (allowed: {SCORES:g})")
        return problems

    def check(self, weights: str) -> None:
        """Refuse a package that differs from its model file.

        Raises:
            WeightsError: A difference is beyond its limit.
        """
        if self.problems():
            message = (
                f"The ONNX model of {weights} differs from PyTorch on {self.frames} frames: "
                f"{'; '.join(self.problems())}. Nothing was written. Try the other --sampling."
            )
            raise WeightsError(message)

    def _compare(self, found: EdgeDetections, reference: EdgeDetections) -> None:
        for box, score, label in zip(*found, strict=True):
            if score <= SCORE:
                continue
            same = reference.labels == label
            if not same.any():
                self.lost += bool(score > SCORE + SCORES)
                continue
            distance = np.abs(reference.boxes[same] - box).max(1)
            # Among boxes that are equally near, the one with the nearest score is the counterpart.
            best = int(np.lexsort((np.abs(reference.scores[same] - score), np.maximum(distance, PIXELS / 50)))[0])
            self.detections += 1
            self.pixels = max(self.pixels, float(distance[best]))
            self.scores = max(self.scores, float(abs(reference.scores[same][best] - score)))


def synthetic_frames(height: int, width: int, count: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Yield RGB frames for a comparison without real frames: empty, noisy and crowded ones in turn.

    Args:
        height: Height of the model's input. Every second frame is half as high again, so that resizing takes part.
        width: Width of the model's input. Every third frame is half as wide again.
        count: Number of frames.
        seed: Seed of the content.
    """
    random = np.random.default_rng(seed)
    for number in range(count):
        shape = (height + height // 2 * (number % 2), width + width // 2 * (number % 3 == 1), 3)
        if number % 4 == 0:
            yield np.full(shape, random.integers(0, 256), np.uint8)
        elif number % 4 == 1:
            yield random.integers(0, 256, shape).astype(np.uint8)
        else:
            yield _crowd(random, shape)


def _crowd(random: np.random.Generator, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    image = np.full(shape, random.integers(40, 200), np.uint8)
    for _ in range(int(random.integers(20, 60))):
        top, left = int(random.integers(0, shape[0])), int(random.integers(0, shape[1]))
        bottom = top + int(random.integers(2, max(3, shape[0] // 4)))
        right = left + int(random.integers(2, max(3, shape[1] // 4)))
        image[top:bottom, left:right] = random.integers(0, 256, 3)
    return image
