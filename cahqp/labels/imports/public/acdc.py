"""ACDC (Sakaridis et al., ICCV 2021): driving in fog, night, rain and snow."""

from __future__ import annotations

from pathlib import Path

from cahqp.errors import DataError
from cahqp.labels.imports import coco
from cahqp.labels.imports.findings import Findings
from cahqp.labels.imports.public.cityscapes import CLASSES
from cahqp.labels.imports.source import Found, ImageIndex, Source

CONDITIONS = ("fog", "night", "rain", "snow")


def read(source: Source, findings: Findings) -> Found:
    """Read the COCO files of `gt_detection` with the images of `rgb_anon`.

    `condition` is `fog`, `night`, `rain` or `snow`; `split` is `train` or `val`. Both come from the path of the image,
    since the published file of rain lists the images of all conditions.

    Raises:
        DataError: The folder contains no labels of detection.
    """
    files = [path for path in source.files("instancesonly_*_gt_detection.json") if _condition(path) is not None]
    if not files:
        message = f"{source.path} contains no CONDITION/instancesonly_*_gt_detection.json. Give the ACDC folder."
        raise DataError(message)
    roots = [source.images] if source.images else sorted(source.folder.rglob("rgb_anon")) or [source.folder]
    index = ImageIndex(roots)
    images = []
    for path in files:
        condition = str(_condition(path))
        split = "val" if "_val_" in path.name else "train"
        if source.takes(condition=condition, split=split):
            images += coco.read_file(path, index, findings, f"{condition}/").images
    return Found(images, CLASSES)


def _condition(path: Path) -> str | None:
    return next((name for name in CONDITIONS if f"_{name}_" in path.name), None)
