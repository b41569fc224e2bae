"""Labels independent of any format, and COCO files of labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cahqp.coco.tables import BoxRow, read_tables
from cahqp.coco.values import as_flag
from cahqp.errors import DataError
from cahqp.files import write_json

HUMAN, MODEL = "human", "model"
_FIELDS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "score", "track_id", "origin")


@dataclass(frozen=True)
class LabelBox:
    """One box.

    Attributes:
        name: Class name.
        bbox: x, y, width and height in pixels.
        score: Score in 0..1; `None` if a person drew or accepted the box.
        track: Track number.
        origin: `human` or `model`.
        ignored: Whether the box is a region to ignore.
        more: Other keys of the annotation.

    Raises:
        ValueError: A coordinate is NaN or infinite, or the class, score or track number is of another kind.
    """

    name: str
    bbox: tuple[float, float, float, float]
    score: float | None = None
    track: int | None = None
    origin: str = MODEL
    ignored: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the values. Readers add the location in their file to the error."""
        if not all(map(math.isfinite, self.bbox)):
            message = f"a box at {self.bbox}"
            raise ValueError(message)
        if not isinstance(self.name, str) or not self.name:
            message = f"a class named {self.name!r}"
            raise ValueError(message)
        if self.score is not None and not (type(self.score) in (int, float) and 0 <= self.score <= 1):
            message = f"a score of {self.score!r}, which must be in 0..1"
            raise ValueError(message)
        if self.track is not None and type(self.track) is not int:
            message = f"a track number of {self.track!r}"
            raise ValueError(message)


@dataclass(frozen=True)
class LabelImage:
    """One image.

    Attributes:
        entry: COCO image: `id`, `file_name`, `width`, `height`, and other keys.
        boxes: Boxes on the image.
        reviewed: Whether a person has checked the image.
    """

    entry: Mapping[str, Any]
    boxes: tuple[LabelBox, ...]
    reviewed: bool = False

    @property
    def name(self) -> str:
        """File name."""
        return str(self.entry["file_name"])


@dataclass(frozen=True)
class Labels:
    """Labels of a set of images.

    Attributes:
        categories: Class names by COCO category id, in the order of the file.
        images: Images in the order of the file.
    """

    categories: Mapping[int, str]
    images: tuple[LabelImage, ...]


def read_label_file(path: Path) -> Labels:
    """Read a COCO file of labels.

    Args:
        path: The file, or a directory that `cahqp relabel` wrote.

    Raises:
        DataError: The file is not COCO, or rows are incomplete, repeated or refer to missing rows. The message lists
            all problems.
    """
    path = Path(path) / "labels.json" if Path(path).is_dir() else Path(path)
    tables = read_tables(path)
    boxes: dict[int, list[LabelBox]] = {identifier: [] for identifier in tables.images}
    for row in tables.boxes:
        try:
            boxes[row.image].append(_box(row, tables.categories[row.category]))
        except ValueError as error:
            message = f"{path}: {row.row.where} has {error}. Fix or remove this row."
            raise DataError(message) from error
    images = []
    for identifier, entry in tables.images.items():
        rest = {key: value for key, value in entry.items() if key != "reviewed"}
        images.append(LabelImage(rest, tuple(boxes[identifier]), bool(as_flag(entry.get("reviewed")))))
    return Labels(tables.categories, tuple(images))


def _box(row: BoxRow, name: str) -> LabelBox:
    return LabelBox(
        name,
        row.bbox,
        row.entry.get("score"),
        row.entry.get("track_id"),
        str(row.entry.get("origin", MODEL)),
        row.crowd,
        {key: value for key, value in row.entry.items() if key not in _FIELDS},
    )


def write_coco(labels: Labels, path: Path) -> None:
    """Write a COCO file. Boxes of a person have `origin` human and no score; images they checked are `reviewed`."""
    ids = {name: number for number, name in labels.categories.items()}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in labels.images:
        images.append({**image.entry, **({"reviewed": True} if image.reviewed else {})})
        for box in image.boxes:
            annotations.append({"id": len(annotations) + 1, "image_id": image.entry["id"], **_annotation(box, ids)})
    categories = [{"id": number, "name": name} for number, name in labels.categories.items()]
    write_json(path, {"images": images, "annotations": annotations, "categories": categories})


def _annotation(box: LabelBox, ids: Mapping[str, int]) -> dict[str, Any]:
    entry = {"category_id": ids[box.name], "bbox": list(box.bbox), "area": round(box.bbox[2] * box.bbox[3], 2)}
    entry |= {"iscrowd": int(box.ignored), **box.more}
    entry |= {} if box.score is None else {"score": box.score}
    entry |= {} if box.track is None else {"track_id": box.track}
    return entry | ({"origin": HUMAN} if box.origin == HUMAN else {})
