"""What another detector says, from a COCO file of its predictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cahqp.errors import DataError
from cahqp.files import read_json
from cahqp.labels.fusion import Look


class External:
    """A COCO file of predictions, by the names of its images. Categories are matched by name; others are left out.

    Args:
        path: Has `images`, `categories` and `annotations` with a `score`.
        classes: Class names that count.

    Raises:
        DataError: It is no such file, or a box has no score in 0..1.
    """

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self.path = Path(path)
        data = read_json(self.path)
        keys = ("images", "annotations", "categories")
        if not isinstance(data, dict) or any(not isinstance(data.get(key), list) for key in keys):
            message = f"{path} is no COCO file of predictions: it needs lists of {', '.join(keys)}."
            raise DataError(message)
        index = {name: number for number, name in enumerate(classes)}
        labels = {category["id"]: index.get(str(category["name"]), -1) for category in data["categories"]}
        if all(label < 0 for label in labels.values()):
            known = ", ".join(str(category["name"]) for category in data["categories"])
            message = f"{path} has none of the classes {', '.join(classes)}; it has {known}. Rename its categories."
            raise DataError(message)
        names = {image["id"]: str(image["file_name"]) for image in data["images"]}
        rows: dict[str, list[tuple[list[float], float, int]]] = {name: [] for name in names.values()}
        for number, annotation in enumerate(data["annotations"]):
            box, score = self._row(number, annotation)
            label = labels.get(annotation.get("category_id"), -1)
            if label >= 0 and annotation.get("image_id") in names and not annotation.get("iscrowd"):
                rows[names[annotation["image_id"]]].append((box, score, label))
        self._looks = {name: _look(found) for name, found in rows.items()}

    def _row(self, number: int, annotation: dict[str, Any]) -> tuple[list[float], float]:
        box, score = annotation.get("bbox"), annotation.get("score")
        whole = isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)
        if not whole or not isinstance(score, int | float) or not 0 <= score <= 1:
            message = (
                f"{self.path}: annotations[{number}] needs `bbox` (four numbers) and `score` in 0..1; "
                f"it has {str(box)[:60]} and {str(score)[:20]}."
            )
            raise DataError(message)
        assert isinstance(box, list)
        return [float(box[0]), float(box[1]), float(box[0] + box[2]), float(box[1] + box[3])], float(score)

    def look(self, name: str, floor: float) -> Look | None:
        """Return what it says of a frame; `None` where the file does not know the frame, and so keeps silent."""
        look = self._looks.get(name)
        if look is None:
            return None
        good = look.scores >= floor
        return Look(look.boxes[good], look.scores[good], look.labels[good])

    def check(self, names: Iterable[str]) -> None:
        """Refuse a file that knows none of the frames.

        Args:
            names: Of the frames to label.

        Raises:
            DataError: It knows none.
        """
        wanted = list(names)
        if not any(name in self._looks for name in wanted):
            first = next(iter(self._looks), "no image")
            example = wanted[0] if wanted else "none"
            message = f"{self.path} knows none of the frames: it calls them {first!r}, they are {example!r}."
            raise DataError(message)


def _look(rows: list[tuple[list[float], float, int]]) -> Look:
    return Look(
        np.array([box for box, _, _ in rows], np.float64).reshape(-1, 4),
        np.array([score for _, score, _ in rows], np.float64),
        np.array([label for _, _, label in rows], np.int64),
    )
