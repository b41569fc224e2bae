"""BDD100K (Yu et al., CVPR 2020): driving images with weather and time of day."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cahqp.coco.document import read_external
from cahqp.coco.values import as_number
from cahqp.errors import DataError
from cahqp.labels.imports.findings import Findings
from cahqp.labels.imports.records import FoundBox, FoundImage
from cahqp.labels.imports.source import Found, ImageIndex, Source

CLASSES = (
    "pedestrian", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle", "traffic light", "traffic sign",
)  # fmt: skip
_OLD = {"person": "pedestrian", "bike": "bicycle", "motor": "motorcycle"}
"""Names of the release of 2018, and those of `det_20`."""
_PATTERNS = ("det_train.json", "det_val.json", "bdd100k_labels_images_train.json", "bdd100k_labels_images_val.json")


def read(source: Source, findings: Findings) -> Found:
    """Read the labels of detection: one list of frames per split, or one JSON file per image.

    `split`, `timeofday` (`daytime`, `night`, `dawn/dusk`), `weather` and `scene` can be selected. Class names of 2018
    become those of `det_20`. Every image is a recording of its own, because it comes from a video of its own.

    Raises:
        DataError: The folder contains no labels of detection, or a file is not BDD100K's.
    """
    files = _label_files(source)
    if not files:
        message = f"{source.path} contains none of {', '.join(_PATTERNS)}, and no labels/100k. Give the BDD100K folder."
        raise DataError(message)
    images: list[FoundImage] = []
    indices: dict[str, ImageIndex] = {}
    for path in files:
        split = next(
            (name for name in ("train", "val", "test") if name in (path.stem.split("_")[-1], path.parent.name)), ""
        )
        if not source.takes(split=split):
            continue
        index = indices.setdefault(split, ImageIndex(_image_folders(source, split)))
        for number, entry in enumerate(_entries(path)):
            attributes = entry.get("attributes")
            values = {k: str(v) for k, v in attributes.items()} if isinstance(attributes, dict) else {}
            if source.takes(**{key: values.get(key, "undefined") for key in ("timeofday", "weather", "scene")}):
                images.append(_image(f"{path}[{number}]", entry, index, findings))
    return Found(images, CLASSES)


def _label_files(source: Source) -> list[Path]:
    if source.path.is_file():
        return [source.path]
    lists = [path for pattern in _PATTERNS for path in source.files(pattern)]
    return lists or [path for path in source.files("*.json") if "100k" in path.parts]


def _image_folders(source: Source, split: str) -> list[Path]:
    if source.images is not None:
        return [source.images, source.images / split]
    roots = [source.folder, *source.folder.parents[:3]]
    found = [
        path for root in roots[: 1 if source.path.is_dir() else 4] for path in root.glob(f"**/images/100k/{split}")
    ]
    return found or [source.folder]


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    content = read_external(path)
    entries = content if isinstance(content, list) else [content]
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            message = (
                f"{path} is no label file of BDD100K: each frame must have a `name`. Give its labels of detection."
            )
            raise DataError(message)
        yield entry


def _image(where: str, entry: dict[str, Any], index: ImageIndex, findings: Findings) -> FoundImage:
    name = entry["name"] if "." in entry["name"] else f"{entry['name']}.jpg"
    labels = entry.get("labels") or []
    for frame in entry.get("frames") or []:
        labels = [*labels, *(frame.get("objects") or [])]
    boxes = [_box(f"{where}.labels[{n}]", label, findings) for n, label in enumerate(labels)]
    return FoundImage(where, index.find(name), tuple(filter(None, boxes)), more={"recording": Path(name).stem})


def _box(where: str, label: dict[str, Any], findings: Findings) -> FoundBox | None:
    """Return the box of a label; lanes and drivable areas have none."""
    box = label.get("box2d")
    if box is None:
        return None
    corners = [as_number(box.get(key)) for key in ("x1", "y1", "x2", "y2")] if isinstance(box, dict) else [None]
    name = label.get("category")
    if None in corners or not isinstance(name, str):
        findings.invalid("label has no category or no four corners", where)
        return None
    x1, y1, x2, y2 = (float(corner or 0) for corner in corners)
    return FoundBox(where, _OLD.get(name, name), (x1, y1, x2, y2))
