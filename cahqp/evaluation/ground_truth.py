"""Ground truth and predictions as plain arrays, the input of every metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cahqp.coco.reader import read_coco


class ImagePredictions(NamedTuple):
    """Detections of a model on one image.

    Attributes:
        boxes: (N, 4) xyxy in pixels of the original image.
        scores: (N,) in 0..1.
        labels: (N,) contiguous class indices.
    """

    boxes: NDArray[Any]
    scores: NDArray[Any]
    labels: NDArray[Any]


@dataclass(frozen=True)
class Predictions:
    """Detections of a model on a set of frames.

    Attributes:
        classes: Class names by label.
        images: Detections by image id of the annotation file. An image without detections has an empty entry.
    """

    classes: tuple[str, ...]
    images: Mapping[int, ImagePredictions]


@dataclass(frozen=True)
class GroundTruthImage:
    """Objects of one image.

    Attributes:
        id: Image id of the annotation file.
        name: File name.
        recording: Recording, or the camera if the file names no recording.
        index: Position in the recording; only the order counts.
        boxes: (N, 4) xyxy in pixels.
        labels: (N,) contiguous class indices.
        ignore: (N,) bool; true for regions where detections do not count.
    """

    id: int
    name: str
    recording: str
    index: int
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    ignore: NDArray[np.bool_]


@dataclass(frozen=True)
class GroundTruth:
    """Annotations of a set of frames.

    Attributes:
        classes: Class names by label.
        images: Images in the order of the file.
        left_out: Number of objects of other categories, by name.
    """

    classes: tuple[str, ...]
    images: tuple[GroundTruthImage, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    def select(self, ids: Container[int]) -> GroundTruth:
        """Return the ground truth of the images with these ids."""
        return replace(self, images=tuple(image for image in self.images if image.id in ids))


def read_ground_truth(path: Path, classes: Sequence[str] | None = None) -> GroundTruth:
    """Read a COCO annotation file. Boxes with `iscrowd` or `ignore` become ignored regions.

    Boxes that cross the border are clipped to it, as in training, where the file contains the images' sizes: no
    detector can return boxes outside. Image files are not opened.

    Args:
        path: JSON file.
        classes: Class names to evaluate; `None` takes the file's categories. Objects of other categories are left out
            and counted in `left_out`. Their ignored regions are left out, too, as in COCO's evaluation, unless the
            file has only regions of that category ("DontCare"): such a region counts for every class.

    Raises:
        DataError: All problems of the file together, each with its row.
    """
    file = read_coco(path, images=False)
    table = file.table
    kept = tuple(classes) if classes is not None else tuple(file.categories.values())
    names = [file.categories[identifier] for identifier in table.categories.tolist()]
    left_out = Counter(name for name, ignore in zip(names, table.crowd, strict=True) if name not in kept and not ignore)
    images = []
    for frame, start, end in zip(file.frames, table.starts, table.starts[1:], strict=False):
        rows: list[tuple[int, int]] = []  # row of the table and label
        for row in range(start, end):
            if names[row] in kept:
                rows.append((row, kept.index(names[row])))
            elif table.crowd[row] and names[row] not in left_out:
                rows += [(row, label) for label in range(len(kept))]
        indices, labels = np.array(rows, np.int64).reshape(-1, 2).T
        boxes, ignore = table.boxes[indices], table.crowd[indices]
        images.append(GroundTruthImage(frame.id, frame.name, frame.recording, frame.index, boxes, labels, ignore))
    return GroundTruth(kept, tuple(images), dict(left_out))
