"""Sources of frames: frames by position, in a fixed order, without labels."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cahqp.coco.decoding import read_brightness, read_image
from cahqp.frame import Frame


class FrameSource(ABC):
    """Frames by position, in a fixed order.

    Attributes:
        frames: Origin of each frame; `size` is (0, 0) where it is known only from the image itself.
        location: Folder that the names are relative to, or the video file.
    """

    frames: Sequence[Frame]
    location: Path

    @abstractmethod
    def read(self, position: int) -> NDArray[np.uint8]:
        """Return the image at a position as (H, W, 3) uint8 RGB.

        Raises:
            BrokenImageError: It cannot be decoded.
        """

    def path(self, position: int) -> Path | None:
        """Return the image file at a position, `None` for a frame of a video."""
        return None

    def brightness(self, position: int) -> float:
        """Return the mean luminance of the image at a position, 0..255."""
        return float(self.read(position)[::4, ::4].mean())

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frames)


class ImageFrames(FrameSource):
    """Image files.

    Args:
        root: Folder that the names are relative to.
        frames: One per file; `name` is the file below `root`.
        categories: Category names by id, if a COCO file contains them.
    """

    def __init__(self, root: Path, frames: Sequence[Frame], categories: dict[int, str] | None = None) -> None:
        self.root = root
        self.location = root.resolve()
        self.frames = frames
        self.categories = categories or {}

    def read(self, position: int) -> NDArray[np.uint8]:
        """Return the image at a position as (H, W, 3) uint8 RGB."""
        size = self.frames[position].size
        return read_image(self.path(position), size if size != (0, 0) else None)

    def path(self, position: int) -> Path:
        """Return the image file at a position."""
        return self.root / self.frames[position].name

    def brightness(self, position: int) -> float:
        """Return the mean luminance of the image at a position, 0..255, decoded small where possible."""
        return read_brightness(self.path(position))


class JoinedFrames(FrameSource):
    """Several sources one after the other, with unique ids, names and recordings.

    If sources of different folders share a name or recording, each gets the part of its path that differs: recording
    `night` of `cam1/night` and `cam2/night` becomes `cam1/night` and `cam2/night`. Others stay unchanged.

    Args:
        sources: The sources.
    """

    def __init__(self, sources: Sequence[FrameSource]) -> None:
        self.sources = sources
        self.location = Path.cwd()
        self.frames = unique_ids(_unique_names(sources))
        self._starts = np.cumsum([0, *(len(source) for source in sources)])

    def read(self, position: int) -> NDArray[np.uint8]:
        """Return the image at a position as (H, W, 3) uint8 RGB."""
        source, within = self._find(position)
        return source.read(within)

    def path(self, position: int) -> Path | None:
        """Return the image file at a position, `None` for a frame of a video."""
        source, within = self._find(position)
        return source.path(within)

    def brightness(self, position: int) -> float:
        """Return the mean luminance of the image at a position, 0..255."""
        source, within = self._find(position)
        return source.brightness(within)

    def _find(self, position: int) -> tuple[FrameSource, int]:
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        return self.sources[number], position - int(self._starts[number])


def unique_ids(frames: Sequence[Frame]) -> list[Frame]:
    """Return the frames, numbered from 1 if an id occurs twice."""
    if len({frame.id for frame in frames}) == len(frames):
        return list(frames)
    return [replace(frame, id=number) for number, frame in enumerate(frames, 1)]


def _unique_names(sources: Sequence[FrameSource]) -> list[Frame]:
    """Return the frames of all sources; frames of different folders share no name or recording."""
    locations = [source.location for source in sources]
    folders = [location if location.is_dir() else location.parent for location in locations]
    common = os.path.commonpath(folders or [Path()])
    names = _colliding(locations, [{frame.name for frame in source.frames} for source in sources])
    recordings = _colliding(locations, [{frame.recording for frame in source.frames} - {""} for source in sources])
    parts = _differing_parts([locations[number] for number in sorted(recordings)])
    frames: list[Frame] = []
    for number, source in enumerate(sources):
        below = os.path.relpath(folders[number], common) if number in names else "."
        part = parts.get(locations[number], "") if number in recordings else ""
        for frame in source.frames:
            name = frame.name if below == "." else f"{Path(below).as_posix()}/{frame.name}"
            recording = f"{part}/{frame.recording}" if part and frame.recording else frame.recording
            frames.append(replace(frame, name=name, recording=recording))
    return frames


def _colliding(locations: Sequence[Path], values: Sequence[Iterable[Hashable]]) -> set[int]:
    """Return the indices of the sources that share a value with a source of another location."""
    owners: dict[Hashable, set[int]] = defaultdict(set)
    for number, own in enumerate(values):
        for value in own:
            owners[value].add(number)
    return {n for numbers in owners.values() if len({locations[m] for m in numbers}) > 1 for n in numbers}


def _differing_parts(locations: Sequence[Path]) -> dict[Path, str]:
    """Return each path without the folders that all paths begin with, and those that all end with."""
    parts = {location: location.parts for location in locations}
    start, shortest = 0, min(map(len, parts.values()), default=0)
    while start < shortest and len({own[start] for own in parts.values()}) == 1:
        start += 1
    end = 0
    while start + end < shortest and len({own[-1 - end] for own in parts.values()}) == 1:
        end += 1
    return {location: "/".join(own[start : len(own) - end]) for location, own in parts.items()}
