"""Detections of one image, with their class names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cahqp.api.inputs import Pixels
from cahqp.edge.detections import EdgeDetections, Floats
from cahqp.edge.draw import draw_boxes
from cahqp.errors import ConfigError
from cahqp.files import atomic_write, writing

_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}


class Detection(NamedTuple):
    """One detected object.

    Attributes:
        box: Left, top, right and bottom in pixels of the image.
        score: In 0..1.
        label: Class index.
        name: Class name.
    """

    box: tuple[float, float, float, float]
    score: float
    label: int
    name: str


@dataclass(frozen=True, eq=False)
class Result:
    """Detections of one image, best score first. Its length is their number; iterating yields each `Detection`.

    Attributes:
        boxes: (N, 4) float32 xyxy in pixels of the original image, as it is stored.
        scores: (N,) float32 in 0..1.
        labels: (N,) int64 class indices.
        classes: All class names of the model, by label.
        pixels: (H, W, 3) uint8 RGB image.
        file: File name, `video.mp4@12.400s` for a video frame, empty for an image in memory.
        timestamp: Seconds from the start of a video, seconds since 1970 in a stream, `None` for images.
    """

    boxes: Floats
    scores: Floats
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    pixels: Pixels = field(repr=False)
    file: str = ""
    timestamp: float | None = None

    @property
    def names(self) -> list[str]:
        """Class name of each detection."""
        return [self.classes[label] for label in self.labels]

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Detection]:
        rows = zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        return (Detection(tuple(box), score, label, self.classes[label]) for box, score, label in rows)

    def __repr__(self) -> str:
        height, width = self.pixels.shape[:2]
        counts = ", ".join(f"{count} {name}" for name, count in Counter(self.names).most_common())
        return f"<Result {self.file or 'image'} {width}x{height}: {counts or 'no detections'}>"

    def draw(self) -> Image.Image:
        """Return the image with its boxes, class names and scores."""
        image = np.ascontiguousarray(self.pixels[:, :, ::-1])
        draw_boxes(image, EdgeDetections(self.boxes, self.scores, self.labels), self.classes)
        return Image.fromarray(np.ascontiguousarray(image[:, :, ::-1]))

    def save(self, path: Path | str) -> Path:
        """Write the image with its boxes, atomically, and return its path.

        Args:
            path: A .jpg or .png file. Missing folders are made; an existing file is replaced.

        Raises:
            ConfigError: The suffix is another one.
            RunError: The file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() not in _FORMATS:
            message = f"{path} cannot be saved: its suffix must be one of {', '.join(_FORMATS)}."
            raise ConfigError(message)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path, "wb") as file:
                self.draw().save(file, format=_FORMATS[path.suffix.lower()])
        return path

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """Return COCO results: `image_id`, `category_id`, `category`, `bbox` (xywh) and `score` of each detection.

        Args:
            image_id: Id of the image in a COCO file. Category ids count from 1 in the order of the classes.
        """
        return [
            {
                "image_id": image_id,
                "category_id": label + 1,
                "category": name,
                "bbox": [left, top, right - left, bottom - top],
                "score": score,
            }
            for (left, top, right, bottom), score, label, name in self
        ]

    def to_supervision(self) -> Any:
        """Return `supervision.Detections`, with the class names in `data["class_name"]`.

        Raises:
            ConfigError: supervision is not installed.
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            message = "to_supervision needs supervision, which is not installed: pip install supervision."
            raise ConfigError(message) from error
        return supervision.Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": np.array(self.names, str)},
        )
