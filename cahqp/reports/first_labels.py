"""Picture of the first labels of a cycle, long before its report."""

from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cahqp.errors import RunError
from cahqp.files import atomic_write
from cahqp.labels.ground_truth import used_boxes
from cahqp.reports.labels import Relabelling, choose_images
from cahqp.reports.pictures import class_colours, load_picture

_COLUMNS, _WIDTH = 2, 640


def write_first_labels(directory: Path, output: Path) -> int:
    """Write frames with their labels, two beside each other, as one PNG file, and return their number.

    Args:
        directory: Directory of `cahqp relabel`.
        output: File to write.

    Raises:
        DataError: A frame cannot be read.
        RunError: There are no frames, or the file cannot be written.
    """
    labels = Relabelling(directory)
    drawn = [_draw(labels, image) for image in choose_images([labels])]
    if not drawn:
        message = f"{directory} has no frames to draw."
        raise RunError(message)
    height = max(image.shape[0] for image in drawn)
    blank = np.zeros((height, _WIDTH, 3), np.uint8)
    tiles = [cv2.copyMakeBorder(i, 0, height - i.shape[0], 0, 0, cv2.BORDER_CONSTANT) for i in drawn]
    tiles += [blank] * (-len(tiles) % _COLUMNS)
    rows = [np.hstack(tiles[start : start + _COLUMNS]) for start in range(0, len(tiles), _COLUMNS)]
    _, png = cv2.imencode(".png", np.vstack(rows))
    with atomic_write(output, "wb") as file:
        file.write(png.tobytes())
    return len(drawn)


def _draw(labels: Relabelling, image: int) -> NDArray[np.uint8]:
    """Return a frame, `_WIDTH` pixels wide, with its boxes, class names and scores; BGR."""
    entry = labels.images[image]
    picture = load_picture(labels.roots, entry.name)
    jpeg = np.frombuffer(base64.b64decode(picture.data.partition(",")[2]), np.uint8)
    decoded = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
    assert decoded is not None
    scale = _WIDTH / picture.width
    pixels = cv2.resize(decoded, (_WIDTH, round(picture.height * scale)))
    colours = class_colours(labels.labels.categories.values())
    for box in used_boxes(entry):
        left, top, width, height = (round(value * scale) for value in box.bbox)
        red, green, blue = (int(colours[box.name][place : place + 2], 16) for place in (1, 3, 5))
        cv2.rectangle(pixels, (left, top), (left + width, top + height), (blue, green, red), 2)
        text = box.name if box.score is None else f"{box.name} {box.score:.2f}"
        cv2.putText(pixels, text, (left, max(10, top - 4)), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (blue, green, red), 1)
    return np.ascontiguousarray(pixels, dtype=np.uint8)
