"""Label Studio: exports as JSON and JSON-MIN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cahqp.coco.document import read_external
from cahqp.coco.values import as_integer, as_number
from cahqp.errors import DataError
from cahqp.labels.formats.label_studio_names import image_name
from cahqp.labels.imports.findings import Findings
from cahqp.labels.imports.records import FoundBox, FoundImage
from cahqp.labels.imports.source import Found, ImageIndex, Source

_CLASSES = ("rectanglelabels", "polygonlabels", "labels")
_SIDES = ("x", "y", "width", "height")
_OTHER = ("ellipse", "keypoint", "brush", "bitmask", "vector", "cuboid")


def read(source: Source, findings: Findings) -> Found:
    """Read exported tasks: the last annotation of each task that was not cancelled.

    Tasks without an annotation are left out. Rectangles drawn from another corner are normalised. A size in the file is
    that of the upright view, so boxes on images with an EXIF orientation are turned.

    Raises:
        DataError: The file is no export.
    """
    files = source.files("*.json")
    if len(files) != 1:
        message = (
            f"{source.path} contains {len(files)} JSON files. Give the exported file itself, with --images FOLDER."
        )
        raise DataError(message)
    path = files[0]
    tasks = read_external(path)
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        message = f"{path} is no export of Label Studio: it must be a list of tasks. Export as JSON or JSON-MIN."
        raise DataError(message)
    index = ImageIndex([source.images] if source.images else [path.parent / "images", path.parent])
    images = [_image(f"{path}, task {n}", task, index, findings) for n, task in enumerate(tasks, 1)]
    return Found([image for image in images if image is not None])


def _image(where: str, task: dict[str, Any], index: ImageIndex, findings: Findings) -> FoundImage | None:
    data = task.get("data", task)
    try:
        name = image_name(data)
    except (KeyError, AttributeError):
        findings.invalid("task has no image", where)
        return None
    results = _results(task)
    if results is None:
        findings.left_out("task without an annotation", where)
        return None
    boxes, size = [], None
    for number, result in enumerate(results, 1):
        width, height = as_integer(result.get("original_width")), as_integer(result.get("original_height"))
        size = (height, width) if width and height else size
        boxes.append(_box(f"{where}, result {number}", result, findings))
    return FoundImage(where, index.find(name), tuple(filter(None, boxes)), size, shares=True)


def _results(task: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | None:
    """Return the regions of a task; `None` without an annotation. JSON-MIN has them as lists of the task itself."""
    if "data" in task:
        annotations = task.get("annotations") or task.get("completions") or []
        kept = [a for a in annotations if isinstance(a, dict) and not a.get("was_cancelled")]
        results = kept[-1].get("result") if kept else None
        return None if results is None else [result for result in results if isinstance(result, dict)]
    lists = [value for value in task.values() if isinstance(value, list)]
    if not lists and not any(key in task for key in ("annotator", "annotation_id")):
        return None
    return [region for value in lists for region in value if isinstance(region, dict)]


def _box(where: str, result: Mapping[str, Any], findings: Findings) -> FoundBox | None:
    """Return the box of a region in shares of the image; `None` for results without a position."""
    value = result.get("value", result)
    kind = str(result.get("type", ""))
    if not isinstance(value, dict) or any(kind.startswith(other) for other in _OTHER):
        findings.invalid(f"shape is a {kind.removesuffix('labels')}, not a box" if kind else "region is invalid", where)
        return None
    names = next((value[key] for key in _CLASSES if isinstance(value.get(key), list) and value[key]), None)
    if names is None:
        if "x" in value or "points" in value:
            findings.left_out("shape without a class", where)
        return None
    if as_number(value.get("rotation", 0)):
        findings.invalid("box is rotated", where, f"{value['rotation']} degrees")
        return None
    corners = _corners(where, value, findings)
    if corners is None:
        findings.invalid("region has no valid corners", where)
        return None
    x1, y1, x2, y2 = (corner / 100 for corner in corners)
    return FoundBox(where, str(names[0]), (x1, y1, x2, y2))


def _corners(where: str, value: Mapping[str, Any], findings: Findings) -> tuple[float, float, float, float] | None:
    """Return the corners in percent, the upper left one first."""
    points = value.get("points")
    if isinstance(points, list):
        numbers = [as_number(number) for point in points if isinstance(point, list) for number in point[:2]]
        known = [number for number in numbers if number is not None]
        if len(known) < 6 or len(known) < len(numbers) or len(known) % 2:
            return None
        findings.odd("polygon, taken as the box around it", where)
        return min(known[::2]), min(known[1::2]), max(known[::2]), max(known[1::2])
    x, y, width, height = (as_number(value.get(side)) for side in _SIDES)
    if x is None or y is None or width is None or height is None:
        return None
    if width < 0 or height < 0:
        findings.odd("box drawn from another corner", where)
    return min(x, x + width), min(y, y + height), max(x, x + width), max(y, y + height)
