"""Drawing of boxes on frames."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cahqp.edge.capture import EdgeFrame
from cahqp.edge.detections import EdgeDetections
from cahqp.errors import RunError
from cahqp.files import writing

# Okabe and Ito's colours (BGR), which people with any colour vision can tell apart.
_COLOURS = ((0, 159, 230), (233, 180, 86), (115, 158, 0), (66, 228, 240), (178, 114, 0), (0, 94, 213), (167, 121, 204))


def draw(frame: EdgeFrame, found: EdgeDetections, classes: tuple[str, ...], folder: Path) -> None:
    """Write a frame with its boxes as a JPEG file.

    Args:
        frame: Frame that was decoded.
        found: Detections in pixels of the frame.
        classes: Class names by label.
        folder: Directory to write to.

    Raises:
        RunError: The file cannot be written.
    """
    image = frame.pixels().copy()
    draw_boxes(image, found, classes)
    path = folder / f"{frame.name}.jpg"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image):
        message = f"{path} cannot be written. Free some space, or choose another --output."
        raise RunError(message)


def draw_boxes(image: NDArray[np.uint8], found: EdgeDetections, classes: tuple[str, ...]) -> None:
    """Draw boxes with class names and scores on an image.

    Args:
        image: (H, W, 3) uint8 BGR, which is changed.
        found: Detections in pixels of the image.
        classes: Class names by label.
    """
    for box, score, label in zip(found.boxes.round().astype(int).tolist(), found.scores, found.labels, strict=True):
        colour = _COLOURS[int(label) % len(_COLOURS)]
        cv2.rectangle(image, (box[0], box[1]), (box[2], box[3]), colour, 2)
        text = f"{classes[label]} {score:.2f}"
        cv2.putText(image, text, (box[0], max(10, box[1] - 4)), cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, 1)
