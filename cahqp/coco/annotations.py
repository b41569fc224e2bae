"""Boxes of a COCO file as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cahqp.coco.geometry import Oddities, clip, repeated
from cahqp.coco.problems import Problems
from cahqp.coco.tables import BoxRow
from cahqp.frame import Frame


@dataclass(frozen=True)
class Annotations:
    """Boxes of one image.

    Attributes:
        boxes: (N, 4) float32 xyxy in pixels of the original image.
        categories: (N,) int64 category ids of the file.
        scores: (N,) float32 in 0..1; 1 where missing.
        weights: (N,) float32 in 0..1; 1 where missing.
        tracks: (N,) int64; -1 where missing.
        ignore: (K, 4) float32 xyxy regions that are neither object nor background (`iscrowd` or `ignore`).
        ignore_scores: (K,) float32 in 0..1, their scores; 1 where missing.
    """

    boxes: NDArray[np.float32]
    categories: NDArray[np.int64]
    scores: NDArray[np.float32]
    weights: NDArray[np.float32]
    tracks: NDArray[np.int64]
    ignore: NDArray[np.float32]
    ignore_scores: NDArray[np.float32]


@dataclass(frozen=True)
class AnnotationTable:
    """Boxes of all images of a file, sorted by image. Other columns are as in `Annotations`.

    Attributes:
        starts: (images + 1,) first row of each image.
        boxes: (N, 4) float64 xyxy in pixels of the original image, clipped to it.
        crowd: (N,) bool; true for regions to ignore.
        oddities: Numbers of unusual boxes. Repeated ones are left out.
    """

    starts: NDArray[np.int64]
    boxes: NDArray[np.float64]
    categories: NDArray[np.int64]
    scores: NDArray[np.float32]
    weights: NDArray[np.float32]
    tracks: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    oddities: Oddities

    def of(self, position: int) -> Annotations:
        """Return the boxes of the image at a position."""
        part = slice(self.starts[position], self.starts[position + 1])
        crowd, boxes = self.crowd[part], self.boxes[part].astype(np.float32)
        return Annotations(
            boxes=boxes[~crowd],
            categories=self.categories[part][~crowd],
            scores=self.scores[part][~crowd],
            weights=self.weights[part][~crowd],
            tracks=self.tracks[part][~crowd],
            ignore=boxes[crowd],
            ignore_scores=self.scores[part][crowd],
        )

    def used_categories(self) -> set[int]:
        """Return the ids of the categories that have boxes; regions to ignore do not count."""
        return {int(identifier) for identifier in np.unique(self.categories[~self.crowd])}


def build_table(
    rows: Sequence[BoxRow], frames: Sequence[Frame], problems: Problems, strict: bool = True
) -> AnnotationTable:
    """Clip boxes to their images and sort them by image; rows note their problems.

    Args:
        rows: Boxes.
        frames: Images; a side of 0 pixels is unknown and does not clip.
        problems: Collects problems of the whole file.
        strict: Read weights and tracks.

    Returns:
        The table; meaningful only if no row has a problem.
    """
    positions = {frame.id: index for index, frame in enumerate(frames)}
    image = np.array([positions[row.image] for row in rows], np.int64)
    sizes = np.array([frame.size for frame in frames], np.float64).reshape(-1, 2)[image]
    boxes, clipped, small = clip(rows, sizes, problems)
    weights = _shares([row.row.share("weight") if strict else None for row in rows])
    tracks = [row.row.integer("track_id") if strict and row.row.has("track_id") else -1 for row in rows]
    track = np.array([track or 0 for track in tracks], np.int64)
    categories = np.array([row.category for row in rows], np.int64)
    crowd = np.array([row.crowd for row in rows], bool)
    twice = repeated(image, boxes, categories, crowd, track)
    order = np.argsort(image, kind="stable")
    order = order[~twice[order]]
    return AnnotationTable(
        starts=np.searchsorted(image[order], np.arange(len(frames) + 1)),
        boxes=boxes[order],
        categories=categories[order],
        scores=_shares([row.score for row in rows])[order],
        weights=weights[order],
        tracks=track[order],
        crowd=crowd[order],
        oddities=Oddities(len(rows), clipped, small, int(twice.sum())),
    )


def _shares(values: Sequence[float | None]) -> NDArray[np.float32]:
    return np.array([1.0 if value is None else value for value in values], np.float32)
