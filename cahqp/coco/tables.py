"""Rows of COCO files: categories, images as frames, and boxes. The only code that interprets the COCO format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cahqp.coco.document import Row, identified, read_document, rows
from cahqp.coco.problems import Problems
from cahqp.coco.values import as_box, as_integer, as_number
from cahqp.frame import Frame


class BoxRow(NamedTuple):
    """Row of `annotations`.

    Attributes:
        row: The row itself, for further keys.
        image: Image id.
        category: Category id.
        bbox: x, y, width and height in pixels; finite.
        score: 0..1; `None` where missing.
        crowd: Whether the box is a region to ignore: `iscrowd` or `ignore`.
    """

    row: Row
    image: int
    category: int
    bbox: tuple[float, float, float, float]
    score: float | None
    crowd: bool

    @property
    def entry(self) -> dict[str, Any]:
        """JSON object of the row."""
        return self.row.entry


class Tables(NamedTuple):
    """Content of a COCO file as rows.

    Attributes:
        categories: Names by id.
        images: JSON objects by id.
        boxes: Rows of `annotations`.
    """

    categories: dict[int, str]
    images: dict[int, dict[str, Any]]
    boxes: list[BoxRow]


def read_tables(path: Path, sizes: bool = True, scores: bool = False) -> Tables:
    """Read and check the rows of a COCO file of labels or predictions; image files are not opened.

    Args:
        path: JSON file.
        sizes: Every image must have `width` and `height`.
        scores: Every box must have a `score`.

    Raises:
        DataError: All problems of the file together, each with its row.
    """
    return parse_tables(read_document(path), path, sizes, scores)


def read_checked(path: Path) -> dict[str, Any]:
    """Return the JSON object in a COCO file of labels, whose rows `parse_tables` has checked."""
    document = read_document(path)
    parse_tables(document, path)
    return document


def parse_tables(document: dict[str, Any], path: Path, sizes: bool = True, scores: bool = False) -> Tables:
    """Check the rows of a COCO document.

    Args:
        document: The document.
        path: File named in errors.
        sizes: Every image must have `width` and `height`.
        scores: Every box must have a `score`.

    Raises:
        DataError: All problems of the document together, each with its row.
    """
    problems = Problems(path)
    categories = read_categories(document, problems)
    images = {frame.id: row.entry for row, frame in read_frames(document, problems, sizes)}
    boxes = read_boxes(document, problems, images, categories, scores=scores)
    problems.check()
    return Tables(categories, images, boxes)


def read_categories(document: dict[str, Any], problems: Problems) -> dict[int, str]:
    """Return the names of a document's categories by id; ids must be unique, and so must the names of used categories.

    A category without boxes that repeats a name is left out: Roboflow writes such a root category.
    """
    categories: dict[int, str] = {}
    named = [(row, identifier, row.text("name")) for row, identifier in identified(document, "categories", problems)]
    counts = Counter(name for _, _, name in named)
    used = _used_categories(document) if len(counts) < len(named) else set()
    for row, identifier, name in named:
        if counts[name] > 1 and identifier not in used and used & {i for _, i, n in named if n == name}:
            continue
        if name and name in categories.values():
            row.add_problem(f"name {name!r} is already that of another category")
        if identifier is not None:
            categories.setdefault(identifier, name)
    return categories


def _used_categories(document: dict[str, Any]) -> set[int | None]:
    entries = document.get("annotations")
    return (
        {as_integer(e.get("category_id")) for e in entries if isinstance(e, dict)}
        if isinstance(entries, list)
        else set()
    )


def read_frames(
    document: dict[str, Any], problems: Problems, sizes: bool = True, names: bool = True
) -> list[tuple[Row, Frame]]:
    """Return the images of a document in their order.

    `recording` defaults to the camera, then to the folder in `file_name`. `index` is the key `frame`, by default the
    position within the recording.

    Args:
        document: Result of `read_document`.
        problems: Collects the problems of the images.
        sizes: Images must have `width` and `height`; without, a missing side becomes 0.
        names: Images must have a `file_name`; without, a missing one becomes the id.
    """
    frames: list[tuple[Row, Frame]] = []
    owners: dict[str, str] = {}
    lengths: dict[str, int] = {}
    for row, identifier in identified(document, "images", problems):
        name = row.text("file_name") if names or row.has("file_name") else str(identifier)
        size = _side(row, "height", sizes), _side(row, "width", sizes)
        if name and owners.setdefault(name, row.where) != row.where:
            row.add_problem(f"file_name {name!r} is already that of {owners[name]}")
        camera = _label(row, "camera")
        recording = _label(row, "recording") or camera or name.rpartition("/")[0]
        position = lengths[recording] = lengths.get(recording, -1) + 1
        index = row.integer("frame") if row.has("frame") else position
        timestamp = row.number("timestamp") if row.has("timestamp") else None
        if identifier is not None:
            frames.append((row, Frame(identifier, name, size, camera, recording, index or 0, timestamp)))
    return frames


def _side(row: Row, key: str, required: bool) -> int:
    if not (required or row.has(key)):
        return 0
    side = row.integer(key)
    if side is not None and side < 1:
        row.add_problem(f"`{key}` must be above 0, got {side}")
    return max(side or 0, 0)


def _label(row: Row, key: str) -> str:
    """Return the name of a camera or recording, which some files write as a number; empty where missing."""
    value = row.entry.get(key)
    if value is None or value == "":
        return ""
    return str(value) if isinstance(value, int) else row.text(key)


def read_boxes(
    document: dict[str, Any],
    problems: Problems,
    images: Container[int],
    categories: Mapping[int, str],
    *,
    ids: bool = False,
    scores: bool = False,
) -> list[BoxRow]:
    """Return the usable rows of `annotations` in their order.

    Args:
        document: Result of `read_document`.
        problems: Collects the problems of the rows.
        images: Ids of the images.
        categories: Category names by id.
        ids: Every box must have an `id` of its own.
        scores: Every box must have a `score`.
    """
    entries = identified(document, "annotations", problems)
    listed = f"`categories` ({', '.join(map(str, categories))})"
    boxes = []
    for row in (row for row, _ in entries) if ids else rows(document, "annotations", problems):
        image = _reference(row, "image_id", images, "`images`")
        category = _reference(row, "category_id", categories, listed)
        bbox = _bbox(row)
        score = row.share("score", scores)
        crowd = row.flag("iscrowd") | row.flag("ignore")
        _check_rotation(row)
        if image is not None and category is not None and bbox is not None:
            boxes.append(BoxRow(row, image, category, bbox, score, crowd))
    return boxes


def _check_rotation(row: Row) -> None:
    """Note a box that CVAT or a similar tool rotated: its `bbox` is that of the box before the rotation."""
    attributes = row.entry.get("attributes")
    rotation = attributes.get("rotation") if isinstance(attributes, dict) else None
    if rotation is not None and as_number(rotation) != 0:
        row.add_problem(f"box is rotated by {str(rotation)[:20]} degrees; draw it upright")


def _reference(row: Row, key: str, ids: Container[int], where: str) -> int | None:
    identifier = row.integer(key)
    if identifier is not None and identifier not in ids:
        row.add_problem(f"`{key}` {identifier} is not in {where}")
        return None
    return identifier


def _bbox(row: Row) -> tuple[float, float, float, float] | None:
    given = row.entry.get("bbox")
    bbox = as_box(given)
    if bbox is None:
        row.add_problem(f"`bbox` must be four finite numbers: x, y, width, height; got {str(given)[:60]}")
    return bbox
