"""Readers of `cahqp import` by format."""

from __future__ import annotations

from collections.abc import Callable

from cahqp.labels.imports import coco, cvat, label_studio, voc, yolo
from cahqp.labels.imports.findings import Findings
from cahqp.labels.imports.public import acdc, bdd100k, cityscapes, ua_detrac
from cahqp.labels.imports.source import Found, Source

READERS: dict[str, Callable[[Source, Findings], Found]] = {
    "acdc": acdc.read,
    "bdd100k": bdd100k.read,
    "cityscapes": cityscapes.read,
    "coco": coco.read,
    "cvat": cvat.read,
    "foggy-cityscapes": cityscapes.read_foggy,
    "label-studio": label_studio.read,
    "sim10k": voc.read_sim10k,
    "ua-detrac": ua_detrac.read,
    "voc": voc.read,
    "yolo": yolo.read,
}
