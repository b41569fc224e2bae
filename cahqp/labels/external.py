"""What another detector says, from a COCO file of its predictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from cahqp.coco.tables import read_tables
from cahqp.errors import DataError
from cahqp.labels.fusion import ViewPredictions


class External:
    """A COCO file of predictions, by the names of its images. Categories are matched by name; others are left out.

    Args:
        path: Has `images`, `categories` and `annotations` with a `score`.
        classes: Class names that count.

    Raises:
        DataError: It is no such file, or rows lack something, stand twice or refer to what is not there; all together.
    """

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self.path = Path(path)
        found = read_tables(self.path, sizes=False, scores=True)
        index = {name: number for number, name in enumerate(classes)}
        labels = {identifier: index.get(name, -1) for identifier, name in found.categories.items()}
        if all(label < 0 for label in labels.values()):
            known = ", ".join(found.categories.values())
            message = f"{path} has none of the classes {', '.join(classes)}; it has {known}. Rename its categories."
            raise DataError(message)
        rows: dict[int, list[tuple[list[float], float, int]]] = {identifier: [] for identifier in found.images}
        for row in found.boxes:
            if labels[row.category] >= 0 and not row.entry.get("iscrowd"):
                x, y, width, height = row.bbox
                rows[row.image].append(([x, y, x + width, y + height], row.score or 0.0, labels[row.category]))
        self._looks = {str(found.images[identifier]["file_name"]): _look(own) for identifier, own in rows.items()}
        told = [(str(i["file_name"]), (i.get("height"), i.get("width"))) for i in found.images.values()]
        self._sizes = {name: size for name, size in told if None not in size}

    def look(self, name: str, size: tuple[int, int], floor: float) -> ViewPredictions | None:
        """Return what it says of a frame; `None` where the file does not know the frame, and so keeps silent.

        Args:
            name: Of the frame.
            size: Its height and width in pixels.
            floor: Boxes with a lower score are left out.

        Raises:
            DataError: The file gives the image another size, so its boxes lie elsewhere.
        """
        look = self._looks.get(name)
        if look is None:
            return None
        told = self._sizes.get(name, size)
        if told != size:
            message = (
                f"{self.path} has boxes of {name!r} for {told[1]} x {told[0]} pixels, the frame has {size[1]} x "
                f"{size[0]}. Predict on the frames as they are."
            )
            raise DataError(message)
        good = look.scores >= floor
        return ViewPredictions(look.boxes[good], look.scores[good], look.labels[good])

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


def _look(rows: list[tuple[list[float], float, int]]) -> ViewPredictions:
    return ViewPredictions(
        np.array([box for box, _, _ in rows], np.float64).reshape(-1, 4),
        np.array([score for _, score, _ in rows], np.float64),
        np.array([label for _, _, label in rows], np.int64),
    )
