"""The part of the report that shows what the teacher says of the frames, before and after adaptation."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cahqp.errors import DataError
from cahqp.files import read_json
from cahqp.reports.boxes import Picture, drawn, legend, load_picture
from cahqp.reports.html import Markup, element, join
from cahqp.reports.tables import counts

EXAMPLES = 6


@dataclass(frozen=True)
class LabelFile:
    """A file of pseudo-labels.

    Attributes:
        names: Category names by id.
        images: COCO images by id.
        boxes: COCO annotations of the labels by image id; without those that training ignores.
        kept: Number of labels by class name.
        ignored: Number of boxes that training ignores, by reason.
        rejected: Number of rejected boxes by reason.
        roots: Folders of the frames.
    """

    names: dict[int, str]
    images: dict[int, dict[str, Any]]
    boxes: Mapping[int, list[dict[str, Any]]]
    kept: dict[str, int]
    ignored: dict[str, int]
    rejected: dict[str, int]
    roots: list[Path]


def read_labels(directory: Path) -> LabelFile | None:
    """Read what a relabelling wrote, `None` where there is none."""
    if not (directory / "labels.json").is_file():
        return None
    data = read_json(directory / "labels.json")
    names = {category["id"]: str(category["name"]) for category in data["categories"]}
    boxes: dict[int, list[dict[str, Any]]] = defaultdict(list)
    labels = [annotation for annotation in data["annotations"] if not annotation.get("iscrowd")]
    for annotation in labels:
        boxes[annotation["image_id"]].append(annotation)
    found = Counter(names[annotation["category_id"]] for annotation in labels)
    kept = {name: found[name] for name in names.values()}
    ignored = _by_reason(annotation for annotation in data["annotations"] if annotation.get("iscrowd"))
    images = {image["id"]: image for image in data["images"]}
    return LabelFile(names, images, boxes, kept, ignored, _rejected(directory), _roots(directory))


def labelled_frames(before: LabelFile | None, after: LabelFile) -> Markup:
    """Return counts and example frames."""
    said = f"{len(after.images):,} frames were labelled."
    kept = counts(before.kept if before else None, after.kept, "class", "Labels by class")
    doubtful = counts(before.ignored if before else None, after.ignored, "reason", "Boxes that training ignores")
    rejected = counts(before.rejected if before else None, after.rejected, "reason", "Rejected boxes by reason")
    examples = [_example(number, image, before, after) for number, image in enumerate(_chosen(before, after))]
    hint = element("p", "Small boxes in full scenes carry no text; the colour names the class.", class_="soft")
    return join([element("p", said), kept, doubtful, rejected, legend(after.names), hint, *examples])


def _rejected(directory: Path) -> dict[str, int]:
    path = directory / "rejected.json"
    found = read_json(path)["annotations"] if path.is_file() else []
    return _by_reason(found)


def _by_reason(annotations: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    return dict(sorted(Counter(str(annotation.get("reason", "")) for annotation in annotations).items()))


def _roots(directory: Path) -> list[Path]:
    """Return the folders that `source.json` names; relative ones start at its own folder."""
    path = directory / "source.json"
    given = read_json(path).get("root", []) if path.is_file() else []
    return [directory / root for root in ([given] if isinstance(given, str) else given)]


def _chosen(before: LabelFile | None, after: LabelFile) -> list[int]:
    """Return frames spread evenly over those with a label in either file, or over all."""
    shared = [image for image in after.images if before is None or image in before.images]
    told = [image for image in shared if after.boxes.get(image) or (before and before.boxes.get(image))]
    pool = told or shared
    rows = np.linspace(0, len(pool) - 1, min(EXAMPLES, len(pool))).round().astype(int)
    return [pool[row] for row in rows]


def _example(number: int, image: int, before: LabelFile | None, after: LabelFile) -> Markup:
    entry = after.images[image]
    name = str(entry["file_name"])
    try:
        picture = load_picture(after.roots or (before.roots if before else []), name)
    except DataError as error:
        return element("div", element("p", f"{name} could not be shown. {error}", class_="missing"), class_="pair")
    key = f"frame-{number}"
    sides = [] if before is None else [_side(picture, before, image, "Before adaptation", key, True)]
    sides.append(_side(picture, after, image, "After adaptation", key, before is None))
    where = " · ".join(dict.fromkeys(str(text) for text in (name, entry.get("camera"), entry.get("recording")) if text))
    return element("div", element("p", where, class_="soft"), *sides, class_="pair")


def _side(picture: Picture, labels: LabelFile, image: int, title: str, key: str, embed: bool) -> Markup:
    boxes = labels.boxes.get(image, [])
    said = f"{title}: {len(boxes)} label{'s' * (len(boxes) != 1)}"
    return element("figure", drawn(picture, boxes, labels.names, key, embed), element("figcaption", said))
