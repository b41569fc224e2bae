"""COCO and its variants: folders of `annotations`, Roboflow, FiftyOne, COCO-VID."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cahqp.coco.document import Row, read_document, rows
from cahqp.coco.image_folder import image_root
from cahqp.coco.problems import Problems
from cahqp.coco.tables import BoxRow, read_boxes, read_categories, read_frames
from cahqp.coco.values import as_integer
from cahqp.errors import DataError
from cahqp.frame import Frame
from cahqp.labels.imports.findings import Findings
from cahqp.labels.imports.records import FoundBox, FoundImage
from cahqp.labels.imports.source import Found, ImageIndex, Source

_KEPT = ("score", "track_id", "weight")


def read(source: Source, findings: Findings) -> Found:
    """Read a COCO file, or all COCO files below a folder.

    Images are found in the folders of the common layouts, with leading folders of a name missing or added. `split` is
    the folder of the images that occurs in the file's name (`instances_train2017.json`), for Roboflow the file's own
    folder, else the file's name.

    Raises:
        DataError: No file is COCO, or its categories are invalid.
    """
    images: list[FoundImage] = []
    classes: dict[str, None] = {}
    files = [path for path in source.files("*.json") if source.path.is_file() or _is_coco(path)]
    for path in files:
        split = _split(path)
        if source.takes(split=split):
            roots = [source.images, source.images / split] if source.images else _roots(path, split)
            found = read_file(path, ImageIndex([root for root in roots if root.is_dir()] or roots[:1]), findings)
            images += found.images
            classes |= dict.fromkeys(found.classes)
    if not files:
        message = f"{source.path} contains no COCO file, a JSON object with `images`. Give the file itself."
        raise DataError(message)
    return Found(images, list(classes))


def _is_coco(path: Path) -> bool:
    if path.name.endswith((".source.json", ".report.json")):
        return False
    content = read_document(path)
    return isinstance(content.get("images"), list) and isinstance(content.get("annotations"), list)


def _split(path: Path) -> str:
    if path.stem.startswith("_annotations"):
        return path.parent.name
    folders = [folder for base in (path.parent.parent / "images", path.parent.parent) for folder in base.glob("*/")]
    names = sorted({folder.name for folder in folders if folder.name in path.stem}, key=len)
    return names[-1] if names else path.stem


def _roots(path: Path, split: str) -> list[Path]:
    above = path.parent.parent
    others = [path.parent / "data", path.parent / split, above / "images" / split, above / split, above / "images"]
    return [image_root(path), *others, path.parent, *([above] if path.parent.name == "annotations" else [])]


def read_file(path: Path, index: ImageIndex, findings: Findings, prefix: str = "") -> Found:
    """Read one COCO file.

    Args:
        path: The file.
        index: Finds the images.
        findings: Collects invalid rows.
        prefix: Start of the names of the images to take.

    Raises:
        DataError: The file is not COCO, or its categories are invalid.
    """
    document = read_document(path, ["images", "annotations"])
    problems = Problems(path)
    categories = read_categories(document, problems)
    problems.check()
    problems = Problems(path)
    frames = read_frames(document, problems, sizes=False)
    for where, problem in problems.by_row().items():
        findings.invalid("image row is invalid", f"{path}, {where}", problem)
    invalid = problems.by_row()
    kept = {frame.id: frame for row, frame in frames if row.where not in invalid and frame.name.startswith(prefix)}
    boxes = _boxes(document, path, {frame.id for _, frame in frames}, kept, categories, findings)
    videos = _videos(document, path)
    found = [
        _image(path, row, frame, index, boxes.get(frame.id, ()), videos)
        for row, frame in frames
        if kept.get(frame.id) is frame
    ]
    return Found(found, [categories[number] for number in sorted(categories)])


def _boxes(
    document: dict[str, Any],
    path: Path,
    ids: set[int],
    kept: Mapping[int, Frame],
    categories: Mapping[int, str],
    findings: Findings,
) -> dict[int, tuple[FoundBox, ...]]:
    problems = Problems(path)
    found = read_boxes(document, problems, ids, categories)
    invalid = problems.by_row()
    for where, problem in invalid.items():
        findings.invalid("annotation is invalid", f"{path}, {where}", problem)
    boxes: dict[int, tuple[FoundBox, ...]] = {}
    for row in found:
        if row.row.where not in invalid and row.image in kept:
            boxes[row.image] = (*boxes.get(row.image, ()), _box(path, row, categories))
    return boxes


def _box(path: Path, row: BoxRow, categories: Mapping[int, str]) -> FoundBox:
    x, y, width, height = row.bbox
    more = {key: row.entry[key] for key in _KEPT if row.row.has(key)}
    if "track_id" not in more and type(row.entry.get("instance_id")) is int:  # COCO-VID
        more["track_id"] = row.entry["instance_id"]
    where = f"{path}, {row.row.where}"
    return FoundBox(where, categories[row.category], (x, y, x + width, y + height), row.crowd, more)


def _videos(document: dict[str, Any], path: Path) -> dict[int, str]:
    """Return the name of each video of COCO-VID by its id."""
    problems = Problems(path)
    named = rows(document, "videos", problems) if "videos" in document else ()
    videos = {row.integer("id"): row.text("name") for row in named}
    problems.check()
    return {number: name for number, name in videos.items() if number is not None}


def _image(
    path: Path, row: Row, frame: Frame, index: ImageIndex, boxes: tuple[FoundBox, ...], videos: Mapping[int, str]
) -> FoundImage:
    more = {key: row.entry[key] for key in ("camera", "recording", "frame", "timestamp") if row.has(key)}
    video = as_integer(row.entry.get("video_id"))
    if video is not None and video in videos:
        more = {"recording": videos[video], "frame": row.entry.get("frame_id", frame.index)} | more
    size = frame.size if all(frame.size) else None
    return FoundImage(f"{path}, {row.where}", index.find(frame.name), boxes, size, more=more)
