"""Cityscapes (Cordts et al., CVPR 2016) and Foggy Cityscapes (Sakaridis et al., IJCV 2018)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cahqp.coco.document import read_document
from cahqp.coco.values import as_integer, as_number
from cahqp.errors import DataError
from cahqp.labels.imports.findings import Findings
from cahqp.labels.imports.records import FoundBox, FoundImage
from cahqp.labels.imports.source import Found, Source

CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
"""The eight classes with instances, in the order of the label ids 24 to 33."""
_POLYGONS = "_gtFine_polygons.json"
_BETA = re.compile(r"_foggy_beta_([0-9.]+)\.png$")


def read(source: Source, findings: Findings) -> Found:
    """Read `gtFine` with the images of `leftImg8bit`.

    `split` is `train`, `val` or `test`; `city` is such as `aachen`. A box is the box around a polygon. Groups, such
    as `cargroup`, become regions to ignore of their class. A recording is a sequence of a city.

    Raises:
        DataError: The folder contains no polygons.
    """
    return _read(source, findings, "leftImg8bit", "_leftImg8bit.png")


def read_foggy(source: Source, findings: Findings) -> Found:
    """Read `gtFine` with the images of `leftImg8bit_foggy`.

    As `read`; `beta` is the attenuation coefficient: `0.005`, `0.01` or `0.02`, the densest fog, which papers use.
    """
    return _read(source, findings, "leftImg8bit_foggy", "_leftImg8bit_foggy_beta_*.png")


def _read(source: Source, findings: Findings, folder: str, pattern: str) -> Found:
    files = source.files(f"*{_POLYGONS}")
    if not files:
        message = f"{source.path} contains no *{_POLYGONS}. Give the folder with gtFine and {folder}."
        raise DataError(message)
    images: list[FoundImage] = []
    for path in files:
        split, city = path.parent.parent.name, path.parent.name
        if not source.takes(split=split, city=city):
            continue
        stem = path.name.removesuffix(_POLYGONS)
        directory = (source.images or path.parents[3] / folder) / split / city
        found = sorted(directory.glob(f"{stem}{pattern}")) or [directory / f"{stem}{pattern}"]
        taken = [image for image in found if _takes_beta(source, image)]
        if taken:
            size, boxes = _polygons(path, findings)
            more = {"recording": "_".join(stem.split("_")[:2])}
            images += [FoundImage(str(path), image, boxes, size, more=more) for image in taken]
    return Found(images, CLASSES)


def _takes_beta(source: Source, image: Path) -> bool:
    beta = _BETA.search(image.name)
    return beta is None or source.takes(beta=beta[1])


def _polygons(path: Path, findings: Findings) -> tuple[tuple[int, int] | None, tuple[FoundBox, ...]]:
    document = read_document(path, ["objects"])
    height, width = (as_integer(document.get(key)) for key in ("imgHeight", "imgWidth"))
    boxes = [_box(f"{path}, object {n}", entry, findings) for n, entry in enumerate(document["objects"])]
    return ((height, width) if height and width else None), tuple(filter(None, boxes))


def _box(where: str, entry: Any, findings: Findings) -> FoundBox | None:
    """Return the box around a polygon of a class with instances, `None` for other classes."""
    label = str(entry.get("label", "")) if isinstance(entry, dict) else ""
    name = label.removesuffix("group")
    if name not in CLASSES or (isinstance(entry, dict) and entry.get("deleted")):
        return None
    points = entry.get("polygon")
    pairs = (
        [point for point in points if isinstance(point, list) and len(point) == 2] if isinstance(points, list) else []
    )
    columns, rows = ([as_number(point[axis]) for point in pairs] for axis in (0, 1))
    x, y = ([value for value in axis if value is not None] for axis in (columns, rows))
    if len(pairs) < 3 or len(x) < len(pairs) or len(y) < len(pairs):
        findings.invalid("polygon has fewer than three valid points", where)
        return None
    return FoundBox(where, name, (min(x), min(y), max(x), max(y)), label != name)
