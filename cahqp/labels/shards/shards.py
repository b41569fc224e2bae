"""Labels on their way to a file: append-only shards, one per process, from which a killed run goes on.

A frame is known by its position in the input. Positions may lie in any shard and in any order, and a restart may have
another number of processes: readers take all shards of the directory together.
"""

from __future__ import annotations

import os
import re
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from cahqp.errors import RunError
from cahqp.labels.shards.records import encode

if TYPE_CHECKING:
    from cahqp.frame import Frame
    from cahqp.labels.select import Selection

_POSITION = re.compile(rb'\{"position": (\d+), ')


class LabelShards:
    """Writes one process's labels into `work` and knows what all processes have written.

    A line reaches the operating system as soon as its frame is labelled, so a killed process loses nothing that it
    had written; it reaches the disk with every `sync_frames` frames or `sync_seconds` seconds, for a power cut.

    Args:
        work: Directory of the shards; made where missing.
        rank: Number of this process.
        sync_frames: Most frames between two syncs to the disk.
        sync_seconds: Most seconds between two syncs to the disk, looked at when a frame is written.
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
        """Return, by position, whether a frame is labelled; positions past the end are not.

        Ask before any process of this run writes, or the processes will not agree on what is left.
        """
        positions = index_shards(self.work).positions
        labelled = np.zeros(int(positions.max()) + 1 if len(positions) else 0, dtype=np.bool_)
        labelled[positions] = True
        return labelled

    def write(self, position: int, frame: Frame, selection: Selection) -> None:
        """Append one frame's labels.

        Raises:
            RunError: The disk is full, or a label is not a finite number.
        """
        self.write_line(encode(position, frame, selection))

    def write_line(self, line: bytes) -> None:
        """Append one frame's line, which begins with its position.

        Raises:
            RunError: The disk is full.
        """
        self._append(line)
        self._unsynced += 1
        if self._unsynced >= self.sync_frames or time.monotonic() - self._synced_at >= self.sync_seconds:
            self.sync()

    def sync(self) -> None:
        """Bring everything written so far to the disk.

        Raises:
            RunError: The disk is full or failing.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._explained(error) from error
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

    def _append(self, line: bytes) -> None:
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:]) or 0
        except OSError as error:
            # What follows a half-written line would be lost with it.
            self._file.truncate(self._size)
            raise self._explained(error) from error
        self._size += len(line)

    def _explained(self, error: OSError) -> RunError:
        return RunError(
            f"{self.path} could not be written ({error.strerror}). Make room or mend its permissions, then run the "
            "same command again: it goes on where it stopped."
        )


@dataclass(frozen=True)
class ShardIndex:
    """Where each labelled frame's line stands: 20 bytes a frame, sorted by position, then shard, then offset.

    Attributes:
        paths: The shards.
        positions: (N,) int64 positions in the input.
        shards: (N,) int32 rows of `paths`.
        offsets: (N,) int64 first bytes of the lines.
    """

    paths: tuple[Path, ...]
    positions: NDArray[np.int64]
    shards: NDArray[np.int32]
    offsets: NDArray[np.int64]


def index_shards(work: Path) -> ShardIndex:
    """Index all shards of a directory; a last line that a killed process left unfinished does not count.

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
    """Yield offset and position of each whole line."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            match = _POSITION.match(line)
            if match is None or not line.endswith(b"}\n"):
                message = f"{path}, line {number} is damaged. Delete {path} and run the same command again."
                raise RunError(message)
            yield offset, int(match[1])
            offset += len(line)


def _whole_size(path: Path, block: int = 1 << 16) -> int:
    """Return the size up to and with the last newline, reading from the end."""
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
