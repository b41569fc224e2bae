"""Predictions of other detectors, read from COCO files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from cahqp.coco.document import read_document, read_external
from cahqp.coco.tables import Tables, parse_tables, read_tables
from cahqp.errors import DataError
from cahqp.labels.fusion import ViewPredictions


class ExternalPredictions:
    """COCO file of predictions, by file name of the image.

    Categories are matched by name; boxes of other categories are left out.

    Args:
        path: COCO file with a `score` in every annotation, or a list of results.
        classes: Class names of the teacher.
        images: COCO file whose image and category ids a list of results uses.

    Raises:
        DataError: The file contains none of the classes, or cannot be read. The message lists all problems.
    """

    def __init__(self, path: Path, classes: Sequence[str], images: Path | None = None) -> None:
        self.path = Path(path)
        tables = _read(self.path, images)
        index = {name: number for number, name in enumerate(classes)}
        labels = {category: index.get(name, -1) for category, name in tables.categories.items()}
        if all(label < 0 for label in labels.values()):
            contained = ", ".join(tables.categories.values())
            message = f"{path} contains {contained}, none of {', '.join(classes)}. Rename its categories."
            raise DataError(message)
        rows: dict[int, list[tuple[list[float], float, int]]] = {image: [] for image in tables.images}
        for row in tables.boxes:
            if labels[row.category] >= 0 and not row.crowd:
                x, y, width, height = row.bbox
                rows[row.image].append(([x, y, x + width, y + height], row.score or 0.0, labels[row.category]))
        self._views = {str(tables.images[image]["file_name"]): _to_arrays(boxes) for image, boxes in rows.items()}
        sizes = {str(i["file_name"]): (i.get("height"), i.get("width")) for i in tables.images.values()}
        self._sizes = {name: size for name, size in sizes.items() if None not in size}

    def predict(self, name: str, size: tuple[int, int], floor: float) -> ViewPredictions | None:
        """Return the predictions on a frame; `None` if the file does not contain the frame.

        Args:
            name: File name of the frame.
            size: Height and width of the frame in pixels.
            floor: Boxes with lower scores are left out.

        Raises:
            DataError: The file gives another size of the image, so its boxes do not fit.
        """
        view = self._views.get(name)
        if view is None:
            return None
        file_size = self._sizes.get(name, size)
        if file_size != size:
            message = (
                f"{self.path} has boxes of {name!r} for {file_size[1]} x {file_size[0]} pixels, the frame has "
                f"{size[1]} x {size[0]}. Predict on the frames in their original size."
            )
            raise DataError(message)
        kept = view.scores >= floor
        return ViewPredictions(view.boxes[kept], view.scores[kept], view.labels[kept])

    def check(self, names: Collection[str]) -> None:
        """Check that the file contains at least one of the frames.

        Args:
            names: File names of the frames to label.

        Raises:
            DataError: The file contains none of them.
        """
        if not any(name in self._views for name in names):
            first, example = next(iter(self._views), "no image"), next(iter(names), "none")
            message = (
                f"{self.path} contains none of the frames. Its first image is {first!r}, the first frame {example!r}. "
                "Predict on the same frames."
            )
            raise DataError(message)


def _read(path: Path, images: Path | None) -> Tables:
    """Return the rows of a COCO file, or of a list of results with the images and categories of another file."""
    content = read_external(path)
    if not isinstance(content, list):
        return read_tables(path, sizes=False, scores=True)
    if images is None:
        message = f"{path} is a list of results without images. Give --prediction-images, the COCO file they refer to."
        raise DataError(message)
    return parse_tables({**read_document(images), "annotations": content}, path, sizes=False, scores=True)


def _to_arrays(rows: list[tuple[list[float], float, int]]) -> ViewPredictions:
    boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return ViewPredictions(
        np.array(boxes, np.float64).reshape(-1, 4), np.array(scores, np.float64), np.array(labels, np.int64)
    )
