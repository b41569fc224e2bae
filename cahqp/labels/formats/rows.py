"""Rows of COCO files of labels and predictions, checked one by one so that all that is wrong is told together."""

from __future__ import annotations

import math
from collections.abc import Container
from pathlib import Path
from typing import Any, NamedTuple

from cahqp.coco.document import Row, read_categories, read_document, rows, to_number
from cahqp.coco.problems import Problems

_REMEDY = "Mend these rows, or take them out of the file."


class BoxRow(NamedTuple):
    """A row of `annotations`.

    Attributes:
        image: Its image id.
        category: Its category id.
        bbox: x, y, width and height in pixels.
        score: 0..1; `None` where not given.
        entry: The row itself.
    """

    image: int
    category: int
    bbox: tuple[float, float, float, float]
    score: float | None
    entry: dict[str, Any]


class Tables(NamedTuple):
    """A file.

    Attributes:
        categories: Names by id.
        images: Rows by id.
        boxes: Rows of `annotations`.
    """

    categories: dict[int, str]
    images: dict[int, dict[str, Any]]
    boxes: list[BoxRow]


def read_tables(path: Path, sizes: bool = True, scores: bool = False) -> Tables:
    """Read a file.

    Args:
        path: The file.
        sizes: Every image must have `width` and `height`.
        scores: Every box must have a `score`.

    Raises:
        DataError: All problems of the file together, each with its row.
    """
    document = read_document(path)
    problems = Problems(path)
    categories = read_categories(document, problems)
    images = _images(document, problems, sizes)
    read = (_box(row, images, categories, scores) for row in rows(document, "annotations", problems))
    boxes = [box for box in read if box is not None]
    problems.tell(_REMEDY)
    return Tables(categories, images, boxes)


def _images(document: dict[str, Any], problems: Problems, sizes: bool) -> dict[int, dict[str, Any]]:
    images: dict[int, dict[str, Any]] = {}
    names: set[str] = set()
    for row in rows(document, "images", problems):
        identifier, name = row.whole("id"), row.text("file_name")
        for side in ("width", "height") if sizes else ():
            value = row.whole(side)
            if value is not None and value < 1:
                row.complain(f"`{side}` must be above 0, got {value}")
        if identifier in images:
            row.complain(f"id {identifier} is already that of another image")
        elif name in names:
            row.complain(f"file_name {name!r} is already that of another image")
        if identifier is not None:
            images[identifier] = row.entry
        names.add(name)
    return images


def _box(row: Row, images: Container[int], categories: Container[int], scored: bool) -> BoxRow | None:
    image, category = _known(row, "image_id", images), _known(row, "category_id", categories)
    given = row.entry.get("bbox")
    values = [to_number(value) for value in given] if isinstance(given, list) and len(given) == 4 else [None]
    bbox = tuple(value for value in values if value is not None and math.isfinite(value))
    if len(bbox) != 4:
        row.complain(f"needs `bbox`, four finite numbers: x, y, width, height; it has {str(given)[:60]}")
    score = row.number("score") if scored or row.has("score") else None
    if score is not None and not 0 <= score <= 1:
        row.complain(f"`score` must be in 0..1, got {score}")
    if image is None or category is None or len(bbox) != 4:
        return None
    return BoxRow(image, category, bbox, score, row.entry)


def _known(row: Row, key: str, known: Container[int]) -> int | None:
    identifier = row.whole(key)
    if identifier is not None and identifier not in known:
        row.complain(f"`{key}` {identifier} is not in the file")
        return None
    return identifier
