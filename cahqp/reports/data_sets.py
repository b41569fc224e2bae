"""Content of labelled and unlabelled data sets: counts, sizes of boxes, brightness, copies across splits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahqp.coco.decoding import BrokenImageError, read_header
from cahqp.coco.naming import Naming
from cahqp.coco.reader import CocoFile, read_coco
from cahqp.coco.sources import source_kind
from cahqp.data.frames import open_frames
from cahqp.errors import DataError
from cahqp.frame import Frame
from cahqp.reports.capture_hours import capture_hour
from cahqp.reports.perceptual_hash import find_copies, hash_image

SIZES = {"small": (0.0, 32.0), "medium": (32.0, 96.0), "large": (96.0, float("inf"))}
"""COCO's ranges of the square root of a box's area in pixels."""


@dataclass
class DataSet:
    """Images of one split.

    Attributes:
        name: Name of the split.
        root: Folder that the names of frames are relative to.
        frames: Images.
        file: Labels; `None` for a folder of images.
        hashes: Perceptual hash of each readable image, by position.
        hours: Hour of each image whose time is known, by position.
        broken: Reason of each unreadable image, by name.
        oriented: Number of images with an EXIF orientation.
    """

    name: str
    root: Path
    frames: Sequence[Frame]
    file: CocoFile | None = None
    hashes: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    hours: dict[int, int] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    oriented: int = 0

    def read_images(self) -> None:
        """Read every image once, for its hash, hour and orientation."""
        for position, frame in enumerate(self.frames):
            path = self.root / frame.name
            try:
                self.oriented += read_header(path).orientation != 1
                self.hashes[position] = hash_image(path)
            except BrokenImageError as error:
                self.broken[frame.name] = str(error)
                continue
            hour = capture_hour(frame, path)
            if hour is not None:
                self.hours[position] = hour


def open_data_set(name: str, path: Path, naming: Naming | None = None) -> DataSet:
    """Return the data set of a COCO file or of a folder of images.

    Args:
        name: Name of the data set.
        path: COCO file or folder.
        naming: Rule for camera and time of the images of folders.

    Raises:
        DataError: It is neither, or is invalid.
    """
    kind = source_kind(path)
    if kind == "coco":
        file = read_coco(path)
        return DataSet(name, file.root, file.frames, file)
    if kind == "folder":
        return DataSet(name, path, list(open_frames([path], naming=naming).frames))
    message = f"{path} is a {kind}. Give COCO files and folders of images."
    raise DataError(message)


def describe(data: DataSet) -> dict[str, Any]:
    """Return counts by class and camera, sizes of boxes and brightness by hour of one data set."""
    cameras = Counter(frame.camera or frame.recording or "unknown" for frame in data.frames)
    result: dict[str, Any] = {
        "images": len(data.frames),
        "recordings": len({frame.recording for frame in data.frames}),
        "cameras": dict(sorted(cameras.items())),
        "brightness": _brightness(data),
        "unreadable": dict(sorted(data.broken.items())),
        "oriented": data.oriented,
    }
    return result | (_describe_labels(data.file) if data.file is not None else {})


def _brightness(data: DataSet) -> dict[str, dict[str, float]]:
    """Return images and mean grey level, 0..255, by hour of the day."""
    levels: dict[str, list[float]] = defaultdict(list)
    for position, hashed in data.hashes.items():
        hour = data.hours.get(position)
        levels["unknown" if hour is None else f"{hour:02d}"].append(float(hashed.mean()))
    return {
        hour: {"images": len(own), "mean": round(float(np.mean(own)), 1), "darkest": round(min(own), 1)}
        for hour, own in sorted(levels.items())
    }


def _describe_labels(file: CocoFile) -> dict[str, Any]:
    table, objects = file.table, ~file.table.crowd
    sides = np.sqrt((table.boxes[:, 2:] - table.boxes[:, :2]).prod(1))
    classes, per_camera = {}, {}
    cameras = np.array([frame.camera or frame.recording or "unknown" for frame in file.frames], object)
    owners = cameras[np.repeat(np.arange(len(file.frames)), np.diff(table.starts))]
    for identifier, name in file.categories.items():
        own = objects & (table.categories == identifier)
        classes[name] = {"boxes": int(own.sum()), **_sizes(sides[own])}
        per_camera[name] = {str(k): int(v) for k, v in sorted(Counter(owners[own].tolist()).items())}
    counts = np.diff(table.starts)
    return {
        "boxes": int(objects.sum()),
        "regions": int(table.crowd.sum()),
        "empty_images": int((counts == 0).sum()),
        "most_boxes": int(counts.max(initial=0)),
        "classes": classes,
        "classes_by_camera": per_camera,
        "oddities": table.oddities._asdict(),
    }


def _sizes(sides: NDArray[np.float64]) -> dict[str, Any]:
    """Return the number of boxes in COCO's ranges, and quantiles of the square root of the area in pixels."""
    counts = {name: int(((sides >= low) & (sides < high)).sum()) for name, (low, high) in SIZES.items()}
    quantiles = np.quantile(sides, [0.05, 0.5, 0.95]).round(1).tolist() if len(sides) else [None] * 3
    return counts | dict(zip(("p5", "p50", "p95"), quantiles, strict=True))


def copies_between(sets: Sequence[DataSet]) -> list[dict[str, Any]]:
    """Return the pairs of nearly equal images in different data sets, the most similar first."""
    found = []
    for one, other in combinations(sets, 2):
        positions = [list(data.hashes) for data in (one, other)]
        pairs = find_copies(*([data.hashes[p] for p in own] for data, own in zip((one, other), positions, strict=True)))
        found += [
            {
                one.name: one.frames[positions[0][pair.one]].name,
                other.name: other.frames[positions[1][pair.other]].name,
                "difference": pair.difference,
            }
            for pair in pairs
        ]
    return sorted(found, key=lambda pair: float(pair["difference"]))


def spread(count: int, most: int) -> list[int]:
    """Return up to `most` positions, evenly spread over `count`."""
    return sorted({round(p) for p in np.linspace(0, count - 1, min(most, count))}) if count and most else []


def totals(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Return images and boxes of all data sets together."""
    return {key: sum(int(own.get(key, 0)) for own in sets.values()) for key in ("images", "boxes")}
