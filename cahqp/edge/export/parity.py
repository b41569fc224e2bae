"""Does a package say what its model file says? Compared without regard to order.

Queries whose scores nearly tie swap places between two runtimes, so the tenth detection of one may be the eleventh of
the other although all values agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cahqp.edge.runtime import Found
from cahqp.errors import WeightsError

SCORE = 0.3
PIXELS = 0.5
SCORES = 1e-3


@dataclass
class Parity:
    """The largest differences found so far.

    Attributes:
        frames: Number of frames compared.
        detections: Number of detections above a score of 0.3 that were compared one by one.
        pixels: Largest difference of a coordinate among them, in pixels of the frame.
        scores: Largest difference of a score among them.
        ranked: Largest difference between the sorted scores of all detections; speaks where nothing is above 0.3.
        lost: Detections clearly above 0.3 on one side without a counterpart of their class on the other.
    """

    frames: int = 0
    detections: int = 0
    pixels: float = 0.0
    scores: float = 0.0
    ranked: float = 0.0
    lost: int = 0

    def add(self, first: Found, second: Found) -> None:
        """Compare two answers to the same frame, both ways."""
        self.frames += 1
        one, other = (np.sort(found.scores)[::-1] for found in (first, second))
        count = min(len(one), len(other))
        self.ranked = max(self.ranked, float(np.abs(one[:count] - other[:count]).max(initial=0.0)))
        for found, reference in ((first, second), (second, first)):
            self._compare(found, reference)

    def problems(self) -> list[str]:
        """Return what is beyond the limits, empty when all is well."""
        found = []
        if self.lost:
            found.append(f"{self.lost} detections above {SCORE:g} have no counterpart")
        if self.pixels > PIXELS:
            found.append(f"boxes differ by up to {self.pixels:.2f} px (allowed: {PIXELS:g})")
        if max(self.scores, self.ranked) > SCORES:
            found.append(f"scores differ by up to {max(self.scores, self.ranked):.4f} (allowed: {SCORES:g})")
        return found

    def check(self, what: str) -> None:
        """Refuse a package that says something else than its model file.

        Raises:
            WeightsError: It does.
        """
        if self.problems():
            message = (
                f"{what} does not detect what PyTorch does on {self.frames} frames: {'; '.join(self.problems())}. "
                "Nothing was written. Try the other --sampling."
            )
            raise WeightsError(message)

    def _compare(self, found: Found, reference: Found) -> None:
        for box, score, label in zip(*found, strict=True):
            if score <= SCORE:
                continue
            same = reference.labels == label
            if not same.any():
                self.lost += bool(score > SCORE + SCORES)
                continue
            away = np.abs(reference.boxes[same] - box).max(1)
            # Among boxes that lie equally near, the one with the nearest score is meant.
            best = int(np.lexsort((np.abs(reference.scores[same] - score), np.maximum(away, PIXELS / 50)))[0])
            self.detections += 1
            self.pixels = max(self.pixels, float(away[best]))
            self.scores = max(self.scores, float(abs(reference.scores[same][best] - score)))


def synthetic_frames(height: int, width: int, count: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Make RGB frames to compare on where none are given: empty, noisy and crowded ones in turn.

    Args:
        height: Of the model's input; frames are half as large again in one direction, so that resizing takes part.
        width: Of the model's input.
        count: How many.
        seed: Decides them.
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
