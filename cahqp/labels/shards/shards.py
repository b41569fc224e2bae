"""Append-only shards of label records, one per process, from which an interrupted run resumes.

Frames are identified by their position in the input. Positions may be in any shard and in any order, and a resumed run
may have another number of processes: readers take all shards of a directory together.
"""

from __future__ import annotations

import os
import re
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cahqp.errors import RunError

_POSITION = re.compile(rb'\{"position": (\d+), ')


class LabelShards:
    """Writer of the shard of one process; it also reads which frames all processes have written.

    A line reaches the operating system with its frame, so a killed process loses no written frame. A line reaches the
    disk after at most `sync_frames` frames or `sync_seconds` seconds, which limits the loss in a power cut.

    Args:
        work: Directory of the shards; created if missing.
        rank: Number of this process.
        sync_frames: Largest number of frames between two syncs to the disk.
        sync_seconds: Longest time in seconds between two syncs, checked when a frame is written.
    """

    def __init__(self, work: Path, rank: int, *, sync_frames: int = 64, sync_seconds: float = 5.0) -> None:
        self.work = Path(work)
        self.path = self.work / f"rank-{rank:05d}.jsonl"
        self.sync_frames, self.sync_seconds = sync_frames, sync_seconds
        self.work.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab", buffering=0)
        self._size = _whole_size(self.path)
        self._file.truncate(self._size)
        self._unsynced, self._synced_at = 0, time.monotonic()

    def done(self) -> NDArray[np.bool_]:
        """Return, by position, whether a frame is written; positions past the end are not.

        Call it before any process of this run writes. Otherwise processes disagree on the remaining frames.
        """
        positions = index_shards(self.work).positions
        written = np.zeros(int(positions.max()) + 1 if len(positions) else 0, dtype=np.bool_)
        written[positions] = True
        return written

    def append(self, line: bytes) -> None:
        """Append the line of one frame; it begins with the position and ends with a newline.

        Raises:
            RunError: The disk is full.
        """
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:]) or 0
        except OSError as error:
            self._file.truncate(self._size)  # a half-written line would damage the next one
            raise self._explain(error) from error
        self._size += len(line)
        self._unsynced += 1
        if self._unsynced >= self.sync_frames or time.monotonic() - self._synced_at >= self.sync_seconds:
            self.sync()

    def sync(self) -> None:
        """Write all data to the disk.

        Raises:
            RunError: The disk is full or failing.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._explain(error) from error
        self._unsynced, self._synced_at = 0, time.monotonic()

    def close(self) -> None:
        """Sync and close."""
        if not self._file.closed:
            try:
                self.sync()
            finally:
                self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _explain(self, error: OSError) -> RunError:
        return RunError(
            f"{self.path} could not be written ({error.strerror}). Free some space or fix its permissions, then rerun "
            "the same command to resume."
        )


@dataclass(frozen=True)
class ShardIndex:
    """Locations of all lines, 20 bytes a frame, sorted by position, then shard, then offset.

    Attributes:
        paths: Shards.
        positions: (N,) int64 positions in the input.
        shards: (N,) int32 indices into `paths`.
        offsets: (N,) int64 first bytes of the lines.
    """

    paths: tuple[Path, ...]
    positions: NDArray[np.int64]
    shards: NDArray[np.int32]
    offsets: NDArray[np.int64]


def index_shards(work: Path) -> ShardIndex:
    """Index all shards of a directory, without an unfinished last line of a killed process.

    Raises:
        RunError: A line in the middle of a shard is damaged.
    """
    paths = tuple(sorted(Path(work).glob("rank-*.jsonl")))
    positions, shards, offsets = array("q"), array("i"), array("q")
    for number, path in enumerate(paths):
        for offset, position in _lines(path):
            positions.append(position)
            shards.append(number)
            offsets.append(offset)
    columns = np.array(positions, np.int64), np.array(shards, np.int32), np.array(offsets, np.int64)
    order = np.lexsort((columns[2], columns[1], columns[0]))
    return ShardIndex(paths, *(column[order] for column in columns))  # type: ignore[arg-type]


def _lines(path: Path) -> Iterator[tuple[int, int]]:
    """Yield offset and position of each complete line."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            match = _POSITION.match(line)
            if match is None or not line.endswith(b"}\n"):
                message = f"{path}, line {number} is damaged. Delete {path} and rerun the same command."
                raise RunError(message)
            yield offset, int(match[1])
            offset += len(line)


def _whole_size(path: Path, block: int = 1 << 16) -> int:
    """Return the size up to and including the last newline, reading from the end."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - block)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
