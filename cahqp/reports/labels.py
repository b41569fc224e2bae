"""Pseudo-labels of one or two relabellings: counts and example frames."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cahqp.errors import DataError
from cahqp.files import read_json
from cahqp.reports.inputs import read_object
from cahqp.reports.pictures import class_colours, draw_boxes, load_picture

MAX_EXAMPLES = 6


@dataclass(frozen=True)
class LabelFile:
    """Pseudo-labels of one relabelling.

    Attributes:
        names: Category names by id.
        images: COCO images by id.
        boxes: COCO annotations by image id, without those that training ignores.
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
    """Read a directory of `cahqp relabel`; return `None` without `labels.json`."""
    if not (directory / "labels.json").is_file():
        return None
    data = read_json(directory / "labels.json")
    names = {category["id"]: str(category["name"]) for category in data["categories"]}
    boxes: dict[int, list[dict[str, Any]]] = defaultdict(list)
    labels = [annotation for annotation in data["annotations"] if not annotation.get("iscrowd")]
    for annotation in labels:
        boxes[annotation["image_id"]].append(annotation)
    counts = Counter(names[annotation["category_id"]] for annotation in labels)
    return LabelFile(
        names,
        {image["id"]: image for image in data["images"]},
        boxes,
        {name: counts[name] for name in names.values()},
        count_reasons(annotation for annotation in data["annotations"] if annotation.get("iscrowd")),
        read_rejected(directory),
        _roots(directory),
    )


def read_rejected(directory: Path) -> dict[str, int]:
    """Return the number of rejected boxes by reason."""
    return count_reasons(rejected_boxes(directory))


def rejected_boxes(directory: Path) -> list[dict[str, Any]]:
    """Return the annotations of `rejected.json`; none where the file is missing."""
    return list(read_object(directory / "rejected.json").get("annotations", []))


def count_reasons(annotations: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return the number of annotations by reason, sorted by reason."""
    return dict(sorted(Counter(str(annotation.get("reason", "")) for annotation in annotations).items()))


def compare_labels(before: LabelFile | None, after: LabelFile) -> dict[str, Any]:
    """Return the template's `labels`: counts, class colours and example frames.

    Args:
        before: Labels of the teacher before adaptation, if any.
        after: Labels to show.
    """
    return {
        "images": len(after.images),
        "columns": ["after"] if before is None else ["before", "after"],
        "kept": _counts(before.kept if before else None, after.kept),
        "ignored": _counts(before.ignored if before else None, after.ignored),
        "rejected": _counts(before.rejected if before else None, after.rejected),
        "colours": named_colours(after.names),
        "examples": [_example(image, before, after) for image in _choose(before, after)],
    }


def named_colours(names: Mapping[int, str]) -> list[tuple[str, str]]:
    """Return the name and the colour of each class."""
    return [(names[category], colour) for category, colour in class_colours(names).items()]


def _counts(before: Mapping[str, int] | None, after: Mapping[str, int]) -> list[list[str | int]]:
    """Return one row for each name: its numbers before (if known) and after."""
    parts = [after] if before is None else [before, after]
    names = dict.fromkeys(name for part in parts for name in part)
    return [[name, *(part.get(name, 0) for part in parts)] for name in names]


def _roots(directory: Path) -> list[Path]:
    """Return the folders in `source.json`; relative ones start at its own folder."""
    root = read_object(directory / "source.json").get("root", [])
    return [directory / folder for folder in ([root] if isinstance(root, str) else root)]


def _choose(before: LabelFile | None, after: LabelFile) -> list[int]:
    """Return frames spread evenly over those with a label in either file, or over all."""
    shared = [image for image in after.images if before is None or image in before.images]
    labelled = [image for image in shared if after.boxes.get(image) or (before and before.boxes.get(image))]
    pool = labelled or shared
    rows = np.linspace(0, len(pool) - 1, min(MAX_EXAMPLES, len(pool))).round().astype(int)
    return [pool[row] for row in rows]


def _example(image: int, before: LabelFile | None, after: LabelFile) -> dict[str, Any]:
    entry = after.images[image]
    name = str(entry["file_name"])
    try:
        picture = load_picture(after.roots or (before.roots if before else []), name)
    except DataError as error:
        return {"error": f"{name} could not be shown. {error}"}
    origin = dict.fromkeys(str(text) for text in (name, entry.get("camera"), entry.get("recording")) if text)
    files = {"Before adaptation": before, "After adaptation": after}
    sides = [
        (title, draw_boxes(picture, file.boxes.get(image, []), file.names)) for title, file in files.items() if file
    ]
    return {"error": None, "origin": " · ".join(origin), "picture": picture, "sides": sides}
