"""The boxes of a COCO file as columns, checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahqp.coco.document import Row, to_number
from cahqp.frame import Frame


@dataclass(frozen=True)
class Annotations:
    """What a file says of one image.

    Attributes:
        boxes: (N, 4) float32 xyxy in pixels of the original image.
        categories: (N,) int64 category ids of the file.
        scores: (N,) float32 in 0..1; ones where not given.
        weights: (N,) float32 in 0..1; ones where not given.
        tracks: (N,) int64; -1 where not given.
        ignore: (K, 4) float32 xyxy regions that are neither object nor background (`iscrowd` or `ignore`).
    """

    boxes: NDArray[np.float32]
    categories: NDArray[np.int64]
    scores: NDArray[np.float32]
    weights: NDArray[np.float32]
    tracks: NDArray[np.int64]
    ignore: NDArray[np.float32]


@dataclass(frozen=True)
class AnnotationTable:
    """The annotations of all images of a file, sorted by image.

    Attributes:
        starts: (images + 1,) first row of each image.
        boxes: (N, 4) float32 xyxy in pixels of the original image, clipped to it.
        categories: (N,) int64 category ids of the file.
        scores: (N,) float32.
        weights: (N,) float32.
        tracks: (N,) int64.
        crowd: (N,) bool.
        clipped: Number of boxes that reached over the border.
    """

    starts: NDArray[np.int64]
    boxes: NDArray[np.float32]
    categories: NDArray[np.int64]
    scores: NDArray[np.float32]
    weights: NDArray[np.float32]
    tracks: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    clipped: int

    def of(self, position: int) -> Annotations:
        """Return the annotations of the image at a position."""
        part = slice(self.starts[position], self.starts[position + 1])
        crowd = self.crowd[part]
        return Annotations(
            boxes=self.boxes[part][~crowd],
            categories=self.categories[part][~crowd],
            scores=self.scores[part][~crowd],
            weights=self.weights[part][~crowd],
            tracks=self.tracks[part][~crowd],
            ignore=self.boxes[part][crowd],
        )

    def used_categories(self) -> set[int]:
        """Return the ids of the categories that some box has; regions to ignore do not count."""
        return {int(identifier) for identifier in np.unique(self.categories[~self.crowd])}


def read_annotations(rows: Iterable[Row], frames: list[Frame], categories: dict[int, str]) -> AnnotationTable:
    """Read and check the annotations of a file.

    Args:
        rows: The entries of `annotations`; each notes its own problems.
        frames: The images of the file.
        categories: Category names by id.

    Returns:
        The table; what it holds means something only where no row had a problem.
    """
    position = {frame.id: index for index, frame in enumerate(frames)}
    ids: dict[int, str] = {}
    kept: list[tuple[Row, int, list[float]]] = []
    columns: list[tuple[int, int, float, float, int, bool]] = []
    for row in rows:
        identifier = row.whole("id")
        if identifier is not None and ids.setdefault(identifier, row.where) != row.where:
            row.complain(f"id {identifier} is already that of {ids[identifier]}")
        image = _known(row, "image_id", position, "`images`")
        category = _known(row, "category_id", categories, "`categories`")
        box = _box(row)
        if image is None or category is None or box is None:
            continue
        kept.append((row, position[image], box))
        track = row.whole("track_id") if row.has("track_id") else -1
        crowd = bool(row.entry.get("iscrowd") or row.entry.get("ignore"))
        columns.append((position[image], category, _share(row, "score"), _share(row, "weight"), track or 0, crowd))
    boxes, clipped = _clip(kept, frames)
    return _table(columns, boxes, clipped, len(frames))


def _known(row: Row, key: str, known: dict[int, Any], where: str) -> int | None:
    identifier = row.whole(key)
    if identifier is not None and identifier not in known:
        row.complain(f"`{key}` {identifier} is not in {where}")
        return None
    return identifier


def _box(row: Row) -> list[float] | None:
    given = row.entry.get("bbox")
    values = [to_number(value) for value in given] if isinstance(given, list) and len(given) == 4 else [None]
    if None in values:
        row.complain(f"`bbox` must be four numbers: x, y, width, height; got {str(given)[:60]}")
        return None
    return values  # type: ignore[return-value]


def _share(row: Row, key: str) -> float:
    if not row.has(key):
        return 1.0
    value = row.number(key)
    if value is not None and not 0 <= value <= 1:
        row.complain(f"`{key}` must be in 0..1, got {value}")
    return value or 0.0


def _clip(kept: list[tuple[Row, int, list[float]]], frames: list[Frame]) -> tuple[NDArray[np.float32], int]:
    """Return the boxes as xyxy within their images and how many had to be cut; complain of impossible ones."""
    xywh = np.array([box for _, _, box in kept], np.float64).reshape(-1, 4)
    sizes = np.array([frames[image].size for _, image, _ in kept], np.float64).reshape(-1, 2)
    finite = np.logical_and.reduce(np.isfinite(xywh), axis=1)
    positive = (xywh[:, 2] > 0) & (xywh[:, 3] > 0)
    with np.errstate(invalid="ignore", over="ignore"):
        xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
    limit = sizes[:, [1, 0, 1, 0]]
    within = np.clip(xyxy, 0, limit).astype(np.float32)
    inside = (within[:, 2:] > within[:, :2]).all(1)
    # An image whose own row is wrong has no size here; its boxes are not blamed for that.
    measured = (sizes > 0).all(1)
    for index in np.flatnonzero(~finite | ~positive | (~inside & measured)):
        row, _, box = kept[index]
        height, width = sizes[index].astype(int)
        if not finite[index]:
            row.complain(f"`bbox` {box} holds NaN or infinity")
        elif not positive[index]:
            row.complain(f"`bbox` {box} has no area; width and height must be above 0")
        else:
            row.complain(f"`bbox` {box} lies outside its image of {width}x{height}")
    # Half a pixel over the border is rounding in the labelling tool, not worth counting.
    return within, int((np.abs(within - xyxy) > 0.5).any(1).sum())


def _table(
    columns: list[tuple[int, int, float, float, int, bool]], boxes: NDArray[np.float32], clipped: int, images: int
) -> AnnotationTable:
    values = list(zip(*columns, strict=True)) or [()] * 6
    image = np.array(values[0], np.int64)
    order = np.argsort(image, kind="stable")
    return AnnotationTable(
        starts=np.searchsorted(image[order], np.arange(images + 1)),
        boxes=boxes[order],
        categories=np.array(values[1], np.int64)[order],
        scores=np.array(values[2], np.float32)[order],
        weights=np.array(values[3], np.float32)[order],
        tracks=np.array(values[4], np.int64)[order],
        crowd=np.array(values[5], bool)[order],
        clipped=clipped,
    )
