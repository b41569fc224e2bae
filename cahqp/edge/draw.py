"""Boxes on frames, for people."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from cahqp.edge.frames import EdgeFrame
from cahqp.edge.runtime import Found
from cahqp.errors import RunError
from cahqp.files import writing

# Okabe and Ito's colours (BGR), which people with any colour vision can tell apart.
_COLOURS = ((0, 159, 230), (233, 180, 86), (115, 158, 0), (66, 228, 240), (178, 114, 0), (0, 94, 213), (167, 121, 204))


class Drawing:
    """Writes frames with their boxes as JPEG files.

    Args:
        folder: Directory to make.
        classes: Class names by label.
    """

    def __init__(self, folder: Path, classes: tuple[str, ...]) -> None:
        self._folder = folder
        self._classes = classes

    def add(self, frame: EdgeFrame, found: Found) -> None:
        """Write one frame.

        Raises:
            RunError: It cannot be written.
        """
        if frame.image is None:
            return
        image = np.ascontiguousarray(frame.image)
        for box, score, label in zip(found.boxes.round().astype(int).tolist(), found.scores, found.labels, strict=True):
            colour = _COLOURS[int(label) % len(_COLOURS)]
            cv2.rectangle(image, (box[0], box[1]), (box[2], box[3]), colour, 2)
            text = f"{self._classes[label]} {score:.2f}"
            cv2.putText(image, text, (box[0], max(10, box[1] - 4)), cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, 1)
        path = self._folder / f"{frame.name}.jpg"
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(path), image):
            message = f"{path} cannot be written. Free some space, or choose another --output."
            raise RunError(message)
