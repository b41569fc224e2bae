"""Labels apart from any format: what every reader and writer here has in common, and COCO itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cahqp.coco.tables import BoxRow, read_tables
from cahqp.errors import DataError
from cahqp.files import write_json

HUMAN, MODEL = "human", "model"


@dataclass(frozen=True)
class LabelBox:
    """One box.

    Attributes:
        name: Class name.
        bbox: x, y, width and height in pixels.
        score: 0..1; `None` where a person drew or accepted it.
        track: Number of its track.
        origin: `human` or `model`.
        ignored: A region that is neither object nor background.
        more: What else its file says of it.

    Raises:
        ValueError: Its place is no number.
    """

    name: str
    bbox: tuple[float, float, float, float]
    score: float | None = None
    track: int | None = None
    origin: str = MODEL
    ignored: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the place: a reader tells where such a box stands."""
        if not all(map(math.isfinite, self.bbox)):
            message = f"a box at {self.bbox}"
            raise ValueError(message)


@dataclass(frozen=True)
class LabelImage:
    """One image.

    Attributes:
        entry: Its COCO entry: `id`, `file_name`, `width`, `height`, and what else is known.
        boxes: What is on it.
        reviewed: A person has looked at it.
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
    """A file of labels.

    Attributes:
        categories: Class names by COCO category id, in the order of the file.
        images: In the order of the file.
    """

    categories: Mapping[int, str]
    images: tuple[LabelImage, ...]


def read_coco(path: Path) -> Labels:
    """Read a COCO file of labels.

    Args:
        path: The file, or a directory of `cahqp relabel`.

    Raises:
        DataError: It is no COCO file, or rows lack something, stand twice or refer to what is not there; all together.
    """
    found = read_tables(Path(path) / "labels.json" if Path(path).is_dir() else Path(path))
    boxes: dict[int, list[LabelBox]] = {identifier: [] for identifier in found.images}
    for row in found.boxes:
        boxes[row.image].append(_box(row, found.categories[row.category]))
    images = tuple(
        LabelImage(
            {key: value for key, value in entry.items() if key != "reviewed"},
            tuple(boxes[identifier]),
            bool(entry.get("reviewed")),
        )
        for identifier, entry in found.images.items()
    )
    return Labels(found.categories, images)


_OWN = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "score", "track_id", "origin")


def _box(row: BoxRow, name: str) -> LabelBox:
    return LabelBox(
        name,
        row.bbox,
        row.entry.get("score"),
        row.entry.get("track_id"),
        str(row.entry.get("origin", MODEL)),
        bool(row.entry.get("iscrowd")),
        {key: value for key, value in row.entry.items() if key not in _OWN},
    )


def write_coco(labels: Labels, path: Path) -> None:
    """Write a COCO file. Boxes of a person have `origin` human and no score; images they saw are `reviewed`."""
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


def accepted(labels: Labels) -> Labels:
    """Return the labels as a person's word: every box is truth, every image was seen, and no doubt is left."""
    return replace(labels, images=tuple(_accepted(image) for image in labels.images))


def _accepted(image: LabelImage) -> LabelImage:
    return replace(image, boxes=tuple(_ground_truth(box) for box in image.boxes if not _doubt(box)), reviewed=True)


def _doubt(box: LabelBox) -> bool:
    """Say whether a box is a region that a model, not a person, wants ignored."""
    return box.ignored and "reason" in box.more


def _key(box: LabelBox) -> tuple[object, ...]:
    # A doubtful box that a person left as it is has no score any more where the format makes all of them a person's.
    return box.name, box.bbox, None if box.ignored else box.score, box.ignored


def _ground_truth(box: LabelBox) -> LabelBox:
    kept = {key: value for key, value in box.more.items() if key not in ("uncertainty", "weight", "reason")}
    return replace(box, score=None, origin=HUMAN, more=kept)


def brought_back(labels: Labels, like: Labels, reviewed: bool = False) -> Labels:
    """Return earlier labels with what came back in their place.

    Args:
        labels: What came back; images are known by name. Boxes of a person become truth.
        like: The labels that were sent out. Images that did not come back keep what they had.
        reviewed: A person accepted every box and image that came back. Doubt of a model that nobody touched goes.

    Raises:
        DataError: An image or a class came back that was never sent out.
    """
    returned = {image.name: image for image in labels.images}
    known = {image.name for image in like.images}
    _check_sizes(returned, like)
    strange = sorted(returned.keys() - known)
    classes = sorted({b.name for i in labels.images for b in i.boxes} - set(like.categories.values()))
    if strange or classes:
        message = (
            f"What came back names {', '.join((strange or classes)[:5])}, unknown to the labels that were sent out. "
            "Give --like the labels.json that the review began with."
        )
        raise DataError(message)
    images = []
    for image in like.images:
        found = returned.get(image.name)
        if found is None:
            images.append(image)
            continue
        same = {_key(box): box for box in image.boxes}  # what the format has no place for, its untouched boxes keep
        boxes = tuple(_with_more(box, same.get(_key(box))) for box in found.boxes)
        back = LabelImage(image.entry, boxes, found.reviewed or any(box.origin == HUMAN for box in boxes))
        images.append(_accepted(back) if reviewed else back)
    return Labels(like.categories, tuple(images))


def once(labels: Labels) -> Labels:
    """Return labels in which each image stands once: of several the one that a person has seen.

    Raises:
        DataError: None of them was seen, or more than one.
    """
    groups: dict[str, list[LabelImage]] = {}
    for image in labels.images:
        groups.setdefault(image.name, []).append(image)
    chosen, unclear = [], []
    for name, group in groups.items():
        seen = [image for image in group if image.reviewed or any(box.origin == HUMAN for box in image.boxes)]
        chosen.append((seen or group)[0])
        if len(group) > 1 and len(seen) != 1:
            unclear.append(f"{name} ({len(group)} times, {len(seen)} of them seen by a person)")
    if unclear:
        message = f"Images came back more than once: {', '.join(unclear[:5])}. Leave one of each in the export."
        raise DataError(message)
    return Labels(labels.categories, tuple(chosen))


def _check_sizes(returned: Mapping[str, LabelImage], like: Labels) -> None:
    other = []
    for image in like.images:
        if image.name in returned:
            sent, back = (f"{e.get('width')}x{e.get('height')}" for e in (image.entry, returned[image.name].entry))
            other += [f"{image.name} ({back}, sent out as {sent})"] if sent != back else []
    if other:
        message = (
            f"Images came back in another size: {', '.join(other[:5])}. Boxes are in pixels of the image as it is "
            "stored; sides change places where a tool applies an EXIF orientation. Turn such images for good first."
        )
        raise DataError(message)


def _with_more(box: LabelBox, sent: LabelBox | None) -> LabelBox:
    """Return a box that came back as it was sent out where nobody touched it, and as truth where it is a person's."""
    if sent is not None and _doubt(sent):
        return sent
    return _ground_truth(box) if box.origin == HUMAN else sent or box
