"""Truth and predictions side by side, as plain arrays: what every measure here is computed from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cahqp.coco.reader import read_coco
from cahqp.frame import Frame


class ImagePredictions(NamedTuple):
    """What a model says of one image.

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
    """What a model says of a set of frames.

    Attributes:
        classes: Class names by label.
        images: By image id of the annotation file; an image without detections has an entry with none.
    """

    classes: tuple[str, ...]
    images: Mapping[int, ImagePredictions]


@dataclass(frozen=True)
class GroundTruthImage:
    """What is there on one image.

    Attributes:
        id: Image id of the annotation file.
        name: File name.
        recording: Recording; the camera where nothing else is said.
        index: Position in the recording; order only.
        boxes: (N, 4) xyxy in pixels.
        labels: (N,) contiguous class indices.
        ignore: (N,) bool; such a box is a region where detections count neither for nor against.
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
    """The annotations of a set of frames, seen through a list of classes.

    Attributes:
        classes: Class names by label.
        images: In the order of the file.
        left_out: Number of objects of categories that are not among the classes, by name.
    """

    classes: tuple[str, ...]
    images: tuple[GroundTruthImage, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    def only(self, ids: Container[int]) -> GroundTruth:
        """Return the same of the images whose ids are given."""
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
    wanted = tuple(classes) if classes is not None else tuple(file.categories.values())
    names = [file.categories[identifier] for identifier in table.categories.tolist()]
    left_out = Counter(
        name for name, ignore in zip(names, table.crowd, strict=True) if name not in wanted and not ignore
    )
    images = []
    for frame, start, end in zip(file.frames, table.starts, table.starts[1:], strict=False):
        rows: list[tuple[NDArray[np.float64], int, bool]] = []
        for box, name, ignore in zip(table.boxes[start:end], names[start:end], table.crowd[start:end], strict=True):
            if name in wanted:
                rows.append((box, wanted.index(name), bool(ignore)))
            elif ignore and name not in left_out:
                rows += [(box, label, True) for label in range(len(wanted))]
        images.append(_image(frame, rows))
    return GroundTruth(wanted, tuple(images), dict(left_out))


def _image(frame: Frame, rows: Sequence[tuple[NDArray[np.float64], int, bool]]) -> GroundTruthImage:
    """Return one image.

    Args:
        frame: Its origin.
        rows: xyxy in pixels, label, and whether it is an ignored region, of each box.
    """
    return GroundTruthImage(
        id=frame.id,
        name=frame.name,
        recording=frame.recording,
        index=frame.index,
        boxes=np.array([box for box, _, _ in rows], np.float64).reshape(-1, 4),
        labels=np.array([label for _, label, _ in rows], np.int64),
        ignore=np.array([ignore for _, _, ignore in rows], np.bool_),
    )
