"""Report section on pseudo-labels of one labelling run, or of two side by side: counts and example frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cahqp.errors import DataError
from cahqp.labels.formats.coco import read_label_file
from cahqp.labels.ground_truth import used_boxes
from cahqp.reports.inputs import count_reasons, read_object, read_rejected
from cahqp.reports.pictures import class_colours, draw_boxes, load_picture
from cahqp.reports.records import SourceRecord

MAX_EXAMPLES = 6


class Relabelling:
    """Pseudo-labels in a directory of `cahqp relabel`.

    Attributes:
        labels: Content of `labels.json`.
        images: Images by COCO id.
        kept: Number of labels by class name.
        ignored: Number of boxes that training ignores, by reason.
        rejected: Number of rejected boxes by reason.
        roots: Folders of the frames.
    """

    def __init__(self, directory: Path) -> None:
        self.labels = read_label_file(directory)
        self.images = {image.entry["id"]: image for image in self.labels.images}
        kept = Counter(box.name for image in self.labels.images for box in used_boxes(image))
        self.kept = {name: kept[name] for name in self.labels.categories.values()}
        boxes = [box for image in self.labels.images for box in image.boxes]
        self.ignored = count_reasons(box.more for box in boxes if box.ignored)
        self.rejected = count_reasons(read_rejected(directory))
        root = read_object(directory / "source.json", SourceRecord).get("root", [])
        self.roots = [directory / folder for folder in ([root] if isinstance(root, str) else root)]


def read_labels(directory: Path) -> Relabelling | None:
    """Read a directory of `cahqp relabel`; return `None` without `labels.json`."""
    return Relabelling(directory) if (directory / "labels.json").is_file() else None


def compare_labels(before: Relabelling | None, after: Relabelling) -> dict[str, Any]:
    """Return the template's `labels`: counts, class colours and example frames.

    Args:
        before: Labels of the teacher before adaptation, if any.
        after: Labels to show.
    """
    files = [after] if before is None else [before, after]
    return {
        "images": len(after.images),
        "columns": ["before", "after"][-len(files) :],
        "kept": _rows([file.kept for file in files]),
        "ignored": _rows([file.ignored for file in files]),
        "rejected": _rows([file.rejected for file in files]),
        "colours": class_colours(after.labels.categories.values()),
        "examples": [_example(image, before, after) for image in choose_images(files)],
    }


def _rows(counts: list[Mapping[str, int]]) -> list[list[str | int]]:
    """Return one row for each name, with its number in each file."""
    names = dict.fromkeys(name for count in counts for name in count)
    return [[name, *(count.get(name, 0) for count in counts)] for name in names]


def choose_images(files: list[Relabelling]) -> list[int]:
    """Return the ids of frames spread evenly over those with a label in any file, or over all."""
    shared = [image for image in files[-1].images if all(image in file.images for file in files)]
    pool = [image for image in shared if any(used_boxes(file.images[image]) for file in files)] or shared
    rows = np.linspace(0, len(pool) - 1, min(MAX_EXAMPLES, len(pool))).round().astype(int)
    return [pool[row] for row in rows]


def _example(image: int, before: Relabelling | None, after: Relabelling) -> dict[str, Any]:
    entry, name = after.images[image].entry, after.images[image].name
    try:
        picture = load_picture(after.roots or (before.roots if before else []), name)
    except DataError as error:
        return {"error": f"{name} could not be shown. {error}"}
    origin = dict.fromkeys(str(text) for text in (name, entry.get("camera"), entry.get("recording")) if text)
    sides = [
        (title, draw_boxes(picture, used_boxes(file.images[image]), file.labels.categories.values()))
        for title, file in (("Before adaptation", before), ("After adaptation", after))
        if file
    ]
    return {"error": None, "origin": " · ".join(origin), "picture": picture, "sides": sides}
