"""Sources of frames: by position, in a fixed order, without labels."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cahqp.data.images import read_brightness, read_image
from cahqp.frame import Frame


class FrameSource(ABC):
    """Frames by position, in a fixed order."""

    @property
    @abstractmethod
    def frames(self) -> Sequence[Frame]:
        """Where each frame comes from; `size` is (0, 0) where only the image itself tells."""

    @abstractmethod
    def read(self, position: int) -> NDArray[np.uint8]:
        """Return the image at a position as (H, W, 3) uint8 RGB.

        Raises:
            BrokenImageError: It cannot be decoded.
        """

    @property
    def place(self) -> Path:
        """Folder that the names are relative to, or the video file."""
        return Path.cwd()

    def path(self, position: int) -> Path | None:
        """Return the image file at a position, `None` where there is none of its own."""
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
        root: What the names are relative to.
        frames: One per file; `name` is the file below `root`.
        categories: Category names by id, where a COCO file states them.
    """

    def __init__(self, root: Path, frames: Sequence[Frame], categories: dict[int, str] | None = None) -> None:
        self.root = root
        self.categories = categories or {}
        self._frames = frames

    @property
    def frames(self) -> Sequence[Frame]:
        """Where each frame comes from."""
        return self._frames

    @property
    def place(self) -> Path:
        """Folder that the names are relative to."""
        return self.root.resolve()

    def read(self, position: int) -> NDArray[np.uint8]:
        """Return the image at a position as (H, W, 3) uint8 RGB."""
        size = self._frames[position].size
        return read_image(self.path(position), size if size != (0, 0) else None)

    def path(self, position: int) -> Path:
        """Return the image file at a position."""
        return self.root / self._frames[position].name

    def brightness(self, position: int) -> float:
        """Return the mean luminance of the image at a position, 0..255, decoded small where possible."""
        return read_brightness(self.path(position))


class JoinedFrames(FrameSource):
    """Several sources one after the other, with ids, names and recordings that are unique across them.

    Where sources of different folders call a frame or a recording the same, each gets the part of its path that
    differs: recording `night` of `cam1/night` and `cam2/night` becomes `cam1/night` and `cam2/night`. Otherwise names
    and recordings stay as they are.

    Args:
        sources: The sources.
    """

    def __init__(self, sources: Sequence[FrameSource]) -> None:
        self.sources = sources
        self._frames = unique_ids(_told_apart(sources))
        self._starts = np.cumsum([0, *(len(source) for source in sources)])

    @property
    def frames(self) -> Sequence[Frame]:
        """Where each frame comes from."""
        return self._frames

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
    """Return the frames as they are where no id comes twice, else numbered from 1."""
    if len({frame.id for frame in frames}) == len(frames):
        return list(frames)
    return [replace(frame, id=number) for number, frame in enumerate(frames, 1)]


def _told_apart(sources: Sequence[FrameSource]) -> list[Frame]:
    """Return the frames of all sources, none with a name or recording that another folder's frames have."""
    places = [source.place for source in sources]
    folders = [place if place.is_dir() else place.parent for place in places]
    common = os.path.commonpath(folders or [Path()])
    names = _shared(places, [{frame.name for frame in source.frames} for source in sources])
    recordings = _shared(places, [{frame.recording for frame in source.frames} - {""} for source in sources])
    parts = _differing([places[number] for number in sorted(recordings)])
    found: list[Frame] = []
    for number, source in enumerate(sources):
        below = os.path.relpath(folders[number], common) if number in names else "."
        part = parts.get(places[number], "") if number in recordings else ""
        for frame in source.frames:
            name = frame.name if below == "." else f"{Path(below).as_posix()}/{frame.name}"
            recording = f"{part}/{frame.recording}" if part and frame.recording else frame.recording
            found.append(replace(frame, name=name, recording=recording))
    return found


def _shared(places: Sequence[Path], values: Sequence[Iterable[Hashable]]) -> set[int]:
    """Return the numbers of the sources that have a value in common with a source of another place."""
    owners: dict[Hashable, set[int]] = defaultdict(set)
    for number, own in enumerate(values):
        for value in own:
            owners[value].add(number)
    return {n for numbers in owners.values() if len({places[m] for m in numbers}) > 1 for n in numbers}


def _differing(places: Sequence[Path]) -> dict[Path, str]:
    """Return of each path what is left without the folders that all begin with, and those that all end with."""
    parts = {place: place.parts for place in places}
    start, shortest = 0, min(map(len, parts.values()), default=0)
    while start < shortest and len({own[start] for own in parts.values()}) == 1:
        start += 1
    end = 0
    while start + end < shortest and len({own[-1 - end] for own in parts.values()}) == 1:
        end += 1
    return {place: "/".join(own[start : len(own) - end]) for place, own in parts.items()}
