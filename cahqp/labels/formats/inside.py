"""Boxes of labels clipped to their images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cahqp.coco.problems import Problems
from cahqp.labels.formats.coco import LabelBox, LabelImage, Labels

_ROUNDING = 0.5  # pixels over the border that are rounding in the labelling tool
_REMEDY = "Correct these boxes where they were drawn, and export them again."


def clip_boxes(labels: Labels, path: Path) -> tuple[Labels, int]:
    """Return labels with every box inside its image, and the number of boxes that were clipped by over half a pixel.

    Args:
        labels: Labels of any format. Images of unknown size do not clip.
        path: File named in errors.

    Raises:
        DataError: Boxes have no area or lie outside their image. `fit` would refuse them later.
    """
    problems = Problems(path, _REMEDY)
    clipped = 0
    images = []
    for image in labels.images:
        boxes = []
        for number, box in enumerate(image.boxes, 1):
            inside, moved = _clip(box, image)
            if inside is None:
                problems.add(f"{image.name}, box {number}", f"{list(box.bbox)} has no area inside its image")
            else:
                boxes.append(inside)
                clipped += moved > _ROUNDING
        images.append(replace(image, boxes=tuple(boxes)))
    problems.check()
    return replace(labels, images=tuple(images)), clipped


def _clip(box: LabelBox, image: LabelImage) -> tuple[LabelBox | None, float]:
    """Return a box inside its image, `None` if nothing of it is, and how far a side moved in pixels."""
    x, y, width, height = box.bbox
    across, down = (float(image.entry.get(key) or "inf") for key in ("width", "height"))
    given = (x, y, x + width, y + height)
    inside = (max(x, 0.0), max(y, 0.0), min(x + width, across), min(y + height, down))
    if width <= 0 or height <= 0 or inside[2] <= inside[0] or inside[3] <= inside[1]:
        return None, 0.0
    moved = max(abs(a - b) for a, b in zip(given, inside, strict=True))
    if moved == 0:
        return box, 0.0
    bbox = (inside[0], inside[1], round(inside[2] - inside[0], 4), round(inside[3] - inside[1], 4))
    return replace(box, bbox=bbox), moved
