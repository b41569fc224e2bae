"""Survey of the user's frames: classes, image sizes, object sizes and recordings, without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cahqp.coco.decoding import read_image
from cahqp.coco.reader import CocoFile, read_coco, read_coco_frames
from cahqp.coco.sources import image_names, source_kind
from cahqp.coco.video import Video
from cahqp.data.frames import open_frames
from cahqp.data.splits import Located, check_leakage
from cahqp.errors import DataError


@dataclass(frozen=True)
class Survey:
    """Facts about the frames of a plan.

    Attributes:
        boxes: Number of training boxes per class, in the order of the categories.
        ignored: Classes of the validation and test files without training boxes.
        frames: Number of labelled training frames.
        size: Most frequent height and width of the labelled frames in pixels.
        target_size: Height and width of the first target frame.
        box_side: Median side of the training boxes in pixels: the square root of the area.
        later_block: Whether validation frames are a later block of the training recordings.
        videos: Whether the target contains videos.
    """

    boxes: dict[str, int]
    ignored: list[str]
    frames: int
    size: tuple[int, int]
    target_size: tuple[int, int]
    box_side: float
    later_block: bool
    videos: bool


def survey(source: Sequence[Path], val: Sequence[Path], target: Sequence[Path], test: Sequence[Path]) -> Survey:
    """Read the files of a plan and check that they fit together.

    Raises:
        DataError: A file cannot be used, has no boxes, or a recording is on both sides of the split.
    """
    train, held_out = [read_coco(path) for path in source], [read_coco(path) for path in [*val, *test]]
    boxes = _count_boxes(train)
    for name, files in (("source", train), ("val", held_out[: len(val)]), ("test", held_out[len(val) :])):
        if files and not _count_boxes(files):
            message = (
                f"--{name} {', '.join(str(file.path) for file in files)}: there are no boxes. Give files with labels; "
                "frames without labels belong to --target."
            )
            raise DataError(message)
    sizes = Counter(frame.size for file in train for frame in file.frames)
    sides = np.concatenate([_box_sides(file) for file in train])
    kinds = {path: source_kind(path) for path in target}
    unlabelled = [path for path, kind in kinds.items() if kind != "video"]
    located = [*_located(train), *(pair for path in unlabelled for pair in _located_frames(path))]
    return Survey(
        boxes=boxes,
        ignored=sorted(set(_count_boxes(held_out)) - set(boxes)),
        frames=sum(len(file) for file in train),
        size=sizes.most_common(1)[0][0],
        target_size=_first_size(target[0], kinds[target[0]]),
        box_side=float(np.median(sides)),
        later_block=_later_block(located, _located(held_out[: len(val)])),
        videos="video" in kinds.values(),
    )


def video_properties(path: Path) -> tuple[tuple[int, int], float]:
    """Return height and width of a video in pixels, and the duration in its header in seconds; 0 if unknown.

    Raises:
        DataError: The file cannot be opened.
    """
    with Video(path) as video:
        height, width = next(iter(video)).pixels().shape[:2]
        return (height, width), video.duration


def _count_boxes(files: Sequence[CocoFile]) -> dict[str, int]:
    """Return the number of boxes by class, without regions to ignore, in the order of the category ids."""
    counts: dict[str, int] = {}
    for file in files:
        used = file.table.categories[~file.table.crowd]
        for identifier, name in sorted(file.categories.items()):
            if number := int((used == identifier).sum()):
                counts[name] = counts.get(name, 0) + number
    return counts


def _box_sides(file: CocoFile) -> NDArray[np.float64]:
    boxes = file.table.boxes[~file.table.crowd]
    sides: NDArray[np.float64] = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    return sides


def _located(files: Sequence[CocoFile]) -> list[Located]:
    return [pair for file in files for pair in zip(file.frames, file.files, strict=True)]


def _located_frames(path: Path) -> list[Located]:
    source = open_frames([path])
    return [(frame, source.path(position)) for position, frame in enumerate(source.frames)]


def _later_block(train: Sequence[Located], held_out: Sequence[Located]) -> bool:
    """Return whether held-out frames are a later block of the training recordings; other overlaps are refused."""
    try:
        check_leakage(train, held_out)
    except DataError:
        check_leakage(train, held_out, later_block=True)
        return True
    return False


def _first_size(path: Path, kind: str) -> tuple[int, int]:
    """Return height and width of the first frame of a source."""
    if kind == "video":
        return video_properties(path)[0]
    if kind == "coco":
        return read_coco_frames(path).frames[0].size
    height, width = read_image(path / image_names(path)[0] if kind == "folder" else path).shape[:2]
    return height, width
