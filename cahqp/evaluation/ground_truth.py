"""Truth and predictions side by side, as plain arrays: what every measure here is computed from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cahqp.coco.document import read_document
from cahqp.errors import DataError


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
    """Read a COCO annotation file. Boxes flagged `iscrowd` or `ignore` become ignored regions.

    Boxes that reach over the border are clipped to it, as in training, where the file says the images' sizes: no
    detector can answer what is outside.

    Args:
        path: The file.
        classes: Class names to look at; `None` takes the file's categories. Objects of other categories are left out
            and counted in `left_out`. Their ignored regions are left out, too, as COCO's evaluation does, unless the
            file has nothing but regions of that category ("DontCare"): such a region counts for every class.

    Raises:
        DataError: The file cannot be read, a row refers to an image or a category that is not there, its box is no box
            or lies outside its image, or two have one id.
    """
    data = _check_keys(path, read_document(path))
    _check_rows(path, "images", data["images"], ("id",))
    _check_rows(path, "categories", data["categories"], ("id", "name"))
    names = {category["id"]: str(category["name"]) for category in data["categories"]}
    wanted = tuple(classes) if classes is not None else tuple(names.values())
    rows: dict[int, list[tuple[list[float], int, bool]]] = {image["id"]: [] for image in data["images"]}
    sizes = {image["id"]: (image.get("width"), image.get("height")) for image in data["images"]}
    found = [
        _annotation(path, number, annotation, sizes, names) for number, annotation in enumerate(data["annotations"])
    ]
    left_out = Counter(name for _, _, name, ignore in found if name not in wanted and not ignore)
    for image, box, name, ignore in found:
        if name in wanted:
            rows[image].append((box, wanted.index(name), ignore))
        elif ignore and name not in left_out:
            rows[image] += [(box, label, True) for label in range(len(wanted))]
    lengths: Counter[str] = Counter()
    images = tuple(_image(entry, rows[entry["id"]], lengths) for entry in data["images"])
    return GroundTruth(wanted, images, dict(left_out))


def _check_keys(path: Path, data: Any) -> dict[str, list[dict[str, Any]]]:
    keys = ("images", "annotations", "categories")
    missing = [key for key in keys if not (isinstance(data, dict) and isinstance(data.get(key), list))]
    if missing:
        message = f"{path} is no COCO annotation file: it has no list of {', '.join(missing)}."
        raise DataError(message)
    return {key: data[key] for key in keys}


def _check_rows(path: Path, part: str, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    seen: dict[Any, int] = {}
    for number, row in enumerate(rows):
        lacking = [key for key in keys if not isinstance(row, dict) or row.get(key) is None]
        if lacking:
            message = f"{path}: {part}[{number}] lacks `{lacking[0]}`. Mend this row, or take it out of the file."
            raise DataError(message)
        if seen.setdefault(row["id"], number) != number:
            message = (
                f"{path}: {part}[{number}] has id {row['id']}, which is already that of {part}[{seen[row['id']]}]."
            )
            raise DataError(message)


def _annotation(
    path: Path,
    number: int,
    annotation: Mapping[str, Any],
    sizes: Mapping[int, tuple[Any, Any]],
    names: Mapping[int, str],
) -> tuple[int, list[float], str, bool]:
    """Return image id, corners within the image, category name and whether the box is an ignored region."""
    if annotation.get("image_id") not in sizes:
        message = f"{path}: annotations[{number}] is on image {annotation.get('image_id')!r}, which is not in the file."
        raise DataError(message)
    if annotation.get("category_id") not in names:
        known = ", ".join(map(str, names))
        message = f"{path}: annotations[{number}] has category {annotation.get('category_id')!r}; known are {known}."
        raise DataError(message)
    x, y, width, height = _numbers(annotation.get("bbox"))
    if not (np.isfinite([x, y, width, height]).all() and width > 0 and height > 0):
        message = f"{path}: annotations[{number}] has bbox {annotation.get('bbox')!r}; give x, y and a size above zero."
        raise DataError(message)
    corners = _clipped([x, y, x + width, y + height], sizes[annotation["image_id"]])
    if not (corners[0] < corners[2] and corners[1] < corners[3]):
        message = f"{path}: annotations[{number}] has bbox {annotation['bbox']!r}, which lies outside its image."
        raise DataError(message)
    ignore = bool(annotation.get("iscrowd") or annotation.get("ignore"))
    return annotation["image_id"], corners, names[annotation["category_id"]], ignore


def _clipped(corners: list[float], size: tuple[Any, Any]) -> list[float]:
    width, height = (side if isinstance(side, int | float) and side > 0 else np.inf for side in size)
    limits = (width, height, width, height)
    return [min(max(value, 0.0), limit) for value, limit in zip(corners, limits, strict=True)]


def _numbers(value: Any) -> list[float]:
    if isinstance(value, list) and len(value) == 4 and all(isinstance(v, int | float) for v in value):
        return [float(v) for v in value]
    return [float("nan")] * 4


def _image(
    entry: Mapping[str, Any], rows: Sequence[tuple[list[float], int, bool]], lengths: Counter[str]
) -> GroundTruthImage:
    """Return one image.

    Args:
        entry: Its row.
        rows: Corners, label and whether it is an ignored region of each of its boxes.
        lengths: Number of images seen of each recording; counted up here.
    """
    name = str(entry.get("file_name", entry["id"]))
    # The same rule as in `cahqp.coco.reader`: frames of one folder belong together where nothing else is said.
    said = (entry.get("recording"), entry.get("camera"), name.rpartition("/")[0])
    recording = next((str(value) for value in said if value not in (None, "")), "")
    place = lengths[recording]
    lengths[recording] += 1
    return GroundTruthImage(
        id=entry["id"],
        name=name,
        recording=recording,
        index=int(entry["frame"] if entry.get("frame") is not None else place),
        boxes=np.array([box for box, _, _ in rows], np.float64).reshape(-1, 4),
        labels=np.array([label for _, label, _ in rows], np.int64),
        ignore=np.array([ignore for _, _, ignore in rows], np.bool_),
    )
